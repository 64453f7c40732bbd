"""The folder that a reproduction writes into."""

from __future__ import annotations

import os
from pathlib import Path

from pyinv.atomic_files import OutputFolder
from pyinv.errors import OutputError

__all__ = ["open_folder"]


def open_folder(path: str | os.PathLike[str]) -> Path:
    """Create the folder and its parents if necessary, check that it is writable, and return it.

    Raises:
        OutputError: the path is a file, or the folder cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{folder}: expected a folder, and this is a file") from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    with OutputFolder(folder):  # leaves existing files in place
        return folder
