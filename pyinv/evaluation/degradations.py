"""Image degradations for the searches and reconstructions of Luo et al. 2017.

All are deterministic and keep images in their value range.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import DependencyError, InputError
from pyinv.evaluation._checks import check_inside, check_number, check_rows
from pyinv.extras import install_command
from pyinv.images import check_value_range
from pyinv.validation import shape_text

__all__ = ["change_colour", "gaussian_blur", "occlude"]

FloatImages = NDArray[np.float32]


def gaussian_blur(images: Any, sigma: float) -> FloatImages:
    """Apply a Gaussian blur to images, with ``scipy.ndimage.gaussian_filter``.

    The kernel is truncated at four standard deviations. Beyond the border, the nearest pixel is
    repeated.

    Args:
        images: [N, C, H, W], in any value range.
        sigma: the kernel's standard deviation in pixels, at least 0; 0 leaves images unchanged.

    Returns:
        float32, the same shape.

    Raises:
        InputError: no images, or a sigma out of range.
        DependencyError: SciPy is missing.

    Source: Luo et al. 2017, section 4.3 and Figure 5, which do not give the blur's width.
    """
    array = _images(images)
    width = check_number(sigma, "sigma", at_least=0)
    try:
        from scipy.ndimage import gaussian_filter
    except ImportError:
        raise DependencyError(f"a Gaussian blur needs SciPy: {install_command('papers')}") from None
    blurred: FloatImages = gaussian_filter(array, sigma=(0, 0, width, width), mode="nearest")
    return blurred


def change_colour(
    images: Any,
    *,
    hue: float = 0.0,
    saturation: float = 1.0,
    contrast: float = 1.0,
    brightness: float = 0.0,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> FloatImages:
    r"""Change the colours of images and clip them to the value range.

    $$
    x' = \text{clip}\left(c \, (S R x - \tfrac12) + \tfrac12 + b\right)
    $$

    on pixels in [0, 1]: R rotates colours about the gray axis by the hue's angle, and S scales
    their distance from it. 120 degrees maps red to green, green to blue and blue to red.

    Args:
        images: [N, C, H, W] in ``value_range``, C of 1 or 3. Hue and saturation have no effect on
            gray images.
        hue: degrees.
        saturation: at least 0; 0 gives gray, 1 leaves it unchanged.
        contrast: at least 0; 0 makes all pixels equal, 1 leaves it unchanged.
        brightness: from -1 to 1, in units of the value range's span.
        value_range: (low, high), the values of black and white.

    Returns:
        float32, the same shape.

    Raises:
        InputError: no images, pixels outside the range, or a wrong argument.

    Source: Luo et al. 2017, section 4.2 and Figure 3 ("color transform"; parameters not given).
    """
    array = _images(images)
    if array.shape[1] not in (1, 3):
        raise InputError(
            f"images must be [N, C, H, W] with C of 1 or 3, got [{shape_text(array.shape)}]; only "
            "gray and colour images have a colour to change"
        )
    low, high = check_value_range(value_range)
    check_inside(array, "images", low, high)
    angle = math.radians(check_number(hue, "hue"))
    strength = check_number(saturation, "saturation", at_least=0)
    slope = check_number(contrast, "contrast", at_least=0)
    offset = check_number(brightness, "brightness", at_least=-1, at_most=1)
    unit = (array - low) / (high - low)
    if unit.shape[1] == 3:
        turned = np.einsum("dc,nchw->ndhw", _turn(angle), unit)
        gray = turned.mean(axis=1, keepdims=True)
        unit = gray + strength * (turned - gray)
    changed = np.clip(slope * (unit - 0.5) + 0.5 + offset, 0, 1)
    result: FloatImages = (low + (high - low) * changed).astype(np.float32)
    return result


def occlude(
    images: Any,
    *,
    top: float,
    left: float,
    height: float,
    width: float,
    value: float,
) -> FloatImages:
    """Cover images with a rectangle of one value, such as sunglasses over a face.

    Args:
        images: [N, C, H, W].
        top: the rectangle's upper edge, as a fraction of the images' height, from 0 to 1.
        left: its left edge, as a fraction of their width.
        height: its height, as a fraction of theirs. The part beyond the border is cut off.
        width: its width, as a fraction of theirs.
        value: the value of its pixels, in the images' value range.

    Returns:
        float32, the same shape. Edges are rounded to whole pixels.

    Raises:
        InputError: no images, a wrong argument, or a rectangle that covers no pixel.

    Source: Luo et al. 2017, section 4.2 and Figure 3 (sunglasses; size not given).
    """
    array = _images(images)
    shares = {"top": top, "left": left, "height": height, "width": width}
    checked = {
        name: check_number(share, name, at_least=0, at_most=1) for name, share in shares.items()
    }
    colour = check_number(value, "value")
    rows = _span(checked["top"], checked["height"], array.shape[2])
    columns = _span(checked["left"], checked["width"], array.shape[3])
    hidden = array.copy()
    covered = hidden[:, :, rows, columns]
    if covered.size == 0:
        raise InputError(
            f"the rectangle covers no pixel of images [{shape_text(array.shape)}]; give a larger "
            "height and width"
        )
    covered[:] = colour
    return hidden


def _turn(angle: float) -> NDArray[np.float64]:
    """Return the rotation of (red, green, blue) about the gray axis, by Rodrigues' formula."""
    along = np.full((3, 3), 1 / 3)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn: NDArray[np.float64] = (
        math.cos(angle) * (np.eye(3) - along) + along + math.sin(angle) * across
    )
    return turn


def _span(start: float, length: float, pixels: int) -> slice:
    return slice(round(start * pixels), round((start + length) * pixels))


def _images(images: Any) -> FloatImages:
    array = check_rows(images, "images", "images [N, C, H, W]")
    if array.ndim != 4:
        raise InputError(f"images must be [N, C, H, W], got [{shape_text(array.shape)}]")
    return array.astype(np.float32)
