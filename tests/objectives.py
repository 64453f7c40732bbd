"""Small objectives, each as NumPy (call it) and as a file for every runtime (``save`` it).

Every one has latents [B, size] and images [B, *image_shape], and gives a loss [B] and a gradient
[B, size], under the tensor names that a bundle uses. Only TorchScript files need torch.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]

METHOD = "objective_toy"  # in TorchScript files


class Graph:
    """An ONNX graph under construction: ``graph.Add(a, b)`` appends a node and gives its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(value, dtype=dtype).reshape(np.shape(value))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def __getattr__(self, operator: str) -> Any:
        def append(*inputs: str, output: str | None = None, **attributes: Any) -> str:
            name = output or f"value_{len(self.nodes)}"
            self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
            return name

        return append

    def save(self, path: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> str:
        def tensors(shapes: dict[str, list[Any]]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
                for name, shape in shapes.items()
            ]

        model = helper.make_model(
            helper.make_graph(
                self.nodes, "objective", tensors(inputs), tensors(outputs), self.constants
            ),
            # Old enough for every onnxruntime the package allows, whatever onnx wrote the file.
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return str(path)

    def save_torchscript(self, path: Path, sizes: dict[str, Any], inputs: list[str]) -> str:
        """Write the same operations, in the same order, as the method ``METHOD`` of a module."""
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")

            class Functions(torch.jit.ScriptModule):
                def __init__(self, constants: dict[str, Any]) -> None:
                    super().__init__()
                    for name, size in sizes.items():
                        setattr(self, name, size)
                    for name, value in constants.items():
                        self.register_buffer(name, torch.from_numpy(value))

            constants = {c.name: numpy_helper.to_array(c).copy() for c in self.constants}
            module = Functions(constants)
            tensors = ", ".join(f"{name}: Tensor" for name in inputs)
            pair = "Tuple[Tensor, Tensor]"
            lines = [f"def {METHOD}(self, {tensors}, out: Optional[{pair}] = None) -> {pair}:"]
            lines += [
                f"{node.output[0]} = {_torch_expression(node, constants)}" for node in self.nodes
            ]
            lines += [
                "if out is not None:",
                "    out[0].copy_(loss)",
                "    out[1].copy_(gradient)",
                "    return out",
                "return loss, gradient",
            ]
            module.define("\n    ".join(lines) + "\n")
            torch.jit.save(module.eval(), str(path))
        return str(path)


def _torch_expression(node: onnx.NodeProto, constants: dict[str, Any]) -> str:
    """What an ONNX node computes, as TorchScript source."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    first, *rest = (f"self.{name}" if name in constants else name for name in node.input)
    # Whole numbers are shapes, positions and axes, and so part of the source.
    numbers = [
        list(map(int, constants[name])) for name in node.input[1:] if _whole(name, constants)
    ]
    if node.op_type == "Reshape":
        return f"{first}.reshape({numbers[0]})"
    if node.op_type == "Slice":
        (start,), (end,), (axis,) = numbers
        return f"{first}.slice({axis}, {start}, {end})"
    if node.op_type == "Squeeze":
        return f"{first}.squeeze({numbers[0][0]})"
    if node.op_type == "ReduceMean":
        return f"{first}.mean({attributes['axes']}, {bool(attributes['keepdims'])})"
    if node.op_type in ("Tanh", "Sqrt"):
        return f"{first}.{node.op_type.lower()}()"
    sign = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "MatMul": "@"}[node.op_type]
    return f"{first} {sign} {rest[0]}"


def _whole(name: str, constants: dict[str, Any]) -> bool:
    return name in constants and constants[name].dtype == np.int64


class ToyObjective(ABC):
    size: int
    image_shape: tuple[int, int, int]
    condition_size: int | None = None

    @property
    def pixels(self) -> int:
        return int(np.prod(self.image_shape))

    @abstractmethod
    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, Array]:
        """Return loss [B] and gradient [B, d]."""

    @abstractmethod
    def build(self, graph: Graph, image: str) -> None:
        """Append nodes from latent, image [B, pixels] (and condition) to loss and gradient."""

    def save(self, path: Path | str, *, runtime: str = "onnx") -> str:
        graph = Graph()
        flat = graph.Reshape("image", graph.constant([-1, self.pixels], np.int64))
        self.build(graph, flat)
        inputs: dict[str, list[Any]] = {"latent": [self.size], "image": list(self.image_shape)}
        if self.condition_size is not None:
            inputs["condition"] = [self.condition_size]
        if runtime == "torchscript":
            sizes = {
                "latent_size": self.size,
                "image_shape": list(self.image_shape),
                "condition_size": self.condition_size or 0,
            }
            return graph.save_torchscript(Path(path), sizes, list(inputs))
        return graph.save(Path(path), inputs, {"loss": [], "gradient": [self.size]})

    def load(
        self, path: Path | str, *, runtime: str = "onnx", device: Any = None, threads: int = 1
    ) -> Any:
        """Save it to ``path`` and give the engine's objective in that file."""
        file = self.save(path, runtime=runtime)
        if runtime == "torchscript":
            from pyinv import _torch

            return _torch.TorchObjective(file, METHOD, threads=threads, device=device)
        from pyinv import _core

        return _core.OnnxObjective(file, threads=threads, device=device)


class Quadratic(ToyObjective):
    """mean_i c_i (z_i - x_i)^2 + x_d: the optimum is the first d pixels, and costs the last one."""

    def __init__(self, size: int, curvature: Any = 1.0) -> None:
        self.size = size
        self.image_shape = (1, 1, size + 1)
        self.curvature = np.broadcast_to(np.float32(curvature), (size,)).astype(np.float32)

    def images(self, optimum: Any, floor: Any = 0.0) -> Array:
        optimum = np.asarray(optimum, dtype=np.float32)
        column = np.broadcast_to(np.float32(floor), (len(optimum),)).astype(np.float32)
        return np.concatenate([optimum, column[:, None]], axis=1)

    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, Array]:
        difference = latent - image[:, :-1]
        slope = difference * self.curvature
        loss = np.mean(difference * slope, axis=1, dtype=np.float32) + image[:, -1]
        return loss, slope * np.float32(2 / self.size)

    def build(self, graph: Graph, image: str) -> None:
        self._build(graph, image, "loss", "gradient")

    def _build(self, graph: Graph, image: str, loss: str, gradient: str) -> None:
        first = graph.constant([0], np.int64)
        split = graph.constant([self.size], np.int64)
        end = graph.constant([self.size + 1], np.int64)
        axis = graph.constant([1], np.int64)
        optimum = graph.Slice(image, first, split, axis)
        floor = graph.Squeeze(graph.Slice(image, split, end, axis), axis)
        difference = graph.Sub("latent", optimum)
        slope = graph.Mul(difference, graph.constant(self.curvature))
        mean = graph.ReduceMean(graph.Mul(difference, slope), axes=[1], keepdims=0)
        graph.Add(mean, floor, output=loss)
        graph.Mul(slope, graph.constant(2 / self.size), output=gradient)


class NotANumberBeyond(Quadratic):
    """The quadratic, but its loss (or gradient) is NaN where z_0 is beyond a limit."""

    def __init__(self, size: int, limit: float, *, where: str) -> None:
        super().__init__(size)
        self.limit, self.where = np.float32(limit), where

    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, Array]:
        loss, gradient = super().__call__(latent, image)
        with np.errstate(invalid="ignore"):
            trap = np.float32(0) * np.sqrt(self.limit - latent[:, 0])
        if self.where == "loss":
            return loss + trap, gradient
        return loss, gradient + trap[:, None]

    def build(self, graph: Graph, image: str) -> None:
        in_loss = self.where == "loss"
        axis = graph.constant([1], np.int64)
        z0 = graph.Slice(
            "latent", graph.constant([0], np.int64), graph.constant([1], np.int64), axis
        )
        root = graph.Sqrt(graph.Sub(graph.constant(self.limit), z0))
        trap = graph.Mul(root, graph.constant(0.0))
        loss = "clean_loss" if in_loss else "loss"
        gradient = "gradient" if in_loss else "clean_gradient"
        self._build(graph, image, loss, gradient)
        if in_loss:
            graph.Add(loss, graph.Squeeze(trap, axis), output="loss")
        else:
            graph.Add(gradient, trap, output="gradient")


