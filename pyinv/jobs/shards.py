"""Shards: the Parquet files of a job, one row per target."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.atomic_files import write_whole
from pyinv.bundle import Manifest
from pyinv.errors import InputError
from pyinv.result import Inversion, Status
from pyinv.streaming import TargetResult
from pyinv.uncertainty import Uncertainty

__all__ = ["OpenShard", "ShardTable", "ShardWriter", "shard_name"]

ROW = "__row"  # a partial shard's column of row numbers
_JOB = b"pyinv.job"
_COUNTS = b"pyinv.counts"
_MIN_DIGITS = 5


def shard_name(index: int, shards: int) -> str:
    """Return a shard's file name; names sort like the shards."""
    digits = max(_MIN_DIGITS, len(str(shards - 1)))
    return f"part-{index:0{digits}d}.parquet"


def partial_name(index: int, shards: int) -> str:
    """Return the file name of what is known of an unfinished shard; readers skip hidden files."""
    return f".{shard_name(index, shards).removesuffix('.parquet')}.partial.parquet"


@dataclass
class OpenShard:
    """A shard that is being worked on.

    Args:
        index: its number.
        first: its first row in the source.
        count: the number of its rows.
        known: a table of rows that an earlier run finished, with the column ``ROW``, or None.
    """

    index: int
    first: int
    count: int
    known: Any = None
    names: dict[int, tuple[int | str, str]] = field(default_factory=dict)  # id and source
    results: dict[int, TargetResult] = field(default_factory=dict)
    columns: list[Any] = field(default_factory=list)  # pyarrow Tables, from the first row on

    def __post_init__(self) -> None:
        self.done: set[int] = set()
        if self.known is not None:
            self.done = set(self.known.column(ROW).to_pylist())

    def clear(self) -> None:
        """Forget everything, once it is written."""
        self.known = None
        for rows in (self.names, self.results, self.columns, self.done):
            rows.clear()

    @property
    def finished(self) -> bool:
        """Whether all rows have a result."""
        return len(self.done) + len(self.results) == self.count


