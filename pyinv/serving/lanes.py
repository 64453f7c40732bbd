"""The lanes of open streams, shared by the requests of all clients.

Everything here runs in the event loop's thread, except for the engine, one thread per stream that
waits for its results, and the opening and closing of streams.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import PyinvError, RunError, one_line
from pyinv.inverter import Inverter
from pyinv.recipes import Recipe
from pyinv.result import Status
from pyinv.serving.refusals import RETRY, Refusal, refused
from pyinv.session import StreamRun
from pyinv.streaming import StreamPlan

__all__ = ["Lanes", "LanesPool", "Result", "StreamKey"]

FloatArray = NDArray[np.float32]

_CLOSED = "the stream was closed; try again"


@dataclass(frozen=True)
class Result:
    """The engine's result of one target, as in ``TargetResult``; latent [d]."""

    latent: FloatArray
    loss: float
    status: Status
    steps: int
    attempts: int


@dataclass(eq=False)
class _Target:
    arguments: dict[str, Any]
    future: asyncio.Future[Result]
    number: int | None = None  # the run's, once it is there


class Lanes:
    """One stream, whose lanes hold the targets of any number of requests.

    Args:
        run: the engine's run.
        plan: what it runs.
        rows: the targets that the run has room for, in lanes and waiting.
        over: called with the failure, or None, when the run has ended.
    """

    def __init__(
        self,
        run: StreamRun,
        plan: StreamPlan,
        rows: int,
        over: Callable[[BaseException | None], None],
    ) -> None:
        self.plan = plan
        self._run = run
        self._rows = rows
        self._on_over = over
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Target] = deque()
        self._inside: dict[int, _Target] = {}
        self._next = 0
        self._failure: RunError | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._take, name="pyinv-take", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """The number of targets in lanes."""
        return min(len(self._inside), self.plan.lanes)

    @property
    def waiting(self) -> int:
        """The number of targets that wait for a lane."""
        return len(self._waiting) + len(self._inside) - self.active

    async def invert(
        self,
        images: FloatArray,
        ids: NDArray[np.uint64],
        conditions: FloatArray | None,
        initial: FloatArray | None,
        weights: FloatArray | None,
    ) -> list[Result]:
        """Return the results of targets; if this is cancelled, their lanes are freed.

        Args:
            images: [n, pixels].
            ids: [n], what seeds their draws.
            conditions: [n, k], or None if the bundle has none.
            initial: [n, d], if the recipe starts at given latents.
            weights: [n, pixels], if the bundle takes weights.

        Raises:
            RunError: the runtime failed.
        """
        given: dict[str, NDArray[Any] | None] = {
            "images": images,
            "ids": ids,
            "condition": conditions,
            "initial": initial,
            "weights": weights,
        }
        targets = []
        for row in range(len(images)):
            one = {k: None if v is None else v[row : row + 1] for k, v in given.items()}
            targets.append(_Target(one, self._loop.create_future()))
        self._waiting.extend(targets)
        try:
            self._refill()
            return await asyncio.gather(*(target.future for target in targets))
        finally:
            self._cancel(targets)

    def _refill(self) -> None:
        """Pass waiting targets to the run, as far as it has room: this never blocks."""
        if self._ended:
            raise self._failure or RunError(_CLOSED)
        while self._waiting and len(self._inside) < self._rows:
            target = self._waiting.popleft()
            if target.future.done():  # cancelled
                continue
            if not self._run.put(**target.arguments):  # the run is ending, and fails the rest
                self._waiting.appendleft(target)
                return
            target.number = self._next
            self._inside[self._next] = target
            self._next += 1

    def _cancel(self, targets: list[_Target]) -> None:
        """Free the lanes of targets that are not done."""
        for target in targets:
            target.future.cancel()
            if target.number is None and target in self._waiting:
                self._waiting.remove(target)
        numbers = [target.number for target in targets if target.number in self._inside]
        if numbers:
            self._run.cancel(numbers)

    def _take(self) -> None:
        """Wait for results, in a thread."""
        failure: BaseException | None = None
        try:
            while (found := self._run.take()) is not None:
                if len(found["numbers"]):
                    self._loop.call_soon_threadsafe(self._deliver, found)
        except BaseException as error:
            failure = error
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end, failure)

    def _deliver(self, found: dict[str, Any]) -> None:
        for row, number in enumerate(found["numbers"].tolist()):
            future = self._inside.pop(number).future
            result = Result(
                found["latents"][row],
                float(found["loss"][row]),
                Status(int(found["status"][row])),
                int(found["steps"][row]),
                int(found["attempts"][row]),
            )
            if future.done():  # the request was cancelled
                continue
            if result.status is Status.CANCELLED:  # the run was stopped
                future.set_exception(RunError(_CLOSED))
            else:
                future.set_result(result)
        if not self._ended:
            self._refill()

    def _end(self, failure: BaseException | None) -> None:
        self._ended = True
        if failure is not None:
            self._failure = RunError(f"the run failed: {one_line(failure)}")
        for target in [*self._inside.values(), *self._waiting]:
            if not target.future.done():
                target.future.set_exception(self._failure or RunError(_CLOSED))
        self._inside.clear()
        self._waiting.clear()
        self._on_over(failure)

    def close(self) -> None:
        """End the run within a step, and wait for it. For a thread other than the loop's."""
        self._run.stop()
        self._thread.join()


