"""The TorchScript runtime: what ONNX Runtime gives, and what is said of files that are no good."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from pyinv import _core, runtimes
from pyinv.bundle import Bundle, FileRecord, Function, Manifest
from pyinv.cli import main
from pyinv.constraints import (
    Clip,
    HardCutoff,
    LogisticCutoff,
    NoConstraint,
    StochasticClip,
    TruncatedNormalCutoff,
)
from pyinv.errors import BundleError, DependencyError, DeviceError, InputError
from pyinv.inverter import Inverter
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import Adam
from support.objectives import METHOD, Flat, Perceptron
from support.tolerances import assert_close

try:
    runtimes.load_torchscript()
except DependencyError as error:
    if os.environ.get("PYINV_REQUIRE_TORCHSCRIPT") == "1":
        raise
    pytest.skip(str(error), allow_module_level=True)

import torch
from torch import nn

from pyinv import _torch
from pyinv.export import export
from support.torchscript_files import SIZES, write

LATENT, PIXELS = 6, 3 * 8 * 8


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One generator as a bundle for both runtimes, under a uniform and under a normal prior."""
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.Linear(LATENT, 32),
        nn.LeakyReLU(0.2),
        nn.Unflatten(1, (2, 4, 4)),
        nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1),
        nn.Tanh(),
    )
    folder = tmp_path_factory.mktemp("torchscript")
    paths = {}
    for prior in (Uniform(), Normal()):
        paths[prior.kind()] = folder / prior.kind()
        export(
            generator,
            paths[prior.kind()],
            latent_shape=LATENT,
            prior=prior,
            losses=("mse", "l1"),
            normal_equations=False,
            runtimes=("onnx", "torchscript"),
        )
    return paths


@pytest.fixture(scope="module")
def uniform(bundles: dict[str, Path]) -> dict[str, Inverter]:
    return inverters(bundles["uniform"])


def inverters(path: Path) -> dict[str, Inverter]:
    bundle = Bundle.open(path)
    return {name: Inverter(bundle, runtime=name, threads=1) for name in ("onnx", "torchscript")}


# ---- the same as ONNX Runtime --------------------------------------------------------------------

CONSTRAINED_PRIORS = [
    (NoConstraint(), Uniform()),
    (NoConstraint(), Normal()),
    (Clip(), Uniform()),
    (Clip(-1.0, 1.2), Normal()),
    (StochasticClip(), Uniform()),
    (HardCutoff(1.2), Normal()),
    (LogisticCutoff(3.0, 1.0), Normal()),
    (TruncatedNormalCutoff(1.5), Normal()),
]


@pytest.mark.parametrize(("constraint", "prior"), CONSTRAINED_PRIORS, ids=str)
def test_all_find_the_same(backend, bundles, constraint, prior):
    # Latents outside the priors, so that every constraint has work to do.
    latents = np.random.default_rng(1).uniform(-2.5, 2.5, (12, LATENT)).astype(np.float32)
    recipe = Recipe("both", Stage(Adam(0.05), constraint, max_steps=200), keep="last")
    path = bundles[prior.kind()]
    onnx = Inverter(path, threads=1)
    other = Inverter(path, runtime=backend.runtime, device=backend.device, threads=1)
    images = onnx.generate(latents)
    np.testing.assert_allclose(other.generate(latents), images, atol=1e-5)
    first, second = (each.invert(images, recipe=recipe, seed=5) for each in (onnx, other))
    np.testing.assert_array_equal(second.status, first.status)
    np.testing.assert_array_equal(second.steps, 200)
    assert_close(second.latents, first.latents, "latent, other runtime")
    assert_close(second.loss, first.loss, "loss, other runtime")


