"""The papers' measures: by hand, against slow direct loops, and against SciPy where it is there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyinv import evaluation
from pyinv.errors import InputError
from pyinv.evaluation import (
    add_noise,
    cosine_distance,
    latent_error,
    mean,
    mean_absolute_error,
    median,
    pairwise_distance,
    quantile,
    rank_correlation,
    recovery_rate,
    relative_error,
    significant_win_rate,
    win_rate,
)

NAN, INF = math.nan, math.inf


def uniform(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_everything_is_exported_once():
    assert evaluation.__all__ == sorted(evaluation.__all__)
    assert all(callable(getattr(evaluation, name)) for name in evaluation.__all__)


# Pixels


def test_mean_absolute_error_by_hand():
    images = np.float32([[[[0, 1], [0.5, 0]]], [[[1, 1], [1, 1]]]])
    found = np.float32([[[[0.5, 1], [0.5, 0.25]]], [[[0, 0], [0, 0]]]])
    np.testing.assert_array_equal(mean_absolute_error(images, found), [0.75 / 4, 1])


def test_mean_absolute_error_is_in_units_of_a_pixel_from_0_to_1():
    """The same images on [-1, 1] have the same error, whatever the range is."""
    unit, other = (uniform(3, 1, 4, 4, seed=seed) / 2 + 0.5 for seed in (0, 1))
    expected = mean_absolute_error(unit, other)
    symmetric = mean_absolute_error(unit * 2 - 1, other * 2 - 1, value_range=(-1, 1))
    np.testing.assert_allclose(symmetric, expected, rtol=1e-6)
    np.testing.assert_allclose(
        mean_absolute_error(unit * 255, other * 255, value_range=(0, 255)), expected, rtol=1e-6
    )


def test_mean_absolute_error_is_the_loop():
    images, found = uniform(3, 2, 4, 5), uniform(3, 2, 4, 5, seed=1)
    for n, error in enumerate(mean_absolute_error(images, found, value_range=(-1, 1))):
        total = 0.0
        for x, y in zip(images[n].flat, found[n].flat, strict=True):
            total += abs(float(x) - float(y)) / 2
        assert error == pytest.approx(total / 40, rel=1e-12)


def test_image_that_failed_has_no_error_and_spoils_no_other():
    images = np.zeros((2, 1, 2, 2))
    found = images.copy()
    found[0, 0, 0, 0] = NAN
    np.testing.assert_array_equal(mean_absolute_error(images, found), [NAN, 0])


# Latents


def test_latent_error_by_hand():
    true = np.float32([[0, 0, 0, 0], [1, 1, 1, 1]])
    found = np.float32([[1, 2, 0, 0], [1, 1, 1, NAN]])
    np.testing.assert_array_equal(latent_error(true, found), [5 / 4, NAN])


def test_latent_error_is_the_loop_for_latents_of_any_shape():
    true, found = uniform(5, 4, 3), uniform(5, 4, 3, seed=1)
    for n, error in enumerate(latent_error(true, found)):
        total = sum(
            (float(x) - float(y)) ** 2 for x, y in zip(true[n].flat, found[n].flat, strict=True)
        )
        assert error == pytest.approx(total / 12, rel=1e-12)


def test_latent_error_of_latents_that_agree_to_float32_is_not_rounded_away():
    true = np.full((1, 100), 1, np.float32)
    found = np.nextafter(true, np.float32(2))
    assert latent_error(true, found)[0] == pytest.approx(2.0**-46, rel=1e-12)


def test_cosine_distance_by_hand():
    true = np.float32([[1, 0], [0, 2], [3, 0], [1, 1], [0, 0]])
    found = np.float32([[5, 0], [1, 0], [-1, 0], [NAN, 1], [1, 1]])
    np.testing.assert_array_equal(cosine_distance(true, found)[:3], [0, 1, 2])
    assert np.isnan(cosine_distance(true, found)[3:]).all()


def test_cosine_distance_of_latents_that_all_but_agree_is_exact():
    """1 minus a cosine in float32 knows nothing below 6e-8."""
    angle = 1e-6
    found = [[3 * math.cos(angle), 3 * math.sin(angle)]]
    assert cosine_distance([[1.0, 0.0]], found)[0] == pytest.approx(angle**2 / 2, rel=1e-6)


def test_relative_error_by_hand():
    true = np.float32([[[3, 0], [0, 4]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]])
    found = np.float32([[[0, 0], [0, 4]], [[1, 1], [1, 1]], [[1, 1], [1, NAN]]])
    np.testing.assert_array_equal(relative_error(true, found), [3 / 5, NAN, NAN])


def test_pairwise_distance_by_hand():
    """Sides of 3, 4 and 5: a mean of 4, over two components."""
    assert pairwise_distance([[0, 0], [3, 0], [0, 4]]) == pytest.approx(2)


def test_pairwise_distance_is_the_loop():
    latents = uniform(7, 3, 2)
    total, pairs = 0.0, 0
    for i in range(7):
        for j in range(i + 1, 7):
            difference = latents[i].astype(float) - latents[j].astype(float)
            total += math.sqrt(sum(x * x for x in difference.flat)) / 6
            pairs += 1
    assert pairwise_distance(latents) == pytest.approx(total / pairs, rel=1e-12)


def test_pairwise_distance_of_random_latents_is_the_paper_s_baseline():
    """Lipton & Tripathi's Table 2 says .0815, which tells the norm from its square."""
    assert pairwise_distance(uniform(1000, 100)) == pytest.approx(0.0815, abs=3e-4)


