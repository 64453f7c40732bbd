"""The installed C++ package: examples/embed is built against it and runs without Python."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyinv
from pyinv import runtimes
from pyinv.bundle import FileRecord
from pyinv.errors import BundleError
from pyinv.priors import Normal
from pyinv.result import Status
from support.backends import absent
from support.paths import REPOSITORY
from support.tiny_bundle import write_tiny_bundle
from support.tolerances import assert_close

DEMO = REPOSITORY / "pyinv" / "data" / "digits.bundle"
CMAKE_DIR = Path(pyinv.cmake_dir())
HAS_TORCHSCRIPT = (CMAKE_DIR / "pyinvTorchTargets.cmake").is_file()

pytestmark = pytest.mark.skipif(
    not shutil.which("cmake") or sys.platform != "linux", reason="needs CMake, on Linux"
)


def environment() -> dict[str, str]:
    """With ONNX Runtime, and with torch wherever pip put it."""
    found = {**os.environ, "PYINV_ONNXRUNTIME": str(runtimes.find_onnxruntime().path)}
    torch = importlib.util.find_spec("torch")
    if HAS_TORCHSCRIPT and torch and torch.origin:
        found["LD_LIBRARY_PATH"] = str(Path(torch.origin).parent / "lib")
    return found


def run(*command: object, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        env={**environment(), **more},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def build(source: Path, folder: Path, *settings: str) -> Path:
    launcher = shutil.which("ccache")
    compilers = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []
    run("cmake", "-S", source, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", *compilers, *settings)
    run("cmake", "--build", folder, "--parallel", "2")
    return folder


@pytest.fixture(scope="session")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built outside of the source tree."""
    folder = tmp_path_factory.mktemp("embed")
    source = shutil.copytree(REPOSITORY / "examples" / "embed", folder / "source")
    return build(source, folder / "build", f"-Dpyinv_DIR={CMAKE_DIR}") / "embed"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[pyinv.Inverter, np.ndarray, Path]:
    """An inverter of the demo's bundle, images of it, and the file that holds them."""
    inverter = pyinv.Inverter(DEMO, threads=1)
    images = inverter.generate(inverter.sample(12, seed=3))
    path = tmp_path_factory.mktemp("images") / "images.f32"
    images.tofile(path)
    return inverter, images, path


def statuses_in(output: str) -> list[str]:
    return [line.split()[1] for line in output.splitlines()]


def test_it_recovers_what_the_inverter_recovers(embed: Path, demo, tmp_path: Path) -> None:
    inverter, images, file = demo
    latents, made = tmp_path / "latents.f32", tmp_path / "images.f32"
    done = run(
        embed, DEMO, file, "--threads", 1, "--seed", 5, "--latents", latents, "--images", made
    )
    expected = inverter.invert(images, seed=5)
    assert statuses_in(done.stdout) == ["converged_tolerance"] * len(images)
    assert [Status(status).name.lower() for status in expected.status] == statuses_in(done.stdout)
    found = np.fromfile(latents, np.float32).reshape(len(images), -1)
    assert_close(found, expected.latents, "latent")
    np.testing.assert_allclose(found, inverter.sample(12, seed=3), atol=2e-3)
    assert_close(np.fromfile(made, np.float32).reshape(images.shape), expected.images, "latent")
    # What is printed is what is written.
    for row, line in enumerate(done.stdout.splitlines()):
        number, status, steps, loss, latent = line.split()
        assert (number, status, steps) == (
            str(row),
            "converged_tolerance",
            f"steps={expected.steps[row]}",
        )
        assert np.float32(loss.removeprefix("loss=")) <= 1e-8
        values = np.array(latent.removeprefix("latent=").split(","), np.float32)
        np.testing.assert_array_equal(values, found[row])


