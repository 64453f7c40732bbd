"""Read TorchScript generators as modules that can be traced.

A ScriptModule runs in its own interpreter, which is opaque to tracing. ``Scripted`` walks the same
graph in Python and calls the same ATen operators; sizes may be symbolic.
"""

from __future__ import annotations

import math
import operator
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyinv.errors import ExportError

from ..diagnostics import first_line, quiet
from .torchscript_archive import check_archive, check_operator, check_tensor

__all__ = ["Scripted", "load_torchscript"]

aten = torch.ops.aten


def load_torchscript(
    path: str | os.PathLike[str], *, what: str = "generator"
) -> torch.jit.ScriptModule:
    """Load a TorchScript file onto the CPU, whatever device it was saved from.

    ``what`` names the file's contents in error messages.

    Raises:
        ExportError: the file does not exist, is not a TorchScript file, or has code or operators
            that pyinv does not run from a file.
    """
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"{path} is a folder; expected a TorchScript file")
    if not path.is_file():
        other = " or 'path/to/file.py:factory'" if what == "generator" else ""
        raise ExportError(f"no file {path}: give a TorchScript file{other}")
    if not _contains_code(path):
        other = "load it there, or"
        if what == "generator":
            other = "give 'path/to/file.py:factory' with a factory that loads it, or"
        raise ExportError(
            f"{path} is not a TorchScript file: what torch.save writes (a state dict, a pickled "
            f"module) needs the {what}'s source; {other} save torch.jit.script({what.split()[-1]}) "
            "with torch.jit.save"
        )
    check_archive(path)
    try:
        with quiet():
            module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise ExportError(f"{path} cannot be loaded: {first_line(error)}") from error
    assert isinstance(module, torch.jit.ScriptModule)
    return module


