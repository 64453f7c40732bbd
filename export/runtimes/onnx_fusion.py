"""Rewrite an ONNX graph's convolutions as operators that the engine has kernels for (csrc/ops).

A convolution is fused with its bias and activation; in a backward pass, with the product by the
activation's derivative; for tangents, with the product by a factor that all tangents of a target
share. The operators work on images with channels last. Images keep that layout between them and
through element-wise operators; elsewhere a Transpose is inserted. Near the latent, where a dense
layer's features are reshaped to an image or back, the layer's features are reordered instead.

A kernel-3 convolution of an image doubled in size by repeating pixels equals a kernel-4, stride-2
transposed convolution of the original image, whose weights are sums of the kernel-3 weights: 4
products per output pixel instead of 9. Its gradient is the adjoint of that transposed convolution.

The operators are in the domain "pyinv":

===================================  ==============  ==========================================
operator                             inputs          output
===================================  ==============  ==========================================
Conv2d, ConvTranspose2d              X, W, (B)       y, the convolution plus bias
...LeakyRelu                         X, W, (B)       y where y > 0, slope * y elsewhere
...LeakyReluGradient                 X, W, A         y where A > 0, slope * y elsewhere
...Scaled                            X, W, F         y * F, one image of F for several of y
Conv2dByTarget and others                            see onnx_by_target
===================================  ==============  ==========================================

W, B, ``strides``, ``pads`` and ``output_padding`` are as in ONNX's Conv and ConvTranspose.
``input_perm`` permutes X to [batch, channels, height, width], ``output_perm`` permutes that to the
output's layout, which A and F share; either may be [0, 1, 2, 3]. ``split`` is the output's shape
with a separate axis for the images that share an image of F, [-1, images, ...]; ``joined`` is the
shape without it, [-1, ...].

The model also defines every operator as a function of standard operators. A runtime without the
"pyinv" operators inlines these functions: the same file runs anywhere, with the same results up to
rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, helper
from onnx_ir.passes import common

from .onnx_by_target import BY_TARGET, by_target_function, rewrite_by_target
from .onnx_values import array_of, declare, only_user, scalar_of, sizes_of

__all__ = ["DOMAIN", "fuse", "operator_function"]

DOMAIN = "pyinv"

_SAME = (0, 1, 2, 3)
_TO_LAST = (0, 2, 3, 1)
_TO_FIRST = (0, 3, 1, 2)
# Images with few channels keep channels first: the operators read and write them in either layout,
# and the loss compares them with targets whose channels are first.
_FEW_CHANNELS = 8
_DENSE = ("Gemm", "MatMul")
_ELEMENTWISE = {
    "Abs", "Add", "Clip", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mish",
    "Mul", "Neg", "Not", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sign", "Softplus",
    "Softsign", "Sqrt", "Sub", "Tanh", "ThresholdedRelu", "Where", "Cast", "And", "Or",
}  # fmt: skip


_DOUBLING: dict[str, Any] = {
    "attributes": {"kernel_shape": (4, 4), "strides": (2, 2), "pads": (1, 1, 1, 1)}
}


def fuse(model: ModelProto) -> ModelProto:
    """Return the model with its convolutions rewritten; a model without any is returned unchanged.

    Args:
        model: standard operators only, weights in initializers, image shapes static.
    """
    if not any(node.op_type in ("Conv", "ConvTranspose") for node in model.graph.node):
        return model
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    _Fusion(inferred.graph).run()
    for work in (common.RemoveUnusedNodesPass(), common.CommonSubexpressionEliminationPass()):
        work(inferred)
    fused = ir.to_proto(inferred)
    used = {node.op_type for node in fused.graph.node if node.domain == DOMAIN}
    if not used:
        return model
    fused.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    fused.functions.extend(operator_function(name, fused.opset_import) for name in sorted(used))
    # Functions are older, but a model file can list their value types only from version 10.
    fused.ir_version = max(fused.ir_version, 10)
    return fused


def operator_function(name: str, opsets: Iterable[Any]) -> FunctionProto:
    """Define one of the operators as a function of standard operators of the given versions."""
    if name in BY_TARGET:
        return by_target_function(name, DOMAIN, opsets)
    transposed = name.startswith("ConvTranspose2d")
    after = name.removeprefix("ConvTranspose2d").removeprefix("Conv2d")
    gradient, scaled = after == "LeakyReluGradient", after == "Scaled"
    third = "A" if gradient else "F" if scaled else "B"
    settings = ["strides", "pads", *(["output_padding"] if transposed else [])]
    others = {"": (), "Scaled": ("split", "joined")}.get(after, ("slope",))

    def node(op: str, inputs: list[str], output: str, **attributes: str) -> NodeProto:
        made = helper.make_node(op, inputs, [output])
        for attribute, source in attributes.items():
            kind = AttributeProto.FLOAT if source == "slope" else AttributeProto.INTS
            made.attribute.append(AttributeProto(name=attribute, ref_attr_name=source, type=kind))
        return made

    nodes = [
        node("Transpose", ["X"], "x", perm="input_perm"),
        node(
            "ConvTranspose" if transposed else "Conv",
            ["x", "W", "B"] if third == "B" else ["x", "W"],
            "convolved",
            **{setting: setting for setting in settings},
        ),
    ]
    if after == "LeakyRelu":
        nodes += [
            node("LeakyRelu", ["convolved"], "y", alpha="slope"),
            node("Transpose", ["y"], "Y", perm="output_perm"),
        ]
    elif gradient:
        nodes += [
            node("Transpose", ["convolved"], "y", perm="output_perm"),
            helper.make_node("Constant", [], ["zero"], value_float=0.0),
            node("Constant", [], "slope", value_float="slope"),
            node("Greater", ["A", "zero"], "positive"),
            node("Mul", ["y", "slope"], "sloped"),
            node("Where", ["positive", "y", "sloped"], "Y"),
        ]
    elif scaled:
        nodes += [
            node("Transpose", ["convolved"], "y", perm="output_perm"),
            node("Constant", [], "split_shape", value_ints="split"),
            node("Constant", [], "joined_shape", value_ints="joined"),
            helper.make_node("Constant", [], ["images"], value_ints=[1]),
            node("Reshape", ["y", "split_shape"], "by_factor"),
            node("Unsqueeze", ["F", "images"], "factor"),
            node("Mul", ["by_factor", "factor"], "scaled"),
            node("Reshape", ["scaled", "joined_shape"], "Y"),
        ]
    else:
        nodes.append(node("Transpose", ["convolved"], "Y", perm="output_perm"))
    return helper.make_function(
        DOMAIN,
        name,
        ["X", "W", third],
        ["Y"],
        nodes,
        [opset for opset in opsets if opset.domain == ""],
        [*settings, *others, "input_perm", "output_perm"],
    )


def _transposed_matrix(value: ir.Value | None) -> ir.Value | None:
    """Return W if a value is the transpose of a stored matrix W."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or len(sizes_of(value) or ()) != 2:
        return None
    return node.inputs[0] if array_of(node.inputs[0]) is not None else None


