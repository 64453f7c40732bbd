"""Constraints: what happens after each step to a component that leaves the prior.

Each resampled component gets its own draw, and the solver resets its moments unless
``Stage(reset_moments=False)`` is set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pyinv import _core
from pyinv._rule import Rule, from_description
from pyinv.errors import RuleError
from pyinv.priors import Normal, Prior, Uniform

__all__ = [
    "CONSTRAINTS",
    "Clip",
    "Constraint",
    "HardCutoff",
    "LogisticCutoff",
    "NoConstraint",
    "StochasticClip",
    "TruncatedNormalCutoff",
    "parse_constraint",
]

ConstraintT = TypeVar("ConstraintT", bound="Constraint")
_BoundsT = TypeVar("_BoundsT", bound="_Bounds")


class Constraint(Rule):
    """The base of all constraints."""

    def fit(self: ConstraintT, prior: Prior, *, max_steps: int) -> ConstraintT:
        """Return this constraint with its open settings filled in from the prior and the stage.

        Raises:
            RuleError: the constraint does not fit the prior.
        """
        return self


@dataclass(frozen=True)
class NoConstraint(Constraint):
    r"""Leave all components unchanged.

    $$
    z_i \leftarrow z_i
    $$

    Source: "no clipping" of Lipton & Tripathi 2017, "disabled" of Egan et al. 2018 (Tables 1).
    """


@dataclass(frozen=True)
class _Bounds(Constraint):
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                self._number(name)
        if self.low is not None and self.high is not None:
            self._ordered(self.low, self.high)

    def _with_bounds_of(self: _BoundsT, prior: Uniform) -> _BoundsT:
        low = prior.low if self.low is None else self.low
        high = prior.high if self.high is None else self.high
        return replace(self, low=low, high=high)


class _Cutoff(Constraint):
    """The base of the constraints that draw from a normal prior."""

    def fit(self: ConstraintT, prior: Prior, *, max_steps: int) -> ConstraintT:
        if not isinstance(prior, Normal):
            raise RuleError(
                f"{type(self).__name__} draws from a normal prior, but this one is uniform; "
                "use StochasticClip() or Clip() (in the shell, --constraint stochastic_clip)"
            )
        if getattr(self, "horizon", max_steps) is None:
            return replace(self, horizon=max_steps)  # type: ignore[type-var]
        return self


@dataclass(frozen=True)
class Clip(_Bounds):
    r"""Clip each component to the bounds.

    $$
    z_i \leftarrow \min(\max(z_i, \text{low}), \text{high})
    $$

    Args:
        low: the lower bound, finite; None uses a uniform prior's.
        high: the upper bound, finite, above ``low``; None uses a uniform prior's.

    A normal prior has no bounds, so both must be given.

    Source: "standard clipping" of Lipton & Tripathi 2017, section 2; Creswell & Bharath 2016,
    section 2.3.
    """

    def fit(self, prior: Prior, *, max_steps: int) -> Clip:
        if isinstance(prior, Uniform):
            return self._with_bounds_of(prior)
        if self.low is None or self.high is None:
            raise RuleError(
                "Clip has no bounds to take from a normal prior; give them: Clip(low=-3, high=3) "
                "(in the shell, --constraint clip:low=-3,high=3)"
            )
        return self


@dataclass(frozen=True)
class StochasticClip(_Bounds):
    r"""Resample a component at or beyond a bound, uniformly between the bounds.

    $$
    z_i \leftarrow u \sim U(\text{low}, \text{high})
    \quad\text{where } z_i \le \text{low} \text{ or } z_i \ge \text{high}
    $$

    Args:
        low: the lower bound, finite; None uses the prior's.
        high: the upper bound, finite, above ``low``; None uses the prior's.

    Needs a uniform prior.

    Source: Lipton & Tripathi 2017, section 2. Resampling at the bound itself follows the authors'
    code.
    """

    def fit(self, prior: Prior, *, max_steps: int) -> StochasticClip:
        if not isinstance(prior, Uniform):
            raise RuleError(
                "StochasticClip draws uniformly and needs a uniform prior, but this one is "
                "normal; use another constraint, such as HardCutoff(c=3) (in the shell, "
                "--constraint hard_cutoff:c=3)"
            )
        return self._with_bounds_of(prior)


@dataclass(frozen=True)
class HardCutoff(_Cutoff):
    r"""Resample a component from the normal prior if it is further than ``c`` from the mean.

    $$
    y_i = (z_i - \text{mean}) / \text{std}, \qquad
    p(y_i) = [\,|y_i| > c\,]
    $$

    Args:
        c: the cutoff in standard deviations, above 0. The paper tries 2.5, 3 and 3.5.

    Needs a normal prior.

    Source: Egan et al. 2018, section 3.2.1. The paper prints the bracket with < where the text
    and the results need >.
    """

    c: float

    def __post_init__(self) -> None:
        self._number("c", above=0.0)


@dataclass(frozen=True)
class LogisticCutoff(_Cutoff):
    r"""Resample a component from the normal prior, with a probability that grows with its distance.

    $$
    y_i = (z_i - \text{mean}) / \text{std}, \qquad
    p(y_i) = \frac{1}{1 + e^{-a (|y_i| - b)}}
    $$

    $p$ is the probability over a run of $E$ steps. In one step it is
    $1 - (1 - p)^{1/E}$.

    Args:
        a: steepness, above 0. The paper tries 2, 3 and 4.
        b: the distance at which p is one half, in standard deviations, at least 0. The paper tries
            2, 2.5 and 3.
        horizon: E, 1 to 2^32 - 1; None takes the stage's ``max_steps``.

    Needs a normal prior.

    Source: Egan et al. 2018, section 3.2.2; per step, section 3.2, before Algorithm 1.
    """

    a: float
    b: float
    horizon: int | None = None

    def __post_init__(self) -> None:
        self._number("a", above=0.0)
        self._number("b", at_least=0.0)
        if self.horizon is not None:
            self._count("horizon", at_least=1, at_most=_core.max_steps)


@dataclass(frozen=True)
class TruncatedNormalCutoff(_Cutoff):
    r"""Resample a component from the normal prior, with a probability that grows as 1 / density.

    $$
    y_i = (z_i - \text{mean}) / \text{std}, \qquad
    p(y_i) = \begin{cases} e^{(y_i^2 - a^2) / 2} & |y_i| \le a \\ 1 & |y_i| > a \end{cases}
    $$

    $p$ is the probability over a run of $E$ steps. In one step it is
    $1 - (1 - p)^{1/E}$, which is 1 beyond ``a``.

    Args:
        a: the cutoff in standard deviations, above 0. The paper tries 2.5, 2.75, 3, 3.25 and 3.5.
        horizon: E, 1 to 2^32 - 1; None takes the stage's ``max_steps``.

    Needs a normal prior.

    Source: Egan et al. 2018, section 3.2.3; per step, section 3.2, before Algorithm 1.
    """

    a: float
    horizon: int | None = None

    def __post_init__(self) -> None:
        self._number("a", above=0.0)
        if self.horizon is not None:
            self._count("horizon", at_least=1, at_most=_core.max_steps)


CONSTRAINTS: dict[str, type[Constraint]] = {
    cls.kind(): cls
    for cls in (
        NoConstraint,
        Clip,
        StochasticClip,
        HardCutoff,
        LogisticCutoff,
        TruncatedNormalCutoff,
    )
}
"""All constraints, by the names that manifests and the command line use."""


def parse_constraint(text: str) -> Constraint:
    """Parse a constraint such as ``hard_cutoff:c=3``.

    Args:
        text: a name in ``CONSTRAINTS`` or ``none``, optionally followed by a colon and settings:
            ``clip:low=-1,high=1``.

    Raises:
        RuleError: an unknown constraint or setting, or a value out of range.
    """
    kind, _, settings = text.partition(":")
    kind = kind.strip().replace("-", "_")
    cls = CONSTRAINTS.get(kind)
    needed = [] if cls is None else [f"{name}=3" for name in cls.required()]
    example = f"; an example is {kind}:{','.join(needed)}" if needed else ""
    described: dict[str, Any] = {"kind": NoConstraint.kind() if kind == "none" else kind}
    for setting in filter(None, (part.strip() for part in settings.split(","))):
        name, equals, value = setting.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise RuleError(
                f"constraint {text!r}: expected name=number after the colon, got {setting!r}"
                f"{example}"
            )
        described[name.strip()] = int(number) if number.is_integer() else number
    try:
        return from_description(described, CONSTRAINTS.values(), "constraint")
    except RuleError as error:
        raise RuleError(f"{error}{example}") from None