def test_a_stream_answers_each_image_as_it_comes(embed: Path, demo, tmp_path: Path) -> None:
    inverter, images, _ = demo
    expected = inverter.invert(images)
    with subprocess.Popen(
        [embed.with_name("embed-stream"), DEMO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as program:
        assert program.stdin
        assert program.stdout
        lines = []
        # The first image is answered before there is a second.
        for part in (images[:1], images[1:]):
            program.stdin.write(part.tobytes())
            program.stdin.flush()
            lines += [program.stdout.readline().decode() for _ in part]
        rest, errors = program.communicate()
        assert (program.returncode, rest, errors) == (0, b"", b"")
    found = {}
    for line in lines:
        number, loss, latent = line.split()
        assert np.float32(loss.removeprefix("loss=")) <= 1e-8
        found[int(number)] = np.array(latent.removeprefix("latent=").split(","), np.float32)
    latents = np.stack([found[row] for row in range(len(images))])
    assert_close(latents, expected.latents, "latent")


def test_a_recipe_from_a_file(embed: Path, demo, tmp_path: Path) -> None:
    inverter, images, file = demo
    recipe = pyinv.recipes.lipton(inverter.manifest).replace(
        max_steps=60, learning_rate=8.0, loss="l1"
    )
    first = pyinv.recipes.adam(inverter.manifest).replace(max_steps=40, restarts=1)
    recipe = recipe.replace(stages=(*first.stages, *recipe.stages), restarts=1)
    path, latents = tmp_path / "recipe.json", tmp_path / "latents.f32"
    path.write_text(json.dumps(recipe.describe()))
    options = ("--seed", 2, "--lanes", 5, "--recipe", path, "--latents", latents)
    done = run(embed, DEMO, file, "--threads", 1, *options)
    expected = pyinv.Inverter(DEMO, threads=1, batch_size=5).invert(images, recipe=recipe, seed=2)
    assert statuses_in(done.stdout) == [Status(s).name.lower() for s in expected.status]
    assert set(expected.attempts) == {2}
    found = np.fromfile(latents, np.float32).reshape(expected.latents.shape)
    assert_close(found, expected.latents, "latent")


def test_the_default_recipe_of_a_normal_prior(embed: Path, tmp_path: Path) -> None:
    bundle, file, latents = (tmp_path / name for name in ("b.bundle", "images.f32", "latents.f32"))
    write_tiny_bundle(bundle, prior=Normal())
    inverter = pyinv.Inverter(bundle, threads=1)
    images = inverter.generate(inverter.sample(5))
    images.tofile(file)
    run(embed, bundle, file, "--threads", 1, "--latents", latents)
    expected = inverter.invert(images)
    found = np.fromfile(latents, np.float32).reshape(expected.latents.shape)
    assert_close(found, expected.latents, "latent")


@pytest.fixture(scope="session")
def recipe_printer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default_recipe")
    source = Path(__file__).parent / "default_recipe"
    return build(source, folder, f"-Dpyinv_DIR={CMAKE_DIR}") / "default_recipe"


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
@pytest.mark.parametrize("prior", [Normal(), pyinv.Uniform()], ids=repr)
def test_the_default_recipe_has_the_settings_of_python(
    recipe_printer: Path, tmp_path: Path, prior: pyinv.priors.Prior, batch_norm: str
) -> None:
    bundle, file = tmp_path / "b.bundle", tmp_path / "recipe.json"
    write_tiny_bundle(bundle, prior=prior)
    change(bundle / "manifest.json", batch_norm=batch_norm)
    manifest = pyinv.Bundle.open(bundle).manifest
    file.write_text(json.dumps(pyinv.recipes.default(manifest).describe()))
    found = run(recipe_printer, bundle).stdout
    assert f"solver {1 if batch_norm == 'batch' else 3} " in found
    assert found == run(recipe_printer, bundle, file).stdout


def test_a_recipe_that_solves_normal_equations(embed: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from pyinv.export import export
    from support.generators import Mlp, seeded

    bundle, file, latents = (tmp_path / name for name in ("b.bundle", "images.f32", "latents.f32"))
    export(
        seeded(Mlp(latent=8, width=24)),
        bundle,
        latent_shape=(8,),
        prior=Normal(),
        value_range=(0, 1),
    )
    inverter = pyinv.Inverter(bundle, threads=1)
    truth = inverter.sample(5)
    images = inverter.generate(truth)
    images.tofile(file)
    recipe = pyinv.recipes.precise(inverter.manifest)
    first = pyinv.Stage(pyinv.LevenbergMarquardt(), loss="mse", max_steps=2)
    recipe = recipe.replace(stages=(first, *recipe.stages))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.describe()))
    options = ("--threads", 1, "--recipe", tmp_path / "recipe.json", "--latents", latents)
    done = run(embed, bundle, file, *options)
    assert statuses_in(done.stdout) == ["converged_tolerance"] * 5
    found = np.fromfile(latents, np.float32).reshape(truth.shape)
    np.testing.assert_allclose(found, truth, atol=1e-3)
    assert_close(found, inverter.invert(images, recipe=recipe).latents, "latent")


@pytest.mark.parametrize("name", ["vector", "audio", "volume"])
def test_targets_that_are_no_pictures(embed: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("torch")
    from pyinv.export import export
    from support.shaped import LATENT, shaped

    bundle, file, latents = (tmp_path / name for name in ("b.bundle", "images.f32", "latents.f32"))
    runtimes_of = ("onnx", "torchscript") if HAS_TORCHSCRIPT else ("onnx",)
    export(shaped(name), bundle, latent_shape=LATENT, prior=Normal(), runtimes=runtimes_of)
    inverter = pyinv.Inverter(bundle, threads=1)
    truth = inverter.sample(4)
    targets = inverter.generate(truth)
    targets.tofile(file)
    recipe = pyinv.recipes.precise(inverter.manifest)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.describe()))
    options = ("--threads", 1, "--recipe", tmp_path / "recipe.json", "--latents", latents)
    for runtime in runtimes_of:
        made = tmp_path / f"{runtime}.f32"
        done = run(embed, bundle, file, *options, "--runtime", runtime, "--images", made)
        assert statuses_in(done.stdout) == ["converged_tolerance"] * 4
        found = np.fromfile(latents, np.float32).reshape(truth.shape)
        np.testing.assert_allclose(found, truth, atol=2e-3)
        np.testing.assert_allclose(
            np.fromfile(made, np.float32).reshape(targets.shape), targets, atol=1e-4
        )


