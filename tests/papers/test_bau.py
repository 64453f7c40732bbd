"""The reproduction of Bau et al., at tiny size on the digits that come with pyinv."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import pyinv
from pyinv import Normal, demo
from pyinv.cli import main
from pyinv.papers import PAPERS, Request, bau, bau_networks
from pyinv.papers.plan import Planned
from pyinv.papers.report import check
from pyinv.papers.run_cache import RunCache
from pyinv.solvers import Adam
from support.tiny_bundle import write_tiny_bundle

TARGETS, STEPS, ITERATIONS = 4, 30, 5
DIGITS = "digits-16x16-uniform"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The digits as labelled data: 40 to train on, 24 to test with."""
    path = tmp_path_factory.mktemp("data") / "mnist.npz"
    with np.load(demo.DIGITS) as file:
        images = np.uint8(((file["images"] + 1) * 127.5).round())
    labels = np.arange(len(images)) % 3
    np.savez(
        path,
        train_images=images[:40],
        train_labels=labels[:40],
        test_images=images[40:],
        test_labels=labels[40:],
    )
    return path


@pytest.fixture(scope="module")
def made(data, tmp_path_factory) -> tuple[Request, Path]:
    """The report on the demo bundle, and what it was asked for."""
    request = Request(
        tmp_path_factory.mktemp("bau"),
        data=[data],
        generators=[demo.BUNDLE],
        targets=TARGETS,
        max_steps=STEPS,
        encoder_iterations=ITERATIONS,
        machine={"threads": 1, "batch_size": 3},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bau_networks, "FEATURE_ITERATIONS", 10)
        return request, PAPERS["bau"](request)


@pytest.fixture(scope="module")
def numbers(made) -> dict:
    return json.loads(made[1].with_name("numbers.json").read_text())


def part(numbers: dict, id: str) -> dict:
    """The table, figure or text whose id ends so."""
    (found,) = (entry for entry in numbers["content"] if entry["id"].endswith(id))
    return found


def array(numbers: dict, run: str, name: str) -> np.ndarray:
    return np.array(numbers["runs"][f"{DIGITS}-{run}"]["arrays"][name]["values"])


def test_every_number_can_be_computed_again(numbers):
    assert check(numbers) > 100


def test_every_heading_is_another(made):
    contents = re.search(r"<nav.*?</nav>", made[1].read_text(), re.S)[0]
    labels = re.findall(r'<span class="label">(.*?)</span>', contents)
    parts = [
        f"Figure {number}, {of}" for number in "21" for of in ("generated images", "photographs")
    ]
    assert labels == ["Table A", "Table B", *parts, "Table C", "Table D"]


def test_all_methods_are_run_on_generated_images_and_on_photographs(numbers):
    generated = part(numbers, "figure-2")
    names = [*bau.METHODS.values(), *bau.OURS.values()]
    assert [row["label"] for row in generated["rows"]] == names
    assert [bool(row["tag"]) for row in generated["rows"]] == [False] * 6 + [True] * 2
    assert not any(row["text"] for row in generated["rows"])
    photographs = part(numbers, "-photographs")
    assert [row["label"] for row in photographs["rows"]] == [*names[:6], bau.RECONSTRUCT]
    assert "4 test images of mnist" in photographs["caption"]


def test_means_are_over_the_targets(numbers):
    columns = ["latent_distance", "layer_distance", "layer_error", "absolute_error"]
    for row, method in zip(part(numbers, "figure-2")["rows"], "abcde", strict=False):
        found = [cell["value"] for cell in row["cells"]]
        expected = [array(numbers, f"generated-{method}", name).mean() for name in columns]
        assert [found[0], *found[2:]] == pytest.approx(expected)
    assert part(numbers, "figure-2")["rows"][5]["cells"][:2] == [None, None]  # (f) finds no z


def test_precise_recovers_the_latents(numbers):
    assert (array(numbers, "generated-precise", "latent_distance") < bau.EXACT).all()
    row = part(numbers, "figure-2")["rows"][6]
    assert row["cells"][1]["value"] == 1
    result = part(numbers, "result")
    assert result["cells"]["precise"]["value"] == 1
    assert result["cells"]["a"]["value"] == 0


