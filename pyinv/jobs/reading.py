"""Reading and merging the results of jobs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyinv.atomic_files import OutputFile
from pyinv.errors import InputError, one_line
from pyinv.jobs.folder import JobFile
from pyinv.jobs.opening import check_pyarrow
from pyinv.jobs.shards import shard_counts

__all__ = ["merge_jobs", "read_job"]

PathLike = str | os.PathLike[str]
_LISTED = 10  # missing shards, in a message


def read_job(folders: PathLike | Iterable[PathLike]) -> Any:
    """Open the results of a job as a data set of Arrow.

    Args:
        folders: the job's folder; or several, of parts that were run with ``shard``.

    Returns:
        a ``pyarrow.dataset.Dataset`` of the shards that are finished, in the order of the source.
        ``.to_table().to_pandas()`` reads all of it.

    Raises:
        InputError: not a job's folder, parts of different jobs, or no shard is finished yet.
        DependencyError: pyarrow is not installed.
    """
    check_pyarrow()
    from pyarrow import dataset

    _, paths = _finished(folders)
    if not paths:
        raise InputError("no shard of this job is finished yet")
    return dataset.dataset([str(path) for _, path in sorted(paths.items())], format="parquet")


def merge_jobs(
    folders: PathLike | Iterable[PathLike], output: PathLike, *, overwrite: bool = False
) -> int:
    """Join the shards of a job into one Parquet file, in the order of the source.

    Args:
        folders: the job's folder; or several, of parts that were run with ``shard``.
        output: the file to write.
        overwrite: replace an existing file.

    Returns:
        the number of rows.

    Raises:
        InputError: not a job's folder, parts of different jobs, or a shard is missing.
        OutputError: the file exists without ``overwrite``, or cannot be written.
        DependencyError: pyarrow is not installed.
    """
    check_pyarrow()
    from pyarrow import parquet

    job, paths = _finished(folders)
    missing = [shard for shard in range(job.shards) if shard not in paths]
    if missing:
        listed = ", ".join(job.path(Path(), shard).stem for shard in missing[:_LISTED])
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise InputError(
            f"{len(missing)} of {job.shards} shards are missing: {listed}{more}; start "
            "the job again, or name the folders of all its parts"
        )
    for folder in {path.parent for path in paths.values()}:
        if Path(output).resolve().parent == folder.resolve():
            raise InputError(
                f"{output}: is within the job's folder, whose files are all read as its shards; "
                "write the file somewhere else"
            )
    with OutputFile(output, overwrite=overwrite) as file:

        def write(stream: Any) -> None:
            schema = parquet.read_schema(paths[0])
            with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
                for shard in range(job.shards):
                    writer.write_table(_table_of(paths[shard]))

        file.write(write)
    return job.count


def _table_of(path: Path) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path, partitioning=None)
    except (ArrowException, OSError) as error:
        raise InputError(
            f"{path}: damaged ({one_line(error)}); remove it, and start the job again"
        ) from None


def _finished(folders: PathLike | Iterable[PathLike]) -> tuple[JobFile, dict[int, Path]]:
    """Return the job that folders hold, and its finished shards by their numbers."""
    given = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    if not given:
        raise InputError("no folder given; name a job's folder")
    places = [Path(folder) for folder in given]
    job = JobFile.read(places[0])
    found: dict[int, Path] = {}
    for place in places:
        job.check_same(places[0], JobFile.read(place), str(place))
        for shard in range(job.shards):
            path = job.path(place, shard)
            if shard not in found and path.exists():
                if shard_counts(path, job.digest, len(job.rows(shard))) is None:
                    raise InputError(f"{path}: damaged, or of another job; remove it")
                found[shard] = path
    return job, found
