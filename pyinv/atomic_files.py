"""Outputs that are checked to be writable before any work starts, and written atomically."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from pyinv.errors import OutputError

__all__ = [
    "OutputFile",
    "OutputFolder",
    "check_replaceable",
    "refuse_inputs",
    "sync_folder",
    "write_whole",
]

PathLike = str | os.PathLike[str]


class OutputFile:
    """A file that appears at its path once ``write`` has succeeded.

    A symbolic link is followed: it stays, and the file that it names is written.

    Args:
        path: the file to write. Its folder must exist.
        overwrite: replace an existing file.
        inputs: files that are being read, which are never replaced.

    Raises:
        OutputError: the path is a folder, an input, or an existing file without ``overwrite``; or
            nothing can be written beside it.
    """

    def __init__(
        self, path: PathLike, *, overwrite: bool = False, inputs: Iterable[PathLike] = ()
    ) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise OutputError(f"{self.path}: expected a file to write, and this is a folder")
        check_replaceable(self.path, overwrite=overwrite, inputs=inputs)
        self._place = _followed(self.path)
        # In the same folder, so that the replacement is a rename within one file system.
        self._draft = self._place.with_name(f".{self._place.name}.{os.getpid()}.part")
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
            os.replace(self._draft, self._place)
            sync_folder(self._place.parent)
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

    def __init__(self, path: PathLike) -> None:
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

    def check_free(
        self, names: Iterable[str], *, overwrite: bool, inputs: Iterable[PathLike] = ()
    ) -> None:
        """Raise OutputError if one of these files exists and may not be replaced.

        Args:
            names: the files that are going to be written.
            overwrite: as for ``OutputFile``.
            inputs: as for ``OutputFile``.
        """
        for name in names:
            check_replaceable(self.path / name, overwrite=overwrite, inputs=inputs)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()


def check_replaceable(path: Path, *, overwrite: bool, inputs: Iterable[PathLike] = ()) -> None:
    """Raise OutputError if ``path`` is an input, or exists without ``overwrite``."""
    if not path.exists():
        return
    refuse_inputs(path, inputs)
    if not overwrite:
        raise OutputError(
            f"{path}: exists; give another name, or pass --overwrite (overwrite=True) to replace it"
        )


def refuse_inputs(path: Path, inputs: Iterable[PathLike], *, within: bool = False) -> None:
    """Raise OutputError if ``path`` is one of the inputs.

    Args:
        path: what is going to be written or replaced.
        inputs: files and folders that are being read; those that do not exist are ignored.
        within: also refuse a folder that an input lies in.
    """
    if not path.exists():
        return
    for source in (Path(given) for given in inputs if os.path.exists(given)):
        if source.samefile(path):
            problem = "is an input"
        elif within and any(folder.samefile(path) for folder in _followed(source).parents):
            problem = f"contains the input {source}"
        else:
            continue
        raise OutputError(f"{path}: {problem}, and inputs are never replaced; give another name")


def _followed(path: Path) -> Path:
    """Return where a path leads, through symbolic links."""
    return Path(os.path.realpath(path))


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: it replaces the one at ``path`` once it is on disk.

    Raises:
        OutputError: the file cannot be written; any file at ``path`` is unchanged.
    """
    # In the same folder, so that the replacement is a rename within one file system; under a fixed
    # name, so that a draft left by a killed process is overwritten.
    place = _followed(path)
    draft = place.with_name(f".{place.name}.part")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, place)
        sync_folder(place.parent)
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
