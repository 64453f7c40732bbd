"""Write traced graphs as ONNX files that share one weights file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import onnx
import onnx_ir as ir
import torch
from onnx import ModelProto, TensorProto
from onnxscript import optimizer, rewriter
from torch import fx

from pyinv.errors import ExportError

from ..diagnostics import first_line, named_operator, quiet
from ..passes.graph import Signature, copied, is_op
from .onnx_fusion import fuse

__all__ = ["OPSET", "WEIGHTS_FILE", "WeightsFile", "to_onnx", "write_onnx"]

OPSET = 20
WEIGHTS_FILE = "weights.bin"

# ONNX Runtime maps external data into memory; vector loads are faster if it is aligned.
_ALIGNMENT = 64
# Smaller tensors, such as the sizes of a reshape, are read while a session is created, and stay
# inline.
_SMALLEST_EXTERNAL_BYTES = 64
# In elements. Larger constants are weights, which are stored once and never folded.
_LARGEST_FOLDED = 1024
_EXAMPLE_BATCH = 3
# Larger than the optimizer's tolerance, which is 1e-8 at 0 and 1e-5 at 1.
_ALMOST = 1e-4


def to_onnx(
    module: fx.GraphModule,
    functions: Sequence[Signature],
    *,
    inputs: Mapping[str, Sequence[int]],
) -> list[ModelProto]:
    """Convert a simplified graph to one ONNX model per function, with a dynamic batch axis.

    The graph is converted once and then cut: most of a conversion's time does not depend on the
    graph, and functions cut from one graph use the same names for shared weights.

    Args:
        module: a simplified graph; it is not changed.
        functions: the functions to cut from it.
        inputs: the name and shape, without the batch axis, of each of the graph's inputs.

    Raises:
        ExportError: ONNX has no counterpart for an operator, which the message names.
    """
    module = copied(module)
    _as_torchlib_expects(module)
    batch = torch.export.Dim("batch")
    examples = tuple(torch.zeros(_EXAMPLE_BATCH, *sizes) for sizes in inputs.values())
    try:
        with quiet():
            program = torch.export.export(
                module, examples, dynamic_shapes=tuple({0: batch} for _ in inputs)
            )
    except Exception as error:
        raise ExportError(
            f"the generator or a loss cannot be exported for any batch size: {first_line(error)}"
        ) from error
    # torch.export reads the batch size from any input, also from one that a function does not take.
    shared = next(
        place for place, name in enumerate(inputs) if all(name in one.inputs for one in functions)
    )
    _read_batch_from(program, shared)
    try:
        with quiet():
            model = _translated(program)
            _dense_as_gemm(model)
            _plain_softplus(model)
            _keep_almost_neutral(model)
            _optimize(model)
    except Exception as error:
        operator = named_operator(error)
        if operator is not None:
            raise ExportError(
                f"the generator or a loss, or its gradient, uses {operator}, which cannot be "
                "exported to ONNX: write that layer with other operators, or export with "
                "runtimes='torchscript'"
            ) from error
        raise ExportError(f"the graph cannot be written as ONNX: {first_line(error)}") from error
    _tidy(model)
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
    for position, value in enumerate(model.graph.outputs):
        value.name = f"output_{position}"
    whole = ir.to_proto(model)
    models = [fuse(_cut(whole, function)) for function in functions]
    try:
        for fused in models:
            onnx.checker.check_model(fused)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"the graph cannot be written as ONNX: {first_line(error)}; a network may read sizes "
            "from its input's shape, but not numbers from tensors"
        ) from error
    return models


def _read_batch_from(program: torch.export.ExportedProgram, place: int) -> None:
    """Let a graph read the batch size from one of its inputs."""
    taken = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if is_op(node, "sym_size") and node.args[0].name in taken and node.args[1] == 0:
            source = next(other for other in program.graph.nodes if other.name == taken[place])
            node.args = (source, 0)


def _translated(program: torch.export.ExportedProgram) -> Any:
    """Translate a graph's operators to ONNX."""

    def translate() -> Any:
        exported = torch.onnx.export(
            program, dynamo=True, optimize=False, verbose=False, opset_version=OPSET
        )
        assert exported is not None
        return exported.model

    # Decomposition traces the graph again, and the graph consists of basic operators already.
    program.run_decompositions = lambda *_: program
    try:
        return translate()
    except Exception:
        del program.run_decompositions
        return translate()


