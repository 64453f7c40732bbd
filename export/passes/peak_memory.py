"""How much memory a graph's values take at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

from .graph import is_op

__all__ = ["bytes_per_target"]

# Their result is the memory of their argument.
_VIEWS = ("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "alias", "detach")


def bytes_per_target(module: fx.GraphModule, outputs: Iterable[int] | None = None) -> int:
    """The most bytes that one target's values take at any time, in the graph's order.

    A value is there from the operator that makes it to the last that takes it, results to the end.
    What does not depend on the number of targets does not count.

    Args:
        module: a graph whose nodes know their shapes.
        outputs: the outputs that are computed, by position; all by default.
    """
    results: Any = next(node for node in module.graph.nodes if node.op == "output").args[0]
    wanted = results if outputs is None else [results[i] for i in outputs]
    last: dict[fx.Node, int] = {}
    nodes = list(module.graph.nodes)
    needed = set(wanted)
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    nodes = [node for node in nodes if node in needed]
    for position, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[_owner(source)] = position
    for node in wanted:
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
    """The node whose memory a node's result is."""
    while is_op(node, *_VIEWS):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _bytes(node: fx.Node) -> int:
    """Of one target."""
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
