"""The papers' reproductions, at tiny size on the digits that come with pyinv."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import pyinv
from pyinv import demo, evaluation, recipes
from pyinv.bundle import Bundle
from pyinv.cli import main
from pyinv.papers import PAPERS, Request, creswell, egan, lipton
from pyinv.papers.generators import Generator
from pyinv.papers.precise import PRECISE
from pyinv.papers.report import check, recompute
from support import reference
from support.manifests import manifest
from support.paths import SHARED
from support.tiny_bundle import write_tiny_bundle

pytest.importorskip("matplotlib")

# Those of encoders are in test_paper_luo.py and test_paper_bau.py.
OPTIMISED = ("creswell", "lipton", "egan")
TARGETS, STEPS = 6, 12
PAPER_TEXTS = SHARED / "papers"


def copy_bundle(folder: Path, **changes: object) -> Path:
    """Copy the digits bundle, with some entries of its manifest changed."""
    shutil.copytree(demo.BUNDLE, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


NORMAL = {"kind": "normal", "mean": 0.0, "std": 1.0}
ORIGIN = {"data": "mnist", "iterations": 2000}
TRAINED = {"data": "mnist", "configuration": {"name": "egan"}}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    """The digits generator as bundles of each prior; "trained" has both batch-norm modes."""
    folder = tmp_path_factory.mktemp("bundles")
    trained = folder / "trained"
    trained.mkdir()
    copy_bundle(trained / "generator.bundle", name="gan", origin=ORIGIN)
    functions = json.loads((demo.BUNDLE / "manifest.json").read_text())["functions"]
    without_bce = [one for one in functions if one.get("loss") != "bce"]
    first_order = [one for one in functions if one["name"] != "normal_equations"]
    copy_bundle(
        trained / "generator-batch.bundle",
        name="gan",
        batch_norm="batch",
        functions=first_order,
        origin=ORIGIN,
    )
    return {
        "uniform": demo.BUNDLE,
        "normal": copy_bundle(folder / "normal.bundle", name="normal", prior=NORMAL),
        "trained": trained,
        "without bce": copy_bundle(folder / "without.bundle", functions=without_bce),
        "first order": copy_bundle(folder / "first.bundle", functions=first_order),
        "first order, normal": copy_bundle(
            folder / "first-normal.bundle", functions=first_order, prior=NORMAL, origin=TRAINED
        ),
    }


@pytest.fixture(scope="module")
def mnist(tmp_path_factory) -> Path:
    """The digits as a data set in MNIST's format: 40 to train on, 24 to test with."""
    folder = tmp_path_factory.mktemp("data") / "mnist"
    folder.mkdir()
    with np.load(demo.DIGITS) as file:
        images = np.uint8(((file["images"][:, 0] + 1) * 127.5).round())
    for name, part in (("train", images[:40]), ("t10k", images[40:])):
        header = struct.pack(">HBBIII", 0, 8, 3, *part.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + part.tobytes())
    return folder


@pytest.fixture(scope="module")
def reports(bundles, mnist, tmp_path_factory) -> dict[str, Path]:
    """Each paper's report."""
    arguments = {
        "creswell": {"data": [mnist], "generators": [bundles["trained"], bundles["normal"]]},
        "lipton": {"data": [mnist], "generators": [bundles["uniform"]]},
        "egan": {"generators": [bundles["normal"]]},
    }
    return {
        paper: PAPERS[paper](
            Request(
                tmp_path_factory.mktemp(paper),
                targets=TARGETS,
                max_steps=STEPS,
                machine={"threads": 1, "batch_size": 3},
                **arguments[paper],
            )
        )
        for paper in OPTIMISED
    }


def numbers_of(report: Path) -> dict:
    return json.loads(report.with_name("numbers.json").read_text())


def part(numbers: dict, id: str) -> dict:
    """The table, figure or text whose id ends so."""
    (found,) = (entry for entry in numbers["content"] if entry["id"].endswith(id))
    return found


# -- every report


@pytest.mark.parametrize("paper", OPTIMISED)
def test_every_number_can_be_computed_again(reports, paper):
    numbers = numbers_of(reports[paper])
    assert check(numbers) > 20
    assert any(np.isfinite(stated) for _, stated, _ in recompute(numbers))