def test_weights_and_observations(embed: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from pyinv.export import export
    from support.generators import Mlp, seeded

    bundle, file, mask = (tmp_path / name for name in ("b.bundle", "images.f32", "mask.f32"))
    runtimes_of = ("onnx", "torchscript") if HAS_TORCHSCRIPT else ("onnx",)
    export(
        seeded(Mlp(latent=8, width=24)),
        bundle,
        latent_shape=(8,),
        prior=Normal(),
        value_range=(0, 1),
        runtimes=runtimes_of,
        observe=lambda image: 10 * torch.nn.functional.pad(image, (0, 2)) - 3,
        weights=True,
    )
    inverter = pyinv.Inverter(bundle, threads=1)
    truth = inverter.sample(4)
    images = inverter.generate(truth)
    targets = inverter.observe(images)
    assert targets.shape != images.shape
    (tmp_path / "recipe.json").write_text(
        json.dumps(pyinv.recipes.precise(inverter.manifest).describe())
    )
    random = np.random.default_rng(0)
    known = (random.random(targets.shape) < 0.6).astype(np.float32)
    np.where(known > 0, targets, 50).astype(np.float32).tofile(file)
    known.tofile(mask)
    options = ("--threads", 1, "--lanes", 3, "--recipe", tmp_path / "recipe.json")
    for runtime in runtimes_of:
        latents, made = tmp_path / f"{runtime}.f32", tmp_path / f"{runtime}-images.f32"
        outputs = ("--runtime", runtime, "--latents", latents, "--images", made)
        done = run(embed, bundle, file, *options, *outputs, "--weights", mask)
        assert statuses_in(done.stdout) == ["converged_tolerance"] * 4
        found = np.fromfile(latents, np.float32).reshape(truth.shape)
        np.testing.assert_allclose(found, truth, atol=2e-3)
        found = np.fromfile(made, np.float32).reshape(images.shape)
        np.testing.assert_allclose(found, images, atol=1e-3)
    # One row of weights is for all targets; without any, nothing is left out.
    np.where(known[:1] > 0, targets, 50).astype(np.float32).tofile(file)
    known[:1].tofile(mask)
    done = run(embed, bundle, file, *options, "--weights", mask)
    assert statuses_in(done.stdout) == ["converged_tolerance"] * 4
    assert "converged_tolerance" not in statuses_in(run(embed, bundle, file, *options).stdout)
    for weights, message in (
        (known[:3], "expected weights for 1 or 4 targets, found 3"),
        (-known, "a weight is below 0"),
        (0 * known, "should have a positive sum, have 0"),
    ):
        weights.tofile(mask)
        done = run(embed, bundle, file, *options, "--weights", mask, check=False)
        assert done.returncode == 1
        assert message in done.stderr
    done = run(embed, DEMO, file, "--weights", mask, check=False)
    assert done.returncode == 1


def test_it_begins_where_the_encoder_says(embed: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from pyinv.export import add_encoder

    bundle, file, latents = (tmp_path / name for name in ("b.bundle", "images.f32", "latents.f32"))
    write_tiny_bundle(tmp_path / "plain.bundle")
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.Tanh())
    add_encoder(tmp_path / "plain.bundle", encoder, bundle)
    inverter = pyinv.Inverter(bundle, threads=1)
    images = inverter.generate(inverter.sample(5))
    images.tofile(file)
    recipe = pyinv.recipes.lipton(inverter.manifest, "none").replace(max_steps=3)
    expected = inverter.invert(images, recipe=recipe, init="encoder").latents
    options = ("--threads", 1, "--latents", latents, "--recipe", tmp_path / "recipe.json")
    for described, more in (
        (recipe, ("--init", "encoder")),
        (recipe.replace(start="encoder"), ()),
    ):
        (tmp_path / "recipe.json").write_text(json.dumps(described.describe()))
        run(embed, bundle, file, *options, *more)
        found = np.fromfile(latents, np.float32).reshape(expected.shape)
        assert_close(found, expected, "latent")
    message = error_of(embed, tmp_path / "plain.bundle", file, *options, "--init", "encoder")
    assert "this bundle has no encoder" in message
    assert "--init must be encoder" in error_of(embed, bundle, file, "--init", "zero")


def test_labels_and_other_conditions(embed: Path, demo, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from pyinv.export import Condition, Label, export
    from support.generators import LabelledGenerator, seeded

    bundle, file = tmp_path / "b.bundle", tmp_path / "images.f32"
    runtimes_of = ("onnx", "torchscript") if HAS_TORCHSCRIPT else ("onnx",)
    inputs = {"label": Label(5), "scale": Condition(1, 0.5, 2)}
    export(
        seeded(LabelledGenerator()),
        bundle,
        latent_shape=6,
        prior=Normal(),
        inputs=inputs,
        runtimes=runtimes_of,
    )
    inverter = pyinv.Inverter(bundle, threads=1)
    truth = inverter.sample(5)
    given = np.stack([np.arange(5), np.linspace(0.5, 2, 5)], 1).astype(np.float32)
    images = inverter.generate(truth, conditions={"label": np.arange(5), "scale": given[:, 1]})
    images.tofile(file)
    recipe, floats = tmp_path / "recipe.json", tmp_path / "conditions.f32"
    recipe.write_text(json.dumps(pyinv.recipes.precise(inverter.manifest).describe()))
    given.tofile(floats)
    latents, made = tmp_path / "latents.f32", tmp_path / "made.f32"
    for runtime in runtimes_of:
        options = ("--runtime", runtime, "--recipe", recipe, "--latents", latents, "--images", made)
        done = run(embed, bundle, file, "--threads", 1, *options, "--conditions", floats)
        assert statuses_in(done.stdout) == ["converged_tolerance"] * 5
        found = np.fromfile(latents, np.float32).reshape(truth.shape)
        np.testing.assert_allclose(found, truth, atol=1e-3)
        np.testing.assert_allclose(np.fromfile(made, np.float32), images.ravel(), atol=1e-4)

    message = error_of(embed, bundle, file)
    assert "--conditions: expected 10 numbers for label scale, found 0" in message
    assert "expected 0 numbers, found 10" in error_of(embed, DEMO, demo[2], "--conditions", floats)
    for row, column, value, wanted in (
        (
            1,
            0,
            5,
            'condition "label" must be a whole number from 0 to 4, got 5.000000 for target 1',
        ),
        (0, 0, -1, "got -1.000000 for target 0"),
        (2, 0, 1.5, "got 1.500000 for target 2"),
        (4, 0, np.nan, "got nan for target 4"),
        (3, 1, np.inf, 'condition "scale" must be finite, got inf for target 3'),
    ):
        wrong = given.copy()
        wrong[row, column] = value
        wrong.tofile(floats)
        assert wanted in error_of(embed, bundle, file, "--conditions", floats)


def test_no_python_is_in_the_process(embed: Path) -> None:
    libraries = run("ldd", embed).stdout
    assert "not found" not in libraries
    names = [Path(line.split()[0]).name for line in libraries.splitlines()]
    assert any(name.startswith("libpyinv.so") for name in names)
    assert not [name for name in names if "python" in name]


# ---- errors --------------------------------------------------------------------------------------


def error_of(embed: Path, *arguments: object) -> str:
    done = run(embed, *arguments, check=False)
    assert done.returncode in (1, 2)
    message, *rest = done.stderr.splitlines()
    assert message.startswith("embed: ")
    assert not rest or (done.returncode == 2 and rest[0].startswith("usage: "))
    return message


def test_bad_arguments(embed: Path, demo, tmp_path: Path) -> None:
    _, images, file = demo
    assert "a bundle and a file of images are needed" in error_of(embed, DEMO)
    assert "there is no option --lane" in error_of(embed, DEMO, file, "--lane", 3)
    assert "--lanes must be a whole number, got '-3'" in error_of(embed, DEMO, file, "--lanes", -3)
    assert "--device must be cpu, cuda or cuda:N" in error_of(embed, DEMO, file, "--device", "tpu")
    if not pyinv._core.cuda_device_count():
        assert "CUDA" in error_of(embed, DEMO, file, "--device", "cuda")
    assert "cannot be read" in error_of(embed, DEMO, tmp_path / "missing.f32")
    short = tmp_path / "short.f32"
    short.write_bytes(images.tobytes()[:-4])
    assert "expected targets of 256 numbers each, found 3071" in error_of(embed, DEMO, short)
    (2 * images).tofile(short)
    assert "expected values from -1.000000 to 1.000000" in error_of(embed, DEMO, short)
    library = tmp_path / "libonnxruntime.so"
    assert "no such file" in error_of(embed, DEMO, file, "--onnxruntime", library)
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"stages": []}')
    message = error_of(embed, DEMO, file, "--recipe", recipe)
    assert "recipe.stages must hold at least one stage" in message


def change(path: Path, **entries: object) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **entries}))


