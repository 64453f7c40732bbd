"""How far images are from others, of generators that may leave their value range."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["absolute_error"]


def absolute_error(
    images: NDArray[np.float32],
    found: NDArray[np.float32],
    value_range: tuple[float, float],
) -> NDArray[np.float64]:
    """Return each image's mean absolute pixel error, in units of the value range.

    The same as ``evaluation.mean_absolute_error``, of images that need not lie in the range.

    Args:
        images: the targets, [N, C, H, W].
        found: the same shape.
        value_range: (low, high), what black and white are.

    Returns:
        float64 [N]; NaN where an image has one.
    """
    low, high = value_range
    differences = np.abs(np.subtract(images, found, dtype=np.float64))
    errors: NDArray[np.float64] = differences.mean(axis=(1, 2, 3)) / (high - low)
    return errors
