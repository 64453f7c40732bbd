"""Read a bundle's generator from its ONNX file as a differentiable torch module.

Use this when a generator exists only as a bundle. ``load_onnx`` runs any file with the same
functions of operators; this reader makes a chain of submodules with channels first, which ``split``
can cut. It supports the operators that ``export`` writes for generators. Convolutions of the domain
"pyinv" are read through their definition as functions of standard operators, which the file has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import NodeProto, inliner, numpy_helper
from torch import Tensor, fx, nn

from pyinv.bundle import Bundle
from pyinv.errors import ExportError

from ..capture.onnx_functions import OPERATORS, Operation, read_attributes
from ..diagnostics import first_line
from .onnx import OPSET

__all__ = ["read_generator"]

_TO_FIRST = [0, 3, 1, 2]
_TO_LAST = [0, 2, 3, 1]


def read_generator(bundle: Bundle | str | os.PathLike[str]) -> nn.Module:
    """Return a bundle's generator, latent [B, *latent_shape] -> image [B, *image_shape].

    The module computes the bundle's "forward", up to rounding. Each operator is a submodule, named
    by its kind and number, so that ``split`` and ``first_layers`` can cut the generator. Weights
    are float32 buffers. The module is in eval mode.

    Args:
        bundle: the bundle, or its folder; it must have functions for the runtime "onnx".

    Raises:
        BundleError: the bundle is missing or damaged, or has no ONNX files.
        ExportError: the generator takes a condition, or uses an unsupported operator, which the
            message names.

    Examples:
        >>> generator = read_generator("faces.bundle")
        >>> layers = split(generator, first_layers(generator))
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = opened.manifest
    if manifest.conditions:
        raise ExportError(f"{opened.path}: its generator takes a condition, which cannot be read")
    path = opened.file(manifest.forward("onnx"))
    try:
        model = inliner.inline_local_functions(onnx.load(path))
    except Exception as error:
        raise ExportError(f"{path} cannot be read: {first_line(error)}") from error
    return _Reader(model.graph, str(path)).generator()


class _Operator(nn.Module):
    """One node: a function of tensors, some of which are stored in the module.

    Args:
        operation: the operator and its attributes.
        stored: the constant inputs, by position; None for omitted ones.
    """

    def __init__(self, operation: Operation, stored: Mapping[int, Tensor | None]) -> None:
        super().__init__()
        self.operation = operation
        self.positions = tuple(stored)
        for position, value in stored.items():
            self.register_buffer(f"input_{position}", value)

    def forward(self, *inputs: Tensor) -> Tensor:
        given: list[Any] = list(inputs)
        for position in self.positions:
            given.insert(position, getattr(self, f"input_{position}"))
        result: Tensor = OPERATORS[self.operation.kind](self.operation, *given)
        return result


