"""pyinv's own recipes in the papers' tables, and the cost of each method.

Costs are counted in forward passes of the generator. An evaluation of the objective and its
gradient counts as 2. An evaluation of the normal equations counts as 1 + d: the image and its
derivatives in the latent's d directions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pyinv import recipes
from pyinv.bundle import MAX_SOLVED, Manifest
from pyinv.errors import BundleError
from pyinv.papers.report import Column
from pyinv.priors import Normal
from pyinv.recipes import Recipe
from pyinv.result import Inversion
from pyinv.solvers import LevenbergMarquardt

__all__ = [
    "ADAM",
    "COST_COLUMNS",
    "NOT_IN_PAPER",
    "OBJECTIVE_FORWARDS",
    "PRECISE",
    "cost_arrays",
    "describe_costs",
    "precise_recipe",
    "reconstruct_recipe",
    "why_not_run",
]

ADAM = "pyinv's recipe adam"
PRECISE = "pyinv's precise recipe"
NOT_IN_PAPER = "not in the paper"

OBJECTIVE_FORWARDS = 2
"""A reverse-mode gradient takes about as long as the forward pass."""

_EVALUATIONS = "evaluations per latent"
COST_COLUMNS = (
    Column("objective", "{:,.0f}", group=_EVALUATIONS),
    Column("normal equations", "{:,.1f}", group=_EVALUATIONS),
    Column("forward equivalents", "{:,.0f}"),
)


def precise_recipe(manifest: Manifest) -> Recipe | None:
    """Return the recipe for images that the generator made; None if the bundle does not support it.

    It uses its own number of steps, not the reproduction's, because it stops when it converges.
    """
    return _if_supported(recipes.precise, manifest)


def reconstruct_recipe(manifest: Manifest, *, start: str = "prior") -> Recipe | None:
    """Return the recipe for other images: one attempt from a prior sample; None if unsupported.

    With its default start, the prior's mean, every attempt would give the same result.
    """
    recipe = _if_supported(partial(recipes.reconstruct, start=start), manifest)
    return recipe and recipe.replace(restarts=0)


def _if_supported(make: Callable[[Manifest], Recipe], manifest: Manifest) -> Recipe | None:
    try:
        return make(manifest)
    except BundleError:
        return None


def why_not_run(manifest: Manifest) -> str:
    """Return the reason that a table states in place of the recipe's results, and the remedy."""
    if manifest.latent_size > MAX_SOLVED:
        return f"not run: normal equations support at most {MAX_SOLVED} latent components"
    if manifest.batch_norm != "eval":
        return (
            "not run: normal equations need independent images, but this bundle computes "
            "batch-norm statistics over the batch"
        )
    if "configuration" in manifest.origin:
        command = "run the `pyinv train gan` command that made it again to export them"
    else:
        command = f"export one that has them with `{_export_command(manifest)}`"
    return f"not run: this bundle has no normal equations; {command}"


def _export_command(manifest: Manifest) -> str:
    prior = manifest.prior
    first, second = (
        (prior.mean, prior.std) if isinstance(prior, Normal) else (prior.low, prior.high)
    )
    low, high = manifest.value_range
    return (
        "pyinv export GENERATOR -o BUNDLE "
        f"--latent-shape {','.join(map(str, manifest.latent_shape))} "
        f"--prior {prior.kind()}:{first:g},{second:g} --value-range {low:g} {high:g} "
        "--normal-equations"
    )


def describe_costs(latent_size: int) -> str:
    """Return a sentence on how costs are counted."""
    return (
        "Costs are in forward passes of one image: an evaluation of the objective and its gradient "
        f"counts as {OBJECTIVE_FORWARDS}, one of the normal equations as 1 + {latent_size}."
    )


def cost_arrays(inversion: Inversion, latent_size: int) -> dict[str, NDArray[np.int64]]:
    """Return the cost of each target over all attempts, as arrays for ``Report.add_run``.

    Args:
        inversion: the run's inversion, of N targets.
        latent_size: d, the number of latent components.

    Returns:
        int64 [N] each: "objective_evaluations", "normal_equations" and "forward_equivalents".
    """
    # T steps of a stage take T + 1 evaluations of the objective (see docs/loop.md), except that
    # Levenberg-Marquardt's first evaluation is of the normal equations.
    stages = inversion.recipe["stages"]
    first_order = sum(stage["solver"]["kind"] != LevenbergMarquardt.kind() for stage in stages)
    objective = inversion.steps + first_order * inversion.attempts.astype(np.int64)
    equations = inversion.normal_equations
    return {
        "objective_evaluations": objective,
        "normal_equations": equations,
        "forward_equivalents": OBJECTIVE_FORWARDS * objective + (1 + latent_size) * equations,
    }