def test_pairwise_distance_of_latents_that_all_but_agree_is_exact():
    """The paper's are 4.94e-5 apart, less than what a product of float32 latents can tell."""
    latents = np.ones((3, 100))
    latents[1] += 1e-9
    latents[2] -= 1e-9
    assert pairwise_distance(latents) == pytest.approx((1 + 1 + 2) / 3 * 1e-9 / 10, rel=1e-6)


def test_pairwise_distance_with_a_failed_latent_is_no_number():
    assert math.isnan(pairwise_distance([[0.0], [NAN], [1.0]]))


# Summaries


def test_recovery_rate_is_of_errors_strictly_below_the_threshold():
    errors = [0, 0.5, 1, 2, INF, NAN]
    assert recovery_rate(errors, 1) == pytest.approx(2 / 6)
    assert recovery_rate(errors, 1.0001) == pytest.approx(3 / 6)
    assert recovery_rate(np.float32(errors), 1e30) == pytest.approx(4 / 6)


def test_mean_median_and_quantile_by_hand():
    values = [4, 1, 3, 2]
    assert mean(values) == 2.5
    assert median(values) == 2.5
    assert median([5, 1, 3]) == 3
    assert (quantile(values, 0), quantile(values, 1)) == (1, 4)
    assert quantile(values, 0.25) == 1.75
    assert quantile([7], 0.3) == 7


@pytest.mark.parametrize("fraction", [0, 0.1, 1 / 3, 0.5, 0.9, 0.999, 1])
def test_quantile_is_numpy_s(fraction):
    for count in (1, 2, 9, 10):
        values = uniform(count, seed=count)
        expected = np.quantile(values.astype(float), fraction)
        assert quantile(values, fraction) == pytest.approx(expected, rel=1e-12)


def test_failures_show_in_the_mean_and_do_not_move_the_median():
    assert mean([1, 2, INF]) == INF
    assert median([1, 2, INF]) == 2
    assert median([1, INF, INF]) == INF
    assert quantile([1, 2, INF, INF], 0.9) == INF
    assert all(math.isnan(summary([1, 2, NAN])) for summary in (mean, median))


# Comparisons


@pytest.mark.parametrize(
    ("errors", "baseline", "wins", "significant"),
    [
        ([1, 1, 1, 1], [2, 2, 2, 2], 1, 1),  # exactly the factor counts
        ([1, 1, 1, 1], [1.9, 1.9, 3, 0.2], 3 / 4, 1 / 2),  # two of four differ by the factor
        ([1, 2, 3, 4], [1, 2, 3, 4], 0, NAN),  # ties are no wins and no differences
        ([1, 2], [1.5, 1.5], 1 / 2, NAN),
        ([0, 0], [0, 1], 1 / 2, 1),  # an error of 0 differs by every factor but from itself
        ([1], [0], 0, 0),
        ([4, 1], [2, 8], 1 / 2, 1 / 2),
        ([NAN, 1, NAN, INF], [1, NAN, NAN, NAN], 1 / 4, 1 / 2),  # a failure loses, two are even
    ],
)
def test_wins_by_hand(errors, baseline, wins, significant):
    assert win_rate(errors, baseline) == pytest.approx(wins)
    assert significant_win_rate(errors, baseline) == pytest.approx(significant, nan_ok=True)


