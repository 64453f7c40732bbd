"""Export: what a bundle's functions compute, what its files hold, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.backends import absent
from support.paths import REPOSITORY, SHARED

torch = pytest.importorskip("torch", reason="export needs torch")
onnx = pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

import onnxruntime  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import pyinv  # noqa: E402
from pyinv.bundle import Bundle  # noqa: E402
from pyinv.errors import DependencyError, ExportError, OutputError  # noqa: E402
from pyinv.export import export, load_factory  # noqa: E402
from pyinv.inverter import Inverter  # noqa: E402
from pyinv.priors import Normal, Uniform  # noqa: E402
from support.generators import (  # noqa: E402
    BatchNormGenerator,
    ConditionalGenerator,
    Dcgan,
    Mlp,
    PixelShuffleGenerator,
    UpsampleGenerator,
    VaeDecoder,
    seeded,
)

FACE_GENERATOR = SHARED / "data" / "face_generator" / "generator.pt"
TOLERANCE = 1e-5
LOSSES = ("mse", "l1", "bce")
BATCHES = (1, 3, 17)


@dataclass(frozen=True)
class Case:
    """A generator and what to pass to export with it."""

    make: Callable[[], nn.Module]
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]
    value_range: tuple[float, float] = (-1.0, 1.0)
    prior: Uniform | Normal = field(default_factory=Normal)
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "dcgan": Case(Dcgan, (100,), (3, 64, 64), prior=Uniform()),
    "pixel_shuffle": Case(PixelShuffleGenerator, (32,), (3, 16, 16)),
    "upsample": Case(UpsampleGenerator, (48,), (3, 32, 32)),
    "mlp": Case(Mlp, (20,), (1, 28, 28), value_range=(0.0, 1.0)),
    "vae": Case(VaeDecoder, (16,), (1, 28, 28), value_range=(0.0, 1.0)),
    "batch_norm": Case(BatchNormGenerator, (12, 1, 1), (1, 8, 8)),
    "conditional": Case(ConditionalGenerator, (10,), (1, 8, 8), options={"condition_shape": 4}),
    "coupled": Case(BatchNormGenerator, (12, 1, 1), (1, 8, 8), options={"batch_norm": "batch"}),
}


class Exported:
    """A bundle with the generator it was made from, run by ONNX Runtime and by PyTorch."""

    def __init__(self, case: Case, path: Path) -> None:
        self.case = case
        self.path = path
        self.generator = seeded(case.make())
        export(
            self.generator,
            path,
            latent_shape=case.latent_shape,
            prior=case.prior,
            losses=LOSSES,
            normal_equations=False,
            value_range=case.value_range,
            **case.options,
        )
        self.sessions: dict[str, Any] = {}

    def draw(self, batch: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(batch)
        low, high = self.case.value_range
        size = int(np.prod(self.case.latent_shape))
        drawn = {
            "latent": torch.randn(batch, size, generator=random).clamp(-1, 1),
            "image": low
            + (high - low) * torch.rand(batch, *self.case.image_shape, generator=random),
        }
        if "condition_shape" in self.case.options:
            drawn["condition"] = torch.rand(batch, 4, generator=random)
        return drawn

    def run(self, file: str, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        if file not in self.sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 2
            options.log_severity_level = 3
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self.sessions[file] = onnxruntime.InferenceSession(
                str(self.path / file), options, providers=["CPUExecutionProvider"]
            )
        session = self.sessions[file]
        names = [value.name for value in session.get_outputs()]
        feed = {value.name: inputs[value.name].numpy() for value in session.get_inputs()}
        return dict(zip(names, session.run(names, feed), strict=True))

    def image(self, inputs: dict[str, Tensor]) -> Tensor:
        latent = inputs["latent"].reshape(-1, *self.case.latent_shape)
        generator = copy.deepcopy(self.generator)
        if self.case.options.get("batch_norm") == "batch":
            generator.train()
        condition = [inputs["condition"]] if "condition" in inputs else []
        return generator(latent, *condition)

    def objective(self, loss: str, inputs: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        latent = inputs["latent"].clone().requires_grad_(True)
        value = self.loss(loss, self.image({**inputs, "latent": latent}), inputs["image"])
        (gradient,) = torch.autograd.grad(value.sum(), latent)
        return value.detach().numpy(), gradient.numpy()

    def loss(self, name: str, image: Tensor, target: Tensor) -> Tensor:
        low, high = self.case.value_range
        if name == "bce":
            values = functional.binary_cross_entropy(
                (image - low) / (high - low), (target - low) / (high - low), reduction="none"
            )
        elif name == "mse":
            values = functional.mse_loss(image, target, reduction="none")
        else:
            values = functional.l1_loss(image, target, reduction="none")
        return values.mean((1, 2, 3))

    def graph(self, file: str) -> Any:
        return onnx.load(self.path / file, load_external_data=False)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Exports each case once."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            made[name] = Exported(CASES[name], tmp_path_factory.mktemp("exported") / name)
        return made[name]

    return get


def relative_error(got: np.ndarray, right: np.ndarray) -> float:
    assert got.shape == right.shape
    assert got.dtype == np.float32
    return float(np.abs(got - right).max() / np.abs(right).max())


def export_small(generator: nn.Module, path: Path, **options: Any) -> Path:
    """Export a generator of 12 latents without saying the obvious."""
    defaults = {
        "latent_shape": 12,
        "prior": Normal(),
        "losses": "mse",
        "normal_equations": False,
    }
    return export(generator, path, **{**defaults, **options})


class Small(nn.Module):
    """A linear map of 12 latents to a 1x8x8 image in [-1, 1], then whatever a test adds."""

    def __init__(self, then: Callable[[Tensor], Any] | nn.Module | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(12, 64)
        self.then = then or nn.Identity()

    def forward(self, latent: Tensor) -> Tensor:
        return self.then(torch.tanh(self.dense(latent)).view(-1, 1, 8, 8))


# ------------------------------------------------------------------ what the functions compute


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_pytorchs(
    exported: Callable[[str], Exported], name: str, loss: str, batch: int
) -> None:
    case = exported(name)
    inputs = case.draw(batch)
    got = case.run(f"objective_{loss}.onnx", inputs)
    value, gradient = case.objective(loss, inputs)
    assert relative_error(got["loss"], value) <= TOLERANCE
    assert relative_error(got["gradient"], gradient) <= TOLERANCE


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CASES)
def test_forward_equals_pytorchs(
    exported: Callable[[str], Exported], name: str, batch: int
) -> None:
    case = exported(name)
    inputs = case.draw(batch)
    with torch.no_grad():
        expected = case.image(inputs).numpy()
    assert relative_error(case.run("forward.onnx", inputs)["image"], expected) <= TOLERANCE


def test_batch_statistics_couple_the_images_of_a_batch(
    exported: Callable[[str], Exported],
) -> None:
    inputs = exported("coupled").draw(3)
    changed = {**inputs, "latent": inputs["latent"].clone()}
    changed["latent"][2] += 1.0
    for name, coupled in (("coupled", True), ("batch_norm", False)):
        before = exported(name).run("forward.onnx", inputs)["image"][0]
        after = exported(name).run("forward.onnx", changed)["image"][0]
        assert (np.abs(before - after).max() > 1e-3) == coupled


def test_bce_is_finite_where_every_pixel_saturates(tmp_path: Path) -> None:
    generator = seeded(Small())
    with torch.no_grad():
        generator.dense.weight.mul_(1000.0)
    path = export_small(generator, tmp_path / "b", losses="bce")
    session = onnxruntime.InferenceSession(str(path / "objective_bce.onnx"))
    loss, gradient = session.run(
        ["loss", "gradient"],
        {
            "latent": np.ones((2, 12), np.float32),
            "image": np.zeros((2, 1, 8, 8), np.float32),
        },
    )
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()
    # PyTorch's own gradient is 0 at such a pixel, and an inversion would never leave it.
    assert np.abs(gradient).max() > 0


def test_losses_of_your_own(tmp_path: Path) -> None:
    def charbonnier(image: Tensor, target: Tensor) -> Tensor:
        return ((image - target).square() + 1e-3).sqrt().mean((1, 2, 3))

    features = seeded(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))

    def perceptual(image: Tensor, target: Tensor) -> Tensor:
        return (features(image) - features(target)).square().mean((1, 2, 3))

    path = export_small(
        Small(), tmp_path / "b", losses={"charbonnier": charbonnier, "lpips": perceptual}
    )
    assert Bundle.open(path).manifest.losses == ("charbonnier", "lpips")


class Lpips(nn.Module):
    """Shaped like the package lpips: dropout before the weights, and values [B, 1, 1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True))
        self.weights = nn.Sequential(nn.Dropout(), nn.Conv2d(6, 1, 1, bias=False))

    def forward(self, image: Tensor, target: Tensor, normalize: bool = False) -> Tensor:
        one, other = (functional.normalize(self.features(x), eps=1e-5) for x in (image, target))
        return self.weights((one - other).square()).mean((2, 3), keepdim=True)


