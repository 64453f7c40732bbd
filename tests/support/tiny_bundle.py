"""A bundle small enough to write in a test, without torch: a generator of two dense layers.

    hidden = tanh(z W1 + b1),  image = tanh(hidden W2 + b2 (+ condition Wc)),  [B, 1, 8, 8]

Optionally it has one layer, hidden = z, and no last tanh. Its objectives compute the gradient with
plain forward nodes, like every exported bundle, and its normal equations the whole Jacobian.
``TinyGenerator`` is the generator in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from pyinv.bundle import FileRecord, Function, Manifest
from pyinv.conditions import Condition
from pyinv.priors import Prior, Uniform
from support.onnx_operators import operators_of

LATENT, HIDDEN, HEIGHT, WIDTH = 6, 16, 8, 8
WEIGHTS_FILE = "weights.bin"
LEAST_SQUARES = ("mse", "whitened")
SATURATION = 1e-5  # whitened pixels closer than this to an end do not count


@dataclass(frozen=True)
class TinyGenerator:
    """The generator's weights, drawn from a seed, and whether it ends in a tanh."""

    weights: dict[str, NDArray[np.float32]]
    image_shape: tuple[int, ...]
    tanh: bool = True

    @classmethod
    def make(
        cls,
        *,
        channels: int = 1,
        image_shape: tuple[int, ...] | None = None,
        condition_size: int = 0,
        seed: int = 7,
        layers: int = 2,
        tanh: bool = True,
    ) -> TinyGenerator:
        random = np.random.default_rng(seed)
        shape = (channels, HEIGHT, WIDTH) if image_shape is None else image_shape
        pixels = int(np.prod(shape))

        def matrix(rows: int, columns: int) -> NDArray[np.float32]:
            return random.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)

        weights = {}
        hidden = LATENT
        if layers == 2:
            hidden = HIDDEN
            weights |= {"W1": matrix(LATENT, HIDDEN), "b1": matrix(HIDDEN, 1)[:, 0]}
        weights |= {"W2": matrix(hidden, pixels), "b2": matrix(pixels, 1)[:, 0]}
        if condition_size:
            weights["Wc"] = matrix(condition_size, pixels)
        return cls(weights, shape, tanh)

    def __call__(self, latent: Any, condition: Any = None) -> NDArray[Any]:
        """Return the images of latents, in the latents' precision."""
        w = self.weights
        hidden = np.asarray(latent).reshape(len(latent), LATENT)
        if "W1" in w:
            hidden = np.tanh(hidden @ w["W1"] + w["b1"])
        image = hidden @ w["W2"] + w["b2"]
        if condition is not None:
            image = image + condition @ w["Wc"]
        return (np.tanh(image) if self.tanh else image).reshape(-1, *self.image_shape)

    def jacobian(self, latent: Any) -> NDArray[np.float64]:
        """Return d image / d latent [N, P, d] in double, for a generator without a condition."""
        w = {name: weight.astype(np.float64) for name, weight in self.weights.items()}
        latent = np.asarray(latent, dtype=np.float64).reshape(len(latent), LATENT)
        tangents = np.broadcast_to(np.eye(LATENT), (len(latent), LATENT, LATENT))
        if "W1" in w:
            hidden = np.tanh(latent @ w["W1"] + w["b1"])
            tangents = w["W1"] * (1 - hidden**2)[:, None]
        tangents = tangents @ w["W2"]
        if self.tanh:
            tangents = tangents * (1 - self(latent).reshape(len(latent), 1, -1) ** 2)
        return tangents.transpose(0, 2, 1)


def write_tiny_bundle(
    path: Path,
    *,
    prior: Prior | None = None,
    losses: tuple[str, ...] = ("mse",),
    normal_equations: tuple[str, ...] = (),
    latent_shape: tuple[int, ...] = (LATENT,),
    value_range: tuple[float, float] = (-1.0, 1.0),
    batch_norm: str = "eval",
    generator: TinyGenerator | None = None,
    condition_size: int = 0,
    **made: Any,
) -> TinyGenerator:
    """Write the bundle to ``path`` and return its generator, which ``made`` describes."""
    path.mkdir(parents=True, exist_ok=True)
    if generator is None:
        generator = TinyGenerator.make(condition_size=condition_size, **made)
    functions = [Function("forward", "onnx", "forward.onnx")]
    functions += [Function("objective", "onnx", f"objective_{loss}.onnx", loss) for loss in losses]
    functions += [
        Function(
            "normal_equations",
            "onnx",
            f"normal_equations_{loss}.onnx",
            loss,
            bytes_per_target=8 * LATENT * int(np.prod(generator.image_shape)),
        )
        for loss in normal_equations
    ]
    for i, function in enumerate(functions):
        model = _model(generator, function.name, function.loss)
        (path / function.file).write_bytes(model.SerializeToString())
        if function.loss is not None:
            functions[i] = replace(function, **operators_of(model))
    (path / WEIGHTS_FILE).write_bytes(b"".join(w.tobytes() for w in generator.weights.values()))
    files = [*(function.file for function in functions), WEIGHTS_FILE]
    Manifest(
        latent_shape=latent_shape,
        image_shape=generator.image_shape,
        value_range=value_range,
        prior=prior or Uniform(),
        functions=tuple(functions),
        files={file: FileRecord.of(path / file) for file in files},
        batch_norm=batch_norm,
        conditions={"condition": Condition(condition_size)} if condition_size else {},
        name="tiny",
        exporter={"pyinv": "0.1.0"},
    ).write(path)
    return generator


