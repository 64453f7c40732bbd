"""The operators of ONNX, as functions of torch tensors.

``OPERATORS`` maps an operator's name to a function of an ``Operation`` and the node's inputs, in
the order of the ONNX specification; omitted inputs are None. Inputs that are read as numbers, such
as sizes and axes, are listed in ``NUMBERS``; they may be arrays (see ``onnx_sizes``) or tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

from pyinv.errors import ExportError

__all__ = ["NUMBERS", "OPERATORS", "Operation", "constant", "numbers", "read_attributes"]

Apply = Callable[..., Any]


@dataclass(frozen=True)
class Operation:
    """What an operator's function is given besides its inputs.

    kind: the operator, such as "Conv".
    attributes: the node's attributes by name; tensors are arrays.
    opset: the version of the standard operators.
    outputs: the number of the node's outputs.
    of_latent: the first input depends on the latent.
    batch_of_one: the graph is written for a batch of one latent.
    batch_statistics: batch norm uses the statistics of each batch.
    """

    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 18
    outputs: int = 1
    of_latent: bool = False
    batch_of_one: bool = False
    batch_statistics: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or its default."""
        return self.attributes.get(name, default)

    def unsupported(self, what: str) -> ExportError:
        """Return the error for settings that no function here implements."""
        return ExportError(f"{self.kind} with {what}, which cannot be read")