def _as_torchlib_expects(module: fx.GraphModule) -> None:
    """Choose overloads and arguments that each convert to a single ONNX node."""
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if is_op(node, "add", "sub", "mul", "div") and value is not None:
            # An integer constant would need a cast at run time.
            if value.is_floating_point():
                node.args = tuple(float(a) if type(a) is int else a for a in node.args)
        elif is_op(node, "upsample_bilinear2d", "upsample_bicubic2d"):
            x, size, align_corners, *scales = node.args
            known = len(scales) == 2 and None not in scales
            node.target = getattr(torch.ops.aten, node.target._schema.name[6:]).vec
            node.args = (x, None if known else size, align_corners, scales if known else None)
    module.recompile()


def _transposed(value: ir.Value | None) -> ir.Value | None:
    """Return W if a value is the transpose of a stored matrix W."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose":
        return None
    source = node.inputs[0]
    return source if source is not None and source.is_initializer() else None


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else value.shape.rank()


def _dense_as_gemm(model: ir.Model) -> None:
    """Write products with stored matrices as Gemm, with transposition as an attribute."""
    for node in list(model.graph):
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        matrix = node.inputs[1]
        if matrix is None:
            continue
        stored = _transposed(matrix)
        if node.op_type == "Gemm":
            if stored is not None and not node.attributes.get_int("transB", 0):
                node.replace_input_with(1, stored)
                node.attributes["transB"] = ir.AttrInt64("transB", 1)
            continue
        weight = stored or matrix
        left = node.inputs[0]
        if left is None or not weight.is_initializer() or _rank(left) != 2 or _rank(weight) != 2:
            continue
        gemm = ir.node("Gemm", [left, weight], {"transB": 1} if stored is not None else {})
        gemm.outputs[0].shape, gemm.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [gemm], node.outputs, gemm.outputs
        )


def _plain_softplus(model: ir.Model) -> None:
    """Remove the switch to x for large x: ONNX's Softplus rounds to x there."""
    for node in list(model.graph):
        if node.op_type != "Where":
            continue
        _, x, softplus = node.inputs
        source = softplus.producer() if softplus is not None else None
        if softplus is None or source is None:
            continue
        if source.op_type == "Softplus" and source.inputs[0] is x:
            ir.convenience.replace_all_uses_with(node.outputs[0], softplus)


def _keep_almost_neutral(model: ir.Model) -> None:
    """Hide numbers that are almost 0 or 1 from the optimizer, which would remove their operator.

    Its rules for x + 0 and x * 1 compare scalars with a tolerance that treats a normalisation's
    1e-8 as 0. They do not compare tensors of one element.
    """
    for node in list(model.graph):
        if node.op_type not in ("Add", "Sub", "Mul", "Div"):
            continue
        for position, value in enumerate(node.inputs):
            other = node.inputs[1 - position]
            tensor = ir.convenience.get_const_tensor(value) if value is not None else None
            if tensor is None or tensor.shape.rank() != 0 or other is None or not _rank(other):
                continue
            number = tensor.numpy()
            if any(0 < abs(number - neutral) < _ALMOST for neutral in (0, 1)):
                hidden = ir.node("Constant", [], {"value": ir.tensor(number.reshape(1))})
                model.graph.insert_before(node, hidden)
                node.replace_input_with(position, hidden.outputs[0])


