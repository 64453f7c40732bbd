"""Write a bundle to a temporary folder, which is renamed once the bundle is complete."""

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
    """Raise an error if a path is taken or cannot be written, before any work starts."""
    if not target.name:
        raise OutputError(f"{target}: give the bundle a name of its own")
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target}: expected a folder, this is a file")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise OutputError(
                f"{target}: exists and is not empty; pass overwrite=True (--overwrite)"
            )
        # Overwrite bundles only, never another folder given by mistake.
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
    """Yield an empty folder beside ``target``, and rename it to ``target`` at the end.

    After an error no folder is left behind, and an existing bundle at ``target`` is unchanged.

    Raises:
        OutputError: the folder cannot be renamed.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        _publish(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(staging: Path, target: Path) -> None:
    try:
        # mkdtemp creates a private folder; a bundle gets the permissions that the umask allows.
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
