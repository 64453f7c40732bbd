"""Read generators from ONNX files as modules that can be traced.

``OnnxModule`` runs the nodes of the graph with the torch operators of ``onnx_functions``. Sizes
may be symbolic: shape arithmetic runs on arrays of them, see ``onnx_sizes``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    external_data_helper,
    inliner,
    numpy_helper,
)
from torch import Tensor, nn

from pyinv.errors import ExportError

from ..diagnostics import first_line
from .onnx_functions import NUMBERS, OPERATORS, Operation, constant, read_attributes
from .onnx_sizes import array_of, is_symbolic, on_arrays

__all__ = ["OnnxModule", "load_onnx"]

_OLDEST_OPSET = 11
_CONTROL_FLOW = ("If", "Loop", "Scan")
_RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
_STANDARD = ("", "ai.onnx")
# Constants of at most this size may take part in shape arithmetic.
_SMALL = 64
_MOST_CHANNELS = 4
_INTEGERS = {TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32}
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def load_onnx(path: str | os.PathLike[str], *, what: str = "generator") -> OnnxModule:
    """Load an ONNX file, by whatever exporter, as a torch module in eval mode.

    The graph must be in float32, of opset 11 or later, with one output, and take a latent [B, ...].
    ``export(inputs=)`` describes other inputs; class labels may be int64 or int32. The batch axis
    may be dynamic or 1. The module takes any batch: ``export`` compares it with ONNX Runtime on the
    same file. It returns images [B, C, H, W], also where the graph returns [B, H, W, C] with C <= 4
    and H and W above 4.

    Args:
        path: the file; weights in external files are read from beside it.
        what: names the file's contents in error messages.

    Raises:
        ExportError: the file or its external data does not exist, is not an ONNX file, or has
            inputs, types or operators that cannot be exported; the message names them.

    Examples:
        >>> export(load_onnx("generator.onnx"), "faces.bundle", latent_shape=100, prior=Normal())
    """
    if not isinstance(path, str | os.PathLike):
        raise ExportError(f"expected the path of an ONNX file, got {path!r}")
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"{path} is a folder; expected an ONNX file")
    if not path.is_file():
        raise ExportError(f"no file {path}: give an ONNX file")
    return OnnxModule(_model(path, what), path, what=what)


def _model(path: Path, what: str) -> ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ExportError(f"{path} is not an ONNX file: {first_line(error)}") from error
    if not model.graph.node:
        raise ExportError(f"{path} is not an ONNX file, or its graph is empty")
    for tensor in external_data_helper._get_all_tensors(model):
        if external_data_helper.uses_external_data(tensor):
            file = external_data_helper.ExternalDataInfo(tensor).location
            if not (path.parent / file).is_file():
                raise ExportError(
                    f"{path} stores its weights in {file}, which is missing: put it beside the file"
                )
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        return inliner.inline_local_functions(model)
    except Exception as error:
        raise ExportError(f"{path} cannot be loaded: {first_line(error)}") from error


@dataclass(frozen=True)
class _Step:
    """One node of the graph.

    released: the values that no later node uses.
    """

    operation: Operation
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    released: tuple[str, ...]


class OnnxModule(nn.Module):
    """The graph of an ONNX file: its inputs [B, ...] -> its output [B, ...].

    Floating-point constants are registered as buffers.

    Attributes:
        path: the file.
        input_names: the names of the graph's inputs.
        batch_of_one: whether the graph declares a batch of one.
        batch_statistics: batch norm uses the statistics of each batch.
    """

    def __init__(self, model: ModelProto, path: Path, *, what: str = "generator") -> None:
        super().__init__()
        self.path = path
        self.batch_statistics = False
        self._returns_images = what == "generator"
        graph = model.graph
        opset = next((o.version for o in model.opset_import if o.domain in _STANDARD), 0)
        if opset < _OLDEST_OPSET:
            raise ExportError(
                f"{path} has opset {opset}: convert it to opset {_OLDEST_OPSET} or later, for "
                "example with onnx.version_converter"
            )
        constants = {tensor.name: tensor for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        self._check_interface(graph, inputs)
        self.input_names = tuple(value.name for value in inputs)
        self._shapes = [_declared_shape(value) for value in inputs]
        self._integers = [_INTEGERS.get(value.type.tensor_type.elem_type) for value in inputs]
        self._output = graph.output[0].name
        self.batch_of_one = any(shape is not None and shape[:1] == [1] for shape in self._shapes)
        nodes = _needed(graph, self._output)
        self._check_operators(nodes)
        self._arrays: dict[str, np.ndarray] = {}
        self._numbers: dict[str, np.ndarray] = {}
        self._tensors: dict[str, str] = {}
        used = {name for node in nodes for name in node.input} | {self._output}
        for name, tensor in constants.items():
            if name in used:
                self._add_constant(name, tensor)
        self._steps = self._read(nodes, opset)
        self.eval()

    # -- Reading -------------------------------------------------------------------------------

    def _check_interface(self, graph: GraphProto, inputs: Sequence[ValueInfoProto]) -> None:
        if not inputs:
            raise ExportError(f"{self.path} has no inputs: a generator takes a latent")
        if len(graph.output) != 1:
            names = ", ".join(value.name for value in graph.output)
            raise ExportError(
                f"{self.path} has {len(graph.output)} outputs ({names}): write one that returns "
                "the image alone"
            )
        if graph.sparse_initializer:
            raise ExportError(f"{self.path} has sparse weights: write it with dense ones")
        for value in inputs:
            kind = value.type.tensor_type.elem_type
            if kind in _HALF or kind == TensorProto.DOUBLE:
                raise ExportError(
                    f"{self.path}: its input {_described(value)} is "
                    f"{_type_name(kind)}: write the file in float32"
                )
            if kind not in (TensorProto.FLOAT, *_INTEGERS):
                raise ExportError(
                    f"{self.path}: its input {_described(value)} is {_type_name(kind)}: write a "
                    "file that takes float32, or int64 for class labels"
                )
            shape = _declared_shape(value)
            if shape and shape[0] not in (None, 1):
                raise ExportError(
                    f"{self.path}: its input {_described(value)} is for a batch of {shape[0]}: "
                    "write the file with a dynamic batch axis, or a batch of 1"
                )
        for tensor in graph.initializer:
            if tensor.data_type in _HALF:
                raise ExportError(
                    f"{self.path} has {_type_name(tensor.data_type)} weights ({tensor.name}): "
                    "write the file in float32"
                )

    def _check_operators(self, nodes: Sequence[NodeProto]) -> None:
        for node in nodes:
            kind = node.op_type
            if node.domain in _STANDARD and (kind in OPERATORS or kind in ("Constant", "Range")):
                continue
            name = kind if node.domain in _STANDARD else f"{node.domain}.{kind}"
            if kind in _CONTROL_FLOW:
                raise ExportError(
                    f"{self.path} uses {name}, and control flow cannot be exported: write the "
                    "file from a traced module, or remove constant branches with onnxsim"
                )
            if kind in _RANDOM:
                raise ExportError(
                    f"{self.path} draws random numbers with {name}: an exported function must "
                    "give the same image for the same latent"
                )
            raise ExportError(
                f"{self.path} uses {name}, which cannot be read: export the torch.nn.Module that "
                "it was made from, or write the file without it"
            )

    def _add_constant(self, name: str, tensor: TensorProto | np.ndarray) -> None:
        value = tensor if isinstance(tensor, np.ndarray) else numpy_helper.to_array(tensor)
        if value.dtype.kind not in "f":
            self._arrays[name] = value
            return
        value = value.astype(np.float32)
        if value.size <= _SMALL:
            self._numbers[name] = value
        self._tensors[name] = f"tensor_{len(self._tensors)}"
        self.register_buffer(self._tensors[name], torch.from_numpy(value))

    def _read(self, nodes: Sequence[NodeProto], opset: int) -> list[_Step]:
        last = {name: i for i, node in enumerate(nodes) for name in node.input}
        of_latent = set(self.input_names)
        steps = []
        for i, node in enumerate(nodes):
            attributes = read_attributes(node)
            if node.op_type == "Constant":
                (value,) = attributes.values()
                single = not isinstance(value, np.ndarray)
                kind = np.float32 if single and "float" in node.attribute[0].name else None
                self._add_constant(node.output[0], np.asarray(value, dtype=kind))
                continue
            depends = any(name in of_latent for name in node.input)
            if depends and node.op_type not in ("Shape", "Size"):
                of_latent.update(node.output)
            operation = Operation(
                node.op_type,
                attributes,
                opset,
                outputs=len(_stripped(node.output)),
                of_latent=bool(node.input) and node.input[0] in of_latent,
                batch_of_one=self.batch_of_one,
            )
            released = {name for name in node.input if name and last[name] == i}
            steps.append(
                _Step(
                    operation,
                    tuple(_stripped(node.input)),
                    tuple(_stripped(node.output)),
                    tuple(released - {self._output}),
                )
            )
        return steps

    # -- Running -------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the graph.

        Args:
            inputs: the graph's inputs, in its order.

        Raises:
            ExportError: the number, types or shapes of the inputs are not the graph's, or a node
                cannot be run as the file has it.
        """
        inputs = self.as_declared(inputs)
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        latent = next((value for value in inputs if value.is_floating_point()), inputs[0])
        for step in self._steps:
            if step is self._steps[-1] and step.operation.kind in ("Sigmoid", "Tanh"):
                # The last activation is found only where no transpose follows it.
                values |= {
                    name: self.as_images(value)
                    for name, value in values.items()
                    if name in step.inputs and isinstance(value, Tensor)
                }
            try:
                results = self._results(step, values, latent)
            except ExportError as error:
                raise ExportError(f"{self.path} has {error}") from error
            values.update(zip(step.outputs, results, strict=False))
            for name in step.released:
                values.pop(name, None)
        result = self._value(self._output, values)
        if not isinstance(result, Tensor):
            result = _tensor(result, latent)
        return self.as_images(result)

    def as_images(self, result: Tensor) -> Tensor:
        """Return the graph's output as images with channels first, where it has them last."""
        if self._returns_images and _has_channels_last(result):
            return result.permute(0, 3, 1, 2)
        return result

    def as_declared(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return inputs in the integer types of the graph; raise ExportError if they do not fit."""
        wanted = [
            f"{name} {_text(shape)}"
            for name, shape in zip(self.input_names, self._shapes, strict=True)
        ]
        if len(inputs) != len(self.input_names):
            raise ExportError(
                f"{self.path} takes {' and '.join(wanted)}, and {len(inputs)} "
                f"input{'' if len(inputs) == 1 else 's'} would be given: describe all but the "
                "latent with inputs (--input)"
            )
        for value, integer, shape, text in zip(
            inputs, self._integers, self._shapes, wanted, strict=True
        ):
            if value.is_floating_point() != (integer is None):
                given, how = ("float32", "Label") if integer else ("a label", "OneHot or Condition")
                kind = "float32" if integer is None else str(integer).removeprefix("torch.")
                raise ExportError(
                    f"{self.path}: its input {text} is {kind}, and {given} would be given: the "
                    f"latent is float32; describe another input as {how} in inputs (--input)"
                )
            if shape is None:
                continue
            fits = len(shape) == value.ndim and all(
                size is None or size == own
                for size, own in zip(shape[1:], value.shape[1:], strict=True)
            )
            if not fits:
                own = _text([None, *value.shape[1:]])
                raise ExportError(
                    f"{self.path} takes {text}, got {own}: check latent_shape and inputs"
                )
        return tuple(
            value if integer is None else value.to(integer)
            for value, integer in zip(inputs, self._integers, strict=True)
        )

    def _value(self, name: str, values: dict[str, Any]) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        if name in self._arrays:
            return self._arrays[name]
        return getattr(self, self._tensors[name])

    def _results(self, step: _Step, values: dict[str, Any], latent: Tensor) -> Sequence[Any]:
        operation = step.operation
        inputs = [self._value(name, values) for name in step.inputs]
        if any(isinstance(value, np.ndarray) for value in inputs):
            arrays = [
                self._numbers.get(name, value)
                for name, value in zip(step.inputs, inputs, strict=True)
            ]
            if not any(isinstance(value, Tensor) for value in arrays):
                results = on_arrays(operation, arrays)
                if results is not None:
                    return results
        if operation.kind not in OPERATORS:
            raise operation.unsupported("limits that depend on the latent")
        for i, name in enumerate(step.inputs):
            if i in NUMBERS.get(operation.kind, ()):
                inputs[i] = self._numbers.get(name, inputs[i])
            elif isinstance(inputs[i], np.ndarray) and operation.kind not in ("Shape", "Size"):
                inputs[i] = _tensor(inputs[i], latent)
        if operation.kind == "BatchNormalization" and self.batch_statistics:
            operation = replace(operation, batch_statistics=True)
        result = OPERATORS[operation.kind](operation, *inputs)
        if operation.kind == "ConstantOfShape":
            result = result.to(latent) if result.is_floating_point() else result.to(latent.device)
        results = result if isinstance(result, tuple) else (result,)
        return [array_of(one) if isinstance(one, np.ndarray) else one for one in results]


def _stripped(names: Sequence[str]) -> list[str]:
    """The names without the empty ones at the end, which stand for omitted values."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _needed(graph: GraphProto, output: str) -> list[NodeProto]:
    """The nodes that an output depends on, in order."""
    wanted, kept = {output}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted.update(name for name in node.input if name)
            kept.append(node)
    return kept[::-1]


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    """An array as a tensor, on the device of ``like`` and with its floating-point type."""
    if is_symbolic(array):
        raise ExportError(
            "values that depend on the number of latents, which an exported function must not have"
        )
    made = constant(array)
    return made.to(like) if made.is_floating_point() else made.to(like.device)


def _has_channels_last(image: Tensor) -> bool:
    """Whether these are images [B, H, W, C], as files from TensorFlow return them."""
    if image.ndim != 4:
        return False
    _, height, width, channels = image.shape
    return min(int(height), int(width)) > _MOST_CHANNELS >= int(channels)


def _declared_shape(value: ValueInfoProto) -> list[int | None] | None:
    """An input's sizes, None where they are dynamic; None if the file gives no shape."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]


def _text(shape: Sequence[Any] | None) -> str:
    if shape is None:
        return "of any shape"
    return f"[{', '.join(['B', *('?' if size is None else str(int(size)) for size in shape[1:])])}]"


def _described(value: ValueInfoProto) -> str:
    return f"{value.name} {_text(_declared_shape(value))}"


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()
