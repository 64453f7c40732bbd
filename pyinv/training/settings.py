"""The base of training configurations: field validation and conversion to plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, SupportsFloat

from pyinv.errors import InputError
from pyinv.validation import whole_number

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

__all__ = ["Settings", "finite"]


class Settings:
    """A frozen dataclass of settings, whose ``__post_init__`` calls the checks below."""

    _later: ClassVar[frozenset[str]] = frozenset()  # fields that a description may omit

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these fields changed; raise InputError for an invalid value."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def difference(self, other: Self, *, ignore: tuple[str, ...] = ()) -> str | None:
        """Return the name of the first field that differs between two configurations, or None."""
        for name in self._names():
            if name not in ignore and getattr(self, name) != getattr(other, name):
                return name
        return None

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Self:
        """Return the configuration for the output of ``describe()``.

        Raises:
            InputError: a field is missing, unknown or has a wrong value.
        """
        cls._check_names(described)
        try:
            return cls(**cls._read(described))
        except (TypeError, ValueError) as error:
            raise InputError(f"not a configuration: {error}") from None

    @classmethod
    def _read(cls, described: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields' values for the output of ``describe()``."""
        return dict(described)

    @classmethod
    def _names(cls) -> list[str]:
        return [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def _check_names(cls, described: Mapping[str, Any]) -> None:
        """Raise InputError if a description misses a field, or has an unknown one."""
        fields = set(cls._names())
        given = set(described) if isinstance(described, Mapping) else set()
        wrong = (given ^ fields) - (fields & cls._later)
        if wrong:
            name = min(wrong)
            raise InputError(
                f"a configuration {'has no field' if name in given else 'needs the field'} {name!r}"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _count(self, name: str, at_least: int, at_most: int | None = None) -> None:
        value = getattr(self, name)
        self._set(name, whole_number(name, value, at_least=at_least, at_most=at_most))

    def _number(
        self,
        name: str,
        *,
        above: float = -math.inf,
        at_least: float = -math.inf,
        below: float = math.inf,
        at_most: float = math.inf,
    ) -> None:
        value = getattr(self, name)
        number = finite(value)
        if not (above < number < below and at_least <= number <= at_most):
            bounds = [
                f"{sign} {bound:g}"
                for sign, bound in ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
                if math.isfinite(bound)
            ]
            raise InputError(f"{name} must be a number {' and '.join(bounds)}, got {value!r}")
        self._set(name, number)


def finite(value: Any) -> float:
    """Return a number as a float, anything else as NaN."""
    if not isinstance(value, SupportsFloat) or isinstance(value, bool | str):
        return math.nan
    number = float(value)
    return number if math.isfinite(number) else math.nan
