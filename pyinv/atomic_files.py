"""Output paths: found writable before any work starts, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pyinv.errors import OutputError

__all__ = ["OutputFile", "OutputFolder", "write_whole"]


class OutputFile:
    """A file that appears at its path, in place of any file there, once ``write`` has succeeded.

    Args:
        path: where to. Its folder must exist.

    Raises:
        OutputError: the path is a folder, or nothing can be written beside it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise OutputError(f"{self.path}: expected a file to write, and this is a folder")
        # The same folder, so that replacing is one rename on one file system.
        self._draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._file: BinaryIO = _open_new(self._draft, self.path)

    def write(self, write: Callable[[BinaryIO], None]) -> None:
        """Call ``write`` with the open file, then put the file in its place."""
        try:
            write(self._file)
            self._file.close()
            os.replace(self._draft, self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from None

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)


class OutputFolder:
    """A folder to write files into; made if it is not there, taken away again if left empty.

    Args:
        path: where to. The folder that holds it must exist.

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
        probe.unlink()

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file that takes the place of the one at ``path`` once it is on the disk.

    Raises:
        OutputError: it cannot be written; what was at ``path`` is still there.
    """
    # In the same folder, so that replacing is one rename on one file system; and under one name,
    # so that what a killed process left is overwritten.
    draft = path.with_name(f".{path.name}.part")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        kept = "; the one before is kept" if path.exists() else ""
        raise OutputError(f"{path}: cannot be written ({error.strerror}){kept}") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


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
    """Make a rename last through a loss of power, where the system can."""
    if os.name != "posix":
        return
    # Some file systems refuse it for a folder; and the file is in its place by now.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
