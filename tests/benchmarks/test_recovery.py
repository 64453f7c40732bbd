"""The benchmark of recovery, on a generator small enough for tests."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyinv
from pyinv import recipes
from pyinv.inverter import Inverter
from pyinv.priors import Normal
from pyinv.result import Inversion, Status
from pyinv.training import get_configuration
from pyinv.uncertainty import Uncertainty
from support.manifests import manifest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from recovery import ablation, command, cost, noise, peers, rows  # noqa: E402
from recovery.acceptance import judge  # noqa: E402
from recovery.consistency import clusters_of  # noqa: E402
from recovery.data import find_data  # noqa: E402
from recovery.run_cache import Found, RunCache  # noqa: E402

TARGETS, STEPS, LATENT_SIZE = 8, 12, 6
RESULT_KEYS = {
    "generator",
    "recipe",
    "targets",
    "recovered",
    "seconds_per_image",
    "forward_equivalents",
}


def write_generator(folder: Path) -> None:
    """Write what a finished training leaves: a small generator, as if of MNIST."""
    from pyinv.models import get_model

    configuration = get_configuration("egan-32").replace(latent_size=LATENT_SIZE, width=4)
    torch.manual_seed(5)
    generator = get_model(configuration.model).generator(
        LATENT_SIZE, configuration.image_shape, width=4
    )
    with torch.no_grad():
        for _ in range(20):  # batch norm's statistics
            generator(torch.randn(64, LATENT_SIZE))
    folder.mkdir(parents=True)
    torch.save(generator.state_dict(), folder / "generator.pt")
    content = {
        "configuration": configuration.describe(),
        "data": {"name": "mnist", "images": 64, "sha256": ""},
    }
    (folder / "configuration.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_generator(folder / "generators" / "mnist")
    return folder


@pytest.fixture
def nowhere(tmp_path) -> Path:
    """A folder without data."""
    folder = tmp_path / "nothing"
    folder.mkdir()
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Fewer bundles to export, and peers that are timed for a moment."""
    monkeypatch.setattr(ablation, "EXPONENTS", (0.5,))
    monkeypatch.setattr(ablation, "ADAM_STEPS", (STEPS,))
    monkeypatch.setattr(cost, "TARGETS", {2: TARGETS})
    monkeypatch.setattr(cost, "ROUNDS", 1)
    monkeypatch.setattr(cost, "EVALUATION_SECONDS", 0.0)
    monkeypatch.setattr(noise, "VARIANCES", (1e-2,))


def benchmark(cache: Path, data: Path, *arguments: str) -> int:
    return command.main(
        [
            *("--json", "--generator", "mnist", "--targets", str(TARGETS), "--steps", str(STEPS)),
            *("--threads", "1", "--data", str(data), "--cache", str(cache), *arguments),
        ]
    )


