"""Write a bundle to a temporary folder, which is renamed once the bundle is complete."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyinv.drafts import sync_folder
from pyinv.errors import OutputError, one_line
from pyinv.interrupts import held, say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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


_STAGING = ".pyinv-staging"  # ends the names of folders that nobody else makes


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target``, and rename it to ``target`` at the end.

    An existing bundle at ``target`` is exchanged in one step: whenever the process is killed, the
    old or the new bundle stands there. (Where the system cannot exchange folders, there is a moment
    between two renames. The next call puts the old bundle back.) After an error no folder is left
    behind, and an existing bundle is unchanged. Folders that killed processes left are removed.

    Raises:
        OutputError: the folder cannot be written to or renamed.
    """
    _remove_left(target)
    try:
        folder, lock = _make_staging(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None
    published = False
    try:
        yield folder
        with held():
            _publish(folder, target)
            published = True
    except OSError as error:
        # A write that fails names no file. Other errors are the generator's own.
        if error.filename is None or Path(error.filename).is_relative_to(folder):
            raise OutputError(f"{target}: cannot be written ({one_line(error)})") from None
        raise
    except KeyboardInterrupt as interrupt:
        say(interrupt, f"{target} was written" if published else "nothing was written")
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _make_staging(target: Path) -> tuple[Path, int | None]:
    """Make a folder, and lock it as long as this process lives."""
    while True:
        made = tempfile.mkdtemp(prefix=f".{target.name}-", suffix=_STAGING, dir=target.parent)
        lock = _lock(made)
        # Another process may have taken it for left before it was locked.
        if fcntl is None or lock is None or os.path.isdir(made):
            return Path(made), lock
        os.close(lock)


def _lock(folder: str) -> int | None:
    """Lock a folder; None if another process holds it, or there are no locks here."""
    if fcntl is None:
        return None
    handle = -1
    try:
        handle = os.open(folder, os.O_RDONLY)
        # The system releases the lock however the process ends.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle >= 0:
            os.close(handle)
        return None
    return handle


def _remove_left(target: Path) -> None:
    """Remove the folders that killed processes left, or put back the bundle that one moved away."""
    for left in glob.glob(f"{glob.escape(str(target.parent / f'.{target.name}-'))}*{_STAGING}"):
        lock = _lock(left)
        if lock is None:
            continue
        try:
            moved = Path(left) / _MOVED
            if moved.is_dir() and not target.exists():
                moved.rename(target)
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return False if the system cannot."""
    if os.name != "posix":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
    if hasattr(library, "renameat2"):
        failed = library.renameat2(here, names[0], here, names[1], swap)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, swap)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # an old kernel, or the file system
        return False
    raise OSError(number, os.strerror(number))


_MOVED = "bundle"  # in a staging folder: the old bundle, while the new one takes its place


def _publish(staging: Path, target: Path) -> None:
    try:
        # mkdtemp creates a private folder; a bundle gets the permissions that the umask allows.
        mask = os.umask(0)
        os.umask(mask)
        staging.chmod(0o777 & ~mask)
        for path in (*staging.rglob("*"), staging):
            _sync(path)
        if not target.is_dir():
            staging.rename(target)
        elif not _exchange(staging, target):
            _replace(staging, target)
        sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None


def _replace(staging: Path, target: Path) -> None:
    """Replace a folder by two renames, where there is no exchange."""
    old, lock = _make_staging(target)
    try:
        target.rename(old / _MOVED)
        try:
            staging.rename(target)
        except OSError:
            (old / _MOVED).rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sync(path: Path) -> None:
    """Write a file or folder to the disk, so that a rename cannot come before its content."""
    if path.is_dir():
        sync_folder(path)
        return
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