def test_a_module_is_a_loss_and_is_chosen_by_name(tmp_path: Path) -> None:
    lpips = seeded(Lpips()).train()
    with torch.no_grad():
        lpips.weights[1].weight.abs_()
    path = export_small(Small(), tmp_path / "b", losses={"mse": "mse", "lpips": lpips})
    assert lpips.training
    assert all(parameter.requires_grad for parameter in lpips.parameters())

    inverter = Inverter(path, batch_size=4)
    images = inverter.generate(inverter.sample(3))
    found = inverter.invert(images, loss="lpips", recipe="default", seed=5)
    assert {stage["loss"] for stage in found.recipe["stages"]} == {"lpips"}
    with torch.no_grad():
        right = lpips.eval()(torch.tensor(found.images), torch.tensor(images)).flatten()
        start = lpips(
            torch.tensor(inverter.generate(inverter.sample(3, seed=5))), torch.tensor(images)
        )
    np.testing.assert_allclose(found.loss, right.numpy(), rtol=1e-3, atol=1e-6)
    assert float(right.max()) < 0.2 * float(start.min())


def test_a_loss_is_known_by_its_own_name(tmp_path: Path) -> None:
    def huber(image: Tensor, target: Tensor) -> Tensor:
        return functional.huber_loss(image, target, reduction="none").mean((1, 2, 3))

    path = export_small(Small(), tmp_path / "b", losses=["mse", huber])
    assert (path / "objective_huber.onnx").is_file()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "normalisation": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.InstanceNorm2d(8, affine=True),
        nn.SiLU(),
        nn.LayerNorm([8, 8, 8]),
        nn.Softplus(),
        nn.InstanceNorm2d(8),
        nn.Conv2d(8, 1, 1),
    ),
    "activation": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ELU(0.7),
        nn.SELU(),
        nn.Mish(),
        nn.Hardswish(),
        nn.ReLU6(),
        nn.PReLU(8),
        nn.LeakyReLU(),
        nn.Conv2d(8, 16, 1),
        nn.GLU(1),
        nn.Sigmoid(),
        nn.Conv2d(8, 1, 1),
    ),
    "resizing": lambda: nn.Sequential(
        nn.Upsample(scale_factor=3),
        nn.Upsample(size=(11, 9), mode="bilinear", align_corners=True),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.Upsample(size=(13, 12)),
        nn.ReflectionPad2d(2),
        nn.ReplicationPad2d((1, 0, 0, 2)),
        nn.AvgPool2d(2),
        nn.ZeroPad2d((1, 1, 0, 1)),
        nn.PixelUnshuffle(2),
        nn.PixelShuffle(2),
    ),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 8, 3, 1, 1),
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=4),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.ConvTranspose2d(8, 1, 3, 2, 1, output_padding=1),
    ),
    "weight norms": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 8, 3, padding=1)),
        nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 1, 3, padding=1)),
    ),
    "attention": lambda: Attention(),
}


