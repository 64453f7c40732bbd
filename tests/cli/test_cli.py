"""The command line: what it writes, prints and exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyinv import recipes
from pyinv.bundle import Bundle
from pyinv.cli import main
from pyinv.images import save_images
from pyinv.priors import Normal, Uniform
from pyinv.result import Inversion
from pyinv.session import Session
from pyinv.uncertainty import Uncertainty
from support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def pictures(inverter, tmp_path_factory) -> Path:
    """A folder of three images that the generator made."""
    folder = tmp_path_factory.mktemp("pictures")
    save_images(inverter.generate(inverter.sample(3, seed=3)), folder, (-1, 1))
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed on both streams."""
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_help_names_every_command_and_exit_code(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for word in (
        "info",
        "export",
        "generate",
        "invert",
        "demo",
        "train",
        "push",
        "reproduce",
        "exit codes",
        "130",
    ):
        assert word in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("arguments", ["--version", "--help", "invert --help"])
def test_output_that_nobody_reads_is_no_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pyinv", *arguments.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""  # argparse ignores what it cannot write
    assert done.returncode in (0, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_to_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pyinv", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == "pyinv: error: standard output: No space left on device\n"
    assert done.returncode == 1


def test_closed_outputs_are_no_error():
    command = f"{sys.executable} -m pyinv --version >&- 2>&-; echo $?"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    "command", ["info", "export", "generate", "invert", "demo", "train gan", "push", "reproduce"]
)
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert "--json" in out


def test_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "pyinv", "--version"], capture_output=True)
    assert done.returncode == 0
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["invert", "b"], ["invert", "b", "i", "-o", "x.npz", "--max-steps", "z"]],
)
def test_wrong_usage_exits_with_2(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "pyinv" in err
    assert "Traceback" not in err


def test_info_describes_the_installation(capsys):
    code, out, _ = run(capsys, "info", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"pyinv", "python", "onnxruntime", "cores", "devices"} <= set(found)
    assert "onnxruntime" in run(capsys, "info")[1]


def test_info_describes_a_bundle(capsys, bundle_path):
    code, out, _ = run(capsys, "info", bundle_path)
    assert code == 0
    assert "uniform on [-1, 1]" in out
    assert "mse, l1, bce" in out
    assert f"digest            {Bundle.open(bundle_path).digest}\n" in out
    found = json.loads(run(capsys, "info", bundle_path, "--json")[1])
    assert found["latent_shape"] == [6]
    assert found["losses"] == ["mse", "l1", "bce"]
    assert found["normal_equations"] == []
    assert found["digest"] == Bundle.open(bundle_path).digest


def test_info_tells_where_a_bundle_comes_from(capsys, tmp_path):
    bundle = tmp_path / "a.bundle"
    write_tiny_bundle(bundle)
    described = json.loads((bundle / "manifest.json").read_text())
    prior = {"kind": "uniform", "low": -1.0}
    settings = {"name": "luo-32", "drops": [20, 27], "prior": prior, "layers": [], "tied": True}
    described["origin"] = {"configuration": settings, "data": "my_digits"}
    (bundle / "manifest.json").write_text(json.dumps(described))
    code, out, _ = run(capsys, "info", bundle)
    assert code == 0
    configuration = (
        "name=luo-32, drops=[20, 27], prior=(kind=uniform, low=-1.0), layers=none, tied=yes"
    )
    unwrapped = out.replace("\n" + " " * 22, " ")
    assert f"origin configuration  {configuration}\norigin data           my_digits\n" in unwrapped
    assert json.loads(run(capsys, "info", bundle, "--json")[1])["origin"] == described["origin"]


def test_invert_writes_an_inversion(capsys, bundle_path, pictures, tmp_path):
    out_path = tmp_path / "out.npz"
    code, out, err = run(
        capsys,
        *("invert", bundle_path, pictures, "-o", out_path, "--seed", 4),
        *("--recipe", "adam", "--max-steps", 20),
    )
    assert (code, out) == (0, "")
    assert "3 used all steps (still improving)" in err
    assert "3 of 3 targets were still improving: try more max_steps than 20" in err
    inversion = Inversion.load(out_path)
    assert inversion.latents.shape == (3, 6)
    assert inversion.seed == 4
    with np.load(out_path) as file:
        assert file["sources"].tolist() == [str(pictures / f"{row}.png") for row in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]  # no drafts left


def test_invert_prints_json_on_standard_output_alone(capsys, bundle_path, pictures, tmp_path):
    code, out, err = run(
        capsys,
        *("invert", bundle_path, pictures, "-o", tmp_path / "a.npz"),
        *("--recipe", "adam", "--max-steps", 5, "--json", "--quiet"),
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["counts"]["step_limit_improving"] == 3
    assert "still improving" in found["hint"]
    psnr = [target["psnr"] for target in found["targets"]]
    assert found["psnr"] == pytest.approx(np.median(psnr))
    losses = np.array([target["loss"] for target in found["targets"]])
    np.testing.assert_allclose(psnr, 10 * np.log10(4 / losses), rtol=1e-5)
    assert "warnings" not in found
    assert [target["steps"] for target in found["targets"]] == [5, 5, 5]
    assert found["targets"][0]["source"] == str(pictures / "0.png")


def test_effort_reaches_the_default_recipe(capsys, bundle_path, pictures, tmp_path):
    arguments = ("invert", bundle_path, pictures, "-o", tmp_path / "a.npz", "--json")
    _, out, _ = run(capsys, *arguments, "--effort", "fast")
    fast = recipes.default(Bundle.open(bundle_path).manifest, effort="fast")
    assert json.loads(out)["recipe"] == fast.fit(Uniform()).describe()


def test_invert_options_reach_the_recipe(capsys, bundle_path, pictures, tmp_path):
    _, out, _ = run(
        capsys,
        *(
            "invert",
            bundle_path,
            pictures,
            "-o",
            tmp_path / "a.npz",
            "--json",
            "--recipe",
            "lipton",
        ),
        *("--max-steps", 7, "--restarts", 2, "--learning-rate", 0.5, "--constraint", "clip:low=-1"),
        *("--loss", "l1", "--loss-tolerance", 1e-9, "--batch-size", 2, "--threads", 1),
    )
    recipe = json.loads(out)["recipe"]
    (stage,) = recipe["stages"]
    assert (recipe["name"], recipe["restarts"]) == ("lipton", 2)
    assert (stage["max_steps"], stage["loss"], stage["loss_tolerance"]) == (7, "l1", 1e-9)
    assert stage["solver"]["learning_rate"] == 0.5
    assert stage["constraint"] == {"kind": "clip", "low": -1.0, "high": 1.0}


def test_invert_saves_the_reconstructions(capsys, bundle_path, pictures, tmp_path):
    code, _, _ = run(
        capsys,
        *("invert", bundle_path, pictures, "-o", tmp_path / "a.npz"),
        *("--max-steps", 5, "--save-images", tmp_path / "seen"),
    )
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [
        "0-0.png",
        "1-1.png",
        "2-2.png",
    ]


def test_invert_can_go_on_from_an_earlier_result(capsys, bundle_path, pictures, tmp_path):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    command = ["invert", bundle_path, pictures, "--recipe", "adam", "--constraint", "none"]
    command += ["--learning-rate", 0.02]
    run(capsys, *command, "-o", first, "--max-steps", 200)
    run(capsys, *command, "-o", second, "--max-steps", 200, "--init", first, "--trace-every", 50)
    before, after = Inversion.load(first), Inversion.load(second)
    np.testing.assert_allclose(after.trace[:, 0], before.loss, rtol=1e-3)
    assert (after.loss <= before.loss).all()


def test_invert_says_when_a_loss_was_not_finite(capsys, bundle_path, pictures, tmp_path):
    code, out, _ = run(
        capsys,
        *("invert", bundle_path, pictures, "-o", tmp_path / "a.npz", "--json", "--max-steps", 5),
        *("--recipe", "adam", "--learning-rate", 3e38, "--constraint", "none"),
    )
    assert code == 3
    assert json.loads(out)["counts"]["non_finite"] == 3
    assert (tmp_path / "a.npz").is_file()


@pytest.fixture(scope="module")
def second_order_path(tmp_path_factory) -> Path:
    """The bundle of the pictures' generator, with normal equations."""
    path = tmp_path_factory.mktemp("second order") / "b"
    losses = ("mse", "whitened")
    write_tiny_bundle(path, losses=losses, normal_equations=losses)
    return path


def test_invert_tells_the_uncertainty(capsys, second_order_path, pictures, tmp_path):
    code, out, err = run(
        capsys,
        *("invert", second_order_path, pictures, "-o", tmp_path / "a.npz", "--json"),
        *("--recipe", "reconstruct", "--uncertainty", "--noise", 0.01),
    )
    assert code == 0
    inversion = Inversion.load(tmp_path / "a.npz")
    known = Uncertainty.load(tmp_path / "a.npz")
    np.testing.assert_allclose(known.noise, 0.01)
    count, median = int(known.identifiable.sum()), np.median(known.standard_error)
    assert f"{count} identifiable; medians: standard error {median:.3g}" in err
    for row, target in enumerate(json.loads(out)["targets"]):
        assert target["identifiable"] == known.identifiable[row]
        assert target["normal_equations"] == inversion.normal_equations[row] > 0
        np.testing.assert_allclose(target["condition_number"], known.condition_number[row])
        np.testing.assert_allclose(
            target["median_standard_error"], np.median(known.standard_error[row])
        )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, "ended early"), (MemoryError("it broke"), 1, "it broke")],
    ids=["Ctrl-C", "failure"],
)
def test_an_end_within_the_uncertainty_loses_no_latents(
    capsys, second_order_path, pictures, tmp_path, monkeypatch, error, code, message
):
    def evaluate(*arguments):
        raise error

    monkeypatch.setattr(Session, "evaluate", evaluate)
    ended, out, err = run(
        capsys,
        *("invert", second_order_path, pictures, "-o", tmp_path / "a.npz", "--json"),
        *("--max-steps", 5, "--uncertainty"),
    )
    assert ended == code
    assert message in err
    assert np.isfinite(Inversion.load(tmp_path / "a.npz").loss).all()
    assert np.isnan(Uncertainty.load(tmp_path / "a.npz").noise).all()
    assert json.loads(out)["cancelled"] == (code == 130)


