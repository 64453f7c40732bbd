"""Inversion of Ray data sets: ``build_processor``, and the class that it maps batches with.

    >>> import ray                                                       # doctest: +SKIP
    >>> from pyinv.ray import build_processor                            # doctest: +SKIP
    >>> processor = build_processor("faces.bundle", concurrency=4)       # doctest: +SKIP
    >>> images = ray.data.read_parquet("s3://bucket/images/")            # doctest: +SKIP
    >>> processor(images).write_parquet("s3://bucket/latents/")          # doctest: +SKIP

Needs Ray Data; docs/ray.md is the guide.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyinv.batching import DEFAULT_BATCH_SIZE
from pyinv.errors import BundleError, DependencyError, InputError, RunError, one_line
from pyinv.extras import install_command
from pyinv.images import convert_rows, picture_rows
from pyinv.inverter import Inverter
from pyinv.recipes import Recipe
from pyinv.result import Status
from pyinv.streaming import TargetResult
from pyinv.target_ids import target_id
from pyinv.validation import whole_number

try:
    import pyarrow as pa
    import ray.data
    from ray.data.block import BlockAccessor
except ImportError as error:
    raise DependencyError(
        f"pyinv.ray needs Ray Data ({one_line(error)}); run: {install_command('ray')}"
    ) from None

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = ["OUTPUT_COLUMNS", "InvertBatches", "Processor", "build_processor"]

Row = dict[str, Any]

OUTPUT_COLUMNS = (
    "latent",
    "loss",
    "psnr",
    "status",
    "steps",
    "attempts",
    "normal_equations",
    "reason",
)
"""The columns that are added to a data set, with the names and types of a job's."""

# Two tasks at once, so that the next one's targets fill the lanes that the last of this one leave.
_TASKS_PER_ACTOR = 2


