"""Pixel errors of reconstructions."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyinv.evaluation._checks import FloatArray, check_inside, check_pair
from pyinv.images import check_value_range


def mean_absolute_error(
    images: Any, reconstructions: Any, *, value_range: tuple[float, float] = (0.0, 1.0)
) -> FloatArray:
    r"""Return each image's mean absolute error, for pixels scaled to [0, 1].

    $$
    e_n = \frac{1}{C H W\,(\text{high} - \text{low})}
    \sum_{c, h, w} |x_{nchw} - G(z_n)_{nchw}|
    $$

    The paper reports the mean over images: ``mean(mean_absolute_error(...))``.

    Args:
        images: the targets, [N, C, H, W] in ``value_range``.
        reconstructions: the same shape and range.
        value_range: (low, high), the values of black and white. Dividing by its span makes errors
            in [-1, 1] comparable with those of the paper, whose images are in [0, 1].

    Returns:
        float64 [N], from 0 to 1; NaN where an image or its reconstruction contains NaN.

    Raises:
        InputError: shapes that differ, no image, or pixels outside the range.

    Source: Creswell & Bharath 2016, section 5.1, Tables 2 and 3.
    """
    expected = "images [N, C, H, W]"
    targets, found = check_pair(images, reconstructions, ("images", "reconstructions"), expected)
    low, high = check_value_range(value_range)
    check_inside(targets, "images", low, high)
    check_inside(found, "reconstructions", low, high)
    # One row at a time, to bound the memory of float64 copies.
    rows = (np.abs(x.astype(np.float64) - y).mean() for x, y in zip(targets, found, strict=True))
    return np.fromiter(rows, np.float64, len(targets)) / (high - low)
