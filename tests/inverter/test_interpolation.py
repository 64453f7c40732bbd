"""Paths between latents: their ends, their spacing, and the vectors that have no path."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from pyinv.errors import InputError
from pyinv.interpolation import great_circle, linear, slerp

X, Y = np.float32([2, 0, 0]), np.float32([0, 2, 0])


def draw(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def angle_between(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.ravel().astype(float), other.ravel().astype(float)
    return math.acos(np.clip(one @ other / np.linalg.norm(one) / np.linalg.norm(other), -1, 1))


@pytest.mark.parametrize("path", [linear, slerp])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_ends_are_the_latents_to_the_bit(path, dtype):
    # As many ends as could show a rounding that some of them escape.
    for a, b in draw(40, 2, 4, 5).astype(dtype) * 1.7:
        latents = path(a, b, 5)
        assert latents.shape == (5, 4, 5)
        assert latents.dtype == dtype
        np.testing.assert_array_equal(latents[0], a)
        np.testing.assert_array_equal(latents[-1], b)


def test_linear_is_evenly_spaced_on_the_line():
    np.testing.assert_allclose(linear([0.0, 4.0], [1.0, 0.0], 5)[:, 0], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(linear([0.0, 4.0], [1.0, 0.0], 5)[:, 1], [4, 3, 2, 1, 0])


def test_slerp_by_hand():
    """A quarter turn in three steps of 30 degrees."""
    expected = [[2, 0, 0], [math.sqrt(3), 1, 0], [1, math.sqrt(3), 0], [0, 2, 0]]
    np.testing.assert_allclose(slerp(X, Y, 4), expected, atol=1e-6)


def test_slerp_turns_evenly_and_keeps_the_length():
    a, b = draw(2, 100)
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    latents = slerp(a, b, 9)
    np.testing.assert_allclose(np.linalg.norm(latents, axis=1), np.linalg.norm(a), rtol=1e-6)
    turns = [angle_between(*pair) for pair in pairwise(latents)]
    np.testing.assert_allclose(turns, angle_between(a, b) / 8, rtol=1e-4)


def test_slerp_of_different_lengths_is_the_formula():
    """White 2016 weighs the latents themselves, not their directions."""
    a, b = draw(2, 10).astype(float)
    theta = angle_between(a, b)
    for mu, latent in zip(np.linspace(0, 1, 7), slerp(a, b, 7), strict=True):
        expected = (math.sin((1 - mu) * theta) * a + math.sin(mu * theta) * b) / math.sin(theta)
        np.testing.assert_allclose(latent, expected, rtol=1e-9)


@pytest.mark.parametrize("apart", [0, 1e-12, 1e-8, 1e-6, 1e-4])
def test_slerp_of_near_parallel_latents_is_the_line(apart):
    a = draw(1, 100)[0].astype(float)
    b = a + apart * draw(1, 100, seed=1)[0]
    np.testing.assert_allclose(slerp(a, b, 7), linear(a, b, 7), atol=1e-7)


def test_slerp_of_latents_in_one_direction_goes_straight():
    np.testing.assert_allclose(slerp(X, 3 * X, 3), [X, 2 * X, 3 * X])


def test_slerp_of_wide_angles_keeps_to_the_circle():
    a = np.array([1.0, 0.0])
    b = np.array([math.cos(math.pi - 1e-3), math.sin(math.pi - 1e-3)])
    np.testing.assert_allclose(np.linalg.norm(slerp(a, b, 11), axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(slerp(a, b, 3)[1], [0, 1], atol=1e-3)


def test_great_circle_by_hand():
    expected = [[2, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]]
    np.testing.assert_allclose(great_circle(X, Y, 4), expected, atol=1e-6)


@pytest.mark.parametrize("given", [True, False], ids=["through b", "random"])
def test_great_circle_is_closed_evenly_spaced_and_of_one_length(given):
    a, b = draw(2, 10, 10)
    latents = great_circle(a, b if given else None, 12)
    assert latents.shape == (12, 10, 10)
    assert latents.dtype == np.float32
    np.testing.assert_array_equal(latents[0], a)
    lengths = np.linalg.norm(latents.reshape(12, -1), axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(a), rtol=1e-6)
    turns = [angle_between(latents[k], latents[(k + 1) % 12]) for k in range(12)]
    np.testing.assert_allclose(turns, math.pi / 6, rtol=1e-4)
    np.testing.assert_allclose(latents[6], -a, atol=1e-5)


def test_great_circle_goes_through_b_the_short_way():
    """Six steps of 60 degrees: b is one of them, and its neighbours go on from it."""
    b = 2 * np.array([math.cos(math.pi / 3), math.sin(math.pi / 3), 0])
    np.testing.assert_allclose(great_circle(X, b, 6)[1], b, atol=1e-6)
    np.testing.assert_allclose(great_circle(X, 5 * b, 6)[1], b, atol=1e-6)  # by its direction


def test_great_circle_begins_as_the_arc_does():
    a, b = draw(2, 100).astype(float)
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    n = 1000
    steps = round(angle_between(a, b) / (2 * math.pi / n))
    circle = great_circle(a, b, n)
    np.testing.assert_allclose(angle_between(circle[steps], b), 0, atol=math.pi / n)


def test_great_circle_near_a_keeps_a_right_angle():
    a = draw(1, 100)[0].astype(float)
    b = a + 1e-3 * draw(1, 100, seed=1)[0]
    circle = great_circle(a, b, 4)
    assert abs(circle[1] @ a) < 1e-11 * (a @ a)


def test_random_great_circle_depends_on_the_seed():
    a = draw(1, 100)[0]
    one, same, other = (great_circle(a, n=8, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one[1] - other[1]).max() > 0.1


def test_inputs_are_left_as_they_were():
    a, b = X.copy(), Y.copy()
    for path in (linear, slerp, great_circle):
        path(a, b, 5)[...] = 7
    np.testing.assert_array_equal([a, b], [X, Y])


ZERO = np.zeros(3)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: slerp(X, -X, 5), "b must not be opposite to a"),
        (lambda: slerp(X, -3 * X + 1e-5, 5), "b must not be opposite to a"),
        (lambda: slerp(ZERO, X, 5), "a must not be zero"),
        (lambda: slerp(X, ZERO, 5), "b must not be zero"),
        (lambda: great_circle(ZERO), "a must not be zero"),
        (lambda: great_circle(X, ZERO), "b must not be zero"),
        (lambda: great_circle(X, 2 * X), "b must not be a multiple of a"),
        (lambda: great_circle(X, -X), "b must not be a multiple of a"),
        (lambda: great_circle([1.0]), "a must have at least 2 components"),
        (lambda: great_circle(X, Y, 0), "n must be a whole number >= 1, got 0"),
        (lambda: great_circle(X, seed=-1), "seed must be a whole number >= 0, got -1"),
        (lambda: great_circle(X, n=2.5), "n must be a whole number >= 1, got 2.5"),
        (lambda: linear(X, Y, 1), "n must be a whole number >= 2, got 1"),
        (lambda: slerp(X, Y, True), "n must be a whole number >= 2, got True"),
        (lambda: linear(X, Y[:2], 5), r"the same shape, got \[3\] and \[2\]"),
        (lambda: linear(X, X * np.nan, 5), "b must be one latent of finite numbers, got NaN"),
        (lambda: linear([], [], 5), r"a must be one latent of finite numbers, got \[0\]"),
        (lambda: slerp("here", Y, 5), "a must be one latent of finite numbers, got"),
    ],
)
def test_bad_input_is_told_in_one_line(call, expected):
    with pytest.raises(InputError, match=expected) as caught:
        call()
    assert "\n" not in str(caught.value)
