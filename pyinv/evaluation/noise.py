"""Noise on targets, to measure its effect on the recovered latents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.evaluation._checks import check_inside, check_number, check_rows
from pyinv.images import check_value_range
from pyinv.validation import whole_number


def add_noise(
    images: Any, variance: float, *, seed: int, value_range: tuple[float, float]
) -> NDArray[np.float32]:
    r"""Add white Gaussian noise to images and clip them to the value range.

    $$
    x' = \text{clip}(x + \eta, \text{low}, \text{high}), \quad
    \eta \sim N(0, \text{variance})
    $$

    Args:
        images: [N, C, H, W] in ``value_range``.
        variance: variance of a pixel's noise, at least 0, in the units of ``value_range``. The
            paper's are for [-1, 1].
        seed: 0 or above. An image's noise depends only on the seed and its row, not on the number
            of images. Another variance gives the same noise, scaled.
        value_range: (low, high), the values of black and white.

    Returns:
        float32, the same shape.

    Raises:
        InputError: no images, pixels outside the range, or a wrong argument.

    Source: Lipton & Tripathi 2017, section 3, Figure 2; the authors' code for clipping.
    """
    clean = check_rows(images, "images", "images [N, C, H, W]")
    low, high = check_value_range(value_range)
    check_inside(clean, "images", low, high)
    spread = math.sqrt(check_number(variance, "variance", at_least=0))
    seed = whole_number("seed", seed, at_least=0)
    noisy = np.empty(clean.shape, dtype=np.float32)
    for row, image in enumerate(clean):
        noise = np.random.default_rng([row, seed]).standard_normal(image.shape)
        noisy[row] = np.clip(image + spread * noise, low, high)
    return noisy