def drop(path: Path, *names: str) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: manifest[key] for key in manifest if key not in names}))


def with_file(path: Path, name: str) -> None:
    manifest = json.loads(path.read_text())
    change(path, files={**manifest["files"], name: {"bytes": 1, "sha256": 64 * "0"}})


def with_functions(path: Path, *keep: int, **entries: object) -> None:
    manifest = json.loads(path.read_text())
    functions = [manifest["functions"][index] for index in keep]
    change(path, functions=[*functions[:-1], {**functions[-1], **entries}])


SOLVED = {"bytes_per_target": 4096}


def with_normal_equations(path: Path, times: int) -> None:
    manifest = json.loads(path.read_text())
    added = {**manifest["functions"][1], "name": "normal_equations", **SOLVED}
    change(path, functions=manifest["functions"] + times * [added])


def with_two_encoders(path: Path) -> None:
    manifest = json.loads(path.read_text())
    added = {**manifest["functions"][0], "name": "encode"}
    change(path, functions=[*manifest["functions"], added, added])


def with_an_encoder_for_onnx_alone(path: Path) -> None:
    functions = json.loads(path.read_text())["functions"]
    scripted = [{**each, "runtime": "torchscript", "method": "m"} for each in functions]
    change(path, functions=[*functions, {**functions[0], "name": "encode"}, *scripted])


