"""Small objectives, in NumPy (by calling) and as files for every runtime (by ``save``).

Each takes latents [B, size] and images [B, *image_shape] and returns loss [B] and gradient
[B, size], with the tensor names of bundles. Those with a residual also have normal equations:
loss, gradient and gram [B, size, size]. Only TorchScript files need torch.
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

from support.onnx_operators import operators_of

Array = NDArray[np.float32]

METHOD = "objective_toy"  # in TorchScript files


class Graph:
    """A builder of ONNX graphs: ``graph.Add(a, b)`` appends a node and returns its output."""

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
            # Old enough for every supported onnxruntime, whatever version of onnx wrote the file.
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return str(path)

    def save_torchscript(
        self, path: Path, sizes: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> str:
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
            results = f"Tuple[{', '.join(['Tensor'] * len(outputs))}]"
            lines = [
                f"def {METHOD}(self, {tensors}, out: Optional[{results}] = None) -> {results}:"
            ]
            lines += [
                f"{node.output[0]} = {_torch_expression(node, constants)}" for node in self.nodes
            ]
            copies = [f"    out[{i}].copy_({name})" for i, name in enumerate(outputs)]
            lines += ["if out is not None:", *copies, "    return out"]
            lines += [f"return {', '.join(outputs)}"]
            module.define("\n    ".join(lines) + "\n")
            torch.jit.save(module.eval(), str(path))
        return str(path)


def _torch_expression(node: onnx.NodeProto, constants: dict[str, Any]) -> str:
    """Convert an ONNX node to TorchScript source."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    first, *rest = (f"self.{name}" if name in constants else name for name in node.input)
    # Integer constants are shapes, positions and axes, and become part of the source.
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
    if node.op_type == "Transpose":
        return f"{first}.permute({list(attributes['perm'])})"
    if node.op_type == "Where":
        return f"torch.where({first}, {rest[0]}, {rest[1]})"
    if node.op_type in ("Tanh", "Sqrt", "Sign", "Relu"):
        return f"{first}.{node.op_type.lower()}()"
    signs = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "MatMul": "@", "Greater": ">"}
    return f"{first} {signs[node.op_type]} {rest[0]}"


def _whole(name: str, constants: dict[str, Any]) -> bool:
    return name in constants and constants[name].dtype == np.int64


class ToyObjective(ABC):
    size: int
    image_shape: tuple[int, int, int]
    condition_size: int | None = None

    @property
    def pixels(self) -> int:
        return int(np.prod(self.image_shape))

    @property
    def outputs(self) -> dict[str, list[int]]:
        """The outputs in order: names, and shapes without the batch axis."""
        return {"loss": [], "gradient": [self.size]}

    @abstractmethod
    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, ...]:
        """Return the outputs of ``outputs``, by default loss [B] and gradient [B, d]."""

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
            return graph.save_torchscript(Path(path), sizes, list(inputs), list(self.outputs))
        return graph.save(Path(path), inputs, self.outputs)

    def load(
        self,
        path: Path | str,
        *,
        runtime: str = "onnx",
        device: Any = None,
        threads: int = 1,
        most_at_once: int = 0,
    ) -> Any:
        """Save the objective to ``path`` and load it in the engine."""
        options: dict[str, Any] = {"threads": threads, "device": device}
        options["most_at_once"] = most_at_once
        file = self.save(path, runtime=runtime)
        if runtime == "torchscript":
            from pyinv import _torch

            return _torch.TorchObjective(file, METHOD, **options)
        from pyinv import _core

        return _core.OnnxObjective(file, **options, **operators_of(onnx.load(file)))


class Quadratic(ToyObjective):
    """mean_i c_i (z_i - x_i)^2 + x_d: the optimum is the first d pixels, its loss the last."""

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


class Valley(ToyObjective):
    """(z_0 - x_0)^2 + 10 (z_1 - z_0^2)^2, after Rosenbrock: a curved valley to the optimum."""

    size = 2
    image_shape = (1, 1, 1)

    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, Array]:
        a, b = latent[:, :1], latent[:, 1:]
        off, above = a - image, b - a * a
        loss = off * off + np.float32(10) * (above * above)
        along = np.float32(2) * off - np.float32(40) * (a * above)
        return loss[:, 0], np.concatenate([along, np.float32(20) * above], axis=1)

    def build(self, graph: Graph, image: str) -> None:
        zero, one, two = (graph.constant([i], np.int64) for i in range(3))
        a, b = graph.Slice("latent", zero, one, one), graph.Slice("latent", one, two, one)
        off, above = graph.Sub(a, image), graph.Sub(b, graph.Mul(a, a))
        walls = graph.Mul(graph.Mul(above, above), graph.constant(10))
        graph.Squeeze(graph.Add(graph.Mul(off, off), walls), one, output="loss")
        bend = graph.Mul(graph.Mul(a, above), graph.constant(40))
        along = graph.Sub(graph.Mul(off, graph.constant(2)), bend)
        across = graph.Mul(above, graph.constant(20))
        graph.Add(
            graph.MatMul(along, graph.constant([[1, 0]])),
            graph.MatMul(across, graph.constant([[0, 1]])),
            output="gradient",
        )


