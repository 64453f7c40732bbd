"""The engine's Levenberg-Marquardt stage does, step for step, what its NumPy twin does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pyinv import _core
from pyinv.constraints import Clip, StochasticClip
from pyinv.penalties import PriorPenalty
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Stage
from pyinv.solvers import LBFGS, Adam, GradientDescent, LevenbergMarquardt
from support import reference
from support.compare_reference import assert_agree, both, recipe, some_latents, twin
from support.least_squares_problems import (
    LINEAR,
    NET,
    OTHER,
    RESAMPLING,
    RULES,
    images_of,
    matrix,
    net,
)
from support.objectives import LeastSquares, Spoiled
from support.reference import CANCELLED, CONVERGED, IMPROVING, NON_FINITE, PLATEAU, STEP_LIMIT
from support.tolerances import assert_close

TANH = LeastSquares(0.7 * matrix(5, 24))
PROBLEMS = {"linear": LINEAR, "tanh of linear": TANH, "two layers": NET}


def solvable(*objectives):
    """Each objective and its normal equations, as ``use`` counts them: (0, 1), (2, 3), ..."""
    return [one for o in objectives for one in (o, getattr(o, "normal_equations", o))]


# The usual steps bring a loss to its floor within a few, and then rounding decides which are taken.
# The steady ones come near it one after the other, and end while their fall is well above rounding.
USUAL = Stage(LevenbergMarquardt(), max_steps=40)
STEADY = Stage(LevenbergMarquardt(1.0, down=0.9), max_steps=8, relative_change_tolerance=0.02)

HERE = {
    **RULES,
    "clip, own bounds": (Uniform(-0.5, 0.7), Clip(-0.6, 0.8), ()),
    "uniform, penalty": (Uniform(-0.5, 1.5), Clip(), (PriorPenalty(0.3, relative=True),)),
    "clip, penalty": (Normal(0.3, 0.7), Clip(-0.9, 1.2), (PriorPenalty(0.05),)),
}


@pytest.mark.parametrize("objective", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize(("prior", "constraint", "penalties"), HERE.values(), ids=HERE)
def test_every_prior_constraint_and_penalty(engine, objective, prior, constraint, penalties):
    stage = replace(STEADY, constraint=constraint, penalties=penalties)
    images = images_of(objective, 6, reach=2.5, noise=0.1)
    _, expected = both(
        engine, solvable(objective), recipe(stage), prior, images, seed=7, trace_every=1
    )
    assert np.median(expected.normal_equations) > 2

    # The rule had work to do in this case; without that, agreement would say nothing about it.
    if isinstance(constraint, RESAMPLING):
        assert expected.resampled.any()
    elif isinstance(constraint, Clip):
        bounds = constraint.fit(prior, max_steps=40)
        on_bound = np.isin(expected.latents, np.float32([bounds.low, bounds.high]))
        assert on_bound.any()
    if penalties:
        free = twin(solvable(objective), recipe(replace(stage, penalties=())), prior, images)
        assert np.abs(expected.latents - free.latents).max() > 1e-3


@pytest.mark.parametrize("size", [1, 2, 3, 33, 100, 200, 300, 512])
def test_latents_of_every_size(engine, size):
    """200 and more need more than the shared memory of any GPU, or than it gives without asking."""
    objective = net(size, pixels=size + 20, hidden=size + 10)
    stage = replace(STEADY, max_steps=3 if size > 100 else 20, penalties=(PriorPenalty(0.5),))
    images = images_of(objective, 2 if size > 100 else 5, noise=0.1)
    both(engine, solvable(objective), recipe(stage), Normal(), images, lanes=3)


@pytest.mark.parametrize(
    "solver",
    [LevenbergMarquardt(10.0), LevenbergMarquardt(0.1), LevenbergMarquardt(1.0, 2.0, 0.5)],
    ids=str,
)
def test_damping(engine, solver):
    images = images_of(NET, 8, reach=2.5, noise=0.1)
    stage = replace(STEADY, solver=solver, max_steps=5)
    _, expected = both(engine, solvable(NET), recipe(stage), Normal(), images, trace_every=1)
    usual = twin(solvable(NET), recipe(replace(stage, solver=STEADY.solver)), Normal(), images)
    assert not np.allclose(expected.latents, usual.latents, atol=1e-3)


# What is known without a twin


def least_squares(objective, image, ridge=0.0):
    """The latent of least loss + ridge / 2 |z|^2 of a linear objective."""
    a = objective.first.astype(np.float64).T
    hessian = 2 / objective.pixels * a.T @ a + ridge * np.eye(objective.size)
    return np.linalg.solve(hessian, 2 / objective.pixels * a.T @ image)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_linear_problem_takes_one_step(engine, weight):
    images = images_of(LINEAR, 5, noise=0.3)
    stage = Stage(LevenbergMarquardt(1e-8), penalties=(PriorPenalty(weight),), max_steps=1)
    prior = Normal(0.0, 0.5)
    result, _ = both(engine, solvable(LINEAR), recipe(stage), prior, images)
    np.testing.assert_array_equal(result["steps"], 1)
    np.testing.assert_array_equal(result["normal_equations"], 1)
    ridge = weight / (0.5**2 * LINEAR.size)
    right = [least_squares(LINEAR, image, ridge) for image in images]
    np.testing.assert_allclose(result["latents"], right, atol=2e-6)


@pytest.mark.parametrize("objective", [TANH, NET], ids=["tanh of linear", "two layers"])
@pytest.mark.parametrize(
    ("prior", "rules"),
    [
        (Uniform(), {"constraint": Clip()}),
        (Normal(), {"penalties": (PriorPenalty(2.0, relative=True),)}),
    ],
    ids=["uniform", "normal"],
)
def test_latents_of_generated_images_are_recovered(engine, objective, prior, rules):
    truth = some_latents(20, 5, reach=1.0)
    images = objective.generate(truth)
    stage = replace(USUAL, max_steps=100, loss_tolerance=1e-8, **rules)
    method = recipe(stage, restarts=10, start="mean")
    result, expected = both(engine, solvable(objective), method, prior, images, true_latents=truth)
    np.testing.assert_array_equal(result["status"], CONVERGED)
    assert (reference.latent_error(result["latents"], truth) < 1e-6).all()
    assert np.median(expected.normal_equations) < 10


def test_what_is_found_at_bounds_is_a_minimum(engine):
    """Within the bounds the slope is zero; at one it points out (Karush, Kuhn and Tucker)."""
    images = images_of(LINEAR, 16, reach=2.0, noise=0.1)
    stage = replace(USUAL, constraint=Clip())
    latents = engine(solvable(LINEAR), recipe(stage), Uniform(), images)["latents"]
    _, gradient = LINEAR(latents, images)
    low, high = latents == -1, latents == 1
    assert (gradient[low] > 0).all()
    assert (gradient[high] < 0).all()
    np.testing.assert_allclose(gradient[~(low | high)], 0, atol=1e-4)
    assert low.any()
    assert high.any()
    assert (low | high).sum(axis=1).min() < 5


@pytest.mark.parametrize("solver", [LevenbergMarquardt(), LBFGS()], ids=str)
@pytest.mark.parametrize("start", ["init", "draw", "stage before"])
def test_a_latent_from_beyond_the_bounds_is_clipped_first(engine, solver, start):
    """Brought back by the first trial, it would be judged by that, and nothing else would move."""
    objective = LeastSquares(np.eye(4), squash=False)
    images = objective.generate(np.float32([[5.0, 0.5, 0.5, -0.5]]))
    stages = [Stage(solver, Clip(-0.8, 1.0), max_steps=30)]
    if start == "stage before":
        stages.insert(0, Stage(GradientDescent(0.25), max_steps=2))
    prior, initial = Normal(0, 0.1), np.array([[3, 0, 0, 0]], dtype=np.float32)
    if start == "draw":
        prior, initial = Normal(9, 0.1), None
    found, _ = both(
        engine,
        solvable(objective),
        recipe(*stages),
        prior,
        images,
        initial=initial,
    )
    np.testing.assert_allclose(found["latents"][0], [1.0, 0.5, 0.5, -0.5], atol=2e-3)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_a_relative_penalty_minimises_the_logarithm_of_the_loss(engine, weight):
    images = images_of(LINEAR, 6, reach=2.0, noise=0.3)
    penalty = PriorPenalty(weight, relative=True)
    stage = replace(USUAL, penalties=(penalty,))
    result = engine(solvable(LINEAR), recipe(stage), Normal(0.2, 0.8), images)
    latents, loss = result["latents"], result["loss"][:, None]
    _, gradient = LINEAR(latents, images)
    pull = weight * (latents - 0.2) / (0.8**2 * 5)
    np.testing.assert_allclose(gradient / loss, -pull, atol=5e-3)
    assert np.abs(pull).max() > 0.1


def test_curvatures_that_differ_by_a_million(engine):
    # Diagonal, so that float32 holds the smallest beside the largest.
    curvature = np.diag(np.logspace(0, -3, 7))
    steep = LeastSquares(np.concatenate([curvature, np.zeros((7, 2))], axis=1), squash=False)
    truth = some_latents(6, 7, reach=1.0)
    stage = Stage(LevenbergMarquardt(1e-4), max_steps=30, loss_tolerance=1e-13)
    result, _ = both(
        engine, solvable(steep), recipe(stage), Normal(), steep.generate(truth), true_latents=truth
    )
    np.testing.assert_array_equal(result["status"], CONVERGED)
    np.testing.assert_allclose(result["latents"], truth, atol=2e-3)


# Systems that are singular, indefinite, or not finite


def dead(*components, size=5):
    """TANH with components that no pixel depends on."""
    first = TANH.first.copy()
    first[list(components)] = 0
    return LeastSquares(first)


@pytest.mark.parametrize("penalties", [(), (PriorPenalty(0.1),)], ids=["free", "penalty"])
def test_dead_components_stay_or_go_to_the_mean(engine, penalties):
    objective = dead(1, 4)
    initial = some_latents(6, 5)
    images = images_of(objective, 6, noise=0.1)
    method = recipe(replace(STEADY, penalties=penalties))
    result, _ = both(engine, solvable(objective), method, Normal(), images, initial=initial)
    left = np.abs(result["latents"] / initial)[:, [1, 4]]
    if penalties:
        assert (left < 0.7).all()
    else:
        np.testing.assert_array_equal(left, 1)
    assert np.abs(result["latents"] - initial)[:, [0, 2, 3]].min() > 1e-3


def test_without_any_slope_it_ends_where_it_began(engine):
    objective = dead(*range(5))
    initial = some_latents(3, 5)
    method, images = recipe(USUAL), images_of(TANH, 3)
    result, _ = both(engine, solvable(objective), method, Normal(), images, initial=initial)
    np.testing.assert_array_equal(result["status"], PLATEAU)
    # 4^14 * 0.001 is above 1e5, and no step before was taken.
    np.testing.assert_array_equal(result["steps"], 14)
    np.testing.assert_array_equal(result["normal_equations"], 1)
    np.testing.assert_array_equal(result["latents"], initial)


def test_fewer_pixels_than_components(engine):
    objective = LeastSquares(matrix(12, 5))
    images = images_of(objective, 6)
    stage = replace(STEADY, max_steps=4)
    result, expected = both(engine, solvable(objective), recipe(stage), Normal(), images)
    start = twin(solvable(objective), recipe(replace(STEADY, loss_tolerance=1e9)), Normal(), images)
    assert (result["loss"] < 1e-2 * start.loss).all()
    assert (expected.steps == 4).all()


BROKEN = {
    # name: place in the gram, value, what becomes of the target
    "indefinite": (([0, 1], [1, 0]), 3.0, None),
    "negative curvature": ((2, 2), -0.5, None),
    "negative on the whole": ((2, 2), -1e3, None),
    "beyond any damping": (([0, 1], [1, 0]), 1e30, PLATEAU),
}


@pytest.mark.parametrize(("place", "value", "status"), BROKEN.values(), ids=BROKEN)
def test_a_gram_that_is_not_positive_definite(engine, place, value, status):
    equations = Spoiled(TANH.normal_equations, -9.0, output="gram", place=place, value=value)
    method = recipe(replace(STEADY, max_steps=6), keep="best")
    images = images_of(TANH, 6, noise=0.1)
    result, expected = both(engine, [TANH, equations], method, Normal(), images, trace_every=1)
    assert np.isfinite(result["latents"]).all()
    if status is None:
        assert (expected.loss < expected.trace[:, 0]).all(), "the damping makes it definite"
    else:
        np.testing.assert_array_equal(result["status"], status)
        np.testing.assert_array_equal(result["steps"], 0)


NOT_FINITE = {
    "gram": ("gram", (2, 2)),
    "gram, below the diagonal": ("gram", (4, 0)),
    "gram, above the diagonal": ("gram", (0, 4)),
    "gradient": ("gradient", (3,)),
    "loss": ("loss", ()),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize(("output", "place"), NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_normal_equations_that_are_not_finite(engine, output, place, value, keep):
    equations = Spoiled(TANH.normal_equations, 0.5, output=output, place=place, value=value)
    truth = np.zeros((3, 5), dtype=np.float32)
    truth[:, 0] = [0.9, 0.9, -0.2]
    initial = np.zeros((3, 5), dtype=np.float32)
    initial[:, 0] = [0.2, 0.6, 0.2]
    method = recipe(replace(STEADY, solver=LevenbergMarquardt(1.0), loss_tolerance=1e-7), keep=keep)
    options = {"initial": initial, "trace_every": 1}
    result, expected = both(
        engine, [TANH, equations], method, Normal(), TANH.generate(truth), **options
    )
    np.testing.assert_array_equal(result["status"], [NON_FINITE, NON_FINITE, CONVERGED])
    # The first had taken steps, the last of them to beyond the limit, where its loss was finite.
    assert expected.steps[0] > 1
    assert result["latents"][0, 0] > 0.5
    assert np.isfinite(result["loss"][0])
    # The second began beyond it.
    assert result["steps"][1] == 0
    assert np.isnan(result["loss"][1])
    np.testing.assert_array_equal(result["latents"][1], initial[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_trial_that_is_not_finite_is_not_taken(engine, value):
    plain = Spoiled(TANH, 0.5, output="loss", value=value)
    truth = np.tile(np.float32([0.9, 0, 0, 0, 0]), (4, 1))
    method = recipe(USUAL)
    options = {
        "initial": np.zeros((4, 5), dtype=np.float32),
        "trace_every": 1,
        "true_latents": truth,
    }
    result, expected = both(
        engine, [plain, TANH.normal_equations], method, Normal(), TANH.generate(truth), **options
    )
    assert np.isfinite(result["latents"]).all()
    assert np.isfinite(result["loss"]).all()
    assert (result["latents"][:, 0] <= 0.5).all()
    # The trace stands still where a step is not taken.
    assert (np.diff(expected.trace[:, : result["steps"].min()]) == 0).any(axis=1).all()
    # Its latent was evaluated all the same.
    assert (result["min_latent_error"] < 0.01).all()
    assert (result["min_latent_error"] < reference.latent_error(result["latents"], truth)).all()


def test_the_gradient_of_a_trial_does_not_matter(engine):
    plain = Spoiled(TANH, -9.0, output="gradient", place=(0,))
    images = images_of(TANH, 4, noise=0.1)
    spoiled, _ = both(engine, [plain, TANH.normal_equations], recipe(STEADY), Normal(), images)
    clean = engine(solvable(TANH), recipe(STEADY), Normal(), images)
    np.testing.assert_array_equal(spoiled["latents"], clean["latents"])


def test_a_step_that_float32_cannot_hold_is_damped(engine):
    faint = LeastSquares(1e-8 * np.eye(2), squash=False)
    equations = Spoiled(
        faint.normal_equations, -9.0, output="gradient", place=([0, 1],), value=1e30
    )
    images = np.zeros((2, 2), dtype=np.float32)
    result, _ = both(engine, [faint, equations], recipe(STEADY), Normal(), images)
    assert np.isfinite(result["latents"]).all()
    assert np.isfinite(result["loss"]).all()


def test_attempts_that_are_not_finite_rank_behind(engine):
    equations = Spoiled(NET.normal_equations, 0.0, output="gram", place=(1, 1))
    images = images_of(NET, 12, noise=0.05)
    method, objectives = recipe(STEADY, restarts=3, keep="best"), [NET, equations]
    _, expected = both(engine, objectives, method, Normal(), images, seed=4)
    first = twin(objectives, replace(method, restarts=0), Normal(), images, seed=4)
    assert np.isnan(first.loss).any()
    assert (np.isnan(first.loss) & np.isfinite(expected.loss)).any()


# When to stop. One component: a step from the error e at damping l ends at e * l / (1 + l), and
# every step does as promised. With a damping of 1, 1/4, 1/16 the losses are 1, 0.25, 0.01, 3.5e-5.

SINGLE = LeastSquares(np.ones((1, 2)), squash=False)
FALLING = Stage(LevenbergMarquardt(1.0), max_steps=3)

STOPS = {
    "step limit": ({}, IMPROVING, 3, 3),
    "converged": ({"loss_tolerance": 0.02}, CONVERGED, 2, 2),
    "converged, at the start": ({"loss_tolerance": 1.01}, CONVERGED, 0, 1),
    "converged, at the last step": ({"loss_tolerance": 1e-4}, CONVERGED, 3, 3),
    "plateau": ({"change_tolerance": 0.3}, PLATEAU, 2, 2),
    "plateau, patience": ({"change_tolerance": 0.3, "patience": 2}, PLATEAU, 3, 3),
    "plateau, relative": ({"relative_change_tolerance": 0.8}, PLATEAU, 1, 1),
    "no plateau, relative": ({"relative_change_tolerance": 0.7}, IMPROVING, 3, 3),
    "converged before the plateau": (
        {"loss_tolerance": 0.02, "change_tolerance": 0.3},
        CONVERGED,
        2,
        2,
    ),
}


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("changes", "status", "steps", "equations"), STOPS.values(), ids=STOPS)
def test_stop_rules(engine, changes, status, steps, equations, keep):
    images = np.zeros((1, 2), dtype=np.float32)
    initial = np.ones((1, 1), dtype=np.float32)
    method = recipe(replace(FALLING, **changes), keep=keep)
    options = {"initial": initial, "trace_every": 1}
    # A stage that "change_tolerance" ends at step 2 has its normal equations from steps 0 and 1.
    result, _ = both(engine, solvable(SINGLE), method, Uniform(), images, **options)
    found = (result["status"][0], result["steps"][0], result["normal_equations"][0])
    assert found == (status, steps, equations)
    errors = [1, 0.5, 0.1, 0.1 / 17]
    np.testing.assert_allclose(result["latents"][0, 0], errors[steps], rtol=1e-5)
    losses = np.square(errors[: steps + 1])
    np.testing.assert_allclose(result["trace"][0, : steps + 1], losses, rtol=1e-5)
    assert np.isnan(result["trace"][0, steps + 1 :]).all()


# From 0 towards 1, with no step beyond 0.5 ever taken: steps that are taken and steps that are not.
BLOCKED = [Spoiled(SINGLE, 0.5, output="loss"), SINGLE.normal_equations]
BLOCKED_START = {
    "initial": np.zeros((1, 1), dtype=np.float32),
    "true_latents": np.ones((1, 1), dtype=np.float32),
    "trace_every": 1,
}


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_steps_not_taken_leave_patience_alone(engine, patience):
    # Any step that is taken is still.
    stage = Stage(LevenbergMarquardt(), max_steps=100, change_tolerance=9.0, patience=patience)
    images = np.ones((1, 2), dtype=np.float32)
    result, expected = both(
        engine, BLOCKED, recipe(stage), Normal(), images, use=[(0, 1)], **BLOCKED_START
    )
    assert result["status"][0] == PLATEAU
    # One evaluation where the stage begins and one after every step taken but the last.
    assert result["normal_equations"][0] == patience
    taken = np.flatnonzero(np.diff(expected.trace[0, : result["steps"][0] + 1]))
    assert len(taken) == patience
    assert len(taken) < result["steps"][0]
    if patience > 1:
        assert (np.diff(taken) > 1).any(), "steps that are not taken lie between"


@pytest.mark.parametrize("max_steps", [1, 4, 5, 6, 7])
def test_the_step_limit_counts_steps_that_are_not_taken(engine, max_steps):
    stage = Stage(LevenbergMarquardt(), max_steps=max_steps)
    images = np.ones((1, 2), dtype=np.float32)
    result, _ = both(engine, BLOCKED, recipe(stage), Normal(), images, **BLOCKED_START)
    status = IMPROVING if max_steps == 6 else STEP_LIMIT
    assert (result["status"][0], result["steps"][0]) == (status, max_steps)
    # 0.001 * 4^5 is the first damping under which a step stays below 0.5.
    assert (result["latents"][0, 0] > 0) == (max_steps > 5)
    assert result["latents"][0, 0] <= 0.5


def test_damping_beyond_a_hundred_thousand_ends(engine):
    stage = Stage(LevenbergMarquardt(up=10.0), max_steps=1000)
    images = np.ones((1, 2), dtype=np.float32)
    barred = [Spoiled(SINGLE, 0.0, output="loss"), SINGLE.normal_equations]
    result, _ = both(engine, barred, recipe(stage), Normal(), images, **BLOCKED_START)
    assert result["status"][0] == PLATEAU
    # 0.001 * 10^8 is 1e5, give or take a rounding.
    assert result["steps"][0] in (8, 9)
    assert result["latents"][0, 0] == 0


# What is kept, and what goes on


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_penalty_may_leave_a_higher_loss(engine, keep):
    truth = some_latents(4, 5, reach=1.0)
    stage = replace(STEADY, penalties=(PriorPenalty(1.0),))
    result, _ = both(
        engine,
        solvable(LINEAR),
        recipe(stage, keep=keep),
        Normal(),
        LINEAR.generate(truth),
        initial=truth,
    )
    if keep == "best":
        np.testing.assert_array_equal(result["latents"], truth)
    else:
        right = [least_squares(LINEAR, image, 1.0 / 5) for image in LINEAR.generate(truth)]
        np.testing.assert_allclose(result["latents"], right, atol=1e-2)
        assert (result["loss"] > 1e-2).all()


ARRIVE = Stage(GradientDescent(1e-3), loss_tolerance=1e30)
"""A stage that ends where it begins, and so tells what it was given."""


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("max_steps", [4, 6, 8])
def test_the_next_stage_gets_the_last_latent_taken(engine, max_steps, keep):
    stage = Stage(LevenbergMarquardt(), max_steps=max_steps)
    images = np.ones((1, 2), dtype=np.float32)
    alone = twin(BLOCKED, recipe(stage), Normal(), images, **BLOCKED_START)
    result, _ = both(
        engine,
        [*BLOCKED, SINGLE],
        recipe(stage, ARRIVE, keep=keep),
        Normal(),
        images,
        use=[(0, 1), 2],
        **BLOCKED_START,
    )
    assert result["status"][0] == CONVERGED
    np.testing.assert_allclose(result["latents"], alone.latents, rtol=1e-6)
    assert result["latents"][0, 0] <= 0.5, "the trial that was not taken was at more"


SEQUENCES = {
    "adam, then levenberg-marquardt": ((Stage(Adam(0.1), max_steps=15), STEADY), (0, (0, 1))),
    "levenberg-marquardt, then adam": ((STEADY, Stage(Adam(0.05), max_steps=15)), ((0, 1), 0)),
    "two losses": ((STEADY, replace(STEADY, max_steps=6)), ((0, 1), (2, 3))),
    "one loss, twice": ((replace(STEADY, max_steps=3), STEADY), ((0, 1), (0, 1))),
    "three": ((STEADY, Stage(GradientDescent(1.0), max_steps=10), STEADY), ((0, 1), 2, (2, 3))),
}

PRIORS = {
    "uniform": (Uniform(), {"constraint": Clip()}),
    "uniform, stochastic": (Uniform(), {"constraint": StochasticClip()}),
    "normal": (Normal(), {"penalties": (PriorPenalty(1.0, anneal=True, relative=True),)}),
}


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("stages", "use"), SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize(("prior", "rules"), PRIORS.values(), ids=PRIORS)
def test_stages_run_in_turn(engine, stages, use, prior, rules, keep):
    rules = {"relative_change_tolerance": 0.05, **rules}
    method = recipe(*(replace(stage, **rules) for stage in stages), keep=keep)
    images = images_of(NET, 9, reach=1.5, noise=0.1)
    options = {"use": use, "lanes": 4, "trace_every": 1, "seed": 3}
    _, expected = both(engine, solvable(NET, OTHER), method, prior, images, **options)
    assert len(set(expected.steps)) > 1, "lanes must be in different stages at a time"


def test_random_numbers_go_on_from_stage_to_stage(engine):
    images = images_of(NET, 6, reach=2.0, noise=0.1)
    stage = replace(STEADY, constraint=StochasticClip(), max_steps=3, relative_change_tolerance=0.0)
    first = Stage(Adam(0.3), StochasticClip(), max_steps=7)
    _, expected = both(
        engine,
        solvable(NET),
        recipe(first, stage, first),
        Uniform(),
        images,
        use=(0, (0, 1), 0),
        seed=2,
    )
    assert (expected.resampled > 3).all()


# Restarts, and where a target begins


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("start", "hop"), [("prior", 0.0), ("mean", 0.0), ("mean", 0.4)])
@pytest.mark.parametrize(
    ("prior", "rules"), [PRIORS["uniform"], PRIORS["normal"]], ids=["uniform", "normal"]
)
def test_restarts_keep_the_best_attempt(engine, prior, rules, start, hop, keep):
    images = images_of(NET, 16)
    stage = replace(STEADY, loss_tolerance=1e-4, relative_change_tolerance=0.0, **rules)
    method = recipe(stage, restarts=3, keep=keep, start=start, hop_size=hop)
    options = {"seed": 11, "lanes": 5, "trace_every": 1}
    _, expected = both(engine, solvable(NET), method, prior, images, **options)
    assert {1, 4} < set(expected.attempts), "some at once, some later, some never"


@pytest.mark.parametrize(
    ("prior", "mean"), [(Uniform(-1.0, 2.0), 0.5), (Normal(-0.75, 2.0), -0.75)], ids=str
)
@pytest.mark.parametrize("solver", [LevenbergMarquardt(), Adam(0.1)], ids=["damped", "adam"])
def test_the_first_attempt_may_begin_at_the_mean(engine, prior, mean, solver):
    images, objectives = images_of(NET, 5), solvable(NET)
    method = recipe(Stage(solver, loss_tolerance=1e30), start="mean")
    result, _ = both(engine, objectives, method, prior, images, lanes=2)
    np.testing.assert_array_equal(result["latents"], np.float32(mean))
    # What the call gives comes first; and restarts are drawn.
    given = some_latents(5, 5)
    result, _ = both(engine, objectives, method, prior, images, lanes=2, initial=given)
    np.testing.assert_array_equal(result["latents"], given)
    never = recipe(Stage(solver, max_steps=1), restarts=1, start="mean", keep="last")
    result, _ = both(engine, objectives, never, prior, images, lanes=2, trace_every=1)
    drawn = reference.draw_initial(prior.describe(), 0, range(5), 1, 5)
    np.testing.assert_allclose(result["trace"][:, 0], NET(drawn, images)[0], rtol=1e-4)


# However the call is made

RESTARTED = recipe(
    replace(STEADY, constraint=Clip(), loss_tolerance=3e-4, max_steps=12), restarts=2, keep="best"
)
VARIATIONS = {
    "1 lane": {"lanes": 1},
    "64 lanes": {"lanes": 64},
    "one at once": {"most_at_once": 1},
    "three at once": {"most_at_once": 3},
    "two threads": {"threads": 2},
    "seldom looked at": {"poll_every": 40},
}


def with_conditions(count):
    label = 0.5 * matrix(3, 6, seed=5)
    objective = net(5, pixels=8, hidden=6, label=label)
    condition = np.random.default_rng(6).standard_normal((count, 3)).astype(np.float32)
    return objective, condition


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("changes", VARIATIONS.values(), ids=VARIATIONS)
def test_results_do_not_depend_on_how_the_call_is_made(engine, changes):
    objective, condition = with_conditions(23)
    images = images_of(objective, 23, reach=1.2, condition=condition)
    options = {"lanes": 7, "condition": condition, "trace_every": 1, "seed": 6}
    arguments = solvable(objective), RESTARTED, Uniform(), images
    result, expected = both(engine, *arguments, **{**options, **changes})
    assert len(set(expected.attempts)) > 1
    assert len(set(expected.steps)) > 5
    base = engine(*arguments, **options)
    for name in ("status", "steps", "attempts", "normal_equations"):
        np.testing.assert_array_equal(result[name], base[name])
    for name, quantity in (("latents", "latent"), ("loss", "loss")):
        assert_close(result[name], base[name], f"{quantity}, other batch", device=engine.device)


def test_a_part_of_the_targets_gives_a_part_of_the_results(engine):
    objective, condition = with_conditions(12)
    images = images_of(objective, 12, reach=1.2, condition=condition)
    rows = np.array([10, 3, 7])
    arguments = solvable(objective), RESTARTED, Uniform()
    whole = twin(*arguments, images, condition=condition, seed=6)
    part = engine(
        *arguments, images[rows], condition=condition[rows], target_ids=rows, lanes=2, seed=6
    )
    assert_close(part["latents"], whole.latents[rows], "latent", device=engine.device)
    np.testing.assert_array_equal(part["normal_equations"], whole.normal_equations[rows])


def test_two_runs_give_the_same_bits(engine):
    images = images_of(NET, 9, noise=0.1)
    first, second = (
        engine(solvable(NET), RESTARTED, Uniform(), images, trace_every=1) for _ in range(2)
    )
    for name in ("latents", "loss", "trace"):
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("every", [3, 1000])
def test_trace(engine, every):
    images = images_of(NET, 6, noise=0.1)
    stages = Stage(Adam(0.1), max_steps=10), replace(STEADY, max_steps=12)
    options = {"use": (0, (0, 1)), "trace_every": every}
    result, _ = both(engine, solvable(NET), recipe(*stages), Normal(), images, **options)
    assert result["trace"].shape == (6, 1 + 22 // every)


def test_a_truth_changes_nothing_else(engine):
    images = images_of(NET, 9, noise=0.1)
    arguments = solvable(NET), RESTARTED, Uniform(), images
    measured = engine(*arguments, true_latents=some_latents(9, 5), trace_every=1)
    without = engine(*arguments, trace_every=1)
    for name in ("latents", "loss", "status", "steps", "normal_equations", "trace"):
        np.testing.assert_array_equal(measured[name], without[name])


# Cancelling


def test_cancelling_keeps_what_was_found(engine):
    """Even targets converge; odd ones never do, and take attempt after attempt."""
    truth = some_latents(6, 5, reach=0.9)
    images = LINEAR.generate(truth)
    off = np.linalg.svd(LINEAR.first)[2][-1].astype(np.float32)  # no latent comes near
    images[1::2] += off
    stage = Stage(LevenbergMarquardt(), Clip(), max_steps=10, loss_tolerance=1e-8)
    method = recipe(stage, restarts=4095, keep="best")

    def progress(report):
        if report["finished"] == 2:
            raise KeyboardInterrupt

    options = {"lanes": 2, "true_latents": truth, "progress": progress, "seed": 8}
    result = engine(solvable(LINEAR), method, Uniform(), images, **options)
    assert result["cancelled"]
    # On two lanes, 0 and 2 finish, 1 and 3 block the lanes, 4 and 5 must wait.
    np.testing.assert_array_equal(
        result["status"], [CONVERGED, CANCELLED, CONVERGED, CANCELLED, CANCELLED, CANCELLED]
    )
    np.testing.assert_allclose(result["latents"][:4], truth[:4], atol=1e-3)
    np.testing.assert_allclose(result["loss"][[1, 3]], 1 / 24, rtol=1e-3)
    assert (result["normal_equations"][:4] > 0).all()
    np.testing.assert_array_equal(result["normal_equations"][4:], 0)
    assert np.isnan(result["loss"][4:]).all()
    assert np.isnan(result["min_latent_error"][4:]).all()
    drawn = reference.draw_initial(Uniform().describe(), 8, range(6), 0, 5)
    np.testing.assert_array_equal(result["latents"][4:], drawn[4:])


# What cannot be run


def test_coupled_targets_are_refused(engine):
    images = images_of(NET, 3)
    with pytest.raises(ValueError, match=r"(?i)levenberg.?marquardt"):
        engine(solvable(NET), recipe(STEADY), Normal(), images, coupled=True)


REFUSED = {
    "no gram": ([NET, NET], (0, 1)),
    "a gram where a loss is wanted": ([NET.normal_equations, NET.normal_equations], (0, 1)),
    "no such function": ([NET, NET.normal_equations], (0, 2)),
    "another size": ([NET, net(6).normal_equations], (0, 1)),
}


@pytest.mark.parametrize(("objectives", "use"), REFUSED.values(), ids=REFUSED)
def test_objectives_that_do_not_fit_are_refused(engine, objectives, use):
    with pytest.raises(ValueError) as error:
        engine(objectives, recipe(STEADY), Normal(), images_of(NET, 3), use=[use])
    assert "\n" not in str(error.value)


def test_without_indices_normal_equations_come_after_the_losses(engine):
    """In the order of the stages, each loss once: as a C++ program gives them."""
    stages = (replace(STEADY, loss=loss, max_steps=3) for loss in ("whitened", "mse", "whitened"))
    method, images = recipe(*stages), images_of(NET, 3, noise=0.1)
    objectives = [OTHER, NET, OTHER.normal_equations, NET.normal_equations]
    result = _core.invert(
        objectives=[engine.load(one, threads=1) for one in objectives],
        recipe=json.dumps(method.describe()),
        prior=json.dumps(Normal().describe()),
        images=images,
        target_ids=np.arange(3, dtype=np.uint64),
        seed=0,
        lanes=2,
    )
    use = [(0, 2), (1, 3), (0, 2)]
    assert_agree(result, twin(objectives, method, Normal(), images, use=use), engine.device)


def test_too_long_a_latent_is_refused_with_what_to_do(engine):
    long = LeastSquares(np.ones((513, 1)), squash=False)
    with pytest.raises((ValueError, RuntimeError), match="512"):
        engine(solvable(long), recipe(STEADY), Normal(), np.zeros((1, 1), dtype=np.float32))


@pytest.mark.parametrize("which", ["plain", "normal equations"])
def test_functions_say_whether_they_have_a_gram(engine, which):
    objective = NET if which == "plain" else NET.normal_equations
    assert engine.load(objective, threads=1).has_gram == (which != "plain")
