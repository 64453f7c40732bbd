"""Decompositions of gradients that ONNX has no operator for.

None uses sizes that depend on the batch, so that no graph computes shapes at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from .separable import along_axes, matrices_of, only, per_axis, pooled_axis

__all__ = ["decomposition_table", "write_decompositions"]

aten = torch.ops.aten

# Not decomposed during tracing: simplify.py writes activation gradients in terms of the
# activation's output, which the forward pass computes anyway.
_KEPT = (
    "threshold_backward",
    "leaky_relu_backward",
    "elu_backward",
    "pixel_shuffle",
    "pixel_unshuffle",
    "softplus",
)
_PADDINGS = (
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad2d",
    "replication_pad3d",
)
_UPSAMPLINGS = (
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
)


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Core ATen's decompositions, overridden by those of this module."""
    table = dict(core_aten_decompositions())
    for operator in list(table):
        name = operator._schema.name.removeprefix("aten::")
        if name in _KEPT or "upsample" in name or name in _PADDINGS:
            del table[operator]
    for names, make in ((_UPSAMPLINGS, _upsample_backward), (_PADDINGS, _pad_backward)):
        for name in names:
            table[getattr(aten, f"{name}_backward").default] = make(getattr(aten, name).default)
    return table | {
        aten.convolution_backward.default: _convolution_backward,
        aten.native_batch_norm.default: _batch_norm,
        aten._native_batch_norm_legit.no_stats: _batch_norm_without_statistics,
        aten.native_batch_norm_backward.default: _batch_norm_backward,
        aten.native_group_norm.default: _group_norm,
        aten.native_group_norm_backward.default: _group_norm_backward,
        aten.native_layer_norm.default: _layer_norm,
        aten.native_layer_norm_backward.default: _layer_norm_backward,
        aten.avg_pool2d_backward.default: _avg_pool_backward(aten.avg_pool2d.default, 2),
        aten.avg_pool3d_backward.default: _avg_pool_backward(aten.avg_pool3d.default, 3),
        aten.max_pool2d_with_indices_backward.default: _max_pool2d_backward,
        aten.slice_backward.default: _slice_backward,
        aten.select_backward.default: _select_backward,
    }


def write_decompositions() -> dict[Any, Callable[..., Any]]:
    """Decompositions of what ``functionalize`` makes of operators that write to their arguments."""
    return {
        aten.copy.default: _copy,
        aten.slice_scatter.default: _slice_scatter,
        aten.select_scatter.default: _select_scatter,
        aten.fill.Tensor: _copy,
        aten.empty_like.default: lambda x, **_: torch.zeros_like(x),
        aten.new_empty.default: lambda x, size, **_: x.new_zeros(size),
        aten.empty.memory_format: lambda size, **_: torch.zeros(size),
    }


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(x.dtype).expand(x.shape)


