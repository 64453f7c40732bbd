"""The C++ engine does, step for step, what its NumPy twin does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyinv import _core
from pyinv.constraints import (
    Clip,
    HardCutoff,
    LogisticCutoff,
    NoConstraint,
    StochasticClip,
    TruncatedNormalCutoff,
)
from pyinv.penalties import MomentPenalty, PriorPenalty
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Stage
from pyinv.solvers import Adam, Cosine, GradientDescent, RMSprop, StepDecay
from support import reference
from support.compare_reference import assert_agree, both, recipe, some_latents, twin
from support.objectives import Flat, NotANumberBeyond, Perceptron, Quadratic
from support.paths import REPOSITORY
from support.reference import CANCELLED, CONVERGED, IMPROVING, NON_FINITE, PLATEAU, STEP_LIMIT
from support.tolerances import assert_close

PERCEPTRON = Perceptron(5)


def distant_images(count, *, reach=2.5, seed=0, objective=PERCEPTRON):
    """Images whose latents lie well outside the priors, where every solver wants to go."""
    random = np.random.default_rng(seed)
    return objective.generate(random.uniform(-reach, reach, (count, 5)).astype(np.float32))


# Solvers, constraints, priors

SOLVERS = {
    "gradient descent": GradientDescent(4.0),
    "gradient descent, step decay": GradientDescent(6.0, schedule=StepDecay(10, 0.7)),
    "gradient descent, cosine": GradientDescent(8.0, schedule=Cosine(0.1)),
    "momentum": GradientDescent(1.0, momentum=0.8),
    "momentum, step decay": GradientDescent(1.5, momentum=0.8, schedule=StepDecay(10, 0.7)),
    "momentum, cosine": GradientDescent(1.5, momentum=0.8, schedule=Cosine()),
    "adam": Adam(0.1),
    "adam, step decay": Adam(0.2, beta1=0.8, schedule=StepDecay(10, 0.7)),
    "adam, cosine": Adam(0.2, beta1=0.0, beta2=0.99, epsilon=1e-3, schedule=Cosine(0.1)),
    "rmsprop": RMSprop(0.05),
    "rmsprop, step decay": RMSprop(0.05, alpha=0.98, schedule=StepDecay(10, 0.7)),
    "rmsprop, momentum, cosine": RMSprop(0.05, 0.9, 1e-3, 0.8, schedule=Cosine(0.1)),
}

CONSTRAINED_PRIORS = [
    (NoConstraint(), Uniform()),
    (NoConstraint(), Normal()),
    (Clip(), Uniform()),
    (Clip(high=1.0), Uniform(-0.5, 1.5)),
    (Clip(-1.0, 1.2), Normal()),
    (StochasticClip(), Uniform()),
    (StochasticClip(), Uniform(-0.5, 1.5)),
    (StochasticClip(-0.6, 0.8), Uniform()),
    (HardCutoff(1.2), Normal()),
    (HardCutoff(1.2), Normal(0.3, 0.7)),
    (LogisticCutoff(3.0, 1.0, horizon=10), Normal()),
    (LogisticCutoff(3.0, 1.0), Normal(0.3, 0.7)),
    (TruncatedNormalCutoff(1.5), Normal()),
    (TruncatedNormalCutoff(1.5, horizon=30), Normal(0.3, 0.7)),
]

RESAMPLING = (StochasticClip, HardCutoff, LogisticCutoff, TruncatedNormalCutoff)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize(("constraint", "prior"), CONSTRAINED_PRIORS, ids=str)
def test_every_solver_constraint_and_prior(engine, solver, constraint, prior):
    method = recipe(Stage(solver, constraint=constraint, max_steps=50))
    _, expected = both(engine, [PERCEPTRON], method, prior, distant_images(6), seed=7)
    assert (expected.steps == 50).all()

    # The rule had work to do in this case; without that, agreement would say nothing about it.
    if isinstance(constraint, RESAMPLING):
        assert (expected.resampled > 0).all()
    elif isinstance(constraint, Clip):
        bounds = constraint.fit(prior, max_steps=50)
        on_bound = np.isin(expected.latents, np.float32([bounds.low, bounds.high]))
        assert on_bound.any(axis=1).all()
    else:
        assert (np.abs(expected.latents) > 1.2).any()


@pytest.mark.parametrize("solver", ["momentum", "adam", "rmsprop", "rmsprop, momentum, cosine"])
@pytest.mark.parametrize(
    ("constraint", "prior"),
    [(StochasticClip(), Uniform()), (HardCutoff(1.2), Normal())],
    ids=["stochastic_clip", "hard_cutoff"],
)
def test_resampling_resets_moments_or_not(engine, solver, constraint, prior):
    stage = Stage(SOLVERS[solver], constraint=constraint, max_steps=50)
    images = distant_images(6)
    reset, _ = both(engine, [PERCEPTRON], recipe(stage), prior, images)
    kept, _ = both(engine, [PERCEPTRON], recipe(replace(stage, reset_moments=False)), prior, images)
    assert not np.allclose(reset["latents"], kept["latents"], atol=1e-2)


@pytest.mark.parametrize(
    "solver", [RMSprop(), RMSprop(0.05, 0.9, 1e-4, 0.8)], ids=["defaults", "all settings"]
)
def test_rmsprop_is_that_of_torch(engine, solver):
    torch = pytest.importorskip("torch")
    objective = Quadratic(5)
    images, start = objective.images(some_latents(3, 5, seed=3)), some_latents(3, 5, seed=4)
    method = recipe(Stage(solver, max_steps=30), keep="last")
    result = engine([objective], method, Normal(), images, initial=start)

    latents = torch.tensor(start)
    settings = solver.describe()
    steps = torch.optim.RMSprop(
        [latents],
        lr=settings["learning_rate"],
        alpha=settings["alpha"],
        eps=settings["epsilon"],
        momentum=settings["momentum"],
        foreach=False,
    )
    for _ in range(30):
        latents.grad = torch.tensor(objective(latents.numpy(), images, None)[1])
        steps.step()
    assert_close(result["latents"], latents.numpy(), "latent")


def test_a_component_beyond_a_hard_cutoff_never_stays(engine):
    # The decision word of this target's first update is 0xffffff88, whose uniform rounds up to 1.
    flat = Flat(1)
    method = recipe(Stage(GradientDescent(1.0), constraint=HardCutoff(1.0), max_steps=1))
    outside = np.full((1, 1), 3.0, dtype=np.float32)
    images = np.zeros((1, 1), dtype=np.float32)
    options = {"initial": outside, "target_ids": [13386920], "seed": 0}
    result, expected = both(engine, [flat], method, Normal(), images, **options)
    assert expected.resampled == [1]
    assert result["latents"][0, 0] != outside[0, 0]


@pytest.mark.parametrize(("constraint", "prior"), CONSTRAINED_PRIORS, ids=str)
def test_no_constraint_hides_an_update_that_overflowed(engine, constraint, prior):
    quadratic = Quadratic(2)
    initial = np.full((1, 2), 0.5, dtype=np.float32)
    images = quadratic.images([[-9.0, -9.0]])
    method = recipe(Stage(GradientDescent(3e38), constraint=constraint, max_steps=5), keep="best")
    result, _ = both(engine, [quadratic], method, prior, images, initial=initial)
    assert (result["status"][0], result["steps"][0]) == (NON_FINITE, 1)
    np.testing.assert_array_equal(result["latents"], initial)


# Penalties

LATENT_PENALTIES = {
    "moments": (MomentPenalty(0.5, 0.25, over="latent"),),
    "prior": (PriorPenalty(0.3),),
    "prior, annealed": (PriorPenalty(0.3, anneal=True),),
    "prior, relative": (PriorPenalty(2.0, relative=True),),
    "prior, annealed and relative": (PriorPenalty(2.0, anneal=True, relative=True),),
    "two": (MomentPenalty(0.5, 0.25, over="latent"), PriorPenalty(0.3, anneal=True)),
}


@pytest.mark.parametrize("solver", ["momentum, cosine", "adam"])
@pytest.mark.parametrize("penalties", LATENT_PENALTIES.values(), ids=LATENT_PENALTIES)
def test_penalties(engine, penalties, solver):
    stage = Stage(SOLVERS[solver], penalties=penalties, max_steps=50)
    images, prior = distant_images(6), Normal(0.3, 0.7)
    result, _ = both(engine, [PERCEPTRON], recipe(stage), prior, images)
    free = twin([PERCEPTRON], recipe(replace(stage, penalties=())), prior, images)
    assert np.abs(result["latents"] - free.latents).max() > 0.1


@pytest.mark.parametrize(
    "penalty", [MomentPenalty(0.5, 0.25, over="latent"), PriorPenalty(0.2)], ids=str
)
def test_penalties_of_a_uniform_prior(engine, penalty):
    stage = Stage(SOLVERS["momentum"], StochasticClip(), (penalty,), max_steps=50)
    both(engine, [PERCEPTRON], recipe(stage), Uniform(-0.5, 1.5), distant_images(6))


def test_moment_penalty_of_components_that_are_all_equal(engine):
    quadratic = Quadratic(3)
    penalty = MomentPenalty(1.0, 1.0, over="latent")
    method = recipe(Stage(GradientDescent(0.1), penalties=(penalty,), max_steps=20))
    initial = np.full((1, 3), 2.0, dtype=np.float32)
    images = quadratic.images([[-1.0, -1.0, -1.0]])
    result, _ = both(engine, [quadratic], method, Normal(), images, initial=initial)
    assert np.isfinite(result["latents"]).all()


def test_penalties_are_no_part_of_the_loss(engine):
    quadratic = Quadratic(2)
    method = recipe(
        Stage(GradientDescent(0.5), penalties=(PriorPenalty(1.0),), max_steps=100), keep="last"
    )
    images = quadratic.images([[2.0, 2.0]])
    result, _ = both(engine, [quadratic], method, Normal(), images)
    # (z - 2)^2 + z^2 / 2 is least at 4/3, where the first term is 4/9.
    np.testing.assert_allclose(result["latents"], 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(result["loss"], 4 / 9, rtol=1e-5)


def test_a_relative_penalty_minimises_the_logarithm_of_the_loss(engine):
    quadratic = Quadratic(1)
    penalty = PriorPenalty(4.0, relative=True)
    method = recipe(Stage(GradientDescent(0.1), penalties=(penalty,), max_steps=100))
    initial = np.array([[0.5], [2.1]], dtype=np.float32)
    images = quadratic.images([[2.0], [2.0]])
    result, _ = both(engine, [quadratic], method, Normal(), images, initial=initial)
    # log (z - 2)^2 + 4 z^2 / 2 has the slope zero at z (2 - z) = 1/2, and at 2 no bottom.
    np.testing.assert_allclose(result["latents"][0], 1 - np.sqrt(0.5), rtol=1e-5)
    np.testing.assert_allclose(result["latents"][1], 2.0, rtol=1e-5)


# When to stop. With one component, curvature 1, optimum 0, start 1 and this learning rate, z halves
# at every update, exactly, and so the loss is 4^-k.

HALVING = Stage(GradientDescent(0.25), max_steps=10)

STOPS = {
    "step limit": ({}, IMPROVING, 10),
    "converged, at the tolerance itself": ({"loss_tolerance": 4.0**-3}, CONVERGED, 3),
    "converged, at the start": ({"loss_tolerance": 1.0}, CONVERGED, 0),
    "converged, at the last step": ({"loss_tolerance": 4.0**-10}, CONVERGED, 10),
    "converged one step too late": ({"loss_tolerance": 4.0**-11}, IMPROVING, 10),
    "plateau": ({"change_tolerance": 3 * 4.0**-4}, PLATEAU, 4),
    "plateau, with patience": ({"change_tolerance": 3 * 4.0**-4, "patience": 3}, PLATEAU, 6),
    "plateau, relative": ({"relative_change_tolerance": 0.75}, PLATEAU, 1),
    "plateau, relative, patience": (
        {"relative_change_tolerance": 0.75, "patience": 5},
        PLATEAU,
        5,
    ),
    "no plateau, relative": ({"relative_change_tolerance": 0.74}, IMPROVING, 10),
    "either change will do": (
        {"relative_change_tolerance": 0.1, "change_tolerance": 3 * 4.0**-4},
        PLATEAU,
        4,
    ),
    "plateau before the step limit": (
        {"change_tolerance": 3 * 4.0**-10},
        PLATEAU,
        10,
    ),
    "converged before the plateau": (
        {"loss_tolerance": 4.0**-4, "change_tolerance": 3 * 4.0**-4},
        CONVERGED,
        4,
    ),
}


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("changes", "status", "steps"), STOPS.values(), ids=STOPS)
def test_stop_rules(engine, changes, status, steps, keep):
    quadratic = Quadratic(1)
    method = recipe(replace(HALVING, **changes), keep=keep)
    images, initial = quadratic.images([[0.0]]), np.ones((1, 1), dtype=np.float32)
    result, _ = both(engine, [quadratic], method, Uniform(), images, initial=initial)
    assert (result["status"][0], result["steps"][0]) == (status, steps)
    assert result["latents"][0, 0] == 2.0**-steps
    assert result["loss"][0] == 4.0**-steps


# The loss falls by (1 - 2 r)^2 at every update, and a tenth of the steps, rounded up, counts.
LIMITS = {
    "0.4 % a step": (0.001, 10, 0, STEP_LIMIT),
    "0.4 % a step, ten steps": (0.001, 100, 0, IMPROVING),
    "0.4 % a step, three steps": (0.001, 21, 0, IMPROVING),
    "0.4 % a step, two steps": (0.001, 20, 0, STEP_LIMIT),
    "one step": (0.25, 1, 0, IMPROVING),
    "a rise": (1.01, 1, 0, STEP_LIMIT),
    "of a negative loss": (0.25, 1, -10, IMPROVING),
    "of a negative loss, 0.4 %": (0.01, 1, -10, STEP_LIMIT),
}


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("rate", "max_steps", "floor", "status"), LIMITS.values(), ids=LIMITS)
def test_whether_the_loss_still_falls_at_the_step_limit(
    engine, rate, max_steps, floor, status, keep
):
    quadratic = Quadratic(1)
    images, initial = quadratic.images([[0.0]], floor=floor), np.ones((1, 1), dtype=np.float32)
    method = recipe(Stage(GradientDescent(rate), max_steps=max_steps), keep=keep)
    result, _ = both(engine, [quadratic], method, Uniform(), images, initial=initial)
    assert result["status"][0] == status


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience_starts_again_when_the_loss_moves(engine, patience):
    # Adam overshoots and comes back, so that single still steps lie between moving ones.
    stage = Stage(Adam(0.3), max_steps=200, relative_change_tolerance=0.05, patience=patience)
    _, expected = both(engine, [PERCEPTRON], recipe(stage), Normal(), distant_images(8))
    assert (expected.status == PLATEAU).any()


def test_patience_reaches_further_than_the_first_still_step():
    def steps(patience):
        stage = Stage(Adam(0.3), max_steps=200, relative_change_tolerance=0.05, patience=patience)
        return twin([PERCEPTRON], recipe(stage), Normal(), distant_images(8)).steps

    # At least one target must wait for longer than five steps in a row would take.
    assert (steps(5) > steps(1) + 4).any()


@pytest.mark.parametrize(("keep", "kept"), [("best", 0), ("last", 6)])
def test_what_is_kept_of_an_attempt_that_diverges(engine, keep, kept):
    quadratic = Quadratic(1)
    # z -> -2 z at every update.
    method = recipe(Stage(GradientDescent(1.5), max_steps=6), keep=keep)
    initial = np.ones((1, 1), dtype=np.float32)
    result, _ = both(
        engine, [quadratic], method, Uniform(), quadratic.images([[0.0]]), initial=initial
    )
    assert result["latents"][0, 0] == (-2.0) ** kept
    assert result["loss"][0] == 4.0**kept
    assert result["steps"][0] == 6


# Losses that are not finite


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_non_finite_ends_the_attempt_with_what_was_finite(engine, where, keep):
    trap = NotANumberBeyond(2, 0.5, where=where)
    method = recipe(Stage(GradientDescent(0.1), max_steps=100), keep=keep)
    images = trap.images([[1.0, 0.0], [0.3, 0.0], [1.0, 0.0]])
    initial = np.array([[0.0, 0.0], [0.0, 0.0], [0.9, 0.1]], dtype=np.float32)
    result, _ = both(engine, [trap], method, Normal(), images, initial=initial)

    np.testing.assert_array_equal(result["status"], [NON_FINITE, IMPROVING, NON_FINITE])
    # 1 - 0.9^k passes 0.5 at k = 7; the latent before that is the last finite one.
    np.testing.assert_array_equal(result["steps"], [7, 100, 0])
    np.testing.assert_allclose(result["latents"][0, 0], 1 - 0.9**6, rtol=1e-5)
    # Never finite: no loss, and the latent it began with.
    assert np.isnan(result["loss"][2])
    np.testing.assert_array_equal(result["latents"][2], initial[2])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_non_finite_attempts_rank_behind_finite_ones(engine, keep):
    trap = NotANumberBeyond(2, 0.2, where="loss")
    stage = Stage(GradientDescent(0.2), max_steps=30, loss_tolerance=1e-9)
    images = trap.images(np.zeros((12, 2)), floor=np.linspace(0, 0.2, 12))
    _, expected = both(
        engine, [trap], recipe(stage, restarts=3, keep=keep), Normal(), images, seed=4
    )
    first = twin([trap], recipe(stage, keep=keep), Normal(), images, seed=4)
    assert np.isnan(first.loss).any()
    assert (np.isnan(first.loss) & np.isfinite(expected.loss)).any()


# Stages

OTHER = Perceptron(5, seed=1)
TWO_STAGES = (
    Stage(SOLVERS["momentum"], StochasticClip(), max_steps=20),
    Stage(Adam(0.1), StochasticClip(), max_steps=30),
)


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("use", [(0, 0), (0, 1), (1, 0)], ids=str)
def test_stages_run_in_turn(engine, use, keep):
    method = recipe(*TWO_STAGES, keep=keep)
    images = distant_images(6)
    _, expected = both(engine, [PERCEPTRON, OTHER], method, Uniform(), images, use=use, seed=3)
    assert (expected.steps == 50).all()
    assert (expected.resampled > 0).all()


def test_stages_of_one_kind_differ_from_one_long_stage(engine):
    # A stage begins with fresh moments and its own count for the schedule.
    half = Stage(Adam(0.2, schedule=Cosine()), max_steps=25)
    images = distant_images(4)
    halves, _ = both(engine, [PERCEPTRON], recipe(half, half), Normal(), images)
    whole, _ = both(engine, [PERCEPTRON], recipe(replace(half, max_steps=50)), Normal(), images)
    assert not np.allclose(halves["latents"], whole["latents"], atol=1e-3)


def test_random_numbers_go_on_from_stage_to_stage(engine):
    # Two stages without a solver's influence draw what one stage of their joint length draws.
    flat = Flat(16)
    stage = Stage(GradientDescent(1.0), LogisticCutoff(3.0, 0.5, horizon=10), max_steps=8)
    images = np.zeros((5, 1), dtype=np.float32)
    long = recipe(replace(stage, max_steps=16))
    one, expected = both(engine, [flat], long, Normal(), images)
    two, _ = both(engine, [flat], recipe(stage, stage), Normal(), images)
    assert (expected.resampled > 8).all()
    np.testing.assert_array_equal(one["latents"], two["latents"])


def test_how_a_stage_ends_decides_what_comes_next(engine):
    quadratic = Quadratic(1)
    first = replace(HALVING, loss_tolerance=1e-3, change_tolerance=1e-3)
    second = Stage(GradientDescent(0.1), max_steps=7)
    # Losses: 4^-k converges; 1 + 4^-k stalls and goes on; 1e9 (rounded) is still at once.
    images = quadratic.images(np.zeros((3, 1)), floor=[0.0, 1.0, 1e9])
    initial = np.ones((3, 1), dtype=np.float32)
    result, _ = both(engine, [quadratic], recipe(first, second), Uniform(), images, initial=initial)
    np.testing.assert_array_equal(result["status"], [CONVERGED, STEP_LIMIT, STEP_LIMIT])
    np.testing.assert_array_equal(result["steps"], [5, 6 + 7, 1 + 7])


def test_best_is_of_the_last_stage(engine):
    quadratic = Quadratic(1)
    down, up = HALVING, Stage(GradientDescent(1.5), max_steps=3)
    method = recipe(down, up, keep="best")
    initial = np.ones((1, 1), dtype=np.float32)
    images = quadratic.images([[0.0]])
    result, _ = both(engine, [quadratic], method, Uniform(), images, initial=initial)
    # The second stage climbs; its own first loss is its best.
    assert result["loss"][0] == 4.0**-10
    swapped = recipe(up, replace(down, max_steps=1), keep="best")
    result, _ = both(engine, [quadratic], swapped, Uniform(), images, initial=initial)
    # The first stage began at loss 1, climbed to 4^3, and the second came down to 4^2.
    assert result["loss"][0] == 16.0


def test_a_stage_that_is_not_finite_ends_the_attempt(engine):
    quadratic, trap = Quadratic(1), NotANumberBeyond(1, 0.1, where="loss")
    stage = replace(HALVING, max_steps=3)
    images = quadratic.images([[0.0], [1.0]])
    initial = np.array([[1.0], [0.0]], dtype=np.float32)
    result, _ = both(
        engine,
        [trap, quadratic],
        recipe(stage, stage),
        Uniform(),
        images,
        use=(0, 1),
        initial=initial,
    )
    np.testing.assert_array_equal(result["status"], NON_FINITE)
    np.testing.assert_array_equal(result["steps"], [0, 1])
    np.testing.assert_array_equal(result["loss"], [np.nan, 1.0])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_last_stage_that_is_never_finite_leaves_the_latent_it_began_with(engine, keep):
    quadratic, trap = Quadratic(1), NotANumberBeyond(1, 0.1, where="loss")
    method = recipe(replace(HALVING, max_steps=2), HALVING, keep=keep)
    initial = np.ones((1, 1), dtype=np.float32)
    images = quadratic.images([[0.0]])
    result, _ = both(
        engine, [quadratic, trap], method, Uniform(), images, use=(0, 1), initial=initial
    )
    assert result["status"][0] == NON_FINITE
    assert np.isnan(result["loss"][0]), "a loss of another stage would be another function's"
    assert result["latents"][0, 0] == 0.25


def test_lanes_in_different_stages(engine):
    """Targets stall, restart and are replaced at different times, on two objectives at once."""
    pair = [Perceptron(5, condition_size=3, seed=seed) for seed in (0, 1)]
    random = np.random.default_rng(4)
    condition = random.standard_normal((14, 3)).astype(np.float32)
    images = pair[0].generate(random.uniform(-1.5, 1.5, (14, 5)).astype(np.float32), condition)
    stage = Stage(
        Adam(0.1),
        StochasticClip(),
        max_steps=40,
        loss_tolerance=3e-3,
        relative_change_tolerance=0.02,
        patience=2,
    )
    method = recipe(stage, replace(stage, solver=SOLVERS["momentum"]), restarts=1, keep="best")
    options = {"condition": condition, "lanes": 5, "trace_every": 1}
    _, expected = both(engine, pair, method, Uniform(), images, use=(1, 0), **options)
    assert len(set(expected.steps)) >= 10
    assert len(set(expected.status)) > 1


# Restarts


@pytest.mark.parametrize(("hop", "tolerance"), [(0.0, 1e-3), (0.4, 3e-4)])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_restarts_keep_the_best_attempt(engine, keep, hop, tolerance):
    stage = Stage(Adam(0.1), StochasticClip(), max_steps=30, loss_tolerance=tolerance)
    method = recipe(stage, restarts=3, keep=keep, hop_size=hop)
    images = distant_images(16, reach=1.0)
    _, expected = both(
        engine, [PERCEPTRON], method, Uniform(), images, seed=11, trace_every=1, lanes=5
    )

    assert set(expected.attempts) >= {1, 2, 4}, "some at once, some later, some never"
    assert (expected.attempts[expected.status != CONVERGED] == 4).all()
    last_attempt = np.nanmin(expected.trace, axis=1)
    assert (expected.loss < last_attempt).any(), "for some, an earlier attempt was the best"


def test_a_given_initial_latent_serves_the_first_attempt_only(engine):
    flat = Flat(4)
    method = recipe(Stage(GradientDescent(1.0), max_steps=2), restarts=1)
    initial = np.stack([np.full(4, 100.0), np.full(4, 1e-6)]).astype(np.float32)
    images = np.zeros((2, 1), dtype=np.float32)
    result, _ = both(engine, [flat], method, Normal(), images, initial=initial, seed=9)
    prior = json.dumps(Normal().describe())
    drawn = _core.draw_initial(prior, 9, np.arange(2, dtype=np.uint64), 1, 4)
    assert_close(result["latents"][0], drawn[0], "normal draw", device=engine.device)
    np.testing.assert_array_equal(result["latents"][1], initial[1])
    np.testing.assert_array_equal(result["attempts"], 2)
    np.testing.assert_array_equal(result["steps"], 4)


@pytest.mark.parametrize("prior", [Normal(0.5, 2.0), Uniform(-1.0, 3.0)], ids=str)
@pytest.mark.parametrize("penalty", ["plain", "relative", "annealed", "of a stage before"])
def test_attempts_are_compared_by_what_the_last_stage_minimises(engine, prior, penalty):
    # Hardly a step: an attempt ends where it begins.
    still = Stage(GradientDescent(1e-9), max_steps=1)
    weight = PriorPenalty(3.0, anneal=penalty == "annealed", relative=penalty == "relative")
    stages = [still, replace(still, penalties=(weight,))]
    if penalty == "of a stage before":
        stages.reverse()
    optimum, ids = some_latents(40, 3), np.arange(40, dtype=np.uint64)
    drawn = [_core.draw_initial(json.dumps(prior.describe()), 9, ids, k, 3) for k in range(4)]
    losses = np.mean((np.array(drawn) - optimum) ** 2, axis=2)
    pulls = 1.5 * np.mean((np.array(drawn) - prior.mean) ** 2, axis=2) / prior.std**2
    ranks = {"plain": losses + pulls, "relative": np.log(losses) + pulls}.get(penalty, losses)
    assert (ranks.argmin(axis=0) != losses.argmin(axis=0)).any() == (
        penalty in {"plain", "relative"}
    )

    quadratic = Quadratic(3)
    options = {"seed": 9, "lanes": 7}
    method = recipe(*stages, restarts=3)
    result, _ = both(engine, [quadratic], method, prior, quadratic.images(optimum), **options)
    best = np.array(drawn)[ranks.argmin(axis=0), ids.astype(int)]
    np.testing.assert_allclose(result["latents"], best, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("prior", "stay"), [(Normal(0.5, 2.0), 0.8), (Uniform(-1.0, 3.0), 0.4)], ids=str
)
def test_hops_lead_from_the_best_latent_towards_draws(engine, prior, stay):
    # Hardly a step: an attempt ends where it begins.
    still = Stage(GradientDescent(1e-9), max_steps=1)
    method = recipe(replace(still, max_steps=5), still, restarts=3, hop_size=0.6)
    first, optimum = some_latents(40, 3), some_latents(40, 3, seed=1)

    def distance(latents):
        return np.mean((latents - optimum) ** 2, axis=1, keepdims=True)

    best, ids = first, np.arange(40, dtype=np.uint64)
    for restart in (1, 2, 3):
        draw = _core.draw_initial(json.dumps(prior.describe()), 9, ids, restart, 3)
        hop = prior.mean + stay * (best - prior.mean) + 0.6 * (draw - prior.mean)
        nearer = distance(hop) < distance(best)
        assert 0 < nearer.sum() < 40
        best = np.where(nearer, hop, best)

    quadratic = Quadratic(3)
    options = {"initial": first, "seed": 9, "trace_every": 1, "lanes": 7}
    result, _ = both(engine, [quadratic], method, prior, quadratic.images(optimum), **options)
    np.testing.assert_allclose(result["latents"], best, rtol=0, atol=1e-5)
    # Hops leave out the first stage.
    np.testing.assert_array_equal(result["steps"], 6 + 3)
    assert np.isnan(result["trace"][:, 2:]).all()


def test_a_hop_needs_a_best_latent(engine):
    trap = NotANumberBeyond(2, 0.5, where="loss")
    method = recipe(Stage(GradientDescent(1e-9), max_steps=1), restarts=1, hop_size=0.5)
    prior = Normal()
    drawn = _core.draw_initial(json.dumps(prior.describe()), 0, np.arange(8, dtype=np.uint64), 1, 2)
    beyond = np.full((8, 2), 0.9, dtype=np.float32)
    result, _ = both(engine, [trap], method, prior, trap.images(drawn), initial=beyond)
    inside = drawn[:, 0] < 0.5
    assert 0 < inside.sum() < 8
    np.testing.assert_allclose(result["latents"][inside], drawn[inside], rtol=0, atol=1e-5)
    assert (result["status"] == np.where(inside, STEP_LIMIT, NON_FINITE)).all()


# Inputs and the trace


def test_condition_belongs_to_its_target(engine):
    conditional = Perceptron(5, condition_size=3)
    random = np.random.default_rng(2)
    condition = random.standard_normal((9, 3)).astype(np.float32)
    images = conditional.generate(random.uniform(-1, 1, (9, 5)).astype(np.float32), condition)
    stage = Stage(Adam(0.1), StochasticClip(), max_steps=50, loss_tolerance=2e-3)
    method = recipe(stage, restarts=1)
    options = {"condition": condition, "lanes": 4}
    result, expected = both(engine, [conditional], method, Uniform(), images, **options)
    assert len(set(expected.steps)) > 3, "targets must leave their lanes at different times"
    options["condition"] = condition[::-1].copy()
    other = engine([conditional], method, Uniform(), images, **options)
    assert not np.allclose(result["loss"], other["loss"], rtol=0.1)


def test_seed_and_target_ids(engine):
    method = recipe(Stage(Adam(0.1), StochasticClip(), max_steps=20))
    images = distant_images(3)
    options = {"seed": 2**64 - 3, "target_ids": [5, 2**32 + 5, 2**48 - 1]}
    result, _ = both(engine, [PERCEPTRON], method, Uniform(), images, **options)
    for changes in ({"seed": 2**32 - 3}, {"target_ids": [6, 2**32 + 6, 2**48 - 2]}):
        other, _ = both(engine, [PERCEPTRON], method, Uniform(), images, **{**options, **changes})
        assert (np.abs(other["latents"] - result["latents"]).max(axis=1) > 1e-2).all()


@pytest.mark.parametrize("every", [1, 3, 7, 1000])
def test_trace(engine, every):
    stages = tuple(replace(stage, loss_tolerance=0.03) for stage in TWO_STAGES)
    method = recipe(*stages, restarts=1)
    images = distant_images(8)
    result, expected = both(
        engine, [PERCEPTRON, OTHER], method, Uniform(), images, use=(0, 1), trace_every=every
    )
    assert result["trace"].shape == (8, 1 + 50 // every)
    if every == 1:
        assert np.isnan(expected.trace).any(), "some stop early"
        assert np.isfinite(expected.trace[:, -1]).any(), "some run to the end"


def test_trace_of_the_halving_loss(engine):
    quadratic = Quadratic(1)
    initial = np.ones((1, 1), dtype=np.float32)
    stage = replace(HALVING, loss_tolerance=4.0**-5)
    result, _ = both(
        engine,
        [quadratic],
        recipe(stage),
        Uniform(),
        quadratic.images([[0.0]]),
        initial=initial,
        trace_every=2,
    )
    np.testing.assert_array_equal(result["trace"][0], [1, 4.0**-2, 4.0**-4, *[np.nan] * 3])


def test_no_trace_unless_asked_for(engine):
    images = distant_images(1)
    result = engine([PERCEPTRON], recipe(Stage(Adam(0.1), max_steps=2)), Normal(), images)
    assert result["trace"] is None


# How near a target came to the latent behind it. z = 2^-k after k updates; each truth is met, or
# come nearest to, by the first latent, on the way, or by the last.

NEAREST = {
    "at the start": (3.0, 4.0),
    "on the way": (2.0**-3, 0.0),
    "on the way, between two updates": (0.375, 0.125**2),
    "at the end": (2.0**-10, 0.0),
    "at the end, from afar": (-1.0, (1 + 2.0**-10) ** 2),
}


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("truth", "nearest"), NEAREST.values(), ids=NEAREST)
def test_nearest_is_of_every_update(engine, truth, nearest, keep):
    quadratic = Quadratic(1)
    images, initial = quadratic.images([[0.0]]), np.ones((1, 1), dtype=np.float32)
    options = {"initial": initial, "true_latents": np.array([[truth]], dtype=np.float32)}
    method = recipe(HALVING, keep=keep)
    result, _ = both(engine, [quadratic], method, Uniform(), images, **options)
    assert result["min_latent_error"].dtype == np.float32
    np.testing.assert_array_equal(result["min_latent_error"], np.float32([nearest]))


def test_nearest_is_of_every_stage(engine):
    quadratic = Quadratic(1)
    # Down to 2^-10, from there out to (-2)^5, and halfway back.
    climbing = Stage(GradientDescent(1.5), max_steps=15)
    method = recipe(HALVING, climbing, replace(HALVING, max_steps=1))
    truth = np.array([[2.0**-3], [2.0**-10], [-32.0], [-16.0]], dtype=np.float32)
    images, initial = quadratic.images(np.zeros((4, 1))), np.ones((4, 1), dtype=np.float32)
    options = {"initial": initial, "true_latents": truth}
    result, _ = both(engine, [quadratic] * 2, method, Uniform(), images, use=(0, 1, 0), **options)
    np.testing.assert_array_equal(result["latents"], -16)
    np.testing.assert_array_equal(result["min_latent_error"], 0)


def test_nearest_is_a_mean_over_components(engine):
    flat = Flat(4)
    initial = np.arange(8, dtype=np.float32).reshape(2, 4)
    truth = initial + np.array([[1.0, -1.0, 2.0, 0.0], [0.5, 0.5, 0.5, 0.5]], dtype=np.float32)
    method, images = recipe(HALVING), np.zeros((2, 1), dtype=np.float32)
    result, _ = both(engine, [flat], method, Normal(), images, initial=initial, true_latents=truth)
    np.testing.assert_array_equal(result["min_latent_error"], [1.5, 0.25])


@pytest.mark.parametrize("coupled", [False, True])
def test_nearest_is_of_every_attempt(engine, coupled):
    # Nothing moves, so an attempt stays at its draw. Each truth is the draw of another attempt.
    flat, prior = Flat(5), Uniform()
    drawn = [
        reference.draw_initial(prior.describe(), 4, range(3), (row + 1) % 3, 5)[row]
        for row in range(3)
    ]
    method, images = recipe(HALVING, restarts=2), np.zeros((3, 1), dtype=np.float32)
    options = {"true_latents": np.stack(drawn), "seed": 4, "lanes": 2, "coupled": coupled}
    result, _ = both(engine, [flat], method, prior, images, **options)
    np.testing.assert_array_equal(result["attempts"], 3)
    np.testing.assert_array_equal(result["min_latent_error"], 0)
    # What is given back is of yet another attempt.
    assert (reference.latent_error(result["latents"], options["true_latents"]) > 0.01).all()


def test_nearest_is_no_number_where_no_error_is(engine):
    flat = Flat(2)
    initial = np.array([[-3e38, 0.0], [-3e38, 0.0], [1.0, 0.0]], dtype=np.float32)
    truth = np.array([[3e38, 0.0], [-3e38, 0.0], [0.0, 0.0]], dtype=np.float32)
    method, images = recipe(HALVING), np.zeros((3, 1), dtype=np.float32)
    options = {"initial": initial, "true_latents": truth, "lanes": 1}
    result, _ = both(engine, [flat], method, Normal(), images, **options)
    np.testing.assert_array_equal(result["min_latent_error"], [np.nan, 0.0, 0.5])


def test_nearest_is_found_on_the_way(engine):
    """It is the least error of all, and of a latent that is not given back."""
    method = recipe(Stage(Adam(0.3), StochasticClip(), max_steps=40), restarts=1)
    images, truth = distant_images(9, reach=1.0), some_latents(9, 5, reach=1.0)
    result, _ = both(engine, [PERCEPTRON], method, Uniform(), images, true_latents=truth)
    final = reference.latent_error(result["latents"], truth)
    assert (result["min_latent_error"] <= final).all()
    assert (result["min_latent_error"] < 0.5 * final).any()


@pytest.mark.parametrize("coupled", [False, True])
def test_a_truth_changes_nothing_else(engine, coupled):
    stages = tuple(replace(stage, loss_tolerance=0.03) for stage in TWO_STAGES)
    method = recipe(*stages, restarts=1, keep="best")
    arguments = [PERCEPTRON, OTHER], method, Uniform(), distant_images(9)
    options = {"use": (0, 0) if coupled else (0, 1), "coupled": coupled, "trace_every": 1}
    measured = engine(*arguments, true_latents=some_latents(9, 5), **options)
    without = engine(*arguments, **options)
    assert without["min_latent_error"] is None
    for name in ("latents", "loss", "status", "steps", "attempts", "trace"):
        np.testing.assert_array_equal(measured[name], without[name])
    assert measured["evaluations"] == without["evaluations"]


@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (15,)], ids=str)
def test_a_truth_of_another_shape_is_refused(engine, shape):
    method, images = recipe(HALVING), distant_images(3)
    with pytest.raises(ValueError, match=r"^true_latents must have shape \(3, 5\)$"):
        engine(
            [PERCEPTRON], method, Normal(), images, true_latents=np.zeros(shape, dtype=np.float32)
        )


# Coupled batches

COUPLED = Perceptron(5, batch_norm=True)

# Longer steps make the path of a small group chaotic, and its rounding visible.
GENTLE_SOLVERS = {"momentum": GradientDescent(0.1, momentum=0.8), "adam": Adam(0.04)}


def coupled_images(count):
    return distant_images(count, seed=3, objective=COUPLED)


@pytest.mark.parametrize("solver", GENTLE_SOLVERS.values(), ids=GENTLE_SOLVERS)
@pytest.mark.parametrize(
    ("constraint", "prior"),
    [(StochasticClip(), Uniform()), (TruncatedNormalCutoff(1.5), Normal())],
    ids=["stochastic_clip", "truncated_normal_cutoff"],
)
def test_batch_norm_couples_a_group(engine, solver, constraint, prior):
    method = recipe(Stage(solver, constraint=constraint, max_steps=50))
    images = coupled_images(10)
    result, expected = both(engine, [COUPLED], method, prior, images, coupled=True)
    assert expected.resampled.sum() > 10
    # 10 targets on 4 lanes make groups of 4, 3 and 3; on 5 lanes, two groups of 5.
    other = twin([COUPLED], method, prior, images, coupled=True, lanes=5)
    assert not np.allclose(result["latents"], other.latents, atol=1e-2)


def test_no_more_lanes_are_evaluated_at_once_than_allowed(engine):
    # Batch norm couples the lanes of one evaluation, so pairs of lanes are groups of 2.
    method = recipe(Stage(GENTLE_SOLVERS["adam"], max_steps=20))
    arguments = [COUPLED], method, Normal(), coupled_images(8)
    options = {"coupled": True, "trace_every": 1}
    result = engine(*arguments, lanes=4, most_at_once=2, **options)
    assert_agree(result, twin(*arguments, lanes=2, **options), engine.device)


@pytest.mark.parametrize("penalty", [MomentPenalty(0.5, 0.25), MomentPenalty()], ids=str)
@pytest.mark.parametrize(
    ("constraint", "prior"), [(StochasticClip(), Uniform()), (NoConstraint(), Normal(0.3, 0.7))]
)
def test_moment_penalty_over_the_batch(engine, penalty, constraint, prior):
    method = recipe(Stage(SOLVERS["momentum"], constraint, (penalty,), max_steps=50))
    both(engine, [PERCEPTRON], method, prior, distant_images(10), coupled=True)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_group_ends_together(engine, keep):
    # One component that halves its error at every update; the floor decides who converges when.
    quadratic = Quadratic(1)
    stage = replace(HALVING, loss_tolerance=4.0**-3, max_steps=30)
    images = quadratic.images(np.zeros((4, 1)))
    initial = np.array([[1.0], [16.0], [1.0], [1.0]], dtype=np.float32)
    options = {"initial": initial, "coupled": True, "lanes": 2}
    result, _ = both(engine, [quadratic], recipe(stage, keep=keep), Uniform(), images, **options)
    np.testing.assert_array_equal(result["status"], CONVERGED)
    np.testing.assert_array_equal(result["steps"], [7, 7, 3, 3])
    np.testing.assert_array_equal(result["latents"][:, 0], [2.0**-7, 2.0**-3, 2.0**-3, 2.0**-3])


def test_a_member_that_converged_keeps_what_it_had(engine):
    """Its group goes on to the next stage, and its loss would fall further; its attempt is over."""
    quadratic = Quadratic(1)
    stage = replace(HALVING, loss_tolerance=4.0**-3, max_steps=5)
    images = quadratic.images(np.zeros((2, 1)), floor=[0.0, 1.0])
    initial = np.ones((2, 1), dtype=np.float32)
    options = {"initial": initial, "coupled": True, "lanes": 2}
    truth = np.array([[2.0**-9], [2.0**-4]], dtype=np.float32)
    result, _ = both(
        engine, [quadratic], recipe(stage, stage), Uniform(), images, true_latents=truth, **options
    )
    np.testing.assert_array_equal(result["status"], [CONVERGED, STEP_LIMIT])
    np.testing.assert_array_equal(result["latents"][:, 0], [2.0**-5, 2.0**-10])
    np.testing.assert_array_equal(result["loss"], [4.0**-5, 1 + 4.0**-10])
    # What it did for its group's sake was evaluated all the same.
    np.testing.assert_array_equal(result["min_latent_error"], 0)


@pytest.mark.parametrize("hop", [0.0, 0.4])
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("solver", GENTLE_SOLVERS.values(), ids=GENTLE_SOLVERS)
def test_groups_through_stages_and_restarts(engine, solver, keep, hop):
    first = Stage(
        solver,
        StochasticClip(),
        max_steps=15,
        loss_tolerance=0.02,
        relative_change_tolerance=0.02,
        patience=2,
    )
    method = recipe(first, replace(first, max_steps=20), restarts=2, keep=keep, hop_size=hop)
    images = coupled_images(11)
    _, expected = both(
        engine, [COUPLED], method, Uniform(), images, coupled=True, trace_every=1, seed=2
    )
    assert len(set(expected.status)) > 1
    assert (expected.attempts > 1).any()


def test_a_group_restarts_as_one(engine):
    quadratic = Quadratic(1)
    stage = replace(HALVING, loss_tolerance=1e-3)
    images = quadratic.images(np.zeros((4, 1)), floor=[0.0, 1.0, 0.0, 0.0])
    options = {"coupled": True, "lanes": 2, "seed": 1}
    method = recipe(stage, restarts=2, keep="best")
    result, _ = both(engine, [quadratic], method, Uniform(), images, **options)
    np.testing.assert_array_equal(result["status"], [CONVERGED, STEP_LIMIT, CONVERGED, CONVERGED])
    np.testing.assert_array_equal(result["attempts"], [3, 3, 1, 1])


def test_a_group_is_done_once_each_has_converged_in_some_attempt(engine):
    # Two updates converge from |z| <= 0.4. With this seed the first target draws such a start in
    # its first attempt only, the second in its second; no attempt has both.
    quadratic = Quadratic(1)
    stage = replace(HALVING, max_steps=2, loss_tolerance=0.01)
    images = quadratic.images(np.zeros((2, 1)))
    options = {"coupled": True, "lanes": 2, "seed": 27}
    method = recipe(stage, restarts=2)
    result, _ = both(engine, [quadratic], method, Uniform(), images, **options)
    np.testing.assert_array_equal(result["status"], CONVERGED)
    np.testing.assert_array_equal(result["attempts"], 2)


def test_a_group_that_meets_nan(engine):
    trap = NotANumberBeyond(2, 0.5, where="loss")
    stage = Stage(GradientDescent(0.1), penalties=(MomentPenalty(),), max_steps=40)
    images = trap.images([[2.0, 0.0], [-1.0, 0.0], [-1.0, 0.5], [0.0, 0.0]])
    method = recipe(stage, restarts=1, keep="best")
    options = {"coupled": True, "lanes": 2, "seed": 5}
    _, expected = both(engine, [trap], method, Normal(), images, **options)
    # Where one stays behind, the other member of its group goes on.
    assert {NON_FINITE, STEP_LIMIT} <= set(expected.status)


# Independence of lanes, calls and threads

METHOD = recipe(
    Stage(Adam(0.1), StochasticClip(), max_steps=100, loss_tolerance=5e-3), restarts=1, keep="best"
)


def split_call(engine, parts, objective, method, prior, images, **options):
    """One call a part, put back together."""
    results = [
        engine([objective], method, prior, images[rows], target_ids=rows, **options)
        for rows in np.array_split(np.arange(len(images)), parts)
    ]
    return {key: np.concatenate([r[key] for r in results]) for key in ("latents", "loss", "status")}


VARIATIONS = {
    "two calls": (2, {}),
    "five calls": (5, {}),
    "64 lanes": (1, {"lanes": 64}),
    "one lane": (1, {"lanes": 1}),
    "two threads": (1, {"threads": 2}),
    "all": (5, {"lanes": 64, "threads": 2}),
}


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize(("parts", "changes"), VARIATIONS.values(), ids=VARIATIONS)
def test_results_do_not_depend_on_how_the_call_is_made(engine, parts, changes):
    wide = Perceptron(5, hidden=64, image_shape=(3, 16, 16))
    images = distant_images(23, reach=1.2, objective=wide)
    base = split_call(engine, 1, wide, METHOD, Uniform(), images, lanes=7, seed=6)
    other = split_call(
        engine, parts, wide, METHOD, Uniform(), images, **{"lanes": 7, **changes}, seed=6
    )
    np.testing.assert_array_equal(other["status"], base["status"])
    for key, quantity in (("latents", "latent"), ("loss", "loss")):
        assert_close(other[key], base[key], f"{quantity}, other batch", device=engine.device)


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize(
    ("constraint", "prior"),
    [
        (StochasticClip(-0.5, 0.5), Uniform()),
        (HardCutoff(0.5), Normal()),
        (LogisticCutoff(4.0, 0.5, horizon=5), Normal()),
        (TruncatedNormalCutoff(0.8), Normal()),
    ],
    ids=lambda rule: rule.kind(),
)
@pytest.mark.parametrize(("parts", "changes"), VARIATIONS.values(), ids=VARIATIONS)
def test_draws_do_not_depend_on_how_the_call_is_made(engine, constraint, prior, parts, changes):
    # Without a gradient, a latent is made of draws alone. 13 components leave a rest in any vector.
    flat = Flat(13)
    method = recipe(Stage(GradientDescent(1.0), constraint, max_steps=20), restarts=1)
    images = np.zeros((23, 1), dtype=np.float32)
    base = split_call(engine, 1, flat, method, prior, images, lanes=7, seed=6)
    other = split_call(
        engine, parts, flat, method, prior, images, **{"lanes": 7, **changes}, seed=6
    )
    np.testing.assert_array_equal(other["latents"], base["latents"])
    assert (twin([flat], method, prior, images, seed=6).resampled > 8).all()


def test_two_runs_give_the_same_bits(engine):
    images = distant_images(9)
    first, second = (engine([PERCEPTRON], METHOD, Uniform(), images) for _ in range(2))
    np.testing.assert_array_equal(first["latents"], second["latents"])


# Looking at the lanes seldom, as on a GPU: they wait, and nothing else


@pytest.mark.parametrize("lanes", [1, 3, 4])
@pytest.mark.parametrize("poll_every", [1, 3, 40])
def test_looking_seldom_changes_nothing(engine, poll_every, lanes):
    # Targets that converge, stall, change their objective, restart or run to the end.
    stages = tuple(replace(stage, loss_tolerance=0.03) for stage in TWO_STAGES)
    method = recipe(*stages, restarts=2, keep="best")
    objectives, images = [PERCEPTRON, OTHER], distant_images(13)
    options = {"use": (0, 1), "lanes": lanes, "trace_every": 5, "seed": 4}
    options["true_latents"] = some_latents(13, 5)
    looked = engine(objectives, method, Uniform(), images, poll_every=poll_every, **options)
    expected = twin(objectives, method, Uniform(), images, **options)
    assert_agree(looked, expected, engine.device)
    assert len(set(expected.status)) > 1
    assert len(set(expected.attempts)) > 1


@pytest.mark.parametrize("poll_every", [1, 3, 40])
def test_looking_seldom_at_groups_changes_nothing(engine, poll_every):
    first = Stage(GENTLE_SOLVERS["adam"], max_steps=15, loss_tolerance=0.02)
    second = replace(first, penalties=(MomentPenalty(0.2, 0.2),), max_steps=11)
    method = recipe(first, second, restarts=1, keep="best")
    arguments = [COUPLED, COUPLED], method, Uniform(), coupled_images(10)
    options = {
        "use": (0, 1),
        "coupled": True,
        "trace_every": 4,
        "true_latents": some_latents(10, 5),
    }
    looked = engine(*arguments, poll_every=poll_every, **options)
    assert_agree(looked, twin(*arguments, **options), engine.device)


def test_cancelling_between_looks_keeps_what_was_found(engine):
    quadratic = Quadratic(2)
    images = quadratic.images(np.zeros((9, 2)))
    calls = 0

    def progress(report):
        nonlocal calls
        calls += 1
        time.sleep(0.1)
        if calls == 3:
            raise KeyboardInterrupt

    stage = replace(HALVING, max_steps=12)
    options = {"lanes": 2, "seed": 8, "poll_every": 10, "progress": progress}
    options["true_latents"] = reference.draw_initial(Uniform().describe(), 8, range(9), 0, 2)
    result = engine([quadratic], recipe(stage), Uniform(), images, **options)
    assert result["cancelled"]
    done = result["status"] == IMPROVING
    assert 0 < done.sum() < len(images)
    np.testing.assert_array_equal(result["status"][~done], CANCELLED)
    np.testing.assert_array_equal(result["steps"][done], 12)
    np.testing.assert_allclose(result["latents"][done], 0.0, atol=0.1)
    # All that began are known to have begun at their first latent, the others to nothing.
    np.testing.assert_array_equal(
        result["min_latent_error"], np.where(result["attempts"] > 0, 0, np.nan)
    )
    assert np.isnan(result["min_latent_error"]).any()


# Progress, cancelling, threads, memory


def endless(count):
    """Even targets converge within a few updates; odd ones cannot, and run on for hours."""
    quadratic = Quadratic(3)
    method = recipe(
        Stage(GradientDescent(0.2), max_steps=2**31, loss_tolerance=1e-3), restarts=1, keep="best"
    )
    random = np.random.default_rng(0)
    optimum = random.uniform(-0.5, 0.5, (count, 3))
    return quadratic, method, quadratic.images(optimum, floor=np.arange(count) % 2)


def assert_partial(result, quadratic, images, seed):
    """Of six targets on two lanes, 0 and 2 finish, 1 and 3 block the lanes, 4 and 5 must wait."""
    assert result["cancelled"]
    np.testing.assert_array_equal(
        result["status"], [CONVERGED, CANCELLED, CONVERGED, CANCELLED, CANCELLED, CANCELLED]
    )
    assert (result["loss"][[0, 2]] <= 1e-3).all()
    np.testing.assert_allclose(result["loss"][[1, 3]], 1.0, atol=1e-5)
    np.testing.assert_allclose(result["latents"][[1, 3]], images[[1, 3], :3], atol=1e-3)
    assert np.isnan(result["loss"][4:]).all()
    drawn = reference.draw_initial(Uniform().describe(), seed, range(6), 0, 3)
    np.testing.assert_array_equal(result["latents"][4:], drawn[4:])
    assert (result["steps"][:4] > 0).all()
    np.testing.assert_array_equal(result["steps"][4:], 0)
    # The way to the optimum is straight: the last latent is the nearest.
    error = reference.latent_error(result["latents"], images[:, :3])
    np.testing.assert_allclose(result["min_latent_error"][:4], error[:4], rtol=1e-5, atol=1e-6)
    assert np.isnan(result["min_latent_error"][4:]).all()


@pytest.mark.parametrize("how", ["raise", "signal"])
def test_progress_can_cancel(engine, how):
    quadratic, method, images = endless(6)
    seen = []

    def progress(report):
        seen.append(dict(report))
        if len(seen) == 3:
            if how == "raise":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

    options = {"lanes": 2, "seed": 8, "true_latents": images[:, :3], "progress": progress}
    result = engine([quadratic], method, Uniform(), images, **options)
    assert_partial(result, quadratic, images, 8)
    assert len(seen) == 3
    assert all(report["targets"] == 6 for report in seen)
    assert seen[-1]["finished"] == 2
    assert seen[0]["evaluations"] < seen[-1]["evaluations"]


@pytest.mark.usefixtures("all_cores")
def test_control_c_cancels_at_once(engine):
    quadratic, method, images = endless(6)
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    try:
        options = {"lanes": 2, "seed": 8, "true_latents": images[:, :3]}
        result = engine([quadratic], method, Uniform(), images, **options)
    finally:
        timer.cancel()
    assert time.monotonic() - sent[0] < 0.5
    assert_partial(result, quadratic, images, 8)


def test_a_cancelled_group_keeps_its_best(engine):
    quadratic, method, images = endless(4)
    calls = []

    def progress(report):
        calls.append(report)
        if len(calls) == 2:
            raise KeyboardInterrupt

    options = {"lanes": 2, "coupled": True, "true_latents": images[:, :3], "progress": progress}
    result = engine([quadratic], method, Uniform(), images, **options)
    assert result["cancelled"]
    assert (result["min_latent_error"][:2] < 1e-3).all()
    assert np.isnan(result["min_latent_error"][2:]).all()
    np.testing.assert_allclose(result["loss"][1], 1.0, atol=1e-5)
    np.testing.assert_allclose(result["latents"][:2], images[:2, :3], atol=2e-2)
    np.testing.assert_array_equal(result["status"][1:], CANCELLED)
    assert np.isnan(result["loss"][2:]).all()


def test_other_errors_in_progress_come_through(engine):
    quadratic, method, images = endless(2)

    def progress(report):
        raise LookupError("from the callback")

    with pytest.raises(LookupError, match="from the callback"):
        engine([quadratic], method, Uniform(), images, progress=progress)


def test_progress_is_called_at_most_ten_times_a_second(engine):
    quadratic, method, images = endless(2)
    times = []

    def progress(report):
        times.append(time.monotonic())
        if len(times) == 6:
            raise KeyboardInterrupt

    engine([quadratic], method, Uniform(), images, progress=progress)
    assert times[-1] - times[0] > 0.45


@pytest.mark.usefixtures("all_cores")
def test_other_python_threads_run_meanwhile(engine):
    # The thread ends the run; were the lock held, the run would end by its step limit.
    quadratic, method, images = endless(2)
    method = recipe(replace(method.stages[0], max_steps=500_000))
    ticks = []

    def tick():
        for _ in range(50):
            time.sleep(0.001)
            ticks.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=tick)
    thread.start()
    result = engine([quadratic], method, Uniform(), images, lanes=2)
    finished = len(ticks)
    thread.join()
    assert result["cancelled"]
    assert finished == 50


@pytest.mark.usefixtures("all_cores")
def test_two_threads_invert_with_one_objective(backend, tmp_path):
    # In a process of its own: what goes wrong here takes the interpreter with it.
    run_script(
        """
        import json
        import sys
        import threading
        import numpy as np
        from support.objectives import Perceptron
        from pyinv import _core, runtimes
        from pyinv.constraints import StochasticClip
        from pyinv.devices import open_device
        from pyinv.priors import Uniform
        from pyinv.recipes import Recipe, Stage
        from pyinv.solvers import Adam

        path, runtime, device = sys.argv[1:]
        runtimes.load(runtime)
        perceptron = Perceptron(5)
        objective = perceptron.load(path, runtime=runtime, device=open_device(device))
        stage = Stage(Adam(0.1), StochasticClip(), max_steps=2000)
        recipe = Recipe("threads", (stage,)).fit(Uniform()).describe()
        recipe["stages"][0]["objective"] = 0
        prior = json.dumps(Uniform().describe())
        latents = np.random.default_rng(0).uniform(-1, 1, (12, 5)).astype(np.float32)

        def invert(rows, lanes):
            ids = np.arange(12, dtype=np.uint64)[rows]
            return _core.invert(
                objectives=[objective], recipe=json.dumps(recipe), prior=prior,
                images=perceptron.generate(latents[rows]), initial=None, condition=None,
                target_ids=ids, seed=0, lanes=lanes, coupled=False, trace_every=0, progress=None,
            )["latents"]

        calls = [(slice(0, 7), 3), (slice(7, 12), 4)]
        expected = [invert(*call) for call in calls]
        results = [None, None]

        def work(index):
            results[index] = invert(*calls[index])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result, right in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, right)
        """,
        tmp_path / "perceptron.file",
        backend.runtime,
        {"cpu": "cpu", "cuda": "cuda:0"}[backend.device],
    )


def run_script(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory use from /proc")
def test_memory_is_inputs_and_outputs(tmp_path):
    # Every size runs in a fresh process, so that its peak is its own.
    script = """
        import json
        import sys
        import numpy as np
        from support.objectives import Quadratic
        from pyinv import _core
        from pyinv.priors import Uniform
        from pyinv.constraints import StochasticClip
        from pyinv.recipes import Recipe, Stage
        from pyinv.runtimes import load_onnxruntime
        from pyinv.solvers import Adam

        def kilobytes(field):
            for line in open("/proc/self/status"):
                if line.startswith(field):
                    return int(line.split()[1])

        load_onnxruntime()
        count, size = int(sys.argv[1]), 256
        quadratic = Quadratic(size)
        objective = _core.OnnxObjective(quadratic.save(sys.argv[2]), threads=1)
        stage = Stage(Adam(0.1), StochasticClip(), max_steps=3)
        recipe = Recipe("memory", (stage,), restarts=1).fit(Uniform()).describe()
        recipe["stages"][0]["objective"] = 0
        prior = json.dumps(Uniform().describe())

        def invert(count):
            images = np.ones((count, size + 1), dtype=np.float32)
            ids = np.arange(count, dtype=np.uint64)
            before = kilobytes("VmRSS")
            result = _core.invert(
                objectives=[objective], recipe=json.dumps(recipe), prior=prior, images=images,
                initial=None, condition=None, target_ids=ids, seed=0, lanes=64, coupled=False,
                trace_every=0, progress=None,
            )
            outputs = sum(v.nbytes for v in result.values() if isinstance(v, np.ndarray))
            return kilobytes("VmHWM") - before - outputs / 1024

        invert(200)
        print(invert(count))
        """

    def extra(count):
        return float(run_script(script, count, tmp_path / f"{count}.onnx"))

    small, large = extra(2_000), extra(20_000)
    # One more number for every component would be 18 MB; a copy of the images as much.
    assert large - small < 3_000, (
        f"kB beyond outputs: {small:.0f} for 2,000, {large:.0f} for 20,000"
    )