@pytest.mark.parametrize("paper", OPTIMISED)
def test_the_page_states_the_numbers_of_the_json(reports, paper):
    page = reports[paper].read_text()
    tables = [one for one in numbers_of(reports[paper])["content"] if one["kind"] == "table"]
    assert tables
    for entry in tables:
        (body,) = re.findall(rf'<section id="{entry["id"]}".*?<tbody>(.*?)</tbody>', page, re.S)
        shown = [re.findall(r"<td.*?</td>", row) for row in body.split("<tr") if "<td" in row]
        assert len(shown) == len(entry["rows"])
        for row, cells in zip(entry["rows"], shown, strict=True):
            if row["text"]:
                assert len(cells) == 1
                continue
            for column, cell, text in zip(entry["columns"], row["cells"], cells, strict=True):
                if cell is None or cell["value"] is None:
                    assert "–" in text
                    continue
                (ours,) = re.findall(r'<span class="ours[^"]*" title="[^"]*">([^<]*)', text)
                factor = 100 if column["percent"] else 1
                expected = column["format"].format(cell["value"] * factor)
                assert ours == re.sub(r"e[-+]\d+$", "×10", expected).replace("-", "−")


@pytest.mark.parametrize("paper", OPTIMISED)
def test_a_report_says_what_differs_and_how_it_ran(reports, paper):
    numbers = numbers_of(reports[paper])
    differences = {row["what"]: row["here"] for row in numbers["differences"]}
    assert {"Generator", "Images", "Batch norm", "Random draws", "Precision"} <= set(differences)
    assert differences["Images"] == "16×16, 1 channel"
    assert str(STEPS) in " ".join(differences.values())
    assert numbers["settings"]["targets"] == TARGETS
    inversions = [run for run in numbers["runs"].values() if run["recipe"]]
    assert all(run["facts"]["seconds"] >= 0 for run in inversions)
    # These two end when they have arrived.
    cut = [run for run in inversions if run["recipe"]["name"] not in ("precise", "reconstruct")]
    assert all(run["recipe"]["stages"][0]["max_steps"] <= STEPS for run in cut)


@pytest.mark.parametrize("paper", OPTIMISED)
def test_a_report_needs_no_other_file(reports, paper):
    page = reports[paper].read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "/tmp/" not in page


# -- Lipton & Tripathi


def test_lipton_has_its_tables_and_figures(reports):
    numbers = numbers_of(reports["lipton"])
    table = part(numbers, "table-1")
    methods = [*lipton.CLIPPINGS.values(), lipton.ADAM, PRECISE]
    assert [row["label"] for row in table["rows"]] == methods * 2
    published = [[cell["published"] for cell in row["cells"]] for row in table["rows"]]
    assert published[0] == [0.98, 0.986, 0.998, 1.0, None]
    assert published[1] == [0.984, 0.99, 1.0, 1.0, None]
    assert published[2] == [1.0, 1.0, 1.0, 1.0, None]
    # The authors' code counts at any step, not after the last one.
    assert published[3:] == [[None] * 5] * 7
    ours = [bool(row["tag"]) for row in table["rows"]]
    assert ours == [False, False, False, True, True] * 2

    spread = part(numbers, "table-2")["rows"]
    published = [2.03e-4, 1.36e-4, 4.94e-5, 0.0815, None]
    assert [cell["published"] for cell in spread[0]["cells"]] == published
    columns = [0, 1, 2, 4]  # all but the baseline
    means = [np.mean([row["cells"][one]["value"] for row in spread[1:]]) for one in columns]
    assert [spread[0]["cells"][one]["value"] for one in columns] == pytest.approx(means)
    assert "test images of mnist" in part(numbers, "table-2")["caption"]
    assert {"figure-1", "figure-2"} <= {entry["id"][-8:] for entry in numbers["content"]}


def test_lipton_counts_at_any_update_and_at_the_end(reports):
    runs = numbers_of(reports["lipton"])["runs"]
    for name in (*lipton.CLIPPINGS, "adam"):
        arrays = runs[f"digits-16x16-uniform-table-1-{name}"]["arrays"]
        final, best = (
            np.array(arrays[key]["values"]) for key in ("latent_error", "min_latent_error")
        )
        assert (best <= final * (1 + 1e-6)).all()
        assert (best > 0).all()


def test_lipton_without_data_takes_means_of_two_images(bundles, tmp_path):
    report = lipton.reproduce(
        Request(
            tmp_path,
            generators=[bundles["uniform"]],
            targets=2,
            max_steps=2,
            machine={"threads": 1},
        )
    )
    assert "mean of two generated images" in part(numbers_of(report), "table-2")["caption"]