def test_all_end_in_the_same_way(backend, bundles):
    """Targets that converge soon, late, in a second attempt, or not at all."""
    path = bundles["uniform"]
    onnx = Inverter(path, threads=1)
    other = Inverter(path, runtime=backend.runtime, device=backend.device, threads=1, batch_size=5)
    stage = Stage(Adam(0.05), Clip(), max_steps=60, loss_tolerance=2e-4)
    recipe = Recipe("ends", stage, restarts=1)
    latents = np.random.default_rng(2).uniform(-1.3, 1.3, (24, LATENT)).astype(np.float32)
    images = onnx.generate(latents)
    first, second = (each.invert(images, recipe=recipe, seed=6) for each in (onnx, other))
    np.testing.assert_array_equal(second.status, first.status)
    np.testing.assert_array_equal(second.attempts, first.attempts)
    assert len(set(first.status)) > 1
    assert len(set(first.attempts)) > 1
    assert_close(second.latents, first.latents, "latent, other runtime")


@pytest.mark.parametrize(
    ("constraint", "prior"),
    [
        (StochasticClip(-0.5, 0.5), Uniform()),
        (HardCutoff(0.5), Normal()),
        (LogisticCutoff(4.0, 0.5, horizon=5), Normal()),
        (TruncatedNormalCutoff(0.8), Normal()),
    ],
    ids=str,
)
def test_both_runtimes_draw_the_same(tmp_path, constraint, prior):
    # Without a gradient, a latent is made of draws alone.
    stage = Stage(Adam(1.0), constraint, max_steps=20)
    first, second = (
        run(Flat(13).load(tmp_path / name, runtime=name), stage, prior, np.zeros((9, 1)))
        for name in ("onnx", "torchscript")
    )
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first)) > 20


def run(objective, stage, prior, images, lanes=4):
    recipe = Recipe("test", stage, restarts=1).fit(prior).describe()
    recipe["stages"][0]["objective"] = 0
    return _core.invert(
        objectives=[objective],
        recipe=json.dumps(recipe),
        prior=json.dumps(prior.describe()),
        images=images.astype(np.float32),
        target_ids=np.arange(len(images), dtype=np.uint64),
        seed=6,
        lanes=lanes,
    )["latents"]


@pytest.mark.parametrize("count", [1, 2, 7, 70])
@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_functions_give_the_same(uniform, loss, count):
    latents = uniform["onnx"].sample(count, seed=2)
    images = uniform["onnx"].generate(uniform["onnx"].sample(count, seed=3))
    np.testing.assert_allclose(
        uniform["torchscript"].generate(latents), uniform["onnx"].generate(latents), atol=1e-6
    )
    first, second = (i.evaluate(latents, images, loss=loss) for i in uniform.values())
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def test_conditions_reach_a_method(tmp_path):
    toy = Perceptron(5, condition_size=3)
    path = toy.save(tmp_path / "toy.pt", runtime="torchscript")
    objective = _torch.TorchObjective(path, METHOD, threads=1)
    assert (objective.latent_size, objective.image_size, objective.condition_size) == (5, 24, 3)
    assert objective.device.kind == "cpu"
    random = np.random.default_rng(0)
    inputs = {"latent": (4, 5), "image": (4, *toy.image_shape), "condition": (4, 3)}
    arrays = {k: random.standard_normal(s).astype(np.float32) for k, s in inputs.items()}
    found = _torch.TorchFunction(path, METHOD, threads=1).run(arrays)
    loss, gradient = toy(arrays["latent"], arrays["image"].reshape(4, -1), arrays["condition"])
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found["gradient"], gradient, atol=1e-6)


def test_the_command_line_takes_the_runtime(bundles, tmp_path, capsys):
    images = []
    for runtime in ("onnx", "torchscript"):
        output = tmp_path / f"{runtime}.npz"
        options = ["-o", str(output), "-n", "3", "--runtime", runtime, "--tf32"]
        assert main(["generate", str(bundles["uniform"]), *options]) == 0
        with np.load(output) as written:
            images.append(written["images"])
    np.testing.assert_allclose(images[1], images[0], atol=1e-6)
    capsys.readouterr()
    assert main(["info", str(bundles["uniform"])]) == 0
    assert "onnx, torchscript" in capsys.readouterr().out


# ---- choosing ------------------------------------------------------------------------------------


