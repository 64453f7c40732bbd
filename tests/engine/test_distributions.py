"""What is random has the distribution that its rule promises.

Seeds are fixed, so these tests pass or fail for good. A correct engine with another seed would fail
a test here with probability below FALSE_ALARM: limits are the two-sided normal quantile, divided
among the test's comparisons (Bonferroni), or the Dvoretzky-Kiefer-Wolfowitz bound for a distance
between distribution functions, which holds for every sample size.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest

from pyinv import _core
from pyinv.constraints import HardCutoff, LogisticCutoff, StochasticClip, TruncatedNormalCutoff
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import GradientDescent
from support import reference
from support.backends import BACKENDS
from support.objectives import Flat

FALSE_ALARM = 1e-6


def assert_standard_normal(scores):
    """Scores that are normal with mean 0 and variance 1 if all is well."""
    scores = np.atleast_1d(scores)
    limit = NormalDist().inv_cdf(1 - FALSE_ALARM / 2 / scores.size)
    assert np.abs(scores).max() < limit


def assert_distributed(sample, prior):
    sample = np.sort(np.asarray(sample, dtype=np.float64).ravel())
    if isinstance(prior, Uniform):
        expected = np.clip((sample - prior.low) / (prior.high - prior.low), 0, 1)
    else:
        scores = (sample - prior.mean) / (prior.std * math.sqrt(2))
        expected = (1 + np.array([math.erf(score) for score in scores])) / 2
    ranks = np.arange(sample.size + 1) / sample.size
    distance = max(np.max(ranks[1:] - expected), np.max(expected - ranks[:-1]))
    assert distance < math.sqrt(math.log(2 / FALSE_ALARM) / (2 * sample.size))


def correlation_score(a, b):
    a, b = (
        np.float64(a) - np.mean(a, dtype=np.float64),
        np.float64(b) - np.mean(b, dtype=np.float64),
    )
    return np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)) * math.sqrt(a.size)


# Draws


PRIORS = [Uniform(), Uniform(0.25, 4.0), Normal(), Normal(-2.0, 0.3)]


def initial_latents(prior):
    targets = np.arange(200, dtype=np.uint64)
    return _core.draw_initial(json.dumps(prior.describe()), 1, targets, 0, 500).astype(np.float64)


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_initial_latents_follow_the_prior(prior):
    z = initial_latents(prior)
    assert_distributed(z, prior)

    mean, std = reference.prior_moments(prior.describe())
    scores = (z.ravel() - mean) / std
    kurtosis = 1.8 if isinstance(prior, Uniform) else 3.0
    count = math.sqrt(scores.size)
    assert_standard_normal(
        [scores.mean() * count, (np.mean(scores**2) - 1) * count / math.sqrt(kurtosis - 1)]
    )


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_initial_latents_are_independent(prior):
    z = initial_latents(prior)
    assert_standard_normal(
        [
            *(correlation_score(z[:, :-lag], z[:, lag:]) for lag in (1, 2, 3, 4, 8)),
            *(correlation_score(z[:-lag], z[lag:]) for lag in (1, 2, 3, 4, 8)),
        ]
    )


def test_uniform_latents_lie_within_their_bounds():
    z = initial_latents(Uniform())
    assert z.min() >= -1
    assert z.max() < 1


BASE = {"seed": 11, "target": 6, "restart": 1, "update": 5, "purpose": reference.RESAMPLING}

NEIGHBOURS = {
    "seed": {"seed": 12},
    "seed, high word": {"seed": 11 + 2**32},
    "target": {"target": 7},
    "target, high word": {"target": 6 + 2**32},
    "restart": {"restart": 2},
    "update": {"update": 6},
    "purpose": {"purpose": reference.INITIAL},
}


def stream(seed, target, restart, update, purpose):
    """The decision uniform, the uniform draw and the normal draw of 50,000 components."""
    words = reference.random_words(seed, [target], restart, update, purpose, 50_000)[0]
    return (
        reference.decision_uniform(words),
        reference.uniform_draw(words, 0.0, 1.0),
        reference.normal_draw(words, 0.0, 1.0),
    )


def test_decisions_are_uniform():
    assert_distributed(stream(**BASE)[0], Uniform(0.0, 1.0))


@pytest.mark.parametrize("change", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_draws_are_independent_across(change):
    base, other = stream(**BASE), stream(**{**BASE, **change})
    assert_standard_normal([correlation_score(a, b) for a in base for b in other])


def test_draws_are_independent_of_their_decision_and_of_other_components():
    decision, uniform, normal = stream(**BASE)
    assert_standard_normal(
        [
            correlation_score(decision, uniform),
            correlation_score(decision, normal),
            correlation_score(decision, normal**2),
            *(correlation_score(x[:-1], x[1:]) for x in (decision, uniform, normal)),
        ]
    )


# Constraints, on a latent that nothing else moves


def run_twin(recipe, prior, initial, images, seed):
    return reference.invert(
        [Flat(initial.shape[1])],
        recipe,
        prior.describe(),
        images,
        size=initial.shape[1],
        initial=initial,
        seed=seed,
    ).latents


def run_engine(objective, recipe, prior, initial, images, seed):
    return _core.invert(
        objectives=[objective],
        recipe=json.dumps(recipe),
        prior=json.dumps(prior.describe()),
        images=images,
        initial=initial,
        target_ids=np.arange(len(initial), dtype=np.uint64),
        seed=seed,
        lanes=16,
    )["latents"]


@pytest.fixture(params=[pytest.param(None, id="twin"), *BACKENDS])
def constrained(request, tmp_path):
    """What a constraint alone makes of latents in some steps."""
    if request.param:
        request.param.require()

    def run(constraint, prior, initial, steps, *, seed=21):
        stage = Stage(GradientDescent(1.0), constraint=constraint, max_steps=steps)
        recipe = Recipe("constraint", (stage,), keep="last").fit(prior).describe()
        recipe["stages"][0]["objective"] = 0
        initial = np.ascontiguousarray(initial, dtype=np.float32)
        images = np.zeros((len(initial), 1), dtype=np.float32)
        if not request.param:
            return run_twin(recipe, prior, initial, images, seed)
        objective = request.param.load(Flat(initial.shape[1]), tmp_path / "flat")
        return run_engine(objective, recipe, prior, initial, images, seed)

    return run


def hard(c):
    return lambda y: np.float64(np.abs(y) > c)


def logistic(a, b):
    return lambda y: 1 / (1 + np.exp(-a * (np.abs(y) - b)))


def truncated_normal(a):
    return lambda y: np.where(np.abs(y) > a, 1.0, np.exp(np.minimum(y * y - a * a, 0) / 2))


# The constraint, P(resampled within the horizon | y), the prior, the horizon, steps made.
CUTOFFS = {
    "hard": (HardCutoff(1.0), hard(1.0), Normal(), 1, 1),
    "hard, several steps": (HardCutoff(2.5), hard(2.5), Normal(0.3, 0.7), 5, 5),
    "logistic": (LogisticCutoff(2.0, 2.0), logistic(2, 2), Normal(), 20, 20),
    "logistic, one step": (LogisticCutoff(4.0, 1.0), logistic(4, 1), Normal(), 1, 1),
    "logistic, part of the horizon": (
        LogisticCutoff(2.0, 0.5, horizon=20),
        logistic(2, 0.5),
        Normal(0.3, 0.7),
        20,
        5,
    ),
    "logistic, beyond the horizon": (
        LogisticCutoff(2.0, 2.5, horizon=4),
        logistic(2, 2.5),
        Normal(),
        4,
        20,
    ),
    "truncated normal": (
        TruncatedNormalCutoff(2.5),
        truncated_normal(2.5),
        Normal(),
        20,
        20,
    ),
    "truncated normal, one step": (
        TruncatedNormalCutoff(1.5),
        truncated_normal(1.5),
        Normal(0.3, 0.7),
        1,
        1,
    ),
    "truncated normal, part of the horizon": (
        TruncatedNormalCutoff(1.5, horizon=20),
        truncated_normal(1.5),
        Normal(),
        20,
        3,
    ),
}


@pytest.mark.parametrize(
    ("constraint", "probability", "prior", "horizon", "steps"), CUTOFFS.values(), ids=CUTOFFS
)
def test_resampling_rate_of_a_cutoff(constrained, constraint, probability, prior, horizon, steps):
    # 24 places, none on a cutoff, each held by 100 components of each of 40 targets.
    y = np.linspace(-3.45, 3.45, 24)
    initial = np.tile(np.repeat(prior.mean + prior.std * y, 100), (40, 1)).astype(np.float32)
    final = constrained(constraint, prior, initial, steps)

    count = 100 * 40
    resampled = (final != initial).reshape(40, 24, 100).sum(axis=(0, 2))
    expected = 1 - (1 - probability(y)) ** (steps / horizon)
    certain = (expected == 0) | (expected == 1)
    np.testing.assert_array_equal(resampled[certain], count * expected[certain])
    if not certain.all():
        rate = expected[~certain]
        deviation = np.sqrt(count * rate * (1 - rate))
        # Where fewer than ten are expected on either side the normal quantile does not hold.
        enough = count * np.minimum(rate, 1 - rate) > 10
        assert enough.sum() >= 8
        assert_standard_normal((resampled[~certain] - count * rate)[enough] / deviation[enough])
        total = (resampled[~certain] - count * rate).sum() / math.sqrt((deviation**2).sum())
        assert_standard_normal(total)


@pytest.mark.parametrize("constraint", [HardCutoff(1.0), LogisticCutoff(2.0, 2.0)], ids=str)
def test_a_resampled_component_follows_the_normal_prior(constrained, constraint):
    prior = Normal(0.3, 0.7)
    initial = np.full((40, 1000), prior.mean + 2.0 * prior.std)
    final = constrained(constraint, prior, initial, 1)
    fresh = final[final != np.float32(initial)]
    assert fresh.size > 15_000
    assert_distributed(fresh, prior)


@pytest.mark.parametrize(
    ("constraint", "prior", "bounds"),
    [
        (StochasticClip(), Uniform(), Uniform()),
        (StochasticClip(), Uniform(0.25, 4.0), Uniform(0.25, 4.0)),
        (StochasticClip(-0.6, 0.8), Uniform(), Uniform(-0.6, 0.8)),
    ],
    ids=str,
)
def test_stochastic_clip_draws_every_component_anew(constrained, constraint, prior, bounds):
    middle = (bounds.low + bounds.high) / 2
    places = [bounds.low, bounds.high, bounds.low - 2, bounds.high + 2, middle]
    initial = np.tile(np.float32(places), (40, 300))
    final = constrained(constraint, prior, initial, 1).reshape(40, 300, 5)

    np.testing.assert_array_equal(final[..., 4], np.float32(middle))
    fresh = final[..., :4].reshape(40, -1)
    assert (fresh != initial.reshape(40, 300, 5)[..., :4].reshape(40, -1)).mean() > 0.999
    for place in range(4):
        assert_distributed(final[..., place], bounds)
    assert_standard_normal(
        [
            *(correlation_score(fresh[:, :-lag], fresh[:, lag:]) for lag in (1, 2, 4)),
            *(correlation_score(fresh[:-lag], fresh[lag:]) for lag in (1, 2, 4)),
        ]
    )


def test_every_step_draws_anew(constrained):
    # Beyond the cutoff of almost nothing, every step replaces every component.
    constraint, prior = HardCutoff(1e-6), Normal()
    initial = np.full((40, 1000), 5.0)
    steps = [constrained(constraint, prior, initial, count) for count in (1, 2, 3)]
    for final in steps:
        assert_distributed(final, prior)
    assert_standard_normal([correlation_score(a, b) for a, b in pairwise(steps)])


def test_seeds_draw_apart(constrained):
    constraint, prior = HardCutoff(1.0), Normal()
    initial = np.full((40, 1000), 5.0)
    one, two = (constrained(constraint, prior, initial, 1, seed=seed) for seed in (1, 2))
    assert_standard_normal(correlation_score(one, two))
