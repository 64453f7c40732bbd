"""Batch sizes: dividing targets into groups, and finding the fastest size for a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyinv.cancellation import check_stopped
from pyinv.errors import OutOfMemoryError
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import GradientDescent, LevenbergMarquardt

if TYPE_CHECKING:
    from pyinv.session import Session

__all__ = [
    "AUTO_BATCH_SIZES",
    "DEFAULT_BATCH_SIZE",
    "choose_batch_size",
    "group_sizes",
    "groups",
    "too_large",
]

DEFAULT_BATCH_SIZE = 64
AUTO_BATCH_SIZES = {"cpu": (8, 16, 32, 64, 128), "cuda": (64, 256, 1024, 4096, 16384)}
"""The sizes that "auto" tries, per kind of device."""


def group_sizes(count: int, batch_size: int) -> list[int]:
    """Return the sizes of ceil(count / batch_size) groups, as equal as possible, larger first."""
    number = -(-count // batch_size)
    return [count // number + (index < count % number) for index in range(number)]


def groups(count: int, batch_size: int) -> Iterator[slice]:
    """Yield the rows of each group."""
    start = 0
    for size in group_sizes(count, batch_size):
        yield slice(start, start + size)
        start += size


def choose_batch_size(session: Session, recipe: Recipe, count: int) -> int:
    """Return the batch size for "auto" with ``count`` targets, by timing several.

    Raises:
        OutOfMemoryError: the smallest does not fit in the device's memory; the message says what
            fits.
        RunError: the runtime failed.
        KeyboardInterrupt: Ctrl-C.
    """
    # A batch larger than the number of targets would leave lanes empty.
    candidates = sorted({min(size, count) for size in AUTO_BATCH_SIZES[session.device_kind]})
    size = _fastest(session, recipe.stages[0].loss, candidates)
    # Each lane also holds a gram matrix, which affects a GPU's memory but not the speed.
    if session.device_kind != "cpu" and recipe.needs_normal_equations:
        while _time(session, _short(recipe), size) is None:
            if size == 1:
                raise too_large(session, recipe, size)
            size //= 2
    return size


def too_large(session: Session, recipe: Recipe, batch_size: int) -> OutOfMemoryError:
    """Return the error for a batch that does not fit in the device's memory; it says what fits."""
    fitting = batch_size // 2
    while fitting and _time(session, _short(recipe), fitting) is None:
        fitting //= 2
    remedy = f"batch_size={fitting} fits" if fitting else "use another device"
    return OutOfMemoryError(f"{session.device} has no memory for batch_size={batch_size}; {remedy}")


def _fastest(session: Session, loss: str, candidates: Sequence[int]) -> int:
    """Return the smallest batch size within 5 % of the best images per second."""
    speeds: dict[int, float] = {}
    recipe = Recipe("trial", (Stage(GradientDescent(1e-6), max_steps=1, loss=loss),))
    for size in candidates:
        _time(session, recipe, size)  # the first run at a size plans its memory
        seconds = _time(session, recipe, size)
        if seconds is None:  # larger ones would not fit either
            break
        speeds[size] = size / seconds
    if not speeds:
        raise too_large(session, recipe, size)
    best = max(speeds.values())
    return next(size for size, speed in speeds.items() if speed >= 0.95 * best)


def _time(session: Session, recipe: Recipe, batch_size: int) -> float | None:
    """Return the seconds that a recipe takes on blank images; None if out of memory."""
    manifest = session.manifest
    middle = np.float32(np.mean(manifest.value_range))
    condition = None
    if manifest.condition_size:
        condition = np.zeros((batch_size, manifest.condition_size), dtype=np.float32)
    try:
        found = session.run(
            session.plan(recipe),
            images=np.full((batch_size, manifest.target_size), middle),
            condition=condition,
            target_ids=np.arange(batch_size, dtype=np.uint64),
            seed=0,
            lanes=batch_size,
        )
    except (OutOfMemoryError, MemoryError):
        return None
    if found["cancelled"]:
        check_stopped()
        raise KeyboardInterrupt
    return float(found["total_seconds"])


def _short(recipe: Recipe) -> Recipe:
    """Return a recipe that evaluates each function of this one once or twice."""
    pairs = dict.fromkeys(
        (stage.loss, stage.solver.needs_normal_equations) for stage in recipe.stages
    )
    stages = tuple(
        Stage(LevenbergMarquardt() if second else GradientDescent(1e-6), max_steps=1, loss=loss)
        for loss, second in pairs
    )
    return Recipe("trial", stages)
