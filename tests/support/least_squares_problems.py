"""Least-squares problems and rules that the tests of both solvers share."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyinv.constraints import (
    Clip,
    HardCutoff,
    LogisticCutoff,
    NoConstraint,
    StochasticClip,
    TruncatedNormalCutoff,
)
from pyinv.penalties import PriorPenalty
from pyinv.priors import Normal, Uniform
from support.objectives import LeastSquares


def matrix(rows: int, columns: int, *, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, columns)) / np.sqrt(rows)


def net(
    size: int, *, pixels: int = 24, hidden: int = 16, seed: int = 0, **options: Any
) -> LeastSquares:
    """tanh of a two-layer network; latents of size 1 cover the tanh's slope."""
    return LeastSquares(matrix(size, hidden, seed=seed), matrix(hidden, pixels), **options)


LINEAR = LeastSquares(matrix(5, 24), squash=False)
NET, OTHER = net(5), net(5, seed=1)


def images_of(
    objective: Any,
    count: int,
    *,
    reach: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
    condition: Any = None,
) -> Any:
    """Images of latents within ``reach``, moved out of the generator's range by ``noise``."""
    random = np.random.default_rng(seed)
    latents = random.uniform(-reach, reach, (count, objective.size)).astype(np.float32)
    images = objective.generate(latents, condition)
    return images + noise * random.standard_normal(images.shape).astype(np.float32)


# Priors, constraints and penalties.
RULES = {
    "clip": (Uniform(), Clip(), ()),
    "clip, prior aside": (Uniform(-0.5, 1.5), Clip(), ()),
    "stochastic clip": (Uniform(), StochasticClip(), ()),
    "no constraint": (Uniform(), NoConstraint(), ()),
    "normal": (Normal(), NoConstraint(), ()),
    "penalty": (Normal(), NoConstraint(), (PriorPenalty(0.2),)),
    "penalty, annealed": (Normal(0.3, 0.7), NoConstraint(), (PriorPenalty(0.2, anneal=True),)),
    "penalty, relative": (Normal(), NoConstraint(), (PriorPenalty(2.0, relative=True),)),
    "penalty, both": (
        Normal(0.3, 0.7),
        NoConstraint(),
        (PriorPenalty(2.0, anneal=True, relative=True),),
    ),
    "hard cutoff": (Normal(), HardCutoff(1.2), ()),
    "logistic cutoff": (Normal(), LogisticCutoff(3.0, 1.0, horizon=5), (PriorPenalty(0.2),)),
    "truncated normal cutoff": (Normal(0.3, 0.7), TruncatedNormalCutoff(1.5), ()),
}
RESAMPLING = (StochasticClip, HardCutoff, LogisticCutoff, TruncatedNormalCutoff)
