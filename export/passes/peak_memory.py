"""Compute a graph's peak memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

from .graph import is_op

__all__ = ["bytes_per_target"]

# Operators whose result shares its argument's memory.
_VIEWS = ("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "alias", "detach")


def bytes_per_target(module: fx.GraphModule, outputs: Iterable[int] | None = None) -> int:
    """Return the peak memory in bytes per target, if the operators run in the graph's order.

    A value occupies memory from the operator that computes it to the last that reads it; a result,
    to the end. Only values whose size depends on the number of targets count.

    Args:
        module: a graph whose nodes know their shapes.
        outputs: the positions of the outputs that are computed; all by default.
    """
    results: Any = next(node for node in module.graph.nodes if node.op == "output").args[0]
    selected = results if outputs is None else [results[i] for i in outputs]
    last: dict[fx.Node, int] = {}
    nodes = list(module.graph.nodes)
    needed = set(selected)
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    nodes = [node for node in nodes if node in needed]
    for position, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[_owner(source)] = position
    for node in selected:
        last[_owner(node)] = len(nodes)
    live = most = 0
    ends: dict[int, int] = {}
    for position, node in enumerate(nodes):
        if node.op == "call_function" and _owner(node) is node:
            size = _bytes(node)
            live += size
            end = last.get(node, position)
            ends[end] = ends.get(end, 0) + size
        most = max(most, live)
        live -= ends.get(position, 0)
    return most


def _owner(node: fx.Node) -> fx.Node:
    """The node that owns the memory of a node's result."""
    while is_op(node, *_VIEWS):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _bytes(node: fx.Node) -> int:
    """The bytes of a node's value per target."""
    value = node.meta.get("val")
    total = 0
    for tensor in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(tensor, Tensor):
            continue
        count = tensor.numel()
        if isinstance(count, int):
            continue
        expression = count.node.expr
        total += int(expression.subs(dict.fromkeys(expression.free_symbols, 1))) * tensor.itemsize
    return total
