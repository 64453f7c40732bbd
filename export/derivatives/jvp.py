"""Jacobian-vector products of a traced generator in many directions at once (forward mode).

One pass over the graph computes the images and, for every operator, its tangents from those of its
inputs. The tangents of all directions form one batch, in which the directions of a target are
adjacent, so linear operators apply to them as they do to images. An element-wise operator
multiplies them by its derivative, which is computed once per target. Consecutive factors are
multiplied with each other first and applied to the tangents once. Some tangents are the same for
all targets: those of the first dense layer, for example, are its weights. They are stored once
until an operator depends on the target.

A row is one direction of one target. Where a tensor of the graph has B targets along an axis, its
tangents have B * directions rows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

from pyinv.errors import ExportError

from ..passes.graph import is_op, shape

__all__ = ["Tangents"]

aten = torch.ops.aten

# Operators that are linear in their first argument if the others do not depend on the target.
_LINEAR = (
    "_upsample_nearest_exact2d", "avg_pool2d", "avg_pool3d", "constant_pad_nd", "convolution",
    "expand", "flip", "mean", "mm", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "repeat", "replication_pad2d", "replication_pad3d", "roll", "select", "slice",
    "split_with_sizes", "sum", "unbind", "upsample_bicubic2d", "upsample_bilinear2d",
    "upsample_nearest2d",
)  # fmt: skip
# Linear operators that only move values, so factors can be moved along with the rows.
_MOVES = (
    "_unsafe_view", "alias", "clone", "contiguous", "permute", "pixel_shuffle",
    "pixel_unshuffle", "reshape", "squeeze", "t", "transpose", "unsqueeze", "view",
)  # fmt: skip


@dataclass(frozen=True)
class _Tangent:
    """A tensor's derivatives, as rows and a factor per target.

    rows: shaped as the tensor, with rows in place of targets; one target's if ``shared``.
    shared: whether all targets have the same rows.
    factor: multiplies each target's rows; shaped as the tensor, or None for 1.
    """

    rows: Tensor
    shared: bool
    factor: Tensor | None = None


class _NoRuleError(Exception):
    """No rule covers the operator with these arguments."""


class Tangents:
    """A generator's outputs for a batch of latents, and their derivatives.

    Args:
        module: a simplified graph of basic operators. Its first input is the latent [B, d]; its
            outputs are images.
        inputs: the graph's inputs.
    """

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self.graph = module.graph
        self.batch: Any = inputs[0].shape[0]
        self.directions = int(inputs[0].shape[1])
        recorder = _Recorder(module)
        with torch.no_grad():
            self.outputs: list[Tensor] = recorder.run(*inputs)
        self.values = recorder.values
        self._passes: dict[tuple[int, int], _Pass] = {}

    def jacobian(self, output: int, slope: Tensor | None, first: int, count: int) -> Tensor:
        """Return the derivatives of an output's pixels with respect to ``count`` latent components.

        Args:
            output: the index of the graph's output.
            slope: multiplies each pixel's derivatives; shaped as the output, or None.
            first: the first component.
            count: the number of components.

        Returns:
            [B, count, pixels].

        Raises:
            ExportError: tangents cannot be computed through an operator, which the message names.
        """
        if (first, count) not in self._passes:
            self._passes[first, count] = _Pass(self, first, count)
        with torch.no_grad():
            return self._passes[first, count].jacobian(output, slope)


class _Recorder(fx.Interpreter):
    """Run a graph and record every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def _targets(node: fx.Node) -> tuple[int, int]:
    """The axis of a node's tensor that has the targets, and the number of entries per target."""
    sizes = shape(node)
    found = [i for i, size in enumerate(sizes or ()) if not isinstance(size, int)]
    if len(found) == 1:
        size = sizes[found[0]].node.expr  # type: ignore[index]
        (symbol,) = size.free_symbols
        entries = size / symbol
        if entries.is_Integer:
            return found[0], int(entries)
    raise _NoRuleError


def _depends_on_target(node: Any) -> bool:
    return isinstance(node, fx.Node) and not all(isinstance(n, int) for n in shape(node) or ())


