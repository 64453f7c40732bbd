"""Drafts: hidden files that take their place once they are complete and on disk."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Draft", "remove_left_drafts", "sync_folder"]

_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")


class Draft:
    """A new file beside ``place``, locked as long as this process writes it.

    Args:
        place: the file that it becomes.

    Attributes:
        file: the open file.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        while True:
            # In the same folder, so that publishing is a rename within one file system.
            self._path = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
            self.file: BinaryIO = open(self._path, "xb")  # noqa: SIM115
            _lock(self.file.fileno())
            # Another process may have taken it for left before it was locked.
            if self._path.exists():
                return
            self.file.close()

    def publish(self) -> None:
        """Move the file to its place, replacing any file there, once it is on disk.

        Raises:
            OSError: that fails; any file at the place is unchanged.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        if fcntl is None:
            self.file.close()  # Windows renames no open file
        os.replace(self._path, self._place)
        self.file.close()
        sync_folder(self._place.parent)

    def discard(self) -> None:
        """Close and remove the file, if it was not published."""
        with contextlib.suppress(OSError):  # a full disk, which writing has reported
            self.file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def remove_left_drafts(folder: Path, name: str | None = None) -> None:
    """Remove drafts of processes that were killed.

    Does nothing on systems without locks, which tell whether a process lives.

    Args:
        folder: where they are.
        name: the name of the file that they were to become; by default any.
    """
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _DRAFT.fullmatch(entry.name)
            if match and name in (None, match[1]):
                with contextlib.suppress(OSError), open(entry.path, "rb") as file:
                    if _lock(file.fileno()):
                        os.unlink(entry.path)


def _lock(handle: int) -> bool:
    """Lock an open file until it is closed; return False if another process holds it."""
    if fcntl is None:
        return False
    try:
        # The system releases the lock however the process ends.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, if the system supports it."""
    if os.name != "posix":
        return
    # Some file systems do not support it for a folder; the file is already in place.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
