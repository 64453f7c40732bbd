"""Tables as a job's targets: Parquet and Arrow files with a column of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.bundle import Manifest
from pyinv.errors import InputError, one_line, reading
from pyinv.images import picture_rows
from pyinv.jobs.arrow_sizes import unpacked_size
from pyinv.jobs.sources import (
    CHUNK,
    Chunk,
    FloatArray,
    Source,
    Target,
    listing_digest,
    load_encoded,
    load_file,
    load_row,
    parts_between,
)
from pyinv.size_limits import check_bytes, max_bytes
from pyinv.target_ids import target_id

__all__ = ["TABLE_SUFFIXES", "TableSource"]

TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")

# Read a column in pieces instead of whole, which may be a million images.
_BUFFER = 1 << 20


@dataclass(frozen=True)
class _TableFile:
    path: Path
    schema: Any
    groups: tuple[int, ...]  # the rows of each row group, or record batch
    rows_at_once: int = CHUNK

    @property
    def count(self) -> int:
        return sum(self.groups)

    def read(self, columns: list[str], first: int, last: int) -> Iterator[tuple[int, Any]]:
        """Yield (first row, pyarrow RecordBatch) of rows ``first`` to ``last - 1``."""
        import pyarrow as pa

        try:
            for start, batch in self._batches(columns, first, last):
                batch.validate(full=True)  # offsets within the data, and texts in UTF-8
                begin, end = max(first - start, 0), min(last - start, len(batch))
                for row in range(begin, end, CHUNK):
                    yield start + row, batch.slice(row, min(CHUNK, end - row))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path}: not readable, or damaged ({one_line(error)})") from None

    def _batches(self, columns: list[str], first: int, last: int) -> Iterator[tuple[int, Any]]:
        """Yield (first row, batch) for batches that overlap the range."""
        wanted, start, offset = [], None, 0
        for number, rows in enumerate(self.groups):
            if offset < last and offset + rows > first and rows:
                wanted.append(number)
                start = offset if start is None else start
            offset += rows
        if start is None:
            return
        for batch in self._read_groups(wanted, columns):
            if start + len(batch) > first:
                yield start, batch
            start += len(batch)
            if start >= last:
                return

    def _read_groups(self, wanted: list[int], columns: list[str]) -> Iterator[Any]:
        if self.path.suffix.lower() == ".parquet":
            from pyarrow import parquet

            with parquet.ParquetFile(self.path, buffer_size=_BUFFER, pre_buffer=False) as file:
                yield from file.iter_batches(self.rows_at_once, row_groups=wanted, columns=columns)
            return
        with _opened_ipc(self.path) as reader:
            if hasattr(reader, "get_batch"):
                for number in wanted:
                    yield reader.get_batch(number).select(columns)
                return
            for number in range(wanted[-1] + 1):
                batch = reader.read_next_batch()
                if number >= wanted[0]:
                    yield batch.select(columns)


@contextmanager
def _opened_ipc(path: Path) -> Iterator[Any]:
    """Open an Arrow file: of the file format, or of the stream format, as Hugging Face writes."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            file.seek(0)
            reader = pa.ipc.open_stream(file)
        with reader:
            yield reader


