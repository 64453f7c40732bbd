"""Search for the images of a collection that are most similar to queries, and its metrics.

The search needs scikit-learn, which the extra "papers" installs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import DependencyError, InputError
from pyinv.evaluation._checks import FloatArray, check_rows, check_values
from pyinv.extras import install_command
from pyinv.validation import as_numpy, shape_text, whole_number

__all__ = ["METRICS", "Neighbours", "hit_rate", "label_similarity", "rank_of", "search"]

METRICS = {"euclidean": "euclidean", "hamming": "hamming", "intersection": "manhattan"}
"""scikit-learn's name for each of our metrics.

For histograms that sum to 1, 1 minus the intersection is half the Manhattan distance.
"""

QUERIES = 64  # searched at a time, to bound the memory of distances


class Neighbours(NamedTuple):
    """The nearest neighbours of M queries, nearest first.

    Attributes:
        rows: int64 [M, k], rows of the collection.
        distances: float64 [M, k]: the Euclidean distance; the share of different bits, from 0 to 1;
            or 1 minus the intersection.
    """

    rows: NDArray[np.int64]
    distances: FloatArray


def search(collection: Any, queries: Any, k: int = 1, *, metric: str = "euclidean") -> Neighbours:
    r"""Return the k nearest rows of a collection for each query.

    $$
    \lVert z_m - z'_n \rVert_2
    $$

    is the distance of latents; for hashes, the distance is the share of bits that differ.

    Args:
        collection: [N, d] or [N, ...], flattened: latents, hashes (bool) or histograms.
        queries: [M, d] or [M, ...], what to search for.
        k: number of neighbours, from 1 to N.
        metric: "euclidean" for latents, "hamming" for hashes, "intersection" for histograms whose
            rows sum to 1, see ``colour_histogram``.

    Returns:
        rows and distances, [M, k] each, nearest first. The order at equal distances is unspecified.

    Raises:
        InputError: no rows, rows of different lengths, NaN, or a wrong argument.
        DependencyError: scikit-learn is missing.

    Source: Luo et al. 2017, section 4.2: "the similarity between two images are based on the
    Euclidean Distance between the reconstructed z' vectors of them".
    """
    rows, query_rows = _features(collection, queries, metric)
    count = whole_number("k", k, at_least=1, at_most=len(rows))
    parts = list(_neighbours(rows, query_rows, count, metric))
    return Neighbours(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.distances for part in parts]),
    )


def rank_of(collection: Any, queries: Any, truth: Any, *, metric: str = "euclidean") -> FloatArray:
    r"""Return the rank of each query's true row in a search.

    $$
    r_m = 1 + \sum_n [d_{mn} < d_{mt}] + \tfrac12 \sum_{n \ne t} [d_{mn} = d_{mt}]
    $$

    where t is the true row. Rank 1 means that it is found first, without a tie. Ties, which are
    common with hashes, count half, as if tied rows were in random order.

    Args:
        collection: [N, d] or [N, ...].
        queries: [M, d] or [M, ...].
        truth: integers [M], the row of the collection that each query should find.
        metric: as in ``search``.

    Returns:
        float64 [M], from 1 to N.

    Raises:
        InputError: as ``search``, or a row that is not in the collection.
        DependencyError: scikit-learn is missing.

    Source: Luo et al. 2017, Figure 3, which shows the first image found, but no numbers.
    """
    rows, query_rows = _features(collection, queries, metric)
    true = as_numpy(truth, "truth", "whole numbers [M]")
    if true.shape != (len(query_rows),) or true.dtype.kind not in "iu":
        raise InputError(
            f"truth must be whole numbers [{len(query_rows)}], a row for each query, got "
            f"{true.dtype} [{shape_text(true.shape)}]"
        )
    if true.min() < 0 or true.max() >= len(rows):
        raise InputError(
            f"truth must be rows of the collection, from 0 to {len(rows) - 1}, got {true.min()} to "
            f"{true.max()}"
        )
    ranks = np.empty(len(true))
    first = 0
    for found in _neighbours(rows, query_rows, len(rows), metric):
        some = slice(first, first + len(found.rows))
        first = some.stop
        is_true = found.rows == true[some, None]
        distance = found.distances[is_true][:, None]
        closer = (found.distances < distance).sum(axis=1)
        tied = (found.distances == distance).sum(axis=1) - 1
        ranks[some] = 1 + closer + tied / 2
    return ranks


def hit_rate(ranks: Any, k: int = 1) -> float:
    r"""Return the share of queries whose true row is among the first k.

    $$
    \frac{1}{M} \sum_m [r_m \le k]
    $$

    Args:
        ranks: [M], at least 1; see ``rank_of``. A row that ties for first place has a rank above 1,
            so it does not count as found first.
        k: number of results to consider, at least 1.

    Returns:
        a share from 0 to 1.

    Raises:
        InputError: no ranks, a rank below 1, or a k out of range.
    """
    places = check_values(ranks, "ranks")
    most = whole_number("k", k, at_least=1)
    if not places.min() >= 1:
        raise InputError(f"ranks must be 1 or above, got {places.min():g}; give those of rank_of")
    return float((places <= most).mean())


def label_similarity(labels: Any, found: Any) -> float:
    r"""Return the share of labels that query images have in common with their search results.

    $$
    \frac{1}{M K L} \sum_{m, k, l} [y_{ml} = y'_{mkl}]
    $$

    Args:
        labels: labels of the queries: [M] with one class each, or [M, L] with L attributes each;
            numbers or names, as in ``Dataset.labels``.
        found: labels of the K results per query: [M] or [M, K] for classes, [M, L] or [M, K, L] for
            attributes.

    Returns:
        a share from 0 to 1. With one class per image, it is the precision at K.

    Raises:
        InputError: labels of other shapes, or none.

    Source: Luo et al. 2017, section 4.2 and Table 2 (64 images, L = 40).
    """
    labels, found = _numbered(labels, found)
    base = as_numpy(labels, "labels", "[M] or [M, L]")
    others = as_numpy(found, "found", "[M, K] or [M, K, L]")
    if base.ndim not in (1, 2) or base.size == 0:
        raise InputError(
            f"labels must be [M] or [M, L] with M >= 1, got [{shape_text(base.shape)}]; give a "
            "class, or a row of attributes, for each image"
        )
    if others.ndim == base.ndim:
        others = others[:, None]
    expected = (len(base), *others.shape[1:2], *base.shape[1:])
    if others.ndim != base.ndim + 1 or others.shape != expected or others.size == 0:
        shape = ", ".join(map(str, (len(base), "K", *base.shape[1:])))
        raise InputError(
            f"found must be the labels of K images for each image, [{shape}], got "
            f"[{shape_text(np.shape(found))}]"
        )
    return float((others == base[:, None]).mean())


def _numbered(labels: Any, found: Any) -> tuple[Any, Any]:
    """Replace label names by numbers that are equal where the names are equal."""
    base, others = np.asarray(labels), np.asarray(found)
    if base.dtype.kind != "U" or others.dtype.kind != "U":
        return labels, found
    numbers = np.unique(np.concatenate([base.ravel(), others.ravel()]), return_inverse=True)[1]
    return numbers[: base.size].reshape(base.shape), numbers[base.size :].reshape(others.shape)


def _neighbours(
    rows: NDArray[Any], query_rows: NDArray[Any], k: int, metric: str
) -> Iterator[Neighbours]:
    """Yield the neighbours of ``QUERIES`` queries at a time."""
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        raise DependencyError(
            f"searching needs scikit-learn: {install_command('papers')}"
        ) from None
    # In 100 dimensions, brute force is as fast as a tree and does not order ties by the tree.
    index = NearestNeighbors(n_neighbors=k, metric=METRICS[metric], algorithm="brute").fit(rows)
    scale = 0.5 if metric == "intersection" else 1.0
    for first in range(0, len(query_rows), QUERIES):
        distances, found = index.kneighbors(query_rows[first : first + QUERIES])
        yield Neighbours(found.astype(np.int64), scale * distances)


def _features(collection: Any, queries: Any, metric: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both as [N, d] and [M, d], in the dtype that the metric needs."""
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    both = []
    for value, name in ((collection, "collection"), (queries, "queries")):
        array = check_rows(value, name, f"{name} [N, d]")
        array = array.reshape(len(array), -1)
        if metric == "hamming" and array.dtype != np.bool_:
            raise InputError(
                f"{name} must be bool for the Hamming distance, got {array.dtype}; give the hashes "
                "of image_hash"
            )
        if metric != "hamming":
            array = array.astype(np.float64)
            if not np.isfinite(array).all():
                raise InputError(
                    f"{name} must be finite numbers, got NaN or infinity; leave out rows that "
                    "failed"
                )
        both.append(array)
    if both[0].shape[1] != both[1].shape[1]:
        raise InputError(
            f"collection and queries must have rows of the same length, got {both[0].shape[1]} and "
            f"{both[1].shape[1]}; compute both in the same way"
        )
    return both[0], both[1]