@dataclass(frozen=True)
class StreamKey:
    """What requests must have in common to share lanes."""

    recipe: str
    loss: str | None
    effort: str | None
    seed: int


@dataclass(eq=False)
class _Entry:
    opening: asyncio.Task[Lanes]
    users: int = field(default=0)


class LanesPool:
    """The open streams, by what their requests have in common.

    Args:
        inverter: opens them.
        recipes: those that are served, by name.
        most: how many are open at once.
        failed: called when a run fails.
    """

    def __init__(
        self,
        inverter: Inverter,
        recipes: Mapping[str, str | Recipe],
        most: int,
        failed: Callable[[], None],
    ) -> None:
        self._inverter = inverter
        self._recipes = recipes
        self._most = most
        self._failed = failed
        self._entries: dict[StreamKey, _Entry] = {}  # the one that was used last is last

    def open(self) -> list[Lanes]:
        """Return the streams that are open."""
        return [
            entry.opening.result()
            for entry in self._entries.values()
            if entry.opening.done() and entry.opening.exception() is None
        ]

    @asynccontextmanager
    async def lanes(self, key: StreamKey) -> AsyncIterator[Lanes]:
        """Return the stream of a key, opened if it is not, and keep it open in the block.

        Raises:
            Refusal: the bundle and the recipe do not have what the key asks for (400), or all
                streams are in use (503).
            BundleError, DeviceError: the recipe's functions cannot be loaded.
        """
        entry = self._entries.pop(key, None)
        if entry is None:
            with refused(400):
                recipe = self._inverter._stream_recipe(
                    self._recipes[key.recipe], {}, None, None, key.effort, key.loss
                )
                self._inverter._session.plan(recipe)  # does the bundle have all of its functions?
            if len(self._entries) >= self._most:
                self._close_idle()
            entry = _Entry(asyncio.ensure_future(self._opened(key, recipe)))
            entry.opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._entries[key] = entry
        entry.users += 1
        try:
            yield await asyncio.shield(entry.opening)
        finally:
            entry.users -= 1

    def _close_idle(self) -> None:
        for key, entry in self._entries.items():
            if not entry.users and entry.opening.done():
                del self._entries[key]
                lanes = entry.opening.result()
                asyncio.get_running_loop().run_in_executor(None, lanes.close)
                return
        raise Refusal(
            503,
            f"all {self._most} streams of other recipes and seeds are in use; try again, or use "
            "the default recipe and seed",
            RETRY,
        )

    async def _opened(self, key: StreamKey, recipe: Recipe) -> Lanes:
        def opened() -> tuple[StreamRun, StreamPlan, int]:
            plan = self._inverter._stream_plan(recipe)
            rows = 2 * plan.lanes  # as many again wait, so that a free lane is filled at once
            return self._inverter._open_stream(plan, seed=key.seed, rows=rows), plan, rows

        try:
            run, plan, rows = await asyncio.get_running_loop().run_in_executor(None, opened)
        except BaseException:
            self._entries.pop(key, None)
            raise

        def over(failure: BaseException | None) -> None:
            if failure is not None:
                self._failed()
            entry = self._entries.get(key)
            if entry is not None and entry.opening.done() and entry.opening.result() is lanes:
                del self._entries[key]

        lanes = Lanes(run, plan, rows, over)
        return lanes

    async def close(self) -> None:
        """Close all streams."""
        entries = list(self._entries.values())
        self._entries.clear()
        for entry in entries:
            try:
                lanes = await entry.opening
            except (PyinvError, asyncio.CancelledError):
                continue
            await asyncio.get_running_loop().run_in_executor(None, lanes.close)