def test_auto_takes_the_bundles_first(bundles, uniform, tmp_path):
    assert Inverter(bundles["uniform"]).runtime == "onnx"
    other = shutil.copytree(bundles["uniform"], tmp_path / "other")
    described = json.loads((other / "manifest.json").read_text())
    described["functions"].reverse()
    (other / "manifest.json").write_text(json.dumps(described))
    assert Inverter(other).runtime == "torchscript"
    assert uniform["torchscript"].runtime == "torchscript"
    assert "torchscript on cpu" in repr(uniform["torchscript"])


def test_a_runtime_that_the_bundle_lacks(bundle_path):
    with pytest.raises(BundleError, match="export it again"):
        Inverter(bundle_path, runtime="torchscript")
    with pytest.raises(InputError, match="runtime must be"):
        Inverter(bundle_path, runtime="tensorrt")


# ---- files of all kinds --------------------------------------------------------------------------

ARGUMENTS = "latent: Tensor, image: Tensor, out: Optional[Tuple[Tensor, Tensor]] = None"
GOOD = """
def objective(self, ARGUMENTS) -> Tuple[Tensor, Tensor]:
    difference = latent - image.reshape([-1, 2])
    EXTRA
    if out is not None:
        torch.sum(difference * difference, [1], out=out[0])
        torch.mul(difference, 2.0, out=out[1])
        return out
    return (difference * difference).sum([1]), difference * 2.0
""".replace("ARGUMENTS", ARGUMENTS)
WITH_GRAM = """
def objective(self, ARGUMENTS) -> Tuple[Tensor, Tensor, Tensor]:
    difference = latent - image.reshape([-1, 2])
    gram = latent.reshape([-1, 2, 1]) * latent.reshape([-1, 1, 2])
    loss = (difference * difference).sum([1])
    if out is not None:
        out[0].copy_(loss)
        out[1].copy_(difference * 2.0)
        torch.mul(gram, 1.0, out=out[2])
        return out
    return loss, difference * 2.0, gram
""".replace("ARGUMENTS", ARGUMENTS.replace("Tensor]]", "Tensor, Tensor]]"))
NO_OUT = """
def objective(self, latent: Tensor, image: Tensor) -> Tuple[Tensor, Tensor]:
    return latent.sum([1]), latent
"""
FORWARD = """
def forward(self, latent: Tensor) -> Tensor:
    return latent.reshape([-1, 1, 1, 2])
"""


def good(extra: str = "pass") -> str:
    return GOOD.replace("EXTRA", extra)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


REFUSED = {
    "no such method": (good().replace("def objective", "def other"), SIZES, "has no method"),
    "no out": (
        NO_OUT,
        SIZES,
        "should take (latent: Tensor, image: Tensor, out: Optional[Tuple[Tensor, Tensor]])",
    ),
    "another order": (
        good().replace("latent: Tensor, image: Tensor", "image: Tensor, latent: Tensor"),
        SIZES,
        "takes (image: Tensor, latent: Tensor, out",
    ),
    "no sizes": (good(), {"latent_size": 2}, "does not say its image_shape"),
    "sizes of another type": (good(), {**SIZES, "latent_size": "2"}, "should be whole numbers"),
    "sizes of another range": (good(), {**SIZES, "latent_size": 0}, "should be at least 1"),
    "a condition that it does not take": (
        good(),
        {**SIZES, "condition_size": 3},
        "condition: Tensor",
    ),
    "results elsewhere": (
        good().replace("return out", "return difference.sum([1]), difference"),
        SIZES,
        "does not return the tensors of 'out'",
    ),
    "a gradient of another width": (
        good().replace("torch.mul(difference,", "torch.mul(difference[:, :1],"),
        SIZES,
        "gradient should be [2, 2] for a batch of 2, is [2, 1]",
    ),
    "a gram of another width": (
        WITH_GRAM.replace("torch.mul(gram,", "torch.mul(gram[:, :, :1],"),
        SIZES,
        "gram should be [1, 2, 2] for a batch of 1, is [1, 2, 1]",
    ),
    "other sizes than it says": (
        good(),
        {**SIZES, "latent_size": 3},
        "torch: The size of tensor a (3) must match the size of tensor b (2)",
    ),
}


