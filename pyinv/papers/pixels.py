"""Arrays of latents and images, and pixel errors of images that may leave their value range."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "Pixels", "absolute_error"]

FloatArray = NDArray[np.float32]
Pixels = NDArray[np.uint8]


def absolute_error(
    images: FloatArray,
    found: FloatArray,
    value_range: tuple[float, float],
) -> NDArray[np.float64]:
    """Return each image's mean absolute pixel error, in units of the value range.

    Like ``evaluation.mean_absolute_error``, but accepts images outside the range.

    Args:
        images: the targets, [N, C, H, W].
        found: the reconstructions, the same shape.
        value_range: (low, high), the values of black and white.

    Returns:
        float64 [N]; NaN for images that contain NaN.
    """
    low, high = value_range
    differences = np.abs(np.subtract(images, found, dtype=np.float64))
    errors: NDArray[np.float64] = differences.mean(axis=(1, 2, 3)) / (high - low)
    return errors