def _contains_code(path: Path) -> bool:
    """Whether this is a zip file that contains code; one written by torch.save does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):  # ValueError: names that are no UTF-8
        return False
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)


# TorchScript's numbers for dtypes. All floating-point types are exported as float32.
_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float32,
    6: torch.float32,
    7: torch.float32,
    11: torch.bool,
    15: torch.float32,
}
_DTYPE_NUMBERS = {torch.float16: 6, torch.float64: 6, torch.bfloat16: 6} | {
    dtype: number for number, dtype in _DTYPES.items() if number not in (5, 7, 15)
}
_MEMORY_FORMATS = {
    0: torch.contiguous_format,
    1: torch.preserve_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
}


def _number(value: Any) -> Any:
    """int(value), except that symbolic sizes are returned as they are."""
    return value if isinstance(value, int | torch.SymInt) else int(value)


def _power(base: Any, exponent: Any) -> Any:
    return base**exponent


def _divided(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    # Sizes are positive, so rounding down and rounding towards 0 agree.
    return a / b if rounding_mode is None else a // b


def _converted(x: Any, dtype: Any, *_: Any) -> Any:
    return float(x) if _DTYPES.get(dtype) is torch.float32 else x


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


def _format(text: str, *values: Any) -> str:
    # Not str.format, with which a text can read the attributes of the values.
    for value in values:
        text = text.replace("{}", str(value), 1)
    return text


# Operations on sizes, flags and lists, which run in Python; operations on tensors run in ATen.
_PLAIN: dict[str, Callable[..., Any]] = {
    "aten::Bool": bool,
    "aten::Float": float,
    "aten::FloatImplicit": float,
    "aten::Int": _number,
    "aten::IntImplicit": _number,
    "aten::ScalarImplicit": lambda x: x.item() if isinstance(x, Tensor) else x,
    "aten::__and__": lambda a, b: a and b,
    "aten::__contains__": operator.contains,
    "aten::__getitem__": operator.getitem,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__not__": operator.not_,
    "aten::__or__": lambda a, b: a or b,
    "aten::_unwrap_optional": lambda x: x,
    "aten::add": operator.add,
    "aten::append": _append,
    "aten::ceil": math.ceil,
    "aten::detach": lambda x: x,
    "aten::dim": lambda x: x.ndim,
    "aten::div": _divided,
    "aten::eq": operator.eq,
    "aten::exp": math.exp,
    "aten::floor": math.floor,
    "aten::floor_divide": operator.floordiv,
    "aten::floordiv": operator.floordiv,
    "aten::format": _format,
    "aten::ge": operator.ge,
    "aten::gt": operator.gt,
    "aten::is_floating_point": lambda x: x.is_floating_point(),
    "aten::item": lambda x: x.item() if isinstance(x, Tensor) else x,
    "aten::le": operator.le,
    "aten::len": len,
    "aten::list": list,
    "aten::log": math.log,
    "aten::lt": operator.lt,
    "aten::mul": operator.mul,
    "aten::ne": operator.ne,
    "aten::neg": operator.neg,
    "aten::numel": lambda x: x.numel(),
    "aten::pow": _power,
    "aten::remainder": operator.mod,
    "aten::rsub": lambda a, b: b - a,
    "aten::size": lambda x, *axis: x.shape[axis[0]] if axis else list(x.shape),
    "aten::slice": lambda items, start, end, step: items[start:end:step],
    "aten::sqrt": math.sqrt,
    "aten::sub": operator.sub,
    "aten::to": _converted,
    "aten::warn": lambda *_: None,
    "prim::DictConstruct": lambda *items: dict(zip(items[::2], items[1::2], strict=True)),
    "prim::ListConstruct": lambda *items: list(items),
    "prim::NumToTensor": lambda x: x,
    "prim::TupleConstruct": lambda *items: items,
    "prim::TupleIndex": lambda items, index: items[index],
    "prim::Uninitialized": lambda: None,
    "prim::abs": abs,
    "prim::device": lambda x: x.device,
    "prim::dtype": lambda x: _DTYPE_NUMBERS.get(x.dtype),
    "prim::is_cuda": lambda x: False,
    "prim::max": lambda *values: max(*values),
    "prim::min": lambda *values: min(*values),
    "prim::unchecked_cast": lambda x: x,
    "prim::unchecked_unwrap_optional": lambda x: x,
}
# Operations in _PLAIN that take a tensor but are not ATen operators: conversions to a number,
_CONVERSIONS = (
    "aten::Bool",
    "aten::Float",
    "aten::FloatImplicit",
    "aten::Int",
    "aten::IntImplicit",
    "aten::ScalarImplicit",
    "aten::item",
)
# and queries.
_QUERIES = ("aten::dim", "aten::is_floating_point", "aten::len", "aten::numel", "aten::size")


@dataclass(frozen=True)
class _Block:
    """A sequence of steps. Values are referred to by name."""

    inputs: tuple[str, ...]
    steps: tuple[_Step, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class _Step:
    """One node of the graph.

    kind: the node's kind, such as "aten::relu" or "prim::If".
    operator: the ATen operator that implements it; None for sizes, lists and control flow.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    blocks: tuple[_Block, ...]
    operator: Any