def with_preconditioner(path: Path, values: object, **entries: object) -> None:
    """Give the bundle a preconditioner, recorded as it is."""
    file = path.parent / "preconditioner.f32"
    file.write_bytes(np.asarray(values, "<f4").tobytes())
    files = json.loads(path.read_text())["files"]
    files[file.name] = {"bytes": file.stat().st_size, "sha256": FileRecord.of(file).sha256}
    change(path, preconditioner=file.name, files=files, **entries)


# The error is the same in both languages.
BROKEN_PRECONDITIONERS = {
    "not listed": (lambda m: change(m, preconditioner="no.f32"), "preconditioner"),
    "not a name": (lambda m: change(m, preconditioner=5), "preconditioner"),
    "too small": (
        lambda m: with_preconditioner(m, np.eye(5)),
        "must hold 6 x 6 float32 numbers, for latents of at most 1024 components; it has 100 bytes",
    ),
    "too large": (
        lambda m: with_preconditioner(m, np.eye(7)),
        "must hold 6 x 6 float32 numbers, for latents of at most 1024 components; it has 196 bytes",
    ),
    "of a long latent": (
        lambda m: with_preconditioner(m, np.eye(1025), latent_shape=[1025]),
        "must hold 1025 x 1025 float32 numbers, for latents of at most 1024 components",
    ),
    **{
        name: (
            lambda m, matrix=matrix: with_preconditioner(m, matrix),
            "preconditioner.f32: must hold a symmetric matrix of 6 x 6 finite numbers, positive on "
            "the diagonal; export or copy the bundle again",
        )
        for name, matrix in {
            "not a number": np.diag([1, 1, np.nan, 1, 1, 1]),
            "infinite": np.diag([1, np.inf, 1, 1, 1, 1]),
            "empty": np.zeros((6, 6)),
            "negative": -np.eye(6),
            "not symmetric": np.eye(6) + np.eye(6, k=1),
        }.items()
    },
}