class NotANumberBeyond(Quadratic):
    """The quadratic, with a NaN loss (or gradient) where z_0 is beyond a limit."""

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
    """Zero gradient, so that only the constraint changes latents. The loss is mean z^2."""

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


class Dead(Flat):
    """G(z) = max(z - 0.2, 0) against an image, mse: no slope at z = 0."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.image_shape = (1, 1, size)

    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, Array]:
        made = np.maximum(latent - np.float32(0.2), np.float32(0))
        error = made - image
        loss = np.mean(error * error, axis=1, dtype=np.float32)
        return loss, np.float32(2 / self.size) * error * np.sign(made)

    def build(self, graph: Graph, image: str) -> None:
        made = graph.Relu(graph.Sub("latent", graph.constant(0.2)))
        error = graph.Sub(made, image)
        graph.ReduceMean(graph.Mul(error, error), axes=[1], keepdims=0, output="loss")
        slope = graph.Mul(error, graph.Sign(made))
        graph.Mul(slope, graph.constant(2 / self.size), output="gradient")


class Perceptron(ToyObjective):
    """G(z) = tanh(tanh(z A + c C) B) against an image, mse: A [d, h], B [h, P], C [k, h].

    ``batch_norm`` standardises the hidden layer over the batch. The gradient is then that of the
    sum of all losses, because every latent affects every image.
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

    # Large, because batch norm over a few latents is steep and would amplify rounding.
    epsilon = np.float32(0.1)

    def _hidden(self, latent: Array, condition: Array | None) -> tuple[Array, Array, Array]:
        """tanh's argument before and after batch norm, and batch norm's divisor."""
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


