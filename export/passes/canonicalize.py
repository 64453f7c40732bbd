"""Bring a traced generator's layers into a canonical form, with batch norm folded into weights.

With running statistics, batch norm is y = scale * x + shift per channel. If x comes from a
convolution, transposed convolution or dense layer (possibly through a reshape, an upsampling or a
pixel shuffle, which do not mix channels), scale and shift are folded into that layer's weight and
bias. Otherwise one multiplication and one addition per channel remain.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor, fx

from .graph import add_constant, constant, insert, is_op, shape

__all__ = [
    "fold_batch_norm",
    "has_batch_statistics",
    "instance_norm_as_group_norm",
    "one_pixel_convolution_as_dense",
    "unit_stride_transposed_as_convolution",
]

aten = torch.ops.aten

_BATCH_NORMS = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "_batch_norm_no_update",
    "batch_norm",
)
_RESHAPES = ("view", "reshape", "_unsafe_view")
# The interpolation weights of an output pixel sum to 1, so a per-channel shift passes unchanged.
_CHANNELWISE = (
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
)


def _batch_norms(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if is_op(node, *_BATCH_NORMS)]


def _arguments(node: fx.Node) -> dict[str, object]:
    """A call's arguments by name in the operator's schema, including defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named.update({a.name: value for a, value in zip(schema.arguments, node.args, strict=False)})
    named.update(node.kwargs)
    return named


def _is_training(node: fx.Node) -> bool:
    return bool(_arguments(node).get("training", False))


def has_batch_statistics(module: fx.GraphModule) -> bool:
    """Whether the images of a batch influence each other through batch norm."""
    for node in _batch_norms(module.graph):
        source = node.args[0]
        sizes = shape(source) if isinstance(source, fx.Node) else None
        if _is_training(node) and sizes is not None and not isinstance(sizes[0], int):
            return True
    return False


def fold_batch_norm(module: fx.GraphModule) -> None:
    """Replace every batch norm that uses running statistics."""
    for node in _batch_norms(module.graph):
        named = _arguments(node)
        mean = constant(module, named.get("running_mean"))
        variance = constant(module, named.get("running_var"))
        if _is_training(node) or mean is None or variance is None:
            continue
        epsilon = named.get("eps", named.get("epsilon"))
        assert isinstance(epsilon, float)
        # In double, so that the folded weight is the nearest float to the exact product.
        scale = (variance.double() + epsilon).rsqrt()
        weight, bias = constant(module, named["weight"]), constant(module, named["bias"])
        if weight is not None:
            scale = scale * weight.double()
        shift = -mean.double() * scale
        if bias is not None:
            shift = shift + bias.double()
        source = node.args[0]
        assert isinstance(source, fx.Node)
        outputs = [user for user in node.users if user.args[1] == 0] or [node]
        if _absorb(module, source, node, scale, shift):
            result = source
        else:
            result = _scale_and_shift(module, source, node, scale, shift)
        for output in outputs:
            output.replace_all_uses_with(result)
        module.graph.eliminate_dead_code()


def _scale_and_shift(
    module: fx.GraphModule, source: fx.Node, before: fx.Node, scale: Tensor, shift: Tensor
) -> fx.Node:
    sizes = shape(source)
    assert sizes is not None
    broadcast = [1, -1] + [1] * (len(sizes) - 2)
    with module.graph.inserting_before(before):
        scaled = insert(
            module.graph,
            aten.mul.Tensor,
            source,
            add_constant(module, scale.float().view(broadcast)),
        )
        return insert(
            module.graph,
            aten.add.Tensor,
            scaled,
            add_constant(module, shift.float().view(broadcast)),
        )


