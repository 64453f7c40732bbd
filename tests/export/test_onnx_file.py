"""ONNX files as generators: each operator against ONNX Runtime, whole files, and bad ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
onnx = pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from pyinv import Inverter, Normal  # noqa: E402
from pyinv.bundle import Bundle  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import ExportError  # noqa: E402
from pyinv.export import export, load_generator, load_onnx, perceptual, split  # noqa: E402
from pyinv.export.capture.onnx_functions import OPERATORS  # noqa: E402
from pyinv.recipes import Recipe, Stage  # noqa: E402
from pyinv.solvers import Adam  # noqa: E402
from support.generators import (  # noqa: E402
    ConditionalGenerator,
    Dcgan,
    PixelShuffleGenerator,
    UpsampleGenerator,
    VaeDecoder,
    seeded,
)

Node = Any


def array(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    random = np.random.default_rng([7, *shape])
    return random.uniform(low, high, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def write(
    path: Path,
    nodes: Sequence[Node],
    inputs: dict[str, Sequence[Any]],
    constants: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    element: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
) -> Path:
    """Write a file with onnx.helper, whose output has whatever type and shape it has."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path)
    return path


def run(path: Path, *inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    (result,) = session.run(None, dict(zip(names, inputs, strict=True)))
    return result


# -- Operators -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One node, whose inputs are x [3, *shape] in [low, high] and constants."""

    kind: str
    shape: tuple[int, ...] = (4, 6, 5)
    constants: tuple[np.ndarray | None, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    low: float = -2.0
    high: float = 2.0
    before: tuple[np.ndarray, ...] = ()  # constants before x

    def __str__(self) -> str:
        said = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.kind}({said})@{self.opset}"


def op(kind: str, *constants: Any, **options: Any) -> Op:
    known = {k: options.pop(k) for k in ("shape", "opset", "low", "high", "before") if k in options}
    return Op(kind, constants=constants, attributes=options, **known)


UNARY = [
    *("Abs", "Atan", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Flatten", "Floor"),
    *("GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"),
    *("LogSoftmax", "LpNormalization", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid"),
    *("Sign", "Sin", "Softmax", "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu"),
    *("Transpose", "Sinh", "Cosh", "Asinh", "Dropout", "Clip"),
]
REDUCED = ["L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare", "LogSumExp"]
POSITIVE = {"low": 0.1, "high": 0.9}
OPS = [
    *(op(kind) for kind in UNARY),
    *(op(kind, **POSITIVE) for kind in ("Log", "Sqrt", "Reciprocal", "Acos", "Asin", "Atanh")),
    op("Acosh", low=1.5, high=3.0),
    *(op(kind, array(4, 1, 5)) for kind in ("Add", "Sub", "Mul", "Max", "Min", "PRelu")),
    *(op(kind, array(5), array(6, 1)) for kind in ("Sum", "Mean")),
    op("Div", array(6, 5, low=1, high=2)),
    op("Mod", array(6, 5, low=1, high=2), fmod=1),
    op("Sub", before=(array(4, 1, 1),)),
    op("Pow", np.float32(2.0)),
    op("Pow", floats(3.0)),
    op("Pow", array(5, low=0.5), **POSITIVE),
    op("Clip", np.float32(-0.5), np.float32(0.25)),
    op("Clip", None, np.float32(0.25)),
    op("Elu", alpha=0.3),
    op("Celu", alpha=0.3),
    op("Selu", alpha=1.2, gamma=0.9),
    op("LeakyRelu", alpha=0.3),
    op("HardSigmoid", alpha=0.3, beta=0.4),
    op("Softmax", axis=1),
    op("Softmax", axis=1, opset=11),
    op("Softmax", opset=11, shape=(7,)),
    op("Gelu", opset=20),
    op("Gelu", approximate="tanh", opset=20),
    op("LpNormalization", p=1, axis=1, **POSITIVE),
    op("Flatten", axis=2),
    op("Flatten", axis=-1),
    # Dense layers.
    op("Gemm", array(7, 5), array(7), transB=1, shape=(5,)),
    op("Gemm", array(5, 7), shape=(5,)),
    op("Gemm", array(5, 7), array(1, 7), alpha=0.5, beta=2.0, shape=(5,)),
    op("MatMul", array(5, 7)),
    op("Einsum", array(4, 6, 2), equation="bchw,chk->bkw"),
    # Convolutions.
    op("Conv", array(6, 4, 3, 3), array(6)),
    op("Conv", array(6, 2, 3, 2), pads=[1, 0, 2, 1], strides=[2, 1], group=2),
    op("Conv", array(6, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    op("Conv", array(6, 4, 2, 2), auto_pad="SAME_LOWER"),
    op("Conv", array(6, 4, 3, 3), auto_pad="VALID"),
    op("Conv", array(6, 4, 3), array(6), pads=[1, 1], shape=(4, 9)),
    op("Conv", array(2, 3, 2, 2, 2), shape=(3, 4, 4, 4)),
    op("ConvTranspose", array(4, 3, 4, 4), array(3), strides=[2, 2], pads=[1, 1, 1, 1]),
    op("ConvTranspose", array(4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    op("ConvTranspose", array(4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    op("ConvTranspose", array(4, 3, 4, 4), strides=[2, 2], auto_pad="SAME_UPPER"),
    op("ConvTranspose", array(4, 3, 3, 3), strides=[2, 2], pads=[0, 1, 1, 0]),
    op("ConvTranspose", array(4, 3, 3, 3), strides=[2, 3], output_padding=[1, 2]),
    op("ConvTranspose", array(4, 3, 3, 3), strides=[2, 2], output_shape=[12, 10]),
    op("ConvTranspose", array(4, 3, 2, 2), group=2, dilations=[2, 1], auto_pad="VALID"),
    op("ConvTranspose", array(4, 3, 4), array(3), strides=[2], pads=[1, 1], shape=(4, 9)),
    # Normalisations.
    op("BatchNormalization", *(array(4, low=0.5, high=1.5) for _ in range(4)), epsilon=1e-3),
    op("InstanceNormalization", array(4), array(4), epsilon=1e-3),
    op("LayerNormalization", array(5), array(5)),
    op("LayerNormalization", array(6, 5), axis=2),
    op("GroupNormalization", array(2), array(2), num_groups=2),
    op("GroupNormalization", array(4), array(4), num_groups=2, opset=21),
    op("RMSNormalization", array(5), opset=23),
    op("Swish", alpha=1.5, opset=24),
    # Poolings.
    op("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    op("MaxPool", kernel_shape=[3, 3], pads=[0, 1, 1, 1]),
    op("AveragePool", kernel_shape=[2, 3], strides=[2, 1], pads=[1, 1, 1, 1]),
    op("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    op("AveragePool", kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
    # Reductions.
    *(op(f"Reduce{kind}", ints(1, -1), keepdims=0) for kind in REDUCED),
    op("ReduceLogSum", ints(1), **POSITIVE),
    op("ReduceMean", axes=[2, 3], opset=11),
    op("ReduceSum", ints(2), opset=13),
    op("ReduceSum", noop_with_empty_axes=1),
    op("ReduceMax", keepdims=1),
    op("CumSum", np.int64(2)),
    # Shapes.
    op("Reshape", ints(0, -1, 3)),
    op("Reshape", ints(-1, 24, 5)),
    op("Transpose", perm=[0, 2, 3, 1]),
    op("Unsqueeze", ints(1, -1)),
    op("Unsqueeze", axes=[2], opset=11),
    op("Squeeze", ints(2), shape=(4, 1, 5)),
    op("Squeeze", axes=[1], opset=11, shape=(1, 5)),
    op("Squeeze", shape=(1, 5)),
    op("Concat", array(3, 4, 2, 5), axis=2),
    op("Slice", ints(1, 0), ints(5, 2**63 - 1), ints(2, 3), ints(2, 1)),
    op("Slice", ints(-1), ints(-(2**63) + 1), ints(3), ints(-1)),
    op("Slice", ints(-2), ints(0), ints(2), ints(-2)),
    op("Slice", ints(0, 0, 1, -3), ints(9, 9, 9, -1)),
    op("Gather", ints(2, 0, -1), axis=1),
    op("Gather", np.array(3), axis=2),
    op("Gather", np.array([[0, 1], [2, 0]]), axis=3),
    op("Expand", ints(2, 1, 4, 6, 5)),
    op("Expand", ints(4, 6, 5), shape=(1, 6, 5)),
    op("Tile", ints(1, 2, 1, 3)),
    op("Trilu", np.int64(1)),
    op("Trilu", upper=0),
    op("Pad", ints(0, 1, 2, 0, 0, 0, 1, 3)),
    op("Pad", ints(0, 0, 1, 2, 0, 0, 0, 1), np.float32(0.5)),
    op("Pad", ints(1, 2), None, ints(2)),
    op("Pad", ints(0, 0, -1, 0, 0, 0, 0, -2), opset=13),
    op("Pad", ints(0, 0, 1, 2, 0, 0, 2, 1), mode="reflect"),
    op("Pad", ints(0, 1, 2, 0, 0, 2, 1, 0), mode="reflect"),
    op("Pad", ints(0, 0, 0, 2, 0, 0, 0, 1), mode="edge"),
    op("Pad", ints(0, 0, 1, 2, 0, 0, 2, 1), mode="wrap", opset=19),
    op("DepthToSpace", blocksize=2),
    op("DepthToSpace", blocksize=2, mode="CRD", shape=(12, 3, 2)),
    op("DepthToSpace", blocksize=2, shape=(12, 3, 2)),
    op("SpaceToDepth", blocksize=2, shape=(3, 4, 6)),
    # Resize.
    *(
        op("Resize", None, floats(1, 1, 2, 3), mode=mode, coordinate_transformation_mode=transform)
        for mode in ("nearest", "linear", "cubic")
        for transform in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    *(
        op("Resize", None, None, ints(3, 4, 7, 11), mode="nearest", nearest_mode=rounding)
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    op("Resize", None, None, ints(3, 4, 9, 10), mode="linear"),
    op("Resize", None, floats(1, 1, 1.5, 0.6), mode="linear"),
    op("Resize", None, floats(1, 2, 2, 1), mode="nearest", nearest_mode="floor"),
    op("Resize", None, floats(2, 2), axes=[2, 3], mode="linear"),
    op("Resize", None, floats(1, 1, 2, 2), mode="cubic", cubic_coeff_a=-0.5),
    op(
        *("Resize", floats(), floats(1, 1, 2, 2)),
        coordinate_transformation_mode="tf_half_pixel_for_nn",
        nearest_mode="floor",
        opset=11,
    ),
]


@pytest.mark.parametrize("case", OPS, ids=str)
def test_an_operator_computes_what_onnx_runtime_does(case: Op, tmp_path: Path) -> None:
    constants = {f"c{i}": value for i, value in enumerate(case.constants) if value is not None}
    first = {f"b{i}": value for i, value in enumerate(case.before)}
    names = ["" if value is None else f"c{i}" for i, value in enumerate(case.constants)]
    node = helper.make_node(case.kind, [*first, "x", *names], ["y"], **case.attributes)
    file = write(
        tmp_path / "x.onnx",
        [node],
        {"x": ["N", *case.shape]},
        {**first, **constants},
        opset=case.opset,
    )
    x = array(3, *case.shape, low=case.low, high=case.high)
    got = load_onnx(file, what="encoder")(torch.from_numpy(x))
    expected = run(file, x)
    assert tuple(got.shape) == expected.shape
    assert np.allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_flags_compute_what_onnx_runtime_does(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["f1"]),
        helper.make_node("LessOrEqual", ["x", "one"], ["f2"]),
        helper.make_node("GreaterOrEqual", ["x", "one"], ["f3"]),
        helper.make_node("Less", ["x", "low"], ["f4"]),
        helper.make_node("Equal", ["x", "x"], ["f5"]),
        helper.make_node("And", ["f1", "f2"], ["inside"]),
        helper.make_node("Or", ["f3", "f4"], ["outside"]),
        helper.make_node("Xor", ["inside", "f5"], ["other"]),
        helper.make_node("IsNaN", ["x"], ["bad"]),
        helper.make_node("Not", ["bad"], ["good"]),
        helper.make_node("And", ["other", "good"], ["both"]),
        helper.make_node("Split", ["x"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Size", ["left"], ["count"]),
        helper.make_node("CastLike", ["count", "x"], ["amount"]),
        helper.make_node("CastLike", ["both", "x"], ["number"]),
        helper.make_node("Where", ["outside", "amount", "number"], ["w"]),
        helper.make_node("Concat", ["w", "right", "left"], ["y"], axis=1),
    ]
    constants = {"zero": np.float32(0), "one": np.float32(1), "low": np.float32(-1)}
    constants = {name: np.array(value) for name, value in constants.items()}
    file = write(tmp_path / "x.onnx", nodes, {"x": ["N", 5]}, constants)
    x = array(3, 5, low=-2, high=2)
    got = load_onnx(file, what="encoder")(torch.from_numpy(x)).numpy()
    assert np.array_equal(got, run(file, x))


def test_every_operator_has_a_case() -> None:
    flags = {"And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not"}
    sizes = {"Cast", "CastLike", "ConstantOfShape", "Shape", "Size", "Split"}
    assert set(OPERATORS) == {case.kind for case in OPS} | flags | sizes | {"Or", "Where", "Xor"}


# -- Whole files ---------------------------------------------------------------------------------


class Keras(nn.Module):
    """A generator as Keras users write it, in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(12, 128)
        self.up = nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.norm = nn.BatchNorm2d(6, eps=1e-3)
        self.again = nn.ConvTranspose2d(6, 5, 4, 2, 1)
        self.last = nn.Conv2d(5, 3, 3)

    def forward(self, latent: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.dense(latent), 0.2)
        x = x.view(-1, 4, 4, 8).permute(0, 3, 1, 2)
        x = nn.functional.leaky_relu(self.norm(self.up(x)), 0.2)
        x = nn.functional.elu(self.again(x))
        return torch.tanh(self.last(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")))


def keras_file(generator: Keras, path: Path, batch: Any) -> Path:
    """Write the generator as tf2onnx does: channels last, MatMul and Add, padding by auto_pad."""
    weights = {name: value.numpy() for name, value in generator.state_dict().items()}
    constants = {
        "kernel": weights["dense.weight"].T.copy(),
        "bias": weights["dense.bias"],
        "shape": ints(1, 4, 4, 8),
        "from": ints(0),
        "to": ints(1),
        "rest": np.array([4, 4, 8], np.int32),
        "pads": ints(0, 1, 1, 0, 0, 1, 1, 0),
    }
    for name in ("up", "again", "last"):
        constants |= {f"{name}.w": weights[f"{name}.weight"], f"{name}.b": weights[f"{name}.bias"]}
    norm = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    constants |= {name: weights[name] for name in norm}
    up = {"strides": [2, 2], "auto_pad": "SAME_UPPER", "kernel_shape": [4, 4]}
    first, last = [0, 3, 1, 2], [0, 2, 3, 1]
    nodes = [
        helper.make_node("MatMul", ["z", "kernel"], ["m"]),
        helper.make_node("Add", ["m", "bias"], ["a"]),
        helper.make_node("LeakyRelu", ["a"], ["l"], alpha=0.2),
        helper.make_node("Shape", ["z"], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["sizes32"], to=TensorProto.INT32),
        helper.make_node("Slice", ["sizes32", "from", "to"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["computed32"], axis=0),
        helper.make_node("Cast", ["computed32"], ["computed"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["l", "shape" if batch == 1 else "computed"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=first),
        helper.make_node("ConvTranspose", ["t", "up.w", "up.b"], ["u"], **up),
        helper.make_node("BatchNormalization", ["u", *norm], ["n"], epsilon=1e-3),
        helper.make_node("LeakyRelu", ["n"], ["l2"], alpha=0.2),
        helper.make_node("ConvTranspose", ["l2", "again.w", "again.b"], ["v"], **up),
        helper.make_node("Elu", ["v"], ["e"]),
        helper.make_node("Transpose", ["e"], ["e_last"], perm=last),
        helper.make_node("Pad", ["e_last", "pads"], ["p_last"], mode="reflect"),
        helper.make_node("Transpose", ["p_last"], ["p"], perm=first),
        helper.make_node("Conv", ["p", "last.w", "last.b"], ["c"], auto_pad="VALID"),
        helper.make_node("Transpose", ["c"], ["c_last"], perm=last),
        helper.make_node("Tanh", ["c_last"], ["y"]),
    ]
    return write(path, nodes, {"z": [batch, 12]}, constants, opset=13)


def torch_file(
    generator: nn.Module,
    path: Path,
    size: int,
    *,
    dynamo: bool,
    batch: bool = True,
    opset: int = 18,
) -> Path:
    latent = torch.randn(2 if batch else 1, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dynamic = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if batch else {}
        else:
            axes = {"latent": {0: "batch"}, "image": {0: "batch"}}
            dynamic = {"dynamic_axes": axes} if batch else {}
        torch.onnx.export(
            generator,
            (latent,),
            path,
            input_names=["latent"],
            output_names=["image"],
            dynamo=dynamo,
            opset_version=opset,
            verbose=False,
            **dynamic,
        )
    return path


class Sizes(nn.Module):
    """Shape arithmetic, attention, and other functions between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(12, 8 * 16)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.groups = nn.GroupNorm(2, 8)
        self.table = nn.Parameter(0.1 * torch.randn(16, 8))
        self.last = nn.Conv2d(8, 4, 3, padding=1)
        self.slope = nn.PReLU(8)

    def forward(self, latent: Tensor) -> Tensor:
        batch = latent.shape[0]
        x = self.dense(latent).view(batch, 16, 8) + self.table
        q, k, v = self.qkv(self.norm(x)).view(batch, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) / k.shape[-1] ** 0.5, -1)
        x = x + nn.functional.gelu((weights @ v).transpose(1, 2).reshape(batch, -1, 8))
        edge = int(x.shape[1] ** 0.5)
        x = x.transpose(1, 2).reshape(batch, x.shape[2], edge, edge)
        x = self.slope(self.groups(x)) * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        x = torch.cat([x[:, ::2], x[:, 1::2].flip(3), torch.ones(batch, 0, edge, edge)], 1)
        height, width = x.shape[2:]
        x = nn.functional.interpolate(x, size=(2 * height, 2 * width), mode="bilinear")
        x = nn.functional.pixel_shuffle(self.last(x), 2)
        return torch.sigmoid(torch.where(x > 0, x, 0.3 * x).clamp(-3, 3)) * 2 - 1


@dataclass(frozen=True)
class File:
    make: Callable[[], nn.Module]
    size: int
    write: Callable[[Any, Path, int], Path]
    losses: tuple[str, ...] = ("mse",)


def by_torch(dynamo: bool, **options: Any) -> Callable[[Any, Path, int], Path]:
    return lambda module, path, size: torch_file(module, path, size, dynamo=dynamo, **options)


BOTH_LOSSES = ("mse", "whitened")
FILES: dict[str, File] = {
    "dynamo": File(lambda: Dcgan(latent=10, width=2), 10, by_torch(True), BOTH_LOSSES),
    "dynamo of one": File(lambda: PixelShuffleGenerator(width=6), 32, by_torch(True, batch=False)),
    "dynamo of sizes": File(Sizes, 12, by_torch(True, opset=20)),
    "legacy": File(lambda: UpsampleGenerator(latent=12, width=4), 12, by_torch(False, opset=11)),
    "legacy of sizes": File(Sizes, 12, by_torch(False, opset=14)),
    "legacy of one": File(lambda: VaeDecoder(width=4), 16, by_torch(False, batch=False, opset=13)),
    "keras": File(Keras, 12, lambda module, path, size: keras_file(module, path, "N"), BOTH_LOSSES),
    "keras of one": File(Keras, 12, lambda module, path, size: keras_file(module, path, 1)),
}
SLOW = ("dynamo of one", "legacy of sizes")
BOTH = ("onnx", "torchscript")
FEW_STEPS = Recipe("adam", (Stage(Adam(0.05), max_steps=10),))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FILES],
)
def test_a_file_exports_and_inverts_like_its_module(name: str, tmp_path: Path) -> None:
    case = FILES[name]
    module = seeded(case.make())
    file = case.write(module, tmp_path / "faces.onnx", case.size)
    options = {
        "latent_shape": case.size,
        "prior": Normal(),
        "losses": case.losses,
        "normal_equations": "whitened" in case.losses,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the generator")  # an untrained one's range
        made = export(load_generator(str(file)), tmp_path / "file", runtimes=BOTH, **options)
        right = export(module, tmp_path / "module", **options)
    assert Bundle.open(made).manifest.name == "faces"
    expected = Inverter(right)
    latents = expected.sample(5, seed=3)
    images = expected.generate(latents)
    with torch.no_grad():
        assert np.allclose(module(torch.from_numpy(latents)).numpy(), images, atol=1e-4)
    wanted = expected.invert(images, recipe=FEW_STEPS, seed=1)
    for runtime in BOTH:
        inverter = Inverter(made, runtime=runtime)
        assert np.allclose(inverter.generate(latents), images, atol=1e-4)
        got = inverter.invert(images, recipe=FEW_STEPS, seed=1)
        assert np.allclose(got.latents, wanted.latents, atol=1e-3)


def test_a_condition_is_the_second_input(tmp_path: Path) -> None:
    module = seeded(ConditionalGenerator())
    file = tmp_path / "x.onnx"
    given = (torch.randn(2, 10), torch.rand(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"z": {0: "batch"}, "c": {0: "batch"}}
        torch.onnx.export(
            module, given, file, input_names=["z", "c"], dynamic_axes=axes, dynamo=False
        )
        with pytest.raises(ExportError, match=r"takes z, c, and its latent is z: say what c is"):
            export(load_onnx(file), tmp_path / "b", latent_shape=10, prior=Normal())
        path = export(
            load_onnx(file),
            tmp_path / "b",
            latent_shape=10,
            prior=Normal(),
            condition_shape=4,
            **FIRST_ORDER,
        )
    latents, conditions = (value.numpy() for value in given)
    images = Inverter(path).generate(latents, conditions=conditions)
    with torch.no_grad():
        assert np.allclose(images, module(*given).numpy(), atol=1e-5)


def test_operators_that_torch_has_in_another_form(tmp_path: Path) -> None:
    """Traced, for any batch, also where an axis is resized by a matrix or a list of indices."""
    asymmetric = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
    nodes = [
        helper.make_node("MatMul", ["z", "w"], ["x"]),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "zeros"], ["batches"]),
        helper.make_node("Concat", ["batches", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Resize", ["r", "", "scales"], ["up"], **asymmetric),
        helper.make_node("Resize", ["up", "", "", "edges"], ["odd"], axes=[2, 3]),
        helper.make_node("Gather", ["odd", "order"], ["g"], axis=2),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros_like"]),
        helper.make_node("Concat", ["r", "zeros_like"], ["padded"], axis=1),
        helper.make_node("ReduceSum", ["padded", "axes"], ["mean"]),
        helper.make_node("Cast", ["sizes"], ["fs"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["fs", "one"], ["f"]),
        helper.make_node("Sqrt", ["f"], ["root"]),
        helper.make_node("Div", ["mean", "root"], ["scaled"]),
        helper.make_node("Abs", ["g"], ["positive"]),
        helper.make_node("Pow", ["positive", "powers"], ["p"]),
        helper.make_node("Less", ["g", "scaled"], ["flag"]),
        helper.make_node("Where", ["flag", "p", "scaled"], ["s"]),
        helper.make_node("Split", ["s", "parts"], ["left", "right"], axis=3),
        helper.make_node("Swap", ["left", "right"], ["swapped"], domain="local"),
        helper.make_node("Sigmoid", ["swapped"], ["y"]),
    ]
    constants = {
        "w": array(12, 32),
        "zero": np.array(0),
        "one": np.array(1),
        "zeros": ints(0),
        "rest": ints(2, 4, 4),
        "scales": floats(1, 1, 2, 2),
        "edges": ints(7, 6),
        "order": ints(6, 0, 3, -2, 1),
        "powers": floats(1, 2, 3, 1, 2, 3),
        "axes": ints(1, 2, 3),
        "parts": ints(2, 4),
    }
    file = write(tmp_path / "x.onnx", nodes, {"z": ["N", 12]}, constants)
    model = onnx.load(file)
    model.opset_import.append(helper.make_opsetid("local", 1))
    join = helper.make_node("Concat", ["b", "a"], ["c"], axis=3)
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("local", "Swap", ["a", "b"], ["c"], [join], opsets))
    onnx.save(model, file)
    options = {"latent_shape": 12, "prior": Normal(), "value_range": (0, 1), "losses": "mse"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the generator ends in")
        path = export(load_onnx(file), tmp_path / "b", runtimes=BOTH, **options)
    latents = Inverter(path).sample(5, seed=1)
    for runtime in BOTH:
        images = Inverter(path, runtime=runtime).generate(latents)
        assert np.allclose(images, run(file, latents), atol=1e-5)


def test_weights_in_another_file(tmp_path: Path) -> None:
    file = keras_file(seeded(Keras()), tmp_path / "x.onnx", "N")
    whole = load_onnx(file)
    onnx.save(
        onnx.load(file), file, save_as_external_data=True, location="x.data", size_threshold=0
    )
    latent = torch.randn(3, 12)
    assert torch.equal(load_onnx(file)(latent), whole(latent))
    (tmp_path / "x.data").unlink()
    with pytest.raises(
        ExportError, match=r"stores its weights in x\.data, which is missing: put it"
    ):
        load_onnx(file)


def test_the_command_line_takes_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keras_file(seeded(Keras()), tmp_path / "faces.onnx", 1)
    arguments = ["--latent-shape", "12", "--prior", "normal", "--no-normal-equations"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the generator ends in")
        assert main(["export", "faces.onnx", "-o", "b", "--loss", "mse", *arguments]) == 0
    assert "image [3, 16, 16]" in capsys.readouterr().err
    assert main(["export", "absent.onnx", "-o", "c", *arguments]) != 0
    error = capsys.readouterr().err
    assert "no file absent.onnx: give an ONNX file" in error
    assert "Traceback" not in error


def test_batch_statistics(tmp_path: Path) -> None:
    module = load_onnx(keras_file(seeded(Keras()), tmp_path / "x.onnx", "N"))
    latent = torch.randn(6, 12)
    made = export(
        module,
        tmp_path / "b",
        latent_shape=12,
        prior=Normal(),
        batch_norm="batch",
        **FIRST_ORDER,
    )
    own = Keras()
    own.load_state_dict(seeded(Keras()).state_dict())
    own.norm.train()
    with torch.no_grad():
        expected = own(latent).numpy()
    assert np.allclose(Inverter(made).generate(latent.numpy()), expected, atol=1e-5)


def encoder_file(path: Path, shape: Sequence[int]) -> Path:
    """Images [1, 1, 4, 4] -> [1, 12], through a reshape to the given shape."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["t"], perm=[1, 0, 2, 3]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    constants = {"shape": ints(*shape), "w": array(16, 12)}
    return write(path, nodes, {"image": [1, 1, 4, 4]}, constants)


def test_files_of_encoders_and_feature_networks(tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "x.onnx", (1, 16))
    encoder = load_onnx(file, what="encoder")
    generator = seeded(nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4))))
    losses = {"losses": ("mse", perceptual(encoder)), "normal_equations": False}
    options = {"latent_shape": 12, "prior": Normal(), **losses}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the generator ends in")
        path = export(generator, tmp_path / "b", encoder=encoder, **options)
    images = Inverter(path).generate(array(3, 12))
    expected = images.reshape(3, 16) @ array(16, 12)
    assert np.allclose(Inverter(path).encode(images), expected, atol=1e-5)


def test_layers_of_a_file_are_refused_with_a_way_out(tmp_path: Path) -> None:
    module = load_onnx(keras_file(seeded(Keras()), tmp_path / "x.onnx", "N"))
    with pytest.raises(ExportError, match=r"an ONNX generator has no layers.*read_generator"):
        split(module, ["up"])


def test_a_file_that_reads_otherwise_than_it_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = keras_file(seeded(Keras()), tmp_path / "x.onnx", 1)
    monkeypatch.setitem(OPERATORS, "Tanh", lambda op, x: 0.9 * torch.tanh(x))
    with pytest.raises(ExportError, match="computes something else than its graph says"):
        export(load_onnx(file), tmp_path / "b", latent_shape=12, prior=Normal(), **FIRST_ORDER)
    assert not (tmp_path / "b").exists()


# -- Bad files -----------------------------------------------------------------------------------


def dense(*nodes: Node, **options: Any) -> Callable[[Path], Path]:
    """A file with z [N, 12] -> x [N, 16] -> the given nodes -> y."""
    made = helper.make_node("MatMul", ["z", "w"], ["x"])
    constants = {"w": array(12, 16), **options.pop("constants", {})}
    inputs = options.pop("inputs", {"z": ["N", 12]})
    return lambda path: write(path, [made, *nodes], inputs, constants, **options)


def one_graph() -> Any:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "branch", [], [output])


def reshape(*sizes: int, batch: Any = "N") -> Callable[[Path], Path]:
    return dense(
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
        constants={"shape": ints(*sizes)},
        inputs={"z": [batch, 12]},
    )


def half(path: Path) -> Path:
    node = helper.make_node("MatMul", ["z", "w"], ["y"])
    weights = {"w": array(12, 16).astype(np.float16)}
    return write(path, [node], {"z": ["N", 12]}, weights, element=TensorProto.FLOAT16)


def half_inside(path: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["z", "v"], ["y"]),
    ]
    return write(path, nodes, {"z": ["N", 12]}, {"w": array(12, 16).astype(np.float16)})


def not_onnx(path: Path) -> Path:
    path.write_text("not a model")
    return path


identity = helper.make_node("Identity", ["x"], ["y"])
branch = helper.make_node("If", ["flag"], ["y"], then_branch=one_graph(), else_branch=one_graph())
sideways = helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0])
BAD = {
    "no file": (lambda path: path, "no file .*x.onnx: give an ONNX file"),
    "text": (not_onnx, "x.onnx is not an ONNX file"),
    "integers": (
        dense(identity, element=TensorProto.INT64),
        r"its input z \[B, 12\] is int64, and float32 would be given: the latent is float32; desc",
    ),
    "half": (half, r"its input z \[B, 12\] is float16: write the file in float32"),
    "half inside": (half_inside, r"has float16 weights \(w\): write the file in float32"),
    "three inputs": (
        dense(identity, inputs={"z": ["N", 12], "a": ["N", 2], "b": ["N", 3]}),
        r"the generator takes z, a, b, and its latent is z: say what a is, such as inputs=",
    ),
    "two inputs": (
        dense(identity, inputs={"z": ["N", 12], "c": ["N", 2]}),
        r"the generator takes z, c, and its latent is z: say what c is, such as inputs=",
    ),
    "two outputs": (dense(identity, outputs=("y", "x")), r"has 2 outputs \(y, x\): write one that"),
    "batch of 16": (
        dense(identity, inputs={"z": [16, 12]}),
        "is for a batch of 16: write the file",
    ),
    "another latent": (
        dense(identity, inputs={"z": ["N", 12, 1, 1]}),
        r"takes z \[B, 12, 1, 1\], got \[B, 12\]: check latent_shape and inputs",
    ),
    "old": (dense(identity, opset=9), "has opset 9: convert it to opset 11 or later"),
    "unknown": (
        dense(helper.make_node("NonZero", ["x"], ["y"])),
        "uses NonZero, which cannot be read: export the torch.nn.Module",
    ),
    "another domain": (
        dense(helper.make_node("FusedGemm", ["x"], ["y"], domain="com.microsoft")),
        "uses com.microsoft.FusedGemm, which cannot be read",
    ),
    "control flow": (
        dense(branch, constants={"flag": np.array(True)}),
        "uses If, and control flow cannot be exported",
    ),
    "noise": (
        dense(helper.make_node("RandomNormalLike", ["x"], ["y"])),
        "draws random numbers with RandomNormalLike",
    ),
    "settings": (
        dense(
            helper.make_node("CumSum", ["x", "axis"], ["y"], reverse=1), constants={"axis": ints(1)}
        ),
        "has CumSum with exclusive or reverse, which cannot be read",
    ),
    "batch lost": (
        reshape(4, 1, 2, 2, batch=1),
        r"has a Reshape to \[4, 1, 2, 2\], which fits one",
    ),
    "batch mixed": (
        dense(
            sideways,
            helper.make_node("Reshape", ["t", "shape"], ["y"]),
            constants={"shape": ints(1, 1, 4, 4)},
            inputs={"z": [1, 12]},
        ),
        "computes something else than its graph says: it is written for a batch of one",
    ),
    "batch squeezed": (
        dense(
            helper.make_node("Squeeze", ["x", "axis"], ["y"]),
            constants={"axis": ints(0)},
            inputs={"z": [1, 12]},
        ),
        "has a Squeeze of the batch axis: write the file with a dynamic batch axis",
    ),
}
FIRST_ORDER: dict[str, Any] = {"losses": "mse", "normal_equations": False}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore:the generator's values lie in")
def test_a_bad_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    file = make(tmp_path / "x.onnx")
    with pytest.raises(ExportError, match=message) as refused:
        export(load_onnx(file), tmp_path / "b", latent_shape=12, prior=Normal(), **FIRST_ORDER)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "b").exists()


def test_a_reshape_of_one_latent_in_a_file_of_any_batch(tmp_path: Path) -> None:
    """As torch's older exporter writes where the module reads a size as a number."""
    module = load_onnx(reshape(1, 1, 4, 4)(tmp_path / "x.onnx"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the generator's values lie in")
        path = export(module, tmp_path / "b", latent_shape=12, prior=Normal(), **FIRST_ORDER)
    latents = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    expected = (latents @ array(12, 16)).reshape(3, 1, 4, 4)
    assert np.allclose(Inverter(path).generate(latents), expected, atol=1e-5)
