"""Outputs that are checked to be writable before any work starts, and written atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from pyinv.drafts import Draft, remove_left_drafts
from pyinv.errors import OutputError, one_line
from pyinv.interrupts import held, say

__all__ = [
    "OutputFile",
    "OutputFolder",
    "check_replaceable",
    "refuse_inputs",
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
        place = _followed(self.path)
        remove_left_drafts(place.parent, place.name)
        self._draft = _new_draft(self.path)
        self._written = False

    def write(self, write: Callable[[BinaryIO], None]) -> None:
        """Call ``write`` with the open file, then move the file to its path once it is on disk.

        Raises:
            OutputError: the file cannot be written. Its content is kept in a temporary folder, if
                possible; the message names it.
        """
        with held():
            try:
                write(self._draft.file)
                self._draft.publish()
                self._written = True
            except OSError as error:
                kept = _kept_elsewhere(write, self.path.name)
                raise OutputError(
                    f"{self.path}: cannot be written ({one_line(error)})"
                    + (f"; it was written to {kept} instead" if kept else "")
                ) from None

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._draft.discard()
        say(error, f"{self.path} was written" if self._written else "nothing was written")


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
        remove_left_drafts(self.path)
        try:
            Draft(self.path / "probe").discard()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from None

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

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        # Another process may have removed it, or may be writing into it.
        with contextlib.suppress(OSError):
            if self._made and not any(self.path.iterdir()):
                self.path.rmdir()
                say(error, "nothing was written")


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
    with held():
        draft = _new_draft(path)
        try:
            draft.file.write(content)
            draft.publish()
        except OSError as error:
            previous = "; the previous file is unchanged" if path.exists() else ""
            raise OutputError(f"{path}: cannot be written ({error.strerror}){previous}") from None
        finally:
            draft.discard()


def _kept_elsewhere(write: Callable[[BinaryIO], None], name: str) -> Path | None:
    """Write a file to a new temporary folder and return its path; None if that fails as well."""
    with contextlib.suppress(OSError):
        folder = Path(tempfile.mkdtemp(prefix="pyinv-"))
        try:
            with open(folder / name, "wb") as file:
                write(file)
            return folder / name
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
    return None


def _new_draft(path: Path) -> Draft:
    """Make a draft of the file that a path leads to."""
    try:
        return Draft(_followed(path))
    except FileNotFoundError:
        raise _no_parent(path) from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def _no_parent(path: Path) -> OutputError:
    return OutputError(f"{path}: the folder {path.parent} does not exist; make it first")
