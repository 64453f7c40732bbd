"""The engine's convolutions with weights per target against PyTorch in double precision.

Every case runs twice, as in test_convolutions.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
_core = pytest.importorskip("pyinv._core")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import pyinv  # noqa: E402
from pyinv import runtimes  # noqa: E402
from pyinv.export import export  # noqa: E402
from pyinv.export.runtimes.onnx_by_target import BY_TARGET, by_target_function  # noqa: E402
from pyinv.export.runtimes.onnx_fusion import DOMAIN  # noqa: E402

# Of the largest value in the output. Sums of up to 20 * 24 products in float32.
TOLERANCE = 3e-6


@dataclass(frozen=True)
class Case:
    name: str
    channels: tuple[int, int] = (16, 24)
    size: tuple[int, int] = (9, 7)
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    pads: int = 1
    output_padding: int = 0
    batch: int = 3
    input_first: bool = False
    output_first: bool = False

    def __str__(self) -> str:
        parts = [self.name, *self.channels, *self.size, *self.kernel, self.stride, self.pads]
        parts += [self.output_padding, self.batch, self.input_first, self.output_first]
        return "-".join(map(str, parts))


CASES = [
    replace(Case(name), **changes)
    for name in BY_TARGET
    for changes in [
        {},
        {"batch": 1},
        {"batch": 9, "size": (16, 16)},
        {"input_first": True},
        {"output_first": True},
        {"input_first": True, "output_first": True, "batch": 1},
        {"channels": (3, 5)},
        {"channels": (70, 9), "size": (20, 20)},
        {"channels": (1, 1)},
        {"kernel": (4, 4), "stride": 2, "size": (8, 8)},
        {"kernel": (1, 1), "pads": 0},
        {"kernel": (2, 5), "pads": 2, "size": (11, 6)},
    ]
] + [
    Case("ConvTranspose2dByTarget", stride=2, output_padding=1),
    Case("Conv2dWeightGradient", stride=2, kernel=(5, 3), size=(17, 18)),
]


def arrays_of(case: Case) -> dict[str, np.ndarray]:
    """X, and W or G, with channels first."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    inputs, outputs = case.channels
    x = normal(case.batch, inputs, *case.size)
    if case.name == "ConvTranspose2dByTarget":
        return {"X": x, "W": normal(case.batch, inputs, outputs, *case.kernel)}
    weights = normal(case.batch, outputs, inputs, *case.kernel)
    if case.name == "Conv2dByTarget":
        return {"X": x, "W": weights}
    return {"X": x, "G": normal(*convolved(case, torch.from_numpy(x), weights).shape)}


def convolved(case: Case, x: torch.Tensor, weights: np.ndarray | torch.Tensor) -> torch.Tensor:
    weights = torch.as_tensor(weights)
    options = {"stride": case.stride, "padding": case.pads}
    if case.name == "ConvTranspose2dByTarget":
        options["output_padding"] = case.output_padding
    call = functional.conv_transpose2d if "Transpose" in case.name else functional.conv2d
    return torch.cat([call(x[i : i + 1], weights[i], **options) for i in range(case.batch)])


