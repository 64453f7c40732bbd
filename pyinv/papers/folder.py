"""The folder that a reproduction writes into."""

from __future__ import annotations

import os
from pathlib import Path

from pyinv.atomic_files import OutputFolder
from pyinv.errors import OutputError

__all__ = ["open_folder"]


def open_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder, made with those above it where they are missing, and found writable.

    Raises:
        OutputError: a file is in the way, or it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{folder}: expected a folder, and this is a file") from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    with OutputFolder(folder):  # leaves what was there
        return folder
