"""Luo et al. reproduced at tiny size, on the digits that come with pyinv and on a toy of 32 pixels.

Encoders of a few iterations find little; tested is that the report states what was computed.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import pyinv
from pyinv import demo
from pyinv.cli import main
from pyinv.evaluation import label_similarity
from pyinv.papers import Request, luo
from pyinv.papers.precise import PRECISE
from pyinv.papers.report import check
from support.paths import SHARED
from support.tiny_bundle import write_tiny_bundle

pytest.importorskip("imagehash")
pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")

TARGETS, ITERATIONS = 6, 3
PAPER_TEXT = SHARED / "papers" / "luo_2017.txt"


def request(folder: Path, **changes: object) -> Request:
    settings = {
        "generators": [demo.BUNDLE],
        "targets": TARGETS,
        "encoder_iterations": ITERATIONS,
        "machine": {"threads": 1},
    }
    return Request(folder, **(settings | changes))


def numbers_of(report: Path) -> dict:
    return json.loads(report.with_name("numbers.json").read_text())


def part(numbers: dict, id: str) -> dict:
    """The table, figure or text whose id ends so."""
    (found,) = (entry for entry in numbers["content"] if entry["id"].endswith(id))
    return found


def labels_of(table: dict) -> list[str]:
    return [row["label"] for row in table["rows"]]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The digits in MNIST's format with labels: 40 to search, 24 to look for."""
    folder = tmp_path_factory.mktemp("data") / "mnist"
    folder.mkdir()
    with np.load(demo.DIGITS) as file:
        images = np.uint8(((file["images"][:, 0] + 1) * 127.5).round())
    for name, part in (("train", images[:40]), ("t10k", images[40:])):
        header = struct.pack(">HBBIII", 0, 8, 3, *part.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + part.tobytes())
        header = struct.pack(">HBBI", 0, 8, 1, len(part))
        labels = np.uint8(np.arange(len(part)) % 3)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A bundle of 32 pixels in colour, of random weights, without normal equations."""
    from pyinv.export import export

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(5, 3 * 8 * 8),
        torch.nn.Unflatten(1, (3, 8, 8)),
        torch.nn.Upsample(scale_factor=4),
        torch.nn.Tanh(),
    )
    path = tmp_path_factory.mktemp("toy") / "toy.bundle"
    return export(
        network,
        path,
        latent_shape=5,
        prior=pyinv.Uniform(),
        losses=("mse",),
        normal_equations=False,
    )


@pytest.fixture(scope="module")
def with_data(digits, tmp_path_factory) -> Path:
    """The report on the digits, with data: the demo's generator, whose size BiGAN does not make."""
    return luo.reproduce(request(tmp_path_factory.mktemp("digits"), data=[digits]))


@pytest.fixture(scope="module")
def alone(toy, tmp_path_factory) -> Path:
    """The report on the toy, without data, with a BiGAN."""
    return luo.reproduce(request(tmp_path_factory.mktemp("alone"), generators=[toy], targets=4))


@pytest.fixture(params=["with_data", "alone"])
def report(request) -> Path:
    return request.getfixturevalue(request.param)


# -- both reports


def test_every_number_can_be_computed_again(report):
    assert check(numbers_of(report)) > 40


def test_the_page_states_the_numbers_of_the_json_and_needs_no_other_file(report):
    page = report.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "/tmp/" not in page
    for entry in numbers_of(report)["content"]:
        if entry["kind"] != "table":
            continue
        (body,) = re.findall(rf'<section id="{entry["id"]}".*?<tbody>(.*?)</tbody>', page, re.S)
        shown = re.findall(r'<span class="ours[^"]*" title="[^"]*">([^<]*)', body)
        cells = [
            column["format"].format(cell["value"] * (100 if column["percent"] else 1))
            for row in entry["rows"]
            if not row["text"]
            for column, cell in zip(entry["columns"], row["cells"], strict=True)
            if cell is not None and cell["value"] is not None
        ]
        assert shown == [re.sub(r"e[-+]\d+$", "×10", cell).replace("-", "−") for cell in cells]


def test_every_heading_is_another(report):
    contents = re.search(r"<nav.*?</nav>", report.read_text(), re.S)[0]
    labels = re.findall(r'<span class="label">(.*?)</span>', contents)
    assert {"Figure 3, occluded", "Figure 3, blurred", "Table 1"} <= set(labels)
    assert len(labels) == len(set(labels))


def test_a_small_error_is_not_shown_as_zero(report):
    for entry in numbers_of(report)["content"]:
        for row in entry.get("rows", ()):
            for column, cell in zip(entry["columns"], row["cells"], strict=True):
                if cell is not None and cell["value"] and not column["percent"]:
                    assert float(column["format"].format(cell["value"]).replace(",", "")) != 0


def test_a_report_says_what_differs(report):
    numbers = numbers_of(report)
    differences = {row["what"]: row["here"] for row in numbers["differences"]}
    assert {"Encoders", "BiGAN", "Search", "Labels", "Degraded images", "Images"} <= set(
        differences
    )
    assert f"{ITERATIONS} iterations of 64 images" in differences["Encoders"]
    assert numbers["settings"]["encoder_iterations"] == ITERATIONS
    assert "max_steps" not in numbers["settings"]


