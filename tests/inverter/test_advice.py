"""Quality, hints, and warnings before wrong results."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

import pyinv
from pyinv import PyinvWarning, recipes
from pyinv.advice import are_eight_bit, next_step, peak_ratio
from pyinv.bundle import Bundle
from pyinv.cli import main
from pyinv.errors import InputError, RuleError, RunError
from pyinv.inverter import Inverter
from pyinv.priors import Normal
from pyinv.recipes import Recipe, Stage
from pyinv.result import Inversion, Status
from pyinv.solvers import Adam
from support.tiny_bundle import TinyGenerator, write_tiny_bundle

QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=20))
SPREAD = TinyGenerator.make()
# Grows, so that its images leave [-1, 1].
OPEN = TinyGenerator.make(layers=1, tanh=False)


@pytest.fixture(scope="module")
def precise(tmp_path_factory):
    path = tmp_path_factory.mktemp("precise")
    losses = ("mse", "whitened")
    write_tiny_bundle(path, prior=Normal(), losses=losses, normal_equations=losses)
    return Inverter(path, threads=1)


@pytest.fixture(scope="module")
def own(precise):
    return precise.generate(precise.sample(4, seed=3))


@pytest.fixture(scope="module")
def foreign():
    return np.random.default_rng(0).uniform(-1, 1, (4, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def unbounded(tmp_path_factory):
    path = tmp_path_factory.mktemp("unbounded")
    write_tiny_bundle(path, prior=Normal(), generator=OPEN)
    manifest = replace(Bundle.open(path).manifest, bounded=False)
    manifest.write(path)
    return Inverter(path, threads=1)


def eight_bit(images):
    return (np.rint((images + 1) * 127.5) / 127.5 - 1).astype(np.float32)


# PSNR


def test_psnr_of_mse_is_that_of_the_loss(inverter, generator):
    images = inverter.generate(inverter.sample(3, seed=1))
    found = inverter.invert(images, recipe=QUICK)
    np.testing.assert_allclose(found.psnr, 10 * np.log10(4 / found.loss), rtol=1e-5)
    assert f"PSNR median {np.median(found.psnr):.1f} dB" in repr(found)


def test_psnr_with_another_loss_is_that_of_the_images(precise, foreign):
    recipe = replace(QUICK, stages=(replace(QUICK.stages[0], loss="whitened"),))
    found = precise.invert(foreign, recipe=recipe)
    mse = ((found.images - foreign) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.psnr, 10 * np.log10(4 / mse), rtol=1e-5)
    assert (np.abs(mse / found.loss - 1) > 0.01).all()


def test_psnr_of_exact_and_of_unknown_errors():
    found = peak_ratio([0.0, np.nan, 1.0], (0, 255))
    assert found[0] == np.inf
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(48.13, abs=0.01)


def test_psnr_and_hint_are_saved(precise, own, tmp_path):
    found = precise.invert(own, recipe=replace(QUICK, name="short"))
    assert found.hint.startswith("4 of 4 targets were still improving: try more max_steps than 20")
    found.save(tmp_path / "a.npz")
    again = Inversion.load(tmp_path / "a.npz")
    assert again.hint == found.hint
    np.testing.assert_array_equal(again.psnr, found.psnr)
    np.testing.assert_array_equal(found[1:3].psnr, found.psnr[1:3])


# Statuses and hints


def test_more_effort_is_advised_while_the_default_recipe_still_improves(precise, own):
    def hint(recipe):
        return advise(precise, Status.STEP_LIMIT_IMPROVING, 20, recipe).partition("try ")[2]

    for effort in recipes.EFFORTS:
        usual = recipes.default(precise.manifest, effort=effort)
        steps = usual.stages[-1].max_steps
        assert hint(usual) == (
            f"more max_steps than {steps}" if effort == "best" else 'effort="best"'
        )
        # Settings of one's own stand in the way of any effort.
        assert hint(usual.replace(max_steps=2)) == "more max_steps than 2"
    without_hops = recipes.default(precise.manifest, effort="best").replace(restarts=0)
    assert hint(without_hops) == "more max_steps than 200"
    found = precise.invert(own, recipe=recipes.default(precise.manifest).replace(max_steps=2))
    assert found.hint.endswith("try more max_steps than 2")


def test_a_warning_about_the_images_is_the_hint(precise):
    status = Status.STEP_LIMIT_IMPROVING
    assert advise(precise, status, 9, doubt="rescale the images") == "rescale the images"


def test_no_effort_is_advised_where_all_are_the_same(precise):
    coupled = replace(
        precise.manifest, batch_norm="batch", functions=precise.manifest.functions[:2]
    )
    batch = type("P", (), {"manifest": coupled})
    hint = advise(batch, Status.STEP_LIMIT_IMPROVING, 20, recipes.default(coupled))
    assert hint.endswith("try more max_steps than 1000")


def test_converged_is_both_kinds(precise, own):
    plateau = replace(QUICK.stages[0], relative_change_tolerance=1.0)
    tolerance = replace(QUICK.stages[0], loss_tolerance=100.0)
    limit = replace(QUICK.stages[0], max_steps=1)
    for stage, status, converged in (
        (plateau, Status.CONVERGED_PLATEAU, True),
        (tolerance, Status.CONVERGED_TOLERANCE, True),
        (limit, Status.STEP_LIMIT_IMPROVING, False),
    ):
        found = precise.invert(own, recipe=replace(QUICK, stages=(stage,)))
        assert set(found.status) == {status}
        assert found.converged.tolist() == [converged] * 4
        assert status.text in repr(found)


def advise(precise, status, psnr, recipe=QUICK, **options):
    options = {"eight_bit": False, **options}
    statuses = np.full(4, status, dtype=np.uint8)
    decibels = np.full(4, psnr, dtype=np.float32)
    return next_step(statuses, decibels, recipe, precise.manifest, **options)


HINTS = {
    "cancelled": (Status.CANCELLED, 20, {}, ""),
    "not finite": (Status.NON_FINITE, np.nan, {}, "4 of 4 targets met values that are not finite"),
    "nothing in common": (Status.CONVERGED_PLATEAU, 9, {}, "check that the images are scaled"),
    "improving": (Status.STEP_LIMIT_IMPROVING, 20, {}, "try more max_steps than 20"),
    "its own images": (Status.STEP_LIMIT, 40, {}, "the recipe precise finds"),
    "8-bit images": (Status.STEP_LIMIT, 40, {"eight_bit": True}, ""),
    "exact": (Status.CONVERGED_TOLERANCE, 70, {}, ""),
    "exact, without a tolerance": (Status.CONVERGED_PLATEAU, 140, {}, ""),
    "photographs": (Status.CONVERGED_PLATEAU, 22, {}, ""),
}


@pytest.mark.parametrize(("status", "psnr", "options", "text"), HINTS.values(), ids=HINTS)
def test_hints(precise, status, psnr, options, text):
    hint = advise(precise, status, psnr, **options)
    assert text in hint if text else hint == ""
    assert "\n" not in hint


def test_hints_name_the_conditions(precise):
    condition = {"label": pyinv.conditions.Label(3)}
    precise = type("P", (), {"manifest": replace(precise.manifest, conditions=condition)})
    assert "the conditions (label)" in advise(precise, Status.CONVERGED_PLATEAU, 9)


# Value range


def test_unit_range_images_for_a_symmetric_range(precise, own, tmp_path, capsys):
    unit = (own + 1) / 2
    with pytest.warns(PyinvWarning, match=r"in \[0, 1\], and value_range is \[-1, 1\]") as caught:
        found = precise.invert(unit, recipe=QUICK)
    assert len(caught) == 1
    assert "images * 2 - 1" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert len(found) == 4
    with pytest.raises(InputError, match="ToTensor"):
        precise.invert(unit, recipe=QUICK, strict=True)
    np.save(tmp_path / "unit.npy", unit)
    words = ["invert", str(precise.bundle.path), str(tmp_path / "unit.npy"), "--max-steps", "5"]
    words += ["-o", str(tmp_path / "out.npz"), "--json", "--threads", "1", "--overwrite"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(words) == 0
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("pyinv: warning: all values")]
    assert len(json.loads(out)["warnings"]) == 1
    assert main([*words, "--strict"]) == 1
    assert "pyinv: error: all values" in capsys.readouterr().err


def test_bright_images_of_a_generator_of_bright_images_are_right(tmp_path):
    generator = TinyGenerator.make()
    generator.weights["b2"] += 4  # all its images lie between 0 and 1
    write_tiny_bundle(tmp_path / "bright", generator=generator)
    inverter = Inverter(tmp_path / "bright", threads=1)
    images = inverter.generate(inverter.sample(2))
    assert images.min() > 0
    images[0, 0, 0] = 0.1
    inverter.invert(images, recipe=QUICK)  # a warning would be an error


@pytest.mark.parametrize("scale", [1, 255])
def test_a_range_of_0_to_255_given_0_to_1(tmp_path, scale):
    write_tiny_bundle(tmp_path / "b", value_range=(0.0, 255.0), generator=OPEN)
    manifest = replace(Bundle.open(tmp_path / "b").manifest, bounded=False)
    manifest.write(tmp_path / "b")
    inverter = Inverter(tmp_path / "b", threads=1)
    images = np.random.default_rng(0).uniform(0, 1, (2, 1, 8, 8)).astype(np.float32) * scale
    if scale == 255:
        inverter.invert(images, recipe=QUICK)
    else:
        with pytest.warns(PyinvWarning, match=r"images \* 255$"):
            inverter.invert(images, recipe=QUICK)


def test_own_images_outside_the_range_are_targets(unbounded, tmp_path):
    latents = 1.5 * unbounded.sample(8)
    images = unbounded.generate(latents)
    assert np.abs(images).max() > 2
    found = unbounded.invert(images, recipe=QUICK)
    assert np.isfinite(found.loss).all()
    np.save(tmp_path / "own.npy", images)
    np.testing.assert_array_equal(
        pyinv.load_images(tmp_path / "own.npy", unbounded.manifest), images
    )


def test_0_to_255_far_outside_the_range(unbounded):
    images = np.random.default_rng(0).uniform(0, 255, (2, 1, 8, 8)).astype(np.float32)
    with pytest.warns(PyinvWarning, match=r"far outside .*images / 255 \* 2 - 1"):
        unbounded.invert(images, recipe=QUICK)
    with pytest.raises(InputError, match="far outside"):
        unbounded.invert(images, recipe=QUICK, strict=True)


def test_a_symmetric_range_for_one_from_0_to_1(tmp_path):
    generator = TinyGenerator.make(layers=1, tanh=False)
    for name in generator.weights:
        generator.weights[name] *= 0.1
    generator.weights["b2"] += 0.5
    write_tiny_bundle(tmp_path / "b", value_range=(0.0, 1.0), generator=generator)
    manifest = replace(Bundle.open(tmp_path / "b").manifest, bounded=False)
    manifest.write(tmp_path / "b")
    inverter = Inverter(tmp_path / "b", threads=1)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8, 8)).astype(np.float32)
    with pytest.warns(PyinvWarning, match=r"rescale them to \[0, 1\]"):
        inverter.invert(images, recipe=QUICK)
    inverter.invert((images + 1) / 2, recipe=QUICK)


def test_0_to_255_for_a_bounded_generator_is_an_error(precise):
    images = np.random.default_rng(0).uniform(0, 255, (2, 1, 8, 8)).astype(np.float32)
    with pytest.raises(InputError, match=r"if they are 0 to 255, use images / 255 \* 2 - 1"):
        precise.invert(images, recipe=QUICK)


def test_strict_is_a_bool(precise, own):
    with pytest.raises(InputError, match="strict must be True or False, got 'yes'"):
        precise.invert(own, strict="yes")


# precise


def test_eight_bit_images_are_recognised(precise, own, foreign):
    manifest = precise.manifest
    assert are_eight_bit(eight_bit(own), manifest)
    assert not are_eight_bit(own, manifest)
    assert not are_eight_bit(foreign, manifest)
    assert not are_eight_bit(np.sign(foreign), manifest), "saturated pixels say nothing"


def test_precise_on_eight_bit_images(precise, own):
    images = eight_bit(own)
    with pytest.warns(PyinvWarning, match="8-bit values, so the recipe precise") as caught:
        found = precise.invert(images, recipe="precise", restarts=0)
    assert len(caught) == 1
    assert "use the recipe default or reconstruct" in found.hint
    with pytest.raises(InputError, match="8-bit values"):
        precise.invert(images, recipe="precise", strict=True)
    precise.invert(images, recipe="reconstruct", restarts=0)


def test_precise_on_foreign_images(precise, foreign):
    with pytest.warns(PyinvWarning, match="did not reproduce 4 of 4 images exactly") as caught:
        found = precise.invert(foreign, recipe="precise", restarts=0)
    assert len(caught) == 1
    assert found.hint == str(caught[0].message)
    with pytest.raises(RunError, match="4 of 4 images exactly") as error:
        precise.invert(foreign, recipe="precise", restarts=0, strict=True)
    np.testing.assert_array_equal(error.value.inversion.latents, found.latents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RunError, match="4 of 4 images exactly") as error:
            precise.invert(foreign, recipe="precise", restarts=0)
    np.testing.assert_array_equal(error.value.inversion.latents, found.latents)


def test_the_command_line_still_writes_what_strict_refuses_in_the_end(
    precise, foreign, tmp_path, capsys
):
    np.save(tmp_path / "foreign.npy", foreign)
    words = ["invert", str(precise.bundle.path), str(tmp_path / "foreign.npy"), "--strict"]
    words += ["-o", str(tmp_path / "out.npz"), "--recipe", "precise", "--restarts", "0"]
    assert main([*words, "--threads", "1"]) == 1
    assert "pyinv: error: the recipe precise did not reproduce 4" in capsys.readouterr().err
    assert len(Inversion.load(tmp_path / "out.npz")) == 4


def test_precise_on_own_images_says_nothing(precise, own):
    found = precise.invert(own, recipe="precise", strict=True)
    assert found.hint == ""
    assert (found.status == Status.CONVERGED_TOLERANCE).all()
    assert (found.psnr > 80).all()


# Recipes


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("kind", ["Normal", "str", "Inverter", "Bundle"])
def test_recipes_take_a_manifest_and_nothing_else(precise, name, kind):
    given = {
        "Normal": Normal(),
        "str": str(precise.bundle.path),
        "Inverter": precise,
        "Bundle": precise.bundle,
    }
    expected = f"recipes.{name} takes a bundle's manifest, inverter.manifest or bundle.manifest, "
    with pytest.raises(RuleError) as error:
        recipes.RECIPES[name](given[kind])
    assert str(error.value) == expected + f"got {kind}"


@pytest.mark.parametrize("prior", [None, Normal()])
def test_the_default_keeps_to_the_prior(tmp_path, prior):
    """Given a manifest as documented, no component may leave a uniform prior."""
    write_tiny_bundle(tmp_path / "b", prior=prior)
    inverter = Inverter(tmp_path / "b", threads=1)
    images = np.random.default_rng(1).uniform(-1, 1, (8, 1, 8, 8)).astype(np.float32)
    recipe = recipes.default(inverter.manifest).replace(max_steps=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyinvWarning)
        found = inverter.invert(images, recipe=recipe)
    assert (np.abs(found.latents).max() <= 1) == (prior is None)
