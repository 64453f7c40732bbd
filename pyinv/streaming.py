"""Streams: results of targets that arrive one by one, for ``Inverter.stream``."""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyinv.advice import peak_ratio
from pyinv.bundle import Function, Manifest
from pyinv.conditions import condition_rows
from pyinv.errors import InputError, PyinvError, RunError, one_line
from pyinv.images import check_images, image_names, load_named_images
from pyinv.result import Status
from pyinv.target_ids import target_id
from pyinv.validation import as_numpy
from pyinv.weights import check_rows_of_weights, check_weights

__all__ = ["TargetResult"]

FloatArray = NDArray[np.float32]

# A source that fails so often without an item in between is broken.
_MOST_FAILURES = 100
_KEYS = ("image", "id", "conditions", "weights")
# Threads look at the end of a stream this often, in seconds.
_LOOK = 0.05


@dataclass(frozen=True, eq=False)
class TargetResult:
    """The result of one target of a stream.

    Args:
        number: the target's position in the source, from 0.
        id: the target's id: the one given with it, the path of its file, or its number.
        latent: float32 [*latent_shape]; NaN for a status of ``INVALID``.
        loss: the loss at the latent; NaN where none was finite.
        status: how the target ended.
        steps: the number of steps over all attempts.
        attempts: the number of attempts.
        normal_equations: the number of evaluations of the normal equations.
        psnr: the peak signal-to-noise ratio in decibels, as in ``Inversion``; None for recipes
            that minimise another loss than "mse", and for observations.
        reason: for a status of ``INVALID``: why the target was not inverted.
    """

    number: int
    id: Any
    latent: FloatArray
    loss: float = float("nan")
    status: Status = Status.INVALID
    steps: int = 0
    attempts: int = 0
    normal_equations: int = 0
    psnr: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class StreamPlan:
    """What a stream runs.

    Args:
        plan: the output of ``Session.plan``.
        lanes: the number of targets that run in parallel.
        encodes: whether targets start at the encoder's latents.
        measures_mse: whether the loss is the mean squared error of images.
    """

    plan: tuple[str, list[Function]]
    lanes: int
    encodes: bool
    measures_mse: bool


@dataclass(frozen=True)
class Batch:
    """Checked targets.

    Args:
        ids: n ids; None stands for the target's number.
        seeds: what seeds each target's draws, see ``target_id``; None stands for its number.
        images: [n, *image_shape].
        conditions: [n, k], or None for bundles without.
        weights: [n, values], or None for weights of 1.
    """

    ids: list[Any]
    seeds: list[int | None]
    images: FloatArray
    conditions: FloatArray | None
    weights: FloatArray | None = None

    def __getitem__(self, rows: slice) -> Batch:
        """Return some of the targets."""
        return Batch(
            self.ids[rows],
            self.seeds[rows],
            self.images[rows],
            None if self.conditions is None else self.conditions[rows],
            None if self.weights is None else self.weights[rows],
        )


@dataclass(frozen=True)
class Refused:
    """A target that cannot be inverted. An id of None stands for the target's number."""

    id: Any
    error: InputError


Parts: TypeAlias = list[Batch | Refused]