def parsed(text: str) -> dict[str, Any]:
    """The report; NaN and infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in the report")

    report: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return report


def test_whole_report(cache, nowhere, quick, capsys):
    assert benchmark(cache, nowhere, "--generator", "faces") == 0
    out, err = capsys.readouterr()
    report = parsed(out)
    assert report["skipped"] == [
        f"faces: no face_generator/generator.pt in {nowhere}",
    ]
    for name in report["skipped"]:
        assert name in err

    methods = [row["recipe"] for row in report["results"]]
    assert methods == [
        "precise",
        "lipton-none",
        "egan-disabled",
        "egan-logistic-4-2",
        "egan-logistic-2-2",
        "adam",
    ]
    for row in report["results"] + report["ablation"]:
        assert row.keys() >= RESULT_KEYS
        assert row["recovered"].keys() == {"1e-4", "1e-8"}
        assert row["targets"] == TARGETS
    precise, *papers = report["results"]
    assert precise["recovered"]["1e-4"] > max(row["recovered"]["1e-4"] for row in papers)
    assert precise["latency"]["median_seconds"] > 0

    (compared,) = report["cost"]
    assert compared["seconds_per_image"].keys() == {"pyinv", "tangents", "vmap_jvp"}
    # The same algorithm: as many evaluations, to what rounding makes of the stop rules.
    evaluations = compared["mean_normal_equations"]
    assert evaluations["tangents"] == pytest.approx(evaluations["pyinv"], abs=1.5)
    assert evaluations["vmap_jvp"] == pytest.approx(evaluations["pyinv"], abs=1.5)
    assert set(compared["recovered"].values()) == {compared["recovered"]["pyinv"]}

    (noisy,) = report["noise"]
    assert noisy["best_first_order"] in methods[1:]
    assert noisy["coverage"].keys() == {"noise known", "noise unknown"}
    assert 0.5 < noisy["coverage"]["noise known"]["inside"] <= 1
    known = noisy["latent_error"]["reconstruct, noise known"]["mean"]
    best = noisy["latent_error"][noisy["best_first_order"]]["mean"]
    ratio = noisy["over_best_first_order"]["reconstruct, noise known"]
    assert ratio == pytest.approx(known / best)

    changed = {row["recipe"] for row in report["ablation"]}
    assert changed >= {"precise, one attempt", "exponent 0.5", "no penalty", "3 restarts"}

    # No data, so no unseen images: those of the generator's own are mixed.
    assert {row["source"] for row in report["consistency"]} == {
        "each the mean of two generated images"
    }
    assert {row["recipe"] for row in report["consistency"]} == {
        "reconstruct",
        "lipton-none",
        "adam",
    }
    assert sum(one["size"] for one in report["consistency"][0]["largest_clusters"]) <= TARGETS
    assert len(report["acceptance"]) == 2 + 1 + 4


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The numbers of targets that were inverted, a call each."""
    made: list[int] = []
    original = Inverter.invert

    def invert(self: Inverter, images: Any, **options: Any) -> Inversion:
        made.append(len(images))
        return original(self, images, **options)

    monkeypatch.setattr(Inverter, "invert", invert)
    return made


PAPERS = ("--section", "recovery", "--recipe", "adam", "--recipe", "egan-disabled")


def test_interrupted_goes_on(cache, nowhere, tmp_path, monkeypatch, capsys, calls):
    cached = tmp_path / "cache"
    cached.mkdir()
    (cached / "generators").symlink_to(cache / "generators")
    (cached / "bundles").symlink_to(cache / "bundles")
    (cache / "bundles").mkdir(exist_ok=True)
    counted = Inverter.invert

    def stop(self: Inverter, images: Any, **options: Any) -> Inversion:
        if calls:
            raise KeyboardInterrupt
        return counted(self, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Inverter, "invert", stop)
        assert benchmark(cached, nowhere, *PAPERS) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "the same command resumes" in err
    assert calls == [TARGETS]

    assert benchmark(cached, nowhere, *PAPERS) == 0
    assert calls == [TARGETS, TARGETS]  # only what was not done
    report = parsed(capsys.readouterr().out)
    assert report["kept_from_before"] == 1
    assert len(report["results"]) == 2

    assert benchmark(cached, nowhere, *PAPERS) == 0
    again = parsed(capsys.readouterr().out)
    assert again["results"] == report["results"]
    assert len(calls) == 2

    # Other settings are another measurement, and so is a fresh one.
    assert benchmark(cached, nowhere, *PAPERS, "--steps", str(STEPS + 1)) == 0
    assert len(calls) == 4
    assert benchmark(cached, nowhere, *PAPERS, "--fresh") == 0
    assert len(calls) == 6


