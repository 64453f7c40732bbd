"""Write traced graphs as methods of one TorchScript module that share its weights.

Each method is generated as TorchScript source, one line per node, and compiled by torch.jit.
`torch.jit.trace` would fix the example's batch size.
"""

from __future__ import annotations

import hashlib
import io
import math
import operator
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, fx

from pyinv import _core
from pyinv.errors import ExportError

from ..diagnostics import first_line, quiet
from ..passes.graph import Signature, add_constant, constant, copied, insert, is_op, shape
from .torchscript_by_target import (
    convolution_by_target,
    transposed_by_target,
    weight_gradient_by_target,
)

__all__ = ["FUNCTIONS_FILE", "method_names", "write_torchscript"]

FUNCTIONS_FILE = "functions.pt"

aten = torch.ops.aten

_INFIX = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.truediv: "/",
}
# Values that every graph has for these arguments: the layout and kind of memory.
_DROPPED = ("layout", "pin_memory")
# A fixed date that is valid in zip files.
_DATE = (1980, 1, 1, 0, 0, 0)


def method_names(functions: Iterable[tuple[str, str]]) -> list[str]:
    """Return the method name of each function, given as (name, loss); the loss may be empty.

    Loss names may contain characters that method names cannot.
    """
    names: list[str] = []
    for function, loss in functions:
        name = plain = re.sub(r"[^A-Za-z0-9_]", "_", f"{function}_{loss}" if loss else function)
        number = 2
        while name in names:
            name = f"{plain}_{number}"
            number += 1
        names.append(name)
    return names


def write_torchscript(
    module: fx.GraphModule,
    methods: Mapping[str, Signature],
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str],
) -> None:
    """Write a simplified graph as a TorchScript file with one method per function, batch dynamic.

    A method with several results also takes an optional last argument ``out``, a tuple of tensors:
    its last operations then write to these, and it returns ``out``. They must not overlap the
    inputs. The same graph and weights always give the same bytes.

    Args:
        module: a simplified graph; it is not changed.
        methods: each method's part of the graph, by method name.
        path: the file to write.
        inputs: the names of the graph's inputs.

    Raises:
        ExportError: TorchScript has no counterpart for an operator, which the message names.
    """
    module = copied(module)
    _as_one_kernel(module)
    weights = _Weights()
    sources = [
        _Source(module, weights, name, signature, inputs).text()
        for name, signature in methods.items()
    ]
    # Into memory: writing to a file, PyTorch would hide the system's error (a full disk).
    raw = io.BytesIO()
    try:
        with quiet():
            scripted = _module(weights.tensors, _sizes(module, inputs, methods))
            scripted.define("\n".join(sources))
            torch.jit.save(scripted, raw)
    except RuntimeError as error:
        raise ExportError(
            f"the generator or a loss cannot be written as TorchScript: {first_line(error)}"
        ) from error
    _write_plain(raw, Path(path))


def _sizes(
    module: fx.GraphModule, inputs: Sequence[str], methods: Mapping[str, Signature]
) -> dict[str, int | list[int]]:
    """The inputs' sizes, which the file records because methods do not declare them.

    Also the size of what forward generates, which is not that of targets that are observations.
    """
    placeholders = (node for node in module.graph.nodes if node.op == "placeholder")
    rows = {given: shape(node)[1:] for node, given in zip(placeholders, inputs, strict=True)}  # type: ignore[index]
    sizes: dict[str, int | list[int]] = {
        "latent_size": rows["latent"][0],
        "image_shape": list(rows["image"]),
        "condition_size": rows.get("condition", (0,))[0],
    }
    if "forward" in methods:
        (position,) = methods["forward"].outputs
        results = next(node for node in module.graph.nodes if node.op == "output").args[0]
        sizes["generated_shape"] = list(shape(results[position])[1:])  # type: ignore[index]
    return sizes