def _open_table(path: Path) -> _TableFile:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if path.suffix.lower() == ".parquet":
            with parquet.ParquetFile(path) as file:
                meta = file.metadata
                groups = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
                dictionary = max(
                    (_check_group(path, meta.row_group(i)) for i in range(meta.num_row_groups)),
                    default=0,
                )
                # A row can be as large as the dictionary, in which it is a few bits.
                rows = min(CHUNK, max(1, max_bytes() // max(1, dictionary)))
                return _TableFile(path, file.schema_arrow, tuple(groups), rows)
        with reading(path, "Arrow file", "write it again"):
            unpacked = unpacked_size(path)
        check_bytes(str(path), unpacked, path.stat().st_size)
        with _opened_ipc(path) as reader:
            if hasattr(reader, "get_batch"):
                groups = [len(reader.get_batch(i)) for i in range(reader.num_record_batches)]
            else:
                groups = [len(batch) for batch in reader]
            return _TableFile(path, reader.schema, tuple(groups))
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a readable {path.suffix} file, or truncated ({one_line(error)})"
        ) from None


def _check_group(path: Path, group: Any) -> int:
    """Return the bytes of a row group's largest dictionary.

    Raises:
        InputError: a column unpacks to too much.
    """
    largest = 0
    for number in range(group.num_columns):
        column = group.column(number)
        # Repeated values take next to no bytes in Parquet, but one each or more when read.
        unpacked = max(column.total_uncompressed_size, column.num_values)
        if column.has_dictionary_page:
            with reading(path, "Parquet file", "write it again"):
                dictionary = _page_size(path, column.dictionary_page_offset)
            largest = max(largest, dictionary)
            unpacked = max(unpacked, dictionary)
        check_bytes(f"{path}: {column.path_in_schema}", unpacked, path.stat().st_size)
    return largest


def _page_size(path: Path, offset: int) -> int:
    """Return the bytes that a page unpacks to, the second number of its header.

    Headers are structs of Thrift's compact protocol: for each field a byte, then a zigzag varint.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        header = iter(file.read(32))
    numbers: list[int] = []
    while len(numbers) < 2:
        next(header)
        value = shift = 0
        while (byte := next(header, 0)) >= 128:
            value, shift = value | (byte & 127) << shift, shift + 7
        value |= byte << shift
        numbers.append(value >> 1)
    return numbers[1]


class TableSource(Source):
    """Rows of Parquet and Arrow files of one schema, one after another.

    Args:
        paths: the files.
        manifest: the bundle's manifest.
        fit: how to resize images, see ``load_images``.
        image_column: the column of images: encoded (bytes, or structs of "bytes" and "path"), or
            lists of numbers. None takes "image", or the only column of bytes or such structs.
        id_column: the column of ids, unique texts or whole numbers below 2^47. None takes "id",
            and numbers the rows if there is none.
        columns: those to carry through; None means all others.
        condition_columns: columns with conditions: the condition's name, and the column's.
    """

    kind = "table"

    def __init__(
        self,
        paths: Sequence[Path],
        manifest: Manifest,
        fit: str,
        *,
        image_column: str | None = None,
        id_column: str | None = None,
        columns: Sequence[str] | None = None,
        condition_columns: dict[str, str] | None = None,
    ) -> None:
        import pyarrow as pa

        self._files = [_open_table(path) for path in paths]
        self._manifest = manifest
        self._fit = fit
        self._conditions = condition_columns or {}
        self.count = sum(file.count for file in self._files)
        if self.count == 0:
            raise InputError(f"{paths[0]}: no targets in it")
        schema = self._files[0].schema
        for file in self._files:
            if not file.schema.equals(schema):
                raise InputError(
                    f"{file.path}: its columns are not those of {paths[0]}; run a job for each"
                )
        name = str(paths[0])
        if len(set(schema.names)) < len(schema.names):
            raise InputError(f"{name}: two columns have one name; it has {', '.join(schema.names)}")
        self._image = _image_column(schema, image_column, name)
        self._id = id_column or ("id" if "id" in schema.names else None)
        for wanted in (self._id, *self._conditions.values(), *(columns or ())):
            if wanted is not None and wanted not in schema.names:
                raise InputError(f"{name}: no column {wanted!r}; it has {', '.join(schema.names)}")
        if columns is None:
            columns = [column for column in schema.names if column not in (self._image, self._id)]
        self.columns = pa.schema([schema.field(column) for column in columns])
        self._ids: Any = None if self._id is None else self._read_ids(self._id)
        self.has_text_ids = self._ids is not None and pa.types.is_string(self._ids.type)

    @property
    def digest(self) -> str:
        entries: list[Any] = [
            (file.path.name, file.count, [str(field) for field in file.schema])
            for file in self._files
        ]
        if self._ids is not None:
            entries += [listing_digest(value.as_py() for value in self._ids)]
        return listing_digest([*entries, self._image, self._id])

    def read(self, first: int, last: int) -> Iterator[Chunk]:
        import pyarrow as pa

        names = [self._image, *self._conditions.values(), *self.columns.names]
        names = list(dict.fromkeys(names))
        for file, offset, begin, end in parts_between(self._files, first, last):
            for start, batch in file.read(names, begin, end):
                images = batch.column(self._image)
                conditions = {
                    name: batch.column(column).to_pylist()
                    for name, column in self._conditions.items()
                }
                targets = []
                for row, load in enumerate(self._loaders(file.path, start, images)):
                    number = offset + start + row
                    given = {name: values[row] for name, values in conditions.items()}
                    targets.append(
                        Target(
                            number if self._ids is None else self._ids[number].as_py(),
                            f"{file.path}[{start + row}]",
                            load,
                            given,
                        )
                    )
                carried = batch.select(self.columns.names)
                yield Chunk(targets, pa.Table.from_batches([carried]))

    def _read_ids(self, column: str) -> Any:
        """Return all ids, checked: none missing, none twice."""
        import pyarrow as pa
        from pyarrow import compute

        kind = self._files[0].schema.field(column).type
        parts = []
        for file in self._files:
            size = 0
            for _, batch in file.read([column], 0, file.count):
                size += batch.nbytes
                check_bytes(f"{file.path}: {column}", size, file.path.stat().st_size)
                parts.append(batch.column(0))
        ids = pa.chunked_array(parts, kind)
        if pa.types.is_dictionary(kind):
            ids = ids.cast(kind.value_type)
        if pa.types.is_large_string(ids.type) or pa.types.is_string_view(ids.type):
            ids = ids.cast(pa.string())
        elif pa.types.is_integer(ids.type):
            with_error = f"{self._files[0].path}: the ids in {column!r} must be below 2^47"
            try:
                ids = ids.cast(pa.int64())
            except pa.ArrowInvalid:
                raise InputError(f"{with_error}; convert them to texts") from None
        elif not pa.types.is_string(ids.type):
            raise InputError(
                f"{self._files[0].path}: ids must be texts or whole numbers, and the column "
                f"{column!r} has {ids.type}; name another with --id-column (id_column)"
            )
        if ids.null_count:
            raise InputError(f"{self._files[0].path}: the column of ids {column!r} has empty rows")
        if pa.types.is_int64(ids.type) and len(ids):
            ends = compute.min_max(ids).as_py()
            target_id(ends["min"])
            target_id(ends["max"])
        counts = compute.value_counts(ids)
        twice = counts.filter(compute.greater(counts.field("counts"), 1))
        if len(twice):
            raise InputError(
                f"{self._files[0].path}: ids must be unique, and {column!r} has "
                f"{twice[0]['values'].as_py()!r} {twice[0]['counts'].as_py()} times"
            )
        return ids.combine_chunks()

    def _loaders(self, path: Path, start: int, images: Any) -> Iterator[partial[FloatArray]]:
        """Return for each row of the image column what loads it."""
        import pyarrow as pa

        how: dict[str, Any] = {"manifest": self._manifest, "fit": self._fit}
        if isinstance(images.type, pa.BaseExtensionType):
            shape = getattr(images.type, "shape", None)
            images = images.storage
        else:
            shape = None
        kind = images.type
        if _is_bytes(kind):
            for row, value in enumerate(images.to_pylist(), start):
                yield partial(_load_bytes, value, f"{path}[{row}]", **how)
        elif pa.types.is_struct(kind):
            for row, value in enumerate(images.to_pylist(), start):
                yield partial(_load_struct, value, path, f"{path}[{row}]", **how)
        else:
            rows = _fixed_rows(images, shape)
            for row, value in enumerate(images, start):
                values = None if rows is None else rows[row - start]
                yield partial(_load_list, value, values, f"{path}[{row}]", **how)


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


def _is_encoded(kind: Any) -> bool:
    """Return whether a type is bytes, or Hugging Face's structs of "bytes" and "path"."""
    from pyarrow import types

    if types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)}
        return "bytes" in names and names <= {"bytes", "path"}
    return _is_bytes(kind)