def _slice_scatter(
    x: Tensor,
    source: Tensor,
    axis: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Any:
    size = x.shape[axis]
    if not isinstance(size, int):
        whole = step == 1 and source.shape[axis] == size
        return source.expand(x.shape) if whole else NotImplemented
    first, last, _ = slice(start, end).indices(size)
    source = source.expand([*x.shape[:axis], source.shape[axis], *x.shape[axis + 1 :]])
    if step > 1:
        positions = torch.arange(size)
        chosen = (positions >= first) & (positions < last) & ((positions - first) % step == 0)
        spread = _spread(source, axis, first, size, step)
        return torch.where(chosen.view(-1, *[1] * (x.ndim - 1 - axis % x.ndim)), spread, x)
    parts = [x.narrow(axis, 0, first), source, x.narrow(axis, last, size - last)]
    parts = [part for part in parts if part.shape[axis] != 0]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _select_scatter(x: Tensor, source: Tensor, axis: int, index: int) -> Any:
    size = x.shape[axis]
    index = index + size if index < 0 else index
    return _slice_scatter(x, source.unsqueeze(axis), axis, index, index + 1)


def _spread(x: Tensor, axis: int, start: int, size: int, step: int) -> Tensor:
    """Place x at every step-th position from ``start`` of an axis of zeros, of length ``size``."""
    rank, axis, count = x.ndim, axis % x.ndim, x.shape[axis]
    x = aten.constant_pad_nd(x.unsqueeze(axis + 1), [0] * (2 * (rank - 1 - axis)) + [0, step - 1])
    x = x.flatten(axis, axis + 1)
    # After the last one, there are step - 1 zeros.
    missing = size - start - count * step
    padded: Tensor = aten.constant_pad_nd(x, [0] * (2 * (rank - 1 - axis)) + [start, missing])
    return padded


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    """Write a convolution's input gradient as a transposed convolution, and vice versa."""
    if not output_mask[0] or any(output_mask[1:]):
        return NotImplemented
    rank = len(stride)
    reach = [dilation[i] * (weight.shape[2 + i] - 1) - padding[i] for i in range(rank)]
    if not transposed and groups == 1 and all(s == 1 for s in stride) and min(reach) >= 0:
        # ONNX Runtime's convolution is about twice as fast as its transposed convolution. At stride
        # 1 they differ only in a flipped weight, which is worth storing.
        flipped = weight.flip(list(range(2, 2 + rank))).transpose(0, 1)
        back = aten.convolution(
            gradient, flipped, None, stride, reach, dilation, False, [0] * rank, 1
        )
        return back, None, None
    if transposed:
        back = aten.convolution(
            gradient, weight, None, stride, padding, dilation, False, [0] * rank, groups
        )
        if back.shape[2:] != x.shape[2:]:
            return NotImplemented
    else:
        missing = [
            x.shape[2 + i]
            - (
                (gradient.shape[2 + i] - 1) * stride[i]
                - 2 * padding[i]
                + dilation[i] * (weight.shape[2 + i] - 1)
                + 1
            )
            for i in range(rank)
        ]
        back = aten.convolution(
            gradient, weight, None, stride, padding, dilation, True, missing, groups
        )
    return back, None, None


def _affine(x: Tensor, scale: Tensor | None, shift: Tensor | None = None) -> Tensor:
    scaled = x if scale is None else x * scale
    return scaled if shift is None else scaled + shift


def _per_channel(values: Tensor | None, like: Tensor) -> Tensor | None:
    return None if values is None else values.view(1, -1, *[1] * (like.ndim - 2))


def _normalise(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = ((centred * centred).mean(axes, keepdim=True) + epsilon).rsqrt()
    return centred * inverse, mean, inverse


def _normalise_backward(
    gradient: Tensor, normalised: Tensor, inverse: Tensor, axes: list[int]
) -> Tensor:
    mean = gradient.mean(axes, keepdim=True)
    slope = (gradient * normalised).mean(axes, keepdim=True)
    return inverse * (gradient - mean - normalised * slope)


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> Any:
    if not training:
        return NotImplemented
    axes = [0, *range(2, x.ndim)]
    normalised, mean, inverse = _normalise(x, axes, epsilon)
    y = _affine(normalised, _per_channel(weight, x), _per_channel(bias, x))
    return y, mean.flatten(), inverse.flatten()


def _batch_norm_without_statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> Any:
    return _batch_norm(x, weight, bias, None, None, training, momentum, epsilon)


def _batch_norm_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    inverse: Tensor | None,
    training: bool,
    epsilon: float,
    output_mask: Sequence[bool],
) -> Any:
    if any(output_mask[1:]):
        return NotImplemented
    gradient = _affine(gradient, _per_channel(weight, x))
    if not training:
        assert running_var is not None
        factor = _per_channel((running_var + epsilon).rsqrt(), x)
        assert factor is not None
        return gradient * factor, None, None
    centre, factor = _per_channel(mean, x), _per_channel(inverse, x)
    assert centre is not None
    assert factor is not None
    axes = [0, *range(2, x.ndim)]
    return _normalise_backward(gradient, (x - centre) * factor, factor, axes), None, None


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    epsilon: float,
) -> Any:
    by_group = x.reshape(x.shape[0], groups, -1)
    normalised, mean, inverse = _normalise(by_group, [2], epsilon)
    y = _affine(normalised.view(x.shape), _per_channel(weight, x), _per_channel(bias, x))
    return y, mean.view(x.shape[0], groups), inverse.view(x.shape[0], groups)


def _group_norm_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    if any(output_mask[1:]):
        return NotImplemented
    gradient = _affine(gradient, _per_channel(weight, x))
    by_group = [x.shape[0], groups, -1]
    factor = inverse.view(x.shape[0], groups, 1)
    normalised = (x.reshape(by_group) - mean.view(x.shape[0], groups, 1)) * factor
    back = _normalise_backward(gradient.reshape(by_group), normalised, factor, [2])
    return back.view(x.shape), None, None


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
) -> Any:
    axes = list(range(x.ndim - len(normalized_shape), x.ndim))
    normalised, mean, inverse = _normalise(x, axes, epsilon)
    return _affine(normalised, weight, bias), mean, inverse


