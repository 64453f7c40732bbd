"""Priors: the distribution from which each component of a latent is drawn independently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyinv._rule import Rule, from_description

__all__ = ["PRIORS", "Normal", "Prior", "Uniform", "prior_from_description"]


@dataclass(frozen=True)
class Uniform(Rule):
    r"""Uniform distribution on an interval, per component.

    $$
    z_i \sim U(\text{low}, \text{high})
    $$

    Args:
        low: the lower bound, finite.
        high: the upper bound, finite, above ``low``.

    Source: the prior of DCGAN, U(-1, 1); Lipton & Tripathi 2017, section 2.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        self._number("low")
        self._number("high")
        self._ordered(self.low, self.high)

    @property
    def mean(self) -> float:
        """The mean of a component, (low + high) / 2."""
        return (self.low + self.high) / 2

    @property
    def std(self) -> float:
        """The standard deviation of a component, (high - low) / sqrt(12)."""
        return (self.high - self.low) / math.sqrt(12)

    def __str__(self) -> str:
        return f"uniform on [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Normal(Rule):
    r"""Normal distribution, per component.

    $$
    z_i \sim N(\text{mean}, \text{std}^2)
    $$

    Args:
        mean: the mean, finite.
        std: the standard deviation, finite, above 0.

    Source: Egan et al. 2018, section 1.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        self._number("mean")
        self._number("std", above=0.0)

    def __str__(self) -> str:
        return f"normal with mean {self.mean:g} and standard deviation {self.std:g}"


Prior = Uniform | Normal
PRIORS = "an object such as pyinv.Normal() or pyinv.Uniform(-1, 1)"
"""What a prior must be, for errors."""
_PRIORS: tuple[type[Uniform] | type[Normal], ...] = (Uniform, Normal)


def prior_from_description(described: Mapping[str, Any]) -> Prior:
    """Return the prior for the output of ``describe()``; raise RuleError if it is not a prior."""
    return from_description(described, _PRIORS, "prior")
