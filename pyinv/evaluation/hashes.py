"""How alike images look by their hashes and by their colours: Luo et al. 2017.

The hashes are those of the imagehash library, which ``pip install 'pyinv[papers]'`` brings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import DependencyError, InputError
from pyinv.evaluation._checks import FloatArray, check_inside, check_pair, check_rows
from pyinv.images import check_value_range, to_pillow, to_uint8
from pyinv.validation import shape_text, whole_number

__all__ = ["HASHES", "colour_histogram", "hash_similarity", "histogram_intersection", "image_hash"]

HASHES = ("dhash", "phash")

BINS = (16, 16, 8)
"""Of the axes red-green, blue-yellow and white-black, as Swain & Ballard 1991 have them."""

_EXPECTED = "images [N, C, H, W]"


def image_hash(
    images: Any,
    kind: str = "dhash",
    *,
    hash_size: int = 8,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> NDArray[np.bool_]:
    """Return each image's perceptual hash.

    "dhash" has a bit for each two neighbours in a row of the gray image, shrunk to ``hash_size``
    rows of ``hash_size + 1`` pixels: whether the right one is the brighter. "phash" has a bit for
    each of the lowest ``hash_size`` x ``hash_size`` frequencies of the gray image, shrunk to four
    times as many pixels a side: whether its cosine coefficient is above their median. Both are
    computed by the imagehash library, from pixels rounded to 8 bits.

    Args:
        images: [N, C, H, W] in ``value_range``, C of 1 or 3.
        kind: "dhash" or "phash".
        hash_size: bits a side, at least 2; a hash has its square.
        value_range: (low, high), what black and white are.

    Returns:
        bool [N, hash_size ** 2].

    Raises:
        InputError: no images, pixels outside of the range, or a wrong argument.
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
    r"""Return how alike the hashes of each image and its reconstruction are.

    $$
    s_n = 1 - \frac{1}{B} \sum_b [h(x_n)_b \ne h(x'_n)_b]
    $$

    The paper's figure is the mean of these; unrelated images have about one half.

    Args:
        images: [N, C, H, W] in ``value_range``, C of 1 or 3.
        reconstructions: the same shape and range.
        kind: "dhash" or "phash", see ``image_hash``.
        hash_size: bits a side, at least 2.
        value_range: (low, high), what black and white are.

    Returns:
        float64 [N], from 0 to 1.

    Raises:
        InputError: shapes that differ, no images, pixels outside of the range, or a wrong argument.
        DependencyError: imagehash is missing.

    Source: Luo et al. 2017, section 4.1, Table 1. The paper does not give the size of its hashes; 8
    is the usual one.
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

    in 16, 16 and 8 equal bins over all that 8-bit colours can have.

    Args:
        images: [N, C, H, W] in ``value_range``, C of 1 or 3. Gray images differ in wb alone.
        value_range: (low, high), what black and white are.

    Returns:
        float32 [N, 2048], the shares of the pixels; each row sums to 1.

    Raises:
        InputError: no images, pixels outside of the range, or other channels.

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
        # Whole numbers: no rounding decides the bin of a colour between two.
        bins = [
            values * count // levels for (values, levels), count in zip(axes, BINS, strict=True)
        ]
        cells = np.ravel_multi_index(bins, BINS)
        histograms[row] = np.bincount(cells.ravel(), minlength=total) / cells.size
    return histograms


def histogram_intersection(histograms: Any, others: Any) -> FloatArray:
    r"""Return how much each two histograms have in common.

    $$
    s_n = \sum_b \min(h_{nb}, h'_{nb}) \Big/ \sum_b h'_{nb}
    $$

    Args:
        histograms: [N, bins], from 0.
        others: the models' h', the same shape, none of which is empty.

    Returns:
        float64 [N]: from 0 to 1 for histograms of as many pixels.

    Raises:
        InputError: shapes that differ, or negative or empty histograms.

    Source: Swain & Ballard 1991, section 3.1.
    """
    one, other = check_pair(histograms, others, ("histograms", "others"), "histograms [N, bins]")
    one, other = one.astype(np.float64), other.astype(np.float64)
    sums = other.reshape(len(other), -1).sum(axis=1)
    if min(one.min(), other.min()) < 0 or sums.min() <= 0:
        raise InputError(
            "histograms must be counts or shares from 0, and others must each have a pixel; give "
            "those of colour_histogram"
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
            "image hashes need the imagehash library: pip install 'pyinv[papers]'"
        ) from None
    return imagehash
