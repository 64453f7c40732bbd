"""Write operators that ONNX has no form of, or no gradient of, with basic ones.

Used while a network is traced. Its derivatives are taken from the resulting graph, so they consist
of basic operators too. No decomposition computes with the batch size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from .separable import along_axes, matrices_of, pooled_axis

__all__ = ["network_decompositions"]

aten = torch.ops.aten

# Of the cubic convolution that PyTorch interpolates with.
_CUBIC = -0.75


def network_decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        aten._adaptive_avg_pool2d.default: _adaptive_average,
        aten._adaptive_avg_pool3d.default: _adaptive_average,
        aten.avg_pool2d.default: _average(aten.avg_pool2d.default, 2),
        aten.avg_pool3d.default: _average(aten.avg_pool3d.default, 3),
        aten.adaptive_max_pool2d.default: _adaptive_maximum,
        aten.adaptive_max_pool3d.default: _adaptive_maximum,
        aten.max_pool3d_with_indices.default: _max_pool3d,
        aten._upsample_bilinear2d_aa.default: _antialiased(aten._upsample_bilinear2d_aa.default),
        aten._upsample_bicubic2d_aa.default: _antialiased(aten._upsample_bicubic2d_aa.default),
        aten._upsample_nearest_exact2d.default: _nearest_exact,
        aten.affine_grid_generator.default: _affine_grid,
        aten.grid_sampler_2d.default: _grid_sample,
        aten.grid_sampler_3d.default: _grid_sample,
        aten.linalg_solve_triangular.default: _solve_triangular,
        aten.searchsorted.Tensor: _searchsorted,
        aten.bucketize.Tensor: lambda x, ends, **options: _searchsorted(ends, x, **options),
        aten.cumprod.default: _cumulative_product,
        aten.prod.dim_int: _product,
        aten.unfold.default: _unfold,
        aten.unfold_backward.default: _overlap_add,
    }


def _adaptive_windows(size: int, count: int) -> list[range]:
    return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _adaptive_average(x: Tensor, output_size: Sequence[int]) -> Tensor:
    spatial = [int(size) for size in x.shape[-len(output_size) :]]
    with _disable_current_modes():
        matrices = [
            torch.zeros(size, count) for size, count in zip(spatial, output_size, strict=True)
        ]
        for matrix in matrices:
            for i, window in enumerate(_adaptive_windows(*matrix.shape)):
                matrix[window.start : window.stop, i] = 1 / len(window)
    return along_axes(x, matrices).contiguous()


def _average(forward: Any, rank: int) -> Callable[..., Any]:
    def averaged(
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        if x.ndim != 2 + rank or (not ceil_mode and divisor_override is None):
            return NotImplemented  # as ONNX's operator
        on_axis = pooled_axis(
            forward, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        matrices = matrices_of(on_axis, [int(size) for size in x.shape[2:]])
        return along_axes(x, matrices).contiguous() * (1.0 / (divisor_override or 1))

    return averaged


def _adaptive_maximum(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    spatial = [int(size) for size in x.shape[-len(output_size) :]]
    return _maximum(x, [_adaptive_windows(s, n) for s, n in zip(spatial, output_size, strict=True)])


def _max_pool3d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    given = (kernel_size, stride or kernel_size, padding, dilation)
    windows = []
    for axis in range(3):
        size = int(x.shape[axis - 3])
        edge, step, before, gap = (list(v)[axis if len(v) > 1 else 0] for v in given)
        reach = gap * (edge - 1)
        rest = size + 2 * before - reach - 1
        count = (rest + (step - 1 if ceil_mode else 0)) // step + 1
        if ceil_mode and (count - 1) * step >= size + before:
            count -= 1
        starts = [i * step - before for i in range(count)]
        taps = [range(start, start + reach + 1, gap) for start in starts]
        windows.append([[tap for tap in window if 0 <= tap < size] for window in taps])
    return _maximum(x, windows)


def _maximum(x: Tensor, windows: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """The maximum, and its pixel's index, over the windows of each spatial axis."""
    rank = len(windows)
    spatial = [int(size) for size in x.shape[-rank:]]
    counts = [len(on_axis) for on_axis in windows]
    pixels = []
    for window in itertools.product(*windows):
        strides = [math.prod(spatial[axis + 1 :]) for axis in range(rank)]
        taps = itertools.product(*window)
        pixels.append([sum(map(int.__mul__, tap, strides)) for tap in taps])
    largest = max(map(len, pixels))
    with _disable_current_modes():
        # A window that is smaller than others repeats its last pixel.
        taken = torch.tensor([(own + own[-1:] * largest)[:largest] for own in pixels])
    before = x.shape[:-rank]
    gathered = x.flatten(-rank).index_select(-1, taken.flatten())
    gathered = gathered.view([*before, *taken.shape])
    chosen = gathered.argmax(-1, keepdim=True)
    pixel = taken.expand(gathered.shape).gather(-1, chosen)
    return gathered.amax(-1).view([*before, *counts]), pixel.view([*before, *counts])