def test_all_figures_are_drawn(report):
    titles = [
        entry["title"] for entry in numbers_of(report)["content"] if entry["kind"] == "figure"
    ]
    assert {title[:8] for title in titles} == {"Figure 2", "Figure 3", "Figure 4", "Figure 5"}


def test_the_published_figures_are_those_printed(with_data, alone):
    first = part(numbers_of(alone), "table-1")["rows"]
    published = [row["cells"][0]["published"] for row in first[:3]]
    assert published == [0.8266, 0.7944, 0.6594]
    second = part(numbers_of(with_data), "table-2")["rows"]
    assert [row["cells"][0]["published"] for row in second[:2]] == [0.7918, 0.7483]
    assert all(row["cells"][0]["published"] is None for row in second[2:])
    if not PAPER_TEXT.is_file():
        pytest.skip(f"{PAPER_TEXT} is not here")
    text = PAPER_TEXT.read_text()
    assert "| 0.8266 | 0.7944 | 0.6594 |" in text
    assert "| 0.7918 | 0.7483 |" in text


# -- what each has


def test_pyinvs_rows_are_marked_and_recover_what_encoders_do_not(with_data):
    rows = part(numbers_of(with_data), "table-1")["rows"]
    assert labels_of({"rows": rows}) == [*luo.METHODS.values(), *luo.OURS.values()]
    assert [row["tag"] for row in rows] == [""] * 3 + ["not in the paper"] * 3
    similarity = {row["label"]: row["cells"][0] for row in rows if not row["text"]}
    assert similarity[PRECISE]["value"] == 1
    assert similarity["AEGAN"]["value"] < 1
    assert part(numbers_of(with_data), "result")["paragraphs"][1].startswith("Not in the paper: ")
    costs = part(numbers_of(with_data), "costs")
    assert labels_of(costs) == list(luo.OURS.values())


def test_an_encoders_latent_is_where_reconstruct_begins(with_data):
    runs = numbers_of(with_data)["runs"]
    latents = {
        name: runs[f"digits-16x16-uniform-table-1-{name}"]["arrays"]["forward_equivalents"]
        for name in ("from-encoder", "from-draw")
    }
    assert latents["from-encoder"] != latents["from-draw"]


def test_bigan_is_left_out_where_its_networks_make_no_such_images(with_data):
    numbers = numbers_of(with_data)
    row = part(numbers, "table-1")["rows"][2]
    assert (row["label"], row["text"]) == (
        "BiGAN",
        "not run: the networks of Luo et al. make square images of 32 or 64 pixels, but these "
        "images are 16×16, 1 channel",
    )
    assert "BiGAN's latents" not in labels_of(part(numbers, "table-2"))


def test_without_normal_equations_and_labels_the_report_says_so(alone):
    numbers = numbers_of(alone)
    texts = [row["text"] for row in part(numbers, "table-1")["rows"]]
    assert texts[:3] == [""] * 3
    assert "this bundle has no normal equations" in texts[3]
    (row,) = part(numbers, "table-2")["rows"]
    assert "needs images with labels" in row["text"]
    differences = {row["what"]: row["here"] for row in numbers["differences"]}
    assert "800 generated images" in differences["Search"]


def test_table_2_compares_labels_of_other_images(with_data):
    numbers = numbers_of(with_data)
    for row in part(numbers, "table-2")["rows"]:
        arguments = row["cells"][0]["arguments"]
        arrays = numbers["runs"][arguments["labels"]["run"]]["arrays"]
        base, found = (arrays[arguments[name]["array"]]["values"] for name in ("labels", "found"))
        assert len(base) == TARGETS
        assert set(base) | set(found) <= {0, 1, 2}
        assert row["cells"][0]["value"] == pytest.approx(label_similarity(base, found))


def test_searches_find_a_blurred_image_by_what_a_blur_leaves(with_data):
    """Of 40 digits a blur of half a pixel leaves the hashes of most nearest to their own."""
    table = part(numbers_of(with_data), "figure-3-numbers")
    hits = {row["label"]: row["cells"][4]["value"] for row in table["rows"]}
    assert hits["dHash"] >= 0.5


def test_a_digit_that_is_degraded_keeps_its_shape_and_type():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 20, 20), dtype=np.uint8)
    for kind in luo.DEGRADATIONS:
        changed = luo.degrade(pixels, kind)
        assert (changed.dtype, changed.shape) == (np.uint8, pixels.shape)
        assert (changed != pixels).any()
    hidden = luo.degrade(pixels, "occlusion") != pixels
    assert not hidden[:, :, :6].any()
    with pytest.raises(pyinv.InputError, match="colour, occlusion, blur"):
        luo.degrade(pixels, "noise")