class _Fusion:
    """Rewrite one graph. ``last`` maps channels-first images to their channels-last copies."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.last: dict[ir.Value, ir.Value] = {}
        self.constants: dict[Any, ir.Value] = {}
        self.done: set[ir.Node] = set()

    def run(self) -> None:
        """Visit the nodes in order, so that the channels-last copies of a node's inputs exist."""
        rewrite_by_target(self.graph, DOMAIN)
        for node in list(self.graph):
            if node.op_type == "Resize":
                self.convolved_upsampling(node)
            elif node.op_type == "AveragePool":
                self.upsampling_gradient(node)
        for node in list(self.graph):
            self.visit(node)

    def visit(self, node: ir.Node) -> None:
        if node.op_type in BY_TARGET:
            self.by_target(node)
        if node in self.done or node.domain != "":
            return
        if node.op_type in ("Conv", "ConvTranspose"):
            self.convolution(node)
        elif node.op_type == "Reshape":
            (
                self.image_from_features(node)
                or self.features_from_image(node)
                or self.joined_images(node)
            )
        elif node.op_type in _ELEMENTWISE:
            self.elementwise(node)
        self.done.add(node)

    def visit_source(self, value: ir.Value | None) -> None:
        """Visit the element-wise operators behind a value, which may come later in the graph."""
        node = value.producer() if value is not None else None
        if node is None or node in self.done or node.op_type not in _ELEMENTWISE:
            return
        for source in list(node.inputs):
            self.visit_source(source)
        self.visit(node)

    # -- Building ------------------------------------------------------------------------------

    def add(
        self, before: ir.Node, op: str, inputs: Sequence[ir.Value | None], **rest: Any
    ) -> ir.Value:
        """Insert a node before another and return its output."""
        node = ir.node(op, inputs, **rest)
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def transposed(self, before: ir.Node, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        made = self.add(before, "Transpose", [value], attributes={"perm": perm})
        sizes = sizes_of(value)
        assert sizes is not None
        declare(made, [sizes[axis] for axis in perm], value)
        return made

    def channels_last(self, before: ir.Node, value: ir.Value) -> ir.Value:
        if value not in self.last:
            self.last[value] = self.transposed(before, value, _TO_LAST)
        return self.last[value]

    def constant(self, key: Any, array: np.ndarray) -> ir.Value:
        """Return the initializer for a key, which is created once."""
        if key not in self.constants:
            name = f"{key[0]}_{len(self.constants)}"
            value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
            self.graph.register_initializer(value)
            self.constants[key] = value
        return self.constants[key]

    def replace(self, node: ir.Node, by: ir.Value) -> None:
        """Replace a node's output by a value, and remove the node."""
        old = node.outputs[0]
        declare(by, sizes_of(old), old)
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], [], [old], [by])
        self.done.add(node)

    def replace_by_last(self, node: ir.Node, last: ir.Value) -> None:
        """Replace a node's output by a channels-last value. Unused transposes are removed later."""
        old = node.outputs[0]
        sizes = sizes_of(old)
        assert sizes is not None
        declare(last, [sizes[axis] for axis in _TO_LAST], old)
        first = self.transposed(node, last, _TO_FIRST)
        self.replace(node, first)
        self.last[first] = last

    # -- Upsampling ----------------------------------------------------------------------------

    def convolved_upsampling(self, node: ir.Node) -> None:
        """Rewrite Resize by repeating pixels, then Conv, as a ConvTranspose."""
        attributes = node.attributes
        scales = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
        convolution = only_user(node.outputs[0])
        if (
            scales is None
            or scales.tolist() != [1.0, 1.0, 2.0, 2.0]
            or attributes.get_string("mode", "nearest") != "nearest"
            or attributes.get_string("coordinate_transformation_mode", "half_pixel") != "asymmetric"
            or attributes.get_string("nearest_mode", "round_prefer_floor") != "floor"
            or convolution is None
            or convolution.op_type != "Conv"
            or not self.same_size_kernel_3(convolution)
        ):
            return
        inputs = [node.inputs[0], self.spread(convolution.inputs[1]), *convolution.inputs[2:]]
        self.replace(convolution, self.add(convolution, "ConvTranspose", inputs, **_DOUBLING))

    def upsampling_gradient(self, node: ir.Node) -> None:
        """Rewrite ConvTranspose, then the sum of 2 x 2 pixels, as a Conv."""
        attributes = node.attributes
        convolution = node.inputs[0].producer() if node.inputs[0] is not None else None
        if (
            tuple(attributes.get_ints("kernel_shape", ())) != (2, 2)
            or tuple(attributes.get_ints("strides", (1, 1))) != (2, 2)
            or any(attributes.get_ints("pads", ()))
            or any(n != 1 for n in attributes.get_ints("dilations", (1, 1)))
            or attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
            or attributes.get_int("ceil_mode", 0) != 0
            or convolution is None
            or convolution.op_type != "ConvTranspose"
            or only_user(convolution.outputs[0]) is not node
            or any(value is not None for value in convolution.inputs[2:])
            or not self.same_size_kernel_3(convolution)
        ):
            return
        # The average is a quarter of the sum. If it is immediately multiplied by 4, the weights are
        # those of the forward pass; otherwise they are divided by 4, which is exact.
        end, quarter = node, True
        product = only_user(node.outputs[0])
        factors = [] if product is None else [scalar_of(value) for value in product.inputs]
        if product is not None and product.op_type == "Mul" and 4.0 in factors:
            end, quarter = product, False
        weights = self.spread(convolution.inputs[1], quarter=quarter)
        self.replace(end, self.add(end, "Conv", [convolution.inputs[0], weights], **_DOUBLING))

    def same_size_kernel_3(self, node: ir.Node) -> bool:
        settings = self.settings(node)
        return (
            settings is not None
            and sizes_of(node.inputs[1])[2:] == (3, 3)  # type: ignore[index]
            and settings["strides"] == (1, 1)
            and settings["pads"] == (1, 1, 1, 1)
            and not any(settings.get("output_padding", ()))
        )

    def spread(self, weight: ir.Value | None, *, quarter: bool = False) -> ir.Value:
        """Convert weights [out, in, 3, 3] for a doubled image to [in, out, 4, 4] for the image."""
        array = array_of(weight)
        assert weight is not None
        assert array is not None
        sums = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float64)
        spread = np.einsum("ay,bx,oiyx->ioab", sums, sums, array.astype(np.float64))
        spread *= 0.25 if quarter else 1.0
        return self.constant((weight.name, "spread", quarter), spread.astype(np.float32))

    # -- Convolutions --------------------------------------------------------------------------

    def convolution(self, node: ir.Node) -> None:
        settings = self.settings(node)
        if settings is None:
            return
        source, weight = node.inputs[0], node.inputs[1]
        assert source is not None
        assert weight is not None
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        transposed = node.op_type == "ConvTranspose"
        channels = sizes_of(weight)[1 if transposed else 0]  # type: ignore[index]
        few_in = sizes_of(source)[1] < _FEW_CHANNELS  # type: ignore[index]
        first = channels < _FEW_CHANNELS

        name, third, end = node.op_type + "2d", bias, node
        activation = self.activation(node.outputs[0])
        derivative = None if bias is not None else self.derivative(node.outputs[0])
        scaled = None if bias is not None else self.scaled(node.outputs[0])
        if activation is not None:
            end, settings["slope"] = activation
            name += "LeakyRelu"
        elif derivative is not None:
            end, third, settings["slope"] = derivative
            name += "LeakyReluGradient"
            if not first:
                third = self.channels_last(end, third)
        elif scaled is not None:
            end, third, images = scaled
            name += "Scaled"
            if not first:
                third = self.channels_last(end, third)
            each = sizes_of(third)[1:]  # type: ignore[index]
            settings["split"], settings["joined"] = (-1, images, *each), (-1, *each)
        if few_in and source not in self.last:
            settings["input_perm"] = _SAME
        else:
            settings["input_perm"] = _TO_FIRST
            source = self.channels_last(end, source)
        settings["output_perm"] = _SAME if first else _TO_LAST
        made = self.add(end, name, [source, weight, third], attributes=settings, domain=DOMAIN)
        sizes = sizes_of(node.outputs[0])
        if sizes_of(end.outputs[0])[1:] != sizes[1:]:  # type: ignore[index]
            # The images that share a factor stay adjacent.
            if not first:
                declare(made, [sizes[axis] for axis in _TO_LAST], node.outputs[0])  # type: ignore[index]
                made = self.transposed(end, made, _TO_FIRST)
            self.replace(end, self.add(end, "Reshape", [made, end.inputs[1]]))
        elif first:
            self.replace(end, made)
        else:
            self.replace_by_last(end, made)

    def settings(self, node: ir.Node) -> dict[str, Any] | None:
        """The operator's attributes; None for a convolution that the operator cannot compute."""
        attributes = node.attributes
        source, weight = node.inputs[0], node.inputs[1]
        sizes = sizes_of(source)
        if sizes is None or len(sizes) != 4 or not all(isinstance(n, int) for n in sizes[1:]):
            return None
        if source.dtype != ir.DataType.FLOAT or array_of(weight) is None:  # type: ignore[union-attr]
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None and array_of(node.inputs[2]) is None:
            return None
        if attributes.get_int("group", 1) != 1 or "output_shape" in attributes:
            return None
        if any(n != 1 for n in attributes.get_ints("dilations", (1, 1))):
            return None
        if attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return None
        pads = attributes.get_ints("pads", (0, 0, 0, 0))
        if any(pad < 0 for pad in pads):
            return None
        settings: dict[str, Any] = {
            "strides": tuple(attributes.get_ints("strides", (1, 1))),
            "pads": tuple(pads),
        }
        if node.op_type == "ConvTranspose":
            settings["output_padding"] = tuple(attributes.get_ints("output_padding", (0, 0)))
        return settings

    def activation(self, value: ir.Value) -> tuple[ir.Node, float] | None:
        """The Relu or LeakyRelu that is a value's only use, and its slope."""
        user = only_user(value)
        if user is None or user.domain != "":
            return None
        if user.op_type == "Relu":
            return user, 0.0
        if user.op_type == "LeakyRelu":
            return user, user.attributes.get_float("alpha", 0.01)
        return None

    def derivative(self, value: ir.Value) -> tuple[ir.Node, ir.Value, float] | None:
        """The product with a LeakyRelu's derivative that is a value's only use.

        The pattern is Where(Greater(a, 0), value, slope * value), or with 0 as its last argument.
        Returns the Where, a, and the slope.
        """
        if value.is_graph_output():
            return None
        users = {use.node for use in value.uses()}
        select = next((user for user in users if user.op_type == "Where"), None)
        if select is None or select.inputs[1] is not value or select.inputs[2] is None:
            return None
        condition = select.inputs[0].producer()  # type: ignore[union-attr]
        if condition is None or condition.op_type != "Greater":
            return None
        activated = condition.inputs[0]
        if activated is None or scalar_of(condition.inputs[1]) != 0.0:
            return None
        if sizes_of(activated) != sizes_of(value):
            return None
        below = select.inputs[2]
        if scalar_of(below) == 0.0 and users == {select}:
            return select, activated, 0.0
        product = below.producer()
        if product is None or product.op_type != "Mul" or users != {select, product}:
            return None
        slope = next((scalar_of(side) for side in product.inputs if side is not value), None)
        if slope is None or only_user(below) is not select:
            return None
        return select, activated, slope

    def scaled(self, value: ir.Value) -> tuple[ir.Node, ir.Value, int] | None:
        """The product with a factor that several images share, if it is the value's only use.

        The pattern is Reshape(Mul(Reshape(value, [-1, images, ...]), Reshape(factor, [-1, 1,
        ...])), any). Returns the last Reshape, the factor, and the number of images that share it.
        """
        split, sizes = only_user(value), sizes_of(value)
        if split is None or split.op_type != "Reshape" or sizes is None:
            return None
        split_sizes, product = sizes_of(split.outputs[0]), only_user(split.outputs[0])
        if split_sizes is None or len(split_sizes) != 5 or split_sizes[2:] != sizes[1:]:
            return None
        if product is None or product.op_type != "Mul" or not isinstance(split_sizes[1], int):
            return None
        other = next((side for side in product.inputs if side is not split.outputs[0]), None)
        reshape = other.producer() if other is not None else None
        if reshape is None or reshape.op_type != "Reshape":
            return None
        self.visit_source(reshape.inputs[0])
        factor = reshape.inputs[0]
        if (sizes_of(other) or ())[1:] != (1, *sizes[1:]) or (sizes_of(factor) or ())[1:] != sizes[
            1:
        ]:
            return None
        joined = only_user(product.outputs[0])
        if joined is None or joined.op_type != "Reshape" or sizes_of(joined.outputs[0]) is None:
            return None
        assert factor is not None
        return joined, factor, split_sizes[1]

    def by_target(self, node: ir.Node) -> None:
        """Give an operator with weights per target, or their gradient, its channels last."""
        weight_gradient = node.op_type.endswith("WeightGradient")
        for index, perm in enumerate(("input_perm", "output_perm")):
            value = node.inputs[index] if index == 0 or weight_gradient else node.outputs[0]
            sizes = sizes_of(value)
            assert value is not None
            if sizes is None or sizes[1] < _FEW_CHANNELS:
                continue
            if value is not node.outputs[0]:
                node.replace_input_with(index, self.channels_last(node, value))
                node.attributes[perm] = ir.AttrInt64s(perm, _TO_FIRST)
                continue
            node.attributes[perm] = ir.AttrInt64s(perm, _TO_LAST)
            first = ir.node("Transpose", [value], {"perm": _TO_FIRST})
            self.graph.insert_after(node, first)
            ir.convenience.replace_all_uses_with(value, first.outputs[0])
            first.replace_input_with(0, value)
            declare(first.outputs[0], sizes, value)
            declare(value, [sizes[axis] for axis in _TO_LAST], value)
            self.last[first.outputs[0]] = value
        self.done.add(node)

    # -- Between convolutions ------------------------------------------------------------------

    def elementwise(self, node: ir.Node) -> None:
        """Compute an element-wise operator with channels last if an input has them last."""
        sizes = sizes_of(node.outputs[0])
        if sizes is None or len(sizes) != 4 or not any(v in self.last for v in node.inputs):
            return
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            other = sizes_of(value)
            if value is None or other is None:
                inputs.append(value)
                if value is not None:
                    return
            elif len(other) == 0 or (scalar_of(value) is not None and len(other) < 4):
                inputs.append(value)
            elif len(other) != 4:
                return
            elif (array := array_of(value)) is not None:
                inputs.append(self.constant((value.name, _TO_LAST), array.transpose(_TO_LAST)))
            else:
                inputs.append(self.channels_last(node, value))
        self.replace_by_last(
            node, self.add(node, node.op_type, inputs, attributes=dict(node.attributes))
        )

    def joined_images(self, node: ir.Node) -> bool:
        """Rewrite a Reshape of images with an extra axis, [targets, directions, ...]."""
        source, sizes = node.inputs[0], sizes_of(node.outputs[0])
        split = sizes_of(source)
        if sizes is None or split is None or (len(sizes), len(split)) != (4, 5):
            return False
        if split[2:] != sizes[1:] or not self.used_last(node.outputs[0]):
            return False
        last = self.split_last(node, source)
        if last is None:
            return False
        self.replace_by_last(node, self.image(node, last, sizes))
        return True

    def split_last(self, before: ir.Node, value: ir.Value | None) -> ir.Value | None:
        """Images with an extra axis, [targets, directions, channels, height, width], channels last.

        None if they cannot be had without a transpose.
        """
        sizes = sizes_of(value)
        if value is None or sizes is None:
            return None
        if scalar_of(value) is not None and len(sizes) < 5:
            return value
        if len(sizes) != 5 or not all(isinstance(n, int) for n in sizes[1:]):
            return None
        array = array_of(value)
        if array is not None:
            return self.constant((value.name, "last"), array.transpose(0, 1, 3, 4, 2))
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "Reshape":
            source = node.inputs[0]
            targets = -1 if not isinstance(sizes[0], int) else sizes[0]
            shape = (targets, sizes[1], *sizes[3:], sizes[2])
            last = None
            if (sizes_of(source) or ())[1:] == sizes[2:]:
                last = self.channels_last(before, source)  # type: ignore[arg-type]
            elif (weight := _transposed_matrix(source)) is not None:
                # A dense layer's weights, which are reordered for the layer too.
                reordered = self.reordered(weight, 0, sizes[2:])
                if reordered is not None:
                    last = self.add(before, "Transpose", [reordered], attributes={"perm": (1, 0)})
            if last is None:
                return None
            return self.reshaped(before, last, shape)
        if node.domain != "" or node.op_type not in _ELEMENTWISE:
            return None
        inputs = [self.split_last(before, side) for side in node.inputs]
        if any(side is None for side in inputs):
            return None
        return self.add(before, node.op_type, inputs, attributes=dict(node.attributes))

    def used_last(self, value: ir.Value) -> bool:
        """Whether a convolution uses the value, possibly after element-wise operators."""
        return any(
            self.settings(user) is not None
            if user.op_type in ("Conv", "ConvTranspose")
            else user.op_type in _ELEMENTWISE and self.used_last(user.outputs[0])
            for user in (use.node for use in value.uses())
        )

    def reordered(self, value: ir.Value | None, axis: int, sizes: Sequence[int]) -> ir.Value | None:
        """Reorder a matrix or bias so that its features are height, width, channels."""
        array = array_of(value)
        if value is None or array is None or array.ndim > 2:
            return None
        axis %= array.ndim
        if array.shape[axis] != np.prod(sizes):
            return None
        split = array.reshape(*array.shape[:axis], *sizes, *array.shape[axis + 1 :])
        order = [*range(axis), axis + 1, axis + 2, axis, *range(axis + 3, split.ndim)]
        return self.constant(
            (value.name, axis, tuple(sizes)), split.transpose(order).reshape(array.shape)
        )

    def image_from_features(self, node: ir.Node) -> bool:
        """Rewrite Gemm, Reshape to an image, so that the Gemm's features have channels last."""
        source, sizes = node.inputs[0], sizes_of(node.outputs[0])
        gemm = source.producer() if source is not None else None
        if gemm is None or gemm.op_type not in _DENSE or sizes is None or len(sizes) != 4:
            return False
        if only_user(gemm.outputs[0]) is not node or not self.used_last(node.outputs[0]):
            return False
        if not all(isinstance(n, int) for n in sizes[1:]) or len(sizes_of(source) or ()) != 2:
            return False
        transposed = gemm.attributes.get_int("transB", 0)
        matrix = self.reordered(gemm.inputs[1], 0 if transposed else 1, sizes[1:])
        bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        if matrix is None:
            return False
        if bias is not None and scalar_of(bias) is None:
            bias = self.reordered(bias, -1, sizes[1:])
            if bias is None:
                return False
        inputs = [gemm.inputs[0], matrix, *([bias] if bias is not None else [])]
        made = self.add(node, gemm.op_type, inputs, attributes=dict(gemm.attributes))
        declare(made, sizes_of(gemm.outputs[0]), gemm.outputs[0])
        self.replace_by_last(node, self.image(node, made, sizes))
        return True

    def image(self, before: ir.Node, features: ir.Value, sizes: Sequence[Any]) -> ir.Value:
        return self.reshaped(before, features, (-1, sizes[2], sizes[3], sizes[1]))

    def reshaped(self, before: ir.Node, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        sizes = self.constant(("shape", *shape), np.array(shape, np.int64))
        return self.add(before, "Reshape", [value, sizes])

    def features_from_image(self, node: ir.Node) -> bool:
        """Rewrite image, Reshape, Gemm, so that the Gemm takes features with channels last."""
        source = node.inputs[0]
        sizes, after = sizes_of(source), sizes_of(node.outputs[0])
        gemm = only_user(node.outputs[0])
        if source not in self.last or sizes is None or after is None or len(after) != 2:
            return False
        if gemm is None or gemm.op_type not in _DENSE or gemm.inputs[0] is not node.outputs[0]:
            return False
        if gemm.attributes.get_int("transA", 0) or after[1] != np.prod(sizes[1:]):
            return False
        transposed = gemm.attributes.get_int("transB", 0)
        matrix = self.reordered(gemm.inputs[1], 1 if transposed else 0, sizes[1:])
        if matrix is None:
            return False
        self.replace(node, self.add(node, "Reshape", [self.last[source], node.inputs[1]]))
        gemm.replace_input_with(1, matrix)
        return True