def _antialiased(forward: Any) -> Callable[..., Tensor]:
    def interpolated(
        x: Tensor, output_size: Sequence[int], align_corners: bool, *scales: float | None
    ) -> Tensor:
        def on_axis(units: Tensor, axis: int) -> Tensor:
            # Always along rows: PyTorch interpolates columns of width 1 wrongly.
            rows = units.reshape(len(units), 1, 1, -1)
            size, scale = [1, int(output_size[axis])], (scales or (None, None))[axis]
            result: Tensor = forward(rows, size, align_corners, None, scale)
            return result

        matrices = matrices_of(on_axis, [int(size) for size in x.shape[2:]])
        return along_axes(x, matrices).contiguous()

    return interpolated


def _nearest_exact(x: Tensor, output_size: Sequence[int], *scales: float | None) -> Tensor:
    def on_axis(units: Tensor, axis: int) -> Tensor:
        rows = units.reshape(len(units), 1, -1)
        scale = (scales or (None, None))[axis]
        result: Tensor = aten._upsample_nearest_exact1d(rows, [int(output_size[axis])], scale)
        return result

    matrices = matrices_of(on_axis, [int(size) for size in x.shape[2:]])
    return along_axes(x, matrices).contiguous()


def _affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """The points theta [B, axes, axes + 1] times (..., y, x, 1) of a grid, [B, ..., axes]."""
    spatial = [int(edge) for edge in size[2:]]
    with _disable_current_modes():
        axes = []
        for edge in spatial:
            centres = (2 * torch.arange(edge) + 1) / edge - 1
            axes.append(centres * (edge / max(edge - 1, 1)) if align_corners else centres)
        points = [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]
        rows = torch.stack([*reversed(points), torch.ones_like(points[0])])
    grid = torch.matmul(theta, rows).transpose(1, 2)
    return grid.reshape([theta.shape[0], *spatial, len(spatial)])


