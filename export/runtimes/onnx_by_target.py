"""Rewrite convolutions with weights per target as operators that the engine has kernels for.

The exporter writes such a convolution as a matrix product: a convolution with one filter per tap,
which is 1 at that tap, picks the pixels (see passes/modulation.py). Its gradient is two more
products. The operators, in the domain "pyinv", are these products without the copies of pixels:

========================  ==========  ============================================================
operator                  inputs      output
========================  ==========  ============================================================
Conv2dByTarget            X, W, E     the convolution of each image of X with its own weights
ConvTranspose2dByTarget   X, W, E     the transposed convolution
Conv2dWeightGradient      X, G, E     [B, O, I taps], the gradient with respect to the weights of a
                                      convolution of X, where G is that of its result
========================  ==========  ============================================================

W is [B, O, I, height, width], and [B, I, O, height, width] for a transposed convolution. E holds
the filters, [taps, 1, height, width]. ``strides``, ``pads`` and ``output_padding`` are as in ONNX's
Conv and ConvTranspose. ``input_perm`` permutes X to [batch, channels, height, width], and
``output_perm`` that to the output's layout; for the gradient, it permutes G as ``input_perm`` does
X. The other attributes are the shapes of reshapes in the operator's definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import AttributeProto, FunctionProto, NodeProto, helper

from .onnx_values import array_of, only_user, sizes_of

__all__ = ["BY_TARGET", "by_target_function", "rewrite_by_target"]

BY_TARGET = ("Conv2dByTarget", "ConvTranspose2dByTarget", "Conv2dWeightGradient")

_FIRST = (0, 1, 2, 3)


def by_target_function(name: str, domain: str, opsets: Iterable[Any]) -> FunctionProto:
    """Define one of the operators as a function of standard operators of the given versions."""

    def node(op: str, inputs: list[str], output: str, **attributes: str) -> NodeProto:
        made = helper.make_node(op, inputs, [output])
        for attribute, source in attributes.items():
            made.attribute.append(
                AttributeProto(name=attribute, ref_attr_name=source, type=AttributeProto.INTS)
            )
        return made

    def reshape(source: str, sizes: str, output: str) -> list[NodeProto]:
        return [
            node("Constant", [], f"{sizes}_shape", value_ints=sizes),
            node("Reshape", [source, f"{sizes}_shape"], output),
        ]

    def swapped(source: str, output: str) -> NodeProto:
        return helper.make_node("Transpose", [source], [output], perm=[0, 2, 1])

    settings = ["strides", "pads", "input_perm", "output_perm"]
    nodes = [node("Transpose", ["X"], "x", perm="input_perm")]
    picked = [
        *reshape("x", "planes", "each"),
        node("Conv", ["each", "E"], "taps", strides="strides", pads="pads"),
        *reshape("taps", "columns", "picked"),
    ]
    if name == "Conv2dByTarget":
        shapes = ["planes", "columns", "rows", "images"]
        nodes += [
            *picked,
            *reshape("W", "rows", "weights"),
            node("MatMul", ["weights", "picked"], "product"),
            *reshape("product", "images", "y"),
            node("Transpose", ["y"], "Y", perm="output_perm"),
        ]
    elif name == "ConvTranspose2dByTarget":
        settings.append("output_padding")
        shapes = ["columns", "rows", "planes", "images"]
        nodes += [
            *reshape("x", "columns", "pixels"),
            *reshape("W", "rows", "weights"),
            swapped("weights", "turned"),
            node("MatMul", ["turned", "pixels"], "product"),
            *reshape("product", "planes", "each"),
            node(
                "ConvTranspose",
                ["each", "E"],
                "joined",
                strides="strides",
                pads="pads",
                output_padding="output_padding",
            ),
            *reshape("joined", "images", "y"),
            node("Transpose", ["y"], "Y", perm="output_perm"),
        ]
    else:
        shapes = ["planes", "columns", "rows"]
        nodes += [
            *picked,
            node("Transpose", ["G"], "g", perm="output_perm"),
            *reshape("g", "rows", "slopes"),
            swapped("picked", "turned"),
            node("MatMul", ["slopes", "turned"], "Y"),
        ]
    second = "G" if name == "Conv2dWeightGradient" else "W"
    standard = [opset for opset in opsets if opset.domain == ""]
    return helper.make_function(
        domain, name, ["X", second, "E"], ["Y"], nodes, standard, [*settings, *shapes]
    )


def rewrite_by_target(graph: ir.Graph, domain: str) -> None:
    """Rewrite all convolutions with weights per target, with channels first."""
    rewriting = _Rewriting(graph, domain)
    for node in list(graph):
        if node.op_type == "MatMul":
            rewriting.product(node)
        elif node.op_type in ("Conv", "ConvTranspose"):
            rewriting.transposed(node)


class _Picked:
    """The pixels [B, I taps, pixels] that a convolution of [B I, 1, H, W] picks."""

    def __init__(self, value: ir.Value | None) -> None:
        self.convolution = _producer(_source(value, "Reshape"), "Conv")
        sizes = sizes_of(value)
        self.found = False
        if self.convolution is None or sizes is None or len(sizes) != 3:
            return
        self.planes, self.filters = self.convolution.inputs[:2]
        taps = _taps(array_of(self.filters))
        before, after = sizes_of(self.planes), sizes_of(self.convolution.outputs[0])
        if taps is None or not _static(before) or not _static(after) or not _static(sizes):
            return
        if not _plain(self.convolution):
            return
        assert before is not None
        assert after is not None
        self.taps, self.columns = taps, (-1, *sizes[1:])
        self.channels = sizes[1] // taps
        self.before, self.after = before[2:], after[2:]
        self.found = True


class _Rewriting:
    def __init__(self, graph: ir.Graph, domain: str) -> None:
        self.graph, self.domain = graph, domain

    def product(self, node: ir.Node) -> None:
        """Rewrite a product with picked pixels: a convolution, or the gradient of its weights."""
        left, right = node.inputs
        picked = _Picked(right)
        if picked.found:
            self.convolution(node, left, picked)
            return
        picked, other = _Picked(_swapped(right)), left
        turned = not picked.found
        if turned:
            picked, other = _Picked(left), _swapped(right)
        if picked.found and other is not None:
            self.weight_gradient(node, other, picked, turned=turned)

    def convolution(self, node: ir.Node, weights: ir.Value | None, picked: _Picked) -> None:
        sizes = sizes_of(weights)
        if sizes is None or len(sizes) != 3 or not _static(sizes):
            return
        height, width = sizes_of(picked.filters)[2:]  # type: ignore[index]
        outputs = sizes[1]
        image = (-1, outputs, *picked.after)
        made = self.add(
            node,
            "Conv2dByTarget",
            [
                self.image(node, picked.planes, (-1, picked.channels, *picked.before)),
                self.image(node, weights, (-1, outputs, picked.channels, height, width)),
                picked.filters,
            ],
            image,
            **_settings(picked.convolution),
            planes=(-1, 1, *picked.before),
            columns=picked.columns,
            rows=(-1, *sizes[1:]),
            images=image,
        )
        self.replace(node, made, image)

    def weight_gradient(
        self, node: ir.Node, slopes: ir.Value, picked: _Picked, *, turned: bool
    ) -> None:
        sizes = sizes_of(slopes)
        if sizes is None or len(sizes) != 3 or not _static(sizes):
            return
        made = self.add(
            node,
            "Conv2dWeightGradient",
            [
                self.image(node, picked.planes, (-1, picked.channels, *picked.before)),
                self.image(node, slopes, (-1, sizes[1], *picked.after)),
                picked.filters,
            ],
            (-1, sizes[1], picked.columns[1]),
            **_settings(picked.convolution),
            planes=(-1, 1, *picked.before),
            columns=picked.columns,
            rows=(-1, *sizes[1:]),
        )
        if turned:
            swap = ir.node("Transpose", [made], {"perm": (0, 2, 1)})
            self.graph.insert_before(node, swap)
            made = swap.outputs[0]
        self.substitute(node, made)

    def transposed(self, node: ir.Node) -> None:
        """Rewrite a product whose results are added to their pixels."""
        filters = array_of(node.inputs[1])
        plain = node.op_type == "Conv"
        if filters is not None and plain and filters.ndim == 4 and filters.shape[0] == 1:
            # Of stride 1: the transposed convolution with the filters turned around.
            filters = np.ascontiguousarray(filters.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])
        elif plain:
            return
        taps = _taps(filters)
        before, after = sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
        product = _producer(_source(node.inputs[0], "Reshape"), "MatMul")
        if taps is None or product is None or not (_static(before) and _static(after)):
            return
        assert filters is not None
        settings = _settings(node)
        if not _plain(node) or (plain and settings["strides"] != (1, 1)):
            return
        weights, pixels = _swapped(product.inputs[0]), product.inputs[1]
        rows, columns = sizes_of(weights), sizes_of(pixels)
        if not (_static(rows) and _static(columns)) or len(rows or ()) != 3:
            return
        assert before is not None
        assert after is not None
        assert rows is not None
        assert columns is not None
        height, width = filters.shape[2:]
        if plain:
            top, left, bottom, right = settings["pads"]
            settings["pads"] = (
                height - 1 - top, width - 1 - left, height - 1 - bottom, width - 1 - right
            )  # fmt: skip
        settings.setdefault("output_padding", (0, 0))
        outputs = rows[2] // taps
        image = (-1, outputs, *after[2:])
        made = self.add(
            node,
            "ConvTranspose2dByTarget",
            [
                self.image(node, pixels, (-1, rows[1], *before[2:])),
                self.image(node, weights, (-1, rows[1], outputs, height, width)),
                self.constant(filters) if plain else node.inputs[1],
            ],
            image,
            **settings,
            columns=(-1, *columns[1:]),
            rows=(-1, *rows[1:]),
            planes=(-1, *before[1:]),
            images=image,
        )
        self.replace(node, made, image)

    # -- Building ------------------------------------------------------------------------------

    def add(
        self,
        before: ir.Node,
        name: str,
        inputs: Sequence[ir.Value | None],
        sizes: Sequence[int],
        **attributes: Any,
    ) -> ir.Value:
        attributes = {"input_perm": _FIRST, "output_perm": _FIRST, **attributes}
        node = ir.node(name, inputs, attributes, domain=self.domain)
        self.graph.insert_before(before, node)
        made = node.outputs[0]
        made.shape, made.dtype = ir.Shape([None, *sizes[1:]]), ir.DataType.FLOAT
        return made

    def constant(self, array: np.ndarray) -> ir.Value:
        name = "filters_" + "x".join(map(str, array.shape[2:]))
        if name not in self.graph.initializers:
            value = ir.val(name, const_value=ir.tensor(array, name=name))
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def image(self, before: ir.Node, value: ir.Value | None, sizes: tuple[int, ...]) -> ir.Value:
        """A value in another shape: the one it had before a reshape, where that fits."""
        source = _source(value, "Reshape")
        if source is not None and (sizes_of(source) or ())[1:] == sizes[1:]:
            return source
        return self.reshaped(before, source if source is not None else value, sizes)

    def reshaped(self, before: ir.Node, value: ir.Value | None, sizes: tuple[int, ...]) -> ir.Value:
        name = "shape_" + "x".join(map(str, sizes)).replace("-", "n")
        if name not in self.graph.initializers:
            shape = ir.tensor(np.array(sizes, np.int64), name=name)
            self.graph.register_initializer(ir.val(name, const_value=shape))
        node = ir.node("Reshape", [value, self.graph.initializers[name]])
        self.graph.insert_before(before, node)
        made = node.outputs[0]
        made.shape, made.dtype = ir.Shape([None, *sizes[1:]]), ir.DataType.FLOAT
        return made

    def replace(self, node: ir.Node, made: ir.Value, sizes: tuple[int, ...]) -> None:
        """Replace a node by images, which the next node may reshape anyway."""
        user = only_user(node.outputs[0])
        is_reshape = user is not None and user.op_type == "Reshape"
        if user is not None and is_reshape and sizes_of(user.outputs[0])[1:] == sizes[1:]:  # type: ignore[index]
            self.substitute(user, made)
            return
        wanted = sizes_of(node.outputs[0])
        assert wanted is not None
        self.substitute(node, self.reshaped(node, made, (-1, *wanted[1:])))

    def substitute(self, node: ir.Node, made: ir.Value) -> None:
        old = node.outputs[0]
        made.shape = old.shape
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], [], [old], [made])


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op and node.domain == "" else None


def _source(value: ir.Value | None, op: str) -> ir.Value | None:
    """What an operator computed a value from; None if another operator did."""
    node = _producer(value, op)
    return node.inputs[0] if node is not None else None


def _swapped(value: ir.Value | None) -> ir.Value | None:
    """Return M if a value is M with its last two of three axes swapped."""
    node = _producer(value, "Transpose")
    if node is None or tuple(node.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    return node.inputs[0]


def _taps(filters: np.ndarray | None) -> int | None:
    """The number of filters, if each is 1 at its own tap and 0 elsewhere."""
    if filters is None or filters.ndim != 4 or filters.shape[1] != 1:
        return None
    taps = filters.shape[0]
    flat = filters.reshape(taps, -1)
    return taps if flat.shape[1] == taps and np.array_equal(flat, np.eye(taps)) else None


def _static(sizes: tuple[Any, ...] | None) -> bool:
    return sizes is not None and all(isinstance(size, int) for size in sizes[1:])


def _plain(node: ir.Node) -> bool:
    """Whether a convolution has no bias, groups or dilation."""
    attributes = node.attributes
    return (
        all(value is None for value in node.inputs[2:])
        and attributes.get_int("group", 1) == 1
        and all(n == 1 for n in attributes.get_ints("dilations", (1, 1)))
        and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and "output_shape" not in attributes
        and all(pad >= 0 for pad in attributes.get_ints("pads", ()))
    )


def _settings(node: ir.Node | None) -> dict[str, Any]:
    assert node is not None
    attributes = node.attributes
    settings: dict[str, Any] = {
        "strides": tuple(attributes.get_ints("strides", (1, 1))),
        "pads": tuple(attributes.get_ints("pads", (0, 0, 0, 0))),
    }
    if node.op_type == "ConvTranspose":
        settings["output_padding"] = tuple(attributes.get_ints("output_padding", (0, 0)))
    return settings