def expected(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    x = torch.from_numpy(arrays["X"]).double()
    if "W" in arrays:
        return convolved(case, x, torch.from_numpy(arrays["W"]).double()).numpy()
    inputs, outputs = case.channels
    weights = torch.zeros(case.batch, outputs, inputs, *case.kernel, dtype=torch.double)
    weights.requires_grad_(True)
    slopes = torch.from_numpy(arrays["G"]).double()
    convolved(case, x, weights).backward(slopes)
    return weights.grad.reshape(case.batch, outputs, -1).numpy()


def model_of(case: Case, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    inputs, outputs = case.channels
    taps = case.kernel[0] * case.kernel[1]
    second = "W" if "W" in arrays else "G"
    gradient = second == "G"
    to_first, to_last, same = [0, 3, 1, 2], [0, 2, 3, 1], [0, 1, 2, 3]
    settings = {
        "strides": [case.stride] * 2,
        "pads": [case.pads] * 4,
        "input_perm": same if case.input_first else to_first,
        "output_perm": same if case.output_first else to_first if gradient else to_last,
    }
    after = (arrays["G"] if gradient else expected(case, arrays)).shape[2:]
    if case.name == "ConvTranspose2dByTarget":
        settings |= {
            "output_padding": [case.output_padding] * 2,
            "columns": [-1, inputs, case.size[0] * case.size[1]],
            "rows": [-1, inputs, outputs * taps],
            "planes": [-1, taps, *case.size],
            "images": [-1, outputs, *after],
        }
    else:
        pixels = after[0] * after[1]
        settings |= {
            "planes": [-1, 1, *case.size],
            "columns": [-1, inputs * taps, pixels],
            "rows": [-1, outputs, pixels if gradient else inputs * taps],
        }
        if not gradient:
            settings["images"] = [-1, outputs, *after]
    node = helper.make_node(case.name, ["X", second, "E"], ["Y"], domain=DOMAIN, **settings)
    filters = np.eye(taps, dtype=np.float32).reshape(taps, 1, *case.kernel)
    graph = helper.make_graph(
        [node],
        "case",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * array.ndim)
            for name, array in arrays.items()
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * (3 if gradient else 4))],
        [numpy_helper.from_array(filters, "E")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.functions.append(by_target_function(case.name, DOMAIN, model.opset_import))
    onnx.checker.check_model(model)
    return model


def run_kernel(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    runtimes.load_onnxruntime()
    return _core.OnnxFunction(str(path), threads=2).run(feeds)["Y"]


def run_function(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["Y"], feeds)[0]


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("run", [run_kernel, run_function])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_gives_what_torch_gives(case: Case, run, tmp_path: Path) -> None:
    arrays = arrays_of(case)
    path = tmp_path / "case.onnx"
    onnx.save(model_of(case, arrays), path)
    feeds = {
        name: arrays[name]
        if name == "W" or (case.input_first if name == "X" else case.output_first)
        else np.ascontiguousarray(arrays[name].transpose(0, 2, 3, 1))
        for name in arrays
    }
    actual, right = run(path, feeds), expected(case, arrays)
    if "W" in arrays and not case.output_first:
        actual = actual.transpose(0, 3, 1, 2)
    assert actual.shape == right.shape
    assert np.abs(actual - right).max() <= TOLERANCE * np.abs(right).max()


class MixedKernels(nn.Module):
    """Convolutions with mixtures of kernels: plain, of stride 2, and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8 * 5 * 5)
        self.mix = nn.ModuleList(nn.Linear(6, 3) for _ in range(3))
        self.kernels = nn.ParameterList(
            nn.Parameter(0.2 * torch.randn(3, 8, 8, k, k)) for k in (3, 3, 4)
        )
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.embed(z).view(-1, 8, 5, 5)
        for i, stride in enumerate((1, 2, 2)):
            weight = torch.einsum("bn,noihw->boihw", self.mix[i](z).softmax(1), self.kernels[i])
            batch, channels, height, width = x.shape
            call = functional.conv_transpose2d if i == 2 else functional.conv2d
            x = call(
                x.reshape(1, batch * channels, height, width),
                weight.reshape(-1, 8, *weight.shape[3:]),
                stride=stride,
                padding=1,
                groups=batch,
            )
            x = functional.leaky_relu(x.view(batch, 8, *x.shape[2:]), 0.2)
        return torch.tanh(self.last(x))


class GroupsPerTarget(nn.Module):
    """Two groups per target, plain and transposed, and one per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 100)
        self.plain = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.transposed = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.scales = nn.Linear(6, 6 + 36)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        batch = z.shape[0]
        scales = 1 + self.scales(z)
        x = self.embed(z).view(1, -1, 5, 5)
        weight = (self.plain * scales[:, :6].view(-1, 6, 1, 1, 1)).flatten(0, 1)
        x = functional.conv2d(x, weight, padding=1, groups=2 * batch)
        weight = (self.transposed * scales[:, :6].view(-1, 6, 1, 1, 1)).flatten(0, 1)
        x = functional.conv_transpose2d(x, weight, stride=2, groups=2 * batch)
        x = functional.conv2d(x, scales[:, 6:].reshape(-1, 1, 3, 3), groups=4 * batch)
        return torch.tanh(x.view(batch, 4, *x.shape[2:]))


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_several_groups_per_target(tmp_path: Path, runtime: str) -> None:
    torch.manual_seed(0)
    generator = GroupsPerTarget().eval()
    options = {"latent_shape": 6, "prior": pyinv.Normal(), "normal_equations": False}
    path = export(generator, tmp_path / "bundle", runtimes=runtime, **options)
    inverter = pyinv.Inverter(path, threads=1)
    latents = torch.from_numpy(inverter.sample(5)).requires_grad_(True)
    images = generator(latents)
    targets = torch.rand(images.shape) * 2 - 1
    (images - targets).square().mean((1, 2, 3)).sum().backward()
    _, gradient = inverter.evaluate(latents.detach().numpy(), targets.numpy())
    largest = latents.grad.abs().max()
    np.testing.assert_allclose(gradient, latents.grad, atol=float(2e-5 * largest))


def test_a_generators_convolutions_become_operators(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export(
        MixedKernels().eval(),
        tmp_path / "bundle",
        latent_shape=6,
        prior=pyinv.Normal(),
        runtimes=("onnx", "torchscript"),
    )
    model = onnx.load(path / "objective_mse.onnx")
    names = [node.op_type for node in model.graph.node]
    counts = {name: names.count(name) for name in BY_TARGET}
    assert counts == {
        "Conv2dByTarget": 3,
        "ConvTranspose2dByTarget": 3,
        "Conv2dWeightGradient": 3,
    }
    assert names.count("MatMul") == 6  # those that mix the kernels, and their gradients
    functions = torch.jit.load(path / "functions.pt")
    code = str(functions.objective_mse.inlined_graph)
    assert code.count("aten::convolution_backward") == 3
    assert code.count("aten::bmm") == 6

    inverter = pyinv.Inverter(path, threads=1)
    latents = inverter.sample(8)
    inversion = inverter.invert(inverter.generate(latents), recipe="precise")
    assert (np.square(inversion.latents - latents).mean(1) < 1e-8).all()
