"""A plan: the runs that a reproduction makes in turn, and what its user hears meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyinv.inverter import Inverter
from pyinv.papers.request import Request
from pyinv.papers.run_cache import RunCache
from pyinv.recipes import Recipe
from pyinv.result import Inversion

__all__ = ["Planned", "carry_out"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Planned:
    """One run: some targets, inverted by one recipe.

    Args:
        id: its name in the folder and in the report.
        label: what people call it.
        inverter: the generator's.
        images: the targets, float32 [N, C, H, W] in the bundle's value range.
        recipe: how.
        true_latents: float32 [N, *latent_shape], those that made the targets; None when unknown.
        init: float32 [N, *latent_shape], where first attempts begin; None takes the recipe's start.
        condition: float32 [N, k], for bundles that have a condition.
    """

    id: str
    label: str
    inverter: Inverter
    images: FloatArray
    recipe: Recipe
    true_latents: FloatArray | None = None
    init: FloatArray | None = None
    condition: FloatArray | None = None

    @property
    def work(self) -> int:
        """The most evaluations of the objective that the first attempts make."""
        return len(self.images) * self.recipe.max_steps


def carry_out(
    plan: Sequence[Planned],
    runs: RunCache,
    request: Request,
) -> dict[str, Inversion]:
    """Make every run that is not kept yet, in turn.

    Args:
        plan: the runs; no two have the same id.
        runs: where finished runs are kept.
        request: gives the seed of all random draws (targets of the same row draw alike in every
            run), who is told of each run and of the time left, and whether a bar is shown.

    Returns:
        the inversions by their runs' ids, in the plan's order.

    Raises:
        KeyboardInterrupt: Ctrl-C; its text says how many runs are done and kept.
    """
    done: dict[str, Inversion] = {}
    estimated = False
    for number, planned in enumerate(plan, start=1):
        request.say(f"run {number} of {len(plan)}: {planned.label}")
        start = time.perf_counter()
        try:
            done[planned.id] = runs.run(
                planned.id,
                planned.inverter,
                planned.images,
                recipe=planned.recipe,
                seed=request.seed,
                true_latents=planned.true_latents,
                init=planned.init,
                condition=planned.condition,
                progress=request.progress,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{len(done)} of {len(plan)} runs are done; the same command goes on"
            ) from None
        elapsed = time.perf_counter() - start
        ahead = sum(other.work for other in plan[number:])
        if planned.id in runs.read_back:
            request.say("  done before")
        elif ahead and not estimated:
            request.say(
                f"  {duration(elapsed / planned.work * ahead)} to go, if the others are as fast"
            )
            estimated = True
    return done


def duration(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"
