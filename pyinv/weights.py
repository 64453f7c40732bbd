"""Weights of targets' pixels: masks, and pixels of different noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.bundle import Manifest
from pyinv.errors import InputError
from pyinv.validation import as_numpy, first_bad_row, shape_text

__all__ = ["check_rows_of_weights", "check_weights", "effective_values", "mean_values"]

FloatArray = NDArray[np.float32]


def check_weights(weights: Any, manifest: Manifest) -> FloatArray | None:
    """Check weights and return them in the engine's format.

    Args:
        weights: numbers or booleans that broadcast to [N, *target_shape], or None. Pictures and
            volumes need two axes or more.
        manifest: the bundle's manifest.

    Returns:
        float32 [N, values], or [1, values] if they are the same for all targets.

    Raises:
        InputError: the bundle takes none, or a wrong type or shape, a weight that is negative or
            not finite, or a target whose weights are all 0.
    """
    if weights is None:
        return None
    if not manifest.weights:
        raise InputError(
            "this bundle takes no weights, got some; leave them out, or export it again with "
            "weights=True or `pyinv export --weights`"
        )
    shape = manifest.target_shape
    expected = f"numbers >= 0 that broadcast to [N, {shape_text(shape)}]"
    array = as_numpy(weights, "weights", expected)
    if array.ndim == 1 and len(shape) > 2:
        # Broadcasting would take weights [N] for those of columns if N is the width.
        raise InputError(
            f"weights must be {expected}, got [{len(array)}]; for one number per target give "
            f"[N, {shape_text((1,) * len(shape))}], for a row of pixels [1, {len(array)}]"
        )
    rows = array[None] if array.ndim <= len(shape) else array
    try:
        full = np.broadcast_to(rows, (len(rows), *shape))
    except ValueError:
        raise InputError(
            f"weights must be {expected}, got [{shape_text(array.shape)}]; give one for each value "
            "of a target, or axes of size 1"
        ) from None
    flat = np.ascontiguousarray(full, dtype=np.float32).reshape(len(rows), manifest.target_size)
    if len(flat) == 0:
        raise InputError(f"weights must be {expected}, got no row; give one per target")
    bad = first_bad_row(flat)
    if bad >= 0:
        raise InputError(f"weights must be finite, but row {bad} is not")
    if flat.min() < 0:
        row = int(np.argmin(flat.min(axis=1)))
        raise InputError(f"weights must be {expected}, but row {row} has {flat[row].min():g}")
    totals = flat.sum(axis=1, dtype=np.float64)
    limits = np.finfo(np.float32)
    if not np.all(totals > limits.tiny):
        row = int(np.argmin(totals))
        raise InputError(
            f"weights must have a positive sum for each target, but row {row} adds up to "
            f"{totals[row]:g}; a target of which nothing is known cannot be inverted"
        )
    if not np.all(totals < limits.max):
        row = int(np.argmax(totals))
        raise InputError(
            f"weights must have a sum below {limits.max:.3g}, but row {row} adds up to "
            f"{totals[row]:.3g}; only their ratios matter, so divide them"
        )
    return flat


def check_rows_of_weights(weights: FloatArray | None, count: int) -> None:
    """Check that there is one row of weights for each of ``count`` targets, or one for all.

    Raises:
        InputError: there is not.
    """
    if weights is not None and len(weights) not in (1, count):
        raise InputError(
            f"weights must have one row per target ({count}) or one for all, got {len(weights)}"
        )


def mean_values(weights: FloatArray | None, *, known_noise: bool) -> float | None:
    """Return the mean of ``effective_values`` over targets, or None without weights."""
    if weights is None:
        return None
    return float(effective_values(weights, known_noise=known_noise).mean())


def effective_values(weights: FloatArray, *, known_noise: bool) -> NDArray[np.float64]:
    """Return how many values of weight 1 each target's weights amount to, [rows].

    With noise of variance s^2 / weight and a known s, they are the sum of the weights. The noise
    itself is estimated from as many values as have a weight above 0.
    """
    total: NDArray[np.float64]
    if known_noise:
        total = weights.sum(axis=1, dtype=np.float64)
    else:
        total = np.count_nonzero(weights, axis=1).astype(np.float64)
    return total
