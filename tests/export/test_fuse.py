"""Fused graphs give what the graphs they were made from give, and hold what they should."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
_core = pytest.importorskip("pyinv._core")

from torch import nn  # noqa: E402

from pyinv import runtimes  # noqa: E402
from pyinv.export.runtimes.onnx_fusion import DOMAIN, fuse  # noqa: E402

# Of the largest value: two float32 computations of one graph.
TOLERANCE = 3e-6


def exported(module: nn.Module, *shape: int) -> onnx.ModelProto:
    """A module with seeded weights through torch's own exporter, batch dynamic."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    module.requires_grad_(False).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.zeros(3, *shape),), dynamic_shapes=({0: batch},))
    return torch.onnx.export(program, dynamo=True, verbose=False, opset_version=20).model_proto


class Gradient(nn.Module):
    """Layers, then the product of an image by the transpose of their derivative."""

    def __init__(self, transposed: bool, slope: float) -> None:
        super().__init__()
        make = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.transposed, self.slope = transposed, slope
        self.dense = nn.Linear(12, 16 * 4 * 4)
        self.first, self.second = make(16, 24, 4, 2, 1), make(24, 3, 3, 1, 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        back = nn.functional.conv2d if self.transposed else nn.functional.conv_transpose2d
        a = nn.functional.leaky_relu(self.dense(z).view(-1, 16, 4, 4), self.slope)
        b = nn.functional.leaky_relu(self.first(a), self.slope)
        g = torch.tanh(self.second(b))
        g = back(g, self.second.weight, stride=1, padding=1)
        g = torch.where(b > 0, g, g * self.slope)
        g = back(g, self.first.weight, stride=2, padding=1)
        g = torch.where(a > 0, g, g * self.slope)
        return g.reshape(-1, 256) @ self.dense.weight


class Tangents(nn.Module):
    """Images in seven directions, each target's times a factor of its own after every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(7, 16 * 4 * 4)
        self.first = nn.ConvTranspose2d(16, 24, 4, 2, 1)
        self.second = nn.Conv2d(24, 3, 3, 1, 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        functional = nn.functional
        a = functional.leaky_relu(self.dense(z).view(-1, 16, 4, 4), 0.2)
        b = torch.tanh(self.first(a))
        c = torch.tanh(self.second(b))
        factors = [torch.where(a > 0, 1.0, 0.2), 1 - b * b, 1 - c * c]
        t = self.dense.weight.t().reshape(1, 7, 16, 4, 4) * factors[0].reshape(-1, 1, 16, 4, 4)
        t = functional.conv_transpose2d(
            t.reshape(-1, 16, 4, 4), self.first.weight, stride=2, padding=1
        )
        t = t.reshape(-1, 7, 24, 8, 8) * factors[1].reshape(-1, 1, 24, 8, 8)
        t = functional.conv2d(t.reshape(-1, 24, 8, 8), self.second.weight, padding=1)
        t = t.reshape(-1, 7, 3, 8, 8) * factors[2].reshape(-1, 1, 3, 8, 8)
        return t.reshape(-1, 7, 192)


class Grouped(nn.Module):
    """A convolution that no operator computes, between two that one does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(9, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=2),
            nn.ELU(), nn.Conv2d(16, 16, 3, 1, 2, dilation=2), nn.Conv2d(16, 8, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Residual(nn.Module):
    """An activation with two users, and a sum of images of which one is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.scale = nn.Parameter(torch.ones(1, 16, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return x + self.scale * self.b(torch.relu(y)) + y


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(16, 24, 3, 1, 1), nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2), nn.Conv2d(24, 3, 3, 1, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class UpsampledGradient(nn.Module):
    """The sum of 2 x 2 pixels after a transposed convolution, with the factor 4 near and far."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(16, 24, 3, 1, 1, bias=False)
        self.second = nn.ConvTranspose2d(24, 16, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.avg_pool2d(self.first(x), 2) * 4.0
        return nn.functional.avg_pool2d(self.second(torch.relu(y)), 2)


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(16, 48, 3, 1, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(12, 1, 5, 1, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layer(z)


# The module, its input's shape, and how many of which operators the fused graph holds.
CASES = {
    "transposed": (Gradient(True, 0.0), (12,), {
        "ConvTranspose2dLeakyRelu": 1, "ConvTranspose2d": 1, "Conv2dLeakyReluGradient": 2}),
    "leaky": (Gradient(True, 0.2), (12,), {
        "ConvTranspose2dLeakyRelu": 1, "ConvTranspose2d": 1, "Conv2dLeakyReluGradient": 2}),
    "plain": (Gradient(False, 0.1), (12,), {
        "Conv2dLeakyRelu": 1, "Conv2d": 1, "ConvTranspose2dLeakyReluGradient": 2}),
    "tangents": (Tangents(), (7,), {
        "ConvTranspose2d": 1, "Conv2d": 1, "ConvTranspose2dScaled": 1, "Conv2dScaled": 1}),
    "grouped": (Grouped(), (9, 11, 7), {"Conv2dLeakyRelu": 1, "Conv2d": 1, "Conv": 2}),
    "residual": (Residual(), (16, 9, 9), {"Conv2d": 2, "Transpose": 2}),
    "upsampled": (Upsampled(), (16, 4, 5), {
        "ConvTranspose2dLeakyRelu": 1, "ConvTranspose2d": 1, "Resize": 0}),
    "upsampled gradient": (UpsampledGradient(), (16, 8, 12), {
        "Conv2dLeakyRelu": 1, "Conv2d": 1, "AveragePool": 0}),
    "shuffled": (Shuffled(), (16, 5, 5), {"Conv2d": 2}),
    "dense": (Dense(), (8,), {}),
}  # fmt: skip


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("name", CASES)
def test_fused_graph_gives_the_same(name: str, tmp_path: Path) -> None:
    module, shape, operators = CASES[name]
    plain = exported(module, *shape)
    fused = fuse(plain)
    onnx.checker.check_model(fused, full_check=True)
    counts = Counter(node.op_type for node in fused.graph.node)
    assert {operator: counts[operator] for operator in operators} == operators

    (tmp_path / "plain.onnx").write_bytes(plain.SerializeToString())
    (tmp_path / "fused.onnx").write_bytes(fused.SerializeToString())
    runtimes.load_onnxruntime()
    source, result = plain.graph.input[0].name, plain.graph.output[0].name
    kernels = _core.OnnxFunction(str(tmp_path / "fused.onnx"), threads=2)
    functions = onnxruntime.InferenceSession(
        str(tmp_path / "fused.onnx"), providers=["CPUExecutionProvider"]
    )
    for batch in (1, 3, 17):
        x = np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)
        with torch.no_grad():
            right = module(torch.from_numpy(x)).numpy()
        for actual in (kernels.run({source: x})[result], functions.run([result], {source: x})[0]):
            assert actual.shape == right.shape
            assert np.abs(actual - right).max() <= TOLERANCE * np.abs(right).max()


@pytest.mark.parametrize("name", ["transposed", "tangents"])
def test_layouts_meet_without_transposing(name: str) -> None:
    module, shape, _ = CASES[name]
    fused = fuse(exported(module, *shape))
    assert "Transpose" not in [node.op_type for node in fused.graph.node]


def test_a_model_without_convolutions_is_left_alone() -> None:
    module, shape, _ = CASES["dense"]
    plain = exported(module, *shape)
    assert fuse(plain) is plain


def test_every_operator_used_is_defined_once() -> None:
    module, shape, _ = CASES["plain"]
    fused = fuse(exported(module, *shape))
    used = {node.op_type for node in fused.graph.node if node.domain == DOMAIN}
    assert sorted(used) == [function.name for function in fused.functions]
    assert all(function.domain == DOMAIN for function in fused.functions)