def _is_array(kind: Any) -> bool:
    from pyarrow import BaseExtensionType, types

    if isinstance(kind, BaseExtensionType):
        return _is_array(kind.storage_type)
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
        if types.is_floating(kind) or types.is_uint8(kind):
            return True
    return False


def _image_column(schema: Any, given: str | None, name: str) -> str:
    found = [field.name for field in schema if _is_encoded(field.type)]
    if given is None and "image" in schema.names:
        given = "image"
    if given is None and len(found) == 1:
        given = found[0]
    if given is None:
        raise InputError(
            f"{name}: which column holds the images? name it with --image-column (image_column); "
            f"it has {', '.join(schema.names)}"
        )
    if given not in schema.names:
        raise InputError(f"{name}: no column {given!r}; it has {', '.join(schema.names)}")
    kind = schema.field(given).type
    if not (_is_encoded(kind) or _is_array(kind)):
        raise InputError(
            f"{name}: the column {given!r} must hold encoded images (bytes, or structs of bytes "
            f"and path) or lists of float or uint8 numbers, and it has {kind}"
        )
    return given


def _load_bytes(content: bytes | None, name: str, *, manifest: Manifest, fit: str) -> FloatArray:
    if content is None:
        raise InputError(f"{name}: no image in this row")
    return load_encoded(content, name, manifest=manifest, fit=fit)


def _load_struct(
    value: dict[str, Any] | None, table: Path, name: str, *, manifest: Manifest, fit: str
) -> FloatArray:
    if value is not None and value.get("bytes") is None and value.get("path"):
        return load_file(table.parent / value["path"], manifest=manifest, fit=fit)
    content = None if value is None else value.get("bytes")
    return _load_bytes(content, name, manifest=manifest, fit=fit)


def _fixed_rows(images: Any, shape: Sequence[int] | None) -> NDArray[Any] | None:
    """Return a column of lists of fixed size as an array; None for lists of any size."""
    from pyarrow import types

    sizes = []
    values = images
    while types.is_fixed_size_list(values.type):
        sizes.append(values.type.list_size)
        if values.null_count:
            return None
        values = values.flatten()
    if not sizes or values.null_count or not types.is_primitive(values.type):
        return None
    rows: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return rows.reshape(len(images), *(shape or sizes))


def _load_list(
    value: Any, values: NDArray[Any] | None, name: str, *, manifest: Manifest, fit: str
) -> FloatArray:
    if values is None:
        if not value.is_valid:
            raise InputError(f"{name}: no image in this row")
        try:
            kind = value.type
            while hasattr(kind, "value_type"):
                kind = kind.value_type
            values = np.array(value.as_py(), dtype=kind.to_pandas_dtype())
        except (TypeError, ValueError):
            raise InputError(
                f"{name}: expected a list of {manifest.target_size} numbers, got lists of "
                "unequal lengths, or without numbers"
            ) from None
    if values.ndim == 1 and values.size == manifest.target_size:
        values = values.reshape(manifest.target_shape)
    rows = picture_rows(values[None], Path(name), manifest)
    return load_row(rows[0], name, manifest=manifest, fit=fit)