def test_targets_that_were_done_are_kept(tmp_path, inverter, monkeypatch, calls):
    images = inverter.generate(inverter.sample(5, seed=1))
    recipe = recipes.adam(inverter.manifest).replace(max_steps=4)
    whole = RunCache(tmp_path / "whole", fresh=False, progress=False, say=print).run(
        "whole", inverter, images, recipe
    )
    counted = Inverter.invert

    def cancelled(self: Inverter, images: Any, **options: Any) -> Inversion:
        found = counted(self, images, **options)
        found.status[2:4] = Status.CANCELLED
        found.latents[2:4] = 0
        return dataclasses.replace(found, cancelled=True)

    cache = RunCache(tmp_path / "parts", fresh=False, progress=False, say=print)
    with monkeypatch.context() as patch:
        patch.setattr(Inverter, "invert", cancelled)
        with pytest.raises(KeyboardInterrupt):
            cache.run("run", inverter, images, recipe)
    found = cache.run("run", inverter, images, recipe)
    assert calls == [5, 5, 2]
    np.testing.assert_array_equal(found.latents, whole.latents)
    np.testing.assert_array_equal(found.status, whole.status)


def test_parts_are_the_whole(tmp_path, inverter, calls):
    images = inverter.generate(inverter.sample(5, seed=1))
    recipe = recipes.adam(inverter.manifest).replace(max_steps=4)
    cache = RunCache(tmp_path, fresh=False, progress=False, say=print)
    whole = cache.run("whole", inverter, images, recipe)
    parts = cache.run("parts", inverter, images, recipe, at_a_time=2)
    assert calls == [5, 2, 2, 1]
    np.testing.assert_allclose(parts.latents, whole.latents, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--generator", "cats"), "cats"),
        (("--recipe", "best"), "best"),
        (("--section", "speed"), "speed"),
        (("--targets", "0"), "--targets must be 1 or more, got 0"),
        (("--threads", "-1"), "--threads must be 1 or more, got -1"),
        (("--data", "/no/such/folder"), "--data must be a folder, got /no/such/folder"),
        (("--fresh", "--resume"), "not allowed with"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(list(arguments))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_to_measure(tmp_path, nowhere, capsys):
    assert command.main(["--json", "--data", str(nowhere), "--cache", str(tmp_path / "c")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: no generator to measure")
    assert "PYINV_DATA" in last


def test_data_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("PYINV_DATA", raising=False)
    repository = tmp_path / "work" / "main"
    data = tmp_path / "work" / "shared" / "data"
    (tmp_path / "work" / "another" / "data" / "mnist").mkdir(parents=True)
    for name in ("face_generator", "mnist", "omniglot"):
        (data / name).mkdir(parents=True)
    repository.mkdir()
    assert find_data(None, repository) is None
    (data / "face_generator" / "generator.pt").touch()
    assert find_data(None, repository) == data
    monkeypatch.setenv("PYINV_DATA", str(tmp_path))
    assert find_data(None, repository) == tmp_path
    assert find_data(data, repository) == data


@pytest.fixture(scope="module")
def generator(cache) -> torch.nn.Module:
    from pyinv.models import get_model

    made = get_model("egan").generator(LATENT_SIZE, (1, 32, 32), width=4)
    made.load_state_dict(torch.load(cache / "generators" / "mnist" / "generator.pt"))
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", [peers.Tangents, peers.VmapJvp])
@pytest.mark.parametrize("channels_last", [False, True])
def test_peers_normal_equations(generator, kind, channels_last):
    torch.manual_seed(1)
    latents = torch.randn(3, LATENT_SIZE)
    images = generator(torch.randn(3, LATENT_SIZE))
    peer = kind(generator, LATENT_SIZE, channels_last=channels_last, at_a_time=2)
    weights, targets = map(peer.flatten, peers.whitened(images))
    with torch.no_grad():
        loss, gradient, gram = peer.normal_equations(latents, weights, targets)

    def residual(latent):
        output = generator.layers[:-1](latent[None])
        weight, target = peers.whitened(images[row : row + 1])
        return (weight * (output - target)).flatten()

    for row in range(len(latents)):
        wanted = residual(latents[row])
        jacobian = torch.func.jacrev(residual)(latents[row])
        scale = 2 / len(wanted)
        torch.testing.assert_close(loss[row], wanted.square().mean())
        torch.testing.assert_close(gradient[row], scale * jacobian.T @ wanted)
        torch.testing.assert_close(gram[row], scale * jacobian.T @ jacobian)


def found_of(latents: np.ndarray, recipe: pyinv.Recipe, **changes: Any) -> Found:
    count = len(latents)
    values: dict[str, Any] = {
        "latents": latents,
        "loss": np.zeros(count),
        "status": np.zeros(count, dtype=np.uint8),
        "steps": np.zeros(count, dtype=int),
        "attempts": np.ones(count, dtype=int),
        "normal_equations": np.zeros(count, dtype=int),
        "min_latent_error": None,
        "seconds": 1.0,
        "recipe": recipe,
    }
    return Found(**{**values, **changes})


def test_forward_equivalents():
    first_order = recipes.adam(manifest(Normal()))
    second_order = pyinv.Recipe("lm", (pyinv.Stage(pyinv.LevenbergMarquardt()),))
    both = pyinv.Recipe("both", (*first_order.stages, *second_order.stages))
    steps, attempts, evaluated = np.array([7, 10]), np.array([1, 2]), np.array([3, 4])
    latents = np.zeros((2, 100))
    counts = {"steps": steps, "attempts": attempts, "normal_equations": evaluated}
    for recipe, wanted in (
        (second_order, [2 * 7 + 3 * 101, 2 * 10 + 4 * 101]),
        (both, [2 * 8 + 3 * 101, 2 * 12 + 4 * 101]),
    ):
        found = found_of(latents, recipe, **counts)
        np.testing.assert_array_equal(rows.forward_equivalents(found), wanted)
    counts["normal_equations"] = np.zeros(2, dtype=int)
    found = found_of(latents, first_order, **counts)
    np.testing.assert_array_equal(rows.forward_equivalents(found), [16, 24])


def test_spread_of_failed_runs():
    assert rows.spread(np.array([1.0, 3.0, 8.0])) == {"mean": 4.0, "median": 3.0, "greatest": 8.0}
    assert rows.spread(np.array([1.0, math.nan]))["mean"] is None


def test_coverage():
    truth = np.zeros((2, 3))
    latents = np.array([[0.0, 1.9, 2.1], [0.0, -1.9, 9.0]])
    error = np.ones((2, 3))
    error[1, 2] = math.nan
    known = Uncertainty(
        standard_error=error,
        condition_number=np.ones(2),
        identifiable=np.array([True, False]),
        noise=np.array([0.1, 0.3]),
    )
    assert noise._coverage(latents, known, truth) == {
        "inside": pytest.approx(4 / 5),
        "with_an_interval": pytest.approx(5 / 6),
        "median_noise": pytest.approx(0.2),
        "identifiable": 0.5,
        "median_standard_error": 1.0,
    }


def test_clusters():
    # A chain, which single linkage takes for one cluster, and two by themselves.
    places = np.array([0.0, 5.0, 0.9, 1.8, 7.0])
    latents = np.repeat(places[:, None], 4, axis=1)
    clusters = clusters_of(latents, 1.0)
    assert [rows.tolist() for rows in clusters] == [[0, 2, 3], [1], [4]]
    assert len(clusters_of(latents, 0.5)) == 5


def test_promises():
    row = {
        "generator": "faces",
        "recipe": "precise",
        "recovered": {"1e-4": 0.999, "1e-8": 0.98},
        "cheaper_than_100000_steps": {"a step is 2 forwards": 90.0},
    }
    noisy = {
        "generator": "faces",
        "variance": 0.01,
        "best_first_order": "adam",
        "over_best_first_order": {"reconstruct, noise known": 1.1, "precise": 3.0},
        "coverage": {"noise known": {"inside": 0.95}},
    }
    timed = {"generator": "faces", "lanes": 64, "times_faster": {"median": 1.5}}
    judged = judge({"results": [row], "noise": [noisy], "cost": [timed]})
    assert [(one["figure"], one["met"]) for one in judged] == [
        (0.999, True),
        (0.98, False),
        (90.0, True),
        (1.5, False),
        (1.1, False),
        (0.95, True),
    ]
