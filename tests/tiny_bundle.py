"""A bundle small enough to write in a test, made without torch: a generator of two dense layers.

    hidden = tanh(z W1 + b1),  image = tanh(hidden W2 + b2 (+ condition Wc)),  [B, 1, 8, 8]

Its objectives hold the gradient as plain forward nodes, as every exported bundle does.
``TinyGenerator`` is the same in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from pyinv.bundle import FileRecord, Function, Manifest
from pyinv.priors import Prior, Uniform

LATENT, HIDDEN, HEIGHT, WIDTH = 6, 16, 8, 8
WEIGHTS_FILE = "weights.bin"


@dataclass(frozen=True)
class TinyGenerator:
    """The generator's weights, drawn from a seed."""

    weights: dict[str, NDArray[np.float32]]
    image_shape: tuple[int, int, int]

    @classmethod
    def make(cls, *, channels: int = 1, condition_size: int = 0, seed: int = 7) -> TinyGenerator:
        random = np.random.default_rng(seed)
        pixels = channels * HEIGHT * WIDTH

        def matrix(rows: int, columns: int) -> NDArray[np.float32]:
            return random.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)

        weights = {
            "W1": matrix(LATENT, HIDDEN),
            "b1": matrix(HIDDEN, 1)[:, 0],
            "W2": matrix(HIDDEN, pixels),
            "b2": matrix(pixels, 1)[:, 0],
        }
        if condition_size:
            weights["Wc"] = matrix(condition_size, pixels)
        return cls(weights, (channels, HEIGHT, WIDTH))

    def __call__(self, latent: Any, condition: Any = None) -> NDArray[Any]:
        """Return the images of latents, in the latents' precision."""
        w = self.weights
        latent = np.asarray(latent).reshape(len(latent), LATENT)
        image = np.tanh(latent @ w["W1"] + w["b1"]) @ w["W2"] + w["b2"]
        if condition is not None:
            image = image + condition @ w["Wc"]
        return np.tanh(image).reshape(-1, *self.image_shape)


def write_tiny_bundle(
    path: Path,
    *,
    prior: Prior | None = None,
    losses: tuple[str, ...] = ("mse",),
    latent_shape: tuple[int, ...] = (LATENT,),
    channels: int = 1,
    condition_size: int = 0,
    batch_norm: str = "eval",
) -> TinyGenerator:
    """Write the bundle into ``path`` and return its generator."""
    path.mkdir(parents=True, exist_ok=True)
    generator = TinyGenerator.make(channels=channels, condition_size=condition_size)
    _save(_model(generator, None), path / "forward.onnx")
    functions = [Function("forward", "onnx", "forward.onnx")]
    for loss in losses:
        file = f"objective_{loss}.onnx"
        _save(_model(generator, loss), path / file)
        functions.append(Function("objective", "onnx", file, loss))
    (path / WEIGHTS_FILE).write_bytes(b"".join(w.tobytes() for w in generator.weights.values()))
    files = [*(function.file for function in functions), WEIGHTS_FILE]
    Manifest(
        latent_shape=latent_shape,
        image_shape=generator.image_shape,
        value_range=(-1.0, 1.0),
        prior=prior or Uniform(),
        functions=tuple(functions),
        files={file: FileRecord.of(path / file) for file in files},
        batch_norm=batch_norm,
        condition_shape=(condition_size,) if condition_size else None,
        name="tiny",
        exporter={"pyinv": "0.1.0"},
    ).write(path)
    return generator


def _model(generator: TinyGenerator, loss: str | None) -> onnx.ModelProto:
    """Return the forward graph, or the objective of a loss."""
    shape = generator.image_shape
    pixels = int(np.prod(shape))
    condition = "Wc" in generator.weights
    constants: dict[str, Any] = {}
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs.split(), [output], **attributes))

    def constant(name: str, value: Any) -> None:
        constants[name] = np.asarray(value, dtype=np.float32)

    node("Gemm", "latent W1 b1", "a")
    node("Tanh", "a", "h")
    node("Gemm", "h W2 b2", "c")
    if condition:
        node("MatMul", "condition Wc", "shift")
        node("Add", "c shift", "pre")
    node("Tanh", "pre" if condition else "c", "x")
    if loss is None:
        constants["shape"] = np.array([-1, *shape])
        node("Reshape", "x shape", "image")
        outputs = [_value("image", *shape)]
    else:
        constants["shape"] = np.array([-1, pixels])
        node("Reshape", "image shape", "t")
        node("Sub", "x t", "r")
        constant("one", 1)
        if loss == "mse":
            constant("scale", 2 / pixels)
            node("Mul", "r r", "each")
            node("Mul", "r scale", "dx")
        elif loss == "l1":
            constant("scale", 1 / pixels)
            node("Abs", "r", "each")
            node("Sign", "r", "sign")
            node("Mul", "sign scale", "dx")
        else:  # bce, on values mapped to [0, 1]
            constant("half", 0.5)
            constant("tiny", 1e-6)
            constant("minus", -1)
            constant("scale", 0.5 / pixels)
            for value, mapped in (("x", "y"), ("t", "s")):
                node("Add", f"{value} one", f"{mapped}2")
                node("Mul", f"{mapped}2 half", mapped)
                node("Sub", f"one {mapped}", f"{mapped}n")
            for value in ("y", "yn"):
                node("Max", f"{value} tiny", f"{value}_safe")
                node("Log", f"{value}_safe", f"log_{value}")
            node("Mul", "s log_y", "left")
            node("Mul", "sn log_yn", "right")
            node("Add", "left right", "negated")
            node("Mul", "negated minus", "each")
            node("Sub", "y s", "difference")
            node("Mul", "y_safe yn_safe", "spread")
            node("Div", "difference spread", "dy")
            node("Mul", "dy scale", "dx")
        node("ReduceMean", "each", "loss", axes=[1], keepdims=0)
        for value, derivative, slope in (("x", "dx", "dc"), ("h", "dh", "da")):
            node("Mul", f"{value} {value}", f"{value}_squared")
            node("Sub", f"one {value}_squared", f"{value}_slope")
            node("Mul", f"{derivative} {value}_slope", slope)
            if value == "x":
                node("Gemm", "dc W2", "dh", transB=1)
        node("Gemm", "da W1", "gradient", transB=1)
        outputs = [_value("loss"), _value("gradient", LATENT)]
    inputs = [_value("latent", LATENT)]
    if loss is not None:
        inputs.append(_value("image", *shape))
    if condition:
        inputs.append(_value("condition", len(generator.weights["Wc"])))
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    offset = 0
    for name, weight in generator.weights.items():
        tensor = numpy_helper.from_array(weight, name)
        set_external_data(tensor, WEIGHTS_FILE, offset=offset, length=weight.nbytes)
        tensor.ClearField("raw_data")
        tensors.append(tensor)
        offset += weight.nbytes
    graph = helper.make_graph(nodes, loss or "forward", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _value(name: str, *sizes: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *sizes])


def _save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())