def test_noise_reaches_reconstruct(capsys, pictures, tmp_path):
    write_tiny_bundle(tmp_path / "b", prior=Normal(), normal_equations=("mse",))
    _, out, _ = run(
        capsys,
        *("invert", tmp_path / "b", pictures, "-o", tmp_path / "a.npz", "--json"),
        *("--recipe", "reconstruct", "--noise", 0.25),
    )
    manifest = Bundle.open(tmp_path / "b").manifest
    expected = recipes.reconstruct(manifest, noise=0.25).fit(manifest.prior)
    assert json.loads(out)["recipe"] == expected.describe()


def test_invert_without_uncertainty_does_not_mention_it(capsys, bundle_path, pictures, tmp_path):
    _, out, err = run(
        capsys,
        *("invert", bundle_path, pictures, "-o", tmp_path / "a.npz", "--max-steps", 5, "--json"),
    )
    assert "identifiable" not in out + err
    with np.load(tmp_path / "a.npz") as written:
        assert "standard_error" not in written


@pytest.mark.parametrize("name", ["precise", "reconstruct"])
def test_second_order_recipes_run_by_name(capsys, second_order_path, pictures, tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, out, err = run(
            capsys,
            *("invert", second_order_path, pictures, "-o", tmp_path / "a.npz"),
            *("--recipe", name, "--max-steps", 30, "--restarts", 1, "--json"),
        )
    assert code == 0
    # These pictures are files of 8 bits.
    warned = "pyinv: warning: the images have 8-bit values"
    assert (warned in err) == (name == "precise") == ("warnings" in json.loads(out))
    hint = "the recipe precise did not reproduce 3 of 3 images exactly"
    assert (hint in err) == (name == "precise") == (hint in json.loads(out)["hint"])
    recipe = json.loads(out)["recipe"]
    assert (recipe["name"], recipe["restarts"]) == (name, 1)
    assert {stage["max_steps"] for stage in recipe["stages"]} == {30}
    assert {stage["solver"]["kind"] for stage in recipe["stages"]} == {"levenberg_marquardt"}


def test_invert_takes_a_condition(capsys, tmp_path, generator):
    write_tiny_bundle(tmp_path / "b", condition_size=2)
    np.save(tmp_path / "images.npy", np.zeros((3, 1, 8, 8), dtype=np.float32))
    np.save(tmp_path / "condition.npy", np.ones((3, 2)))
    code, _, _ = run(
        capsys,
        *("invert", tmp_path / "b", tmp_path / "images.npy", "-o", tmp_path / "a.npz"),
        *("--max-steps", 5, "--condition", tmp_path / "condition.npy"),
    )
    assert code == 0


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_interrupted_invert_writes_what_was_found(bundle_path, pictures, tmp_path):
    out_path = tmp_path / "a.npz"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pyinv", "invert", bundle_path, pictures, "-o", out_path),
            *("--recipe", "adam", "--max-steps", "100000000", "--json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert "inverting 3 images" in process.stderr.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert json.loads(out)["cancelled"]
    assert "Traceback" not in err
    assert Inversion.load(out_path).cancelled


def test_generate_writes_what_the_suffix_says(capsys, bundle_path, tmp_path, inverter):
    expected = inverter.generate(inverter.sample(4, seed=2))
    command = ["generate", bundle_path, "-n", 4, "--seed", 2, "-o"]
    for name in ("a.npz", "a.npy", "a.png", "folder"):
        code, out, _ = run(capsys, *command, tmp_path / name)
        assert (code, out) == (0, "")
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["latents"], inverter.sample(4, seed=2))
        np.testing.assert_allclose(file["images"], expected, atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, atol=1e-6)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (272, 272)  # 8x8 images, 16 times as large
    assert len(list((tmp_path / "folder").iterdir())) == 4


def test_targets_that_are_no_pictures(capsys, tmp_path):
    bundle = tmp_path / "b.bundle"
    generator = write_tiny_bundle(
        bundle,
        image_shape=(2, 20),
        prior=Normal(),
        normal_equations=("mse", "whitened"),
        losses=("mse", "whitened"),
    )
    code, out, _ = run(capsys, "info", bundle)
    assert code == 0
    assert "[2, 20], values in [-1, 1], not a picture" in out
    assert json.loads(run(capsys, "info", bundle, "--json")[1])["image_shape"] == [2, 20]

    code, out, _ = run(capsys, "generate", bundle, "-n", 3, "-o", tmp_path / "a.npz", "--json")
    assert code == 0
    assert json.loads(out)["image_shape"] == [2, 20]
    with np.load(tmp_path / "a.npz") as file:
        truth, targets = file["latents"], file["images"]
    np.testing.assert_allclose(targets, generator(truth), atol=1e-5)
    np.save(tmp_path / "targets.npy", targets)
    command = ["invert", bundle, tmp_path / "targets.npy", "-o", tmp_path / "out.npz"]
    code, _, err = run(capsys, *command, "--recipe", "precise", "--uncertainty")
    assert code == 0
    assert "3 converged" in err
    np.testing.assert_allclose(Inversion.load(tmp_path / "out.npz").latents, truth, atol=1e-3)
    assert Uncertainty.load(tmp_path / "out.npz").identifiable.all()


def test_invert_takes_wav_files(capsys, tmp_path):
    bundle, folder = tmp_path / "b.bundle", tmp_path / "sounds"
    generator = write_tiny_bundle(
        bundle, image_shape=(1, 40), prior=Normal(), normal_equations=("mse",)
    )
    folder.mkdir()
    truth = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    for row, samples in enumerate(generator(truth)):
        with wave.open(str(folder / f"{row}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    command = ["invert", bundle, folder, "-o", tmp_path / "out.npz", "--recipe", "reconstruct"]
    assert run(capsys, *command, "--noise", 0.001)[0] == 0
    found = Inversion.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found.latents, truth, atol=0.02)


def test_generate_takes_latents_from_an_inversion(capsys, bundle_path, tmp_path, inverter):
    latents = inverter.sample(3, seed=5)
    np.savez(tmp_path / "in.npz", latents=latents, loss=np.zeros(3))
    code, out, _ = run(
        capsys,
        *("generate", bundle_path, "--latents", tmp_path / "in.npz", "-o", tmp_path / "a.npy"),
        "--json",
    )
    assert code == 0
    assert json.loads(out)["images"] == 3
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), inverter.generate(latents), atol=1e-6)