def test_images_that_leave_the_value_range_are_recovered(tmp_path):
    """Clipped, those of a generator without a last activation would have no latent."""
    from pyinv.export import export

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 256), torch.nn.Unflatten(1, (1, 16, 16)))
    options = {"latent_shape": 4, "prior": pyinv.Normal(), "value_range": (-1, 1)}
    with pytest.warns(UserWarning, match="outside value_range"):
        bundle = export(network, tmp_path / "b", **options)
    report = luo.reproduce(request(tmp_path, generators=[bundle], targets=2))
    numbers = numbers_of(report)
    assert check(numbers) > 20
    precise = {row["label"]: row["cells"] for row in part(numbers, "table-1")["rows"]}[PRECISE]
    assert [cell["value"] for cell in precise] == [1, 1, *[pytest.approx(0, abs=1e-5)] * 2]


# -- what is kept, and what is given


def test_a_second_call_trains_nothing(with_data, digits, monkeypatch):
    before = numbers_of(with_data)
    monkeypatch.setattr(
        "pyinv.training.loop._iterate", lambda *arguments: pytest.fail("trained again")
    )
    said: list[str] = []
    luo.reproduce(request(with_data.parent, data=[digits], say=said.append))
    assert sum("done before" in line for line in said) == 3 + 2
    after = numbers_of(with_data)
    assert after["content"] == before["content"]


def test_encoders_are_taken_where_they_are_given(with_data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pyinv.training.encoder.train_encoder", lambda *arguments, **named: pytest.fail("trained")
    )
    given = sorted((with_data.parent / "encoders").iterdir())
    assert len(given) == 2
    report = luo.reproduce(request(tmp_path, encoders=[given[0] / "generator.bundle", given[1]]))
    ours, theirs = (
        numbers_of(one)["runs"]["digits-16x16-uniform-table-1-aegan"]["arrays"]
        for one in (report, with_data)
    )
    assert ours == theirs


def test_an_interrupted_training_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from pyinv.training import encoder

    whole, trained = encoder.train_encoder, []

    def train_encoder(*arguments, **named):
        if trained:
            raise KeyboardInterrupt
        trained.append(arguments)
        return whole(*arguments, **named)

    monkeypatch.setattr(encoder, "train_encoder", train_encoder)
    code = main(
        [
            *("reproduce", "luo", "--generator", str(demo.BUNDLE), "-o", str(tmp_path / "out")),
            *("--targets", "2", "--encoder-iterations", "2", "--threads", "1", "--quiet"),
        ]
    )
    assert code == 130
    assert "1 of 2 encoders are trained; run the same command to resume" in capsys.readouterr().err
    assert (tmp_path / "out/encoders/digits-16x16-uniform-aegan/generator.bundle").is_dir()


# -- bad input


def problem_encoders(with_data: Path, folder: Path) -> dict[str, tuple[list[Path], str]]:
    trained = with_data.parent / "encoders/digits-16x16-uniform-aegan/generator.bundle"
    write_tiny_bundle(folder / "other.bundle")
    unknown = folder / "unknown.bundle"
    shutil.copytree(trained, unknown)
    again = shutil.copytree(trained, folder / "again.bundle")
    manifest = json.loads((unknown / "manifest.json").read_text())
    manifest["origin"] = {}
    (unknown / "manifest.json").write_text(json.dumps(manifest))
    return {
        "no encoder": ([demo.BUNDLE], "has no encoder"),
        "no origin": ([unknown], "trained by one of aegan, direct, bigan, but this one says"),
        "twice": (
            [again, trained],
            f"{again} and {trained}: two encoders of digits 16x16 that the method aegan trained",
        ),
        "nowhere": ([folder / "nowhere"], "nowhere"),
    }


@pytest.mark.parametrize("problem", ["no encoder", "no origin", "twice", "nowhere"])
def test_a_wrong_encoder_is_told_in_one_line_before_any_work(with_data, tmp_path, problem):
    given, message = problem_encoders(with_data, tmp_path)[problem]
    data = [tmp_path / "no such data"]  # which is refused later
    with pytest.raises(pyinv.PyinvError, match=message) as caught:
        luo.reproduce(request(tmp_path / "out", encoders=given, data=data))
    assert "\n" not in str(caught.value)


def test_a_wrong_encoder_is_told_before_a_generator_is_trained(tmp_path):
    data = [tmp_path / "no such data"]
    with pytest.raises(pyinv.BundleError, match="has no encoder"):
        luo.reproduce(request(tmp_path, generators=[], encoders=[demo.BUNDLE], data=data))


def test_an_encoder_of_another_generator_is_refused_before_data_is_read(with_data, toy, tmp_path):
    trained = with_data.parent / "encoders/digits-16x16-uniform-aegan"
    data = [tmp_path / "no such data"]
    with pytest.raises(pyinv.InputError, match="encoder of another generator, with other images"):
        luo.reproduce(request(tmp_path, generators=[toy], encoders=[trained], data=data))


def test_a_missing_library_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(pyinv.DependencyError, match=r"imagehash: pip install .*imagehash"):
        luo.reproduce(request(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_encoder_iterations_are_checked(tmp_path):
    with pytest.raises(pyinv.InputError, match="encoder_iterations must be a whole number >= 1"):
        request(tmp_path, encoder_iterations=0)
