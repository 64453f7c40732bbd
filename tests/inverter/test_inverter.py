"""The Inverter and what it gives back, against the NumPy twin of a tiny generator."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper

from pyinv import _core, demo, progress, recipes, session
from pyinv.bundle import Bundle, FileRecord
from pyinv.constraints import Clip, LogisticCutoff, StochasticClip
from pyinv.errors import BundleError, DeviceError, InputError
from pyinv.inverter import Inverter
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Recipe, Stage
from pyinv.result import Inversion, Status
from pyinv.solvers import Adam, LevenbergMarquardt
from support.tiny_bundle import LATENT, write_tiny_bundle

LIMIT = (Status.STEP_LIMIT, Status.STEP_LIMIT_IMPROVING)
QUICK = Recipe("quick", Stage(Adam(0.05), constraint=StochasticClip(), max_steps=20))


@pytest.fixture(scope="module")
def images(inverter):
    return inverter.generate(inverter.sample(5, seed=3))


@pytest.fixture(scope="module")
def inversion(inverter, images):
    return inverter.invert(images, recipe=QUICK, seed=1)


def test_generate_is_the_generator(inverter, generator):
    latents = inverter.sample(70)  # more than one batch
    images = inverter.generate(latents)
    assert images.shape == (70, 1, 8, 8)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, generator(latents), atol=1e-5)
    np.testing.assert_allclose(inverter.generate(latents, batch_size=7), images, atol=1e-6)


def losses_of(images, targets):
    x, t = images.astype(np.float64), targets.astype(np.float64)
    y, s = (x + 1) / 2, (t + 1) / 2
    each = {
        "mse": (x - t) ** 2,
        "l1": np.abs(x - t),
        "bce": -(s * np.log(y) + (1 - s) * np.log(1 - y)),
    }
    return {name: value.mean(axis=(1, 2, 3)) for name, value in each.items()}


@pytest.mark.parametrize("loss", ["mse", "l1", "bce"])
def test_evaluate_gives_the_loss_and_its_gradient(inverter, generator, images, loss):
    latents = inverter.sample(5, seed=9)
    value, gradient = inverter.evaluate(latents, images, loss=loss, batch_size=2)
    np.testing.assert_allclose(value, losses_of(generator(latents), images)[loss], rtol=1e-4)
    assert gradient.shape == latents.shape
    step = 1e-5
    for component in range(LATENT):
        ahead, behind = latents.astype(np.float64), latents.astype(np.float64)
        ahead[:, component] += step
        behind[:, component] -= step
        slope = (
            losses_of(generator(ahead), images)[loss] - losses_of(generator(behind), images)[loss]
        ) / (2 * step)
        np.testing.assert_allclose(gradient[:, component], slope, atol=1e-4)


def test_inversion_recovers_what_the_generator_made(inverter):
    latents = inverter.sample(8, seed=3)
    found = inverter.invert(inverter.generate(latents), restarts=0, seed=0)
    assert np.median(np.mean((found.latents - latents) ** 2, axis=1)) < 1e-3
    assert np.median(found.loss) < 1e-4


def test_inversion_has_a_row_for_every_target(inverter, images, inversion):
    assert len(inversion) == 5
    assert inversion.latents.shape == (5, LATENT)
    assert inversion.images.shape == images.shape
    assert inversion.loss.dtype == np.float32
    assert inversion.status.dtype == np.uint8
    assert np.isin(inversion.status, LIMIT).all()
    np.testing.assert_array_equal(inversion.steps, 20)
    np.testing.assert_array_equal(inversion.attempts, 1)
    assert inversion.trace is None
    assert not inversion.cancelled
    assert (inversion.seed, inversion.recipe["name"]) == (1, "quick")


def test_loss_belongs_to_the_latents_and_images(inverter, images, inversion):
    loss, _ = inverter.evaluate(inversion.latents, images)
    np.testing.assert_allclose(inversion.loss, loss, rtol=1e-4)
    np.testing.assert_allclose(inversion.images, inverter.generate(inversion.latents), atol=1e-6)


def test_latents_keep_the_bundles_shape(tmp_path):
    write_tiny_bundle(tmp_path / "b", latent_shape=(LATENT, 1, 1))
    inverter = Inverter(tmp_path / "b", threads=1)
    latents = inverter.sample(3)
    assert latents.shape == (3, LATENT, 1, 1)
    flat = latents.reshape(3, LATENT)
    images = inverter.generate(latents)
    np.testing.assert_array_equal(inverter.generate(flat), images)
    assert inverter.evaluate(flat, images)[1].shape == latents.shape
    found = inverter.invert(images, recipe=QUICK, init=flat)
    assert found.latents.shape == latents.shape
    np.testing.assert_allclose(found.latents, latents, atol=1e-6)  # it began at the answer
    for truth in (latents, flat):
        found = inverter.invert(images, recipe=QUICK, init=flat, true_latents=truth)
        np.testing.assert_array_equal(found.min_latent_error, 0)


def test_sample_does_not_depend_on_how_many(inverter):
    np.testing.assert_array_equal(inverter.sample(3, seed=5), inverter.sample(9, seed=5)[:3])
    assert np.abs(inverter.sample(200, seed=5)).max() <= 1
    assert not np.array_equal(inverter.sample(3, seed=5), inverter.sample(3, seed=6))


def test_inverting_a_sample_with_its_own_seed_does_not_begin_at_the_answer(inverter):
    latents = inverter.sample(4, seed=0)
    one_step = QUICK.replace(max_steps=1, keep="last")
    found = inverter.invert(inverter.generate(latents), recipe=one_step, seed=0)
    assert np.mean((found.latents - latents) ** 2) > 0.1


def test_calls_lanes_and_threads_change_no_draw(inverter, bundle, images):
    whole = inverter.invert(images, recipe=QUICK, seed=4)
    for batch_size, threads in ((1, 1), (2, 2), (64, 1)):
        other = Inverter(bundle, batch_size=batch_size, threads=threads).invert(
            images, recipe=QUICK, seed=4
        )
        np.testing.assert_allclose(other.latents, whole.latents, atol=1e-4)
    parts = [
        inverter.invert(images[rows], recipe=QUICK, seed=4, target_ids=np.arange(5)[rows])
        for rows in (slice(0, 2), slice(2, 5))
    ]
    split = np.concatenate([part.latents for part in parts])
    np.testing.assert_allclose(split, whole.latents, atol=1e-4)


def test_automatic_lanes_give_the_same_answer(bundle, inverter, images):
    automatic = Inverter(bundle, batch_size="auto", threads=1).invert(images, recipe=QUICK, seed=4)
    np.testing.assert_allclose(
        automatic.latents, inverter.invert(images, recipe=QUICK, seed=4).latents, atol=1e-4
    )


def test_trace_holds_the_loss_every_so_many_updates(inverter, images):
    found = inverter.invert(images, recipe=QUICK, init=np.zeros((5, LATENT)), trace_every=5)
    assert found.trace.shape == (5, 5)
    first, _ = inverter.evaluate(np.zeros((5, LATENT), dtype=np.float32), images)
    np.testing.assert_allclose(found.trace[:, 0], first, rtol=1e-5)
    assert (found.trace[:, -1] < found.trace[:, 0]).all()


def test_nearest_tells_how_near_a_target_came_to_its_truth(inverter, images):
    truth = inverter.sample(5, seed=3)
    measured = inverter.invert(images, recipe=QUICK, seed=1, true_latents=truth)
    assert measured.min_latent_error.shape == (5,)
    assert measured.min_latent_error.dtype == np.float32
    assert (
        measured.min_latent_error <= np.mean((measured.latents - truth) ** 2, axis=1) * (1 + 1e-6)
    ).all()
    assert (measured.min_latent_error > 0).all()
    begun = inverter.invert(images, recipe=QUICK, seed=1, init=truth, true_latents=truth)
    np.testing.assert_array_equal(begun.min_latent_error, 0)
    without = inverter.invert(images, recipe=QUICK, seed=1)
    assert without.min_latent_error is None
    np.testing.assert_array_equal(without.latents, measured.latents)


def test_restarts_override_the_recipe(inverter, images):
    hard = QUICK.replace(loss_tolerance=1e-30, max_steps=3)
    found = inverter.invert(images, recipe=hard, restarts=2)
    np.testing.assert_array_equal(found.attempts, 3)
    np.testing.assert_array_equal(found.steps, 9)
    assert found.recipe["restarts"] == 2


def test_converged_targets_stop_early(inverter, images):
    easy = QUICK.replace(loss_tolerance=10.0)
    found = inverter.invert(images, recipe=easy)
    np.testing.assert_array_equal(found.status, Status.CONVERGED_TOLERANCE)
    np.testing.assert_array_equal(found.steps, 0)


def test_stages_may_minimise_different_losses(inverter, images):
    two = Recipe("two", (Stage(Adam(0.05), max_steps=5), Stage(Adam(0.01), loss="l1", max_steps=5)))
    found = inverter.invert(images, recipe=two)
    np.testing.assert_array_equal(found.steps, 10)
    loss, _ = inverter.evaluate(found.latents, images, loss="l1")
    np.testing.assert_allclose(found.loss, loss, rtol=1e-4)


def test_max_steps_are_those_of_each_stage(inverter, images):
    two = Recipe("two", (Stage(Adam(0.05), max_steps=50), Stage(Adam(0.01), max_steps=60)))
    found = inverter.invert(images, recipe=two, max_steps=4)
    np.testing.assert_array_equal(found.steps, 8)
    assert found.recipe == two.replace(max_steps=4).describe()
    named = inverter.invert(images, max_steps=3)
    assert [stage["max_steps"] for stage in named.recipe["stages"]] == [3] * len(
        named.recipe["stages"]
    )


def test_max_steps_are_the_horizon_of_a_cutoff(normal_bundle_path, images):
    inverter = Inverter(normal_bundle_path, threads=1)
    cutoff = Recipe("cutoff", Stage(Adam(0.05), constraint=LogisticCutoff(3, 2.5)))
    found = inverter.invert(images, recipe=cutoff, max_steps=7)
    assert found.recipe["stages"][0]["constraint"]["horizon"] == 7


@pytest.mark.parametrize("name", ["default", "creswell", "egan"])
def test_named_recipes_run_on_a_normal_prior(normal_bundle_path, name):
    inverter = Inverter(normal_bundle_path, threads=1)
    recipe = recipes.get(name, inverter.manifest).replace(max_steps=10)
    images = inverter.generate(inverter.sample(3))
    assert np.isfinite(inverter.invert(images, recipe=recipe).loss).all()


@pytest.mark.parametrize("name", ["default", "lipton", "creswell"])
def test_named_recipes_run_on_a_uniform_prior(inverter, images, name):
    recipe = recipes.get(name, inverter.manifest).replace(max_steps=10)
    assert np.isfinite(inverter.invert(images, recipe=recipe).loss).all()


@pytest.fixture(scope="module", params=[Uniform(), Normal()], ids=["uniform", "normal"])
def second_order(request, tmp_path_factory):
    """A bundle with normal equations, opened."""
    path = tmp_path_factory.mktemp("second order")
    losses = ("mse", "whitened")
    write_tiny_bundle(path, prior=request.param, losses=(*losses, "l1"), normal_equations=losses)
    return Inverter(path, threads=1)


@pytest.mark.parametrize("name", ["precise", "reconstruct"])
def test_second_order_recipes_recover_latents_exactly(second_order, name):
    latents = second_order.sample(20, seed=3)
    found = second_order.invert(second_order.generate(latents), recipe=name)
    errors = np.mean((found.latents - latents) ** 2, axis=1)
    assert np.mean(errors < 1e-6) >= 0.9  # this generator has other latents for some images
    assert found.recipe["name"] == name
    assert (found.normal_equations >= found.attempts).all()
    assert (found.normal_equations <= found.steps + 2 * found.attempts).all()


def test_normal_equations_come_back_from_disk_and_are_indexed(second_order, tmp_path):
    found = second_order.invert(second_order.generate(second_order.sample(3)), recipe="precise")
    found.save(tmp_path / "a.npz")
    for again in (Inversion.load(tmp_path / "a.npz"), pickle.loads(pickle.dumps(found))):
        np.testing.assert_array_equal(again.normal_equations, found.normal_equations)
    np.testing.assert_array_equal(found[1:].normal_equations, found.normal_equations[1:])


def test_first_order_runs_evaluate_no_normal_equations(inversion):
    assert inversion.normal_equations.dtype == np.int64
    np.testing.assert_array_equal(inversion.normal_equations, 0)


def test_reconstruct_takes_the_noise(tmp_path):
    write_tiny_bundle(tmp_path / "b", prior=Normal(), normal_equations=("mse",))
    inverter = Inverter(tmp_path / "b", threads=1)
    images = inverter.generate(inverter.sample(2))
    found = inverter.invert(images, recipe="reconstruct", noise=0.5)
    expected = recipes.reconstruct(inverter.manifest, noise=0.5).fit(Normal())
    assert found.recipe == expected.describe()
    assert inverter.invert(images, recipe="reconstruct").recipe != found.recipe


FIRST = Stage(Adam(0.05), constraint=Clip(), loss="l1", max_steps=5)
SECOND = Stage(LevenbergMarquardt(), constraint=Clip(), max_steps=20)


@pytest.mark.parametrize("loss", ["mse", "whitened"])
def test_first_and_second_order_stages_follow_one_another(second_order, loss):
    latents = second_order.sample(6, seed=3)
    images = second_order.generate(latents)
    stages = (FIRST, dataclasses.replace(SECOND, loss=loss), dataclasses.replace(FIRST, loss="mse"))
    constraint = Clip(low=-3.0, high=3.0)
    stages = tuple(dataclasses.replace(stage, constraint=constraint) for stage in stages)
    found = second_order.invert(images, recipe=Recipe("three", stages, keep="last"))
    assert np.isin(found.status, LIMIT).all()
    assert (found.normal_equations > 0).all()
    loss_at_the_end, _ = second_order.evaluate(found.latents, images)
    np.testing.assert_allclose(found.loss, loss_at_the_end, rtol=1e-3)


def test_normal_equations_are_evaluated_as_memory_allows(second_order, monkeypatch):
    images = second_order.generate(second_order.sample(5, seed=3))
    latents = second_order.sample(5, seed=4)
    expected = second_order.normal_equations(latents, images, loss="whitened")
    whole = second_order.invert(images, recipe="precise")
    function = second_order.manifest.normal_equations("mse")
    monkeypatch.setitem(session.NORMAL_EQUATIONS_BYTES, "cpu", 2 * function.bytes_per_target)
    split = Inverter(second_order.bundle, threads=1)
    evaluate, batches = split._session.evaluate, []

    def record(function, rows, *arguments):
        batches.append(rows.stop - rows.start)
        return evaluate(function, rows, *arguments)

    monkeypatch.setattr(split._session, "evaluate", record)
    for one, other in zip(
        split.normal_equations(latents, images, loss="whitened"), expected, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert batches == [2, 2, 1]
    load, limits = split._session._load, []

    def record_limit(kind, function, **options):
        limits.append((function.name, options.get("most_at_once")))
        return load(kind, function, **options)

    monkeypatch.setattr(split._session, "_load", record_limit)
    found = split.invert(images, recipe="precise")
    np.testing.assert_allclose(found.latents, whole.latents, atol=1e-4)
    np.testing.assert_array_equal(found.attempts, whole.attempts)
    assert limits == [("objective", None), ("normal_equations", 2), ("forward", None)]


def test_automatic_lanes_take_second_order_recipes(second_order):
    images = second_order.generate(second_order.sample(5, seed=3))
    automatic = Inverter(second_order.bundle, batch_size="auto", threads=1)
    found = automatic.invert(images, recipe="precise")
    expected = second_order.invert(images, recipe="precise")
    np.testing.assert_allclose(found.latents, expected.latents, atol=1e-4)


def test_lanes_that_do_not_fit_name_those_that_do(second_order, monkeypatch):
    images = second_order.generate(second_order.sample(5, seed=3))
    whole = _core.invert

    def small(*, objectives, lanes, **arguments):
        if lanes > 2:
            error = _core.OutOfMemory("gone")
            found = whole(objectives=objectives, lanes=1, **arguments)
            found["status"][:] = Status.CANCELLED
            error.partial = found
            raise error
        assert any(objective.has_gram for objective in objectives)  # as the run has
        return whole(objectives=objectives, lanes=lanes, **arguments)

    monkeypatch.setattr(_core, "invert", small)
    with pytest.raises(DeviceError, match="no memory for batch_size=5; batch_size=2 fits"):
        second_order.invert(images, recipe="precise")


def test_normal_equations_without_a_gram_are_refused(second_order, tmp_path):
    def objective_for_normal_equations(function):
        file = function.file.replace("normal_equations", "objective")
        return dataclasses.replace(function, file=file)

    manifest = second_order.manifest
    functions = tuple(map(objective_for_normal_equations, manifest.functions))
    bundle = second_order.bundle
    wrong = dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, functions=functions))
    images = second_order.generate(second_order.sample(2))
    with pytest.raises(BundleError, match=r"has no gram matrix.*export the bundle again"):
        Inverter(wrong, threads=1).invert(images, recipe="precise")


def test_condition_reaches_the_generator(tmp_path):
    generator = write_tiny_bundle(tmp_path / "b", condition_size=2)
    inverter = Inverter(tmp_path / "b", threads=1)
    latents, condition = inverter.sample(4), np.eye(4, 2, dtype=np.float32)
    images = inverter.generate(latents, conditions=condition)
    np.testing.assert_allclose(images, generator(latents, condition), atol=1e-5)
    assert inverter.evaluate(latents, images, conditions=condition)[0].max() < 1e-9
    assert inverter.evaluate(latents, images, conditions=condition[::-1])[0].max() > 1e-3
    found = inverter.invert(images, recipe=QUICK, conditions=condition, init=latents)
    np.testing.assert_allclose(found.images, images, atol=1e-5)


def test_targets_of_a_batch_norm_bundle_run_in_equal_groups(tmp_path):
    write_tiny_bundle(tmp_path / "b", batch_norm="batch")
    inverter = Inverter(tmp_path / "b", batch_size=4, threads=1)
    images = inverter.generate(inverter.sample(5))
    found = inverter.invert(images, recipe=QUICK)  # groups of 3 and 2
    assert len(set(found.steps.tolist())) == 1
    assert found.images.shape == images.shape


def test_torch_tensors_are_taken(inverter, images):
    torch = pytest.importorskip("torch")
    found = inverter.invert(torch.from_numpy(images).requires_grad_(), recipe=QUICK, seed=1)
    again = inverter.invert(images, recipe=QUICK, seed=1)
    np.testing.assert_array_equal(found.latents, again.latents)


def test_a_loss_of_the_bundle_replaces_that_of_every_stage():
    inverter = Inverter(demo.BUNDLE, batch_size=4)
    images = inverter.generate(inverter.sample(3))
    recipe = QUICK.replace(stages=QUICK.stages * 2)
    found = inverter.invert(images, recipe=recipe, loss="l1")
    assert [stage["loss"] for stage in found.recipe["stages"]] == ["l1", "l1"]
    absolute = np.abs(found.images - images).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.loss, absolute, rtol=1e-4)
    of_recipe = inverter.invert(images, recipe=recipe.replace(loss="l1"))
    np.testing.assert_array_equal(found.latents, of_recipe.latents)


def test_a_loss_without_normal_equations_is_refused_where_they_are_needed():
    inverter = Inverter(demo.BUNDLE)
    images = inverter.generate(inverter.sample(1))
    with pytest.raises(BundleError) as error:
        inverter.invert(images, recipe="precise", loss="l1")
    assert str(error.value) == (
        "recipe precise needs normal equations, which this bundle does not have of the loss 'l1', "
        "only of mse, whitened; use a recipe that needs gradients only, such as "
        'recipe="default"'
    )


def test_progress_goes_to_a_function(inverter, images):
    seen = []
    inverter.invert(images, recipe=QUICK.replace(max_steps=300), progress=seen.append)
    assert seen
    assert seen[-1]["targets"] == 5
    assert {"finished", "active", "evaluations", "mean_loss"} <= set(seen[-1])


def test_progress_counts_targets_of_second_order_runs(second_order):
    images = second_order.generate(second_order.sample(300, seed=3))
    seen = []
    second_order.invert(images, recipe="precise", progress=seen.append)
    assert seen
    finished = [now["finished"] for now in seen]
    assert finished == sorted(finished)
    assert all(now["finished"] + now["active"] <= 300 for now in seen)


def test_on_a_terminal_a_progress_bar_goes_to_standard_error(inverter, images, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    inverter.invert(images, recipe=QUICK, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "/5 images [" in err


def test_elsewhere_progress_is_plain_lines(inverter, images, capsys, monkeypatch):
    recipe = QUICK.replace(max_steps=2000)
    inverter.invert(images, recipe=recipe, progress=True)
    assert capsys.readouterr() == ("", "")  # over before a line is due
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    inverter.invert(images, recipe=recipe, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    pattern = (
        r" *\d+%  \d of 5 images done, [\d.e+-]+ images/s"
        r"(, about \d+ s left)?(, mean loss [\d.e+-]+)?"
    )
    lines = err.splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(pattern, line)] == []


def test_a_long_run_prints_fewer_lines(capsys, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    now = {"finished": 0, "active": 8, "mean_loss": 0.25}
    with progress.progress_reporter(True, 40, 100) as report:
        for second in range(1, 3601):
            report({**now, "finished": second // 100, "evaluations": second})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "  0%  0 of 40 images done, 0.01 images/s, about 66 minutes left, mean loss 0.25"
    )
    assert lines[19].startswith("  5%  2 of 40 images done, 0.01 images/s, about 63 minutes left")
    assert 60 < len(lines) < 90


@pytest.mark.usefixtures("all_cores")
@pytest.mark.skipif(os.name != "posix", reason="sends this process a signal")
def test_ctrl_c_returns_what_was_found(inverter, images):
    endless = QUICK.replace(max_steps=100_000_000)
    interrupt = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    start = time.monotonic()
    found = inverter.invert(images, recipe=endless)
    interrupt.join()
    assert time.monotonic() - start < 5
    assert found.cancelled
    np.testing.assert_array_equal(found.status, Status.CANCELLED)
    assert "cancelled" in repr(found)


def test_inputs_are_not_changed_or_kept_as_copies(inverter):
    images = np.zeros((3, 1, 8, 8), dtype=np.float32)
    images.flags.writeable = False
    inverter.invert(images, recipe=QUICK)


def test_repr_says_how_it_went(inversion, inverter):
    text = repr(inversion)
    limits = [f"{np.sum(inversion.status == one)} {one.text}" for one in LIMIT]
    assert text.startswith(
        f"<Inversion of 5 targets: latents [5, 6]; {', '.join(limits)}; loss min "
    )
    assert "steps 20 per target; recipe quick, seed 1>" in text
    assert "\n" not in text
    assert "tiny: latent [6], uniform on [-1, 1], image [1, 8, 8]" in repr(inverter)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (1, [1]),
        (-1, [4]),
        (slice(1, 3), [1, 2]),
        (np.array([4, 0]), [4, 0]),
        (np.array([True, False, False, False, True]), [0, 4]),
    ],
)
def test_indexing_gives_those_targets(inversion, index, rows):
    part = inversion[index]
    np.testing.assert_array_equal(part.latents, inversion.latents[rows])
    np.testing.assert_array_equal(part.images, inversion.images[rows])
    np.testing.assert_array_equal(part.loss, inversion.loss[rows])
    assert len(part) == len(rows)


def test_index_beyond_the_targets_is_an_index_error(inversion):
    with pytest.raises(IndexError):
        inversion[5]
    assert len(list(inversion)) == 5


ARRAYS = (
    *("latents", "loss", "status", "steps", "attempts", "normal_equations"),
    *("trace", "min_latent_error"),
)


def test_inversion_comes_back_from_disk_and_pickle(inverter, images, tmp_path):
    truth = inverter.sample(5, seed=3)
    inversion = inverter.invert(
        images, recipe=QUICK, seed=2**64 - 1, trace_every=10, true_latents=truth
    )
    assert (inversion[1:3].min_latent_error == inversion.min_latent_error[1:3]).all()
    inversion.save(tmp_path / "a.npz", sources=list("abcde"))
    for again in (Inversion.load(tmp_path / "a.npz"), pickle.loads(pickle.dumps(inversion))):
        for name in (*ARRAYS, "images"):
            np.testing.assert_array_equal(getattr(again, name), getattr(inversion, name))
        assert (again.seed, again.recipe) == (inversion.seed, inversion.recipe)
    with np.load(tmp_path / "a.npz") as file:
        assert file["sources"].tolist() == list("abcde")


def test_inversion_saved_without_images_says_how_to_make_them(inversion, tmp_path):
    inversion.save(tmp_path / "a.npz", images=False)
    loaded = Inversion.load(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"inverter\.generate"):
        _ = loaded.images
    assert loaded[1:3].latents.shape == (2, LATENT)
    assert loaded.trace is None
    assert loaded.min_latent_error is None


def test_open_bundle_is_taken_as_it_is(bundle_path):
    bundle = Bundle.open(bundle_path)
    assert Inverter(bundle).bundle is bundle


def test_images_of_another_shape_than_the_manifests_are_refused(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_shape": [8, 8]}))
    inverter = Inverter(tmp_path / "b", threads=1)
    with pytest.raises(BundleError, match=r"should give image \[\d, 8, 8\], gave \[\d, 1, 8, 8\]"):
        inverter.generate(inverter.sample(2))


def with_forward_output(path, change):
    """Write a tiny bundle whose forward ends in another node, which ``change`` adds."""
    write_tiny_bundle(path)
    model = onnx.load(path / "forward.onnx", load_external_data=False)
    nodes = model.graph.node
    nodes[-1].output[0] = "made"
    change(model.graph)
    (path / "forward.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["forward.onnx"] = dataclasses.asdict(FileRecord.of(path / "forward.onnx"))
    (path / "manifest.json").write_text(json.dumps(manifest))
    return Inverter(path, threads=1)


def one_pixel(graph):
    graph.node.append(helper.make_node("ReduceMean", ["made"], ["image"], axes=[1, 2, 3]))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("image", 1, ["B", "C", "H", "W"]))


def one_image(graph):
    graph.node.append(helper.make_node("ReduceMean", ["made"], ["image"], axes=[0]))


def another_name(graph):
    graph.node.append(helper.make_node("Identity", ["made"], ["picture"]))
    graph.output[0].name = "picture"


@pytest.mark.parametrize(
    ("change", "got"),
    [(one_pixel, r"\[3, 1, 1, 1\]"), (one_image, r"\[1, 1, 8, 8\]"), (another_name, "nothing")],
)
def test_outputs_are_not_broadcast(tmp_path, change, got):
    inverter = with_forward_output(tmp_path / "b", change)
    message = (
        rf"forward.onnx: should give image \[3, 1, 8, 8\], gave {got}; export the bundle again"
    )
    with pytest.raises(BundleError, match=message):
        inverter.generate(inverter.sample(3))


@pytest.mark.parametrize("name", ["loss", "gradient", "gram"])
def test_outputs_of_derivatives_are_checked(monkeypatch, tmp_path, name):
    write_tiny_bundle(tmp_path / "b", normal_equations=("mse",))
    session = Inverter(tmp_path / "b", threads=1)._session
    equations = session.manifest.normal_equations("mse", "onnx")
    latents, images = np.zeros((2, LATENT), np.float32), np.zeros((2, 1, 8, 8), np.float32)
    found = session.evaluate(equations, slice(0, 2), latents, images, None)
    for wrong in (found[name][:1], None):
        changed = {key: value for key, value in found.items() if key != name or wrong is not None}
        changed |= {} if wrong is None else {name: wrong}
        stub = SimpleNamespace(run=lambda feeds, changed=changed, **_: changed)
        monkeypatch.setitem(session._functions, equations, stub)
        with pytest.raises(BundleError, match=f"should give {name} "):
            session.evaluate(equations, slice(0, 2), latents, images, None)


def test_an_inverter_is_pickled_by_its_path(monkeypatch, tmp_path):
    write_tiny_bundle(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    inverter = Inverter("b", batch_size=7, threads=1)
    pickled = pickle.dumps(inverter)
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert (again.batch_size, again.threads, again.runtime) == (7, 1, "onnx")
    latents = inverter.sample(2)
    np.testing.assert_array_equal(again.generate(latents), inverter.generate(latents))
    write_tiny_bundle(tmp_path / "b", prior=Normal())
    with pytest.raises(BundleError, match="not the bundle of the pickled Inverter"):
        pickle.loads(pickled)


def test_more_threads_than_cpus_do_not_spin():
    """Threads that spun took the CPUs from those with work: 0.7 s a step with 512 threads."""
    program = (
        "import sys, numpy, pyinv\n"
        "inverter = pyinv.Inverter(sys.argv[1], threads=512, batch_size=4)\n"
        "images = inverter.generate(inverter.sample(4))\n"
        "inverter.invert(images, recipe='lipton', max_steps=500)\n"
    )
    command = [sys.executable, "-c", program, str(demo.BUNDLE)]
    subprocess.run(command, check=True, timeout=100)


@pytest.mark.parametrize("number", [2**31, 2**70])
def test_numbers_too_large_for_the_engine_are_refused(inverter, bundle_path, images, number):
    with pytest.raises(InputError, match="threads must be a whole number >= 1 and <= 1024"):
        Inverter(bundle_path, threads=number)
    with pytest.raises(InputError, match="trace_every must be a whole number"):
        inverter.invert(images, recipe=QUICK, trace_every=number)


def test_masked_arrays_are_refused(inverter, images):
    masked = np.ma.masked_array(images, mask=images > 0.5)
    with pytest.raises(InputError, match=r"a masked array.*weights="):
        inverter.invert(masked, recipe=QUICK)
    with pytest.raises(InputError, match="a masked array"):
        inverter.generate(np.ma.masked_array(inverter.sample(2)))


def test_lazily_negated_tensors_are_resolved(inverter):
    torch = pytest.importorskip("torch")
    latents = torch.from_numpy(inverter.sample(2))
    parts = torch.complex(torch.zeros_like(latents), latents)
    negated = parts.conj().imag
    assert negated.is_neg()
    expected = inverter.generate((-latents).numpy())
    np.testing.assert_array_equal(inverter.generate(negated), expected)
