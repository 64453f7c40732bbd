"""Tables: the numeric columns of Parquet files as vectors, with pyarrow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import DependencyError, InputError, one_line

__all__ = ["TABLE_SUFFIXES", "read_table"]

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
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise DependencyError(
            f"{path}: reading Parquet files needs pyarrow: pip install pyarrow"
        ) from None
    try:
        file = parquet.ParquetFile(path)
        numeric = [
            index
            for index, field in enumerate(file.schema_arrow)
            if types.is_integer(field.type) or types.is_floating(field.type)
        ]
        if len(numeric) != size:
            raise InputError(
                f"{path}: expected {size} numeric columns, one per value of a target, got "
                f"{len(numeric)}; leave out or add columns"
            )
        table = file.read()
        columns = [table.column(index).to_numpy().astype(np.float64) for index in numeric]
    except (ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a readable Parquet file ({one_line(error)}); write it again"
        ) from None
    return np.stack(columns, axis=1)