class InvertBatches:
    """Inverts the images of batches: a callable class for ``Dataset.map_batches``.

    ``build_processor`` maps a data set with it; use it directly where you need other arguments of
    ``map_batches``. Each actor opens the bundle once and runs one stream, whose lanes all batches
    in the actor share. It uses the GPU that Ray assigned to the actor, otherwise as many threads as
    the actor has CPUs.

    Every row keeps its columns, except for that of the image, and gets ``OUTPUT_COLUMNS``:

    | column | type | |
    |---|---|---|
    | latent | fixed_size_list&lt;float&gt;[d] | the latent, flattened |
    | loss, psnr | float | as in ``Inversion`` |
    | status | string | a ``Status`` in lower case, such as "converged_plateau" |
    | steps, normal_equations | int64 | evaluations, over all attempts |
    | attempts | int32 | the number of attempts |
    | reason | string | for the status "invalid": why the row was not inverted |

    What is not known is null.

    Args:
        bundle: the bundle's directory, which must exist on every node; or an address, as for
            ``Bundle.from_pretrained``, which every node downloads.
        image_column: the column of images: encoded (PNG, JPEG and others, as bytes, or as structs
            with "bytes"), or arrays as .npy files may hold them, see ``load_images``, such as
            ``ray.data.read_images`` gives.
        id_column: the column of ids, whole numbers from 0 to below 2^47, text or bytes, which seed
            each row's random draws. A row that Ray processes again gets the same latent again.
        recipe: as for ``Inverter.stream``.
        loss: as for ``Inverter.stream``.
        max_steps: as for ``Inverter.stream``.
        restarts: as for ``Inverter.stream``.
        seed: as for ``Inverter.stream``.
        effort: as for ``Inverter.stream``.
        noise: as for ``Inverter.stream``.
        init: as for ``Inverter.stream``.
        fit: how to resize images, see ``load_images``.
        on_error: "result" gives a row whose image cannot be read the status "invalid" and a reason;
            "raise" raises an InputError, which ends the run.
        lanes: number of targets that run in parallel in an actor, the ``batch_size`` of its
            ``Inverter``.
        runtime: as for ``Inverter``.
        digest: the ``Bundle.digest`` to expect; None for any. ``build_processor`` gives that of the
            bundle it checked, so that no node can use another one.

    A bundle's conditions are taken from the columns of their names.

    Raises:
        BundleError, DependencyError, DeviceError: as for ``Inverter``.
        InputError, RuleError: as for ``Inverter.stream``.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        image_column: str = "image",
        id_column: str = "id",
        recipe: str | Recipe = "default",
        loss: str | None = None,
        max_steps: int | None = None,
        restarts: int | None = None,
        seed: int = 0,
        effort: str | None = None,
        noise: float | None = None,
        init: str | None = None,
        fit: str = "crop",
        on_error: str = "result",
        lanes: int | str = DEFAULT_BATCH_SIZE,
        runtime: str = "auto",
        digest: str | None = None,
    ) -> None:
        for name, column in (("image_column", image_column), ("id_column", id_column)):
            if not isinstance(column, str) or not column:
                raise InputError(f"{name} must be the name of a column, got {column!r}")
        if on_error not in ("result", "raise"):
            raise InputError(f'on_error must be "result" or "raise", got {on_error!r}')
        self._image_column = image_column
        self._id_column = id_column
        self._fit = fit
        self._raises = on_error == "raise"
        self._options: dict[str, Any] = {
            "recipe": recipe,
            "loss": loss,
            "max_steps": max_steps,
            "restarts": restarts,
            "seed": seed,
            "effort": effort,
            "noise": noise,
            "init": init,
            "fit": fit,
        }
        threads, device = _assigned()
        self._inverter = Inverter.from_pretrained(
            bundle, runtime=runtime, device=device, batch_size=lanes, threads=threads
        )
        self._stream: _SharedStream | None = None
        if digest not in (None, self.digest):
            raise BundleError(f"{bundle}: expected a bundle of {digest}, got {self.digest}")
        # Refuse wrong arguments now.
        self._inverter.stream((), **self._options)

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self._inverter.bundle.digest

    async def __call__(self, batch: Any) -> Any:
        """Invert a batch, in any of the formats of ``map_batches``; return a ``pyarrow.Table``.

        Raises:
            InputError: a column is missing, or of the wrong type; with ``on_error="raise"``, an
                image that cannot be read.
            RunError: the runtime failed.
        """
        table = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_arrow()
        self.check_columns(table.column_names)
        results: list[TargetResult] = []
        if len(table):
            if self._stream is None or self._stream.failure is not None:
                self._stream = _SharedStream(self._inverter, self._options)
            results = await asyncio.wrap_future(self._stream.submit(self._targets(table)))
        if self._raises:
            for row, one in enumerate(results):
                if one.status == Status.INVALID:
                    id_ = table[self._id_column][row]
                    raise InputError(f"{self._id_column} {id_}: {one.reason}")
        return self._with_results(table, results)

    def check_columns(self, names: Sequence[str]) -> None:
        """Raise InputError unless a data set with these columns can be inverted."""
        has = f"the data set has {', '.join(names)}"
        if self._id_column not in names:
            raise InputError(
                f"no column {self._id_column!r} of ids, which make a row's result the same when "
                f"Ray processes it again; {has}; name another with id_column=, or add one"
            )
        if self._image_column not in names:
            raise InputError(
                f"no column {self._image_column!r} of images; {has}; name another with "
                "image_column="
            )
        for name in self._inverter.manifest.conditions:
            if name not in names:
                raise InputError(f"no column {name!r} for the bundle's condition; {has}")
        for name in OUTPUT_COLUMNS:
            if name in names and name != self._image_column:
                raise InputError(
                    f"the data set has a column {name!r} already; rename it, for example with "
                    "Dataset.rename_columns"
                )

    def _targets(self, table: Any) -> list[Row]:
        """Return the rows as targets of a stream, whose threads decode their images."""
        ids = table[self._id_column]
        kind = ids.type
        if not (
            pa.types.is_integer(kind)
            or pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
        ):
            raise InputError(
                f"the ids in column {self._id_column!r} must be whole numbers, text or bytes, got "
                f"{kind}; convert them"
            )
        conditions = list(self._inverter.manifest.conditions)
        names = list(dict.fromkeys((self._image_column, *conditions)))
        columns = BlockAccessor.for_block(table.select(names)).to_numpy()
        targets = []
        for row, id_ in enumerate(ids.to_pylist()):
            image = columns[self._image_column][row]
            target = {"id": id_, "image": partial(self._image, id_, image)}
            if conditions:
                target["conditions"] = {name: columns[name][row, None] for name in conditions}
            targets.append(target)
        return targets

    def _image(self, id_: Any, value: Any) -> bytes | NDArray[np.float32]:
        """Return an encoded image as bytes, and an array as a target."""
        target_id(id_)  # null would be seeded by its position
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise InputError("no image")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, np.ndarray):
            raise InputError(
                f"column {self._image_column!r} must hold encoded images (bytes) or arrays, got "
                f"{type(value).__name__}; read files with ray.data.read_images or read_binary_files"
            )
        manifest, name = self._inverter.manifest, Path("the image")
        array = _dense(value)
        if array.ndim == 1 and array.size == manifest.target_size:
            array = array.reshape(manifest.target_shape)
        # A single image, unless it is gray without channels.
        rows = array if array.ndim < len(manifest.target_shape) else array[None]
        rows = picture_rows(rows, name, manifest)
        image: NDArray[np.float32] = convert_rows(rows, name, manifest, self._fit)[0]
        return image

    def _with_results(self, table: Any, results: Sequence[TargetResult]) -> Any:
        """Return the table with the results instead of the images."""
        size = self._inverter.manifest.latent_size
        unknown = np.array([one.status == Status.INVALID for one in results], dtype=np.bool_)
        latents = np.array([one.latent.reshape(-1) for one in results], dtype=np.float32)

        def column(name: str, kind: Any) -> Any:
            return pa.array([getattr(one, name) for one in results], kind, mask=unknown)

        table = table.drop_columns([self._image_column])
        for name, values in (
            (
                "latent",
                pa.FixedSizeListArray.from_arrays(
                    latents.reshape(-1), size, mask=pa.array(unknown)
                ),
            ),
            ("loss", column("loss", pa.float32())),
            ("psnr", column("psnr", pa.float32())),
            ("status", pa.array([one.status.name.lower() for one in results], pa.string())),
            ("steps", column("steps", pa.int64())),
            ("attempts", column("attempts", pa.int32())),
            ("normal_equations", column("normal_equations", pa.int64())),
            ("reason", pa.array([one.reason or None for one in results], pa.string())),
        ):
            table = table.append_column(name, values)
        return table


@dataclass(frozen=True)
class Processor:
    """Inverts a data set: call it on one. ``build_processor`` makes it.

    Args:
        bundle: as for ``InvertBatches``.
        options: the other arguments of ``InvertBatches``.
        preprocess: a function of a row, or None.
        postprocess: a function of a row, or None.
        preprocess_map_kwargs: for the ``Dataset.map`` that runs ``preprocess``.
        postprocess_map_kwargs: for the ``Dataset.map`` that runs ``postprocess``.
        map_batches_kwargs: for ``Dataset.map_batches``.
    """

    bundle: str
    options: Mapping[str, Any]
    preprocess: Callable[[Row], Row] | None
    postprocess: Callable[[Row], Row] | None
    preprocess_map_kwargs: Mapping[str, Any] = field(repr=False)
    postprocess_map_kwargs: Mapping[str, Any] = field(repr=False)
    map_batches_kwargs: Mapping[str, Any] = field(repr=False)
    _checked: InvertBatches | None = field(default=None, repr=False)

    def __call__(self, dataset: Dataset) -> Dataset:
        """Return the inverted data set. It runs when something consumes it.

        Raises:
            InputError: not a data set, or one without the columns needed, if that is known before
                it runs.
        """
        if not isinstance(dataset, ray.data.Dataset):
            raise InputError(f"expected a ray.data.Dataset, got {type(dataset).__name__}")
        if self.preprocess is not None:
            dataset = dataset.map(self.preprocess, **self.preprocess_map_kwargs)
        known = dataset.columns(fetch_if_missing=False)
        if known is not None and self._checked is not None:
            self._checked.check_columns(known)
        dataset = dataset.map_batches(
            InvertBatches,
            fn_constructor_args=(self.bundle,),
            fn_constructor_kwargs=dict(self.options),
            batch_format="pyarrow",
            udf_modifying_row_count=False,
            **self.map_batches_kwargs,
        )
        if self.postprocess is not None:
            dataset = dataset.map(self.postprocess, **self.postprocess_map_kwargs)
        return dataset


def build_processor(
    bundle: str | os.PathLike[str],
    *,
    batch_size: int = 256,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    preprocess: Callable[[Row], Row] | None = None,
    postprocess: Callable[[Row], Row] | None = None,
    preprocess_map_kwargs: Mapping[str, Any] | None = None,
    postprocess_map_kwargs: Mapping[str, Any] | None = None,
    map_batches_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Processor:
    """Build a processor that inverts Ray data sets, in the manner of ``ray.data.llm``.

    The arguments are checked here, against the bundle, before Ray starts anything.

    Args:
        bundle: as for ``InvertBatches``; this process reads it too.
        batch_size: the number of rows that are handed to an actor at once, at least 1. A larger
            one keeps its lanes fuller, and loses more when a node dies.
        concurrency: the number of actors at most, or (least, most). Ray starts with the least, 1 by
            default, and adds actors while there is work and room. The least must leave CPUs to what
            reads the data set; otherwise Ray waits for them for ever.
        num_cpus: CPUs per actor, above 0; the threads of its engine, rounded down.
        num_gpus: GPUs per actor; 0 runs on CPUs.
        preprocess: a function of a row (a dict) that returns a row with the columns needed,
            before. Return the columns to keep too.
        postprocess: a function of a row, after.
        preprocess_map_kwargs: further arguments of the ``Dataset.map`` that runs ``preprocess``.
        postprocess_map_kwargs: further arguments of the ``Dataset.map`` that runs ``postprocess``.
        map_batches_kwargs: further arguments of ``Dataset.map_batches``, such as ``runtime_env`` or
            ``memory``.
        **options: the other arguments of ``InvertBatches``: ``recipe``, ``seed``, ``image_column``,
            ``id_column``, ``on_error`` and so on.

    Returns:
        the processor: call it on a data set.

    Raises:
        InputError, RuleError, BundleError: wrong arguments, or a bundle that cannot be read.

    Examples:
        >>> processor = build_processor(                                 # doctest: +SKIP
        ...     "faces.bundle", recipe="default", concurrency=(1, 8), id_column="path",
        ...     preprocess=lambda row: {"image": row["bytes"], "path": row["path"]},
        ... )
        >>> files = ray.data.read_binary_files("photos/", include_paths=True)  # doctest: +SKIP
        >>> processor(files).write_parquet("latents/")                   # doctest: +SKIP
    """
    batch_size = whole_number("batch_size", batch_size, at_least=1)
    for name, function in (("preprocess", preprocess), ("postprocess", postprocess)):
        if function is not None and not callable(function):
            raise InputError(f"{name} must be a function of a row, got {function!r}")
    for name, number, least in (("num_cpus", num_cpus, 1e-6), ("num_gpus", num_gpus, 0)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not number >= least:
            bound = "at least 0" if least == 0 else "above 0"
            raise InputError(f"{name} must be a number {bound}, got {number!r}")
    # Where this process has no runtime, only the actors can check the other arguments.
    checked = None
    with suppress(DependencyError):
        checked = InvertBatches(bundle, **options)
        options = {"digest": checked.digest, **options}
    resources = {"num_gpus": num_gpus} if num_gpus else {"num_cpus": num_cpus}
    return Processor(
        str(Path(bundle).absolute() if os.path.exists(bundle) else bundle),
        options,
        preprocess,
        postprocess,
        preprocess_map_kwargs or {},
        postprocess_map_kwargs or {},
        {
            "batch_size": batch_size,
            "compute": _pool(concurrency),
            **resources,
            **(map_batches_kwargs or {}),
        },
        checked,
    )


class _SharedStream:
    """A stream whose lanes all batches of an actor share.

    Args:
        inverter: runs it.
        options: the arguments of ``Inverter.stream``.

    Attributes:
        failure: why the stream has ended; None while it runs.
    """

    def __init__(self, inverter: Inverter, options: Mapping[str, Any]) -> None:
        self.failure: BaseException | None = None
        self._targets: queue.SimpleQueue[Row] = queue.SimpleQueue()
        self._count = 0
        self._lock = threading.Lock()
        # Of each target's number: its batch, and its row there.
        self._waiting: dict[int, tuple[_Waiting, int]] = {}
        results = inverter.stream(iter(self._targets.get, None), **options)
        threading.Thread(
            target=self._run, args=(results,), name="pyinv-results", daemon=True
        ).start()

    def submit(self, targets: Sequence[Row]) -> Future[list[TargetResult]]:
        """Enter at least one target; their results come in the same order."""
        waiting = _Waiting(len(targets))
        with self._lock:
            if self.failure is not None:
                raise self.failure
            for row, target in enumerate(targets):
                self._waiting[self._count + row] = (waiting, row)
                self._targets.put(target)
            self._count += len(targets)
        return waiting.future

    def _run(self, results: Iterator[TargetResult]) -> None:
        failure: BaseException = RunError("the stream has ended")
        try:
            for result in results:
                with self._lock:
                    waiting, row = self._waiting.pop(result.number)
                waiting.put(row, result)
        except BaseException as error:
            failure = error
        with self._lock:
            self.failure = failure
            unfinished = {waiting for waiting, _ in self._waiting.values()}
        for waiting in unfinished:
            waiting.future.set_exception(failure)


class _Waiting:
    """A batch whose results are awaited."""

    def __init__(self, count: int) -> None:
        self.future: Future[list[TargetResult]] = Future()
        self.future.set_running_or_notify_cancel()  # so that it always takes its results
        self._results: list[Any] = [None] * count
        self._left = count

    def put(self, row: int, result: TargetResult) -> None:
        self._results[row] = result
        self._left -= 1
        if self._left == 0:
            self.future.set_result(self._results)


def _assigned() -> tuple[int | None, str]:
    """Return the threads and the device that this actor may use; (None, "cpu") outside Ray."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None, "cpu"
    assigned = ray.get_runtime_context().get_assigned_resources()
    # Ray lets the process see only its GPUs.
    device = "cuda" if assigned.get("GPU", 0) > 0 else "cpu"
    return max(1, int(assigned.get("CPU", 0))), device


def _pool(concurrency: int | tuple[int, int]) -> Any:
    expected = "concurrency must be a whole number of actors, or (least, most)"
    pair = concurrency if isinstance(concurrency, tuple | list) else (1, concurrency)
    if len(pair) != 2:
        raise InputError(f"{expected}, got {concurrency!r}")
    least, most = (whole_number("concurrency", number, at_least=1) for number in pair)
    if least > most:
        raise InputError(f"{expected}, got {concurrency!r}")
    return ray.data.ActorPoolStrategy(
        min_size=least, max_size=most, max_concurrent_calls_per_actor=_TASKS_PER_ACTOR
    )


def _dense(value: NDArray[Any]) -> NDArray[Any]:
    """Return arrays of arrays, which nested lists of Arrow become, as one array."""
    if value.dtype != np.object_:
        return value
    return np.stack([_dense(np.asarray(part)) for part in value])
