"""Edit an FX graph while keeping every node's shape known.

Each node of a traced graph carries a fake tensor in ``meta["val"]``: static sizes are ints, the
batch is a symbol. The functions here set it on the nodes they add, so that later passes can read
shapes too.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher

__all__ = [
    "Signature",
    "add_constant",
    "constant",
    "constant_named",
    "copied",
    "insert",
    "is_op",
    "shape",
]


@dataclass(frozen=True)
class Signature:
    """One function's part of a graph: the names of its inputs, and of its outputs by position."""

    inputs: tuple[str, ...]
    outputs: Mapping[int, str]


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a module's graph so that it may be changed. The constants are shared."""
    return fx.GraphModule(module, copy.deepcopy(module.graph))


def is_op(node: Any, *names: str) -> bool:
    """Whether a node calls one of the named ATen operators, in any overload."""
    return (
        isinstance(node, fx.Node)
        and node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.name.removeprefix("aten::") in names
    )


def shape(node: fx.Node) -> tuple[Any, ...] | None:
    """The node's sizes, which are ints except for the batch; None if it is not a single tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def constant(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor that a node refers to, if it is a constant of the module."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found = constant_named(module, str(node.target))
    return found.detach() if isinstance(found, Tensor) else None


def constant_named(module: fx.GraphModule, name: str) -> Any:
    """The module's attribute with a dotted name."""
    return operator.attrgetter(name)(module)


def _fake_mode(graph: fx.Graph) -> Any:
    return next(node for node in graph.nodes if node.op == "placeholder").meta["val"].fake_mode


def add_constant(module: fx.GraphModule, value: Tensor) -> fx.Node:
    """Register a tensor as a constant of the module and add a node for it at the insert point."""
    number = sum(1 for name, _ in module.named_buffers() if name.startswith("constant_"))
    while hasattr(module, f"constant_{number}"):
        number += 1
    name = f"constant_{number}"
    module.register_buffer(name, value.detach().contiguous())
    node = module.graph.get_attr(name)
    node.meta["val"] = _fake_mode(module.graph).from_tensor(value, static_shapes=True)
    return node


def insert(graph: fx.Graph, operator: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Add a call of an operator at the insert point, with its shape."""
    node = graph.call_function(operator, args, kwargs)

    def value(argument: fx.Node) -> Any:
        return argument.meta["val"]

    fake_args = fx.node.map_arg(args, value)
    fake_kwargs = fx.node.map_arg(kwargs, value)
    # Without the Python dispatcher, some operators turn the symbolic batch size into a number.
    with _fake_mode(graph), enable_python_dispatcher():
        node.meta["val"] = operator(*fake_args, **fake_kwargs)
    return node