def test_optimisation_begins_at_the_encoders_and_improves_on_them(numbers):
    for start, end in (("b", "c"), ("d", "e"), ("d", "f")):
        for targets in ("generated", "photographs"):
            before = array(numbers, f"{targets}-{start}", "absolute_error")
            after = array(numbers, f"{targets}-{end}", "absolute_error")
            assert after.mean() < before.mean()
    runs = {id.removeprefix(f"{DIGITS}-"): run["recipe"] for id, run in numbers["runs"].items()}
    for method in "acef":
        stages = runs[f"generated-{method}"]["stages"]
        assert [stage["loss"] for stage in stages] == ["perceptual"] * 4
        kinds = [penalty["kind"] for penalty in stages[0]["penalties"]]
        assert kinds == (["prior_penalty"] if method == "f" else [])
    assert runs["generated-b"] is None


def test_the_layer_of_f_is_that_of_its_image(made, numbers):
    """A run of no steps would leave every residual at 0, and the layer where (d) has it."""
    kept = pyinv.Inversion.load(made[0].folder / "runs" / f"{DIGITS}-generated-f.npz")
    assert np.abs(kept.latents).max() > 0
    d, f = (array(numbers, f"generated-{method}", "layer_error") for method in "df")
    assert (d != f).all()


def test_features_are_told_and_the_paper_s_are_beside_them(numbers):
    differences = {row["what"]: (row["paper"], row["here"]) for row in numbers["differences"]}
    assert "VGG16" in differences["d_I"][0]
    assert "trained on the 40 training images of mnist" in differences["d_I"][1]
    assert "zero_grad" in differences["Encoders"][0]
    assert f"(b) {ITERATIONS} iterations" in differences["Encoders"][1]
    assert "halved after 8, 12, 18 steps" in differences["Optimiser"][1]
    assert {"Targets", "Steps", "Residuals of (f)", "Random draws", "Precision"} <= set(differences)


def test_figures_and_page_stand_alone(made, numbers):
    figures = [entry["title"][:8] for entry in numbers["content"] if entry["kind"] == "figure"]
    assert figures == ["Figure 2", "Figure 2", "Figure 1", "Figure 1"]
    page = made[1].read_text()
    assert page.count("data:image/png;base64,") == 2 * 4  # for light pages and for dark ones
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "/tmp/" not in page


def test_a_report_is_rendered_again_from_what_is_kept(made, numbers, monkeypatch):
    def fail(*arguments, **named):
        pytest.fail("made again")

    monkeypatch.setattr(bau_networks, "FEATURE_ITERATIONS", 10)
    monkeypatch.setattr(pyinv.Inverter, "invert", fail)
    for name in ("train_classifier", "export"):
        monkeypatch.setattr(bau_networks, name, fail)
    report = bau.reproduce(made[0])
    assert json.loads(report.with_name("numbers.json").read_text()) == numbers


def test_encoders_that_were_trained_before_are_taken(made, numbers, tmp_path, monkeypatch):
    monkeypatch.setattr(bau_networks, "train_encoder", lambda *a, **b: pytest.fail("trained again"))
    folder = made[0].folder / "encoders"
    report = bau.reproduce(
        Request(
            tmp_path,
            generators=[demo.BUNDLE],
            encoders=[folder / f"{DIGITS}-{name}" for name in ("latent-image", "layers")],
            targets=2,
            max_steps=1,
            machine={"threads": 1},
        )
    )
    again = json.loads(report.with_name("numbers.json").read_text())
    check(again)
    for method in "bd":
        found, before = (
            array(one, f"generated-{method}", "latent_distance")[:2] for one in (again, numbers)
        )
        np.testing.assert_allclose(found, before, rtol=1e-5)
    assert "--data" in part(again, "no-photographs")["paragraphs"][0]


def test_an_encoder_of_another_generator_is_refused(made, tmp_path):
    write_tiny_bundle(tmp_path / "tiny.bundle", prior=Normal())
    with pytest.raises(pyinv.InputError, match="encoder of another generator"):
        bau.reproduce(
            Request(
                tmp_path / "out",
                data=[tmp_path / "no such data"],  # which is refused later
                generators=[tmp_path / "tiny.bundle"],
                encoders=[made[0].folder / "encoders" / f"{DIGITS}-layers"],
            )
        )