def _model(generator: TinyGenerator, name: str, loss: str | None) -> onnx.ModelProto:
    """Return the graph of a function."""
    shape = generator.image_shape
    pixels = int(np.prod(shape))
    condition = "Wc" in generator.weights
    layers = 2 if "W1" in generator.weights else 1
    constants: dict[str, Any] = {}
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs.split(), [output], **attributes))

    def constant(name: str, value: Any) -> None:
        constants[name] = np.asarray(value, dtype=np.float32)

    def slope(of: str) -> None:
        """Compute the derivative of the tanh with this output, as ``{of}_slope``."""
        node("Mul", f"{of} {of}", f"{of}_squared")
        node("Sub", f"one {of}_squared", f"{of}_slope")

    constant("one", 1)
    if layers == 2:
        node("Gemm", "latent W1 b1", "a")
        node("Tanh", "a", "h")
    node("Gemm", "h W2 b2" if layers == 2 else "latent W2 b2", "c")
    if condition:
        node("MatMul", "condition Wc", "shift")
        node("Add", "c shift", "pre")
    else:
        node("Identity", "c", "pre")
    node("Tanh" if generator.tanh else "Identity", "pre", "x")
    if loss is None:
        constants["shape"] = np.array([-1, *shape])
        node("Reshape", "x shape", "image")
        outputs = [_value("image", *shape)]
    else:
        constants["shape"] = np.array([-1, pixels])
        node("Reshape", "image shape", "t")
        if generator.tanh:
            slope("x")
        # The loss per pixel, and dc, the derivative of its mean with respect to the input of the
        # last tanh. For sums of squares, also the residual r and its derivative there, "weight".
        if loss in LEAST_SQUARES:
            constant("scale", 2 / pixels)
            if loss == "mse":
                node("Sub", "x t", "r")
                if generator.tanh:
                    node("Identity", "x_slope", "weight")
                else:
                    node("Sub", "x x", "nothing")
                    node("Add", "nothing one", "weight")
            else:  # weight (pre - atanh(t)), by the formula of atanh; 0 where t is saturated
                constant("quarter", 0.25)
                constant("half", 0.5)
                constant("saturation", SATURATION)
                constant("zero", 0)
                node("Abs", "t", "size")
                node("Sub", "one size", "room")
                node("Less", "room saturation", "saturated")
                node("Where", "saturated zero t", "safe")
                node("Mul", "safe safe", "safe_squared")
                node("Sub", "one safe_squared", "safe_slope")
                node("Pow", "safe_slope quarter", "spread")
                node("Where", "saturated zero spread", "weight")
                node("Add", "one safe", "above")
                node("Sub", "one safe", "below")
                node("Div", "above below", "odds")
                node("Log", "odds", "twice")
                node("Mul", "twice half", "wanted")
                node("Sub", "pre wanted", "missing")
                node("Mul", "missing weight", "r")
            node("Mul", "r r", "each")
            node("Mul", "r weight", "pull")
            node("Mul", "pull scale", "dc")
        elif loss == "l1":
            constant("scale", 1 / pixels)
            node("Sub", "x t", "r")
            node("Abs", "r", "each")
            node("Sign", "r", "sign")
            node("Mul", "sign scale", "dx")
            node("Mul", "dx x_slope", "dc")
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
            node("Mul", "dx x_slope", "dc")
        node("ReduceMean", "each", "loss", axes=[1], keepdims=0)
        if layers == 2:
            slope("h")
            node("Gemm", "dc W2", "dh", transB=1)
            node("Mul", "dh h_slope", "da")
            node("Gemm", "da W1", "gradient", transB=1)
        else:
            node("Gemm", "dc W2", "gradient", transB=1)
        outputs = [_value("loss"), _value("gradient", LATENT)]
        if name == "normal_equations":
            constants["axis"] = np.array([1])
            tangents = "W2"  # [d, P], and from here on [B, d, P]
            if layers == 2:
                node("Unsqueeze", "h_slope axis", "h_slopes")
                node("Mul", "W1 h_slopes", "hidden_tangents")
                node("MatMul", "hidden_tangents W2", "tangents")
                tangents = "tangents"
            node("Unsqueeze", "weight axis", "weights")
            node("Mul", f"{tangents} weights", "jacobian")
            node("Transpose", "jacobian", "transposed", perm=[0, 2, 1])
            node("MatMul", "jacobian transposed", "products")
            node("Mul", "products scale", "gram")
            outputs.append(_value("gram", LATENT, LATENT))
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
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _value(name: str, *sizes: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *sizes])
