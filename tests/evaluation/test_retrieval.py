"""Search: against distances computed directly, and the measures by hand."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from pyinv.errors import DependencyError, InputError
from pyinv.evaluation import (
    colour_histogram,
    histogram_intersection,
    hit_rate,
    label_similarity,
    rank_of,
    search,
)
from pyinv.extras import install_command

pytest.importorskip("sklearn")

RANDOM = np.random.default_rng(0)
LATENTS = RANDOM.normal(size=(50, 6)).astype(np.float32)
QUERIES = RANDOM.normal(size=(70, 6)).astype(np.float32)  # more than are ranked together
HASHES = RANDOM.random((40, 64)) < 0.5
COLOURS = colour_histogram(RANDOM.random((30, 3, 8, 8)) ** 2)


def distances(collection: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    """Every distance [M, N], directly."""
    if metric == "intersection":
        return np.stack(
            [
                1 - histogram_intersection(collection, np.broadcast_to(query, collection.shape))
                for query in queries
            ]
        )
    difference = queries[:, None].astype(float) - collection[None].astype(float)
    if metric == "hamming":
        return abs(difference).mean(axis=2)
    return np.sqrt((difference**2).sum(axis=2))


KINDS = {
    "euclidean": (LATENTS, QUERIES),
    "hamming": (HASHES, ~HASHES[:9]),
    "intersection": (COLOURS, COLOURS[::-1][:7]),
}


@pytest.mark.parametrize("metric", KINDS)
def test_search_finds_the_nearest_first(metric):
    collection, queries = KINDS[metric]
    found = search(collection, queries, 5, metric=metric)
    every = distances(collection, queries, metric)
    assert found.rows.shape == found.distances.shape == (len(queries), 5)
    np.testing.assert_allclose(found.distances, np.sort(every, axis=1)[:, :5], atol=1e-6)
    np.testing.assert_allclose(
        np.take_along_axis(every, found.rows, axis=1), found.distances, atol=1e-6
    )
    assert all(len(set(rows)) == 5 for rows in found.rows.tolist())


@pytest.mark.parametrize("metric", KINDS)
def test_ranks_count_who_is_nearer(metric):
    collection, queries = KINDS[metric]
    truth = np.arange(len(queries)) * 3 % len(collection)
    every = distances(collection, queries, metric)
    own = every[np.arange(len(queries)), truth][:, None]
    nearer = (every < own - 1e-9).sum(axis=1)
    tied = (abs(every - own) <= 1e-9).sum(axis=1) - 1
    ranks = rank_of(collection, queries, truth, metric=metric)
    np.testing.assert_array_equal(ranks, 1 + nearer + tied / 2)


def test_latents_of_any_shape_are_searched():
    found = search(LATENTS.reshape(-1, 2, 3), LATENTS[7].reshape(1, 2, 3))
    assert found.rows.tolist() == [[7]]
    assert found.distances[0, 0] == pytest.approx(0, abs=1e-6)


def test_a_tie_is_half_a_place():
    collection = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=bool)
    queries = np.array([[0, 0], [0, 0], [0, 0], [1, 1]], dtype=bool)
    ranks = rank_of(collection, queries, np.array([0, 1, 3, 3]), metric="hamming")
    assert ranks.tolist() == [1, 2.5, 4, 1]
    same = np.zeros((5, 2), dtype=bool)
    assert rank_of(same, same[:1], np.array([4]), metric="hamming").tolist() == [3]


def test_hit_rate_by_hand():
    assert hit_rate([1, 2, 1.5, 7]) == 0.25
    assert hit_rate([1, 2, 1.5, 7], 2) == 0.75
    assert hit_rate([1, 2, 1.5, 7], 7) == 1


def test_label_similarity_of_classes():
    assert label_similarity([3, 5, 5], [3, 5, 1]) == pytest.approx(2 / 3)
    assert label_similarity([3, 5], [[3, 3, 1], [1, 5, 1]]) == pytest.approx(3 / 6)


def test_label_similarity_of_names():
    assert label_similarity(["cat", "dog"], [["cat", "dog"], ["dog", "bird"]]) == 0.5


def test_label_similarity_of_attributes():
    """Two images with four labels each, as CelebA has 40."""
    base = [[1, 0, 1, 0], [1, 1, 1, 1]]
    assert label_similarity(base, [[1, 0, 1, 1], [0, 0, 1, 1]]) == pytest.approx(5 / 8)
    assert label_similarity(base, [[[1, 0, 1, 0]] * 2, [[0, 0, 0, 0]] * 2]) == 0.5
    # Unrelated labels agree by chance: that is what the paper's 0.75 stands beside.
    random = np.random.default_rng(1)
    labels, found = (random.random((400, 40)) < 0.2 for _ in range(2))
    assert label_similarity(labels, found) == pytest.approx(0.68, abs=0.02)


PROBLEMS = {
    "metric": (lambda: search(LATENTS, QUERIES, metric="cosine"), "metric must be one of"),
    "k": (lambda: search(LATENTS, QUERIES, 51), "k must be"),
    "lengths": (lambda: search(LATENTS, QUERIES[:, :5]), "rows of the same length, got 6 and 5"),
    "bits": (lambda: search(LATENTS, QUERIES, metric="hamming"), "must be bool"),
    "NaN": (lambda: search(LATENTS, QUERIES * np.nan), "queries must be finite"),
    "no truth": (lambda: rank_of(LATENTS, QUERIES, [1]), r"truth must be whole numbers \[70\]"),
    "far truth": (
        lambda: rank_of(LATENTS, QUERIES[:2], [1, 50]),
        "from 0 to 49, got 1 to 50",
    ),
    "rank": (lambda: hit_rate([0.5]), "ranks must be 1 or above"),
    "labels": (lambda: label_similarity([1, 2], [[[1]], [[1]]]), r"\[2, K\], got \[2, 1, 1\]"),
    "one row": (lambda: label_similarity([[1, 2]], [1, 2]), r"\[1, K, 2\], got \[2\]"),
    "fewer": (lambda: label_similarity([1, 2], [1]), "labels of K images"),
    "none": (lambda: label_similarity([], []), "with M >= 1"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_wrong_argument_is_said_in_one_line(problem):
    call, message = PROBLEMS[problem]
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_without_scikit_learn_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    with pytest.raises(DependencyError, match=re.escape(install_command("papers"))):
        search(LATENTS, QUERIES)
