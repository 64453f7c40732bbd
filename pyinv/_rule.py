"""The base of all rules: field validation and conversion to plain data."""

from __future__ import annotations

import ctypes
import math
import operator
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

from pyinv.errors import RuleError

RuleT = TypeVar("RuleT", bound="Rule")


class Rule:
    """A frozen dataclass with a struct of the same name in the engine.

    The engine checks the same ranges again when it reads the JSON; csrc/rules.cpp explains why.
    """

    @classmethod
    def kind(cls) -> str:
        """Return the rule's name in manifests, in the engine and on the command line."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def required(cls) -> list[str]:
        """Return the names of the fields without a default."""
        return [field.name for field in fields(cls) if field.default is MISSING]  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        """Return the rule as JSON values, ``{"kind": ..., field: value, ...}``."""
        described: dict[str, Any] = {"kind": self.kind()}
        for field in fields(self):  # type: ignore[arg-type]
            described[field.name] = _plain(getattr(self, field.name))
        return described

    def _number(
        self,
        name: str,
        *,
        above: float | None = None,
        at_least: float | None = None,
        below: float | None = None,
        at_most: float | None = None,
        single: bool = True,
    ) -> None:
        """Convert the field to a finite Python float within its range, or raise.

        With ``single``, the value must also be finite and in range after rounding to float32, in
        which the engine computes.
        """
        value = getattr(self, name)
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
            if bound is not None
        ]
        expected = " and ".join(["a finite number", *bounds])
        number = math.nan
        if isinstance(value, SupportsFloat) and not isinstance(value, (bool, str)):
            with suppress(TypeError, ValueError, OverflowError):  # an array, or 400 digits
                number = float(value)

        def ok(number: float) -> bool:
            return (
                math.isfinite(number)
                and (above is None or number > above)
                and (at_least is None or number >= at_least)
                and (below is None or number < below)
                and (at_most is None or number <= at_most)
            )

        if not ok(number) or (single and not ok(float32(number))):
            expected += " in float32" if ok(number) else ""
            raise RuleError(f"{type(self).__name__}: {name} must be {expected}, got {value!r}")
        object.__setattr__(self, name, number)

    def _count(self, name: str, *, at_least: int, at_most: int | None = None) -> None:
        """Convert the field to a Python int within its range, or raise."""
        value = getattr(self, name)
        upper = "" if at_most is None else f" and <= {at_most}"
        expected = f"a whole number >= {at_least}{upper}"
        if isinstance(value, SupportsIndex) and not isinstance(value, bool):
            count = at_least - 1
            with suppress(TypeError):  # an array
                count = operator.index(value)
            if count >= at_least and (at_most is None or count <= at_most):
                object.__setattr__(self, name, count)
                return
        raise RuleError(f"{type(self).__name__}: {name} must be {expected}, got {value!r}")

    def _ordered(self, low: float, high: float) -> None:
        """Raise if the bounds are not in order, also in float32."""
        if float32(low) >= float32(high):
            where = " in float32" if low < high else ""
            raise RuleError(
                f"{type(self).__name__}: low must be below high{where}, got {low:g} and {high:g}"
            )

    def _choice(self, name: str, choices: Iterable[str]) -> None:
        value = getattr(self, name)
        names = list(choices)
        if not isinstance(value, str) or value not in names:
            raise RuleError(
                f"{type(self).__name__}: {name} must be one of {', '.join(names)}; got {value!r}"
            )

    def _flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool):
            raise RuleError(f"{type(self).__name__}: {name} must be True or False, got {value!r}")

    def _instance(self, name: str, types: tuple[type[Rule], ...]) -> None:
        value = getattr(self, name)
        if not isinstance(value, types):
            names = ", ".join(f"{cls.__name__}(...)" for cls in types)
            raise RuleError(f"{type(self).__name__}: {name} must be one of {names}; got {value!r}")


def float32(number: float) -> float:
    """Return the nearest float32, or an infinity, as the engine sees the number."""
    return ctypes.c_float(number).value


def from_description(
    described: Mapping[str, Any], classes: Iterable[type[RuleT]], what: str
) -> RuleT:
    """Return the rule for the output of ``describe()``; ``what`` names the concept in errors."""
    by_kind = {cls.kind(): cls for cls in classes}
    if not isinstance(described, Mapping) or described.get("kind") not in by_kind:
        kind = described.get("kind") if isinstance(described, Mapping) else described
        raise RuleError(f"unknown {what} {kind!r}; there are {', '.join(by_kind)}")
    cls = by_kind[described["kind"]]
    arguments = {name: value for name, value in described.items() if name != "kind"}
    declared = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for name in arguments:
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise RuleError(f"{what} {cls.kind()} has no setting {name!r}; it has {known}")
    for name in cls.required():
        if name not in arguments:
            raise RuleError(f"{what} {cls.kind()} needs a value for {name!r}")
    return cls(**arguments)


def _plain(value: Any) -> Any:
    if isinstance(value, Rule):
        return value.describe()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
