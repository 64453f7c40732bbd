"""A row of results: a recipe's recovery on a generator and its cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import Status, evaluation
from pyinv.recipes import Recipe
from pyinv.solvers import LevenbergMarquardt

from .generators import Subject
from .run_cache import Found

__all__ = ["forward_equivalents", "result_row", "spread"]

THRESHOLDS = ("1e-4", "1e-8")
"""Mean squared latent errors below which a latent is recovered, as written in the report."""

# Mean squared image error in [-1, 1] below which two images count as the same: a root mean square
# of an eighth of a gray level. If a latent makes the target's image, the method did not fail.
SAME_IMAGE = (2 / 255 / 8) ** 2
SHOWN_FAILURES = 10

# Lipton & Tripathi's Table 1 is after 100,000 steps.
LIPTON_STEPS = 100_000


def result_row(
    subject: Subject, recipe: str, found: Found, truth: NDArray[Any], images: NDArray[Any]
) -> dict[str, Any]:
    """Return a recipe's results, as JSON values.

    Args:
        subject: the generator.
        recipe: the row's name.
        found: the results of the run.
        truth: the latents that made the images, [N, d].
        images: the targets.
    """
    error = evaluation.latent_error(truth, found.latents)
    recovered = error < float(THRESHOLDS[0])
    cost = forward_equivalents(found)
    equivalents = _median(cost[recovered])
    row: dict[str, Any] = {
        "generator": subject.key,
        "recipe": recipe,
        "targets": len(found),
        "recovered": _shares(error),
        "seconds_per_image": found.seconds / recovered.sum() if recovered.any() else None,
        "forward_equivalents": equivalents,
        "seconds": found.seconds,
        "updates": _median(found.steps[recovered]),
        "normal_equations": _median(found.normal_equations[recovered]),
        "attempts": {"mean": float(found.attempts.mean()), "most": int(found.attempts.max())},
        "status": {
            one.name.lower(): int((found.status == one).sum())
            for one in Status
            if (found.status == one).any()
        },
        "latent_error": spread(error),
        "loss": spread(found.loss),
    }
    if found.min_latent_error is not None:
        # The criterion of the papers' code: close enough at any step.
        row["recovered_at_any_update"] = _shares(found.min_latent_error)
    if equivalents:
        row["cheaper_than_100000_steps"] = {
            "a step is 2 forwards": 2 * LIPTON_STEPS / equivalents,
            "a step is 1 forward": LIPTON_STEPS / equivalents,
        }
    row["failures"] = _failures(subject, found, error, images)
    return row


def forward_equivalents(found: Found) -> NDArray[np.float64]:
    """Return the cost of each target in forward passes, [N].

    An evaluation of the objective counts 2: forward, and backward to the latent, which takes as
    many multiply-adds. An evaluation of the normal equations counts 1 + d: forward, and a tangent
    per direction. A first-order stage evaluates the objective once more than it makes steps; a
    Levenberg-Marquardt stage once per step.
    """
    size = found.latents.shape[1]
    objectives = found.steps + found.attempts * _first_order_stages(found.recipe)
    cost: NDArray[np.float64] = 2.0 * objectives + (1.0 + size) * found.normal_equations
    return cost


def spread(values: NDArray[Any]) -> dict[str, float | None]:
    """Return the mean, median and maximum of numbers; None for values that are not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return {"mean": None, "median": None, "greatest": None}
    figures = {
        "mean": float(numbers.mean()),
        "median": float(np.median(numbers)),
        "greatest": float(numbers.max()),
    }
    return {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}


def _first_order_stages(recipe: Recipe) -> int:
    return sum(not isinstance(stage.solver, LevenbergMarquardt) for stage in recipe.stages)


def _shares(error: NDArray[Any]) -> dict[str, float]:
    return {text: evaluation.recovery_rate(error, float(text)) for text in THRESHOLDS}


def _median(values: NDArray[Any]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _failures(
    subject: Subject, found: Found, error: NDArray[Any], images: NDArray[Any]
) -> dict[str, Any]:
    """Return the latent and image errors of the targets that were not recovered."""
    failed = np.flatnonzero(~(error < float(THRESHOLDS[0])))
    if not len(failed):
        return {"count": 0, "same_image": 0, "shown": []}
    difference = subject.inverter().generate(found.latents[failed]) - images[failed]
    image_error = np.square(difference.astype(np.float64)).mean(axis=(1, 2, 3))
    shown = [
        {
            "target": int(target),
            "latent_error": float(error[target]),
            "image_error": float(wrong),
            "loss": float(found.loss[target]),
            "status": Status(int(found.status[target])).name.lower(),
            "attempts": int(found.attempts[target]),
        }
        for target, wrong in zip(failed, image_error, strict=True)
    ]
    return {
        "count": len(failed),
        # The generator is not injective there, and the method found a latent of the same image.
        "same_image": int((image_error < SAME_IMAGE).sum()),
        "shown": shown[:SHOWN_FAILURES],
    }