@pytest.mark.parametrize(
    ("break_it", "problem"), BROKEN_PRECONDITIONERS.values(), ids=BROKEN_PRECONDITIONERS
)
def test_broken_preconditioners(
    embed: Path, changed_bundle: Path, tmp_path: Path, break_it, problem: str
) -> None:
    images = tmp_path / "images.f32"
    np.zeros((1, 64), np.float32).tofile(images)
    break_it(changed_bundle / "manifest.json")
    with pytest.raises(BundleError) as error:
        pyinv.Inverter(changed_bundle)
    for message in (error_of(embed, changed_bundle, images), str(error.value)):
        assert problem in message
        assert str(changed_bundle) in message


BROKEN_BUNDLES = {
    "no manifest": (lambda m: m.unlink(), "not a pyinv bundle, it has no manifest.json"),
    "no JSON": (lambda m: m.write_text("{,"), "manifest.json is not valid JSON: line 1, column 2"),
    "foreign": (lambda m: m.write_text("{}"), "manifest.json is not a pyinv bundle's"),
    "newer": (lambda m: change(m, format_version=2), "has format_version 2 and this pyinv reads"),
    "no prior": (lambda m: drop(m, "prior"), 'manifest.json has no "prior"'),
    "prior": (
        lambda m: change(m, prior={"kind": "cauchy"}),
        'manifest.json.prior.kind must be one of uniform, normal, got "cauchy"',
    ),
    "shape": (lambda m: change(m, latent_shape=[0]), "latent_shape[0] must be a whole number >= 1"),
    "condition of another kind": (
        lambda m: change(m, conditions=[{"name": "a", "kind": "labels", "classes": 2}]),
        'conditions[0].kind must be label, one_hot or condition, got "labels"',
    ),
    "condition without classes": (
        lambda m: change(m, conditions=[{"name": "a", "kind": "label"}]),
        'conditions[0] has no "classes"',
    ),
    "condition of no class": (
        lambda m: change(m, conditions=[{"name": "a", "kind": "one_hot", "classes": 0}]),
        "conditions[0].classes must be a whole number from 1 to 16777216, got 0",
    ),
    "too many conditions": (
        lambda m: change(
            m,
            conditions=[{"name": n, "kind": "condition", "shape": [2**30]} for n in "ab"],
        ),
        "conditions must hold at most 2147483647 values",
    ),
    "too large": (
        lambda m: change(m, latent_shape=[2**16, 2**15]),
        "latent_shape must hold at most 2147483647 values",
    ),
    "overflow": (
        lambda m: change(m, image_shape=[2**32, 2**32, 2]),
        "image_shape must hold at most 2147483647 values",
    ),
    "manifest is a folder": (
        lambda m: (m.unlink(), m.mkdir()),
        "manifest.json must be a file",
    ),
    "a folder for a file": (
        lambda m: ((m.parent / "weights.bin").unlink(), (m.parent / "weights.bin").mkdir()),
        "weights.bin: expected a file",
    ),
    "a name too long": (lambda m: with_file(m, "w" * 300), "cannot be read (File name too long)"),
    "links in a circle": (
        lambda m: (m.unlink(), m.symlink_to(m)),
        "manifest.json cannot be read (Too many levels of symbolic links)",
    ),
    "axes": (lambda m: change(m, image_shape=[]), "image_shape must be one size or more"),
    "range": (lambda m: change(m, value_range=[1, 1]), "value_range must be two numbers"),
    "batch norm": (lambda m: change(m, batch_norm="on"), 'batch_norm must be "eval" or "batch"'),
    "no objective": (lambda m: with_functions(m, 0), 'functions must hold one "objective" or more'),
    "no forward": (lambda m: with_functions(m, 1), 'functions must hold one "forward" for onnx'),
    "two forwards": (lambda m: with_functions(m, 0, 0, 1), 'functions must hold one "forward"'),
    "a loss twice": (lambda m: with_functions(m, 0, 1, 1), "each with its own loss"),
    "no loss": (lambda m: with_functions(m, 0, 1, loss=None), "functions[1].loss must not be null"),
    "runtime": (
        lambda m: with_functions(m, 0, 1, runtime="tflite"),
        "functions[1].runtime must be onnx or torchscript",
    ),
    "method": (
        lambda m: with_functions(m, 0, 1, runtime="torchscript"),
        'functions[1] needs a "method"',
    ),
    "normal equations of no loss": (
        lambda m: with_functions(m, 0, 1, 1, name="normal_equations", loss="l1", **SOLVED),
        'normal equations for onnx of the loss "l1", which has no objective',
    ),
    "normal equations twice": (
        lambda m: with_normal_equations(m, 2),
        "functions must hold a loss's normal equations for onnx once",
    ),
    "normal equations' memory": (
        lambda m: with_functions(m, 0, 1, 1, name="normal_equations"),
        'functions[2] has no "bytes_per_target"',
    ),
    "normal equations of a batch": (
        lambda m: (with_normal_equations(m, 1), change(m, batch_norm="batch")),
        'with batch_norm "batch" images depend on one another',
    ),
    "operators": (
        lambda m: with_functions(m, 0, 1, operators=None),
        "functions[1].operators must not be null",
    ),
    "no operators at the inputs": (
        lambda m: with_functions(m, 0, 1, input_operators=[]),
        "functions[1].input_operators must be at least one operator",
    ),
    "an operator without a name": (
        lambda m: with_functions(m, 0, 1, operators=["Gemm", 3]),
        "functions[1].operators[1] must be a text",
    ),
    "encode twice": (
        with_two_encoders,
        'functions must hold "encode" once for each runtime, or for none; onnx has 2',
    ),
    "encode for one runtime": (
        with_an_encoder_for_onnx_alone,
        'functions must hold "encode" once for each runtime, or for none; torchscript has 0',
    ),
    "an observation without observe": (
        lambda m: change(m, observation_shape=[3]),
        'both the function "observe" and an observation_shape, or neither',
    ),
    "unlisted": (
        lambda m: with_functions(m, 0, 1, file="other.onnx"),
        'functions[1].file must be a name in files, got "other.onnx"',
    ),
    "path": (
        lambda m: with_file(m, "../weights.bin"),
        'files must hold plain file names, got "../weights.bin"',
    ),
    "missing file": (
        lambda m: (m.parent / "weights.bin").unlink(),
        "weights.bin: missing from the bundle; export or copy the bundle again",
    ),
    "changed file": (
        lambda m: (m.parent / "weights.bin").write_bytes(bytes(4800)),
        "weights.bin: its SHA-256 is not the manifest's",
    ),
    "truncated file": (
        lambda m: os.truncate(m.parent / "weights.bin", 100),
        "weights.bin: expected 4800 bytes, found 100",
    ),
}


