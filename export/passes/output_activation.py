"""Find a traced generator's last activation: some losses are better computed from its input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .graph import insert, is_op

__all__ = ["OutputActivation", "expose_output_activation"]

_OWN_RANGES = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
# Operators that commute with element-wise functions.
_RESHAPES = ("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze")


@dataclass(frozen=True)
class OutputActivation:
    """The last operator that changes a pixel's value.

    operator: the operator's name.
    value_range: for "tanh" and "sigmoid", the lowest and highest image value after any scaling and
        shift that follow; None for other operators.
    """

    operator: str
    value_range: tuple[float, float] | None = None

    def fits(self, value_range: tuple[float, float]) -> bool:
        """Whether this is an activation whose images fill the range."""
        width = value_range[1] - value_range[0]
        return self.value_range is not None and all(
            math.isclose(own, given, abs_tol=1e-6 * width)
            for own, given in zip(self.value_range, value_range, strict=True)
        )

    def describe(self) -> str:
        """Return the operator's name, and its range of values if they are bounded."""
        if self.value_range is None:
            return self.operator
        low, high = self.value_range
        return f"{self.operator} with values in [{low:g}, {high:g}]"


def expose_output_activation(traced: fx.GraphModule) -> OutputActivation:
    """Find a traced generator's last activation, and make the graph also return its input.

    The graph returns its image and, if the last activation is a tanh or sigmoid, that activation's
    input in the image's shape. The activation may be followed by reshapes, and by additions of and
    multiplications by numbers. Further outputs of the graph stay behind these.
    """
    graph = traced.graph
    output = next(node for node in graph.nodes if node.op == "output")
    returned = output.args[0]
    image, *others = returned if isinstance(returned, list | tuple) else [returned]
    node = image
    reshapes: list[fx.Node] = []
    scale, shift = 1.0, 0.0
    while True:
        factor, offset = _affine(node)
        if is_op(node, *_RESHAPES):
            reshapes.insert(0, node)
        elif factor is None:
            break
        else:
            scale, shift = scale * factor, shift + scale * offset
        node = node.args[0]
    called = isinstance(node.target, torch._ops.OpOverload)
    name = str(node.target._schema.name.partition("::")[2]) if called else str(node.op)
    if name not in _OWN_RANGES or scale <= 0:
        output.args = ([image, *others],)
        traced.recompile()
        return OutputActivation(name)
    before = node.args[0]
    with graph.inserting_before(output):
        for reshape in reshapes:
            before = insert(graph, reshape.target, before, *reshape.args[1:])
        if reshapes and (scale, shift) == (1.0, 0.0):
            image = insert(graph, node.target, before)
    output.args = ([image, before, *others],)
    graph.eliminate_dead_code()
    traced.recompile()
    # Rounded, because 1 / 3 * 3 may not be 1.
    low, high = (round(scale * end + shift, 9) for end in _OWN_RANGES[name])
    return OutputActivation(name, (low, high))


def _affine(node: Any) -> tuple[float | None, float]:
    """The numbers (a, b) such that a node computes a * x + b of its first argument x."""
    if not is_op(node, "mul", "add", "sub") or node.kwargs or len(node.args) != 2:
        return None, 0.0
    number = node.args[1]
    if not isinstance(number, int | float):
        return None, 0.0
    if is_op(node, "mul"):
        return float(number), 0.0
    return 1.0, float(number) if is_op(node, "add") else -float(number)