@pytest.mark.parametrize("factor", [1.5, 2, 10])
def test_significant_wins_are_the_loop(factor):
    errors, baseline = np.exp2(4 * uniform(200)), np.exp2(4 * uniform(200, seed=1))
    won = differ = 0
    for ours, theirs in zip(errors.tolist(), baseline.tolist(), strict=True):
        if max(ours, theirs) >= factor * min(ours, theirs):
            differ += 1
            won += ours < theirs
    assert 0 < won < differ < 200
    assert significant_win_rate(errors, baseline, factor) == won / differ


def test_egan_s_printed_row_is_a_share_of_those_that_differ():
    """hard(3): 80 wins of 100, and 80.33 %, which is 49 of the 61 that differ by a factor of 2."""
    errors = np.repeat([1.0, 1.0, 4.0, 2.9], [49, 31, 12, 8])
    baseline = np.repeat([3.0, 1.9, 2.0, 2.0], [49, 31, 12, 8])
    assert win_rate(errors, baseline) == 0.8
    assert round(100 * significant_win_rate(errors, baseline), 2) == 80.33


def test_rank_correlation_by_hand():
    """Of six pairs five agree and one does not; then one is tied."""
    assert rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert rank_correlation([1, 2, 3, 4], [1, 2, 3, 3]) == pytest.approx(5 / math.sqrt(6 * 5))
    assert rank_correlation([1, 2, 3], [30, 20, 10]) == -1
    assert rank_correlation([1, 2, INF], [0.1, 0.2, 0.3]) == 1


def test_rank_correlation_leaves_out_what_has_no_figure():
    assert rank_correlation([1, 2, NAN, 3], [1, 3, 2, NAN]) == 1
    assert math.isnan(rank_correlation([1, NAN], [1, 2]))
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_rank_correlation_is_scipy_s(levels):
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(levels)
    for count in (2, 3, 18, 100):
        a, b = random.integers(0, levels, (2, count))
        expected = stats.kendalltau(a, b, variant="b").statistic
        assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12, nan_ok=True)


# Noise


def test_noise_has_the_variance_asked_for():
    noise = add_noise(np.zeros((20, 1, 50, 50)), 0.04, seed=0, value_range=(-9, 9))
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0, abs=5 * 0.2 / math.sqrt(noise.size))
    assert noise.var() == pytest.approx(0.04, rel=5 * math.sqrt(2 / noise.size))
    assert (noise**4).mean() == pytest.approx(3 * 0.04**2, rel=0.1)  # normal: a kurtosis of 3
    rows = noise.reshape(20, -1)
    correlations = np.corrcoef(rows)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 5 / 50  # white, and another one for every image


def test_noise_is_clipped_to_the_range():
    noisy = add_noise(np.full((2, 1, 30, 30), 0.9), 1, seed=0, value_range=(0, 1))
    assert (noisy.min(), noisy.max()) == (0, 1)


def test_no_noise_changes_nothing():
    images = uniform(2, 3, 4, 4)
    same = add_noise(images, 0, seed=0, value_range=(-1, 1))
    np.testing.assert_array_equal(same, images)
    assert not np.shares_memory(same, images)


def test_noise_of_an_image_depends_on_the_seed_and_its_place_alone():
    images = uniform(4, 1, 3, 3) / 100
    all_four = add_noise(images, 1e-4, seed=7, value_range=(-1, 1))
    np.testing.assert_array_equal(
        add_noise(images[:2], 1e-4, seed=7, value_range=(-1, 1)), all_four[:2]
    )
    other = add_noise(images, 1e-4, seed=8, value_range=(-1, 1))
    assert (other != all_four).all()
    twice = add_noise(images, 4e-4, seed=7, value_range=(-1, 1))
    np.testing.assert_allclose(twice - images, 2 * (all_four - images), atol=1e-7)