def _absorb(
    module: fx.GraphModule, node: fx.Node, user: fx.Node, scale: Tensor, shift: Tensor
) -> bool:
    """Make a node compute scale * node + shift, if ``user`` is its only user."""
    if any(other is not user for other in node.users):
        return False
    if is_op(node, "convolution"):
        return _absorb_in_convolution(module, node, scale, shift)
    if is_op(node, "addmm", "mm"):
        return _absorb_in_dense(module, node, scale, shift)
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return False
    if is_op(node, *_CHANNELWISE):
        return _absorb(module, source, node, scale, shift)
    if is_op(node, "pixel_shuffle"):
        repeats = int(node.args[1]) ** 2  # type: ignore[arg-type]
        return _absorb(
            module, source, node, scale.repeat_interleave(repeats), shift.repeat_interleave(repeats)
        )
    if is_op(node, *_RESHAPES):
        before, after = shape(source), shape(node)
        if before is None or after is None or before[0] != after[0] or len(after) < 2:
            return False
        # [B, C * n] -> [B, C, ...]: each channel is n consecutive features.
        if len(before) == 2 and before[1] == math.prod(after[1:]):
            repeats = before[1] // after[1]
            return _absorb(
                module,
                source,
                node,
                scale.repeat_interleave(repeats),
                shift.repeat_interleave(repeats),
            )
        if before[1] == after[1] and len(before) > 2:
            return _absorb(module, source, node, scale, shift)
    return False


def _absorb_in_convolution(
    module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor
) -> bool:
    weight, bias = constant(module, node.args[1]), constant(module, node.args[2])
    if weight is None or (bias is None and node.args[2] is not None):
        return False
    transposed, groups = bool(node.args[6]), int(node.args[8])  # type: ignore[arg-type]
    if transposed:
        by_group = weight.double().unflatten(0, (groups, -1))
        channels = scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
        folded = (by_group * channels).flatten(0, 1)
    else:
        folded = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    offset = shift if bias is None else shift + bias.double() * scale
    with module.graph.inserting_before(node):
        node.update_arg(1, add_constant(module, folded.float()))
        node.update_arg(2, add_constant(module, offset.float()))
    return True


