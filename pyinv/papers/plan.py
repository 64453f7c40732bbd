"""A reproduction's plan: its runs, in order, and the progress messages printed meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pyinv.inverter import Inverter
from pyinv.papers.pixels import FloatArray
from pyinv.papers.request import Request
from pyinv.papers.run_cache import RunCache
from pyinv.progress import duration
from pyinv.recipes import Recipe
from pyinv.result import Inversion

__all__ = ["Planned", "run_plan"]


@dataclass(frozen=True, eq=False)
class Planned:
    """One run: a set of targets and the recipe that inverts them.

    Args:
        id: its name in the run cache and in the report.
        label: its name for people.
        inverter: the generator's inverter.
        images: the targets, float32 [N, C, H, W] in the bundle's value range.
        recipe: the recipe.
        true_latents: float32 [N, *latent_shape], the latents of the targets; None if unknown.
        init: float32 [N, *latent_shape], where first attempts start; None uses the recipe's start.
        conditions: float32 [N, k], for bundles with a condition.
    """

    id: str
    label: str
    inverter: Inverter
    images: FloatArray
    recipe: Recipe
    true_latents: FloatArray | None = None
    init: FloatArray | None = None
    conditions: FloatArray | None = None

    @property
    def work(self) -> int:
        """An upper bound on the objective evaluations of all first attempts."""
        return len(self.images) * self.recipe.max_steps


def run_plan(
    plan: Sequence[Planned],
    runs: RunCache,
    request: Request,
) -> dict[str, Inversion]:
    """Execute, in order, every run that is not cached yet.

    Args:
        plan: the runs, with unique ids.
        runs: the cache of finished runs.
        request: gives the seed of all random draws (the same row draws the same numbers in every
            run), the receiver of messages, and whether to show progress.

    Returns:
        the inversions by run id, in the plan's order.

    Raises:
        KeyboardInterrupt: Ctrl-C; its message says how many runs are done.
    """
    done: dict[str, Inversion] = {}
    estimated = False
    for number, planned in enumerate(plan, start=1):
        request.say(f"run {number} of {len(plan)}: {planned.label}")
        start = time.perf_counter()
        try:
            done[planned.id] = runs.run(planned, seed=request.seed, progress=request.progress)
        except KeyboardInterrupt:
            count = len(done) + runs.is_done(planned.id)
            raise KeyboardInterrupt(
                f"{count} of {len(plan)} runs are done; run the same command to resume"
            ) from None
        elapsed = time.perf_counter() - start
        ahead = sum(other.work for other in plan[number:])
        if planned.id in runs.read_back:
            request.say("  done before")
        elif ahead and not estimated:
            request.say(f"  {duration(elapsed / planned.work * ahead)} remaining, at this speed")
            estimated = True
    return done
