"""The folder where a bundle is written, which takes the bundle's name once it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyinv.errors import OutputError

__all__ = ["check_target", "staged"]


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a path that is taken or cannot be written, before any work is done."""
    if not target.name:
        raise OutputError(f"{target}: give the bundle a name of its own")
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target}: expected a folder, this is a file")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise OutputError(
                f"{target}: exists and is not empty; pass overwrite=True (--overwrite)"
            )
        # Overwriting means a bundle, never somebody's folder given by mistake.
        if not (target / "manifest.json").is_file():
            raise OutputError(f"{target}: exists and is not a bundle, so it is not overwritten")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)
        os.rmdir(probe)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target``, and rename it to that at the end.

    An error leaves nothing behind, and a bundle that was at ``target`` as it was.

    Raises:
        OutputError: it cannot be renamed.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        _publish(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(staging: Path, target: Path) -> None:
    try:
        # mkdtemp makes a private folder; a bundle is as public as the folder it is in.
        mask = os.umask(0)
        os.umask(mask)
        staging.chmod(0o777 & ~mask)
        if target.is_dir():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            target.rename(old / "bundle")
            try:
                staging.rename(target)
            except OSError:
                (old / "bundle").rename(target)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            staging.rename(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None
