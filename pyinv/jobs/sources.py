"""Where a job's targets come from: image files and rows of arrays, read a few at a time."""

from __future__ import annotations

import hashlib
import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.array_files import opened
from pyinv.bundle import Manifest
from pyinv.errors import InputError, one_line, reading
from pyinv.gzip_files import opened_gzip
from pyinv.images import (
    convert_rows,
    load_images,
    load_picture,
    not_pictures,
    picture_rows,
)
from pyinv.size_limits import check_pixels

__all__ = ["ArraySource", "Chunk", "FileSource", "Source", "Target", "listing_digest"]

FloatArray = NDArray[np.float32]

CHUNK = 256  # targets read at a time
LIST_SUFFIXES = (".txt", ".lst")
_IDX_MAGIC = bytes((0, 0, 8, 3))  # unsigned bytes [N, H, W]
_IDX_BYTES = 2**26  # read at a time, at most


_DEFLATE_RATIO = 1032  # of zlib, at most: zlib.net/zlib_tech.html
_IDX = ("IDX file", "download it again")


@dataclass(frozen=True)
class Target:
    """One target of a job.

    Args:
        id: seeds the target's draws and names its row.
        source: where it comes from: a file, or a file and a row in it.
        load: reads it, as float32 [*target_shape]; raises InputError.
        conditions: what the generator takes beside the latent, by name.
    """

    id: int | str
    source: str
    load: Callable[[], FloatArray]
    conditions: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """Consecutive targets, and the columns that are carried through (a pyarrow Table) or None."""

    targets: list[Target]
    columns: Any = None


class Source(ABC):
    """The targets of a job, in a fixed order.

    Attributes:
        kind: what the source is, in a word.
        count: the number of targets.
        has_text_ids: whether ids are strings, otherwise whole numbers.
        columns: the schema of the columns that are carried through, or None.
    """

    kind: str
    count: int
    has_text_ids: bool = False
    columns: Any = None

    @property
    @abstractmethod
    def digest(self) -> str:
        """The hash of the list of targets: not of their content, which is not read for it."""

    @abstractmethod
    def read(self, first: int, last: int) -> Iterator[Chunk]:
        """Read the targets ``first`` to ``last - 1``. Several reads may be under way at once."""

    def describe(self) -> dict[str, Any]:
        """Return what tells this source from another one."""
        return {"kind": self.kind, "count": self.count, "listing": self.digest}


def listing_digest(entries: Sequence[Any] | Iterator[Any]) -> str:
    """Return the hash of a list of texts."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(str(entry).encode("utf-8", "surrogateescape") + b"\0")
    return f"sha256:{digest.hexdigest()}"


# Files ------------------------------------------------------------------------------------------


class FileSource(Source):
    """Image files, in the order of their paths; a target's id is its path relative to ``base``.

    Args:
        base: the folder that the names are relative to.
        names: the files, with "/" between their parts.
        manifest: the bundle's manifest.
        fit: how to resize images, see ``load_images``.
    """

    kind = "files"
    has_text_ids = True

    def __init__(self, base: Path, names: list[str], manifest: Manifest, fit: str) -> None:
        check_name(base)
        self._base = base
        self._names = names
        self._load = partial(load_file, manifest=manifest, fit=fit)
        self.count = len(names)

    @property
    def digest(self) -> str:
        return listing_digest(self._names)

    def read(self, first: int, last: int) -> Iterator[Chunk]:
        for start in range(first, last, CHUNK):
            names = self._names[start : min(start + CHUNK, last)]
            yield Chunk([self._target(name) for name in names])

    def _target(self, name: str) -> Target:
        path = self._base / name
        return Target(name, str(path), partial(self._load, path))


def load_file(path: Path, *, manifest: Manifest, fit: str) -> FloatArray:
    if manifest.targets_are_pictures:
        return load_picture(path, str(path), manifest, fit=fit)
    image: FloatArray = load_images(path, manifest, fit=fit)[0]
    return image


def files_under(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """Return the paths of a folder's files with these suffixes, relative to it, sorted.

    Hidden files, and those that macOS adds to archives, are left out.
    """
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({one_line(error)})")

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        prefix = Path(root).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        found.extend(
            prefix + name
            for name in files
            if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
        )
    found.sort()
    for name in found:
        check_name(name)
    return found


def check_name(path: str | Path) -> None:
    """Raise InputError for a path that is not UTF-8: ids are texts, and the tables' are UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{str(path)!r}: this name is not UTF-8; rename it") from None


