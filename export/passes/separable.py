"""Linear maps of images that act on each spatial axis separately, as products with matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["along_axes", "matrices_of", "only", "per_axis", "pooled_axis"]


def matrices_of(on_axis: Callable[[Tensor, int], Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Find the matrix [size, new size] of a separable linear map on each spatial axis.

    Args:
        on_axis: applies the map's part for one spatial axis to [N, 1, ...], whose other
            spatial axes have size 1.
        sizes: the spatial sizes.
    """
    with _disable_current_modes():
        found = []
        for axis, size in enumerate(sizes):
            units = torch.eye(size).view(
                size, 1, *(size if i == axis else 1 for i in range(len(sizes)))
            )
            found.append(on_axis(units, axis).reshape(size, -1).contiguous())
    return found


def along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply the last axes of x [B, C, ...] by matrices [size, new size], one for each axis."""
    axis = x.ndim - len(matrices)
    for matrix in reversed(matrices):
        # The last axis becomes the first spatial one, so that after all of them the order is back.
        # matmul would copy the matrix for each target.
        rows = x.reshape(-1, matrix.shape[0]).mm(matrix)
        x = rows.reshape(*x.shape[:-1], matrix.shape[1]).movedim(-1, axis)
    return x


def only(axis: int, values: Sequence[Any], rest: Any, *, each: int = 1) -> list[Any]:
    """The values, ``each`` of them per axis, with ``rest`` in place of those of all other axes."""
    return [value if i // each == axis else rest for i, value in enumerate(values)]


def per_axis(values: Sequence[int], rank: int) -> list[int]:
    """One value per spatial axis, of which pooling operators take one for all."""
    return list(values) * (rank // len(values))


def pooled_axis(
    forward: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Callable[[Tensor, int], Tensor]:
    """An average pooling's part for one axis; with a divisor, the sum in place of the mean."""

    def on_axis(units: Tensor, axis: int) -> Tensor:
        rank = units.ndim - 2
        edges = per_axis(kernel_size, rank)
        window = only(axis, edges, 1)
        steps = only(axis, per_axis(stride, rank) if stride else edges, 1)
        before = only(axis, per_axis(padding, rank), 0)
        divisor = None if divisor_override is None else 1
        pooled: Tensor = forward(
            units, window, steps, before, ceil_mode, count_include_pad, divisor
        )
        return pooled

    return on_axis