def read_attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values and arrays."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, TensorProto):
            value = numpy_helper.to_array(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = list(value)
        found[attribute.name] = value
    return found


def numbers(value: Any) -> list[Any]:
    """Return the numbers in an array or tensor in order; none for an omitted input."""
    if value is None:
        return []
    listed: list[Any] = value.reshape(-1).tolist()
    return listed


def constant(array: np.ndarray) -> Tensor:
    """Return an array as a tensor that is a constant while a module is traced."""
    with _disable_current_modes():
        return torch.from_numpy(np.array(array))


def _number(value: Any, default: Any = None) -> Any:
    return default if value is None else numbers(value)[0]


def _axes(op: Operation, x: Tensor, given: Any) -> list[int]:
    """Axes from the attribute or the input, whichever this opset has; counted from the front."""
    axes = numbers(given) if given is not None else op.get("axes", [])
    return [int(axis) % x.ndim for axis in axes]


# -- Element by element ------------------------------------------------------------------------


def _plain(function: Apply) -> Apply:
    return lambda op, *inputs: function(*inputs)


def _folded(function: Apply) -> Apply:
    def apply(op: Operation, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return apply


def _mean_of(op: Operation, *inputs: Tensor) -> Any:
    return _folded(torch.add)(op, *inputs) / len(inputs)


def _div(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    is_float = a.is_floating_point() or b.is_floating_point()
    return torch.div(a, b, rounding_mode=None if is_float else "trunc")


def _pow(op: Operation, base: Tensor, exponent: Any) -> Tensor:
    if isinstance(exponent, np.ndarray) and exponent.size == 1 and exponent.ndim <= base.ndim:
        return torch.pow(base, _number(exponent))
    if isinstance(exponent, np.ndarray):
        exponent = constant(exponent).to(base)
    return torch.pow(base, exponent)


def _mod(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if op.get("fmod", 0) else torch.remainder(a, b)


def _clip(op: Operation, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    if low is None and high is None:
        return x
    return torch.clamp(x, _number(low), _number(high))


def _cast(op: Operation, x: Tensor, like: Tensor | None = None) -> Tensor:
    if like is not None:
        return x.to(like.dtype)
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(op.get("to")))
    if kind == np.bool_:
        return x != 0
    if kind.kind in "iu":
        return x.to(torch.int64)
    # Every floating-point type is exported as float32.
    return x if x.is_floating_point() else x.to(torch.float32)


def _prelu(op: Operation, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _selu(op: Operation, x: Tensor) -> Any:
    alpha, gamma = op.get("alpha", 1.67326319217681884765625), op.get("gamma", 1.05070102214813232)
    return gamma * functional.elu(x, alpha)


def _hard_sigmoid(op: Operation, x: Tensor) -> Any:
    return torch.clamp(op.get("alpha", 0.2) * x + op.get("beta", 0.5), 0.0, 1.0)


def _thresholded_relu(op: Operation, x: Tensor) -> Tensor:
    return torch.where(x > op.get("alpha", 1.0), x, torch.zeros_like(x))


def _softmax(function: Apply) -> Apply:
    def apply(op: Operation, x: Tensor) -> Tensor:
        axis = op.get("axis", -1 if op.opset >= 13 else 1) % x.ndim
        if op.opset >= 13 or axis == x.ndim - 1:
            result: Tensor = function(x, axis)
            return result
        # Before opset 13, the axis and all that follow it are one.
        result = function(x.flatten(axis), axis)
        return result.reshape(x.shape)

    return apply


def _dropout(op: Operation, x: Tensor, ratio: Any = None, training: Any = None) -> Tensor:
    if op.outputs > 1:
        raise op.unsupported("its mask as an output")
    if _number(training, False):
        raise ExportError(
            "Dropout in training mode, which draws random numbers: write the file in eval mode"
        )
    return x


# -- Layers ------------------------------------------------------------------------------------


def _gemm(op: Operation, a: Tensor, b: Tensor, c: Tensor | None = None) -> Any:
    alpha, beta = op.get("alpha", 1.0), op.get("beta", 1.0)
    a = a.t() if op.get("transA", 0) else a
    weight = b if op.get("transB", 0) else b.t()
    if alpha == beta == 1.0 and (c is None or c.ndim == 1):
        return functional.linear(a, weight, c)
    product = alpha * functional.linear(a, weight)
    return product if c is None else product + beta * c


def _same_pads(op: Operation, total: Sequence[int]) -> tuple[list[int], list[int]]:
    """Split each axis's padding between its ends; the odd one goes last for SAME_UPPER."""
    less, more = [n // 2 for n in total], [n - n // 2 for n in total]
    return (less, more) if op.get("auto_pad") == "SAME_UPPER" else (more, less)


def _window(
    op: Operation, x: Tensor, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """The strides, dilations, and padding at both ends of a convolution or pooling."""
    axes = len(kernel)
    strides, dilations = op.get("strides", [1] * axes), op.get("dilations", [1] * axes)
    pads = op.get("pads", [0] * 2 * axes)
    begins, ends = pads[:axes], pads[axes:]
    if op.get("auto_pad", "NOTSET").startswith("SAME"):
        total = []
        for size, edge, stride, dilation in zip(
            x.shape[2:], kernel, strides, dilations, strict=True
        ):
            needed = (math.ceil(size / stride) - 1) * stride + (edge - 1) * dilation + 1
            total.append(max(0, needed - int(size)))
        begins, ends = _same_pads(op, total)
    elif op.get("auto_pad") == "VALID":
        begins = ends = [0] * axes
    return list(strides), list(dilations), list(begins), list(ends)


def _padded(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Tensor:
    pairs = zip(reversed(begins), reversed(ends), strict=True)
    return functional.pad(x, [pad for pair in pairs for pad in pair], value=value)


_CONVOLUTIONS: dict[int, Apply] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSED_CONVOLUTIONS: dict[int, Apply] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _conv(op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, begins, ends = _window(op, x, weight.shape[2:])
    if begins != ends:
        x, begins = _padded(x, begins, ends), [0] * len(begins)
    convolve = _CONVOLUTIONS[weight.ndim - 2]
    result: Tensor = convolve(x, weight, bias, strides, begins, dilations, op.get("group", 1))
    return result


def _conv_transpose(op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = [int(edge) for edge in weight.shape[2:]]
    axes = len(kernel)
    strides, dilations = op.get("strides", [1] * axes), op.get("dilations", [1] * axes)
    added = list(op.get("output_padding", [0] * axes))
    pads = op.get("pads", [0] * 2 * axes)
    begins, ends = list(pads[:axes]), list(pads[axes:])
    full = [
        (int(size) - 1) * stride + (edge - 1) * dilation + 1
        for size, edge, stride, dilation in zip(
            x.shape[2:], kernel, strides, dilations, strict=True
        )
    ]
    same = op.get("auto_pad", "NOTSET").startswith("SAME")
    sizes = op.get("output_shape")
    if sizes is None and same:
        sizes = [int(size) * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    if sizes is not None:
        # The padding follows from the size of the output.
        over = [a + b - c for a, b, c in zip(full, added, sizes[-axes:], strict=True)]
        begins, ends = _same_pads(op, [max(0, n) for n in over])
        added = [n + max(0, -o) for n, o in zip(added, over, strict=True)]
    elif op.get("auto_pad") == "VALID":
        begins = ends = [0] * axes
    # One padding for both ends; what is too much is cut off.
    common = [min(pair) for pair in zip(begins, ends, strict=True)]
    convolve = _TRANSPOSED_CONVOLUTIONS[axes]
    result: Tensor = convolve(
        x, weight, bias, strides, common, added, op.get("group", 1), dilations
    )
    for axis, (begin, end, both) in enumerate(zip(begins, ends, common, strict=True)):
        if begin + end > 2 * both:
            size = int(result.shape[2 + axis]) - (begin - both) - (end - both)
            result = result.narrow(2 + axis, begin - both, size)
    return result


def _max_pool(op: Operation, x: Tensor) -> Tensor:
    if op.outputs > 1:
        raise op.unsupported("its indices as an output")
    kernel = op.get("kernel_shape")
    strides, dilations, begins, ends = _window(op, x, kernel)
    if begins != ends:
        x, begins = _padded(x, begins, ends, -math.inf), [0] * len(begins)
    pool: Apply = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[
        len(kernel)
    ]
    result: Tensor = pool(
        x, kernel, strides, begins, dilations, ceil_mode=bool(op.get("ceil_mode", 0))
    )
    return result


def _average_pool(op: Operation, x: Tensor) -> Tensor:
    kernel = op.get("kernel_shape")
    strides, dilations, begins, ends = _window(op, x, kernel)
    includes = bool(op.get("count_include_pad", 0))
    if any(dilation != 1 for dilation in dilations):
        raise op.unsupported("dilations")
    if begins != ends:
        if not includes:
            raise op.unsupported("unequal padding that is not counted")
        x, begins = _padded(x, begins, ends), [0] * len(begins)
    pool: Apply = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[
        len(kernel)
    ]
    result: Tensor = pool(x, kernel, strides, begins, bool(op.get("ceil_mode", 0)), includes)
    return result


def _global_pool(function: Apply) -> Apply:
    return lambda op, x: function(x, list(range(2, x.ndim)), True)


# -- Normalisations ----------------------------------------------------------------------------


def _batch_norm(
    op: Operation, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Any:
    training = bool(op.get("training_mode", 0)) or op.batch_statistics
    result = functional.batch_norm(
        x,
        None if training else mean,
        None if training else variance,
        scale,
        bias,
        training=training,
        eps=op.get("epsilon", 1e-5),
    )
    # The other outputs are running statistics.
    return result if op.outputs == 1 else (result, *[None] * (op.outputs - 1))


def _instance_norm(op: Operation, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=op.get("epsilon", 1e-5))


def _layer_norm(op: Operation, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if op.outputs > 1:
        raise op.unsupported("its mean as an output")
    shape = [int(size) for size in x.shape[op.get("axis", -1) % x.ndim :]]
    bias = None if bias is None else bias.expand(shape)
    return functional.layer_norm(x, shape, scale.expand(shape), bias, op.get("epsilon", 1e-5))


def _rms_norm(op: Operation, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(op.get("axis", -1) % x.ndim, x.ndim))
    mean = x.square().mean(axes, keepdim=True)
    return x * torch.rsqrt(mean + op.get("epsilon", 1e-5)) * scale


def _group_norm(op: Operation, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, channels = op.get("num_groups"), int(x.shape[1])
    if scale.numel() == groups != channels:
        # Before opset 21, the scale and bias are those of a group.
        scale, bias = (t.repeat_interleave(channels // groups) for t in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, op.get("epsilon", 1e-5))


def _lp_norm(op: Operation, x: Tensor) -> Tensor:
    axis = [op.get("axis", -1)]
    if op.get("p", 2) == 1:
        return x / x.abs().sum(axis, keepdim=True)
    return x / x.square().sum(axis, keepdim=True).sqrt()


# -- Reductions --------------------------------------------------------------------------------


def _reduce(function: Apply) -> Apply:
    def apply(op: Operation, x: Tensor, axes: Any = None) -> Tensor:
        chosen = _axes(op, x, axes)
        if not chosen:
            if op.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.ndim))
        result: Tensor = function(x, chosen, bool(op.get("keepdims", 1)))
        return result

    return apply


def _product(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim)
    return x


def _cumsum(op: Operation, x: Tensor, axis: Any) -> Tensor:
    if op.get("exclusive", 0) or op.get("reverse", 0):
        raise op.unsupported("exclusive or reverse")
    return torch.cumsum(x, int(_number(axis)))


# -- Shapes ------------------------------------------------------------------------------------


def _shape(op: Operation, x: Tensor) -> Any:
    return np.array(x.shape, dtype=object)[op.get("start", 0) : op.get("end")]


def _size(op: Operation, x: Tensor) -> Any:
    return np.array(x.numel(), dtype=object)


def _reshape(op: Operation, x: Tensor, shape: Any) -> Tensor:
    sizes = numbers(shape)
    if not op.get("allowzero", 0):
        sizes = [
            x.shape[i] if isinstance(size, int) and size == 0 else size
            for i, size in enumerate(sizes)
        ]
    fixed = all(isinstance(size, int) for size in sizes)
    if op.of_latent and fixed and sizes[:1] == [1]:
        # Written for one latent. The check against ONNX Runtime tells whether this is the batch.
        if -1 not in sizes:
            sizes[0] = -1
        elif op.batch_of_one:
            sizes[0] = x.shape[0]
    try:
        return x.reshape(sizes)
    except RuntimeError as error:
        if not (op.of_latent and fixed):
            raise
        raise ExportError(
            f"a Reshape to {numbers(shape)}, which fits one number of latents only: write the file "
            "with a dynamic batch axis"
        ) from error


def _flatten(op: Operation, x: Tensor) -> Tensor:
    axis = op.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    if axis == x.ndim:
        return x.reshape(-1, 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(op: Operation, x: Tensor) -> Tensor:
    return x.permute(op.get("perm") or list(reversed(range(x.ndim))))


def _unsqueeze(op: Operation, x: Tensor, axes: Any = None) -> Tensor:
    given = numbers(axes) if axes is not None else op.get("axes", [])
    for axis in sorted(int(axis) % (x.ndim + len(given)) for axis in given):
        x = x.unsqueeze(axis)
    return x


def _squeeze(op: Operation, x: Tensor, axes: Any = None) -> Tensor:
    chosen = _axes(op, x, axes)
    if not chosen:
        chosen = [axis for axis, size in enumerate(x.shape) if size == 1]
        if op.batch_of_one and op.of_latent and 0 not in chosen:
            chosen = [0, *chosen]
    if op.batch_of_one and op.of_latent and 0 in chosen:
        raise ExportError("a Squeeze of the batch axis: write the file with a dynamic batch axis")
    for axis in sorted(chosen, reverse=True):
        x = x.squeeze(axis)
    return x


def _concat(op: Operation, *inputs: Tensor) -> Tensor:
    axis = op.get("axis") % inputs[0].ndim
    parts = list(inputs)
    if axis != 0:
        # Constants of a graph that is written for one latent are the same for every latent.
        batch = next((part.shape[0] for part in parts if part.shape[0] != 1), 1)
        parts = [
            part if part.shape[0] != 1 else part.expand(batch, *part.shape[1:]) for part in parts
        ]
    return torch.cat(parts, axis)


def _split(op: Operation, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = op.get("axis", 0)
    given = numbers(sizes) if sizes is not None else op.get("split")
    if given is None:
        given = math.ceil(int(x.shape[axis]) / op.outputs)
    return tuple(torch.split(x, given, axis))


def _slice(
    op: Operation, x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Tensor:
    begins, stops = numbers(starts), numbers(ends)
    chosen = _axes(op, x, axes) or list(range(len(begins)))
    strides = numbers(steps) or [1] * len(begins)
    for axis, start, stop, step in zip(chosen, begins, stops, strides, strict=True):
        if step == 1 and isinstance(start, int) and start == 0:
            if isinstance(stop, int) and stop >= 2**31 - 1:
                continue
            if isinstance(stop, torch.SymInt) and stop == x.shape[axis]:
                continue
        if step < 0:
            kept = range(*slice(start, stop, step).indices(int(x.shape[axis])))
            x = _selected(x, axis, np.array(kept, dtype=np.int64))
        else:
            x = x[(slice(None),) * axis + (slice(start, stop, step),)]
    return x


def _selected(x: Tensor, axis: int, indices: np.ndarray) -> Tensor:
    if len(indices) and np.array_equal(indices, np.arange(x.shape[axis])[::-1]):
        return x.flip(axis)
    return x.index_select(axis, constant(indices).to(x.device))


def _gather(op: Operation, x: Tensor, indices: Any) -> Tensor:
    axis = op.get("axis", 0) % x.ndim
    if isinstance(indices, Tensor):
        if op.of_latent or axis or x.ndim != 2:
            raise op.unsupported(
                "indices that depend on an input, into what is not a constant table"
            )
        return functional.embedding(indices, x)
    chosen = np.array([int(index) for index in numbers(indices)], dtype=np.int64)
    if axis or (chosen < 0).any():
        chosen = np.where(chosen < 0, chosen + int(x.shape[axis]), chosen)
    if indices.ndim == 0:
        return x.select(axis, int(chosen[0]))
    result = _selected(x, axis, chosen)
    if indices.ndim == 1:
        return result
    return result.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _expand(op: Operation, x: Tensor, shape: Any) -> Tensor:
    sizes = numbers(shape)
    own = [1] * (len(sizes) - x.ndim) + list(x.shape)
    sizes = [1] * (len(own) - len(sizes)) + sizes
    return x.expand([mine if size == 1 else size for mine, size in zip(own, sizes, strict=True)])


def _tile(op: Operation, x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(numbers(repeats))


def _constant_of_shape(op: Operation, shape: Any) -> Tensor:
    value = op.get("value")
    filled = 0.0 if value is None else value.reshape(-1)[0].item()
    return torch.full(numbers(shape), filled)


def _trilu(op: Operation, x: Tensor, diagonal: Any = None) -> Tensor:
    function = torch.triu if op.get("upper", 1) else torch.tril
    return function(x, int(_number(diagonal, 0)))


_PADS = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(op: Operation, x: Tensor, pads: Any, value: Any = None, axes: Any = None) -> Tensor:
    given = [int(pad) for pad in numbers(pads)]
    chosen = _axes(op, x, axes) or list(range(x.ndim))
    count = len(chosen)
    ends = {
        axis: (given[i], given[i + count])
        for i, axis in enumerate(chosen)
        if given[i] or given[i + count]
    }
    if not ends:
        return x
    mode = op.get("mode", "constant")
    if mode == "constant":
        first = min(ends)
        listed = [ends.get(axis, (0, 0)) for axis in range(first, x.ndim)]
        begins, stops = [begin for begin, _ in listed], [end for _, end in listed]
        return _padded(x, begins, stops, _number(value, 0.0))
    if x.ndim not in (3, 4, 5) or len(ends) > x.ndim - 2 or mode not in _PADS:
        raise op.unsupported(f"mode {mode} of {len(ends)} axes")
    # torch pads the last axes.
    order = [axis for axis in range(x.ndim) if axis not in ends] + sorted(ends)
    padded = [pad for axis in reversed(order[2:]) for pad in ends.get(axis, (0, 0))]
    moved = functional.pad(x.permute(order), padded, mode=_PADS[mode])
    return moved.permute([order.index(axis) for axis in range(x.ndim)])


def _depth_to_space(op: Operation, x: Tensor) -> Tensor:
    block = op.get("blocksize")
    if op.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, block, block, channels // block**2, height, width)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * block, width * block)


def _space_to_depth(op: Operation, x: Tensor) -> Tensor:
    block = op.get("blocksize")
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // block, block, width // block, block)
    x = x.permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * block**2, height // block, width // block)


# -- Resize ------------------------------------------------------------------------------------


def _resize(
    op: Operation, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None
) -> Tensor:
    mode = op.get("mode", "nearest")
    transform = op.get("coordinate_transformation_mode", "half_pixel")
    if transform not in _COORDINATES:
        raise op.unsupported(f"coordinate_transformation_mode {transform}")
    if op.get("antialias", 0) or op.get("exclude_outside", 0):
        raise op.unsupported("antialias or exclude_outside")
    if op.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise op.unsupported("keep_aspect_ratio_policy")
    given = numbers(scales)
    axes = _axes(op, x, None) or list(range(x.ndim))
    taps: dict[int, _Taps] = {}
    for i, axis in enumerate(axes):
        size = x.shape[axis]
        if axis == 0 and (not given or given[i] == 1):
            continue
        size = int(size)
        wanted = math.floor(size * given[i]) if given else int(numbers(sizes)[i])
        scale = given[i] if given else wanted / size
        if (wanted, scale) != (size, 1):
            taps[axis] = _Taps.of(op, size, wanted, scale, mode, transform)
    whole = _interpolated(op, x, taps, mode, transform)
    if whole is not None:
        return whole
    for axis, found in taps.items():
        x = found.apply(x, axis)
    return x


_Coordinates = Callable[[np.ndarray, int, int, float], np.ndarray]
# From the index of an output value, the input size, the output size and their ratio to the place
# in the input.
_COORDINATES: dict[str, _Coordinates] = {
    "half_pixel": lambda i, old, new, scale: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, old, new, scale: (
        (i + 0.5) / scale - 0.5 if new > 1 else np.zeros_like(i)
    ),
    "align_corners": lambda i, old, new, scale: i * (old - 1) / max(new - 1, 1),
    "asymmetric": lambda i, old, new, scale: i / scale,
    "tf_half_pixel_for_nn": lambda i, old, new, scale: (i + 0.5) / scale,
}
_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class _Taps:
    """The input values that each output value along one axis is a weighted sum of.

    indices: [K, new], the input's index of each term. weights: [K, new].
    """

    old: int
    new: int
    scale: float
    indices: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(
        cls, op: Operation, old: int, new: int, scale: float, mode: str, transform: str
    ) -> _Taps:
        place = _COORDINATES[transform](np.arange(new, dtype=np.float64), old, new, scale)
        if mode == "nearest":
            # Places such as 2.9999999 are rounding errors of 3.
            place = _ROUNDINGS[op.get("nearest_mode", "round_prefer_floor")](place.round(6))
            offsets, weights = [0], [np.ones(new)]
        elif mode == "linear":
            share = place - np.floor(place)
            offsets, weights = [0, 1], [1 - share, share]
        elif mode == "cubic":
            share, a = place - np.floor(place), op.get("cubic_coeff_a", -0.75)
            offsets = [-1, 0, 1, 2]
            weights = [_cubic(np.abs(share - offset), a) for offset in offsets]
        else:
            raise op.unsupported(f"mode {mode}")
        indices = [np.floor(place).astype(np.int64) + offset for offset in offsets]
        return cls(old, new, scale, np.clip(indices, 0, old - 1), np.stack(weights))

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """Resize one axis of a tensor."""
        if len(self.indices) == 1:
            return _selected(x, axis, self.indices[0])
        matrix = np.zeros((self.old, self.new))
        for index, weight in zip(self.indices, self.weights, strict=True):
            np.add.at(matrix, (index, np.arange(self.new)), weight)
        resized = x.movedim(axis, -1) @ constant(matrix).to(x)
        return resized.movedim(-1, axis)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _interpolated(
    op: Operation, x: Tensor, taps: Mapping[int, _Taps], mode: str, transform: str
) -> Tensor | None:
    """Resize images with a single operator of torch; None where it has none."""
    if x.ndim != 4 or not taps or not set(taps) <= {2, 3}:
        return None
    size = [taps[axis].new if axis in taps else int(x.shape[axis]) for axis in (2, 3)]
    if mode == "nearest":
        for one in taps.values():
            if not np.array_equal(one.indices[0], np.arange(one.new) * one.old // one.new):
                return None
        return functional.interpolate(x, size=size, mode="nearest")
    if any(not math.isclose(one.new, one.old * one.scale, rel_tol=1e-6) for one in taps.values()):
        return None
    if mode == "cubic" and op.get("cubic_coeff_a", -0.75) != -0.75:
        return None
    if transform == "pytorch_half_pixel" and min(size) > 1:
        transform = "half_pixel"
    if transform not in ("half_pixel", "align_corners"):
        return None
    return functional.interpolate(
        x,
        size=size,
        mode="bilinear" if mode == "linear" else "bicubic",
        align_corners=transform == "align_corners",
    )


# -- The tables --------------------------------------------------------------------------------

OPERATORS: dict[str, Apply] = {
    "Abs": _plain(torch.abs),
    "Acos": _plain(torch.acos),
    "Acosh": _plain(torch.acosh),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "Asin": _plain(torch.asin),
    "Asinh": _plain(torch.asinh),
    "Atan": _plain(torch.atan),
    "Atanh": _plain(torch.atanh),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _plain(torch.ceil),
    "Celu": lambda op, x: functional.celu(x, op.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _plain(torch.cos),
    "Cosh": _plain(torch.cosh),
    "CumSum": _cumsum,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": _dropout,
    "Einsum": lambda op, *inputs: torch.einsum(op.get("equation"), *inputs),
    "Elu": lambda op, x: functional.elu(x, op.get("alpha", 1.0)),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _plain(torch.floor),
    "Gather": _gather,
    "Gelu": lambda op, x: functional.gelu(x, approximate=op.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "InstanceNormalization": _instance_norm,
    "IsNaN": _plain(torch.isnan),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda op, x: functional.leaky_relu(x, op.get("alpha", 0.01)),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "LpNormalization": _lp_norm,
    "MatMul": _plain(torch.matmul),
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "Mean": _mean_of,
    "Min": _folded(torch.minimum),
    "Mish": _plain(functional.mish),
    "Mod": _mod,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pow,
    "RMSNormalization": _rms_norm,
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _plain(torch.round),
    "Selu": _selu,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Sinh": _plain(torch.sinh),
    "Size": _size,
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": _plain(functional.softplus),
    "Softsign": _plain(functional.softsign),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Sum": _folded(torch.add),
    "Swish": lambda op, x: x * torch.sigmoid(op.get("alpha", 1.0) * x),
    "Tan": _plain(torch.tan),
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": _thresholded_relu,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
    "Xor": _plain(torch.logical_xor),
}
NUMBERS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Dropout": (1, 2),
    "Expand": (1,),
    "Gather": (1,),
    "Pad": (1, 2, 3),
    "Pow": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    **{kind: (1,) for kind in OPERATORS if kind.startswith("Reduce")},
}