def _absorb_in_dense(module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> bool:
    has_bias = is_op(node, "addmm")
    x, matrix = node.args[-2], node.args[-1]
    bias = constant(module, node.args[0]) if has_bias else None
    transposed = is_op(matrix, "t", "transpose", "permute")
    weight = constant(module, matrix.args[0] if transposed else matrix)  # type: ignore[union-attr]
    if weight is None or (has_bias and (bias is None or bias.ndim != 1)) or node.kwargs:
        return False
    if weight.shape[0 if transposed else 1] != scale.shape[0]:
        return False
    folded = weight.double() * (scale[:, None] if transposed else scale)
    offset = shift if bias is None else shift + bias.double() * scale
    with module.graph.inserting_before(node):
        matrix = add_constant(module, folded.float())
        if transposed:
            matrix = insert(module.graph, aten.t.default, matrix)
        node.args = (add_constant(module, offset.float()), x, matrix)
    node.target = aten.addmm.default
    return True


def one_pixel_convolution_as_dense(module: fx.GraphModule) -> None:
    """Replace transposed convolutions of 1x1 images (a DCGAN's first layer) by dense layers."""
    graph = module.graph
    for node in list(graph.nodes):
        if not is_op(node, "convolution") or not node.args[6]:
            continue
        x, weight_node, bias_node, _, padding, dilation, _, output_padding, groups = node.args
        weight, bias = constant(module, weight_node), constant(module, bias_node)
        before, after = shape(x), shape(node)
        if (
            weight is None
            or before is None
            or after is None
            or len(before) != 4
            or before[2:] != (1, 1)
            or isinstance(before[0], int)
            or (bias is None and bias_node is not None)
            or groups != 1
            or any(step != 1 for step in dilation)
            or any(output_padding)
        ):
            continue
        inputs, channels, height, width = weight.shape
        top, left = padding
        cropped = weight[:, :, top : height - top, left : width - left]
        if cropped.shape[2:] != after[2:]:
            continue
        with graph.inserting_before(node):
            rows = insert(graph, aten.view.default, x, [-1, inputs])
            matrix = add_constant(module, cropped.reshape(inputs, -1))
            if bias is None:
                dense = insert(graph, aten.mm.default, rows, matrix)
            else:
                offset = add_constant(
                    module, bias.repeat_interleave(cropped.shape[2] * cropped.shape[3])
                )
                dense = insert(graph, aten.addmm.default, offset, rows, matrix)
            image = insert(graph, aten.view.default, dense, [-1, channels, *cropped.shape[2:]])
        node.replace_all_uses_with(image)
    graph.eliminate_dead_code()


def unit_stride_transposed_as_convolution(module: fx.GraphModule) -> None:
    """Replace transposed convolutions of stride 1 by equivalent plain convolutions.

    ONNX Runtime's convolution is about twice as fast as its transposed one.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if not is_op(node, "convolution") or not node.args[6]:
            continue
        x, weight_node, bias, stride, padding, dilation, _, output_padding, groups = node.args
        weight = constant(module, weight_node)
        if weight is None or groups != 1 or any(s != 1 for s in stride) or any(output_padding):
            continue
        rank = len(stride)
        reach = [dilation[i] * (weight.shape[2 + i] - 1) - padding[i] for i in range(rank)]
        if min(reach) < 0:
            continue
        flipped = weight.flip(list(range(2, 2 + rank))).transpose(0, 1)
        with graph.inserting_before(node):
            plain = add_constant(module, flipped)
        node.args = (x, plain, bias, stride, reach, dilation, False, [0] * rank, 1)
    graph.eliminate_dead_code()


def instance_norm_as_group_norm(module: fx.GraphModule) -> None:
    """Replace traced instance norm: batch norm over [1, B * C, ...] with repeated weights.

    Without weights, an image may have another number of groups than C. PyTorch's form needs
    reshapes with symbolic sizes and a copy of the weights per image.
    """
    graph = module.graph
    for node in _batch_norms(graph):
        named = _arguments(node)
        view = node.args[0]
        if not _is_training(node) or not is_op(view, *_RESHAPES):
            continue
        source = view.args[0]  # type: ignore[union-attr]
        assert isinstance(view, fx.Node)
        assert isinstance(source, fx.Node)
        sizes = shape(source)
        if shape(view)[0] != 1 or sizes is None or isinstance(sizes[0], int):  # type: ignore[index]
            continue
        outputs = [user for user in node.users if user.args[1] == 0]
        back = [user for output in outputs for user in output.users]
        if any(not is_op(user, *_RESHAPES) or shape(user) != sizes for user in back):
            continue
        weight, bias = (_unrepeated(named[name]) for name in ("weight", "bias"))
        groups = shape(view)[1] // sizes[0]  # type: ignore[index]
        if not (groups == sizes[1] or (weight is None is bias and sizes[1] % groups == 0)):
            continue
        with graph.inserting_before(node):
            # The decomposition reads sizes from the input, not from these arguments.
            batch = insert(graph, aten.sym_size.int, source, 0)
            normed = insert(
                graph,
                aten.native_group_norm.default,
                source,
                weight,
                bias,
                batch,
                sizes[1],
                math.prod(sizes[2:]),
                int(groups),
                named["eps"],
            )
            image = graph.call_function(operator.getitem, (normed, 0))
            image.meta["val"] = normed.meta["val"][0]
        for user in back:
            user.replace_all_uses_with(image)
    graph.eliminate_dead_code()


def _unrepeated(node: object) -> object:
    """The weight [C] behind weight.repeat(B)."""
    if is_op(node, "repeat"):
        return node.args[0]  # type: ignore[attr-defined]
    if is_op(node, *_RESHAPES, "alias", "clone", "expand", "unsqueeze"):
        return _unrepeated(node.args[0])  # type: ignore[attr-defined]
    return node
