"""Validation of arguments: arrays (NumPy, PyTorch, DLPack), without copies, and numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import InputError

__all__ = ["as_numpy", "check_rows", "first_bad_row", "noise_level", "shape_text", "whole_number"]

_DLPACK_CPU = 1  # kDLCPU in dlpack.h
# Far beyond any image; its square still fits in float32.
_MOST_NOISE = 1e6


def as_numpy(value: Any, name: str, expected: str) -> NDArray[Any]:
    """Return ``value`` as a NumPy array, sharing its memory if possible.

    Args:
        value: a NumPy array, nested sequences of numbers, or anything with ``__dlpack__``.
        name: the argument's name, for errors.
        expected: the expected type and shape, for errors.

    Raises:
        InputError: not a numeric array, or an array on another device.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(
            f"{name} must be {expected}, got a masked array, whose mask would be ignored; fill it, "
            "and give the mask as weights= (0 for what is masked) to a bundle exported with "
            "weights=True"
        )
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__dlpack__"):
        array = _from_dlpack(value, name, expected)
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):
            array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        got = type(value).__name__ if not hasattr(value, "dtype") else value.dtype
        raise InputError(f"{name} must be {expected}, got {got}; give an array of numbers")
    return array


def check_rows(
    value: Any, name: str, shape: tuple[int, ...], rows: int | None, *, finite: bool = True
) -> NDArray[Any]:
    """Return ``value`` as C-contiguous float32 [N, size], without a copy if possible.

    Args:
        value: [N, *shape], or [N, size] with size the product of ``shape``.
        name: the argument's name, for errors.
        shape: the shape of one row.
        rows: the required N; None for any N >= 1.
        finite: whether to reject NaN and infinity.

    Raises:
        InputError: wrong shape, type or N, or not finite.
    """
    count = "N" if rows is None else str(rows)
    expected = f"float32 [{count}, {shape_text(shape)}]"
    array = as_numpy(value, name, expected)
    size = int(np.prod(shape))
    if array.ndim == 0 or array.shape[1:] not in (shape, (size,)):
        remedy = "add a batch axis in front" if array.shape in (shape, (size,)) else "reshape it"
        raise InputError(f"{name} must be {expected}, got [{shape_text(array.shape)}]; {remedy}")
    if len(array) == 0 or (rows is not None and len(array) != rows):
        remedy = "at least one row" if rows is None else "one row per target"
        raise InputError(f"{name} must be {expected}, got {len(array)} rows; give {remedy}")
    flat = np.ascontiguousarray(array, dtype=np.float32).reshape(len(array), size)
    if finite and not (np.isfinite(flat.min()) and np.isfinite(flat.max())):
        raise InputError(f"{name} must be finite, but row {first_bad_row(flat)} is not")
    return flat


def first_bad_row(array: NDArray[Any]) -> int:
    """Return the index of the first row with a NaN or an infinity; -1 if there is none."""
    return next((row for row in range(len(array)) if not np.isfinite(array[row]).all()), -1)


def shape_text(shape: Iterable[int]) -> str:
    """Return a shape as text, without brackets."""
    return ", ".join(str(size) for size in shape)


def noise_level(value: Any) -> float | None:
    """Return the argument ``noise`` as a float or None, or raise InputError."""
    if value is None:
        return None
    number = math.nan
    if not isinstance(value, bool | str) and np.ndim(value) == 0:
        with suppress(TypeError, ValueError, OverflowError):
            number = float(value)
    if not 0 < number <= _MOST_NOISE:
        raise InputError(
            f"noise must be a number > 0 and <= {_MOST_NOISE:g}, the standard deviation of the "
            "noise on a pixel in the bundle's value range, the same for all images, or None, got "
            f"{value!r}"
        )
    return number


def whole_number(
    name: str, value: Any, *, at_least: int, at_most: int | None = None, or_else: str = ""
) -> int:
    """Return an argument as an int within its range, or raise InputError.

    Args:
        name: the argument's name, for errors.
        value: anything.
        at_least, at_most: the range.
        or_else: alternative values, for errors.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = at_least - 1
    if isinstance(value, bool) or number < at_least or (at_most is not None and number > at_most):
        upper = "" if at_most is None else f" and <= {at_most}"
        choice = f" or {or_else}" if or_else else ""
        raise InputError(
            f"{name} must be a whole number >= {at_least}{upper}{choice}, got {value!r}"
        )
    return number


def _from_dlpack(value: Any, name: str, expected: str) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach()  # a tensor that requires a gradient cannot be shared
    for resolve in ("resolve_conj", "resolve_neg"):
        if hasattr(value, resolve):  # PyTorch's views share memory with what they negate
            value = getattr(value, resolve)()
    if int(value.__dlpack_device__()[0]) != _DLPACK_CPU:
        raise InputError(
            f"{name} must be {expected} in this machine's memory, got an array on another device; "
            "copy it first, with .cpu() in PyTorch"
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        got = getattr(value, "dtype", type(value).__name__)
        raise InputError(
            f"{name} must be {expected}, got {got}, which cannot be shared "
            f"({' '.join(str(error).split())}); convert it, with .float() in PyTorch"
        ) from None
