"""Tables: the numeric columns of Parquet files as vectors, with pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import DependencyError, InputError, one_line
from pyinv.size_limits import check_bytes

__all__ = ["TABLE_SUFFIXES", "read_column", "read_table"]

TABLE_SUFFIXES = (".parquet",)


def read_table(path: Path, size: int) -> NDArray[np.float64]:
    """Read the rows of a Parquet file as vectors.

    Args:
        path: the file. Columns of integers and floats are read, in order; others are ignored.
        size: the required number of such columns.

    Returns:
        [rows, size], with NaN where the table has no value.

    Raises:
        DependencyError: pyarrow is not installed.
        InputError: the file cannot be read, or has another number of numeric columns.
    """
    with _opened(path) as (file, numeric):
        if len(numeric) != size:
            raise InputError(
                f"{path}: expected {size} numeric columns, one per value of a target, got "
                f"{len(numeric)}; leave out or add columns"
            )
        table = file.read()
        columns = [table.column(name).to_numpy().astype(np.float64) for name in numeric]
    return np.stack(columns, axis=1)


def read_column(path: Path, name: str) -> NDArray[np.float64]:
    """Read one column of a Parquet file, [rows], with NaN where it has no value.

    Raises:
        DependencyError: pyarrow is not installed.
        InputError: the file cannot be read, or has no numeric column of this name.
    """
    with _opened(path) as (file, numeric):
        if name not in numeric:
            found = ", ".join(numeric) or "none"
            raise InputError(f"{path}: expected a column of numbers {name!r}, found {found}")
        column: NDArray[np.float64] = file.read([name]).column(0).to_numpy().astype(np.float64)
    return column


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """Open a Parquet file; also return the names of its columns of numbers."""
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise DependencyError(
            f"{path}: reading Parquet files needs pyarrow: pip install pyarrow"
        ) from None
    try:
        file = parquet.ParquetFile(path)
        numeric = [
            field.name
            for field in file.schema_arrow
            if types.is_integer(field.type) or types.is_floating(field.type)
        ]
        # As float64: repeated values take next to no bytes in Parquet.
        check_bytes(str(path), 8 * file.metadata.num_rows * len(numeric), path.stat().st_size)
        yield file, numeric
    except (ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a readable Parquet file ({one_line(error)}); write it again"
        ) from None
