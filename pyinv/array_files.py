"""Read arrays from .npy and .npz files, with one-line errors."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import InputError, one_line

__all__ = ["opened", "read_array", "read_npz"]


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[NDArray[Any] | np.lib.npyio.NpzFile]:
    """Open a .npy file as a memory map, or a .npz file whose arrays are read on access.

    Raises:
        InputError: no such file, or not readable; reads inside the ``with`` block raise it too.
    """
    path = Path(path)
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                yield loaded
        else:
            yield np.asarray(loaded)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        # NumPy reports any file that is not an array as a pickle, which would be misleading.
        reason = one_line(error)
        if "pickle" in reason or "Python objects" in reason:
            reason = "no numeric array in it"
        raise InputError(
            f"{path}: not a readable {path.suffix} file, or truncated ({reason}); "
            "save it again with NumPy"
        ) from None


def read_array(path: str | os.PathLike[str], name: str) -> NDArray[Any]:
    """Read the array in a .npy file, or the array called ``name`` or the only one in a .npz file.

    Raises:
        InputError: no such file or array, or not readable.
    """
    with opened(path) as file:
        if isinstance(file, np.ndarray):
            return file
        if name in file.files or len(file.files) == 1:
            return np.asarray(file[name if name in file.files else file.files[0]])
        found = ", ".join(file.files) or "none"
    raise InputError(
        f'{path}: expected one array or one named "{name}", found {found}; rename it "{name}"'
    )


def read_npz(
    path: str | os.PathLike[str], names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read arrays of a .npz file by their names.

    Args:
        path: the file.
        names: arrays that must be present.
        optional: arrays to return if present.

    Raises:
        InputError: no such file, not readable, or an array is missing.
    """
    with opened(path) as file:
        there = () if isinstance(file, np.ndarray) else file.files
        missing = [name for name in names if name not in there]
        if missing:
            raise InputError(f"{path}: has no array {missing[0]!r}")
        return {name: file[name] for name in (*names, *optional) if name in there}