def _optimize(model: ir.Model) -> None:
    """Fold constants and remove operators that do nothing.

    The optimizer's rule that joins two slices to a Split is left out: it lists the whole graph
    again for each node, which took half of the time of a UNet's export.
    """
    name = "_DEFAULT_REWRITE_RULES"  # not public: another version may keep its rules elsewhere
    rules = getattr(rewriter, name, ())
    patterns = [getattr(rule, "_target_pattern", None) for rule in rules]
    kept = tuple(
        rule
        for rule, pattern in zip(rules, patterns, strict=True)
        if getattr(pattern, "has_single_output_node", True)
    )
    with patch.object(rewriter, name, kept, create=True):
        optimizer.optimize(
            model, input_size_limit=_LARGEST_FOLDED, output_size_limit=_LARGEST_FOLDED
        )


def _tidy(model: ir.Model) -> None:
    """Turn constants into initializers; remove metadata and attributes that equal their default."""
    from onnx_ir.passes import common

    for work in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        work(model)
    graph = model.graph
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        if node.op_type == "Reshape":
            # The two modes differ only for sizes of 0, which are never traced.
            node.attributes.pop("allowzero", None)
        for name, default in _DEFAULTS.get(node.op_type, {}).items():
            if name in node.attributes and node.attributes[name].value == default:
                del node.attributes[name]
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "pyinv", None


_DEFAULTS: dict[str, dict[str, Any]] = {
    "Conv": {"auto_pad": "NOTSET"},
    "ConvTranspose": {"auto_pad": "NOTSET", "output_padding": (0, 0)},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "ReduceMean": {"noop_with_empty_axes": 0},
    "ReduceSum": {"noop_with_empty_axes": 0},
}


def _cut(whole: ModelProto, function: Signature) -> ModelProto:
    """Extract the part of a model that computes one function, with the function's names."""
    names = {f"output_{position}": name for position, name in function.outputs.items()}
    needed = set(names)
    nodes = []
    for node in reversed(whole.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    cut = ModelProto()
    cut.CopyFrom(whole)
    graph = cut.graph
    for field in ("node", "input", "output", "initializer", "value_info"):
        graph.ClearField(field)
    graph.name = "pyinv"
    graph.node.extend(reversed(nodes))
    for node in graph.node:
        node.ClearField("name")
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    graph.input.extend(value for value in whole.graph.input if value.name in function.inputs)
    graph.output.extend(value for value in whole.graph.output if value.name in names)
    graph.initializer.extend(t for t in whole.graph.initializer if t.name in needed)
    for value in [*graph.input, *graph.output]:
        value.name = names.get(value.name, value.name)
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return cut


class WeightsFile:
    """A file that stores every distinct tensor of several graphs once.

    Tensors with equal bytes are stored once, even if their shapes differ.

    Args:
        file: the stream to write to.
        name: the file's name in the bundle.
    """

    def __init__(self, file: BinaryIO, name: str = WEIGHTS_FILE) -> None:
        self.name = name
        self._file = file
        self._places: dict[bytes, int] = {}
        self._end = 0

    def place(self, data: bytes) -> int:
        """Return the offset of the data, which is written if it is new."""
        if data not in self._places:
            padding = -self._end % _ALIGNMENT
            self._file.write(bytes(padding))
            self._file.write(data)
            self._places[data] = self._end + padding
            self._end += padding + len(data)
        return self._places[data]


def write_onnx(model: ModelProto, path: str | os.PathLike[str], weights: WeightsFile) -> None:
    """Write a model, and its large tensors to the shared weights file."""
    stored = ModelProto()
    stored.CopyFrom(model)
    for tensor in stored.graph.initializer:
        data = onnx.numpy_helper.to_array(tensor).tobytes()
        if len(data) < _SMALLEST_EXTERNAL_BYTES or tensor.data_type != TensorProto.FLOAT:
            continue
        offset = weights.place(data)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (
            ("location", weights.name),
            ("offset", str(offset)),
            ("length", str(len(data))),
        ):
            tensor.external_data.add(key=key, value=value)
    Path(path).write_bytes(stored.SerializeToString(deterministic=True))
