"""Section ``ablation``: ``precise`` with one ingredient changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyinv
from pyinv.penalties import PriorPenalty
from pyinv.recipes import Recipe
from pyinv.solvers import Adam, Cosine

from .bench import Bench
from .generators import Subject
from .methods import PRECISE, precise
from .rows import result_row

__all__ = ["run"]

TARGETS = 200
EXPONENTS = (0.0, 0.125, 0.5, 1.0)  # besides 0.25, the exporter's default
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
CONSTANT_WEIGHTS = (1e-3, 1e-2)
RESTARTS = (1, 3, 10)  # besides 0, which is the first row
ADAM_STEPS = (400, 2000)

Variant = tuple[str, pyinv.Inverter, Recipe]


def run(bench: Bench, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return one row per generator and variant.

    All variants except those of restarts make one attempt, which shows an ingredient's effect
    before restarts compensate for it.
    """
    rows = []
    if PRECISE in bench.methods:
        for subject in subjects:
            latents, images = subject.targets(bench.few(TARGETS))
            for name, inverter, recipe in _variants(subject):
                found = bench.cache.run(
                    f"{subject.key}: ablation, {name}",
                    inverter,
                    images,
                    recipe,
                    true_latents=latents,
                )
                rows.append(result_row(subject, name, found, latents, images))
    return rows


def _variants(subject: Subject) -> Iterator[Variant]:
    own = subject.inverter()
    whole = precise(own.manifest)
    single = whole.replace(restarts=0)

    yield "precise, one attempt", own, single
    yield "residual of pixels", own, _of_pixels(single)
    for exponent in EXPONENTS:
        yield f"exponent {exponent:g}", subject.exponent_inverter(exponent), single
    yield "start from a draw", own, single.replace(start="prior")
    yield from _penalties(own, single)
    for steps in ADAM_STEPS:
        yield f"Adam, {steps} updates", own, _with_adam(single, steps)
    for restarts in RESTARTS:
        plural = "s" if restarts > 1 else ""
        yield f"{restarts} restart{plural}", own, whole.replace(restarts=restarts)


def _of_pixels(recipe: Recipe) -> Recipe:
    """Return the recipe for a bundle whose only loss is mse."""
    search, check = recipe.stages
    return recipe.replace(
        stages=(replace(search, loss="mse"), replace(check, loss="mse", loss_tolerance=1e-10))
    )


def _penalties(own: pyinv.Inverter, single: Recipe) -> Iterator[Variant]:
    """Yield the variants of the prior's penalty."""

    # The last stage checks whether the latent is exact, and is not changed.
    first, *rest = single.stages

    def changed(*penalties: PriorPenalty) -> Recipe:
        return single.replace(stages=(replace(first, penalties=penalties), *rest))

    here = first.penalties
    weights = [penalty.weight for penalty in here if isinstance(penalty, PriorPenalty)]
    if weights:
        yield "no penalty", own, changed()
    for weight in WEIGHTS:
        if weight not in weights:
            recipe = changed(PriorPenalty(weight, relative=True))
            yield f"penalty of weight {weight:g}", own, recipe
    for weight in CONSTANT_WEIGHTS:
        yield f"constant penalty of weight {weight:g}", own, changed(PriorPenalty(weight))
    weight = max(weights, default=1.0)
    annealed = changed(PriorPenalty(weight, anneal=True))
    yield f"annealed penalty of weight {weight:g}", own, annealed


def _with_adam(recipe: Recipe, steps: int) -> Recipe:
    """Return first-order steps on the same loss, with the same penalty and constraint."""
    # The learning rates of pyinv's recipe adam.
    solver = Adam(0.1, beta2=0.99, schedule=Cosine(final=0.1))
    stage = replace(recipe.stages[0], solver=solver, max_steps=steps, relative_change_tolerance=0.0)
    return recipe.replace(stages=(stage,))