def test_existing_output_is_replaced_only_on_success(capsys, bundle_path, pictures, tmp_path):
    out_path = tmp_path / "a.npz"
    out_path.write_text("precious")
    options = ("-o", out_path, "--overwrite", "--max-steps", 2)
    run(capsys, "invert", bundle_path, tmp_path / "nowhere.png", *options)
    assert out_path.read_text() == "precious"
    run(capsys, "invert", bundle_path, pictures, *options)
    assert len(Inversion.load(out_path)) == 3


FACTORY = """
import torch

def make():
    return torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Unflatten(1, (1, 4, 4))
    )
"""


def test_export_makes_a_bundle_that_inverts(capsys, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("pyinv.export")
    (tmp_path / "factory.py").write_text(FACTORY)
    bundle = tmp_path / "exported.bundle"
    code, out, err = run(
        capsys,
        *("export", f"{tmp_path / 'factory.py'}:make", "-o", bundle, "--latent-shape", "4"),
        *("--prior", "normal", "--loss", "mse", "--loss", "l1", "--value-range", "-1", "1"),
        *("--normal-equations", "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["prior"]["kind"] == "normal"
    assert Bundle.open(bundle).manifest.has_normal_equations("mse")
    code, out, err = run(capsys, "info", bundle)
    assert code == 0, err
    assert "normal equations  mse\n" in out
    np.save(tmp_path / "images.npy", np.zeros((2, 1, 4, 4), dtype=np.float32))
    code, _, err = run(
        capsys,
        *("invert", bundle, tmp_path / "images.npy", "-o", tmp_path / "a.npz"),
        *("--max-steps", 5, "--loss", "l1"),
    )
    assert code == 0, err