def _grid_sample(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """Sample x [B, C, ...] at the points of a grid [B, ..., axes], (x, y, ...) each.

    mode: 0 linear, 1 nearest, 2 cubic; padding: 0 zeros, 1 border, 2 reflection.
    """
    sizes = [int(size) for size in x.shape[2:]]
    taps = []
    for size, at in zip(sizes, reversed(grid.flatten(1, -2).unbind(-1)), strict=True):
        at = (at + 1) * (0.5 * (size - 1)) if align_corners else (at + 1) * (0.5 * size) - 0.5
        if mode != 2:
            at = _inside(at, size, padding, align_corners)
        taps.append(
            [
                (_inside(tap, size, padding, align_corners) if mode == 2 else tap, weight)
                for tap, weight in _taps(at, mode)
            ]
        )
    flat = x.flatten(2)
    result: Any = 0.0
    for corner in itertools.product(*taps):
        index: Any = 0
        weight: Any = 1.0
        for size, (tap, own) in zip(sizes, corner, strict=True):
            if padding == 0:
                own = torch.where((tap >= 0) & (tap <= size - 1), own, 0.0)
            # With other paddings, taps outside have weight 0.
            index = index * size + tap.clamp(0, size - 1)
            weight = weight * own
        index = index.long().unsqueeze(1).expand(-1, flat.shape[1], -1)
        result = result + flat.gather(2, index) * weight.unsqueeze(1)
    sampled: Tensor = result.view([*x.shape[:2], *grid.shape[1:-1]])
    return sampled


def _inside(at: Tensor, size: int, padding: int, align_corners: bool) -> Tensor:
    """Move positions outside an axis to its border, or reflect them."""
    if padding == 0:
        return at
    if padding == 2:
        low, span = (0.0, float(size - 1)) if align_corners else (-0.5, float(size))
        if span == 0:
            return torch.zeros_like(at)
        # A zigzag of period 2 * span.
        at = (at - low).abs()
        at = at - (2 * span) * torch.floor(at / (2 * span))
        at = torch.minimum(at, 2 * span - at) + low
    return at.clamp_min(0).clamp_max(size - 1)


def _taps(at: Tensor, mode: int) -> list[tuple[Tensor, Tensor]]:
    """The whole positions near each position, and their weights."""
    if mode == 1:
        nearest = at.detach().round()
        return [(nearest, torch.ones_like(nearest))]
    lower = at.detach().floor()
    t = at - lower
    if mode == 0:
        return [(lower, 1 - t), (lower + 1, t)]
    a = _CUBIC

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
    return [(lower + (i - 1), weight) for i, weight in enumerate(weights)]


def _solve_triangular(
    matrix: Tensor, x: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    """The inverse of a matrix of weights times x, as in the linear layers of flows."""
    if isinstance(matrix, FakeTensor):
        return NotImplemented
    with _disable_current_modes():
        identity = torch.eye(matrix.shape[-1], dtype=torch.float64).expand(matrix.shape)
        inverse = torch.linalg.solve_triangular(
            matrix.detach().double(), identity, upper=upper, unitriangular=unitriangular
        ).to(matrix.dtype)
    return torch.matmul(inverse, x) if left else torch.matmul(x, inverse)


def _searchsorted(
    ends: Tensor, x: Tensor, *, right: bool = False, side: str | None = None, **_: Any
) -> Tensor:
    """The number of ends below each value: splines' bins."""
    ends, x = ends.unsqueeze(-2), x.unsqueeze(-1)
    return (ends <= x if right or side == "right" else ends < x).sum(-1)


def _cumulative_product(x: Tensor, axis: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """The product of the values up to each one, by doubling how many are multiplied."""
    size = int(x.shape[axis])
    x, reach = x if dtype is None else x.to(dtype), 1
    while reach < size:
        before = x.narrow(axis, 0, size - reach)
        x = torch.cat(
            [x.narrow(axis, 0, reach), x.narrow(axis, reach, size - reach) * before], axis
        )
        reach *= 2
    return x


def _product(
    x: Tensor, axis: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    size = int(x.shape[axis])
    found = _cumulative_product(x, axis, dtype=dtype).narrow(axis, size - 1, 1)
    return found if keepdim else found.squeeze(axis)


def _unfold(x: Tensor, axis: int, size: int, step: int) -> Tensor:
    """Windows of an axis, as a new last axis (a short-time Fourier transform's frames)."""
    axis = axis % x.ndim
    x = x.movedim(axis, -1)
    count = (int(x.shape[-1]) - size) // step + 1
    shifts = -(-size // step)
    x = _resized(x, (count + shifts - 1) * step).unflatten(-1, (-1, step))
    windows = torch.cat([x.narrow(-2, shift, count) for shift in range(shifts)], -1)
    return windows.narrow(-1, 0, size).movedim(-2, axis).contiguous()


def _overlap_add(windows: Tensor, sizes: Sequence[int], axis: int, size: int, step: int) -> Tensor:
    """Sum overlapping windows; the gradient of unfold."""
    axis = axis % len(sizes)
    windows = windows.movedim(axis, -2)
    shifts = -(-size // step)
    pieces = _resized(windows, shifts * step).unflatten(-1, (shifts, step))
    total: Any = 0.0
    for shift in range(shifts):
        piece = pieces.select(-2, shift).flatten(-2)
        total = total + aten.constant_pad_nd(piece, [shift * step, (shifts - 1 - shift) * step])
    return _resized(total, int(sizes[axis])).movedim(-1, axis).contiguous()


def _resized(x: Tensor, size: int) -> Tensor:
    """Cut the last axis, or extend it with zeros."""
    missing = size - int(x.shape[-1])
    return x.narrow(-1, 0, size) if missing <= 0 else aten.constant_pad_nd(x, [0, missing])