class Scripted(nn.Module):
    """The forward method of a TorchScript module, in eval mode.

    Its tensors are copies, registered as buffers. Devices named in the graph are ignored, and
    floating-point types become float32.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.batch_statistics = False
        if "forward" not in module._c._method_names():
            raise ExportError("the TorchScript module has no forward method")
        with quiet():
            graph = module.inlined_graph
            schema = module._c._get_method("forward").schema
        self._values: dict[str, Any] = {}
        self._numbers: dict[str, Any] = {}
        self._buffers_by_key: dict[Any, str] = {}
        owner, *inputs = (value.debugName() for value in graph.inputs())
        self._objects: dict[str, Any] = {owner: module._c}
        self._names = {owner: ""}
        self._block = self._read(graph, inputs)
        del self._objects, self._names, self._buffers_by_key
        arguments = schema.arguments[1:]
        self.input_names = tuple(argument.name for argument in arguments)
        self._required = sum(not argument.has_default_value() for argument in arguments)
        self._defaults = [
            argument.default_value if argument.has_default_value() else None
            for argument in arguments
        ]

    # -- Reading -------------------------------------------------------------------------------

    def _read(self, block: Any, inputs: Sequence[str]) -> _Block:
        steps = []
        for node in block.nodes():
            names = tuple(value.debugName() for value in node.outputs())
            if node.kind() == "prim::CreateObject":
                raise ExportError(
                    "the TorchScript generator creates an object of a class of its own, which "
                    "cannot be exported: export the torch.nn.Module that it was made from"
                )
            check_operator(node.kind())
            if node.kind() == "prim::Constant":
                value = node.output().toIValue()
                self._values[names[0]] = self._own(value, key=names[0])
                if isinstance(value, Tensor) and value.ndim == 0:
                    self._numbers[names[0]] = value.item()
            elif node.kind() == "prim::GetAttr":
                self._attribute(node, names[0])
            else:
                steps.append(
                    _Step(
                        node.kind(),
                        tuple(value.debugName() for value in node.inputs()),
                        names,
                        tuple(
                            self._read(inner, [value.debugName() for value in inner.inputs()])
                            for inner in node.blocks()
                        ),
                        _operator(node),
                    )
                )
        outputs = [value.debugName() for value in block.outputs()]
        return _Block(tuple(inputs), tuple(steps), tuple(outputs))

    def _attribute(self, node: Any, output: str) -> None:
        owner = node.input().debugName()
        name = node.s("name")
        path = f"{self._names[owner]}.{name}"
        value = self._objects[owner].getattr(name)
        if isinstance(value, torch.jit.ScriptModule):
            value = value._c
        if isinstance(value, torch._C.ScriptModule | torch._C.ScriptObject):
            self._objects[output], self._names[output] = value, path
        else:
            self._values[output] = False if name == "training" else self._own(value, key=path)

    def _own(self, value: Any, *, key: Any) -> Any:
        """Return the value with its tensors registered as buffers of this module."""
        if isinstance(value, Tensor):
            check_tensor(value)
            if key not in self._buffers_by_key:
                self._buffers_by_key[key] = f"tensor_{len(self._buffers_by_key)}"
                self.register_buffer(self._buffers_by_key[key], value.detach().clone())
            return _Buffer(self._buffers_by_key[key])
        if isinstance(value, list | tuple):
            return type(value)(self._own(x, key=(key, i)) for i, x in enumerate(value))
        if isinstance(value, dict):
            return {name: self._own(x, key=(key, name)) for name, x in value.items()}
        return value

    # -- Running -------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor) -> Any:
        """Run the module's forward method; omitted arguments take their defaults."""
        if not self._required <= len(inputs) <= len(self._defaults):
            raise TypeError(f"forward takes {len(self._defaults)} arguments, got {len(inputs)}")
        values = {name: self._taken(value) for name, value in self._values.items()}
        (result,) = self._run(self._block, [*inputs, *self._defaults[len(inputs) :]], values)
        return result

    def _taken(self, value: Any) -> Any:
        if isinstance(value, _Buffer):
            return getattr(self, value.name)
        if isinstance(value, list | tuple):
            return type(value)(self._taken(item) for item in value)
        if isinstance(value, dict):
            return {name: self._taken(item) for name, item in value.items()}
        return value

    def _run(self, block: _Block, inputs: Sequence[Any], values: dict[str, Any]) -> list[Any]:
        values.update(zip(block.inputs, inputs, strict=True))
        for step in block.steps:
            results = self._results(step, values)
            values.update(zip(step.outputs, results, strict=True))
        return [values[name] for name in block.outputs]

    def _results(self, step: _Step, values: dict[str, Any]) -> Sequence[Any]:
        arguments: list[Any] = [values.get(name) for name in step.inputs]
        if step.kind == "prim::If":
            return self._run(step.blocks[0 if arguments[0] else 1], [], values)
        if step.kind == "prim::Loop":
            most, going, *carried = arguments
            count = 0
            while count < most and going:
                going, *carried = self._run(step.blocks[0], [count, *carried], values)
                count += 1
            return carried
        if step.kind in ("prim::TupleUnpack", "prim::ListUnpack"):
            return list(arguments[0])
        if step.kind == "prim::RaiseException":
            raise ValueError(str(arguments[0]))
        if step.operator is not None:
            numbers = self._as_numbers(step, arguments)
            result = self._call(step, arguments) if numbers is None else numbers
        elif step.kind in _CONVERSIONS:
            result = _PLAIN[step.kind](self._numbers.get(step.inputs[0], arguments[0]))
        elif step.kind in _PLAIN:
            result = _PLAIN[step.kind](*arguments)
        else:
            raise ExportError(
                f"the TorchScript generator uses {step.kind}, which cannot be exported: "
                "export the torch.nn.Module that it was made from"
            )
        if len(step.outputs) == 1:
            return [result]
        return list(result) if step.outputs else []

    def _as_numbers(self, step: _Step, arguments: Sequence[Any]) -> Any:
        """Compute arithmetic on sizes, which torch.jit.trace records as arithmetic on tensors."""
        declared = step.operator._schema.arguments
        tensors = [i for i, a in enumerate(declared) if str(a.type) == "Tensor"]
        if not tensors or all(isinstance(arguments[i], Tensor) for i in tensors):
            return None
        numbers = [self._numbers.get(step.inputs[i], arguments[i]) for i in tensors]
        if step.kind not in _PLAIN or any(isinstance(number, Tensor) for number in numbers):
            return None
        named = {a.name: value for a, value in zip(declared, arguments, strict=True)}
        if named.get("alpha", 1) != 1:
            return None
        rounding = [named["rounding_mode"]] if "rounding_mode" in named else []
        others = [
            value
            for i, value in enumerate(arguments)
            if i not in tensors and declared[i].name not in ("alpha", "rounding_mode")
        ]
        return _PLAIN[step.kind](*numbers, *others, *rounding)

    def _call(self, step: _Step, arguments: list[Any]) -> Any:
        if step.kind == "aten::_convolution":
            # The remaining arguments select cuDNN's algorithm.
            return aten.convolution.default(*arguments[:9])
        if step.kind == "aten::batch_norm" and self.batch_statistics:
            arguments[3:6] = [None, None, True]
        positional, named = [], {}
        for declared, value in zip(step.operator._schema.arguments, arguments, strict=True):
            kind = str(declared.real_type)
            if value is not None and "ScalarType" in kind:
                value = _DTYPES.get(value, value)
            elif value is not None and "MemoryFormat" in kind:
                value = _MEMORY_FORMATS[value]
            elif value is not None and "Device" in kind:
                value = torch.device("cpu")
            elif "Layout" in kind:
                value = None
            if declared.kwarg_only:
                named[declared.name] = value
            else:
                positional.append(value)
        return step.operator(*positional, **named)


@dataclass(frozen=True)
class _Buffer:
    """A reference to a tensor that is registered as a buffer."""

    name: str


def _operator(node: Any) -> Any:
    """The ATen operator that a node calls; None if there is none, or if it runs in Python."""
    space, _, name = node.kind().partition("::")
    if space != "aten" or node.kind() in (*_CONVERSIONS, *_QUERIES):
        return None
    schema = torch._C.parse_schema(node.schema())
    takes_tensors = any("Tensor" in str(argument.type) for argument in schema.arguments)
    if not takes_tensors and node.kind() in _PLAIN:
        return None
    packet = getattr(aten, name, None)
    return getattr(packet, schema.overload_name or "default", None)