@pytest.mark.parametrize(
    ("steps", "rate", "halved"),
    [(80_000, 1.0, 50_000), (100_000, 1.0, 50_000), (20_000, 4.0, 12_500), (2000, 5.0, 1250)],
)
def test_a_short_lipton_run_goes_as_far_along_the_gradient(steps, rate, halved):
    recipe = lipton.clipping_recipe(manifest(), "stochastic", steps)
    (stage,) = recipe.stages
    assert stage.solver == dataclasses.replace(
        recipes.lipton(manifest()).stages[0].solver,
        learning_rate=rate,
        schedule=pyinv.StepDecay(every=halved, factor=0.5),
    )
    assert stage.max_steps == steps
    flow = rate * sum(0.5 ** (step // halved) for step in range(steps))
    if steps <= 80_000:
        assert flow == pytest.approx(65_000 * rate * min(steps / 80_000, 1))
        assert rate == 5 or flow == pytest.approx(65_000)
    darker = lipton.clipping_recipe(
        dataclasses.replace(manifest(), value_range=(0.0, 1.0)), "stochastic", steps
    )
    assert darker.stages[0].solver.learning_rate == 4 * rate
    assert (
        lipton.clipping_recipe(manifest(), "none", steps, 0.25).stages[0].solver.learning_rate
        == 0.25
    )


def test_figure_1_begins_where_the_runs_begin(inverter):
    images = inverter.generate(inverter.sample(3))
    still = pyinv.Recipe("still", (pyinv.Stage(pyinv.GradientDescent(1e-30), max_steps=1),))
    inversion = inverter.invert(images, recipe=still, seed=5)
    starts = lipton.starting_latents(inverter, 3, seed=5)
    np.testing.assert_array_equal(inversion.latents, starts)


# -- Egan et al.


def test_egan_has_all_rows_and_columns(reports):
    numbers = numbers_of(reports["egan"])
    for id in ("table-1", "table-1-any"):
        table = part(numbers, id)
        names = [row["label"] for row in table["rows"]]
        assert names[0] == "disabled"
        assert sum(name.startswith("hard(") for name in names) == 3
        assert sum(name.startswith("trunc_normal(") for name in names) == 5
        assert sum(name.startswith("logistic(") for name in names) == 9
        assert names[18:] == [egan.ADAM, PRECISE]
        assert [column["title"] for column in table["columns"]] == [
            *("0.0001", "0.001", "0.01", "0.1", "1", "wins", "sig wins", "avg err")
        ]
    first, *others, default, precise = part(numbers, "table-1")["rows"]
    assert first["cells"][5:7] == [None, None]
    assert all(cell["published"] is not None for row in others for cell in row["cells"])
    assert all(cell["published"] is None for cell in default["cells"] + precise["cells"])


def test_egan_compares_all_criteria_from_the_same_start(reports):
    runs = numbers_of(reports["egan"])["runs"]
    recipe = {key: run["recipe"]["stages"][0] for key, run in runs.items()}
    for criterion in egan.CRITERIA:
        stage = recipe[f"normal-normal-{criterion.key}"]
        # E is the number of steps.
        assert stage["constraint"].get("horizon", STEPS) == STEPS
        assert stage["solver"] == recipe["normal-normal-disabled"]["solver"]
    seeds = {run["facts"]["seed"] for run in runs.values()}
    assert seeds == {0}


def test_egan_orders_the_criteria_as_its_table_does(reports):
    numbers = numbers_of(reports["egan"])
    rows = {row["label"]: row["cells"] for row in part(numbers, "table-1")["rows"]}
    names = [criterion.name for criterion in egan.CRITERIA]
    expected = evaluation.rank_correlation(
        [rows[name][-1]["value"] for name in names], [one.error for one in egan.CRITERIA]
    )
    assert part(numbers, "ordering")["rows"][0]["cells"][-1]["value"] == pytest.approx(expected)
    best = min(names, key=lambda name: rows[name][-1]["value"])
    assert part(numbers, "result")["paragraphs"][0].startswith(f"{best} has the lowest")


def test_the_published_figures_of_egan_are_those_printed():
    text = PAPER_TEXTS / "egan_2018.txt"
    if not text.is_file():
        pytest.skip(f"{text} is not here")
    row = re.compile(r"^\$?((?:disabled|hard|trunc_norm|logistic)[^\t$]*)\$?\t([\d.\t-]+)$", re.M)
    printed = {
        name.replace("trunc_norm", "trunc_normal").replace("3.75", "3.5"): [
            math.nan if cell == "-" else float(cell) for cell in cells.split("\t")
        ]
        for name, cells in row.findall(text.read_text())
    }
    assert len(printed) == 18
    assert list(printed) == [one.name for one in egan.CRITERIA]
    for one in egan.CRITERIA:
        figures = [math.nan if figure is None else figure for figure in one.published]
        shares = [figure * 100 for figure in figures[:-1]]
        assert [*shares, figures[-1]] == pytest.approx(printed[one.name], nan_ok=True)


@pytest.mark.parametrize("criterion", egan.CRITERIA[1:], ids=lambda criterion: criterion.name)
def test_the_curves_are_those_of_the_engines_rule(criterion):
    distance = np.linspace(0, 4, 41, dtype=np.float32)
    expected = reference.resampling_probability(criterion.constraint.describe(), NORMAL, -distance)
    drawn = egan.resampling_probability(criterion.constraint, distance)
    np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-6)


def test_great_circle_and_sums_are_drawn(reports):
    numbers = numbers_of(reports["egan"])
    figures = {entry["title"][:8] for entry in numbers["content"] if entry["kind"] == "figure"}
    assert figures == {"Figure 2", "Figure 3", "Figure 7", "Figure 8", "Figure 9"}


def test_paths_lie_about_the_priors_mean(tmp_path, monkeypatch):
    prior = {"kind": "normal", "mean": 3.0, "std": 0.5}
    bundle = copy_bundle(tmp_path / "moved.bundle", prior=prior)
    made = []
    whole = pyinv.Inverter.generate

    def generate(self, latents, **arguments):
        made.append(np.array(latents))
        return whole(self, latents, **arguments)

    monkeypatch.setattr(pyinv.Inverter, "generate", generate)
    machine = {"threads": 1}
    egan.reproduce(
        Request(tmp_path / "out", generators=[bundle], targets=2, max_steps=1, machine=machine)
    )
    linear, slerp, half, other = made[-4:]
    np.testing.assert_allclose(slerp[[0, -1]], linear[[0, -1]], rtol=1e-5)
    radii = np.linalg.norm((np.concatenate([half, other]) - 3).reshape(25, -1), axis=1)
    np.testing.assert_allclose(radii, radii[0], rtol=1e-4)
    np.testing.assert_allclose(other[-1], half[0], rtol=1e-5)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_training_shows_a_bar_on_terminals_alone(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    request = Request(tmp_path, generators=[demo.BUNDLE], progress=True)
    assert request.training["progress"] is terminal
    assert request.progress  # inversions print lines in a log


def test_equal_errors_share_a_rank():
    ranked = egan._ranked({"a": 2.0, "b": 1.0, "c": 2.0})
    assert ranked == [["b"], ["a", "c"]]
    assert egan._ranking_text(ranked) == "b; a = c"
    assert egan._ranking_text([["a", "b"]]) == "all are equal"


# -- pyinv's own precise recipe


@pytest.mark.parametrize(
    ("paper", "run", "table"),
    [
        ("lipton", "digits-16x16-uniform-table-1-precise", "table-1"),
        ("egan", "normal-normal-precise", "table-1"),
    ],
)
def test_precise_recovers_the_latents_and_says_what_they_cost(reports, paper, run, table):
    numbers = numbers_of(reports[paper])
    arrays = {
        name: np.array(array["values"]) for name, array in numbers["runs"][run]["arrays"].items()
    }
    assert (arrays["latent_error"] < 1e-4).all()
    row = part(numbers, table)["rows"][-1]
    assert row["label"] == PRECISE
    assert row["cells"][0]["value"] == 1

    objective, equations = arrays["objective_evaluations"], arrays["normal_equations"]
    assert (equations >= 2).all()
    forwards = 2 * objective + (1 + 16) * equations
    np.testing.assert_array_equal(arrays["forward_equivalents"], forwards)
    costs = {row["label"]: row["cells"][1:] for row in part(numbers, "costs")["rows"]}
    found = [cell["value"] for cell in costs[PRECISE]]
    assert found == pytest.approx([objective.mean(), equations.mean(), forwards.mean()])
    result = part(numbers, "result")
    assert "assumes that this exact generator made" in result["paragraphs"][-1]
    assert result["cells"]["precise"]["value"] == 1
    assert result["cells"]["cost"]["value"] == pytest.approx(forwards.mean())


@pytest.mark.parametrize(
    ("paper", "name", "steps"), [("lipton", "No clipping", 100_000), ("egan", "disabled", 20_000)]
)
def test_a_first_order_method_costs_two_passes_an_evaluation(reports, paper, name, steps):
    costs = {
        row["label"]: row["cells"][1:] for row in part(numbers_of(reports[paper]), "costs")["rows"]
    }
    objective, equations, forwards = costs[name]
    # One at the start, and one an step.
    assert (objective["value"], objective["published"]) == (STEPS + 1, steps)
    assert equations is None
    assert (forwards["value"], forwards["published"]) == (2 * STEPS + 2, 2 * steps)


@pytest.mark.parametrize(
    ("paper", "bundle", "mends"),
    [
        (
            "lipton",
            "first order",
            "`pyinv export GENERATOR -o BUNDLE --latent-shape 16 --prior uniform:-1,1 "
            "--value-range -1 1 --normal-equations`",
        ),
        ("egan", "first order, normal", "`pyinv train gan`"),
    ],
)
def test_without_normal_equations_a_report_says_how_to_get_them(
    bundles, tmp_path, paper, bundle, mends
):
    report = PAPERS[paper](
        Request(
            tmp_path, generators=[bundles[bundle]], targets=2, max_steps=1, machine={"threads": 1}
        )
    )
    numbers = numbers_of(report)
    assert check(numbers) > 20
    row = next(row for row in part(numbers, "table-1")["rows"] if row["label"] == PRECISE)
    assert set(row["cells"]) == {None}
    assert row["text"].startswith("not run: this bundle has no normal equations")
    assert mends in row["text"]
    assert not [key for key in numbers["runs"] if key.endswith(("precise", "reconstruct"))]


def test_a_report_is_rendered_again_from_its_kept_runs(bundles, tmp_path, monkeypatch):
    def render():
        machine = {"threads": 1}
        report = egan.reproduce(
            Request(
                tmp_path, generators=[bundles["normal"]], targets=2, max_steps=1, machine=machine
            )
        )
        return numbers_of(report)

    before = render()
    monkeypatch.setattr(pyinv.Inverter, "invert", lambda *a, **b: pytest.fail("ran again"))
    assert render() == before


# -- Creswell & Bharath


def test_creswell_has_all_cells_in_both_modes(reports):
    table = part(numbers_of(reports["creswell"]), "table-mnist")
    assert table["title"].startswith("Table 2")
    first, second = table["rows"]
    assert (first["label"], second["label"]) == ("eval mode", "batch statistics")
    published = [0.027, 0.032, 0.042, 0.044]
    assert [cell["published"] for cell in first["cells"]] == published
    assert [cell["published"] for cell in second["cells"][:2]] == published[:2]
    assert second["cells"][2:] == [None, None]  # the normal bundle has one mode


def test_creswell_errors_are_those_of_a_pixel_from_0_to_1(reports):
    numbers = numbers_of(reports["creswell"])
    with np.load(demo.DIGITS) as file:
        pixels = (file["images"][40:] + 1) / 2
    rows = np.random.default_rng(0).choice(24, TARGETS, replace=False)
    blank = part(numbers, "table-mnist")["cells"]["blank"]["value"]
    assert blank == pytest.approx(float(pixels[rows].mean()), rel=1e-3)


def test_creswell_says_both_batch_norm_modes(reports):
    differences = {
        row["what"]: row["here"] for row in numbers_of(reports["creswell"])["differences"]
    }
    assert "eval mode" in differences["Batch norm"]
    assert "over the images that run together" in differences["Batch norm"]


def test_creswell_compares_its_method_with_and_without(reports):
    runs = numbers_of(reports["creswell"])["runs"]

    def stage(id: str) -> dict:
        return runs[id]["recipe"]["stages"][0]

    kinds = {
        key: stage(f"gan-mnist-uniform-{key}")["constraint"]["kind"] for key in ("with", "without")
    }
    assert kinds == {"with": "clip", "without": "no_constraint"}
    assert [one["kind"] for one in stage("normal-normal-with")["penalties"]] == ["moment_penalty"]
    assert stage("normal-normal-without")["penalties"] == []
    assert {stage(key)["loss"] for key, run in runs.items() if run["recipe"]} == {"bce"}
    outside = {
        key: np.mean(runs[f"gan-mnist-uniform-{key}"]["arrays"]["share_outside"]["values"])
        for key in ("with", "without")
    }
    assert outside["with"] == 0
    assert 0 < outside["without"] < 1


def test_creswell_publishes_omniglot_beside_omniglot_alone(bundles, tmp_path):
    with np.load(demo.DIGITS) as file:
        arrays = {"train_images": file["images"], "test_images": file["images"][:8]}
    rows = {}
    for name in ("omniglot", "omniglot {of} mine"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        report = creswell.reproduce(
            Request(
                tmp_path / "out",
                data=[tmp_path / f"{name}.npz"],
                generators=[bundles["uniform"], bundles["normal"]],
                targets=2,
                max_steps=1,
                machine={"threads": 1},
            )
        )
        tables = [one for one in numbers_of(report)["content"] if one["kind"] == "table"]
        rows[name] = [cell["published"] for cell in tables[0]["rows"][0]["cells"]]
    assert rows["omniglot"] == [0.023, 0.045, 0.020, 0.020]
    assert rows["omniglot {of} mine"] == [None] * 4


def test_generators_of_the_same_kind_are_told_apart(bundles, mnist, tmp_path):
    other = copy_bundle(tmp_path / "other.bundle", name="other", origin={"data": "faces"})
    report = creswell.reproduce(
        Request(
            tmp_path / "out",
            data=[mnist],
            generators=[bundles["uniform"], other],
            targets=2,
            max_steps=1,
            machine={"threads": 1},
        )
    )
    numbers = numbers_of(report)
    first, second = part(numbers, "table-mnist")["rows"]
    assert first["label"] == "eval mode: digits 16x16"
    assert second["label"] == "eval mode: other on faces"
    labels = [run["label"] for run in numbers["runs"].values()]
    assert any("generator trained on faces" in label for label in labels)


def test_creswell_matches_generators_to_their_data(bundles, mnist, tmp_path):
    other = tmp_path / "omniglot-like.npz"
    with np.load(demo.DIGITS) as file:
        np.savez(other, train_images=file["images"], test_images=file["images"][:8])
    with pytest.raises(pyinv.InputError, match="no given dataset has that name"):
        creswell.reproduce(
            Request(
                tmp_path / "out",
                data=[mnist, other],
                generators=[bundles["normal"]],
                targets=2,
                max_steps=1,
            )
        )
    report = creswell.reproduce(
        Request(
            tmp_path / "out",
            data=[mnist, other],
            generators=[bundles["trained"]],
            targets=2,
            max_steps=1,
            machine={"threads": 1},
        )
    )
    assert part(numbers_of(report), "table-mnist")


# -- what the user sees


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed on both streams."""
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture
def command(bundles, tmp_path) -> list[object]:
    """A reproduction of thirteen runs."""
    return [
        *("reproduce", "lipton", "--generator", bundles["uniform"], "-o", tmp_path / "out"),
        *("--targets", 4, "--max-steps", 5, "--threads", 1),
    ]


def test_the_command_says_each_run_and_where_the_report_is(capsys, command, tmp_path):
    code, out, err = run(capsys, *command)
    assert (code, out) == (0, "")
    assert "run 1 of 13: digits 16x16: No clipping" in err
    assert "run 11 of 13" in err
    assert err.count("remaining, at this speed") == 1
    assert err.splitlines()[-1] == f"wrote {tmp_path / 'out' / 'report.html'}"


def test_json_names_the_files_and_settings(capsys, command, tmp_path):
    code, out, err = run(capsys, *command, "--json", "--quiet", "--learning-rate", 0.5)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert Path(found["report"]).is_file()
    assert check(json.loads(Path(found["numbers"]).read_text())) > 20
    assert (found["settings"]["max_steps"], found["settings"]["learning_rate"]) == (5, 0.5)


def test_an_interrupted_command_goes_on_with_what_is_missing(capsys, command, monkeypatch):
    whole, ran = pyinv.Inverter.invert, []

    def invert(self, images, **arguments):
        inversion = whole(self, images, **arguments)
        ran.append(arguments["recipe"])
        if len(ran) != 3:
            return inversion
        status = np.full_like(inversion.status, pyinv.Status.CANCELLED)
        return dataclasses.replace(inversion, status=status, cancelled=True)

    monkeypatch.setattr(pyinv.Inverter, "invert", invert)
    code, out, err = run(capsys, *command)
    assert (code, out) == (130, "")
    assert "2 of 13 runs are done; run the same command to resume" in err.splitlines()[-1]

    ran[:] = [None] * 3
    code, _, err = run(capsys, *command)
    assert (code, len(ran) - 3) == (0, 11)
    assert err.count("done before") == 2

    # Other settings are other runs.
    code, _, _ = run(capsys, *command, "--seed", 1)
    assert (code, len(ran) - 3) == (0, 11 + 13)


PROBLEMS = {
    "no encoders": (
        ["lipton", "--generator", "uniform", "--encoder", "nowhere"],
        "lipton has no encoders; leave --encoder and --encoder-iterations out",
    ),
    "another prior": (
        ["lipton", "--generator", "normal"],
        "needs a generator with a uniform prior",
    ),
    "another prior, egan": (
        ["egan", "--generator", "uniform"],
        "needs a generator with a normal prior",
    ),
    "no bce": (
        ["creswell", "--generator", "without bce", "--data", "mnist"],
        "minimises the loss 'bce', but this bundle has only mse, whitened, l1",
    ),
    "neither data nor generator": (["egan"], "neither data nor a generator was given"),
    "no data": (["creswell", "--generator", "uniform"], "no data was given"),
    "one target": (
        ["lipton", "--generator", "uniform", "--targets", "1"],
        "targets must be a whole number >= 2",
    ),
    "no steps": (["lipton", "--generator", "uniform", "--max-steps", "0"], "max_steps must be"),
    "a wrong rate": (
        ["lipton", "--generator", "uniform", "--learning-rate", "-1"],
        "learning_rate must be a finite number > 0",
    ),
    "a wrong seed": (["lipton", "--generator", "uniform", "--seed", "-1"], "seed must be"),
    "no such bundle": (["lipton", "--generator", "nowhere"], "nowhere: no such bundle"),
    "an empty folder": (["lipton", "--generator", "empty"], "expected a bundle or the folder"),
    "no such data": (
        ["creswell", "--generator", "uniform", "--data", "nowhere"],
        "nowhere: no such file or folder",
    ),
    "too many targets": (
        ["creswell", "--generator", "uniform", "--data", "mnist", "--targets", "25"],
        "25 targets were requested, but there are only 24 test images",
    ),
    "no test images": (
        ["creswell", "--generator", "uniform", "--data", "train only"],
        "no test split",
    ),
    "batch statistics": (
        ["lipton", "--generator", "batch"],
        "needs a bundle with batch_norm 'eval', but this one has 'batch'",
    ),
    "a wrong value range": (
        ["lipton", "--generator", "narrow"],
        "expected images in its value range [-0.1, 0.1]",
    ),
    "four channels": (
        ["lipton", "--generator", "four channels"],
        "expected images of 1 or 3 channels",
    ),
    "no such paper": (["goodfellow", "--generator", "uniform"], "there are creswell, lipton, egan"),
    "a batch too small": (
        ["creswell", "--generator", "trained", "--data", "mnist", "--batch-size", "2"],
        "needs a batch size of 3 or more, got 2",
    ),
    "a wrong batch size": (
        ["lipton", "--generator", "uniform", "--batch-size", "x"],
        "batch_size must be",
    ),
    "no such device": (["lipton", "--generator", "uniform", "--device", "tpu"], "device"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_wrong_is_said_in_one_line_before_any_work(
    capsys, problem, bundles, mnist, tmp_path, monkeypatch
):
    def invert(*arguments, **named):
        raise AssertionError("work began")

    monkeypatch.setattr(pyinv.Inverter, "invert", invert)
    (tmp_path / "empty").mkdir()
    write_tiny_bundle(tmp_path / "four.bundle", channels=4)
    train_only = tmp_path / "train only"
    shutil.copytree(mnist, train_only)
    (train_only / "t10k-images-idx3-ubyte").unlink()
    known = {
        **bundles,
        "batch": bundles["trained"] / "generator-batch.bundle",
        "narrow": copy_bundle(tmp_path / "narrow.bundle", value_range=[-0.1, 0.1]),
        "four channels": tmp_path / "four.bundle",
        "mnist": mnist,
        "empty": tmp_path / "empty",
        "train only": train_only,
        "nowhere": tmp_path / "nowhere",
    }
    arguments, message = PROBLEMS[problem]
    code, out, err = run(
        capsys,
        *("reproduce", *(known.get(word, word) for word in arguments)),
        *("-o", tmp_path / "out", "--quiet"),
    )
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_folder_that_is_a_file_is_told_at_once(capsys, command, tmp_path):
    (tmp_path / "out").write_text("in the way")
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "this is a file" in err


@pytest.mark.parametrize("paper", ["lipton", "egan"])
def test_without_matplotlib_no_run_is_made(bundles, tmp_path, monkeypatch, paper):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(pyinv.DependencyError, match=r"pip install .*matplotlib"):
        PAPERS[paper](Request(tmp_path / "out", generators=[bundles["uniform"]]))
    assert not (tmp_path / "out").exists()


def test_runs_that_fly_off_are_reported(bundles, tmp_path):
    report = lipton.reproduce(
        Request(
            tmp_path,
            generators=[bundles["uniform"]],
            targets=4,
            max_steps=3,
            learning_rate=3e38,
            machine={"threads": 1},
        )
    )
    numbers = numbers_of(report)
    check(numbers)
    after_the_last = part(numbers, "table-1")["rows"][5]
    assert after_the_last["label"] == "No clipping"
    assert after_the_last["cells"][0]["value"] == 0
    error = after_the_last["cells"][-1]["value"]
    assert error is None or error > 1e30


# -- training


@pytest.fixture
def trained(bundles, monkeypatch) -> list[dict]:
    """Stand in for the training, tested in training/test_gan.py: record what was asked for."""
    pytest.importorskip("torch")
    calls: list[dict] = []

    def train_gan(configuration, images, folder, **arguments):
        calls.append({"configuration": configuration, "images": images, **arguments})
        prior = configuration.prior.describe()
        origin = {"data": arguments["data_name"]}
        if not folder.exists():
            folder.mkdir(parents=True)
            copy_bundle(folder / "generator.bundle", prior=prior, origin=origin)

    monkeypatch.setattr("pyinv.training.train_gan", train_gan)
    return calls


def test_without_a_generator_the_papers_own_are_trained(trained, mnist, tmp_path):
    report = creswell.reproduce(
        Request(tmp_path, data=[mnist], targets=2, max_steps=1, machine={"threads": 1})
    )
    assert [call["configuration"].name for call in trained] == ["creswell", "creswell"]
    assert [call["configuration"].prior.kind() for call in trained] == ["uniform", "normal"]
    assert trained[0]["images"].shape == (40, 1, 28, 28)
    assert trained[0]["data_name"] == "mnist"
    assert (tmp_path / "generators" / "mnist-uniform" / "generator.bundle").is_dir()
    (row,) = part(numbers_of(report), "table-mnist")["rows"]
    assert None not in row["cells"]


@pytest.mark.parametrize(("paper", "prior"), [("lipton", "uniform"), ("egan", "normal")])
def test_a_paper_trains_its_prior(trained, mnist, tmp_path, paper, prior):
    PAPERS[paper](Request(tmp_path, data=[mnist], targets=2, max_steps=1, machine={"threads": 1}))
    assert [call["configuration"].name for call in trained] == [f"{paper}-32"]
    assert trained[0]["configuration"].prior.kind() == prior


def test_what_training_cannot_mend_is_told_before_it(trained, mnist, tmp_path):
    with pytest.raises(pyinv.InputError, match="25 targets were requested"):
        creswell.reproduce(Request(tmp_path / "out", data=[mnist], targets=25))
    (tmp_path / "again").mkdir()
    shutil.copytree(mnist, tmp_path / "again" / "mnist")
    with pytest.raises(pyinv.InputError, match="two datasets are named mnist"):
        lipton.reproduce(Request(tmp_path / "out", data=[mnist, tmp_path / "again" / "mnist"]))
    assert trained == []


def test_lipton_does_without_test_images(trained, mnist, tmp_path):
    data = tmp_path / "mnist"
    shutil.copytree(mnist, data)
    (data / "t10k-images-idx3-ubyte").unlink()
    said = []
    report = lipton.reproduce(
        Request(
            tmp_path / "out",
            data=[data],
            targets=2,
            max_steps=1,
            seed=7,
            machine={"threads": 1},
            say=said.append,
        )
    )
    assert trained[0]["configuration"].seed == 7
    assert any("no test split" in text for text in said)
    differences = {row["what"]: row["here"] for row in numbers_of(report)["differences"]}
    assert "mean of two generated images" in differences["Table 2"]


def test_an_interrupted_training_says_how_to_go_on(mnist, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")

    def train_gan(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyinv.training.train_gan", train_gan)
    code, _, err = run(capsys, "reproduce", "egan", "--data", mnist, "-o", tmp_path / "out")
    assert code == 130
    assert "0 of 1 generators are trained; run the same command to resume" in err


def test_a_generator_tells_its_training(bundles):
    settings = {"name": "creswell", "batch_size": 128, "learning_rate": 0.002}
    cases = [
        ({}, "its bundle does not say how it was trained"),
        ({"data": "faces"}, "trained on faces"),
        (
            {"data": "mnist", "images": 50_000, "iterations": 500, "configuration": settings},
            "trained on mnist (50,000 images) for 500 iterations of 128 images, Adam at a learning "
            "rate of 0.002 (configuration creswell)",
        ),
    ]
    bundle = Bundle.open(demo.BUNDLE)
    for origin, description in cases:
        manifest = dataclasses.replace(bundle.manifest, origin=origin)
        inverter = pyinv.Inverter(dataclasses.replace(bundle, manifest=manifest), threads=1)
        assert Generator("key", inverter).describe_origin() == description