def files_of_list(path: Path) -> list[str]:
    """Return the paths in a text file, one a line; empty lines are ignored."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable list of files ({one_line(error)})") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: no paths in this list; expected one a line")
    return names


# Arrays -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ArrayFile:
    """A file of targets; ``read`` gives rows ``first`` to ``last - 1`` as the file has them."""

    path: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        return self.shape[0]

    def read(self, first: int, last: int, manifest: Manifest) -> Iterator[tuple[int, NDArray[Any]]]:
        # Mapped again for each chunk, so that pages that were read do not stay in memory.
        for start in range(first, last, CHUNK):
            with opened(self.path) as array:
                assert isinstance(array, np.ndarray)
                rows = picture_rows(array, self.path, manifest)
                yield start, np.array(rows[start : min(start + CHUNK, last)])


@dataclass(frozen=True)
class _IdxFile(_ArrayFile):
    header: int = field(default=16, repr=False)

    def read(self, first: int, last: int, manifest: Manifest) -> Iterator[tuple[int, NDArray[Any]]]:
        size = int(np.prod(self.shape[1:]))
        step = max(1, min(CHUNK, _IDX_BYTES // size))
        with opened_gzip(self.path) as stream:
            with reading(self.path, *_IDX):
                stream.seek(self.header + first * size)
            for start in range(first, last, step):
                count = min(start + step, last) - start
                with reading(self.path, *_IDX):
                    data = stream.read(count * size)
                if len(data) != count * size:
                    raise InputError(f"{self.path}: truncated; download it again")
                rows = np.frombuffer(data, np.uint8).reshape(count, *self.shape[1:])
                yield start, picture_rows(rows, self.path, manifest)


class ArraySource(Source):
    """Rows of .npy and IDX files, one after another; a target's id is its number, from 0.

    Args:
        paths: the files.
        manifest: the bundle's manifest.
        fit: how to resize images, see ``load_images``.
    """

    kind = "arrays"

    def __init__(self, paths: Sequence[Path], manifest: Manifest, fit: str) -> None:
        self._files = [_open_array(path, manifest) for path in paths]
        self._manifest = manifest
        self._fit = fit
        self.count = sum(file.count for file in self._files)

    @property
    def digest(self) -> str:
        return listing_digest(
            (file.path.name, list(file.shape), file.dtype) for file in self._files
        )

    def read(self, first: int, last: int) -> Iterator[Chunk]:
        for file, offset, begin, end in parts_between(self._files, first, last):
            for start, rows in file.read(begin, end, self._manifest):
                yield Chunk(
                    [
                        self._target(offset + row, f"{file.path}[{row}]", values)
                        for row, values in enumerate(rows, start)
                    ]
                )

    def _target(self, number: int, name: str, values: NDArray[Any]) -> Target:
        return Target(
            number, name, partial(load_row, values, name, manifest=self._manifest, fit=self._fit)
        )


def load_row(values: NDArray[Any], name: str, *, manifest: Manifest, fit: str) -> FloatArray:
    """Convert one row of ``picture_rows`` to a target."""
    image: FloatArray = convert_rows(values[None], Path(name), manifest, fit)[0]
    return image


def parts_between(
    files: Sequence[Any], first: int, last: int
) -> Iterator[tuple[Any, int, int, int]]:
    """Divide the rows ``first`` to ``last - 1`` of files that have a ``count``.

    Yields:
        (file, its first row among all, and the range of rows within the file).
    """
    offset = 0
    for file in files:
        begin, end = max(first - offset, 0), min(last - offset, file.count)
        if begin < end:
            yield file, offset, begin, end
        offset += file.count


def _open_array(path: Path, manifest: Manifest) -> _ArrayFile:
    if path.suffix.lower() != ".npy":
        return _idx_file(path, manifest)
    with opened(path) as array:
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path}: holds several arrays; save it with numpy.save")
        rows = picture_rows(array, path, manifest)
        return _ArrayFile(path, rows.shape, str(rows.dtype))


def is_idx(path: Path) -> bool:
    """Return whether a file begins like an IDX file of images, possibly compressed."""
    try:
        with reading(path, *_IDX), opened_gzip(path) as stream:
            return stream.read(4) == _IDX_MAGIC
    except InputError:
        return False


def _idx_file(path: Path, manifest: Manifest) -> _IdxFile:
    with reading(path, *_IDX), opened_gzip(path) as stream:
        header = stream.read(16).ljust(16, b"\0")
    shape = tuple(int(size) for size in np.frombuffer(header[4:], ">u4"))
    if header[:4] != _IDX_MAGIC or len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{path}: not an IDX file of images [N, H, W]")
    check_pixels(str(path), *shape[1:])
    # Images are read a few at a time, so that only a damaged file has more than this.
    if math.prod(shape) > _DEFLATE_RATIO * path.stat().st_size:
        raise InputError(f"{path}: truncated; download it again")
    picture_rows(np.empty((1, *shape[1:]), np.uint8), path, manifest)  # refuse another shape now
    return _IdxFile(path, shape, "uint8")


def load_encoded(content: bytes, name: str, *, manifest: Manifest, fit: str) -> FloatArray:
    """Decode the content of an image file."""
    if not manifest.targets_are_pictures:
        raise InputError(f"{name}: {not_pictures(manifest)}; give columns of lists of numbers")
    return load_picture(io.BytesIO(content), name, manifest, fit=fit)