class Flat(ToyObjective):
    """The gradient is zero, so latents change by the constraint's doing alone. Loss: mean z^2."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.image_shape = (1, 1, 1)

    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, Array]:
        loss = np.mean(latent * latent, axis=1, dtype=np.float32)
        return loss + np.float32(0) * image[:, 0], np.float32(0) * latent

    def build(self, graph: Graph, image: str) -> None:
        zero = graph.constant(0.0)
        square = graph.ReduceMean(graph.Mul("latent", "latent"), axes=[1], keepdims=0)
        unused = graph.ReduceMean(graph.Mul(image, zero), axes=[1], keepdims=0)
        graph.Add(square, unused, output="loss")
        graph.Mul("latent", zero, output="gradient")


class Perceptron(ToyObjective):
    """G(z) = tanh(tanh(z A + c C) B) against an image, mse: A [d, h], B [h, P], C [k, h].

    ``batch_norm`` standardises the hidden layer over the batch, and then the gradient is that of
    the sum of all losses, because every latent has a part in every image.
    """

    def __init__(
        self,
        size: int,
        *,
        hidden: int = 16,
        image_shape: tuple[int, int, int] = (2, 3, 4),
        condition_size: int | None = None,
        batch_norm: bool = False,
        seed: int = 0,
    ) -> None:
        self.size, self.image_shape, self.condition_size = size, image_shape, condition_size
        self.batch_norm = batch_norm
        random = np.random.default_rng(seed)

        def matrix(rows: int, columns: int) -> Array:
            return (random.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

        self.first = np.float32(0.5) * matrix(size, hidden)
        self.second = matrix(hidden, self.pixels)
        self.label = None if condition_size is None else matrix(condition_size, hidden)

    # Large, because batch norm over a few latents is steep, and then rounding does not stay small.
    epsilon = np.float32(0.1)

    def _hidden(self, latent: Array, condition: Array | None) -> tuple[Array, Array, Array]:
        """tanh's argument before and after batch norm, and what batch norm divides by."""
        before = latent @ self.first
        if self.label is not None:
            before = before + condition @ self.label
        if not self.batch_norm:
            return before, before, np.ones(1, dtype=np.float32)
        centred = before - before.mean(axis=0, dtype=np.float32)
        deviation = np.sqrt(np.mean(centred * centred, axis=0, dtype=np.float32) + self.epsilon)
        return before, centred / deviation, deviation

    def generate(self, latent: Array, condition: Array | None = None) -> Array:
        return np.tanh(np.tanh(self._hidden(latent, condition)[1]) @ self.second)

    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, Array]:
        _, normalised, deviation = self._hidden(latent, condition)
        hidden = np.tanh(normalised)
        output = np.tanh(hidden @ self.second)
        difference = output - image
        loss = np.mean(difference * difference, axis=1, dtype=np.float32)
        slope = difference * np.float32(2 / self.pixels) * (1 - output * output)
        slope = (slope @ self.second.T) * (1 - hidden * hidden)
        if self.batch_norm:
            along = np.mean(slope * normalised, axis=0, dtype=np.float32)
            slope = (slope - slope.mean(axis=0, dtype=np.float32) - normalised * along) / deviation
        return loss, slope @ self.first.T

    def build(self, graph: Graph, image: str) -> None:
        one = graph.constant(1.0)
        first, second = graph.constant(self.first), graph.constant(self.second)
        first_t, second_t = graph.constant(self.first.T), graph.constant(self.second.T)

        def mean(value: str) -> str:
            return graph.ReduceMean(value, axes=[0], keepdims=1)

        normalised = graph.MatMul("latent", first)
        if self.label is not None:
            label = graph.MatMul("condition", graph.constant(self.label))
            normalised = graph.Add(normalised, label)
        if self.batch_norm:
            centred = graph.Sub(normalised, mean(normalised))
            variance = mean(graph.Mul(centred, centred))
            deviation = graph.Sqrt(graph.Add(variance, graph.constant(self.epsilon)))
            normalised = graph.Div(centred, deviation)

        hidden = graph.Tanh(normalised)
        output = graph.Tanh(graph.MatMul(hidden, second))
        difference = graph.Sub(output, image)
        graph.ReduceMean(graph.Mul(difference, difference), axes=[1], keepdims=0, output="loss")

        slope = graph.Mul(difference, graph.constant(2 / self.pixels))
        slope = graph.Mul(slope, graph.Sub(one, graph.Mul(output, output)))
        slope = graph.MatMul(slope, second_t)
        slope = graph.Mul(slope, graph.Sub(one, graph.Mul(hidden, hidden)))
        if self.batch_norm:
            along = graph.Mul(normalised, mean(graph.Mul(slope, normalised)))
            slope = graph.Div(graph.Sub(graph.Sub(slope, mean(slope)), along), deviation)
        graph.MatMul(slope, first_t, output="gradient")