@pytest.mark.parametrize(("break_it", "problem"), BROKEN_BUNDLES.values(), ids=BROKEN_BUNDLES)
def test_broken_bundles(embed: Path, changed_bundle: Path, break_it, problem: str) -> None:
    break_it(changed_bundle / "manifest.json")
    message = error_of(embed, changed_bundle, "images.f32")
    assert problem in message
    assert str(changed_bundle) in message


def test_what_is_missing_in_a_bundle(
    embed: Path, demo, changed_bundle: Path, tmp_path: Path
) -> None:
    _, _, file = demo
    message = error_of(embed, DEMO, file, "--runtime", "tflite")
    assert "has no functions for tflite, only for onnx" in message
    recipe = tmp_path / "recipe.json"
    stage = {"solver": {"kind": "adam", "learning_rate": 0.1}, "loss": "ssim"}
    recipe.write_text(json.dumps({"stages": [stage]}))
    message = error_of(embed, DEMO, file, "--recipe", recipe)
    assert 'has no loss "ssim", only mse, whitened, l1, bce' in message
    assert "no such bundle" in error_of(embed, tmp_path / "missing", file)
    assert "a bundle is a folder" in error_of(embed, file, file)
    assert "cannot be read" in error_of(embed, tmp_path / ("b" * 300), file)


