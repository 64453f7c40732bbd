"""Rewrite convolutions whose weights depend on the target, such as StyleGAN2's.

PyTorch code runs them as one convolution with a group per target: the input is [1, B I, H, W], the
weight [B O, I, k, k]. Neither ONNX nor TorchScript can run that for any batch size.

Modulated weights are shared weights times a factor per target and channel, w[b, o, i] = d[b, o]
C[o, i] s[b, i] (Karras et al. 2020, equations 1 and 3). Their convolution is that of the input
times s with C, times d. The squared norms of such weights, from which d is computed, are a matrix
product: sum_i s[b, i]^2 |C[o, i]|^2. Other weights are applied by a batched matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .graph import add_constant, constant, insert, is_op, shape

__all__ = ["RESHAPES", "rewrite_convolutions_per_target", "taps_of"]

aten = torch.ops.aten

RESHAPES = ("view", "reshape", "_unsafe_view")


@dataclass
class _Modulated:
    """Weights as a constant [1, O, I, k, k] times factors that broadcast to [B, O, I, k, k].

    Transposed convolutions have O and I in the other order.
    """

    constant: Tensor
    factors: list[fx.Node]


def rewrite_convolutions_per_target(module: fx.GraphModule) -> None:
    """Rewrite all convolutions that have a group per target, and the norms of their weights."""
    found = [
        node
        for node in module.graph.nodes
        if is_op(node, "convolution") and isinstance(node.args[8], fx.Node)
    ]
    for node in found:
        _Rewriting(module, node).convolution()
    for node in list(module.graph.nodes):
        if is_op(node, "sum") and len(shape(node.args[0]) or ()) == 5:
            _Rewriting(module, node).squared_norm()
    module.graph.eliminate_dead_code()
    module.recompile()


class _Rewriting:
    """The rewriting of one node: new nodes are inserted before it."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        self.module = module
        self.node: Any = node

    def add(self, operator: Any, *args: Any) -> fx.Node:
        with self.module.graph.inserting_before(self.node):
            return insert(self.module.graph, operator, *args)

    def constant(self, value: Tensor) -> fx.Node:
        with self.module.graph.inserting_before(self.node):
            return add_constant(self.module, value)

    # -- Separating weights into factors ---------------------------------------------------------

    def separated(self, node: Any) -> _Modulated | None:
        """Weights per target as a constant times factors; None if they have another form."""
        value = constant(self.module, node)
        if value is not None:
            if value.ndim < 4:
                value = value.reshape((1,) * (5 - value.ndim) + tuple(value.shape))
            return _Modulated(value, []) if value.shape[0] == 1 else None
        if is_op(node, "expand", "repeat"):
            source = constant(self.module, node.args[0])
            sizes = shape(node) or ()
            if source is None or tuple(source.shape[-len(sizes) + 1 :]) != sizes[1:]:
                return None
            return _Modulated(source.reshape(1, *sizes[1:]), [])
        if is_op(node, "transpose", "permute"):
            return self._permuted(node)
        if not is_op(node, "mul", "div") or node.kwargs:
            return None
        one, other = node.args
        if isinstance(other, int | float):
            found = self.separated(one)
            scale = other if is_op(node, "mul") else 1.0 / other
            return found and _Modulated(found.constant * scale, found.factors)
        found = self.separated(one)
        if found is None and is_op(node, "mul"):
            one, other = other, one
            found = self.separated(one)
        if found is None:
            return None
        if is_op(node, "div"):
            if not _is_factor(other, len(shape(node) or ())):
                return None
            other = self.add(aten.reciprocal.default, other)
        again = self.separated(other)
        if again is not None:
            constants = torch.broadcast_tensors(found.constant, again.constant)
            return _Modulated(constants[0] * constants[1], found.factors + again.factors)
        if not _is_factor(other, len(shape(node) or ())):
            return None
        return _Modulated(found.constant, [*found.factors, other])

    def _permuted(self, node: Any) -> _Modulated | None:
        found = self.separated(node.args[0])
        if found is None:
            return None
        axes = list(range(found.constant.ndim))
        if is_op(node, "permute"):
            axes = [axes[i] for i in node.args[1]]
        else:
            first, second = node.args[1:]
            axes[first], axes[second] = axes[second], axes[first]
        if axes[0] != 0:
            return None
        factors = [self.add(aten.permute.default, factor, axes) for factor in found.factors]
        return _Modulated(found.constant.permute(axes), factors)

    def channel_factor(self, found: _Modulated, axis: int) -> fx.Node | None:
        """The product, [B, channels], of the factors along an axis; None if there are none."""
        product = None
        for factor in found.factors:
            sizes = shape(factor) or ()
            along = 1 if sizes[1] != 1 else 2
            if along != axis:
                continue
            rows = self.add(aten.reshape.default, factor, [-1, sizes[along]])
            product = rows if product is None else self.add(aten.mul.Tensor, product, rows)
        return product

    # -- Convolutions ----------------------------------------------------------------------------

    def convolution(self) -> None:
        node = self.node
        x, weight, bias, stride, padding, dilation, transposed, output_padding, count = node.args
        sizes, weights = shape(x), shape(weight)
        if sizes is None or weights is None or len(sizes) != 4 or sizes[0] != 1:
            return
        # [B, O, I, k, k], or [B, I, O, k, k] of a transposed convolution.
        by_target: Any = weight.args[0] if is_op(weight, *RESHAPES) else None
        found_sizes = [_per_target(size) for size in (count.meta["val"], sizes[1], weights[0])]
        if None in found_sizes:
            return
        groups, channels, rows = (size or 1 for size in found_sizes)
        # With several groups per target, each counts as a target.
        channels, rows = channels // groups, rows // groups
        wanted = (rows, *weights[1:])
        if by_target is None or (shape(by_target) or ())[1:] != wanted:
            by_target = self.add(aten.reshape.default, weight, [-1, *wanted])
        images = self.add(aten.reshape.default, x, [-1, channels, *sizes[2:]])
        found = self.separated(by_target) if groups == 1 else None
        if found is None:
            result = self.general(images, by_target, wanted)
        else:
            into, out = (1, 2) if transposed else (2, 1)
            scale, demodulation = (self.channel_factor(found, axis) for axis in (into, out))
            if scale is not None:
                scale = self.add(aten.reshape.default, scale, [-1, _width(scale), 1, 1])
                images = self.add(aten.mul.Tensor, images, scale)
            shared = self.constant(found.constant[0].expand(wanted))
            result = self.add(
                aten.convolution.default,
                images,
                shared,
                None,
                stride,
                padding,
                dilation,
                transposed,
                output_padding,
                1,
            )
            if demodulation is not None:
                width = _width(demodulation)
                demodulation = self.add(aten.reshape.default, demodulation, [-1, width, 1, 1])
                result = self.add(aten.mul.Tensor, result, demodulation)
        if bias is not None:
            many = wanted[1] if transposed else wanted[0]
            bias = self.add(aten.reshape.default, bias, [-1, many, 1, 1])
            result = self.add(aten.add.Tensor, result, bias)
        after = shape(node) or ()
        whole = self.add(aten.reshape.default, result, [1, -1, *after[2:]])
        node.replace_all_uses_with(whole)
        self.module.graph.erase_node(node)

    def general(self, images: fx.Node, weight: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """Convolve [B, I, H, W] with weights [B, O, I, k, k] by a batched matrix product.

        Transposed convolutions have weights [B, I, O, k, k]. A convolution with one filter per tap,
        which is 1 at that tap, picks the pixels that the matrix product needs; its transpose adds
        the products to their pixels.
        """
        _, _, _, stride, padding, dilation, transposed, output_padding, _ = self.node.args
        taps = math.prod(sizes[2:])
        pick = self.constant(torch.eye(taps).reshape(taps, 1, *sizes[2:]))
        ends = [stride, padding, dilation, transposed, output_padding, 1]
        height, width = (shape(images) or ())[2:]
        if transposed:
            into, many = sizes[:2]
            pixels = self.add(aten.reshape.default, images, [-1, into, height * width])
            rows = self.add(aten.reshape.default, weight, [-1, into, many * taps])
            rows = self.add(aten.transpose.int, rows, 1, 2)
            products = self.add(aten.bmm.default, rows, pixels)
            products = self.add(aten.reshape.default, products, [-1, taps, height, width])
            result = self.add(aten.convolution.default, products, pick, None, *ends)
        else:
            many, into = sizes[:2]
            planes = self.add(aten.reshape.default, images, [-1, 1, height, width])
            picked = self.add(aten.convolution.default, planes, pick, None, *ends)
            pixels = math.prod((shape(picked) or ())[2:])
            picked = self.add(aten.reshape.default, picked, [-1, into * taps, pixels])
            rows = self.add(aten.reshape.default, weight, [-1, many, into * taps])
            result = self.add(aten.bmm.default, rows, picked)
        return self.add(aten.reshape.default, result, [-1, many, *(shape(self.node) or ())[2:]])

    # -- Norms -----------------------------------------------------------------------------------

    def squared_norm(self) -> None:
        """Rewrite the sum of squares of modulated weights over all axes but B and O."""
        node = self.node
        squares: Any = node.args[0]
        rank = len(shape(squares) or ())
        axes = sorted(axis % rank for axis in node.args[1]) if len(node.args) > 1 else []
        if axes != list(range(2, rank)) or not is_op(squares, "mul"):
            return
        one, other = squares.args
        found = self.separated(one) if one is other else None
        if found is None or not found.factors:
            return
        into, out = self.channel_factor(found, 2), self.channel_factor(found, 1)
        if into is None:
            return
        kernel = list(range(3, rank))
        squared = found.constant.double().square()
        norms = (squared.sum(kernel) if kernel else squared)[0].float()
        into = self.add(aten.mul.Tensor, into, into)
        if norms.shape[1] != (shape(into) or ())[1]:
            return
        result = self.add(aten.mm.default, into, self.constant(norms.t()))
        if out is not None:
            out = self.add(aten.mul.Tensor, out, out)
            result = self.add(aten.mul.Tensor, result, out)
        after = list((shape(node) or ())[1:])
        node.replace_all_uses_with(self.add(aten.reshape.default, result, [-1, *after]))
        self.module.graph.erase_node(node)


def taps_of(filters: Tensor) -> int | None:
    """The number of filters [taps, 1, k, k], if each is 1 at its own tap and 0 elsewhere."""
    if filters.ndim != 4 or filters.shape[1] != 1:
        return None
    flat = filters.flatten(1)
    is_pick = flat.shape[0] == flat.shape[1] and bool((flat == torch.eye(len(flat))).all())
    return len(flat) if is_pick else None


def _width(rows: fx.Node) -> int:
    return int((shape(rows) or ())[1])


def _per_target(size: Any) -> int | None:
    """The number of entries per target of a size that is a multiple of the batch size."""
    if isinstance(size, int):
        return None
    expression = size.node.expr
    (symbol,) = expression.free_symbols
    entries = expression / symbol
    return int(entries) if entries.is_Integer else None


def _is_factor(node: Any, rank: int) -> bool:
    """Whether a node has one value per target and channel: all but one axis have size 1."""
    sizes = shape(node) if isinstance(node, fx.Node) else None
    if sizes is None or len(sizes) != rank or math.prod(sizes[3:]) != 1:
        return False
    return not isinstance(sizes[0], int) and 1 in sizes[1:3]
