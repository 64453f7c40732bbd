"""Conditions: what a generator takes beside the latent, given for each target.

In the engine, the conditions of a target are one row of float32 numbers: each has its columns, in
the manifest's order. An integer label takes one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv._rule import Rule, from_description
from pyinv.errors import InputError, RuleError
from pyinv.validation import as_numpy, check_rows, shape_text

__all__ = [
    "Condition",
    "Input",
    "Label",
    "OneHot",
    "condition_rows",
    "input_from_description",
]

_MOST_CLASSES = 2**24  # whole numbers up to here are exact in float32


@dataclass(frozen=True)
class Label(Rule):
    """A class label: the generator gets integers [B], int64, as ``nn.Embedding`` takes them.

    Args:
        classes: the number of classes, at least 1. Labels are 0 to classes - 1.
    """

    classes: int

    def __post_init__(self) -> None:
        self._count("classes", at_least=1, at_most=_MOST_CLASSES)

    @property
    def columns(self) -> int:
        """The number of floats that hold one target's label, 1."""
        return 1

    def rows(self, given: Any, name: str, count: int) -> NDArray[np.float32]:
        """Return labels, [count] or one for all, as float32 [count, 1], or raise InputError."""
        allowed = f"whole numbers from 0 to {self.classes - 1}"
        expected = f"{allowed}, one for each target [{count}] or one for all"
        labels = as_numpy(given, name, expected)
        if labels.ndim == 0:
            labels = np.broadcast_to(labels, (count,))
        labels = self._labels(labels, name)
        if labels.dtype.kind == "b":
            raise InputError(f"{name} must be {allowed}, got booleans; convert them to integers")
        if labels.shape not in ((count,), (count, 1)):
            raise InputError(f"{name} must be {expected}, got [{shape_text(labels.shape)}]")
        flat = labels.reshape(-1)
        wrong = np.flatnonzero(~((flat >= 0) & (flat < self.classes) & (flat == np.floor(flat))))
        if len(wrong):
            raise InputError(
                f"{name} must be {allowed}, got {flat[wrong[0]]} for target {wrong[0]}"
            )
        return np.ascontiguousarray(flat, dtype=np.float32)[:, None]

    def _labels(self, given: NDArray[Any], name: str) -> NDArray[Any]:
        return given

    def __str__(self) -> str:
        return f"label, {self.classes} classes"


@dataclass(frozen=True)
class OneHot(Label):
    """A class label: the generator gets one-hot vectors [B, classes], float32.

    Targets are given integer labels [N], or one-hot vectors [N, classes]. An array with one axis
    has labels. For mixtures of classes use ``Condition(classes)``.

    Args:
        classes: the number of classes, at least 1. Labels are 0 to classes - 1.
    """

    def _labels(self, given: NDArray[Any], name: str) -> NDArray[Any]:
        """Return one-hot vectors [N, classes] as labels [N]; anything else as it is."""
        if given.ndim != 2 or given.shape[1] != self.classes or self.classes == 1:
            return given
        if not np.all((given != 0).sum(1) == 1) or not np.all(given.max(1) == 1):
            raise InputError(
                f"{name} must be labels or one-hot vectors, each a single 1 and zeros; for others "
                f"export the generator with Condition({self.classes})"
            )
        labels: NDArray[Any] = given.argmax(1)
        return labels

    def __str__(self) -> str:
        return f"one-hot label, {self.classes} classes"


@dataclass(frozen=True)
class Condition(Rule):
    """Floats, such as a truncation or a text embedding: the generator gets float32 [B, *shape].

    Args:
        shape: the shape for one target: 10, (4, 8), or () for one number each, [B].
        low: the lowest typical value, finite. The exported functions are checked with values
            between low and high; others are accepted.
        high: the highest typical value.
    """

    shape: int | tuple[int, ...]
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        self._number("low")
        self._number("high")
        self._ordered(self.low, self.high)
        try:
            given = (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)
            sizes = tuple(operator.index(size) for size in given)
        except TypeError:
            sizes = (0,)
        if any(size < 1 for size in sizes) or math.prod(sizes) >= 2**31:
            raise RuleError(
                f"Condition: shape must be a number or a tuple of numbers >= 1, got {self.shape!r}"
            )
        object.__setattr__(self, "shape", sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape as a tuple."""
        assert isinstance(self.shape, tuple)
        return self.shape

    @property
    def columns(self) -> int:
        """The number of floats of one target, the product of ``shape``."""
        return math.prod(self.sizes)

    def rows(self, given: Any, name: str, count: int) -> NDArray[np.float32]:
        """Return values [count, *shape] as float32 [count, columns], or raise InputError.

        A single number is used for all targets, if each takes one number.
        """
        sizes = self.sizes or (1,)
        array = as_numpy(given, name, f"float32 [{count}, {shape_text(sizes)}]")
        if self.columns == 1 and array.ndim < 2:
            whole = array if array.ndim else np.broadcast_to(array, (count,))
            array = whole.reshape(-1, *sizes)
        return check_rows(array, name, sizes, count)

    def __str__(self) -> str:
        return f"float32 [{', '.join(('B', *map(str, self.sizes)))}]"


Input = Condition | Label | OneHot
_INPUTS: tuple[type[Condition] | type[Label], ...] = (Condition, Label, OneHot)


def input_from_description(described: Mapping[str, Any]) -> Input:
    """Return the condition for the output of ``describe()``; raise RuleError if it is none."""
    return from_description(described, _INPUTS, "condition")


def condition_rows(
    conditions: Mapping[str, Input], given: Any, count: int
) -> NDArray[np.float32] | None:
    """Return the conditions of targets as the engine takes them, or raise InputError.

    Args:
        conditions: those of the bundle, by name.
        given: values by name; or the values, if there is one condition; or None.
        count: the number of targets.

    Returns:
        float32 [count, sum of columns]; None if the bundle has no conditions.
    """
    if not conditions:
        if given is not None:
            raise InputError("this bundle takes no conditions, got some; leave them out")
        return None
    listed = ", ".join(f"{name} ({condition})" for name, condition in conditions.items())
    if given is None:
        raise InputError(f"this bundle needs conditions, got none; give {listed}")
    if not isinstance(given, Mapping):
        if len(conditions) > 1:
            raise InputError(f"conditions must be a dictionary with {listed}")
        given = {next(iter(conditions)): given}
    for name in given:
        if name not in conditions:
            raise InputError(f"this bundle has no condition {name!r}; it has {listed}")
    for name in conditions:
        if name not in given:
            raise InputError(f"conditions must have all that the bundle takes: {name!r} is missing")
    return np.concatenate(
        [
            condition.rows(given[name], f"condition {name!r}", count)
            for name, condition in conditions.items()
        ],
        axis=1,
    )