def _layer_norm_backward(
    gradient: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> Any:
    if any(output_mask[1:]):
        return NotImplemented
    axes = list(range(x.ndim - len(normalized_shape), x.ndim))
    gradient = _affine(gradient, weight)
    return _normalise_backward(gradient, (x - mean) * inverse, inverse, axes), None, None


def _upsample_backward(forward: Any) -> Callable[..., Any]:
    modes = len(forward._schema.arguments) - 4

    def backward(
        gradient: Tensor, output_size: Sequence[int], input_size: Sequence[int], *settings: Any
    ) -> Tensor:
        height, width = (int(size) for size in input_size[2:])
        out_height, out_width = (int(size) for size in output_size)
        if forward is aten.upsample_nearest2d.default and (
            out_height % height == out_width % width == 0
        ):
            # Pooling preserves ONNX Runtime's blocked layout between convolutions; a sum does not.
            window = [out_height // height, out_width // width]
            pooled: Tensor = aten.avg_pool2d(gradient, window, window)
            return pooled * float(math.prod(window))
        mode, scales = settings[:modes], settings[modes:] or (None, None)

        def on_axis(units: Tensor, axis: int) -> Tensor:
            size = only(axis, (out_height, out_width), 1)
            result: Tensor = forward(units, size, *mode, *only(axis, scales, None))
            return result

        return _separable_backward(gradient, on_axis, input_size[2:])

    return backward


def _pad_backward(forward: Any) -> Callable[..., Any]:
    def backward(gradient: Tensor, x: Tensor, padding: Sequence[int]) -> Any:
        rank = len(padding) // 2
        if x.ndim != 2 + rank:
            return NotImplemented

        def on_axis(units: Tensor, axis: int) -> Tensor:
            # Paddings are given from the last axis to the first.
            result: Tensor = forward(units, only(rank - 1 - axis, padding, 0, each=2))
            return result

        return _separable_backward(gradient, on_axis, x.shape[2:])

    return backward


def _separable_backward(
    gradient: Tensor, on_axis: Callable[[Tensor, int], Tensor], sizes: Sequence[int]
) -> Tensor:
    """The gradient of a linear map of images that acts on each spatial axis separately."""
    matrices = matrices_of(on_axis, [int(size) for size in sizes])
    return along_axes(gradient, [matrix.t().contiguous() for matrix in matrices])


def _tiles(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int] | None:
    """The window of a pooling whose windows tile the image; else None."""
    window = per_axis(kernel_size, 2)
    steps = per_axis(stride, 2) if stride else window
    whole = all(size % edge == 0 for size, edge in zip(x.shape[2:], window, strict=True))
    return window if steps == window and not any(padding) and whole and x.ndim == 4 else None


def _enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    enlarged: Tensor = aten.upsample_nearest2d(x, size)
    return enlarged


def _avg_pool_backward(forward: Any, rank: int) -> Callable[..., Any]:
    def backward(
        gradient: Tensor,
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Any:
        if x.ndim != 2 + rank:
            return NotImplemented
        window = _tiles(x, kernel_size, stride, padding) if rank == 2 else None
        if window is not None:
            return _enlarge(gradient * (1.0 / (divisor_override or math.prod(window))), x.shape[2:])
        on_axis = pooled_axis(
            forward, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        return _separable_backward(gradient, on_axis, x.shape[2:]) * (1.0 / (divisor_override or 1))

    return backward


def _max_pool2d_backward(
    gradient: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Any:
    """Pass the gradient to every pixel that equals its window's maximum.

    PyTorch passes it only to the first such pixel. The two differ only at ties, which after a ReLU
    occur at zeros, where the ReLU's gradient is 0 anyway.
    """
    window = _tiles(x, kernel_size, stride, padding)
    if window is None or any(step != 1 for step in dilation):
        return NotImplemented
    largest = aten.max_pool2d_with_indices(x, kernel_size, stride, padding, dilation, ceil_mode)[0]
    size = x.shape[2:]
    return torch.where(x.ge(_enlarge(largest, size)), _enlarge(gradient, size), 0.0)


def _slice_backward(
    gradient: Tensor, sizes: Sequence[int], axis: int, start: int, end: int, step: int
) -> Any:
    rank, size = len(sizes), sizes[axis]
    start = max(start + size if start < 0 else start, 0)
    if step != 1:
        return _spread(gradient, axis % rank, start, size, step)
    padding = [0] * (2 * rank)
    # constant_pad_nd counts axes from the last.
    at = 2 * (rank - 1 - axis % rank)
    padding[at] = start
    padding[at + 1] = size - start - gradient.shape[axis]
    return aten.constant_pad_nd(gradient, padding, 0)


def _select_backward(gradient: Tensor, sizes: Sequence[int], axis: int, index: int) -> Any:
    axis = axis % len(sizes)
    start = index + sizes[axis] if index < 0 else index
    return _slice_backward(gradient.unsqueeze(axis), sizes, axis, start, start + 1, 1)