@pytest.mark.parametrize(("source", "sizes", "problem"), REFUSED.values(), ids=REFUSED)
def test_a_method_that_is_no_objective_is_refused(tmp_path, source, sizes, problem):
    path = write(tmp_path / "functions.pt", source, sizes)
    with pytest.raises(RuntimeError) as error:
        _torch.TorchObjective(str(path), "objective", threads=1)
    message = one_line(error)
    assert message.startswith(str(path))
    assert problem in message


def test_normal_equations_are_a_function_too(tmp_path):
    path = str(write(tmp_path / "functions.pt", WITH_GRAM))
    assert _torch.TorchObjective(path, "objective", threads=1).has_gram
    latent = np.array([[1, 2], [3, 4], [0, 5]], np.float32)
    image = np.zeros((3, 1, 1, 2), np.float32)
    results = _torch.TorchFunction(path, "objective", threads=1).run(
        {"latent": latent, "image": image}
    )
    np.testing.assert_array_equal(results["loss"], [5, 25, 25])
    np.testing.assert_array_equal(results["gradient"], 2 * latent)
    np.testing.assert_array_equal(results["gram"], latent[:, :, None] * latent[:, None])


def test_files_that_are_no_modules_are_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"missing\.pt: no such file"):
        _torch.TorchObjective(str(tmp_path / "missing.pt"), "objective", threads=1)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no module" * 99)
    with pytest.raises(RuntimeError, match="torch: PytorchStreamReader failed") as error:
        _torch.TorchFunction(str(broken), "objective", threads=1)
    assert "\n" not in str(error.value)
    path = write(tmp_path / "good.pt", good())
    with pytest.raises(ValueError, match="threads should be at least 1, is 0"):
        _torch.TorchObjective(str(path), "objective", threads=0)


IMAGE = np.zeros((2, 1, 1, 2), np.float32)
Z = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"latent": Z}, "input 'image' is missing, expected float32 [any, 1, 1, 2]"),
        ({"latent": Z, "image": Z}, "input 'image' should be float32 [any, 1, 1, 2], is [2, 2]"),
        ({"latent": Z, "image": IMAGE, "q": Z}, "there is no input 'q', only latent, image"),
        ({"latent": Z.astype(float), "image": IMAGE}, "should be float32, is float64"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tmp_path, inputs, problem):
    function = _torch.TorchFunction(str(write(tmp_path / "f.pt", good())), "objective", threads=1)
    with pytest.raises(ValueError) as error:
        function.run(inputs)
    assert problem in one_line(error)


def test_an_error_within_a_method_is_cut_to_its_cause(tmp_path):
    function = _torch.TorchFunction(str(write(tmp_path / "f.pt", good())), "objective", threads=1)
    with pytest.raises(RuntimeError) as error:
        function.run({"latent": np.zeros((3, 2), np.float32), "image": IMAGE})
    message = one_line(error)
    assert message.endswith(
        "f.pt, objective: torch: The size of tensor a (3) must match the size "
        "of tensor b (2) at non-singleton dimension 0"
    )


def test_results_outlive_the_function(tmp_path):
    path = write(tmp_path / "f.pt", FORWARD)
    function = _torch.TorchFunction(str(path), "forward", threads=1)
    kept = [function.run({"latent": np.full((500, 2), i, np.float32)})["image"] for i in range(4)]
    del function
    for i, array in enumerate(kept):
        np.testing.assert_array_equal(array, np.full((500, 1, 1, 2), i, np.float32))


# ---- out of memory -------------------------------------------------------------------------------


@pytest.fixture
def hungry(tmp_path: Path) -> Path:
    """A bundle whose objective wants more memory than there is for more than five targets."""
    more = "difference = difference + torch.zeros([latent.size(0), 1 << 50]).sum()"
    extra = f"if latent.size(0) > 5:\n        {more}"
    file = write(tmp_path / "functions.pt", good(extra) + FORWARD)
    Manifest(
        latent_shape=(2,),
        image_shape=(1, 1, 2),
        value_range=(-1.0, 1.0),
        prior=Uniform(),
        functions=(
            Function("forward", "torchscript", file.name, method="forward"),
            Function("objective", "torchscript", file.name, loss="mse", method="objective"),
        ),
        files={file.name: FileRecord.of(file)},
    ).write(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("batch_size", "asked"), [(64, 48), ("auto", 8)])