class LeastSquares(ToyObjective):
    """mean r^2, r = F(z) - x: z A + c C, its tanh, or tanh(f(z A + c C + a) B), f a leaky ReLU.

    ``first`` is A [d, P] or [d, h], ``second`` B [h, P], ``label`` C [k, P] or [k, h] for a
    condition c; a is drawn.
    """

    slope = np.float32(0.2)  # of the leaky ReLU below zero

    def __init__(
        self, first: Any, second: Any = None, *, label: Any = None, squash: bool = True
    ) -> None:
        self.first = np.asarray(first, dtype=np.float32)
        self.second = None if second is None else np.asarray(second, dtype=np.float32)
        self.label = None if label is None else np.asarray(label, dtype=np.float32)
        self.condition_size = None if self.label is None else len(self.label)
        self.squash = squash
        self.size, hidden = self.first.shape
        self.image_shape = (1, 1, hidden if self.second is None else self.second.shape[1])
        random = np.random.default_rng(hidden)
        self.shift = (0.3 * random.standard_normal(hidden)).astype(np.float32)

    @property
    def normal_equations(self) -> NormalEquations:
        return NormalEquations(self)

    def _tangents(self, latent: Array, condition: Array | None) -> tuple[Array, Array]:
        """F(z) [B, P] and its Jacobian, transposed: [B, d, P]."""
        tangents = np.broadcast_to(self.first, (len(latent), *self.first.shape))
        output = latent @ self.first
        if self.label is not None:
            output = output + condition @ self.label
        if self.second is not None:
            output = output + self.shift
            bend = (1 + self.slope) / 2 + np.sign(output) * ((1 - self.slope) / 2)
            output = (output * bend) @ self.second
            tangents = (tangents * bend[:, None]) @ self.second
        if self.squash:
            output = np.tanh(output)
            tangents = tangents * (1 - output * output)[:, None]
        return output, tangents

    def generate(self, latent: Array, condition: Array | None = None) -> Array:
        return self._tangents(latent, condition)[0]

    def solve(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Loss, gradient and gram."""
        output, tangents = self._tangents(latent, condition)
        residual = output - image
        scale = np.float32(2 / self.pixels)
        loss = np.mean(residual * residual, axis=1, dtype=np.float32)
        gradient = (tangents @ residual[:, :, None])[:, :, 0] * scale
        return loss, gradient, (tangents @ tangents.transpose(0, 2, 1)) * scale

    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, ...]:
        return self.solve(latent, image, condition)[:2]

    def build(self, graph: Graph, image: str) -> None:
        self.build_outputs(graph, image, {name: name for name in self.outputs})

    def build_outputs(self, graph: Graph, image: str, names: dict[str, str]) -> None:
        """``names``: the name of each requested output."""
        one = graph.constant(1.0)
        first = graph.constant(self.first)
        output, tangents = graph.MatMul("latent", first), None
        if self.label is not None:
            output = graph.Add(output, graph.MatMul("condition", graph.constant(self.label)))

        def along(tangents: str | None, factor: str) -> str:
            rows = graph.Reshape(factor, graph.constant([-1, 1, width], np.int64))
            return graph.Mul(tangents or first, rows)

        width = self.first.shape[1]
        if self.second is not None:
            second = graph.constant(self.second)
            output = graph.Add(output, graph.constant(self.shift))
            bend = graph.Mul(graph.Sign(output), graph.constant((1 - self.slope) / 2))
            bend = graph.Add(bend, graph.constant((1 + self.slope) / 2))
            tangents = graph.MatMul(along(tangents, bend), second)
            output, width = graph.MatMul(graph.Mul(output, bend), second), self.pixels
        if self.squash:
            output = graph.Tanh(output)
            tangents = along(tangents, graph.Sub(one, graph.Mul(output, output)))
        if tangents is None:
            # The same for every latent; the product adds the batch axis.
            ones = graph.Add(graph.Mul(output, graph.constant(0.0)), one)
            tangents = along(tangents, ones)

        residual = graph.Sub(output, image)
        scale = graph.constant(2 / self.pixels)
        squares = graph.Mul(residual, residual)
        graph.ReduceMean(squares, axes=[1], keepdims=0, output=names["loss"])
        column = graph.Reshape(residual, graph.constant([-1, self.pixels, 1], np.int64))
        gradient = graph.Reshape(
            graph.MatMul(tangents, column), graph.constant([-1, self.size], np.int64)
        )
        graph.Mul(gradient, scale, output=names["gradient"])
        if "gram" in names:
            gram = graph.MatMul(tangents, graph.Transpose(tangents, perm=[0, 2, 1]))
            graph.Mul(gram, scale, output=names["gram"])


class NormalEquations(ToyObjective):
    """A least-squares objective's loss, gradient and gram."""

    def __init__(self, of: LeastSquares) -> None:
        self.of, self.size = of, of.size
        self.image_shape, self.condition_size = of.image_shape, of.condition_size

    @property
    def outputs(self) -> dict[str, list[int]]:
        return {**self.of.outputs, "gram": [self.size, self.size]}

    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, ...]:
        return self.of.solve(latent, image, condition)

    def build(self, graph: Graph, image: str) -> None:
        self.build_outputs(graph, image, {name: name for name in self.outputs})

    def build_outputs(self, graph: Graph, image: str, names: dict[str, str]) -> None:
        self.of.build_outputs(graph, image, names)


class Spoiled(ToyObjective):
    """Another objective with one element of ``output`` spoiled where z_0 is beyond a limit.

    ``place`` is the element's index in one latent's output, () for a loss; or several indices.
    """

    def __init__(
        self,
        of: LeastSquares | NormalEquations,
        limit: float,
        *,
        output: str,
        place: tuple[Any, ...] = (),
        value: float = np.nan,
    ) -> None:
        self.of, self.output, self.size = of, output, of.size
        self.image_shape, self.condition_size = of.image_shape, of.condition_size
        self.limit = np.float32(limit)
        # Adding 0 has no effect, and adding a value that is not finite spoils the element.
        self.spoil = np.zeros(of.outputs[output], dtype=np.float32)
        self.spoil[place] = value

    @property
    def outputs(self) -> dict[str, list[int]]:
        return self.of.outputs

    def __call__(
        self, latent: Array, image: Array, condition: Array | None = None
    ) -> tuple[Array, ...]:
        beyond = latent[:, 0] > self.limit
        beyond = beyond.reshape(-1, *[1] * self.spoil.ndim)
        spoil = np.where(beyond, self.spoil, np.float32(0))
        found = zip(self.outputs, self.of(latent, image, condition), strict=True)
        return tuple(value + spoil if name == self.output else value for name, value in found)

    def build(self, graph: Graph, image: str) -> None:
        names = {name: name for name in self.outputs}
        names[self.output] = "clean"
        self.of.build_outputs(graph, image, names)
        axis = graph.constant([1], np.int64)
        z0 = graph.Slice(
            "latent", graph.constant([0], np.int64), graph.constant([1], np.int64), axis
        )
        beyond = graph.Greater(z0, graph.constant(self.limit))
        beyond = graph.Reshape(beyond, graph.constant([-1, *[1] * self.spoil.ndim], np.int64))
        spoil = graph.Where(beyond, graph.constant(self.spoil), graph.constant(0.0))
        graph.Add("clean", spoil, output=self.output)
