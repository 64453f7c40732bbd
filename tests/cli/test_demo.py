"""The demo: what comes with the package, what it finds, what it prints and draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pyinv
from pyinv import demo


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """One run of the whole demo, shared by the tests that look at it: (report, folder)."""
    folder = tmp_path_factory.mktemp("demo")
    return demo.run(folder, quiet=True), folder


@pytest.fixture
def short(monkeypatch):
    """Makes every run of the demo end after a few steps."""

    def default(manifest):
        return pyinv.recipes.default(manifest).replace(max_steps=10, restarts=0)

    monkeypatch.setattr(demo, "MAX_STEPS", 10)
    monkeypatch.setattr(demo, "default", default)


def test_the_bundle_is_whole_and_small():
    bundle = pyinv.Bundle.open(demo.BUNDLE)
    assert set(bundle.manifest.losses) == {"mse", "whitened", "l1", "bce"}
    assert bundle.manifest.prior == pyinv.Uniform(-1.0, 1.0)
    assert sum(file.stat().st_size for file in demo.BUNDLE.iterdir()) < 2_000_000


def test_the_digits_are_64_and_balanced():
    manifest = pyinv.Bundle.open(demo.BUNDLE).manifest
    with np.load(demo.DIGITS) as file:
        images, labels = file["images"], file["labels"]
    assert images.shape == (64, *manifest.image_shape)
    assert images.dtype == np.float32
    assert images.min() >= manifest.value_range[0]
    assert images.max() <= manifest.value_range[1]
    assert set(np.bincount(labels, minlength=10)) == {6, 7}


def test_stochastic_clipping_recovers_most_latents_and_no_clipping_fewer(demo_run):
    report, _ = demo_run
    none, standard, stochastic, default = (row["recovered"] for row in report["generated"])
    assert stochastic["0.0001"] > 0.7
    assert default["0.0001"] > stochastic["0.0001"]
    assert stochastic["0.0001"] > none["0.0001"] + 0.05
    assert standard["0.1"] >= none["0.1"]


def test_recovery_is_measured_on_the_latents_that_made_the_images():
    # Taking other latents for the truth must leave none recovered.
    inverter = pyinv.Inverter(demo.BUNDLE)
    method, truth = demo.METHODS[2], inverter.sample(8, seed=0)
    images = inverter.generate(truth)
    right = demo._invert(inverter, method, images, seed=0, latents=truth).describe()
    wrong = demo._invert(inverter, method, images, seed=0, latents=truth[::-1]).describe()
    assert right["recovered"]["0.1"] > 0.5
    assert wrong["recovered"]["0.1"] == 0


def test_real_digits_come_near(demo_run):
    report, _ = demo_run
    real = report["real"]
    assert real["images"] == 64
    assert real["recovered"] is None
    generated = report["generated"][2]
    assert generated["mean_image_error"] < real["mean_image_error"] < 0.2


def test_the_three_clippings_start_from_the_same_latents():
    inverter = pyinv.Inverter(demo.BUNDLE)
    images = inverter.generate(inverter.sample(4))
    first = [
        inverter.invert(
            images,
            recipe=method.recipe(inverter.manifest).replace(max_steps=1, restarts=0),
            trace_every=1,
        ).trace[:, 0]
        for method in demo.METHODS[:3]
    ]
    for other in first[1:]:
        np.testing.assert_array_equal(other, first[0])


def test_the_picture_can_be_opened_and_is_large(demo_run):
    report, folder = demo_run
    path = Path(report["picture"])
    assert path == folder / "reconstructions.png"
    with Image.open(path) as picture:
        picture.load()
        assert picture.width >= 800
        assert len(np.unique(np.asarray(picture))) > 50


@pytest.mark.usefixtures("short")
def test_it_says_what_it_did_real_digits_first(tmp_path, capsys):
    report = demo.run(tmp_path)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.index("1. 64 real digits") < out.index("2. 128 pictures made by the generator")
    assert f"off by {report['real']['rms_grey_levels']:.1f} of 255 grey levels" in out
    for row in report["generated"]:
        (line,) = (line for line in out.splitlines() if line.strip().startswith(row["method"]))
        assert line.endswith(f"{row['seconds']:.1f} s")
        assert f"{100 * row['recovered']['0.0001']:.0f} %" in line
    assert report["picture"] in out
    assert "pyinv export my_models.py:make_generator" in out[out.index(report["picture"]) :]
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 100


@pytest.mark.usefixtures("short")
def test_a_seed_decides_everything(tmp_path):
    def losses(seed):
        report = demo.run(tmp_path, seed=seed, json=True)
        return [row["mean_image_error"] for row in report["generated"]]

    assert losses(3) == pytest.approx(losses(3), rel=1e-3)
    assert losses(3) != pytest.approx(losses(4), rel=1e-3)


@pytest.mark.usefixtures("short")
def test_quiet_and_json_print_nothing(tmp_path, capfd):
    demo.run(tmp_path, quiet=True)
    demo.run(tmp_path, json=True)
    assert capfd.readouterr() == ("", "")


def test_no_torch_is_needed(tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pyinv import demo\n"
        "whole = demo.default\n"
        "demo.default = lambda manifest: whole(manifest).replace(max_steps=2, restarts=0)\n"
        "demo.MAX_STEPS = 2\n"
        f"demo.run({str(tmp_path)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "stochastic clipping" in done.stdout
