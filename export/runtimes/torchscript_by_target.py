"""Replace the exporter's products for weights per target by convolutions with a group per target.

TorchScript runs those for any number of targets. See passes/modulation.py for the products.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..passes.graph import constant, insert, is_op, shape
from ..passes.modulation import RESHAPES, taps_of

__all__ = ["convolution_by_target", "transposed_by_target", "weight_gradient_by_target"]

aten = torch.ops.aten


@dataclass(frozen=True)
class _Picked:
    """The pixels [B, I taps, pixels] that a convolution of [B I, 1, H, W] picks."""

    planes: fx.Node
    channels: int  # I
    kernel: tuple[int, int]
    before: tuple[int, ...]  # H, W
    after: tuple[int, ...]
    settings: tuple[Any, ...]  # stride, padding, dilation


def _static(node: Any, rank: int) -> tuple[int, ...] | None:
    """A node's sizes after the first, if it has this many axes and they do not depend on B."""
    sizes = shape(node) if isinstance(node, fx.Node) else None
    if sizes is None or len(sizes) != rank or not all(isinstance(n, int) for n in sizes[1:]):
        return None
    return sizes[1:]


def _swapped(node: Any) -> Any:
    """Return M if a node is M with its last two of three axes swapped."""
    if is_op(node, "transpose") and sorted(axis % 3 for axis in node.args[1:]) == [1, 2]:
        return node.args[0]
    if is_op(node, "permute") and list(node.args[1]) == [0, 2, 1]:
        return node.args[0]
    return None


def _picked(module: fx.GraphModule, node: Any) -> _Picked | None:
    convolution: Any = node.args[0] if is_op(node, *RESHAPES) else None
    sizes = _static(node, 3)
    if sizes is None or not is_op(convolution, "convolution"):
        return None
    planes, filters, bias, *settings, transposed, output_padding, groups = convolution.args
    before, after = _static(planes, 4), _static(convolution, 4)
    values = constant(module, filters)
    if before is None or after is None or values is None or bias is not None or transposed:
        return None
    taps = taps_of(values)
    if taps is None or groups != 1 or any(output_padding):
        return None
    channels = sizes[0] // taps
    kernel = (values.shape[2], values.shape[3])
    return _Picked(planes, channels, kernel, before[1:], after[1:], tuple(settings))


def convolution_by_target(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Replace weights @ picked pixels."""
    if not is_op(node, "bmm"):
        return None
    rows: Any = node.args[0]
    picked, sizes = _picked(module, node.args[1]), _static(rows, 3)
    if picked is None or sizes is None:
        return None
    graph = module.graph
    images = insert(graph, aten.reshape.default, picked.planes, [1, -1, *picked.before])
    weights = insert(graph, aten.reshape.default, rows, [-1, picked.channels, *picked.kernel])
    ends = [*picked.settings, False, [0, 0]]
    return _convolution(graph, rows, images, weights, ends, [-1, *_static(node, 3)])  # type: ignore[misc]


def weight_gradient_by_target(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Replace slopes @ transposed picked pixels, or the transpose of that."""
    if not is_op(node, "bmm"):
        return None
    left, right = node.args
    slopes: Any = left
    picked, turned = _picked(module, _swapped(right)), False
    if picked is None:
        picked, slopes, turned = _picked(module, left), _swapped(right), True
    sizes = _static(slopes, 3)
    if picked is None or sizes is None:
        return None
    graph, outputs = module.graph, sizes[0]
    batch = insert(graph, aten.sym_size.int, slopes, 0)
    filters = insert(graph, operator.mul, batch, outputs)
    images = insert(graph, aten.reshape.default, picked.planes, [1, -1, *picked.before])
    gradient = insert(graph, aten.reshape.default, slopes, [1, -1, *picked.after])
    # Only the sizes of the weights matter.
    weights = insert(
        graph, aten.new_zeros.default, slopes, [filters, picked.channels, *picked.kernel]
    )
    gradients = insert(
        graph,
        aten.convolution_backward.default,
        gradient,
        images,
        weights,
        None,
        *picked.settings,
        False,
        [0, 0],
        batch,
        [False, True, False],
    )
    own = graph.call_function(operator.getitem, (gradients, 1))
    own.meta["val"] = gradients.meta["val"][1]
    taps = picked.channels * picked.kernel[0] * picked.kernel[1]
    result = insert(graph, aten.reshape.default, own, [-1, outputs, taps])
    return insert(graph, aten.transpose.int, result, 1, 2) if turned else result


def transposed_by_target(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Replace weights @ pixels, whose results are added to their pixels."""
    if not is_op(node, "convolution"):
        return None
    arguments: Any = node.args
    products, filters, bias, stride, padding, dilation, transposed, output_padding, groups = (
        arguments
    )
    values = constant(module, filters)
    product: Any = products.args[0] if is_op(products, *RESHAPES) else None
    before, after = _static(products, 4), _static(node, 4)
    if values is None or values.ndim != 4 or bias is not None or groups != 1:
        return None
    if before is None or after is None or not is_op(product, "bmm"):
        return None
    if not transposed:
        # Of stride 1: the transposed convolution with the filters turned around.
        if list(stride) != [1, 1] or list(dilation) != [1, 1]:
            return None
        values = values.transpose(0, 1).flip(2, 3)
        padding = [values.shape[2 + axis] - 1 - padding[axis] for axis in (0, 1)]
        output_padding = [0, 0]
    taps = taps_of(values)
    rows, pixels = _swapped(product.args[0]), product.args[1]
    sizes, columns = _static(rows, 3), _static(pixels, 3)
    if taps is None or sizes is None or columns is None:
        return None
    graph, outputs = module.graph, sizes[1] // taps
    images = insert(graph, aten.reshape.default, pixels, [1, -1, *before[1:]])
    weights = insert(graph, aten.reshape.default, rows, [-1, outputs, *values.shape[2:]])
    ends = [stride, padding, dilation, True, output_padding]
    return _convolution(graph, pixels, images, weights, ends, [-1, *after])


def _convolution(
    graph: fx.Graph,
    by_target: fx.Node,
    images: fx.Node,
    weights: fx.Node,
    settings: list[Any],
    sizes: list[int],
) -> fx.Node:
    """Add a convolution with a group for each row of ``by_target``, and reshape its result."""
    groups = insert(graph, aten.sym_size.int, by_target, 0)
    result = insert(graph, aten.convolution.default, images, weights, None, *settings, groups)
    return insert(graph, aten.reshape.default, result, sizes)
