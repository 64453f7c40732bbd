"""Argument checks of the metrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import InputError
from pyinv.images import RANGE_SLACK
from pyinv.validation import as_numpy, shape_text

FloatArray = NDArray[np.float64]


def check_values(value: Any, name: str) -> FloatArray:
    """Return [N] numbers, N >= 1, as a new float64 array."""
    array = as_numpy(value, name, "[N] numbers")
    if array.ndim != 1 or len(array) == 0:
        raise InputError(
            f"{name} must be [N] numbers with N >= 1, got [{shape_text(array.shape)}]; "
            "give one number per target"
        )
    return array.astype(np.float64)


def check_errors(value: Any, name: str) -> FloatArray:
    """Return [N] errors as float64, with infinity for NaN: a failed run has the worst error."""
    errors = check_values(value, name)
    errors[np.isnan(errors)] = math.inf
    if errors.min() < 0:
        raise InputError(f"{name} must be 0 or above, got {errors.min():g}; give distances")
    return errors


def check_same_length(one: FloatArray, other: FloatArray, names: tuple[str, str]) -> None:
    """Raise unless two arrays have one number each for the same targets."""
    if len(one) != len(other):
        raise InputError(
            f"{names[0]} and {names[1]} must have one number each for the same targets, got "
            f"{len(one)} and {len(other)}"
        )


def check_rows(value: Any, name: str, expected: str) -> NDArray[Any]:
    """Return an array [N, ...] with at least one row and one component."""
    array = as_numpy(value, name, expected)
    if array.ndim < 2 or array.size == 0:
        raise InputError(
            f"{name} must be {expected} with N >= 1, got [{shape_text(array.shape)}]; "
            "give one row per target"
        )
    return array


def check_pair(
    one: Any, other: Any, names: tuple[str, str], expected: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two arrays of the same shape [N, ...]."""
    rows, others = check_rows(one, names[0], expected), check_rows(other, names[1], expected)
    if rows.shape != others.shape:
        raise InputError(
            f"{names[0]} and {names[1]} must have the same shape, got [{shape_text(rows.shape)}] "
            f"and [{shape_text(others.shape)}]; give both for the same targets"
        )
    return rows, others


def check_inside(images: NDArray[Any], name: str, low: float, high: float) -> None:
    """Raise if a pixel is outside [low, high]; NaN passes."""
    slack = RANGE_SLACK * (high - low)
    lowest, highest = np.fmin.reduce(images, axis=None), np.fmax.reduce(images, axis=None)
    if lowest < low - slack or highest > high + slack:
        raise InputError(
            f"{name} must be in the value_range [{low:g}, {high:g}], got [{lowest:.4g}, "
            f"{highest:.4g}]; give the range that they are in"
        )


def check_number(
    value: Any,
    name: str,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """Check that a number is finite and within bounds, and return it as float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number) and number > above and at_least <= number <= at_most:
        return number
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("above", above), ("at least", at_least), ("at most", at_most))
        if math.isfinite(bound)
    ]
    expected = " ".join(["a finite number", " and ".join(bounds)]).strip()
    raise InputError(f"{name} must be {expected}, got {value!r}")
