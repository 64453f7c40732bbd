"""Read arrays from .npy and .npz files, with one-line errors."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import InputError, check_source, reading
from pyinv.size_limits import check_bytes

__all__ = ["ArrayArchive", "opened", "read_array", "read_header", "read_npz"]

_ZIP_MAGIC = b"PK"
_PIECE = 2**20  # bytes unpacked at a time
_REMEDY = "save it again with NumPy"


class ArrayArchive:
    """The arrays of an open .npz file, each read when it is asked for by its name."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self.files = [name.removesuffix(".npy") for name in archive.namelist()]

    def __getitem__(self, name: str) -> NDArray[Any]:
        with reading(self._path, ".npz file", _REMEDY):
            entry = self._archive.getinfo(f"{name}.npy")
            check_bytes(f"{self._path}: {name}", entry.file_size, self._path.stat().st_size)
            with self._archive.open(entry) as stream:
                shape, fortran_order, dtype = read_header(stream)
                # NumPy would allocate whatever size the header gives.
                size, there = math.prod(shape) * dtype.itemsize, entry.file_size - stream.tell()
                if size != there:
                    raise ValueError(f"the array {name} takes {size} bytes, got {there}")
                content = bytearray(size)
                for start in range(0, size, _PIECE):
                    content[start : start + _PIECE] = stream.read(min(_PIECE, size - start))
                return np.ndarray(shape, dtype, content, order="F" if fortran_order else "C")


def read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array in NumPy's format: its shape, whether its order is Fortran's,
    and its type.

    Raises:
        ValueError, and whatever else NumPy raises: the header is damaged, or of no plain array.
    """
    if np.lib.format.read_magic(stream) == (1, 0):
        header = np.lib.format.read_array_header_1_0(stream)
    else:  # what NumPy writes for long headers
        header = np.lib.format.read_array_header_2_0(stream)
    shape, fortran_order, dtype = header
    if dtype.hasobject:
        raise ValueError("no numeric array in it")
    if any(axis < 0 for axis in shape):
        raise ValueError(f"an array of the shape {list(shape)}")
    return shape, fortran_order, dtype


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[NDArray[Any] | ArrayArchive]:
    """Open a .npy file as a memory map, or a .npz file whose arrays are read on access.

    Raises:
        InputError: no such file, or not readable; reads inside the ``with`` block raise it too.
    """
    path = Path(path)
    check_source(path)
    archive: zipfile.ZipFile | None = None
    with reading(path, f"{path.suffix} file", _REMEDY):
        with open(path, "rb") as stream:
            packed = stream.read(2) == _ZIP_MAGIC
            stream.seek(0)
            if not packed:
                try:
                    read_header(stream)
                except ValueError as error:
                    # NumPy speaks of magic strings and pickles.
                    raise ValueError("no numeric array in it") from error
        if packed:
            archive = zipfile.ZipFile(path)
        else:
            array = np.asarray(np.lib.format.open_memmap(path, mode="r"))
    if archive is None:
        yield array
        return
    with archive:
        yield ArrayArchive(path, archive)


def read_array(path: str | os.PathLike[str], name: str) -> NDArray[Any]:
    """Read the array in a .npy file, or the array called ``name`` or the only one in a .npz file.

    Raises:
        InputError: no such file or array, or not readable.
    """
    with opened(path) as file:
        if isinstance(file, np.ndarray):
            return file
        if name in file.files or len(file.files) == 1:
            return file[name if name in file.files else file.files[0]]
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
