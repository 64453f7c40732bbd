"""List an ONNX file's operators for the manifest, from which the engine decides what a GPU can do.

ONNX Runtime, which runs the file, does not report them.
"""

from __future__ import annotations

import os

import onnx
from onnx import GraphProto, NodeProto, inliner

__all__ = ["operators_in"]

# ONNX Runtime may remove or move these; the next operator then reads their input.
_TRANSPARENT = ("Cast", "Dropout", "Expand", "Identity", "Slice", "Transpose")


def operators_in(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the operators in a file, and those among them that read an input of the graph.

    Both are sorted. Subgraphs are included, and a function that the file defines is replaced by
    its operators. An operator outside ONNX's own domain is named "domain:name".
    """
    model = inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    operators: set[str] = set()
    readers: set[str] = set()
    _collect(model.graph, {value.name for value in model.graph.input}, operators, readers)
    return tuple(sorted(operators)), tuple(sorted(readers))


def _collect(graph: GraphProto, inputs: set[str], operators: set[str], readers: set[str]) -> None:
    """Add a graph's operators; ``inputs`` holds the names that may refer to the model's inputs."""
    for node in graph.node:
        name = _name(node)
        operators.add(name)
        if not inputs.isdisjoint(node.input):
            readers.add(name)
            if name in _TRANSPARENT:
                inputs.add(node.output[0])
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                # A subgraph can refer to names of the enclosing graph.
                _collect(subgraph, set(inputs), operators, readers)


def _name(node: NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
