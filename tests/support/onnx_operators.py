"""The manifest's operators of a test's ONNX graph, which has no functions or subgraphs."""

from __future__ import annotations

from typing import Any


def operators_of(model: Any) -> dict[str, tuple[str, ...]]:
    """The graph's operators, and those that read an input, as arguments of ``Function``."""
    inputs = {value.name for value in model.graph.input}
    readers = [node for node in model.graph.node if inputs.intersection(node.input)]
    return {
        "operators": tuple(sorted({node.op_type for node in model.graph.node})),
        "input_operators": tuple(sorted({node.op_type for node in readers})),
    }