class Attention(nn.Module):
    """Self-attention over pixels, as in SAGAN, and a style that scales channels."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(1, 12, 1)
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        query, key, value = self.project(x).flatten(2).chunk(3, dim=1)
        weights = torch.softmax(query.transpose(1, 2) @ key / 2.0, dim=-1)
        y = (value @ weights.transpose(1, 2)).view(batch, 4, height, width)
        y = y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-4)
        style = y.mean((2, 3))
        return self.last(y * (1.0 + style[:, :, None, None]) + y.flip(3))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_export(tmp_path: Path, name: str) -> None:
    """Export itself compares value, gradient and normal equations at several batches."""
    torch.manual_seed(0)
    layers = LAYERS[name]()
    generator = Small(nn.Sequential(layers if "weight" in name else seeded(layers), nn.Tanh()))
    path = export_small(
        generator, tmp_path / "b", runtimes=("onnx", "torchscript"), normal_equations=True
    )
    operators = {node.op_type for node in onnx.load(path / "objective_mse.onnx").graph.node}
    assert not operators & {"BatchNormalization", "ScatterND", "GatherND", "ScatterElements"}


def test_numbers_almost_0_or_1_are_kept(tmp_path: Path) -> None:
    """The optimizer drops x + 0 and x * 1, and takes 1e-8 for 0 and 1 + 1e-6 for 1."""

    def then(x: Tensor) -> Tensor:
        channels = x.view(-1, 64)
        scale = torch.rsqrt(channels.square().mean(1, keepdim=True) + 1e-8)
        near_one = channels * 1.000005 - channels
        return torch.tanh((channels * scale + 1e5 * near_one - 5e-9) * 0.999995).view(-1, 1, 8, 8)

    generator = Small(then).eval()
    with torch.no_grad():
        generator.dense.bias.zero_()
    path = export_small(
        generator, tmp_path / "b", runtimes=("onnx", "torchscript"), normal_equations=True
    )
    numbers = {
        float(onnx.numpy_helper.to_array(tensor).item())
        for tensor in onnx.load(path / "forward.onnx").graph.initializer
        if np.prod(tensor.dims) == 1 and tensor.data_type == onnx.TensorProto.FLOAT
    }
    assert {np.float32(1e-8), np.float32(1.000005), np.float32(5e-9), np.float32(0.999995)} <= {
        np.float32(number) for number in numbers
    }
    # Without its 1e-8, the norm of zeros divides 0 by 0.
    latents = np.zeros((2, 12), np.float32)
    with torch.no_grad():
        expected = generator(torch.from_numpy(latents)).numpy()
    for runtime in ("onnx", "torchscript"):
        found = Inverter(path, threads=1, runtime=runtime).generate(latents)
        np.testing.assert_allclose(found, expected, atol=1e-6)


# ------------------------------------------------------------------------ what the files hold


def test_inputs_and_outputs_have_the_contracts_names(exported: Callable[[str], Exported]) -> None:
    def described(values: Any) -> dict[str, list[Any]]:
        return {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in values
        }

    forward = exported("conditional").graph("forward.onnx").graph
    objective = exported("conditional").graph("objective_mse.onnx").graph
    latent, condition, image = ["batch", 10], ["batch", 4], ["batch", 1, 8, 8]
    assert described(forward.input) == {"latent": latent, "condition": condition}
    assert described(forward.output) == {"image": image}
    assert described(objective.input) == {"latent": latent, "image": image, "condition": condition}
    assert described(objective.output) == {"loss": ["batch"], "gradient": latent}


def test_batch_norm_is_folded(exported: Callable[[str], Exported]) -> None:
    for name in ("dcgan", "pixel_shuffle", "mlp"):
        operators = [node.op_type for node in exported(name).graph("forward.onnx").graph.node]
        assert not {"BatchNormalization", "Mul", "Add"} & set(operators), name
    # One that follows a ReLU becomes a scale and a shift per channel.
    operators = [node.op_type for node in exported("batch_norm").graph("forward.onnx").graph.node]
    assert operators.count("Mul") == operators.count("Add") == 1
    assert "BatchNormalization" not in operators


def test_graphs_are_lean(exported: Callable[[str], Exported]) -> None:
    noise = {"Identity", "Cast", "CastLike", "Shape", "Expand", "Constant", "Pow", "Concat"}
    for name in ("dcgan", "pixel_shuffle", "upsample", "mlp", "vae"):
        for loss in LOSSES:
            nodes = exported(name).graph(f"objective_{loss}.onnx").graph.node
            assert not noise & {node.op_type for node in nodes}, (name, loss)
    first = exported("dcgan").graph("forward.onnx").graph.node[0]
    assert (first.op_type, first.input[0]) == ("Gemm", "latent")


def test_each_distinct_tensor_is_stored_once(exported: Callable[[str], Exported]) -> None:
    for name, case in ((name, exported(name)) for name in CASES):
        places: set[tuple[int, int]] = set()
        for file in ("forward.onnx", *(f"objective_{loss}.onnx" for loss in LOSSES)):
            for tensor in case.graph(file).graph.initializer:
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    where = {entry.key: entry.value for entry in tensor.external_data}
                    assert where["location"] == "weights.bin"
                    places.add((int(where["offset"]), int(where["length"])))
                else:
                    assert onnx.numpy_helper.to_array(tensor).nbytes < 256
        data = (case.path / "weights.bin").read_bytes()
        blobs = [data[offset : offset + length] for offset, length in sorted(places)]
        assert len(set(blobs)) == len(blobs), name
        ends = [offset + length for offset, length in sorted(places)]
        assert all(a <= b for a, (b, _) in zip(ends, sorted(places)[1:], strict=False)), name
        assert ends[-1] == len(data)


def test_forward_and_backward_share_the_weights(exported: Callable[[str], Exported]) -> None:
    case = exported("dcgan")
    stored = (case.path / "weights.bin").stat().st_size
    weights = sum(p.numel() * 4 for p in case.generator.parameters() if p.ndim > 1)
    assert weights <= stored <= 1.01 * weights + 8192 * 4


def test_manifest(exported: Callable[[str], Exported]) -> None:
    manifest = Bundle.open(exported("batch_norm").path).manifest
    assert manifest.latent_shape == (12, 1, 1)
    assert manifest.image_shape == (1, 8, 8)
    assert manifest.value_range == (-1.0, 1.0)
    assert manifest.prior == Normal()
    assert manifest.name == "BatchNormGenerator"
    assert manifest.losses == LOSSES
    assert manifest.exporter["torch"] == torch.__version__.split("+")[0]
    described = json.loads((exported("coupled").path / "manifest.json").read_text())
    assert described["batch_norm"] == "batch"
    for name, record in described["files"].items():
        data = (exported("coupled").path / name).read_bytes()
        assert record == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_same_generator_gives_the_same_bundle(tmp_path: Path) -> None:
    generator = seeded(Small())
    for name in "ab":
        export_small(
            generator,
            tmp_path / name,
            name="small",
            runtimes=("torchscript", "onnx"),
            normal_equations=True,
        )
    for file in sorted(os.listdir(tmp_path / "a")):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_origin_is_kept(tmp_path: Path) -> None:
    origin = {"data": "mnist", "iterations": 500, "labels": [0.7, 1.2]}
    path = export_small(seeded(Small()), tmp_path / "b", origin=origin)
    assert Bundle.open(path).manifest.origin == origin
    plain = export_small(seeded(Small()), tmp_path / "c")
    assert Bundle.open(plain).manifest.origin == {}


# --------------------------------------------------------------------------- what is left alone


def test_the_generator_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    generator = seeded(BatchNormGenerator()).train()
    generator.layers[1].eval()
    calls: list[int] = []
    generator.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(generator.state_dict())
    modes = [module.training for module in generator.modules()]
    random_state = torch.random.get_rng_state()
    hooks = len(generator._forward_hooks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_small(
            generator,
            tmp_path / "b",
            latent_shape=(12, 1, 1),
            runtimes=("onnx", "torchscript"),
        )
    assert all(torch.equal(before[key], value) for key, value in generator.state_dict().items())
    assert [module.training for module in generator.modules()] == modes
    assert all(parameter.requires_grad for parameter in generator.parameters())
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert len(generator._forward_hooks) == hooks
    assert torch.equal(torch.random.get_rng_state(), random_state)
    # Nothing that torch prints or logs on the way reaches the user.
    assert capfd.readouterr() == ("", "")


def test_half_precision_is_exported_as_float32(tmp_path: Path) -> None:
    generator = seeded(BatchNormGenerator()).half()
    path = export_small(generator, tmp_path / "b", latent_shape=(12, 1, 1))
    assert all(parameter.dtype == torch.float16 for parameter in generator.parameters())
    latent = torch.randn(5, 12)
    session = onnxruntime.InferenceSession(str(path / "forward.onnx"))
    (image,) = session.run(["image"], {"latent": latent.numpy()})
    with torch.no_grad():
        expected = copy.deepcopy(generator).float()(latent.view(5, 12, 1, 1))
    assert relative_error(image, expected.numpy()) <= TOLERANCE


@pytest.mark.gpu
def test_a_generator_on_the_gpu_stays_there(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        absent("torch finds no GPU", "PYINV_REQUIRE_CUDA")
    generator = seeded(BatchNormGenerator()).cuda()
    export_small(generator, tmp_path / "b", latent_shape=(12, 1, 1))
    assert all(parameter.is_cuda for parameter in generator.parameters())


# ------------------------------------------------------------------------------ what is refused


def number_from(x: Tensor) -> Tensor:
    return x * float(x.mean())


def singular_values(x: Tensor) -> Tensor:
    return (x + torch.linalg.svdvals(x)[..., None]).tanh()


def mean_of_all(image: Tensor, target: Tensor) -> Tensor:
    return (image - target).square().mean()


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "not a module": (lambda: lambda z: z, {}, "must be a torch.nn.Module, got function"),
    "unknown runtime": (Small, {"runtimes": "tvm"}, "unknown runtime 'tvm': give any of 'onnx'"),
    "no runtime": (Small, {"runtimes": ()}, "runtimes is empty: give any of 'onnx', 'torchscript'"),
    "runtimes of another type": (Small, {"runtimes": 1}, "runtimes must be names, got 1"),
    "twice the same runtime": (
        Small,
        {"runtimes": ("onnx", "onnx")},
        "runtime 'onnx' is given twice",
    ),
    "no weights": (lambda: Small().to("meta"), {}, "meta device and has no weights"),
    "complex weights": (
        lambda: nn.Sequential(nn.Linear(12, 4, dtype=torch.complex128)),
        {},
        "torch.complex128 weights: convert them to torch.complex64",
    ),
    "wrong latent_shape": (Small, {"latent_shape": 11}, "does not take a latent of shape [B, 11]"),
    "latent_shape of words": (Small, {"latent_shape": "big"}, "latent_shape must be a number"),
    "latent_shape 0": (Small, {"latent_shape": (12, 0)}, "latent_shape must be a number"),
    "missing condition": (
        ConditionalGenerator,
        {"latent_shape": 10},
        "its latent is latent: say what condition is, such as inputs={'condition': Label(classes)}",
    ),
    "condition_shape of words": (
        ConditionalGenerator,
        {"latent_shape": 10, "condition_shape": "big"},
        "condition_shape must be a number",
    ),
    "one number": (
        lambda: Small(lambda x: x.flatten(1).mean(1)),
        {},
        "must return one output per latent, such as images [B, C, H, W] or vectors [B, n], it "
        "returned [64] for 64 latents",
    ),
    "one output for all": (
        lambda: Small(lambda x: x.mean(0)),
        {},
        "must return one output per latent",
    ),
    "two outputs": (
        lambda: Small(lambda x: (x, x)),
        {},
        "returns a tuple of 2 items, and a bundle has one tensor: give output=0 or 1",
    ),
    "integers": (lambda: Small(lambda x: x.long()), {}, "must return floats"),
    "NaN": (lambda: Small(lambda x: x / 0), {}, "NaN or infinity"),
    "noise": (
        lambda: Small(lambda x: (x + 0.1 * torch.randn_like(x)).tanh()),
        {},
        "different images for the same latents",
    ),
    "dropout that never ends": (
        lambda: Small(lambda x: functional.dropout(x, 0.4, training=True) * 0.5),
        {},
        "different images for the same latents",
    ),
    "noise without strength": (
        lambda: Small(lambda x: x + 0.0 * torch.randn_like(x)),
        {},
        "draws random numbers with aten::randn_like",
    ),
    "bce out of range": (
        lambda: seeded(Small(lambda x: 3 * x)),
        {"losses": ("mse", "bce"), "value_range": (-1, 1)},
        "outside value_range (-1, 1), where bce has no value",
    ),
    "operator without ONNX": (lambda: Small(singular_values), {}, "aten::_linalg_svd"),
    "operator with data-dependent result": (
        lambda: Small(number_from),
        {},
        "float(), .item() or .tolist(): compute with tensors instead",
    ),
    "unknown loss": (Small, {"losses": "ssim"}, "unknown loss 'ssim': use one of mse, l1, bce"),
    "no losses": (Small, {"losses": ()}, "losses is empty"),
    "twice the same loss": (Small, {"losses": ("mse", "mse")}, "two losses are named 'mse'"),
    "nameless loss": (Small, {"losses": lambda a, b: a}, "loss name '<lambda>'"),
    "loss of the whole batch": (Small, {"losses": mean_of_all}, "one value per image, [B]"),
    "loss of another type": (Small, {"losses": (1,)}, "a loss must be a name or a callable"),
    "value_range reversed": (Small, {"value_range": (1, -1)}, "value_range must be"),
    "value_range of one": (Small, {"value_range": 1}, "value_range must be"),
    "prior of words": (
        Small,
        {"prior": "normal"},
        "prior must be an object such as pyinv.Normal() or pyinv.Uniform(-1, 1), got 'normal'",
    ),
    "class of prior": (Small, {"prior": Normal}, "such as pyinv.Normal() or pyinv.Uniform(-1, 1)"),
    "origin of objects": (
        Small,
        {"origin": {"data": object()}},
        "origin must be a mapping of JSON",
    ),
    "origin of words": (Small, {"origin": "mnist"}, "origin must be a mapping of JSON"),
    "batch_norm of words": (Small, {"batch_norm": "train"}, "batch_norm must be 'eval' or 'batch'"),
    "batch_norm without any": (Small, {"batch_norm": "batch"}, "batch norm, this one has none"),
    "batch norm without statistics": (
        lambda: Small(nn.BatchNorm2d(1, affine=False, track_running_stats=False)),
        {},
        "export it with batch_norm='batch'",
    ),
    "one batch size": (
        lambda: Small(lambda x: x.reshape(8, 1, 8, 8)),
        {},
        "is invalid for input of size",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(tmp_path: Path, what: str) -> None:
    make, options, message = REFUSED[what]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = make()
        with pytest.raises(ExportError) as caught:
            export_small(generator, tmp_path / "b", **options)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    # Nothing is left, not even the temporary folder.
    assert list(tmp_path.iterdir()) == []


def test_values_outside_the_range_draw_a_warning(tmp_path: Path) -> None:
    generator = seeded(Small(lambda x: 3 * x))
    with pytest.warns(UserWarning, match=r"with values in \[-3, 3\], and value_range is"):
        export_small(generator, tmp_path / "b", value_range=(-1, 1))


def test_a_wrong_gradient_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyinv.export.derivatives import functions

    right = functions._value_and_gradient

    def wrong(*arguments: Any) -> Any:
        value, gradient = right(*arguments)
        return value, gradient * 1.01

    monkeypatch.setattr(functions, "_value_and_gradient", wrong)
    with pytest.raises(ExportError, match=r"objective_mse.onnx .* gradient is off by 1\.0e-02"):
        export_small(seeded(Small()), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    taken = tmp_path / "b"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not empty"):
        export_small(Small(), taken)
    with pytest.raises(OutputError, match="not a bundle, so it is not overwritten"):
        export_small(Small(), taken, overwrite=True)
    with pytest.raises(OutputError, match="expected a folder, this is a file"):
        export_small(Small(), taken / "notes.txt", overwrite=True)
    assert (taken / "notes.txt").read_text() == "mine"


def test_overwriting_replaces_a_bundle_only_by_a_good_one(tmp_path: Path) -> None:
    path = export_small(seeded(Small()), tmp_path / "b", name="old")
    with pytest.raises(ExportError):
        export_small(Small(singular_values), path, overwrite=True)
    assert Bundle.open(path).manifest.name == "old"
    export_small(seeded(Small()), path, overwrite=True, name="new")
    assert Bundle.open(path).manifest.name == "new"
    assert os.listdir(tmp_path) == ["b"]


def test_a_path_that_cannot_be_written_is_found_before_work_starts(tmp_path: Path) -> None:
    class Untouchable(Small):
        def forward(self, latent: Tensor) -> Tensor:
            raise AssertionError("work has started")

    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export_small(Untouchable(), tmp_path / "file" / "b")
    if os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(OutputError, match="cannot be written"):
            export_small(Untouchable(), closed / "b")


def test_import_export_from_a_checkout_fails_with_a_clear_message() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import export"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("ImportError: this package is pyinv.export")


def test_without_torch_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pyinv.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(DependencyError, match=r"needs onnxscript: pip install .*onnxscript"):
        import pyinv.export  # noqa: F401


def test_without_onnxruntime_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"not installed: pip install onnxruntime, or"):
        export_small(Small(), tmp_path / "b")
    assert export_small(Small(), tmp_path / "b", runtimes="torchscript").is_dir()


# ------------------------------------------------------------------------------------ factories


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = tmp_path / "my_generators.py"
    source.write_text(
        textwrap.dedent(
            """
            import torch

            def make():
                return torch.nn.Linear(2, 3)

            def number():
                return 3

            def broken():
                raise RuntimeError("no weights here")

            made = make()
            size = 3
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_generators", raising=False)
    return source