def test_too_many_lanes_for_the_memory(hungry, batch_size, asked):
    images = np.zeros((48, 1, 1, 2), np.float32)
    with pytest.raises(DeviceError) as error:
        Inverter(hungry, batch_size=batch_size, threads=1).invert(images)
    fitting = {48: 3, 8: 4}[asked]
    assert one_line(error) == f"cpu has no memory for batch_size={asked}; batch_size={fitting} fits"
    inversion = Inverter(hungry, batch_size=fitting, threads=1).invert(images)
    assert inversion.counts()["converged_tolerance"] == 48


def test_too_large_a_batch_for_the_memory(hungry):
    inverter = Inverter(hungry, threads=1)
    arrays = np.zeros((6, 2), np.float32), np.zeros((6, 1, 1, 2), np.float32)
    with pytest.raises(DeviceError, match="cpu has no memory for 6 images at a time"):
        inverter.evaluate(*arrays)
    assert len(inverter.evaluate(*arrays, batch_size=3)[0]) == 6


# ---- in one process with the user's torch --------------------------------------------------------


def test_torchs_state_is_as_before(tmp_path):
    before = torch.get_num_threads()
    objective = Perceptron(5).load(tmp_path / "f", runtime="torchscript", threads=before + 1)
    run(objective, Stage(Adam(0.1), max_steps=5), Normal(), np.zeros((3, 24)))
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.usefixtures("all_cores")
def test_runs_and_torch_side_by_side(tmp_path):
    """Each thread's run, with its own number of threads, gives what it gives alone."""
    toy = Perceptron(5, hidden=64, image_shape=(3, 16, 16))
    images = toy.generate(np.random.default_rng(0).uniform(-1, 1, (9, 5)).astype(np.float32))
    stage = Stage(Adam(0.1), max_steps=20)
    objectives = [
        toy.load(tmp_path / f"{threads}", runtime="torchscript", threads=threads)
        for threads in (1, 2)
    ]
    alone = [run(objective, stage, Normal(), images) for objective in objectives]
    together = [None, None]

    def work(index):
        together[index] = run(objectives[index], stage, Normal(), images)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    weight = torch.ones(3, requires_grad=True)
    (weight * 2).sum().backward()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(weight.grad, 2)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(other, one)


def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_an_inverter_takes_as_many_threads_as_asked(bundles, runtime):
    done = python(
        """
        import os
        import sys
        import pyinv
        bundle, runtime = sys.argv[1:]
        latents = pyinv.Inverter(bundle, runtime=runtime, threads=1).sample(4096)
        images = pyinv.Inverter(bundle, runtime=runtime, threads=1).generate(latents[:1])
        for threads in (1, 3):
            inverter = pyinv.Inverter(bundle, runtime=runtime, threads=threads)
            before = len(os.listdir("/proc/self/task"))
            inverter.evaluate(latents, images.repeat(4096, axis=0), batch_size=4096)
            print(len(os.listdir("/proc/self/task")) - before)
        """,
        bundles["uniform"],
        runtime,
    )
    alone, three = map(int, done.stdout.split())
    assert alone == 0
    assert three >= 2  # torch may start others that wait


def test_nothing_is_printed_or_warned(bundles):
    done = python(
        """
        import sys
        import warnings
        import pyinv
        inverter = pyinv.Inverter(sys.argv[1], runtime="torchscript", threads=1)
        images = inverter.generate(inverter.sample(3))
        inverter.invert(images, restarts=0)
        inverter.evaluate(inverter.sample(3), images)
        """,
        bundles["uniform"],
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_onnx_never_imports_torch(bundles):
    python(
        """
        import sys
        import pyinv
        inverter = pyinv.Inverter(sys.argv[1], threads=1)
        inverter.invert(inverter.generate(inverter.sample(3)), restarts=0)
        assert inverter.runtime == "onnx"
        assert "torch" not in sys.modules
        """,
        bundles["uniform"],
    )