def _module(
    tensors: Mapping[str, Tensor], sizes: Mapping[str, int | list[int]]
) -> torch.jit.ScriptModule:
    """Create a module with these buffers and numbers, and no methods."""

    # Modules of one class share a TorchScript type and its methods.
    class Functions(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name, tensor)
            for name, size in sizes.items():
                setattr(self, name, size)

    return Functions().eval()


class _Weights:
    """The module's tensors, by name; equal ones are stored once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[Any, str] = {}

    def name(self, tensor: Tensor) -> str:
        """The name of the buffer with this tensor's values."""
        tensor = tensor.detach().contiguous()
        content = hashlib.sha256(tensor.numpy().tobytes()).digest()
        key = (content, tensor.dtype, tuple(tensor.shape))
        if key not in self._known:
            # The same values in another shape share storage, also in the file.
            first = self._known.setdefault(key[:2], f"weight_{len(self.tensors)}")
            name = f"weight_{len(self.tensors)}"
            self.tensors[name] = self.tensors.get(first, tensor).view(tensor.shape)
            self._known[key] = name
        return self._known[key]

    def number(self, value: float) -> str:
        """The name of a 0-dimensional buffer with this number."""
        return self.name(
            torch.tensor(value, dtype=torch.float32 if isinstance(value, float) else None)
        )