class ShardTable:
    """Makes the tables of a job's shards.

    Args:
        job: the hash of the job's settings, which each shard carries.
        manifest: the bundle's manifest.
        has_text_ids: whether ids are strings.
        columns: the schema of the columns that are carried through, or None.
        has_uncertainty: whether there are columns of the uncertainty.

    Raises:
        InputError: a column that is carried through has the name of another one.
    """

    def __init__(
        self,
        job: str,
        manifest: Manifest,
        *,
        has_text_ids: bool,
        columns: Any = None,
        has_uncertainty: bool = False,
    ) -> None:
        import pyarrow as pa

        latent = pa.list_(pa.float32(), manifest.latent_size)
        fields = [
            pa.field("id", pa.string() if has_text_ids else pa.int64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("latent", latent),
            pa.field("loss", pa.float32()),
            pa.field("psnr", pa.float32()),
            pa.field("status", pa.string(), nullable=False),
            pa.field("steps", pa.int64()),
            pa.field("attempts", pa.int32()),
            pa.field("normal_equations", pa.int64()),
            pa.field("reason", pa.string()),
        ]
        if has_uncertainty:
            fields += [
                pa.field("standard_error", latent),
                pa.field("condition_number", pa.float32()),
                pa.field("identifiable", pa.bool_()),
                pa.field("noise", pa.float32()),
            ]
        self.own = pa.schema(fields)
        self.carried = columns if columns is not None else pa.schema([])
        for name in self.carried.names:
            if name in (*self.own.names, ROW):
                raise InputError(
                    f"the table's column {name!r} is also a column of the results; rename it, or "
                    "leave it out with --columns (columns)"
                )
        self.schema = pa.schema([*self.own, *self.carried])
        self._job = job
        self._latent_size = manifest.latent_size

    def rows(self, shard: OpenShard) -> Any:
        """Return what is known as a table, with the column ``ROW`` and without the uncertainty."""
        import pyarrow as pa

        if not shard.results:
            return self.schema_of_rows().empty_table() if shard.known is None else shard.known
        order = sorted(shard.results)
        results = [shard.results[row] for row in order]
        names = [shard.names[row] for row in order]
        valid = np.array([one.status != Status.INVALID for one in results])
        measured = np.array([one.psnr is not None for one in results])
        values: dict[str, Any] = {
            "id": [id_ for id_, _ in names],
            "source": [source for _, source in names],
            "latent": np.array([one.latent.reshape(-1) for one in results]),
            "loss": np.array([one.loss for one in results], dtype=np.float32),
            "psnr": np.array([one.psnr or 0.0 for one in results], dtype=np.float32),
            "status": [one.status.name.lower() for one in results],
            "steps": np.array([one.steps for one in results], dtype=np.int64),
            "attempts": np.array([one.attempts for one in results], dtype=np.int32),
            "normal_equations": np.array([one.normal_equations for one in results]),
            "reason": [one.reason or None for one in results],
        }
        known = {"psnr": valid & measured}
        columns = []
        for column in self.own:
            given = values.get(column.name)
            if given is None:
                columns.append(pa.nulls(len(order), column.type))
            elif isinstance(given, list):
                columns.append(pa.array(given, column.type))
            else:
                columns.append(_masked(given, known.get(column.name, valid), column.type))
        if len(self.carried):
            rows = pa.array([row - shard.first for row in order], pa.int64())
            columns += pa.concat_tables(shard.columns).take(rows).columns
        columns.append(pa.array(order, pa.int64()))
        table = pa.table(columns, schema=self.schema_of_rows())
        return table if shard.known is None else pa.concat_tables([shard.known, table]).sort_by(ROW)

    def with_uncertainty(
        self, table: Any, rows: NDArray[np.int64], parts: Sequence[Uncertainty]
    ) -> Any:
        """Return a table with the uncertainty of some of its rows.

        Args:
            table: what ``rows`` returned.
            rows: which of its rows have an uncertainty.
            parts: their uncertainty, in order.
        """
        known = np.zeros(len(table), dtype=np.bool_)
        known[rows] = np.concatenate([np.isfinite(part.noise) for part in parts])
        for name in parts[0].arrays():
            values = np.concatenate([part.arrays()[name] for part in parts])
            whole = np.zeros((len(table), *values.shape[1:]), dtype=values.dtype)
            whole[rows] = values
            column = self.own.field(name)
            place = table.schema.get_field_index(name)
            table = table.set_column(place, column, _masked(whole, known, column.type))
        return table

    def final(self, table: Any) -> Any:
        """Return the rows of a finished shard, without their numbers."""
        return table.drop_columns([ROW])

    def schema_of_rows(self) -> Any:
        """Return the schema of ``rows``."""
        import pyarrow as pa

        return self.schema.append(pa.field(ROW, pa.int64()))

    def write(self, path: Path, table: Any) -> None:
        """Write rows as Parquet, so that the file is whole or not there.

        Raises:
            OutputError: it cannot be written.
        """
        import pyarrow as pa
        from pyarrow import parquet

        metadata = {_JOB: self._job.encode(), _COUNTS: json.dumps(counts_of(table)).encode()}
        table = table.combine_chunks().replace_schema_metadata(metadata)
        buffer = pa.BufferOutputStream()
        parquet.write_table(table, buffer, compression="zstd")
        write_whole(path, memoryview(buffer.getvalue()))

    def read_partial(self, path: Path) -> Any:
        """Return the rows of a partial shard of this job; None if it is no such file."""
        from pyarrow import ArrowException, parquet

        try:
            table = parquet.read_table(path, partitioning=None)
        except (ArrowException, OSError):
            return None
        metadata = table.schema.metadata or {}
        if metadata.get(_JOB) != self._job.encode():
            return None
        return table.replace_schema_metadata(None)


def counts_of(table: Any) -> dict[str, int]:
    """Return the number of rows per status."""
    counted = table.column("status").value_counts().to_pylist()
    return {one["values"]: one["counts"] for one in counted}


def shard_counts(path: Path, job: str, rows: int) -> dict[str, int] | None:
    """Return a finished shard's number of rows per status; None if it is no such shard."""
    from pyarrow import ArrowException, parquet

    try:
        metadata = parquet.read_metadata(path)
    except (ArrowException, OSError):
        return None
    found = metadata.metadata or {}
    if found.get(_JOB) != job.encode() or metadata.num_rows != rows:
        return None
    counts: dict[str, int] = json.loads(found[_COUNTS])
    return counts


def valid_rows(
    table: Any, manifest: Manifest, settings: dict[str, Any]
) -> tuple[NDArray[np.int64], Inversion]:
    """Return the rows of a table that are not invalid, and what is known of them."""
    status = table.column("status").to_pylist()
    rows = np.array([row for row, one in enumerate(status) if one != "invalid"], dtype=np.int64)
    part = table.take(rows)
    latents = part.column("latent").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return rows, Inversion(
        latents=latents.reshape(len(rows), *manifest.latent_shape),
        loss=part.column("loss").to_numpy(),
        status=np.array([Status[status[row].upper()] for row in rows], dtype=np.uint8),
        steps=part.column("steps").to_numpy(),
        attempts=part.column("attempts").to_numpy(),
        normal_equations=part.column("normal_equations").to_numpy(),
        seed=settings["seed"],
        recipe=settings["recipe"],
    )


def _masked(values: NDArray[Any], known: NDArray[np.bool_], kind: Any) -> Any:
    """Return values [n] or [n, ...] as a column, with nulls where they are not known."""
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values, kind, mask=~known)
    flat = pa.array(values.reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size, mask=pa.array(~known))


class ShardWriter:
    """A thread that writes, so that the engine need not wait for the disk.

    An error of one write is raised by the next call.
    """

    def __init__(self) -> None:
        self._tasks: Queue[Callable[[], object] | None] = Queue(2)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pyinv-write", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], object]) -> None:
        """Have the thread run a task; wait while two are waiting."""
        self.check()
        self._tasks.put(task)

    def check(self) -> None:
        """Raise the error of an earlier task, if there was one."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Wait for all tasks."""
        if self._thread.is_alive():
            self._tasks.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._failure is not None:
                continue
            try:
                task()
            except BaseException as error:
                self._failure = error