class Source:
    """Reads the items of a source and decodes them on a pool of threads, in order.

    Args:
        items: images, (id, image) pairs, dictionaries, batches or paths.
        manifest: the bundle's manifest.
        fit: how to resize image files.
        workers: the number of decoding threads.
    """

    def __init__(self, items: Iterable[Any], manifest: Manifest, fit: str, workers: int) -> None:
        self._items = items
        self._manifest = manifest
        self._fit = fit
        self._workers = workers
        self._stopped = threading.Event()
        # Items are read ahead, so that all workers are busy.
        self._decoded: queue.Queue[Future[Parts] | Parts | None] = queue.Queue(4 * workers)

    @property
    def stopped(self) -> bool:
        """Whether the stream has ended."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End the threads. A read of the source that is under way may take its time."""
        self._stopped.set()

    def batches(self) -> Iterator[Batch | Refused]:
        """Return batches in order, and what is refused."""
        pool = ThreadPoolExecutor(self._workers, "pyinv-decode")
        # A daemon, because the source may block for ever.
        threading.Thread(target=self._read, args=(pool,), name="pyinv-read", daemon=True).start()
        try:
            while True:
                parts: Parts = []
                taken = 0
                # What is ready is passed on together, but not more than the queue holds: a source
                # that is faster than this loop would be read to its end.
                while not parts or (taken < self._decoded.maxsize and not self._decoded.empty()):
                    if self._stopped.is_set():
                        return
                    try:
                        found = self._decoded.get(timeout=_LOOK)
                    except queue.Empty:
                        continue
                    if found is None:
                        yield from _joined(parts)
                        return
                    taken += 1
                    if parts and isinstance(found, Future) and not found.done():
                        yield from _joined(parts)  # they need not wait for it
                        parts = []
                    decoded = found if isinstance(found, list) else self._result(found)
                    if decoded is None:
                        return
                    parts += decoded
                yield from _joined(parts)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _result(self, decoding: Future[Parts]) -> Parts | None:
        """Wait for a decoding thread; None: the stream was stopped, and the thread may be stuck."""
        while not self._stopped.is_set():
            with suppress(NotDone):
                return decoding.result(timeout=_LOOK)
        return None

    def _read(self, pool: ThreadPoolExecutor) -> None:
        try:
            self._read_items(pool)
        except BaseException as error:  # such as SystemExit, which ends the stream
            broken: Future[Parts] = Future()
            broken.set_exception(error)
            self._hand_on(broken)
        self._hand_on(None)

    def _read_items(self, pool: ThreadPoolExecutor) -> None:
        failures = 0
        iterator: Iterator[Any] | None = None
        while not self._stopped.is_set() and failures < _MOST_FAILURES:
            try:
                iterator = iter(self._items) if iterator is None else iterator
                parts = self._parts(next(iterator))
            except StopIteration:
                break
            except Exception as error:
                failures += 1
                refused = f"the source failed: {type(error).__name__}: {one_line(error)}"
                self._hand_on([Refused(None, InputError(refused))])
                continue
            failures = 0
            for part in parts:
                image = _image_of(part)
                if callable(image) or _is_encoded(part) or _is_encoded(image):
                    with suppress(RuntimeError):  # the pool was shut down
                        self._hand_on(pool.submit(self._decode, part))
                else:
                    self._hand_on(self._decode(part))

    def _hand_on(self, found: Future[Parts] | Parts | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._decoded.put(found, timeout=_LOOK)
                return

    def _parts(self, item: Any) -> list[Any]:
        """Return the item; or the files of a folder."""
        if not (_is_path(item) and self._manifest.targets_are_pictures and Path(item).is_dir()):
            return [item]
        folder = Path(item)
        return [folder / name for name in image_names(folder)] or [item]

    def _decode(self, item: Any) -> Parts:
        id_ = item if _is_path(item) else None
        try:
            id_, image, *more = _taken_apart(item)
            if callable(image):
                image = image()
            if _is_encoded(image):
                return [self._read_file(id_, image, *more)]
            return self._checked(id_, image, *more)
        except InputError as error:
            return [Refused(_named(id_, item), error)]
        except Exception as error:  # of a decoder
            text = f"{type(error).__name__}: {one_line(error)}"
            return [Refused(_named(id_, item), InputError(text))]

    def _read_file(self, id_: Any, image: Any, conditions: Any, weights: Any) -> Batch:
        images, names = load_named_images(_opened(image), self._manifest, fit=self._fit)
        count = len(images)
        rows = self._more(conditions, weights, count)
        if id_ is None:
            ids = names if _is_path(image) else [None] * count
            return Batch(ids, [None] * count, images, *rows)
        if count > 1:
            raise InputError(f"holds {count} images, which cannot share the id {id_!r}")
        return Batch([id_], [target_id(id_)], images, *rows)

    def _more(
        self, conditions: Any, weights: Any, count: int
    ) -> tuple[FloatArray | None, FloatArray | None]:
        """Return the conditions and weights of targets, a row for each."""
        weighting = check_weights(weights, self._manifest)
        check_rows_of_weights(weighting, count)
        if weighting is not None:
            weighting = np.broadcast_to(weighting, (count, weighting.shape[1]))
        return condition_rows(self._manifest.conditions, conditions, count), weighting

    def _checked(self, id_: Any, image: Any, conditions: Any, weights: Any) -> Parts:
        """Check an image, or a batch; if the batch fails, image by image."""
        shape = self._manifest.target_shape
        array = as_numpy(image, "images", f"float32 {list(shape)}")
        ids: list[Any] = [id_]
        if array.ndim != len(shape) + 1:
            array = array[None]
        elif id_ is None:
            ids = [None] * len(array)
        elif isinstance(id_, str | bytes) or not hasattr(id_, "__len__") or len(id_) != len(array):
            raise InputError(f"a batch of {len(array)} images needs as many ids, got {id_!r}")
        else:
            ids = list(id_)
        rows = self._more(conditions, weights, len(array))
        try:
            seeds = [None if id_ is None else target_id(id_) for id_ in ids]
            checked = check_images(array, self._manifest)
            # A copy, because the source may reuse the array for its next item.
            images = checked.copy() if np.may_share_memory(checked, array) else checked
            return [Batch(ids, seeds, images, *rows)]
        except InputError:
            if len(array) <= 1:
                raise
        parts: Parts = []
        for row, given in enumerate(ids):
            one = slice(row, row + 1)
            try:
                image = check_images(array[one], self._manifest).copy()
                seed = None if given is None else target_id(given)
                of_row = (None if values is None else values[one] for values in rows)
                parts.append(Batch([given], [seed], image, *of_row))
            except InputError as error:
                parts.append(Refused(given, error))
        return parts


def _is_path(item: Any) -> bool:
    return isinstance(item, str | os.PathLike)


def _is_encoded(image: Any) -> bool:
    return _is_path(image) or isinstance(image, bytes) or hasattr(image, "read")


def _image_of(item: Any) -> Any:
    if isinstance(item, Mapping):
        return item.get("image")
    return item[-1] if isinstance(item, tuple) and item else item


def _joined(parts: Parts) -> Iterator[Batch | Refused]:
    """Join batches that follow one another."""
    batches: list[Batch] = []

    def one() -> Iterator[Batch]:
        if len(batches) > 1:
            conditions = [batch.conditions for batch in batches if batch.conditions is not None]
            images = np.concatenate([batch.images for batch in batches])
            weights = None
            if any(batch.weights is not None for batch in batches):
                weights = np.ones((len(images), images[0].size), dtype=np.float32)
                row = 0
                for batch in batches:
                    if batch.weights is not None:
                        weights[row : row + len(batch.ids)] = batch.weights
                    row += len(batch.ids)
            yield Batch(
                [id_ for batch in batches for id_ in batch.ids],
                [seed for batch in batches for seed in batch.seeds],
                images,
                np.concatenate(conditions) if conditions else None,
                weights,
            )
        else:
            yield from batches
        batches.clear()

    for part in parts:
        if isinstance(part, Batch):
            batches.append(part)
        else:
            yield from one()
            yield part
    yield from one()


def _opened(image: Any) -> str | os.PathLike[str] | IO[bytes]:
    import io

    return io.BytesIO(image) if isinstance(image, bytes) else image


def _named(id_: Any, item: Any) -> Any:
    """Return the id of a target that cannot be read; a file's own is its path."""
    image = _image_of(item)
    return str(image) if id_ is None and _is_path(image) else id_


def _taken_apart(item: Any) -> tuple[Any, Any, Any, Any]:
    """Return the item's id, image, conditions and weights; None where it has none."""
    if isinstance(item, Mapping):
        unknown = [name for name in item if name not in _KEYS]
        if unknown or "image" not in item:
            raise InputError(
                f"a target may have {', '.join(_KEYS)}, got {', '.join(map(str, item))}"
            )
        return item.get("id"), item["image"], item.get("conditions"), item.get("weights")
    if isinstance(item, tuple):
        if len(item) != 2:
            raise InputError(f"a target is an image or a pair (id, image), got {len(item)} parts")
        if np.ndim(item[0]) > 1:
            raise InputError("a pair is (id, image), and the first of this one is no id")
        return item[0], item[1], None, None
    return None, item, None, None


class Window:
    """Bounds the number of targets in a stream, from when they are read until they are yielded."""

    def __init__(self, size: int, is_stopped: Callable[[], bool]) -> None:
        self._free = size
        self._enough = max(1, size // 8)  # places are given out together, which costs less
        self._is_stopped = is_stopped
        self._changed = threading.Condition()

    def enter(self, most: int) -> int:
        """Wait for room, and return how many of ``most`` targets may enter; 0: it was stopped."""
        with self._changed:
            wanted = min(most, self._enough)
            while self._free < wanted:
                if self._is_stopped():
                    return 0
                self._changed.wait(_LOOK)
            count = min(most, self._free)
            self._free -= count
        return 0 if self._is_stopped() else count

    def leave(self) -> None:
        """One target has left."""
        with self._changed:
            self._free += 1
            if self._free >= self._enough:
                self._changed.notify()


def results(
    engine: Any,
    source: Source,
    *,
    manifest: Manifest,
    encode: Callable[[FloatArray, FloatArray | None], FloatArray] | None,
    measures_mse: bool,
    ordered: bool,
    window: int,
    raises: bool,
) -> Generator[TargetResult, None, None]:
    """Run a stream: a thread passes the source's targets to the engine, this one yields results.

    Args:
        engine: returns the engine's run, see ``Session.stream``; called here.
        source: the targets.
        manifest: the bundle's manifest.
        encode: returns the initial latents of images and conditions; None if the recipe needs none.
        measures_mse: whether the loss is the mean squared error of images.
        ordered: yield results in the order of the source.
        window: the number of targets in the stream at once; the engine has as many rows.
        raises: raise an InputError for an invalid target.
    """
    run = engine()
    known: dict[int, tuple[int, Any]] = {}  # of the engine's numbers: the target's own, and its id
    refused: queue.SimpleQueue[TargetResult] = queue.SimpleQueue()
    failure: list[BaseException] = []
    room = Window(window, lambda: source.stopped)
    nothing = np.full(manifest.latent_shape, np.nan, dtype=np.float32)

    def put(batch: Batch, seeds: list[int], initial: FloatArray | None) -> bool:
        left: dict[str, Any] = {
            "images": batch.images.reshape(len(seeds), -1),
            "ids": np.array(seeds, dtype=np.uint64),
            "initial": initial,
            "condition": batch.conditions,
            "weights": batch.weights,
        }
        while len(left["ids"]):
            taken = run.put(**left)
            if source.stopped:
                return False
            left = {name: rows if rows is None else rows[taken:] for name, rows in left.items()}
        return True

    def feed() -> None:
        number = taken = 0
        try:
            for batch in source.batches():
                if isinstance(batch, Refused):
                    if raises:
                        raise batch.error
                    if not room.enter(1):
                        return
                    id_ = number if batch.id is None else batch.id
                    reason = one_line(batch.error)
                    refused.put(TargetResult(number, id_, nothing, reason=reason))
                    number += 1
                    continue
                initial = None if encode is None else encode(batch.images, batch.conditions)
                row = 0
                while row < len(batch.ids):
                    count = room.enter(len(batch.ids) - row)
                    if not count:
                        return
                    seeds = []
                    for i in range(row, row + count):
                        id_, seed = batch.ids[i], batch.seeds[i]
                        known[taken] = (number, number if id_ is None else id_)
                        seeds.append(number if seed is None else seed)
                        number += 1
                        taken += 1
                    rows = slice(row, row + count)
                    if not put(batch[rows], seeds, None if initial is None else initial[rows]):
                        return
                    row += count
        except BaseException as error:
            failure.append(error)
            source.stop()
        finally:
            run.end()

    def take() -> Iterator[TargetResult]:
        """Yield results as they finish."""
        while True:
            found = run.take()
            while not refused.empty():
                yield refused.get()
            if found is None:
                return
            ratios = peak_ratio(found["loss"], manifest.value_range) if measures_mse else None
            for row, key in enumerate(found["numbers"].tolist()):
                number, id_ = known.pop(key)
                status = Status(int(found["status"][row]))
                if status == Status.CANCELLED:
                    continue
                loss = float(found["loss"][row])
                psnr = None if ratios is None else float(ratios[row])
                yield TargetResult(
                    number,
                    id_,
                    found["latents"][row].reshape(manifest.latent_shape),
                    loss,
                    status,
                    int(found["steps"][row]),
                    int(found["attempts"][row]),
                    int(found["normal_equations"][row]),
                    psnr,
                )

    held: dict[int, TargetResult] = {}

    def in_order() -> Iterator[TargetResult]:
        following = 0
        for result in take():
            held[result.number] = result
            while following in held:
                yield held.pop(following)
                following += 1
        yield from rest()

    def rest() -> Iterator[TargetResult]:
        """Yield what has finished after a cancellation."""
        yield from sorted([*held.values(), *take()], key=lambda result: result.number)
        held.clear()

    feeder = threading.Thread(target=feed, name="pyinv-feed", daemon=True)
    feeder.start()

    def stop() -> None:
        source.stop()
        run.stop()
        feeder.join()

    _open_streams.add(stop)
    interrupted = False
    found = in_order() if ordered else take()
    try:
        while True:
            try:
                result = next(found, None)
            except KeyboardInterrupt:
                # What has finished is yielded first.
                interrupted = True
                source.stop()
                run.stop()
                found = rest()
                continue
            if failure:
                run.stop()
            if result is None:
                break
            room.leave()
            yield result
        if interrupted:
            raise KeyboardInterrupt
        feeder.join()
        if failure:
            error = failure[0]
            if isinstance(error, PyinvError):
                raise error
            raise RunError(f"the stream failed: {type(error).__name__}: {error}") from error
    finally:
        stop()
        _open_streams.discard(stop)


_open_streams: set[Callable[[], None]] = set()


@atexit.register
def _stop_streams() -> None:
    """End the streams that are still open: their threads must not outlive the interpreter."""
    for stop in list(_open_streams):
        stop()