class _Source:
    """The source of one method."""

    def __init__(
        self,
        module: fx.GraphModule,
        weights: _Weights,
        name: str,
        signature: Signature,
        inputs: Sequence[str],
    ) -> None:
        self.module = module
        self.weights = weights
        self.name = name
        self.signature = signature
        results = next(node for node in module.graph.nodes if node.op == "output").args[0]
        self.results: list[fx.Node] = [results[position] for position in signature.outputs]
        # Tensors created by the method are on the device where it runs.
        self.device = f"{signature.inputs[0]}.device"
        self.names: dict[fx.Node, str] = {}
        placeholders = (node for node in module.graph.nodes if node.op == "placeholder")
        for node, given in zip(placeholders, inputs, strict=True):
            self.names[node] = given

    def text(self) -> str:
        """The method's source."""
        nodes = self.needed()
        last = [node for node in self.results if node.op == "call_function"]
        last = [node for node in last if not node.users.keys() & set(nodes)]
        lines = [self.head()]
        for node in nodes:
            if node.op == "get_attr":
                tensor = constant(self.module, node)
                assert tensor is not None
                self.names[node] = f"self.{self.weights.name(tensor)}"
            elif node.op == "call_function" and node not in last:
                value = self.call(node)
                self.names[node] = f"v{len(self.names)}"
                lines.append(f"{self.names[node]} = {value}")
        values = [self.call(node) if node in last else self.names[node] for node in self.results]
        if self.has_out:
            lines.append("if out is not None:")
            for i, (node, value) in enumerate(zip(self.results, values, strict=True)):
                keyword = _out_keyword(node.target) if node in last else None
                into = f"out[{i}].copy_({value})"
                if keyword is not None:
                    into = self.call(node, {keyword: f"out[{i}]"})
                lines.append(f"    {into}")
            lines.append("    return out")
        # Some operators return non-contiguous results.
        lines.append(f"return {', '.join(f'{value}.contiguous()' for value in values)}")
        return "\n    ".join(lines) + "\n"

    @property
    def has_out(self) -> bool:
        return len(self.results) > 1

    def head(self) -> str:
        arguments = [f"{given}: Tensor" for given in self.signature.inputs]
        result = "Tensor"
        if self.has_out:
            result = f"Tuple[{', '.join(['Tensor'] * len(self.results))}]"
            arguments.append(f"out: Optional[{result}] = None")
        return f"def {self.name}(self, {', '.join(arguments)}) -> {result}:"

    def needed(self) -> list[fx.Node]:
        """The nodes that the results depend on, in order."""
        needed = set(self.results)
        for node in reversed(self.module.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return [node for node in self.module.graph.nodes if node in needed]

    def call(self, node: fx.Node, out: Mapping[str, str] | None = None) -> str:
        """The expression that computes a node, with the keyword ``out`` if given."""
        target = node.target
        if is_op(node, "sym_size"):
            return f"{self.value(node.args[0])}.size({self.value(node.args[1])})"
        if is_op(node, "sym_numel"):
            return f"{self.value(node.args[0])}.numel()"
        if target is operator.getitem:
            return f"{self.value(node.args[0])}[{self.value(node.args[1])}]"
        if target in _INFIX:
            left, right = (self.value(argument) for argument in node.args)
            return f"({left} {_INFIX[target]} {right})"
        if not isinstance(target, torch._ops.OpOverload):
            raise ExportError(
                f"the generator or a loss uses {getattr(target, '__name__', target)}, which "
                "cannot be exported to TorchScript: write that layer with other operators"
            )
        if not _core.torchscript_allows(target._schema.name):
            raise ExportError(
                f"the generator or a loss uses {target._schema.name}, which the TorchScript "
                "runtime does not run: write that layer with other operators"
            )
        space, _, operation = target._schema.name.partition("::")
        declared = target._schema.arguments
        by_name = {argument.name: argument for argument in declared}
        arguments = []
        for position, value in enumerate(node.args):
            if isinstance(value, int | float) and "Tensor" in str(declared[position].type):
                # Arithmetic has overloads with a number as the second operand. With an out
                # argument, such an overload would compute the result first and then copy it.
                plain = is_op(node, "add", "sub", "mul", "div") and position == 1 and not out
                value = value if plain else _Name(f"self.{self.weights.number(value)}")
            arguments.append(self.value(value, declared[position]))
        for key, value in node.kwargs.items():
            if key not in _DROPPED and value is not None:
                arguments.append(f"{key}={self.value(value, by_name[key])}")
        takes_tensors = any("Tensor" in str(argument.type) for argument in declared)
        if "device" in by_name and not takes_tensors and node.kwargs.get("device") is None:
            arguments.append(f"device={self.device}")
        arguments += [f"{key}={value}" for key, value in (out or {}).items()]
        return f"torch.ops.{space}.{operation}({', '.join(arguments)})"

    def value(self, value: Any, argument: Any = None) -> str:
        """Format an argument as source text."""
        if isinstance(value, _Name):
            return str(value)
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, list | tuple):
            written = f"[{', '.join(self.value(item) for item in value)}]"
            if argument is not None and (not value or None in value):
                kind = argument.type
                if isinstance(kind, torch._C.OptionalType):
                    kind = kind.getElementType()
                return f"torch.jit.annotate({kind.annotation_str}, {written})"
            return written
        if isinstance(value, torch.device):
            return self.device
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        if value is None or isinstance(value, bool | int | float | str):
            return repr(value)
        if isinstance(value, torch.dtype | torch.memory_format):
            return str(value)
        raise ExportError(f"TorchScript cannot be given {value!r} as an argument")


class _Name(str):
    """Source text that is written verbatim."""


