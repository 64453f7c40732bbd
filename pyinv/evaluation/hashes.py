"""Image similarity by perceptual hashes and colour histograms, as in Luo et al. 2017.

The hashes need the imagehash library, which the extra "papers" installs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import DependencyError, InputError
from pyinv.evaluation._checks import FloatArray, check_inside, check_pair, check_rows
from pyinv.extras import install_command
from pyinv.images import check_value_range, to_pillow, to_uint8
from pyinv.validation import shape_text, whole_number

__all__ = ["HASHES", "colour_histogram", "hash_similarity", "histogram_intersection", "image_hash"]

HASHES = ("dhash", "phash")

BINS = (16, 16, 8)
"""Bins of the axes red-green, blue-yellow and white-black, as in Swain & Ballard 1991."""

_EXPECTED = "images [N, C, H, W]"


def image_hash(
    images: Any,
    kind: str = "dhash",
    *,
    hash_size: int = 8,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> NDArray[np.bool_]:
    """Return each image's perceptual hash.

    "dhash" shrinks the gray image to ``hash_size`` rows of ``hash_size + 1`` pixels. Each bit says
    whether a pixel's right neighbour is brighter. "phash" shrinks the gray image to four times
    ``hash_size`` pixels per side. Each bit says whether one of the lowest ``hash_size`` x
    ``hash_size`` cosine coefficients is above their median. The imagehash library computes both,
    from pixels rounded to 8 bits.

    Args:
        images: [N, C, H, W] in ``value_range``, C of 1 or 3.
        kind: "dhash" or "phash".
        hash_size: bits per side, at least 2; a hash has its square.
        value_range: (low, high), the values of black and white.

    Returns:
        bool [N, hash_size ** 2].

    Raises:
        InputError: no images, pixels outside the range, or a wrong argument.
        DependencyError: imagehash is missing.

    Source: Luo et al. 2017, section 4.1, after Niu & Jiao 2008; N. Krawetz, "Kind of like that" and
    "Looks like it", which imagehash implements.
    """
    if kind not in HASHES:
        raise InputError(f"kind must be one of {', '.join(HASHES)}; got {kind!r}")
    size = whole_number("hash_size", hash_size, at_least=2)
    pixels = _pixels(images, "images", value_range)
    library = _imagehash()
    make = library.dhash if kind == "dhash" else library.phash
    hashes = [make(to_pillow(image), hash_size=size).hash.ravel() for image in pixels]
    return np.stack(hashes)


def hash_similarity(
    images: Any,
    reconstructions: Any,
    kind: str = "dhash",
    *,
    hash_size: int = 8,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> FloatArray:
    r"""Return the hash similarity of each image and its reconstruction.

    $$
    s_n = 1 - \frac{1}{B} \sum_b [h(x_n)_b \ne h(x'_n)_b]
    $$

    The paper reports the mean over images. Unrelated images have about one half.

    Args:
        images: [N, C, H, W] in ``value_range``, C of 1 or 3.
        reconstructions: the same shape and range.
        kind: "dhash" or "phash", see ``image_hash``.
        hash_size: bits per side, at least 2.
        value_range: (low, high), the values of black and white.

    Returns:
        float64 [N], from 0 to 1.

    Raises:
        InputError: shapes that differ, no images, pixels outside the range, or a wrong argument.
        DependencyError: imagehash is missing.

    Source: Luo et al. 2017, section 4.1, Table 1. The paper does not state its hash size; 8 is the
    usual one.
    """
    one, other = check_pair(images, reconstructions, ("images", "reconstructions"), _EXPECTED)
    hashes, found = (
        image_hash(each, kind, hash_size=hash_size, value_range=value_range)
        for each in (one, other)
    )
    similarity: FloatArray = 1 - (hashes != found).mean(axis=1)
    return similarity


def colour_histogram(
    images: Any, *, value_range: tuple[float, float] = (0.0, 1.0)
) -> NDArray[np.float32]:
    r"""Return each image's histogram over opponent colours.

    $$
    rg = r - g, \quad by = 2b - r - g, \quad wb = r + g + b
    $$

    in 16, 16 and 8 equal bins over the range of 8-bit colours.

    Args:
        images: [N, C, H, W] in ``value_range``, C of 1 or 3. Gray images differ only in wb.
        value_range: (low, high), the values of black and white.

    Returns:
        float32 [N, 2048], the share of pixels in each bin; each row sums to 1.

    Raises:
        InputError: no images, pixels outside the range, or another number of channels.

    Source: Swain & Ballard 1991, section 3 (axes and bins), which Luo et al. 2017 compare with.
    """
    pixels = _pixels(images, "images", value_range)
    total = int(np.prod(BINS))
    histograms = np.empty((len(pixels), total), dtype=np.float32)
    for row, image in enumerate(pixels):
        red, green, blue = np.moveaxis(np.broadcast_to(image, (*image.shape[:2], 3)), -1, 0).astype(
            np.int64
        )
        axes = (
            (red - green + 255, 511),
            (2 * blue - red - green + 510, 1021),
            (red + green + blue, 766),
        )
        # In integers, so that rounding never decides the bin.
        bins = [
            values * count // levels for (values, levels), count in zip(axes, BINS, strict=True)
        ]
        cells = np.ravel_multi_index(bins, BINS)
        histograms[row] = np.bincount(cells.ravel(), minlength=total) / cells.size
    return histograms


def histogram_intersection(histograms: Any, others: Any) -> FloatArray:
    r"""Return the intersection of each pair of histograms.

    $$
    s_n = \sum_b \min(h_{nb}, h'_{nb}) \Big/ \sum_b h'_{nb}
    $$

    Args:
        histograms: [N, bins], at least 0.
        others: the models' histograms h', the same shape, none of them empty.

    Returns:
        float64 [N]: from 0 to 1 for histograms of equal numbers of pixels.

    Raises:
        InputError: shapes that differ, or negative or empty histograms.

    Source: Swain & Ballard 1991, section 3.1.
    """
    one, other = check_pair(histograms, others, ("histograms", "others"), "histograms [N, bins]")
    one, other = one.astype(np.float64), other.astype(np.float64)
    sums = other.reshape(len(other), -1).sum(axis=1)
    if min(one.min(), other.min()) < 0 or sums.min() <= 0:
        raise InputError(
            "histograms must be counts or shares of at least 0, and none of others may be empty; "
            "give those of colour_histogram"
        )
    shared: FloatArray = np.minimum(one, other).reshape(len(one), -1).sum(axis=1) / sums
    return shared


def _pixels(images: Any, name: str, value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Return images as uint8 [N, H, W, C]."""
    array = check_rows(images, name, _EXPECTED)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise InputError(
            f"{name} must be {_EXPECTED} with C of 1 or 3, got [{shape_text(array.shape)}]; only "
            "gray and colour images have hashes and histograms"
        )
    low, high = check_value_range(value_range)
    if np.isnan(array).any():
        raise InputError(f"{name} must be numbers, got NaN; leave out images that failed")
    check_inside(array, name, low, high)
    return to_uint8(array.astype(np.float32), (low, high))


def _imagehash() -> Any:
    try:
        import imagehash
    except ImportError:
        raise DependencyError(
            f"image hashes need the imagehash library: {install_command('papers')}"
        ) from None
    return imagehash