def test_two_encoders_of_one_method_are_both_named(made, tmp_path):
    one = made[0].folder / "encoders" / f"{DIGITS}-layers" / "generator.bundle"
    other = shutil.copytree(one, tmp_path / "other.bundle")
    with pytest.raises(pyinv.InputError, match=f"{one} and {other}: .* the method layers trained"):
        bau.reproduce(Request(tmp_path / "out", generators=[demo.BUNDLE], encoders=[one, other]))


def test_a_bundle_without_an_encoder_is_told_before_a_generator_is_trained(tmp_path):
    data = [tmp_path / "no such data"]
    with pytest.raises(pyinv.BundleError, match="has no encoder"):
        bau.reproduce(Request(tmp_path / "out", data=data, encoders=[demo.BUNDLE]))


def test_a_generator_without_layers_says_why_they_are_not_run(tmp_path):
    """Its images leave the value range, and are targets all the same."""
    write_tiny_bundle(tmp_path / "tiny.bundle", prior=Normal(), layers=1, tanh=False)
    manifest = tmp_path / "tiny.bundle/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "bounded": False}))
    report = bau.reproduce(
        Request(
            tmp_path / "out",
            generators=[tmp_path / "tiny.bundle"],
            targets=2,
            max_steps=2,
            encoder_iterations=2,
            machine={"threads": 1},
        )
    )
    numbers = json.loads(report.with_name("numbers.json").read_text())
    assert check(numbers) > 10
    rows = {row["label"]: row["text"] for row in part(numbers, "figure-2")["rows"]}
    for method in "def":
        assert rows[bau.METHODS[method]].startswith("not run: tiny.bundle/forward.onnx uses")
    # From an encoder it needs no normal equations, which this bundle has not.
    assert rows[bau.OURS["precise"]] == ""
    assert [rows[bau.METHODS[method]] for method in "abc"] == [""] * 3


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [(3000, [800, 400, 600, 1200]), (30, [8, 4, 6, 12]), (1, [1])],
)
def test_the_learning_rate_is_halved_where_the_authors_halve_it(steps, lengths):
    recipe = bau.bau_recipe(steps, "l1")
    assert [stage.max_steps for stage in recipe.stages] == lengths
    rates = [stage.solver.learning_rate for stage in recipe.stages]
    assert rates == [0.01 / 2**halvings for halvings in range(4)][: len(lengths)]
    assert all(stage.solver == Adam(rate) for stage, rate in zip(recipe.stages, rates, strict=True))


def test_lengths_that_pixel_norm_takes_away_are_not_compared():
    r = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)
    scaled = r * np.random.default_rng(1).uniform(1, 2, (2, 1, 4, 4)).astype(np.float32)
    same = bau_networks._compared(scaled, True)
    np.testing.assert_allclose(same, bau_networks._compared(r, True), rtol=1e-5)
    np.testing.assert_allclose((same**2).mean(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(bau_networks._compared(scaled, False), scaled)


def test_an_interrupted_training_says_how_to_continue(tmp_path, capsys, monkeypatch):
    def train_encoder(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(bau_networks, "train_encoder", train_encoder)
    code = main(["reproduce", "bau", "--generator", str(demo.BUNDLE), "-o", str(tmp_path / "out")])
    assert code == 130
    message = capsys.readouterr().err
    assert "0 of 2 encoders of digits 16x16 are trained; run the same command to resume" in message


def test_a_run_from_another_start_is_another_run(tmp_path):
    inverter = pyinv.Inverter(demo.BUNDLE, threads=1)
    latents = inverter.sample(3)
    images = inverter.generate(latents)
    recipe = bau.bau_recipe(1, "mse", 1e-9)
    runs = [RunCache(tmp_path) for _ in range(3)]
    for one, init in zip(runs, (latents, latents, -latents), strict=True):
        found = one.run(Planned("a", "a", inverter, images, recipe, init=init), seed=0)
        np.testing.assert_allclose(found.latents, init, atol=1e-6)
    assert [one.read_back for one in runs] == [set(), {"a"}, set()]