def _out_keyword(target: Any) -> str | None:
    """The operator's keyword for an output tensor; None if using it would only add a copy."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    own = [(a.name, str(a.type)) for a in target._schema.arguments]
    for name in target.overloadpacket.overloads():
        other = getattr(target.overloadpacket, name)
        out: list[str] = [a.name for a in other._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in other._schema.arguments if not a.is_out]
        # Generated out overloads compute the result as usual and then copy it.
        if len(out) == 1 and rest == own and torch.Tag.generated not in other.tags:
            return out[0]
    return None


def _as_one_kernel(module: fx.GraphModule) -> None:
    """Replace several operators by single ones that PyTorch has and ONNX does not.

    Each operator removed saves a pass over memory, which is where such operators spend their time.
    """
    for rewritten in (
        _rectifier_gradient,
        _activation_gradient,
        _scaled_product,
        _reverse,
        convolution_by_target,
        transposed_by_target,
        weight_gradient_by_target,
    ):
        for node in list(module.graph.nodes):
            with module.graph.inserting_before(node):
                by = rewritten(module, node)
            if by is not None:
                node.replace_all_uses_with(by)
        module.graph.eliminate_dead_code()


def _factor(node: Any, other: Any) -> float | None:
    """Return c if a node is c * other."""
    if not is_op(node, "mul") or node.args[0] is not other:
        return None
    return node.args[1] if isinstance(node.args[1], float) else None


def _rectifier_gradient(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Replace where(a > 0, g, c * g); c may be 0."""
    if not is_op(node, "where") or not is_op(node.args[0], "gt"):
        return None
    (a, threshold), (gradient, below) = node.args[0].args, node.args[1:]  # type: ignore[union-attr]
    if threshold != 0 or not shape(a) == shape(gradient) == shape(node):  # type: ignore[arg-type]
        return None
    zero = constant(module, below)
    if zero is not None and zero.numel() == 1 and float(zero) == 0:
        return insert(module.graph, aten.threshold_backward.default, gradient, a, 0)
    slope = _factor(below, gradient)
    if slope is None:
        return None
    return insert(module.graph, aten.leaky_relu_backward.default, gradient, a, slope, False)


def _activation_gradient(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Replace the gradient of tanh, g (1 - y y), or of sigmoid, g (y (1 - y))."""
    if not is_op(node, "mul"):
        return None
    for gradient, slope in (node.args, reversed(node.args)):
        found = _slope(slope)
        if found is None or not isinstance(gradient, fx.Node):
            continue
        backward, y = found
        if shape(y) == shape(gradient) == shape(node):
            return insert(module.graph, backward, gradient, y)
    return None


def _slope(node: Any) -> tuple[Any, fx.Node] | None:
    """Return the backward operator of the activation with output y, and y."""
    if is_op(node, "sub") and node.args[0] == 1 and is_op(node.args[1], "mul"):
        y, other = node.args[1].args
        return (aten.tanh_backward.default, y) if y is other else None
    if is_op(node, "mul"):
        for y, rest in (node.args, reversed(node.args)):
            if is_op(rest, "sub") and rest.args[0] == 1 and rest.args[1] is y:
                return aten.sigmoid_backward.default, y
    return None


def _scaled_product(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Replace c * (A @ B), the end of most gradients."""
    product = node.args[0] if node.args else None
    if not is_op(product, "mm") or len(product.users) != 1:  # type: ignore[union-attr]
        return None
    factor = _factor(node, product)
    if factor is None:
        return None
    unused = add_constant(module, torch.zeros(()))
    matrices = product.args  # type: ignore[union-attr]
    return insert(module.graph, aten.addmm.default, unused, *matrices, beta=0, alpha=factor)


def _reverse(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Replace c - x, for which sub would need c as a tensor."""
    if not is_op(node, "sub") or not isinstance(node.args[0], int | float) or node.kwargs:
        return None
    return insert(module.graph, aten.rsub.Scalar, node.args[1], node.args[0])


def _write_plain(source: BinaryIO, target: Path) -> None:
    """Copy a TorchScript file without the parts that differ between identical modules.

    torch.jit numbers the classes of a process and records the source location of each operator.
    """
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            name = entry.filename.partition("/")[2]
            if name.endswith(".debug_pkl") or name == ".data/serialization_id":
                continue
            data = old.read(entry)
            if name.startswith("code/") or name == "data.pkl":
                name = re.sub(r"/___torch_mangle_\d+", "", name)
                data = re.sub(rb"\.___torch_mangle_\d+", b"", data)
            new.writestr(zipfile.ZipInfo(f"{target.stem}/{name}", _DATE), data)