# Bad input

IMAGES = np.zeros((2, 1, 3, 3))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: mean_absolute_error(IMAGES, IMAGES[:1]), "images and reconstructions must have"),
        (lambda: mean_absolute_error(IMAGES[:0], IMAGES[:0]), r"N >= 1, got \[0, 1, 3, 3\]"),
        (
            lambda: mean_absolute_error(IMAGES - 1, IMAGES),
            r"images must be in the value_range \[0,",
        ),
        (lambda: mean_absolute_error(IMAGES, IMAGES + 2), r"reconstructions must be in .*\[2, 2\]"),
        (lambda: mean_absolute_error(IMAGES, IMAGES, value_range=(1, 0)), "value_range must be"),
        (lambda: mean_absolute_error(IMAGES, "x"), "reconstructions must be images"),
        (lambda: latent_error(np.zeros((2, 4)), np.zeros((2, 2, 2))), "must have the same shape"),
        (
            lambda: latent_error(np.zeros(4), np.zeros(4)),
            r"latents \[N, d\] with N >= 1, got \[4\]",
        ),
        (lambda: latent_error(np.zeros((0, 4)), np.zeros((0, 4))), "N >= 1"),
        (lambda: cosine_distance([[1.0, 2.0]], [[1.0]]), "latents and found must have the same"),
        (lambda: relative_error([1.0], [1.0]), r"activations \[N, d\] with N >= 1, got \[1\]"),
        (lambda: pairwise_distance([[1.0, 2.0]]), "N >= 2, got 1; a distance takes two"),
        (lambda: pairwise_distance([1.0, 2.0]), r"latents \[N, d\]"),
        (lambda: recovery_rate([], 1), r"errors must be \[N\] numbers with N >= 1, got \[0\]"),
        (lambda: recovery_rate([1, -1], 1), "errors must be 0 or above, got -1"),
        (lambda: recovery_rate([1], 0), "threshold must be a finite number above 0, got 0"),
        (lambda: recovery_rate([1], NAN), "threshold must be a finite number above 0, got nan"),
        (lambda: recovery_rate([[1]], 1), r"got \[1, 1\]"),
        (lambda: mean([]), r"values must be \[N\] numbers"),
        (lambda: mean(["a"]), r"values must be \[N\] numbers"),
        (lambda: median([]), r"values must be \[N\] numbers"),
        (
            lambda: quantile([1], 2),
            "fraction must be a finite number at least 0 and at most 1, got 2",
        ),
        (lambda: win_rate([1], [1, 2]), "errors and baseline_errors must have one number each"),
        (lambda: win_rate([], []), "errors must be"),
        (lambda: win_rate([1], [-2]), "baseline_errors must be 0 or above"),
        (
            lambda: significant_win_rate([1], [1], 1),
            "factor must be a finite number above 1, got 1",
        ),
        (lambda: significant_win_rate([1], [1, 2]), "one number each"),
        (lambda: rank_correlation([1, 2], [1]), "a and b must have one number each"),
        (lambda: rank_correlation([1], [1]), "N >= 2, got 1; an ordering takes two"),
        (
            lambda: add_noise(IMAGES, -1, seed=0, value_range=(0, 1)),
            "variance must be .* at least 0",
        ),
        (lambda: add_noise(IMAGES, None, seed=0, value_range=(0, 1)), "variance must be a finite"),
        (lambda: add_noise(IMAGES, 1, seed=-1, value_range=(0, 1)), "seed must be a whole number"),
        (lambda: add_noise(IMAGES, 1, seed=0, value_range=(1, 2)), r"images must be in .*\[0, 0\]"),
        (lambda: add_noise(IMAGES[:0], 1, seed=0, value_range=(0, 1)), "N >= 1"),
    ],
)
def test_bad_input_is_told_in_one_line(call, expected):
    with pytest.raises(InputError, match=expected) as caught:
        call()
    assert "\n" not in str(caught.value)
