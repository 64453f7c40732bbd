"""pyinv's own recipes for exact recovery in a paper's tables, and what each method costs.

Costs are counted in forward passes of the generator: an evaluation of the objective, with its
gradient, as 2, and one of the normal equations as 1 + d, the image and its derivative in each of
the latent's d directions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pyinv import recipes
from pyinv.bundle import MAX_SOLVED, Manifest
from pyinv.errors import BundleError
from pyinv.papers.report import Cell, Column, Report, ref
from pyinv.priors import Normal
from pyinv.recipes import Recipe
from pyinv.result import Inversion
from pyinv.solvers import LevenbergMarquardt

__all__ = [
    "COST_COLUMNS",
    "NOT_THEIRS",
    "PRECISE",
    "cost_arrays",
    "cost_cells",
    "describe_costs",
    "precise_recipe",
    "reconstruct_recipe",
    "tell_precise",
    "why_not_run",
]

PRECISE = "pyinv's precise recipe"
NOT_THEIRS = "not in the paper"

OBJECTIVE_FORWARDS = 2
"""A gradient by reverse differentiation takes about as long again as the image."""

_EVALUATIONS = "evaluations a latent"
COST_COLUMNS = (
    Column("objective", "{:,.0f}", group=_EVALUATIONS),
    Column("normal equations", "{:,.1f}", group=_EVALUATIONS),
    Column("forward equivalents", "{:,.0f}"),
)


def precise_recipe(manifest: Manifest) -> Recipe | None:
    """Return the recipe for images that the generator made; None: the bundle lacks what it needs.

    Its number of steps is its own and not the reproduction's: it ends when it has arrived.
    """
    return _unless_lacking(recipes.precise, manifest)


def reconstruct_recipe(manifest: Manifest, *, start: str = "prior") -> Recipe | None:
    """Return the recipe for other images, one attempt from a draw of the prior; None: as above.

    The recipe itself starts at the prior's mean, always the same, and would have one result.
    """
    recipe = _unless_lacking(partial(recipes.reconstruct, start=start), manifest)
    return recipe and recipe.replace(restarts=0)


def _unless_lacking(make: Callable[[Manifest], Recipe], manifest: Manifest) -> Recipe | None:
    try:
        return make(manifest)
    except BundleError:
        return None


def why_not_run(manifest: Manifest) -> str:
    """Return what a table says in the recipe's place, and the command that mends it."""
    if manifest.latent_size > MAX_SOLVED:
        return f"not run: normal equations are for latents of at most {MAX_SOLVED} components"
    if manifest.batch_norm != "eval":
        return (
            "not run: normal equations are of each image alone, and this bundle takes batch-norm "
            "statistics over the batch"
        )
    if "configuration" in manifest.origin:
        command = "the `pyinv train gan` command that made it, given once more, exports it anew"
    else:
        command = f"`{_export_command(manifest)}` writes one that has them"
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


def tell_precise(
    report: Report, run_id: str, recipe: Recipe, *, threshold: float
) -> tuple[str, dict[str, Cell]]:
    """Return a paragraph on what the recipe found, where it comes from and what it assumes.

    Args:
        report: it has the run, with ``cost_arrays`` and "latent_error" among its arrays.
        run_id: the run's.
        recipe: the run's.
        threshold: a latent of a smaller error at the end is recovered.

    Returns:
        (the paragraph, the cells of its placeholders), for ``Report.add_text``.
    """
    pixels = (
        "the pixels as they are before the generator's last activation"
        if recipe.stages[-1].loss == "whitened"
        else "the pixels"
    )
    steps = (
        f"Levenberg-Marquardt steps (Levenberg 1944, Marquardt 1963) on {pixels}, with the exact "
        "Jacobian"
        if recipe.needs_normal_equations
        else f"L-BFGS steps (Liu & Nocedal 1989) on {pixels}"
    )
    paragraph = (
        f"{PRECISE}, which is not in the paper: {{precise:.1%}} of the latents have an error below "
        f"{threshold:g} at its end, at {{cost:,.0f}} forward equivalents a latent. It makes "
        f"{steps}, from the prior's mean; a latent whose loss stays above "
        f"{recipe.stages[-1].loss_tolerance:g} is tried again from a random one, at most "
        f"{recipe.restarts} times. It assumes that this very generator made the image, to "
        "rounding: noise, compression or an image from elsewhere is not what it is for."
    )
    return paragraph, {
        "precise": report.compute(
            "recovery_rate", errors=ref(run_id, "latent_error"), threshold=threshold
        ),
        "cost": report.compute("mean", values=ref(run_id, "forward_equivalents")),
    }


def describe_costs(latent_size: int) -> str:
    """Return the sentence that says how costs are counted."""
    return (
        "A forward pass makes one image; an evaluation of the objective with its gradient counts "
        f"as {OBJECTIVE_FORWARDS}, one of the normal equations as 1 + {latent_size}."
    )


def cost_arrays(inversion: Inversion, latent_size: int) -> dict[str, NDArray[np.int64]]:
    """Return what each target of a run took, over all attempts, as arrays for ``Report.add_run``.

    Args:
        inversion: the run's, of N targets.
        latent_size: d.

    Returns:
        int64 [N] each: "objective_evaluations", "normal_equations" and "forward_equivalents".
    """
    # T steps of a stage take T + 1 evaluations of the objective, see docs/loop.md. Levenberg-
    # Marquardt's first evaluation is one of the normal equations.
    stages = inversion.recipe["stages"]
    first_order = sum(stage["solver"]["kind"] != LevenbergMarquardt.kind() for stage in stages)
    objective = inversion.steps + first_order * inversion.attempts.astype(np.int64)
    equations = inversion.normal_equations
    return {
        "objective_evaluations": objective,
        "normal_equations": equations,
        "forward_equivalents": OBJECTIVE_FORWARDS * objective + (1 + latent_size) * equations,
    }


def cost_cells(
    report: Report, run_id: str, recipe: Recipe, *, published_steps: int | None = None
) -> list[Cell | None]:
    """Return the means of a run's costs, in the order of ``COST_COLUMNS``.

    Args:
        report: it has the run, with ``cost_arrays`` among its arrays.
        run_id: the run's.
        recipe: the run's.
        published_steps: how many steps of a first-order method the paper made.
    """

    def mean(name: str, published: float | None = None) -> Cell:
        return report.compute("mean", values=ref(run_id, name), published=published)

    theirs = published_steps
    second_order = recipe.needs_normal_equations
    return [
        mean("objective_evaluations", theirs),
        mean("normal_equations") if second_order else None,
        mean("forward_equivalents", None if theirs is None else OBJECTIVE_FORWARDS * theirs),
    ]
