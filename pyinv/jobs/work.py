"""One run of a job: from its source through a stream into shards."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.batching import groups
from pyinv.conditions import condition_rows
from pyinv.errors import InputError, OutputError, PyinvError, RunError, one_line
from pyinv.images import check_images
from pyinv.inverter import Inverter
from pyinv.jobs.folder import JobFile, Part
from pyinv.jobs.meter import Meter
from pyinv.jobs.pictures import file_stem, publish_pictures, save_pictures
from pyinv.jobs.shards import (
    OpenShard,
    ShardTable,
    ShardWriter,
    counts_of,
    shard_counts,
    valid_rows,
)
from pyinv.jobs.sources import Source, Target
from pyinv.jobs.stopping import Signals
from pyinv.progress import Progress, progress_reporter
from pyinv.recipes import Recipe
from pyinv.result import Status
from pyinv.streaming import TargetResult
from pyinv.target_ids import target_id
from pyinv.uncertainty import Uncertainty

__all__ = ["Event", "JobStopped", "JobSummary", "Work"]

FloatArray = NDArray[np.float32]
Event = Callable[[dict[str, Any]], None]

_MOST_TOGETHER, _FLOATS_TOGETHER = 64, 1 << 20  # what one call of a decoding thread reads
_CHECKED_TARGETS = 16  # whose values are compared with the generator's own images
_KEPT = "what is finished was kept: start the job again to go on"


class JobStopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a job, which can be resumed.

    Attributes:
        signal: the name of the signal, "SIGINT" or "SIGTERM".
        finished: the number of targets that are done.
        targets: the number of targets of the job, or of the part that was run.
    """

    def __init__(self, signal: str, finished: int, targets: int) -> None:
        done = f"{finished:,} of {targets:,} targets are done" if targets else "nothing is done yet"
        super().__init__(f"{done}; start the job again to go on")
        self.signal = signal
        self.finished = finished
        self.targets = targets


@dataclass(frozen=True)
class JobSummary:
    """A job that is done.

    Args:
        output: the folder of the results.
        targets: the number of targets of the job, or of the part that was run.
        resumed: how many of them earlier runs had done.
        counts: the number of targets per status, by its name in lower case.
        seconds: the time that this run took.
    """

    output: Path
    targets: int
    resumed: int
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """The targets per second of this run."""
        return (self.targets - self.resumed) / max(self.seconds, 1e-9)


