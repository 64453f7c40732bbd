"""The engine's L-BFGS stage does, step for step, what its NumPy twin does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pyinv.constraints import Clip, NoConstraint, StochasticClip
from pyinv.errors import RuleError
from pyinv.penalties import MomentPenalty, PriorPenalty
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Stage
from pyinv.solvers import LBFGS, Adam, GradientDescent, LevenbergMarquardt
from support import reference
from support.compare_reference import both, recipe, some_latents, twin
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
from support.objectives import (
    Dead,
    Flat,
    LeastSquares,
    NotANumberBeyond,
    Perceptron,
    Quadratic,
    Spoiled,
    Valley,
)
from support.reference import CANCELLED, CONVERGED, IMPROVING, NON_FINITE, PLATEAU, STEP_LIMIT
from support.tolerances import assert_close

# Many more pixels than components, so that what rounding does to a latent stays small.
BROAD = LeastSquares(0.7 * matrix(40, 400))
PROBLEMS = {
    "linear": LeastSquares(matrix(12, 80), squash=False),
    "tanh": LeastSquares(0.7 * matrix(12, 80)),
    "two layers": Perceptron(12, hidden=80, image_shape=(1, 10, 16)),
}

# Before rounding decides which steps are taken: it grows from step to step.
EARLY = Stage(LBFGS(), max_steps=5)

HERE = {
    **RULES,
    "clip, own bounds": (Uniform(), Clip(-0.6, 0.8), ()),
    "clip, penalty": (Normal(0.3, 0.7), Clip(-0.2, 0.7), (PriorPenalty(0.2),)),
}


@pytest.mark.parametrize("objective", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize(("prior", "constraint", "penalties"), HERE.values(), ids=HERE)
def test_every_prior_constraint_and_penalty(engine, objective, prior, constraint, penalties):
    stage = replace(EARLY, constraint=constraint, penalties=penalties)
    images = images_of(objective, 6, reach=2.5, noise=0.1, seed=1)
    _, expected = both(engine, [objective], recipe(stage), prior, images, seed=7, trace_every=1)
    assert (expected.loss < expected.trace[:, 0]).all()

    # The rule had work to do in this case; without that, agreement would say nothing about it.
    if isinstance(constraint, RESAMPLING):
        assert expected.resampled.any()
    elif isinstance(constraint, Clip):
        bounds = constraint.fit(prior, max_steps=1)
        on_bound = np.isin(expected.latents, np.float32([bounds.low, bounds.high]))
        assert on_bound.any(axis=1).sum() > 2
    if penalties:
        free = twin([objective], recipe(replace(stage, penalties=())), prior, images, seed=7)
        assert np.abs(expected.latents - free.latents).max() > 1e-3


@pytest.mark.parametrize("size", [1, 7, 8, 300, 20_000])
def test_latents_of_every_size(engine, size):
    objective = Quadratic(size, curvature=np.linspace(1, 9, size))
    images = objective.images(some_latents(3, size), floor=0.5)
    stage = replace(EARLY, constraint=Clip(), max_steps=4 if size == 1 else 10)
    both(engine, [objective], recipe(stage), Uniform(), images, lanes=2)


@pytest.mark.parametrize(
    "solver", [LBFGS(1), LBFGS(3), LBFGS(1000), LBFGS(first_step=5.0)], ids=str
)
def test_settings(engine, solver):
    images = images_of(BROAD, 8, noise=0.1)
    stage = replace(EARLY, solver=solver, max_steps=8)
    _, expected = both(engine, [BROAD], recipe(stage), Normal(), images, trace_every=1)
    if solver != LBFGS(1000):
        usual = twin([BROAD], recipe(replace(stage, solver=LBFGS())), Normal(), images)
        assert np.abs(expected.latents - usual.latents).max() > 1e-3


def some_preconditioner(size: int) -> Any:
    rows = np.random.default_rng(4).normal(size=(size, size))
    return (rows @ rows.T / size + 0.1 * np.eye(size)).astype(np.float32)


@pytest.mark.parametrize(
    ("prior", "constraint", "penalties"),
    [
        (Normal(), NoConstraint(), ()),
        (Uniform(), Clip(-0.6, 0.8), ()),
        (Uniform(), Clip(), (PriorPenalty(0.3, relative=True),)),
    ],
    ids=str,
)
@pytest.mark.parametrize("used", [True, False])
def test_a_preconditioner(engine, prior, constraint, penalties, used):
    stage = Stage(LBFGS(preconditioned=used), constraint, penalties, max_steps=7)
    images = images_of(BROAD, 6, reach=2.5, noise=0.1, seed=1)
    matrix = some_preconditioner(BROAD.size)
    options = {"trace_every": 1, "preconditioner": matrix}
    _, expected = both(engine, [BROAD], recipe(stage), prior, images, **options)
    without = twin([BROAD], recipe(stage), prior, images, trace_every=1)
    difference = np.abs(expected.latents - without.latents).max()
    assert difference > 1e-2 if used else difference == 0
    if isinstance(constraint, Clip):
        bounds = constraint.fit(prior, max_steps=1)
        on_bound = np.isin(expected.latents, np.float32([bounds.low, bounds.high]))
        assert on_bound.any(axis=1).sum() > 2


def test_the_inverse_hessian_solves_a_quadratic_in_two_steps(engine):
    """As the identity does for a round bowl."""
    size = 40
    objective = Quadratic(size, curvature=np.geomspace(1, 1000, size))
    images = objective.images(some_latents(3, size))
    stage = Stage(LBFGS(), max_steps=30, loss_tolerance=1e-6)
    inverse = np.diag(1 / np.geomspace(1, 1000, size)).astype(np.float32)
    with_it, _ = both(engine, [objective], recipe(stage), Normal(), images, preconditioner=inverse)
    without, _ = both(engine, [objective], recipe(stage), Normal(), images)
    assert (with_it["status"] == CONVERGED).all()
    assert with_it["steps"].max() <= 4 < without["steps"].min()


def test_a_random_problem_over_thirty_updates(engine):
    images = images_of(BROAD, 12, noise=0.1)
    stage = replace(EARLY, penalties=(PriorPenalty(1.0, relative=True),), max_steps=30)
    both(engine, [BROAD], recipe(stage), Normal(), images, trace_every=1)


# What is known without a twin


def test_a_relative_penalty_of_a_negative_loss_does_nothing(engine):
    objective = Quadratic(2)
    images = objective.images([[2.0, 1.0]], floor=-10.0)
    penalty = PriorPenalty(1.0, relative=True)
    for solver in (LBFGS(), GradientDescent(0.2)):
        stage = Stage(solver, penalties=(penalty,), max_steps=40)
        found, _ = both(engine, [objective], recipe(stage), Normal(), images)
        np.testing.assert_allclose(found["latents"], [[2.0, 1.0]], atol=1e-3)


def test_a_negative_loss_is_minimised_and_its_best_attempt_kept(engine):
    """It is below any tolerance from the start, and has no logarithm to rank attempts by."""
    objective = Quadratic(3, curvature=[1, 2, 3])
    images = objective.images(some_latents(8, 3), floor=-10.0)
    penalty = PriorPenalty(0.001, relative=True)
    stage = Stage(LBFGS(), penalties=(penalty,), max_steps=3, loss_tolerance=1e-8)
    found = {}
    for restarts in (0, 4):
        method = recipe(stage, restarts=restarts)
        found[restarts], _ = both(engine, [objective], method, Normal(), images)
    assert (found[0]["steps"] == 3).all()
    assert (found[4]["attempts"] == 5).all()
    assert (found[4]["loss"] <= found[0]["loss"]).all()
    assert (found[4]["loss"] < found[0]["loss"]).any()


@pytest.mark.parametrize(
    ("prior", "std"), [(Uniform(-1, 2), 3 / np.sqrt(12)), (Normal(0, 0.5), 0.5)], ids=str
)
def test_the_first_step_is_downhill_and_so_long(engine, prior, std):
    objective = Quadratic(6, curvature=[1, 2, 3, 4, 5, 6])
    initial = some_latents(4, 6)
    images = objective.images(some_latents(4, 6, reach=0.2, seed=1))
    stage = Stage(LBFGS(first_step=0.1), max_steps=1)
    result, _ = both(engine, [objective], recipe(stage), prior, images, initial=initial)
    _, gradient = objective(initial, images)
    downhill = -gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(result["latents"], initial + 0.1 * std * downhill, atol=1e-6)


def test_a_round_bowl_takes_two_steps(engine):
    """The first pair tells its curvature."""
    objective = Quadratic(9, curvature=3.0)
    optimum = some_latents(5, 9)
    stage = Stage(LBFGS(first_step=1.0), max_steps=2)
    result, _ = both(engine, [objective], recipe(stage), Normal(), objective.images(optimum))
    np.testing.assert_allclose(result["latents"], optimum, atol=1e-5)


@pytest.mark.parametrize("size", [4, 12, 40])
def test_quadratics_take_about_as_many_steps_as_components(engine, size):
    objective = Quadratic(size, curvature=np.linspace(1, 20, size))
    optimum = some_latents(6, size)
    stage = Stage(LBFGS(history=2 * size), max_steps=1000, loss_tolerance=1e-8)
    method = recipe(stage, start="mean")
    result = engine([objective], method, Normal(), objective.images(optimum))
    np.testing.assert_array_equal(result["status"], CONVERGED)
    np.testing.assert_allclose(result["latents"], optimum, atol=1e-3)
    assert (result["steps"] <= 10 + 2 * size).all()


def test_a_bent_valley(engine):
    images = np.float32([[1.0], [-0.8], [0.5], [1.5]])
    stage = Stage(LBFGS(), max_steps=300, loss_tolerance=1e-10)
    initial = np.tile(np.float32([-1.2, 1.0]), (4, 1))
    method = recipe(stage)
    result = engine([Valley()], method, Normal(), images, initial=initial)
    np.testing.assert_array_equal(result["status"], CONVERGED)
    np.testing.assert_allclose(result["latents"], np.hstack([images, images**2]), atol=1e-4)
    assert (result["steps"] < 60).all()
    early = recipe(replace(stage, max_steps=15))
    both(engine, [Valley()], early, Normal(), images, initial=initial, trace_every=1)


@pytest.mark.parametrize(
    ("prior", "rules"),
    [
        (Uniform(), {"constraint": Clip()}),
        (Normal(), {"penalties": (PriorPenalty(1.0, relative=True),)}),
    ],
    ids=["uniform", "normal"],
)
def test_latents_of_generated_images_are_recovered(engine, prior, rules):
    truth = some_latents(20, 5, reach=1.0)
    stage = Stage(LBFGS(), max_steps=300, loss_tolerance=1e-9, **rules)
    method = recipe(stage, restarts=10, start="mean")
    result = engine([NET], method, prior, NET.generate(truth), true_latents=truth)
    np.testing.assert_array_equal(result["status"], CONVERGED)
    assert (reference.latent_error(result["latents"], truth) < 1e-6).all()


def test_what_is_found_at_bounds_is_a_minimum(engine):
    """Within the bounds the slope is zero; at one it points out (Karush, Kuhn and Tucker)."""
    images = images_of(LINEAR, 16, reach=2.0, noise=0.1)
    stage = Stage(LBFGS(), Clip(), max_steps=200, relative_change_tolerance=1e-7, patience=3)
    latents = engine([LINEAR], recipe(stage), Uniform(), images)["latents"]
    _, gradient = LINEAR(latents, images)
    low, high = latents == -1, latents == 1
    assert (gradient[low] > 0).all()
    assert (gradient[high] < 0).all()
    np.testing.assert_allclose(gradient[~(low | high)], 0, atol=1e-3)
    assert low.any()
    assert high.any()
    assert (low | high).sum(axis=1).min() < 5


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_a_relative_penalty_minimises_the_logarithm_of_the_loss(engine, weight):
    images = images_of(LINEAR, 6, reach=2.0, noise=0.3)
    penalty = PriorPenalty(weight, relative=True)
    stage = Stage(LBFGS(), penalties=(penalty,), max_steps=60, relative_change_tolerance=1e-7)
    result = engine([LINEAR], recipe(stage), Normal(0.2, 0.8), images)
    latents, loss = result["latents"], result["loss"][:, None]
    _, gradient = LINEAR(latents, images)
    pull = weight * (latents - 0.2) / (0.8**2 * 5)
    np.testing.assert_allclose(gradient / loss, -pull, atol=5e-3)
    assert np.abs(pull).max() > 0.1


# Steps that are not taken. One component, from 0 towards 1: the first step goes to 0.3, the next
# one would go to 1.

SINGLE = Quadratic(1)
STUCK = {
    "initial": np.zeros((1, 1), dtype=np.float32),
    "true_latents": np.ones((1, 1), dtype=np.float32),
    "trace_every": 1,
}
TO_ONE = SINGLE.images([[1.0]])


def blocked(limit, *, where="loss"):
    return [NotANumberBeyond(1, limit, where=where)]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_trial_that_is_not_finite_is_not_taken(engine, where):
    stage = Stage(LBFGS(), max_steps=8)
    result, expected = both(
        engine, blocked(0.5, where=where), recipe(stage), Normal(), TO_ONE, **STUCK
    )
    assert 0.3 < result["latents"][0, 0] <= 0.5
    assert np.isfinite(result["loss"][0])
    # The second and third trial were at 1 and 0.3 + 0.3 * 0.7; the fourth one is taken.
    np.testing.assert_allclose(expected.trace[0, :5], [1, 0.49, 0.49, 0.49, 0.637**2], rtol=1e-5)
    assert result["min_latent_error"][0] < 1e-9, "the second trial was evaluated all the same"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("output", ["loss", "gradient"])
def test_a_start_that_is_not_finite_ends_the_attempt(engine, output, value):
    place = () if output == "loss" else (2,)
    spoiled = Spoiled(NET, 0.0, output=output, place=place, value=value)
    initial = some_latents(4, 5)
    initial[:, 0] = [-0.5, 0.5, -0.5, 0.5]
    method = recipe(replace(EARLY, max_steps=6))
    result, _ = both(engine, [spoiled], method, Normal(), images_of(NET, 4), initial=initial)
    np.testing.assert_array_equal(result["status"] == NON_FINITE, [False, True, False, True])
    np.testing.assert_array_equal(result["steps"][[1, 3]], 0)
    np.testing.assert_array_equal(result["latents"][[1, 3]], initial[[1, 3]])
    assert (result["latents"][[0, 2], 0] <= 0).all()
    assert np.isfinite(result["latents"]).all()


def test_twelve_trials_in_vain_without_pairs_end(engine):
    stage = Stage(LBFGS(), max_steps=100)
    result, _ = both(engine, blocked(0.0), recipe(stage), Normal(), TO_ONE, **STUCK)
    assert (result["status"][0], result["steps"][0]) == (PLATEAU, 12)
    assert result["latents"][0, 0] == 0


def test_pairs_are_forgotten_once_before_it_ends(engine):
    stage = Stage(LBFGS(), max_steps=200)
    result, expected = both(engine, blocked(0.3), recipe(stage), Normal(), TO_ONE, **STUCK)
    assert result["status"][0] == PLATEAU
    trace = expected.trace[0, : result["steps"][0] + 1]
    taken = np.flatnonzero(np.diff(trace))
    assert len(trace) - 2 - taken[-1] == 24, "12 trials with pairs, and 12 without"
    np.testing.assert_allclose(result["latents"][0, 0], 0.3, atol=1e-5)


@pytest.mark.parametrize("max_steps", [1, 2, 3, 4, 7])
def test_the_step_limit_counts_trials(engine, max_steps):
    stage = Stage(LBFGS(), max_steps=max_steps)
    result, _ = both(engine, blocked(0.5), recipe(stage), Normal(), TO_ONE, **STUCK)
    status = IMPROVING if max_steps in (1, 4, 7) else STEP_LIMIT  # whether the last trial was taken
    assert (result["status"][0], result["steps"][0]) == (status, max_steps)
    assert result["latents"][0, 0] <= 0.5


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_trials_not_taken_leave_patience_alone(engine, patience):
    # Any step that is taken is still.
    stage = Stage(LBFGS(), max_steps=100, change_tolerance=9.0, patience=patience)
    result, expected = both(engine, blocked(0.5), recipe(stage), Normal(), TO_ONE, **STUCK)
    assert result["status"][0] == PLATEAU
    taken = np.flatnonzero(np.diff(expected.trace[0, : result["steps"][0] + 1]))
    assert len(taken) == patience
    assert patience == 1 or len(taken) < result["steps"][0]


def test_without_any_slope_it_ends_where_it_began(engine):
    initial = some_latents(3, 4)
    images = np.zeros((3, 1), dtype=np.float32)
    options = {"initial": initial, "trace_every": 1}
    result, _ = both(engine, [Flat(4)], recipe(EARLY), Normal(), images, **options)
    np.testing.assert_array_equal(result["status"], PLATEAU)
    np.testing.assert_array_equal(result["steps"], 0)
    np.testing.assert_array_equal(result["latents"], initial)


@pytest.mark.parametrize("hop_size", [0.0, 0.5])
@pytest.mark.parametrize("restarts", [0, 2])
def test_without_any_slope_at_the_mean_a_restart_is_not_counted(engine, restarts, hop_size):
    images = np.maximum(some_latents(4, 3), np.float32(0.3))
    method = recipe(EARLY, restarts=restarts, start="mean", hop_size=hop_size)
    result, _ = both(engine, [Dead(3)], method, Normal(), images)
    assert result["attempts"].max() == restarts + 2
    assert (result["loss"] < (images**2).mean(axis=1)).any()


def test_where_all_slopes_point_out_of_the_bounds_it_ends(engine):
    objective = Quadratic(3)
    initial = np.float32([[1, -1, 1]] * 2)
    stage = replace(EARLY, constraint=Clip())
    images = objective.images(3 * initial)
    result, _ = both(engine, [objective], recipe(stage), Uniform(), images, initial=initial)
    np.testing.assert_array_equal(result["status"], PLATEAU)
    np.testing.assert_array_equal(result["latents"], initial)


@pytest.mark.parametrize("scale", [1e-30, 1e6])
def test_slopes_of_any_size(engine, scale):
    objective = Quadratic(4, curvature=np.float32(scale) * np.float32([1, 2, 3, 4]))
    images = objective.images(some_latents(3, 4))
    stage = replace(EARLY, max_steps=8)
    result = engine(
        [objective], recipe(stage), Normal(), images, initial=some_latents(3, 4, seed=1)
    )
    assert np.isfinite(result["latents"]).all()
    np.testing.assert_allclose(result["latents"], images[:, :4], atol=0.1)


def test_a_first_step_that_float32_cannot_hold(engine):
    stage = Stage(LBFGS(first_step=1e38), max_steps=5)
    initial = some_latents(3, 5)
    images = images_of(NET, 3)
    result, _ = both(engine, [NET], recipe(stage), Normal(0, 1e20), images, initial=initial)
    np.testing.assert_array_equal(result["status"], PLATEAU)
    np.testing.assert_array_equal(result["latents"], initial)


def test_attempts_that_are_not_finite_rank_behind(engine):
    spoiled = Spoiled(NET, 0.0, output="gradient", place=(1,))
    images = images_of(NET, 12, noise=0.05)
    method = recipe(EARLY, restarts=3, keep="best")
    _, expected = both(engine, [spoiled], method, Normal(), images, seed=4)
    first = twin([spoiled], replace(method, restarts=0), Normal(), images, seed=4)
    assert np.isnan(first.loss).any()
    assert (np.isnan(first.loss) & np.isfinite(expected.loss)).any()


# When to stop. A round bowl: losses 1, 0.49, 0.

STOPS = {
    "converged": ({"loss_tolerance": 0.5}, CONVERGED, 1),
    "converged, at the start": ({"loss_tolerance": 1.01}, CONVERGED, 0),
    "converged, at the last step": ({"loss_tolerance": 1e-9, "max_steps": 2}, CONVERGED, 2),
    "step limit": ({"max_steps": 1}, IMPROVING, 1),
    "plateau": ({"change_tolerance": 0.52}, PLATEAU, 1),
    "plateau, patience": ({"change_tolerance": 0.52, "patience": 2}, PLATEAU, 2),
    "plateau, relative": ({"relative_change_tolerance": 0.52}, PLATEAU, 1),
    "converged before the plateau": ({"loss_tolerance": 0.5, "change_tolerance": 1}, CONVERGED, 1),
}


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("changes", "status", "steps"), STOPS.values(), ids=STOPS)
def test_stop_rules(engine, changes, status, steps, keep):
    method = recipe(Stage(LBFGS(), **{"max_steps": 9, **changes}), keep=keep)
    result, _ = both(engine, [SINGLE], method, Normal(), TO_ONE, **STUCK)
    assert (result["status"][0], result["steps"][0]) == (status, steps)
    errors = np.float32([1, 0.7, 0])
    np.testing.assert_allclose(result["latents"][0, 0], 1 - errors[steps], atol=1e-6)
    np.testing.assert_allclose(result["trace"][0, : steps + 1], errors[: steps + 1] ** 2, atol=1e-6)
    assert np.isnan(result["trace"][0, steps + 1 :]).all()


# What is kept, and what goes on


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_penalty_may_leave_a_higher_loss(engine, keep):
    truth = some_latents(4, 5, reach=1.0)
    stage = Stage(LBFGS(), penalties=(PriorPenalty(1.0),), max_steps=60, change_tolerance=1e-7)
    method = recipe(stage, keep=keep)
    result = engine([LINEAR], method, Normal(), LINEAR.generate(truth), initial=truth)
    if keep == "best":
        np.testing.assert_array_equal(result["latents"], truth)
    else:
        assert (result["loss"] > 1e-2).all()
        assert (np.linalg.norm(result["latents"], axis=1) < np.linalg.norm(truth, axis=1)).all()


ARRIVE = Stage(GradientDescent(1e-3), loss_tolerance=1e30)
"""A stage that ends where it begins, and so tells what it was given."""


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("max_steps", [2, 3, 4])
def test_the_next_stage_gets_the_last_latent_taken(engine, max_steps, keep):
    stage = Stage(LBFGS(), max_steps=max_steps)
    objectives = [*blocked(0.5), SINGLE]
    alone = twin(objectives, recipe(stage), Normal(), TO_ONE, **STUCK)
    method = recipe(stage, ARRIVE, keep=keep)
    result, _ = both(engine, objectives, method, Normal(), TO_ONE, use=[0, 1], **STUCK)
    assert result["status"][0] == CONVERGED
    np.testing.assert_allclose(result["latents"], alone.latents, rtol=1e-6)
    assert result["latents"][0, 0] <= 0.5, "the trial that was not taken was at more"


SHORT = Stage(LBFGS(history=4), max_steps=9, relative_change_tolerance=0.1)
LM = Stage(LevenbergMarquardt(), max_steps=9, relative_change_tolerance=1e-2)
SEQUENCES = {
    "adam, then lbfgs": ((Stage(Adam(0.1), max_steps=15), SHORT), (0, 0)),
    "lbfgs, then adam": ((SHORT, Stage(Adam(0.05), max_steps=15)), (0, 0)),
    "two losses": ((SHORT, replace(SHORT, solver=LBFGS(6))), (0, 2)),
    "one loss, twice": ((replace(SHORT, max_steps=3), SHORT), (0, 0)),
    "levenberg-marquardt, then lbfgs": ((LM, SHORT), ((0, 1), 2)),
    "lbfgs, then levenberg-marquardt": ((SHORT, LM), (0, (0, 1))),
}


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("stages", "use"), SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize(
    ("prior", "rules"),
    [
        (Uniform(), {"constraint": Clip()}),
        (Normal(), {"penalties": (PriorPenalty(1.0, anneal=True, relative=True),)}),
    ],
    ids=["uniform", "normal"],
)
def test_stages_run_in_turn(engine, stages, use, prior, rules, keep):
    method = recipe(*(replace(stage, **rules) for stage in stages), keep=keep)
    images = images_of(NET, 9, reach=1.5, noise=0.1)
    objectives = [NET, NET.normal_equations, OTHER]
    options = {"use": use, "lanes": 4, "trace_every": 1, "seed": 3}
    _, expected = both(engine, objectives, method, prior, images, **options)
    assert len(set(expected.steps)) > 1, "lanes must be in different stages at a time"


def test_random_numbers_go_on_from_stage_to_stage(engine):
    images = images_of(NET, 6, reach=2.0, noise=0.1)
    stage = Stage(LBFGS(), StochasticClip(), max_steps=4)
    first = Stage(Adam(0.3), StochasticClip(), max_steps=7)
    method = recipe(first, stage, first)
    _, expected = both(engine, [NET], method, Uniform(), images, seed=2)
    assert (expected.resampled > 3).all()


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("start", ["prior", "mean"])
def test_restarts_keep_the_best_attempt(engine, start, keep):
    images = images_of(NET, 12, reach=1.2)
    stage = Stage(LBFGS(), Clip(), max_steps=14, loss_tolerance=1e-3)
    method = recipe(stage, restarts=3, keep=keep, start=start)
    options = {"seed": 11, "lanes": 5, "trace_every": 1}
    _, expected = both(engine, [NET], method, Uniform(), images, **options)
    assert {1, 4} <= set(expected.attempts), "some at once, and some never"


# However the call is made

RESTARTED = recipe(
    Stage(LBFGS(history=5), Clip(), max_steps=12, loss_tolerance=1e-3), restarts=2, keep="best"
)
VARIATIONS = {
    "1 lane": {"lanes": 1},
    "64 lanes": {"lanes": 64},
    "three at once": {"most_at_once": 3},
    "two threads": {"threads": 2},
    "seldom looked at": {"poll_every": 40},
}


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("changes", VARIATIONS.values(), ids=VARIATIONS)
def test_results_do_not_depend_on_how_the_call_is_made(engine, changes):
    label = 0.5 * matrix(3, 6, seed=5)
    objective = net(5, pixels=8, hidden=6, label=label)
    condition = np.random.default_rng(6).standard_normal((23, 3)).astype(np.float32)
    images = images_of(objective, 23, reach=1.2, condition=condition)
    options = {"lanes": 7, "condition": condition, "trace_every": 1, "seed": 6}
    arguments = [objective], RESTARTED, Uniform(), images
    base, expected = both(engine, *arguments, **options)
    assert len(set(expected.attempts)) > 1
    assert len(set(expected.steps)) > 5
    result = engine(*arguments, **{**options, **changes})
    for name in ("status", "steps", "attempts"):
        np.testing.assert_array_equal(result[name], base[name])
    for name, quantity in (("latents", "latent"), ("loss", "loss")):
        assert_close(result[name], base[name], f"{quantity}, other batch", device=engine.device)


def test_two_runs_give_the_same_bits(engine):
    images = images_of(NET, 9, noise=0.1)
    first, second = (engine([NET], RESTARTED, Uniform(), images, trace_every=1) for _ in range(2))
    for name in ("latents", "loss", "trace"):
        np.testing.assert_array_equal(first[name], second[name])


def test_a_truth_changes_nothing_else(engine):
    images = images_of(NET, 9, noise=0.1)
    arguments = [NET], RESTARTED, Uniform(), images
    measured = engine(*arguments, true_latents=some_latents(9, 5), trace_every=1)
    without = engine(*arguments, trace_every=1)
    for name in ("latents", "loss", "status", "steps", "trace"):
        np.testing.assert_array_equal(measured[name], without[name])


def test_cancelling_keeps_what_was_found(engine):
    """Even targets converge; odd ones never do, and take attempt after attempt."""
    objective = Quadratic(400)
    optimum = some_latents(6, 400, reach=0.9)
    images = objective.images(optimum, floor=[0, 1, 0, 1, 0, 1])
    stage = Stage(LBFGS(), Clip(), max_steps=10, loss_tolerance=1e-6)

    def progress(report):
        if report["finished"] == 2:
            raise KeyboardInterrupt

    method = recipe(stage, restarts=4095, keep="best")
    result = engine([objective], method, Uniform(), images, lanes=2, progress=progress)
    assert result["cancelled"]
    # On two lanes, 0 and 2 finish, 1 and 3 block the lanes, 4 and 5 must wait.
    np.testing.assert_array_equal(
        result["status"], [CONVERGED, CANCELLED, CONVERGED, CANCELLED, CANCELLED, CANCELLED]
    )
    np.testing.assert_allclose(result["latents"][:4], optimum[:4], atol=1e-2)
    np.testing.assert_allclose(result["loss"][[1, 3]], 1, rtol=1e-3)
    drawn = reference.draw_initial(Uniform().describe(), 0, range(6), 0, 400)
    np.testing.assert_array_equal(result["latents"][4:], drawn[4:])


# What cannot be run


def test_coupled_targets_are_refused(engine):
    with pytest.raises(ValueError, match="lbfgs takes each target on its own"):
        engine([NET], recipe(EARLY), Normal(), images_of(NET, 3), coupled=True)


def test_moment_penalties_are_refused(engine):
    with pytest.raises(RuleError, match="LBFGS takes no MomentPenalty"):
        Stage(LBFGS(), penalties=(MomentPenalty(over="latent"),))
    over_batch = Stage(Adam(0.1), penalties=(MomentPenalty(),))
    with pytest.raises(ValueError, match="on its own with lbfgs"):
        engine([NET], recipe(EARLY, over_batch), Normal(), images_of(NET, 3))