def _mapped(given: Any, known: Callable[[fx.Node], Any]) -> Any:
    """Replace the nodes in arguments by their values, in lists that operators may change."""
    if isinstance(given, list | tuple):
        return [_mapped(item, known) for item in given]
    if isinstance(given, dict):
        return {key: _mapped(item, known) for key, item in given.items()}
    return known(given) if isinstance(given, fx.Node) else given


class _Pass:
    """The tangents of every node in some directions."""

    def __init__(self, whole: Tangents, first: int, count: int) -> None:
        self.whole = whole
        self.values = whole.values
        self.first, self.count = first, count
        with _disable_current_modes():
            self.identity = torch.eye(whole.directions)[first : first + count].contiguous()
        # A tangent, a list of tangents for an operator with several outputs, or None.
        self.tangents: dict[fx.Node, Any] = {}
        inputs = 0
        for node in whole.graph.nodes:
            if node.op == "placeholder":
                latent = _Tangent(self.identity, shared=True)
                self.tangents[node] = latent if inputs == 0 else None
                inputs += 1
            elif node.op == "call_function":
                with torch.no_grad():
                    self.tangents[node] = self.tangent(node)

    def jacobian(self, output: int, slope: Tensor | None) -> Tensor:
        results = next(n for n in self.whole.graph.nodes if n.op == "output").args[0]
        node = results[output]
        tangent = self.tangents[node]
        if tangent is None:
            raise ExportError("the generator's images do not depend on the latent")
        if slope is not None:
            factor = slope if tangent.factor is None else tangent.factor * slope
            tangent = replace(tangent, factor=factor)
        rows = self.split(self.unshared(node, tangent), node)
        return rows.reshape(-1, self.count, self.values[node][0].numel())

    # -- Layout --------------------------------------------------------------------------------

    def sizes(self, node: fx.Node, *targets: int) -> list[int]:
        """The node's sizes, with ``targets`` in place of the axis that has the targets."""
        axis, _ = _targets(node)
        own = list(shape(node) or ())
        return [*own[:axis], *targets, *own[axis + 1 :]]

    def split(self, tangent: _Tangent, node: fx.Node) -> Tensor:
        """The rows as [..., targets, directions, entries per target, ...]; one target if shared."""
        _, entries = _targets(node)
        each = (entries,) if entries > 1 else ()
        targets = 1 if tangent.shared else -1
        return tangent.rows.reshape(self.sizes(node, targets, self.count, *each))

    def beside(self, value: Tensor, node: fx.Node) -> Tensor:
        """A value shaped as the node's, or broadcastable to it, reshaped to multiply split rows."""
        axis, entries = _targets(node)
        sizes = [1] * (len(shape(node) or ()) - value.ndim) + list(value.shape)
        if isinstance(sizes[axis], int):
            targets = [1, 1, sizes[axis]] if entries > 1 else [sizes[axis], 1]
        else:
            targets = [-1, 1, entries] if entries > 1 else [-1, 1]
        return value.reshape([*sizes[:axis], *targets, *sizes[axis + 1 :]])

    def join(self, rows: Tensor, node: fx.Node) -> _Tangent:
        """Invert ``split``."""
        return _Tangent(rows.reshape(self.sizes(node, -1)), shared=False)

    def product(self, node: fx.Node, tangent: _Tangent) -> _Tangent:
        """The tangent with its factor multiplied in."""
        if tangent.factor is None:
            return tangent
        return self.join(self.split(tangent, node) * self.beside(tangent.factor, node), node)

    def unshared(self, node: fx.Node, tangent: _Tangent) -> _Tangent:
        """The tangent with its factor multiplied in, and with separate rows for every target."""
        tangent = self.product(node, tangent)
        if not tangent.shared:
            return tangent
        axis, _ = _targets(node)
        rows = self.split(tangent, node)
        sizes = [-1] * rows.ndim
        sizes[axis] = self.whole.batch
        return self.join(rows.expand(sizes), node)

    def rows_for(self, size: Any, shared: bool) -> Any:
        """The size that tangents have where the tensor's size depends on the batch."""
        if not isinstance(size, torch.SymInt):
            return size
        expression = size.node.expr
        symbols = expression.free_symbols
        if len(symbols) != 1 or not expression.is_polynomial(*symbols):
            raise _NoRuleError
        rows = self.count if shared else self.count * self.whole.batch
        value: Any = 0
        for coefficient in expression.as_poly(*symbols).all_coeffs():
            value = value * rows + int(coefficient)
        return value

    def arguments(self, given: Any, *, shared: bool) -> Any:
        """An operator's arguments, with the sizes that tangents have."""

        def known(node: fx.Node) -> Any:
            size = node.meta.get("val")
            return self.values[node] if isinstance(size, Tensor) else self.rows_for(size, shared)

        return _mapped(given, known)

    def plain(self, given: Any) -> Any:
        return _mapped(given, lambda node: self.values[node])

    # -- Rules ---------------------------------------------------------------------------------

    def tangent(self, node: fx.Node) -> Any:
        """The tangent of a node's value; None if the value does not depend on the latent."""
        if all(self.tangents.get(source) is None for source in node.all_input_nodes):
            return None
        value = node.meta.get("val")
        values = value if isinstance(value, list | tuple) else [value]
        if not any(isinstance(v, Tensor) and v.is_floating_point() for v in values):
            return None
        try:
            for value in values:
                if isinstance(value, Tensor) and all(isinstance(n, int) for n in value.shape):
                    # The remaining dependence on the latent is the same for all targets.
                    raise _NoRuleError
            for rule in (
                self.item,
                self.moved,
                self.linear,
                self.joined,
                self.sum,
                self.scaled,
                self.times,
            ):
                found = rule(node)
                if found is not None:
                    return found
            return self.pointwise(node) or self.by_double_derivative(node)
        except _NoRuleError:
            name = getattr(getattr(node.target, "_schema", None), "name", str(node.target))
            raise ExportError(
                f"{name} mixes the targets of a batch, or is called in a way that tangents "
                "cannot be pushed through"
            ) from None

    def item(self, node: Any) -> _Tangent | None:
        """One of an operator's several outputs."""
        if node.target is not operator.getitem:
            return None
        source, index = node.args
        found: _Tangent = self.tangents[source][index]
        return found

    def moved(self, node: Any) -> _Tangent | None:
        if not is_op(node, *_MOVES):
            return None
        tangent = self.tangents[node.args[0]]
        rest = self.arguments(node.args[1:], shared=tangent.shared)
        factor = tangent.factor
        if factor is not None:
            factor = node.target(factor, *self.plain(node.args[1:]), **node.kwargs)
        rows = node.target(tangent.rows, *rest, **node.kwargs)
        return _Tangent(rows, tangent.shared, factor)

    def linear(self, node: Any) -> Any:
        if is_op(node, "addmm") and not node.kwargs:
            bias, x, weight = node.args
            if self.tangents.get(bias) is not None or _depends_on_target(bias):
                return None
            target, source, rest = aten.mm.default, x, (weight,)
        elif is_op(node, *_LINEAR):
            target, source, rest = node.target, node.args[0], node.args[1:]
            if is_op(node, "convolution"):
                rest = (rest[0], None, *rest[2:])
        else:
            return None
        others = [argument for argument in rest if isinstance(argument, fx.Node)]
        if any(self.tangents.get(other) or _depends_on_target(other) for other in others):
            return None
        tangent = self.product(source, self.tangents[source])
        if target is aten.mm.default and tangent.rows is self.identity:
            # The tangent is the identity times the weights.
            weight = self.values[rest[0]]
            whole = self.count == self.whole.directions
            rows = weight if whole else weight[self.first : self.first + self.count]
            return _Tangent(rows, shared=True)
        rest = self.arguments(rest, shared=tangent.shared)
        result = target(tangent.rows, *rest, **self.arguments(node.kwargs, shared=tangent.shared))
        if isinstance(result, list | tuple):
            return [_Tangent(rows, tangent.shared) for rows in result]
        return _Tangent(result, tangent.shared)

    def joined(self, node: Any) -> _Tangent | None:
        if not is_op(node, "cat", "stack"):
            return None
        parts: Any = node.args[0]
        known = [self.product(p, t) for p in parts if (t := self.tangents.get(p)) is not None]
        shared = all(tangent.shared for tangent in known)
        rows = []
        for part in parts:
            tangent = self.tangents.get(part)
            if tangent is None:
                value = self.values[part]
                sizes = [self.rows_for(n, shared) for n in shape(part) or ()]
                if not _depends_on_target(part):
                    raise _NoRuleError
                rows.append(value.new_zeros(sizes))
            else:
                tangent = self.product(part, tangent)
                rows.append(tangent.rows if shared else self.unshared(part, tangent).rows)
        return _Tangent(node.target(rows, *node.args[1:]), shared)

    def sum(self, node: Any) -> _Tangent | None:
        if not is_op(node, "add", "sub") or node.kwargs:
            return None
        terms = []
        sources = []
        for i, operand in enumerate(node.args):
            tangent = self.tangents.get(operand)
            if tangent is None:
                continue
            if i == 1 and is_op(node, "sub"):
                if tangent.factor is None:
                    tangent = replace(tangent, rows=-tangent.rows)
                else:
                    tangent = replace(tangent, factor=-tangent.factor)
            terms.append(tangent)
            sources.append(operand)
        if all(shape(source) == shape(node) for source in sources):
            return terms[0] if len(terms) == 1 else self.total(node, terms)
        return self.broadcast_total(node, terms, sources)

    def broadcast_total(
        self, node: fx.Node, terms: Sequence[_Tangent], sources: Sequence[fx.Node]
    ) -> _Tangent | None:
        """The sum of the tangents of different nodes; None if none has the result's shape."""
        sizes = [shape(source) or () for source in sources]
        whole = shape(node) or ()
        if whole not in sizes or any(len(own) != len(whole) for own in sizes):
            return None
        products = [self.product(s, t) for s, t in zip(sources, terms, strict=True)]
        rows = self.split(products[0], sources[0])
        for source, product in zip(sources[1:], products[1:], strict=True):
            rows = rows + self.split(product, source)
        return replace(self.join(rows, node), shared=all(term.shared for term in products))

    def total(self, node: fx.Node, terms: Sequence[_Tangent]) -> _Tangent:
        """The sum of tangents that all have the node's shape."""
        one = terms[0]
        if all(term.rows is one.rows for term in terms) and any(
            term.factor is not None for term in terms
        ):
            factors: list[Any] = [1.0 if term.factor is None else term.factor for term in terms]
            return replace(one, factor=sum(factors[1:], factors[0]))
        products = [self.product(node, term) for term in terms]
        if all(term.shared == products[0].shared for term in products):
            rows = products[0].rows
            for term in products[1:]:
                rows = rows + term.rows
            return _Tangent(rows, products[0].shared)
        rows = self.split(products[0], node)
        for term in products[1:]:
            rows = rows + self.split(term, node)
        return self.join(rows, node)

    def times(self, node: Any) -> _Tangent | None:
        """The tangent of a product whose factors may broadcast."""
        if not is_op(node, "mul") or any(not isinstance(a, fx.Node) for a in node.args):
            return None
        one, other = node.args
        if one is other or shape(one) == shape(other):
            return None
        if any(len(shape(a) or ()) != len(shape(node) or ()) for a in node.args):
            return None
        terms = []
        for source, by in ((one, other), (other, one)):
            tangent = self.tangents.get(source)
            if tangent is not None:
                rows = self.split(self.product(source, tangent), source)
                terms.append(self.join(rows * self.beside(self.values[by], node), node))
        return self.total(node, terms) if len(terms) > 1 else terms[0]

    def scaled(self, node: Any) -> _Tangent | None:
        """The tangent of a product with a number or with a constant per channel."""
        if not is_op(node, "mul", "div", "neg") or (is_op(node, "div") and node.kwargs):
            return None
        arguments = list(node.args)
        at = next(i for i, a in enumerate(arguments) if self.tangents.get(a) is not None)
        source = arguments[at]
        others = [a for i, a in enumerate(arguments) if i != at]
        if at == 1 and is_op(node, "div"):
            return None
        if any(self.tangents.get(a) is not None or _depends_on_target(a) for a in others):
            return None
        if shape(source) != shape(node):
            return None
        tangent: _Tangent = self.tangents[source]
        arguments = self.plain(arguments)
        arguments[at] = tangent.rows if tangent.factor is None else tangent.factor
        result = node.target(*arguments)
        if tangent.factor is None:
            return replace(tangent, rows=result)
        return replace(tangent, factor=result)

    def pointwise(self, node: Any) -> _Tangent | None:
        """The sum of each operand's tangents times the derivative with respect to that operand."""
        called = node.target
        if not isinstance(called, torch._ops.OpOverload) or torch.Tag.pointwise not in called.tags:
            return None
        sources = [s for s in node.all_input_nodes if self.tangents.get(s) is not None]
        rank = len(shape(node) or ())
        if any(len(shape(source) or ()) != rank for source in sources):
            return None
        terms = []
        for source, slope in zip(sources, self.slopes(node, sources), strict=True):
            tangent = self.tangents[source]
            factor = slope if tangent.factor is None else tangent.factor * slope
            if shape(source) == shape(node):
                terms.append(replace(tangent, factor=factor))
            else:
                rows = self.split(replace(tangent, factor=None), source)
                terms.append(self.join(rows * self.beside(factor, node), node))
        return self.total(node, terms) if len(terms) > 1 else terms[0]

    def slopes(self, node: Any, sources: Sequence[fx.Node]) -> Sequence[Tensor]:
        """The derivatives of an element-wise operator, each shaped as the node."""
        with torch.enable_grad():
            leaves = {}
            for source in sources:
                value = self.values[source]
                if shape(source) != shape(node):
                    value = value.expand(self.values[node].shape)
                leaves[source] = value.detach().requires_grad_(True)

            def known(argument: fx.Node) -> Any:
                return leaves[argument] if argument in leaves else self.values[argument]

            arguments, named = (_mapped(a, known) for a in (node.args, node.kwargs))
            result = node.target(*arguments, **named)
            return torch.autograd.grad(result, list(leaves.values()), torch.ones_like(result))

    def by_double_derivative(self, node: Any) -> Any:
        """The tangent of any operator, by differentiating its gradient, one row at a time.

        J t is the derivative of (J^T v) . t with respect to v.
        """
        sources = [s for s in node.all_input_nodes if self.tangents.get(s) is not None]

        def known(argument: fx.Node) -> Any:
            if argument in leaves:
                return leaves[argument]
            if isinstance(argument.meta.get("val"), Tensor) and _depends_on_target(argument):
                return self.repeated(argument)
            return self.arguments(argument, shared=False)

        with torch.enable_grad():
            leaves: dict[fx.Node, Tensor] = {}
            for source in sources:
                leaves[source] = self.repeated(source).detach().requires_grad_(True)
            arguments, named = (_mapped(a, known) for a in (node.args, node.kwargs))
            results = node.target(*arguments, **named)
            several = isinstance(results, list | tuple)
            tangents: list[_Tangent | None] = []
            for result in results if several else [results]:
                if not isinstance(result, Tensor) or not result.requires_grad:
                    tangents.append(None)
                    continue
                v = torch.zeros_like(result).requires_grad_(True)
                gradients = torch.autograd.grad(
                    result, list(leaves.values()), v, create_graph=True, materialize_grads=True
                )
                rows = [self.unshared(s, self.tangents[s]).rows for s in sources]
                (pushed,) = torch.autograd.grad(gradients, v, rows)
                tangents.append(_Tangent(pushed.detach(), shared=False))
        return tangents if several else tangents[0]

    def repeated(self, node: fx.Node) -> Tensor:
        """A node's value, repeated for every direction."""
        axis, _ = _targets(node)
        value = self.beside(self.values[node], node)
        sizes = [-1] * value.ndim
        sizes[axis + 1] = self.count
        return value.expand(sizes).reshape(self.sizes(node, -1))