class Work:
    """One run of a job, or of a part of it."""

    def __init__(
        self,
        inverter: Inverter,
        source: Source,
        folder: Path,
        job: JobFile,
        part: Part,
        tables: ShardTable,
        *,
        constant: dict[str, Any],
        pictures: Path | None,
        noise: float | None,
        on_event: Event,
    ) -> None:
        self._inverter = inverter
        self._source = source
        self._folder = folder
        self._job = job
        self._part = part
        self._constant = constant
        self._pictures = pictures
        self._noise = noise
        self._on_event = on_event
        self._tables = tables
        self._counts: Counter[str] = Counter()
        self._open: dict[int, OpenShard] = {}
        self._rows: dict[int, tuple[OpenShard, int]] = {}  # by the target's number in the stream
        self._reasons: dict[int | str, str] = {}  # why targets cannot be read, by their ids
        self._failure: Exception | None = None  # of the source
        pixels = inverter.manifest.target_size
        self._together = min(max(_FLOATS_TOGETHER // pixels, 1), _MOST_TOGETHER)
        self._raises = False
        self._events = threading.Lock()
        self._targets = self._finished = 0

    def __call__(
        self,
        recipe: Recipe,
        signals: Signals,
        *,
        on_error: str,
        workers: int,
        progress: bool | Progress | None,
    ) -> JobSummary:
        """Work on what is not finished."""
        began = time.monotonic()
        self._raises = on_error == "raise"
        todo = self._unfinished()
        resumed = self._finished
        shards = len(self._part.shards(self._job.shards))
        self._event(
            "start",
            output=str(self._folder),
            recipe=recipe.name,
            targets=self._targets,
            finished=resumed,
            shards=shards,
            shards_finished=shards - len(todo),
        )
        if todo:
            stream = self._inverter.stream(
                self._feed([shard for shard in todo if not shard.finished]),
                recipe=recipe,
                seed=self._job.settings["seed"],
                workers=workers,
                on_error=on_error,
            )
            with progress_reporter(progress, self._targets - resumed, recipe.max_steps) as report:
                meter = Meter(self._event, report, self._targets - resumed)
                self._work(stream, todo, signals, meter)
        seconds = time.monotonic() - began
        summary = JobSummary(self._folder, self._targets, resumed, dict(self._counts), seconds)
        self._event(
            "done",
            output=str(self._folder),
            targets=self._targets,
            resumed=resumed,
            counts=summary.counts,
            seconds=seconds,
            images_per_second=summary.images_per_second,
        )
        return summary

    def _unfinished(self) -> list[OpenShard]:
        """Return this part's shards that are not finished, with what is known of them."""
        todo = []
        for index in self._part.shards(self._job.shards):
            rows = self._job.rows(index)
            self._targets += len(rows)
            known_path = self._job.partial_path(self._folder, index)
            counts = shard_counts(self._job.path(self._folder, index), self._job.digest, len(rows))
            if counts is not None:
                _remove(known_path)
                self._counts.update(counts)
                self._finished += len(rows)
                continue
            known = self._tables.read_partial(known_path) if known_path.exists() else None
            todo.append(OpenShard(index, rows.start, len(rows), known))
            self._finished += len(todo[-1].done)
        return todo

    def _work(
        self,
        stream: Generator[TargetResult, None, None],
        todo: list[OpenShard],
        signals: Signals,
        meter: Meter,
    ) -> None:
        """Write the shards in ``todo``; if that ends early, keep what is finished."""
        with contextlib.closing(ShardWriter()) as writer:
            try:
                self._check_values(todo[0])
                with contextlib.closing(stream):
                    self._consume(stream, signals, writer, todo, meter)
                if self._failure is not None:
                    raise self._failure
                if signals.received is not None:
                    raise KeyboardInterrupt
                writer.close()
                writer.check()
                if self._open:
                    raise RunError(f"{len(self._open)} shards were not finished")
            except OutputError as error:
                raise OutputError(f"{error}; {_KEPT}") from None
            except KeyboardInterrupt:
                self._keep(writer)
                raise JobStopped(signals.name, self._finished, self._targets) from None
            except BaseException as error:
                self._keep(writer)
                if isinstance(error, PyinvError):
                    raise type(error)(f"{error}; {_KEPT}") from None
                raise

    def _feed(self, todo: list[OpenShard]) -> Iterator[dict[str, Any]]:
        """Yield the targets to invert; runs in the stream's reading thread."""
        number = 0
        try:
            for shard in todo:
                self._open[shard.index] = shard
                row = shard.first
                for chunk in self._source.read(shard.first, shard.first + shard.count):
                    if chunk.columns is not None:
                        shard.columns.append(chunk.columns)
                    wanted = []
                    for target in chunk.targets:
                        if row not in shard.done:
                            shard.names[row] = (target.id, target.source)
                            self._rows[number] = (shard, row)
                            wanted.append(target)
                            number += 1
                        row += 1
                    for start in range(0, len(wanted), self._together):
                        yield from self._items(wanted[start : start + self._together])
        except Exception as error:  # a stream would take it for a bad target
            self._failure = error

    def _items(self, targets: list[Target]) -> Iterator[dict[str, Any]]:
        """Yield targets as the stream takes them: together, unless conditions of some are wrong."""
        if targets[0].conditions:
            try:
                known = self._inverter.manifest.conditions
                condition_rows(known, self._conditions_of(targets), len(targets))
            except InputError:
                for target in targets:
                    yield self._item([target])
                return
        yield self._item(targets)

    def _item(self, targets: list[Target]) -> dict[str, Any]:
        """Return targets that are decoded together, which costs less."""
        return {
            "id": [target.id for target in targets],
            "image": partial(self._load, targets),
            "conditions": self._conditions_of(targets),
        }

    def _load(self, targets: list[Target]) -> FloatArray:
        """Return the images of targets, NaN where they cannot be read; runs in several threads."""
        images = np.empty((len(targets), *self._inverter.manifest.target_shape), dtype=np.float32)
        for image, target in zip(images, targets, strict=True):
            image[...] = self._load_one(target)
        return images

    def _load_one(self, target: Target) -> FloatArray | float:
        try:
            return target.load()
        except Exception as error:
            if self._raises:
                raise
            known = isinstance(error, InputError)
            reason = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
            self._reasons[target.id] = reason
            return math.nan  # which the stream refuses

    def _consume(
        self,
        stream: Generator[TargetResult, None, None],
        signals: Signals,
        writer: ShardWriter,
        todo: list[OpenShard],
        meter: Meter,
    ) -> None:
        """Collect results, and write shards that are finished."""
        for shard in todo:
            if shard.finished:
                self._open[shard.index] = shard
                self._finish(shard, signals, writer)
        for result in signals.watch(stream):
            shard, row = self._rows.pop(result.number)
            if result.status == Status.INVALID:
                reason = self._reasons.pop(shard.names[row][0], result.reason)
                result = dataclasses.replace(result, reason=reason)
            shard.results[row] = result
            self._finished += 1
            meter.count(result)
            # After a signal, a finished shard is kept like the others.
            if shard.finished and signals.received is None:
                self._finish(shard, signals, writer)
            writer.check()

    def _finish(self, shard: OpenShard, signals: Signals, writer: ShardWriter) -> None:
        """Have a shard written of which all rows have a result."""
        table = self._tables.rows(shard)
        if self._job.settings["uncertainty"] or self._pictures is not None:
            with signals.interrupting():
                table = self._measured(shard, table, signals, writer)
        writer.submit(partial(self._write, shard.index, self._tables.final(table)))
        del self._open[shard.index]
        shard.clear()

    def _write(self, index: int, table: Any) -> None:
        """Write a finished shard; runs in the writer's thread."""
        path = self._job.path(self._folder, index)
        self._tables.write(path, table)
        _remove(self._job.partial_path(self._folder, index))
        counts = counts_of(table)
        self._counts.update(counts)
        self._event("shard", shard=index, file=str(path), targets=len(table), counts=counts)

    def _measured(self, shard: OpenShard, table: Any, signals: Signals, writer: ShardWriter) -> Any:
        """Return a shard's rows with their uncertainty, and have their images written."""
        inverter, size = self._inverter, self._inverter._most(None)
        measures = self._job.settings["uncertainty"]
        stem = self._job.path(self._folder, shard.index).stem
        valid, found = valid_rows(table, inverter.manifest, self._job.settings)
        targets = self._targets_of(shard, valid)
        parts = [Uncertainty.unknown(0, inverter.manifest.latent_shape)]
        for rows in groups(len(valid), size) if len(valid) else ():
            if signals.received is not None:
                raise KeyboardInterrupt
            batch = found[rows]
            given = list(itertools.islice(targets, len(batch)))
            conditions = self._conditions_of(given)
            if measures:
                parts.append(
                    inverter.uncertainty(
                        batch,
                        np.stack([target.load() for target in given]),
                        noise=self._noise,
                        target_ids=[target_id(target.id) for target in given],
                        conditions=conditions,
                    )
                )
                if parts[-1].cancelled:
                    raise KeyboardInterrupt
            if self._pictures is not None:
                images = inverter.generate(batch.latents, conditions=conditions)
                names = self._picture_names(table, valid[rows], shard.first)
                place, span = self._pictures / stem, inverter.manifest.value_range
                writer.submit(
                    partial(save_pictures, images, place, span, names=names, first=rows.start == 0)
                )
        if self._pictures is not None and len(valid):
            writer.submit(partial(publish_pictures, self._pictures / stem))
        return self._tables.with_uncertainty(table, valid, parts) if measures else table

    def _targets_of(self, shard: OpenShard, rows: NDArray[np.int64]) -> Iterator[Target]:
        """Yield the targets of a shard's rows, in order."""
        row, wanted = 0, set(rows.tolist())
        for chunk in self._source.read(shard.first, shard.first + shard.count):
            for target in chunk.targets:
                if row in wanted:
                    yield target
                row += 1

    def _conditions_of(self, targets: list[Target]) -> dict[str, Any] | None:
        """Return the conditions of targets, as ``Inverter`` takes them."""
        names = targets[0].conditions
        of_each = {name: [target.conditions[name] for target in targets] for name in names}
        return {**self._constant, **of_each} or None

    def _picture_names(self, table: Any, rows: NDArray[np.int64], first: int) -> list[str]:
        """Return a file name for each row: its number in the job, then the end of its id."""
        digits = len(str(self._job.count - 1))
        ids = table.column("id").take(rows).to_pylist()
        return [
            f"{first + row:0{digits}d}-{file_stem(str(id_))}"
            for row, id_ in zip(rows.tolist(), ids, strict=True)
        ]

    def _check_values(self, shard: OpenShard) -> None:
        """Warn if the first targets seem to be scaled for another value range."""
        manifest = self._inverter.manifest
        last = shard.first + min(shard.count, _CHECKED_TARGETS)
        images, conditions = [], []
        for chunk in self._source.read(shard.first, last):
            for target in chunk.targets:
                with contextlib.suppress(Exception):  # a bad target gets its row
                    given = condition_rows(manifest.conditions, self._conditions_of([target]), 1)
                    images.append(check_images(target.load()[None], manifest))
                    conditions.append(given)
        if images:
            rows = [one for one in conditions if one is not None]
            self._inverter._check_range(
                np.concatenate(images), np.concatenate(rows) if rows else None
            )

    def _keep(self, writer: ShardWriter) -> None:
        """Write what is known of unfinished shards, if possible."""
        writer.close()
        for shard in list(self._open.values()):
            if shard.results:
                path = self._job.partial_path(self._folder, shard.index)
                with contextlib.suppress(OutputError):
                    self._tables.write(path, self._tables.rows(shard))

    def _event(self, event: str, **values: Any) -> None:
        with self._events:
            self._on_event({"event": event, **values})


def _remove(path: Path) -> None:
    """Remove a file that is no longer needed, if possible."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
