"""Outputs that are checked to be writable before any work starts, and written atomically."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pyinv.errors import OutputError

__all__ = ["OutputFile", "OutputFolder", "write_whole"]


class OutputFile:
    """A file that appears at its path, replacing any file there, once ``write`` has succeeded.

    Args:
        path: the file to write. Its folder must exist.

    Raises:
        OutputError: the path is a folder, or nothing can be written beside it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise OutputError(f"{self.path}: expected a file to write, and this is a folder")
        # In the same folder, so that the replacement is a rename within one file system.
        self._draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._file: BinaryIO = _open_new(self._draft, self.path)

    def write(self, write: Callable[[BinaryIO], None]) -> None:
        """Call ``write`` with the open file, then move the file to its path once it is on disk.

        Raises:
            OutputError: the file cannot be written. Its content is kept in a temporary folder, if
                possible; the message names it.
        """
        try:
            write(self._file)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._draft, self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            kept = _kept_elsewhere(write, self.path.name)
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror})"
                + (f"; it was written to {kept} instead" if kept else "")
            ) from None

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # a full disk, which ``write`` has reported
            self._file.close()
        with contextlib.suppress(OSError):
            self._draft.unlink(missing_ok=True)


class OutputFolder:
    """A folder to write files into, created if necessary and removed again if left empty.

    Args:
        path: the folder. Its parent must exist.

    Raises:
        OutputError: the path is a file, or the folder cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._made = not self.path.exists()
        try:
            self.path.mkdir(exist_ok=True)
        except FileExistsError:
            raise OutputError(f"{self.path}: expected a folder, and this is a file") from None
        except FileNotFoundError:
            raise _no_parent(self.path) from None
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be made ({error.strerror})") from None
        probe = self.path / f".{os.getpid()}.part"
        _open_new(probe, self.path).close()
        # A process of this number on another machine may have removed it.
        probe.unlink(missing_ok=True)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: it replaces the one at ``path`` once it is on disk.

    Raises:
        OutputError: the file cannot be written; any file at ``path`` is unchanged.
    """
    # In the same folder, so that the replacement is a rename within one file system; under a fixed
    # name, so that a draft left by a killed process is overwritten.
    draft = path.with_name(f".{path.name}.part")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        previous = "; the previous file is unchanged" if path.exists() else ""
        raise OutputError(f"{path}: cannot be written ({error.strerror}){previous}") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _kept_elsewhere(write: Callable[[BinaryIO], None], name: str) -> Path | None:
    """Write a file to a new temporary folder and return its path; None if that fails as well."""
    try:
        path = Path(tempfile.mkdtemp(prefix="pyinv-")) / name
        with open(path, "wb") as file:
            write(file)
    except OSError:
        return None
    return path


def _open_new(draft: Path, path: Path) -> BinaryIO:
    try:
        return open(draft, "wb")
    except FileNotFoundError:
        raise _no_parent(path) from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def _no_parent(path: Path) -> OutputError:
    return OutputError(f"{path}: the folder {path.parent} does not exist; make it first")


def _sync_folder(folder: Path) -> None:
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