def test_load_factory(factories: Path) -> None:
    for target in (
        "my_generators:make",
        "my_generators.py:make",
        f"{factories}:make",
        "my_generators:made",
        "torch.nn:Identity",
    ):
        assert isinstance(load_factory(target), nn.Module)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_generators", "must be 'package.module:factory' or 'path/to/file.py:factory'"),
        (":make", "must be 'package.module:factory'"),
        ("my_generators:absent", "has no 'absent'; it has: make, number, broken"),
        ("absent.py:make", "no file absent.py"),
        ("no_such_module:make", "cannot import no_such_module: ModuleNotFoundError"),
        ("my_generators:number", "must return a torch.nn.Module, it returned int"),
        ("my_generators:broken", "failed with RuntimeError: no weights here"),
        ("my_generators:size", "is a int, not a function or module"),
    ],
)
def test_load_factory_says_what_is_wrong(factories: Path, target: str, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        load_factory(target)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- examples


@pytest.mark.skipif(not FACE_GENERATOR.is_file(), reason="needs the face generator's weights")
def test_the_face_generator_example(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "examples" / "face_generator.py"),
            str(FACE_GENERATOR),
            "-o",
            str(tmp_path / "face.bundle"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(tmp_path / "face.bundle").manifest
    assert manifest.latent_shape == (100,)
    assert manifest.image_shape == (3, 32, 32)
    assert manifest.prior == Uniform(-1.0, 1.0)
    assert manifest.losses == ("mse", "whitened")
    assert all(map(manifest.has_normal_equations, manifest.losses))


@pytest.mark.parametrize("runtimes", ["onnx", "torchscript"])
def test_a_generator_may_leave_its_range_and_its_images_are_targets(tmp_path, runtimes):
    """A decoder without a last activation; photographs lie in the range, its images need not."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(16, 48), nn.Unflatten(1, (3, 4, 4))).eval()
    options = {"latent_shape": 16, "prior": Normal(), "runtimes": runtimes}
    with pytest.warns(UserWarning, match="outside value_range"):
        path = export(
            linear, tmp_path / "b", normal_equations=False, value_range=(-1, 1), **options
        )
    assert json.loads((path / "manifest.json").read_text())["bounded"] is False
    inverter = pyinv.Inverter(path, threads=1)
    images = inverter.generate(inverter.sample(8) * 1.2)
    assert np.abs(images).max() > 1.1
    assert np.isfinite(inverter.invert(images).loss).all()
    with pytest.warns(pyinv.PyinvWarning, match="if they are 0 to 255, use images / 255"):
        inverter.invert(np.linspace(0, 255, 48, dtype=np.float32).reshape(1, 3, 4, 4))
    bounded = export(nn.Sequential(linear, nn.Tanh()), tmp_path / "c", **options)
    assert pyinv.Bundle.open(bounded).manifest.bounded
    assert "bounded" not in json.loads((bounded / "manifest.json").read_text())
    with pytest.raises(pyinv.InputError, match=r"images must be in \[-1, 1\]"):
        pyinv.Inverter(bounded, threads=1).invert(images)