class _Reader:
    """Convert a graph to a chain of modules in which all images have channels first.

    In the file some images have channels last. ``_last`` holds the names of these values: those
    transposed from or to that order, and those computed from them element by element.
    """

    def __init__(self, graph: onnx.GraphProto, path: str) -> None:
        self._path = path
        self._nodes = list(graph.node)
        self._input, self._output = graph.input[0].name, graph.output[0].name
        self._constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in graph.initializer
        }
        self._last = self._channels_last()
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._values: dict[str, fx.Node] = {}
        self._counts: dict[str, int] = {}

    def generator(self) -> nn.Module:
        latent = self._graph.placeholder("latent")
        self._values[self._input] = self._graph.call_method("flatten", (latent, 1))
        for node in self._nodes:
            self._values[node.output[0]] = self._read(node)
        self._graph.output(self._values[self._output])
        return fx.GraphModule(self._root, self._graph, "OnnxGenerator").eval()

    def _channels_last(self) -> set[str]:
        last: set[str] = set()
        for node in self._nodes:
            if node.op_type == "Transpose" and read_attributes(node)["perm"] == _TO_FIRST:
                last.add(node.input[0])
            if node.op_type == "Transpose" and read_attributes(node)["perm"] == _TO_LAST:
                last.add(node.output[0])
        found = -1
        while found != len(last):
            found = len(last)
            for node in self._nodes:
                if node.op_type not in _KEEPING:
                    continue
                values = {name for name in node.input if name not in self._constants}
                values.add(node.output[0])
                if values & last:
                    last |= values
        return last

    def _read(self, node: NodeProto) -> fx.Node:
        kind, attributes = node.op_type, read_attributes(node)
        inputs = list(node.input)
        if kind == "Transpose":
            return self._transposed(node, attributes["perm"])
        if kind == "Reshape":
            return self._reshaped(node)
        if kind in _ACTIVATIONS:
            return self._call(kind, _ACTIVATIONS[kind](attributes), inputs)
        if kind not in _KEEPING and kind not in _OTHERS:
            raise ExportError(
                f"{self._path} uses {kind}, which cannot be read back: train on the module "
                "or the TorchScript file that the bundle was exported from"
            )
        last = node.output[0] in self._last
        if kind in _OTHERS and any(name in self._last for name in (*inputs, node.output[0])):
            raise ExportError(f"{self._path} has channels last before {kind}, which cannot be read")
        stored = {
            position: self._stored(self._constants[name], last) if name else None
            for position, name in enumerate(inputs)
            if not name or name in self._constants
        }
        if kind.startswith("Reduce"):
            attributes["axes"] = self._axes(attributes, stored.pop(1, None), last)
        module = _Operator(Operation(kind, attributes, OPSET), stored)
        return self._call(kind, module, [name for name in inputs if name in self._values])

    def _call(self, kind: str, module: nn.Module, inputs: Sequence[str]) -> fx.Node:
        number = self._counts[kind] = self._counts.get(kind, 0) + 1
        name = f"{kind}{number}"
        self._root.add_module(name, module)
        return self._graph.call_module(name, tuple(self._values[value] for value in inputs))

    def _transposed(self, node: NodeProto, perm: list[int]) -> fx.Node:
        value = self._values[node.input[0]]
        before, after = (name in self._last for name in (node.input[0], node.output[0]))
        here = perm
        if before or after:
            # A transpose from or to channels first, which all images here have already.
            here = [_TO_LAST[i] for i in perm] if before else perm
            here = [here[i] for i in _TO_FIRST] if after else here
        if here == sorted(here):
            return value
        return self._graph.call_method("permute", (value, *here))

    def _reshaped(self, node: NodeProto) -> fx.Node:
        value = self._values[node.input[0]]
        if node.input[0] in self._last:
            value = self._graph.call_method("permute", (value, *_TO_LAST))
        sizes = self._constants[node.input[1]].tolist()
        value = self._graph.call_method("reshape", (value, *sizes))
        if node.output[0] in self._last:
            value = self._graph.call_method("permute", (value, *_TO_FIRST))
        return value

    def _stored(self, constant: Tensor, last: bool) -> Tensor:
        if not last or constant.ndim == 0 or not constant.is_floating_point():
            return constant
        shape = [1] * (4 - constant.ndim) + list(constant.shape)
        return constant.reshape(shape).permute(_TO_FIRST).contiguous()

    def _axes(self, attributes: Mapping[str, Any], given: Tensor | None, last: bool) -> list[int]:
        axes = [] if given is None else [int(axis) for axis in given]
        if not axes or not attributes.get("keepdims", 1):
            raise ExportError(
                f"{self._path} has a mean that cannot be read: keepdims and axes only"
            )
        return [_TO_LAST[axis] for axis in axes] if last else axes


_ACTIVATIONS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "Elu": lambda a: nn.ELU(a.get("alpha", 1.0)),
    "LeakyRelu": lambda a: nn.LeakyReLU(a.get("alpha", 0.01)),
    "Relu": lambda a: nn.ReLU(),
    "Sigmoid": lambda a: nn.Sigmoid(),
    "Softplus": lambda a: nn.Softplus(),
    "Tanh": lambda a: nn.Tanh(),
}
# Given images, these return images with the same order of axes.
_KEEPING = {
    *("Abs", "Add", "Div", "Exp", "Mul", "Neg", "Pow", "Reciprocal", "ReduceMean", "Sqrt", "Sub"),
    *_ACTIVATIONS,
}
_OTHERS = {"Conv", "ConvTranspose", "DepthToSpace", "Gemm", "MatMul", "Resize"}
