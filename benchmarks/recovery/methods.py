"""The methods that are compared: pyinv's recipes and the papers' first-order methods."""

from __future__ import annotations

from pyinv import recipes
from pyinv.bundle import Manifest
from pyinv.constraints import LogisticCutoff, NoConstraint
from pyinv.papers.lipton import clipping_recipe
from pyinv.priors import Uniform
from pyinv.recipes import Recipe

__all__ = ["FIRST_ORDER_STEPS", "METHODS", "PRECISE", "RECONSTRUCT", "first_order", "precise"]

FIRST_ORDER_STEPS = 2000

PRECISE = "precise"
RECONSTRUCT = "reconstruct"
METHODS = (
    PRECISE,
    RECONSTRUCT,
    "adam",
    "lipton-none",
    "lipton-standard",
    "lipton-stochastic",
    "egan-disabled",
    "egan-logistic-4-2",
    "egan-logistic-2-2",
)
"""The choices of ``--recipe``."""


def precise(manifest: Manifest) -> Recipe:
    """Return the recipe that is compared with the others."""
    return recipes.precise(manifest)


def first_order(manifest: Manifest, steps: int) -> dict[str, Recipe]:
    """Return the papers' methods for a generator, each limited to ``steps``, and pyinv's own.

    For a uniform prior these are Lipton & Tripathi's three methods. For a normal prior they are the
    method without clipping and, of Egan et al.'s criteria, the baseline, logistic(4, 2) and
    logistic(2, 2), whose error is the lowest in their Table 1. Learning rates are those of ``pyinv
    reproduce``.
    """
    if isinstance(manifest.prior, Uniform):
        papers = {
            f"lipton-{clipping}": clipping_recipe(manifest, clipping, steps)
            for clipping in ("none", "standard", "stochastic")
        }
    else:
        criteria = {
            "disabled": NoConstraint(),
            "logistic-4-2": LogisticCutoff(4.0, 2.0),
            "logistic-2-2": LogisticCutoff(2.0, 2.0),
        }
        papers = {
            "lipton-none": clipping_recipe(manifest, "none", steps),
            **{
                f"egan-{name}": recipes.egan(manifest, criterion).replace(max_steps=steps)
                for name, criterion in criteria.items()
            },
        }
    return {**papers, "adam": recipes.adam(manifest).replace(max_steps=steps)}