# ---- TorchScript, sanitizers ---------------------------------------------------------------------


def test_torchscript_gives_what_onnx_gives(embed: Path, tmp_path: Path) -> None:
    if not HAS_TORCHSCRIPT:
        absent("this pyinv was built without torch", "PYINV_REQUIRE_TORCHSCRIPT")
    pytest.importorskip("torch")
    from pyinv.export import export
    from support.generators import Mlp, seeded

    bundle, file = tmp_path / "both.bundle", tmp_path / "images.f32"
    export(
        seeded(Mlp()),
        bundle,
        latent_shape=(20,),
        prior=pyinv.Uniform(),
        losses="mse",
        normal_equations=False,
        value_range=(0, 1),
        runtimes=("onnx", "torchscript"),
    )
    inverter = pyinv.Inverter(bundle, threads=1)
    inverter.generate(inverter.sample(6)).tofile(file)
    recipe = pyinv.recipes.adam(inverter.manifest).replace(max_steps=200, loss_tolerance=0)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.describe()))
    found = {}
    for runtime in ("onnx", "torchscript"):
        latents = tmp_path / f"{runtime}.f32"
        options = ("--recipe", tmp_path / "recipe.json", "--latents", latents, "--threads", 1)
        done = run(embed, bundle, file, "--runtime", runtime, *options)
        found_statuses = statuses_in(done.stdout)
        assert len(found_statuses) == 6
        assert set(found_statuses) <= {"step_limit", "step_limit_improving"}
        found[runtime] = np.fromfile(latents, np.float32)
    np.testing.assert_allclose(found["torchscript"], found["onnx"], atol=1e-3)


def test_a_torchscript_file_that_writes_files_is_refused(embed: Path, tmp_path: Path) -> None:
    if not HAS_TORCHSCRIPT:
        absent("this pyinv was built without torch", "PYINV_REQUIRE_TORCHSCRIPT")
    from support.torchscript_files import bundle, functions, write

    target = tmp_path / "written"
    writes = functions(f'x = x + torch.from_file("{target}", True, 2)')
    path = bundle(write(tmp_path / "functions.pt", writes))
    images = tmp_path / "images.f32"
    np.zeros((3, 2), np.float32).tofile(images)
    done = run(embed, path, images, check=False)
    assert done.returncode != 0
    assert "uses aten::from_file, which pyinv does not run from a file" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not target.exists()


@pytest.mark.slow
def test_sanitizers_find_nothing(demo, changed_bundle: Path, tmp_path: Path) -> None:
    """The whole package from source, installed by CMake alone: without pip, Python and torch."""
    _, images, _ = demo
    flags = "-DCMAKE_CXX_FLAGS=-fsanitize=address,undefined -fno-sanitize-recover=all"
    # Sanitizers need no fast code; this halves the time that the compiler takes.
    quick = "-DCMAKE_CXX_FLAGS_RELEASE=-O1"
    package, prefix = REPOSITORY / "build" / "sanitized", tmp_path / "prefix"
    build(REPOSITORY, package, flags, quick, "-DPYINV_CUDA=OFF", "-DPYINV_TORCH=OFF")
    run("cmake", "--install", package, "--prefix", prefix)
    source = REPOSITORY / "examples" / "embed"
    program = build(source, tmp_path / "build", flags, quick, f"-DCMAKE_PREFIX_PATH={prefix}")
    assert "libasan" in run("ldd", program / "embed").stdout
    watched = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    few = tmp_path / "few.f32"
    images[:4].tofile(few)
    made = tmp_path / "made.f32"
    done = run(program / "embed", DEMO, few, "--threads", 2, "--images", made, **watched)
    assert statuses_in(done.stdout) == ["converged_tolerance"] * 4
    assert done.stderr == ""
    # Errors unwind cleanly too.
    graph = changed_bundle / "objective_mse.onnx"
    graph.write_bytes(b"\x08\x0a")  # ONNX's version, and no graph
    manifest = changed_bundle / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    change(manifest, files={**files, graph.name: dataclasses.asdict(FileRecord.of(graph))})
    done = run(program / "embed", changed_bundle, few, check=False, **watched)
    assert done.returncode == 1
    assert done.stderr.startswith(f"embed: {graph}: ONNX Runtime: ")
    assert done.stderr.count("\n") == 1
