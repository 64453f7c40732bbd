"""Normal equations of a least-squares loss: its gradient and gram (2 / P J^T J)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .jvp import Tangents
from .losses import Loss, inverse_total

__all__ = ["normal_equations"]


def normal_equations(
    losses: Sequence[Loss],
    tangents: Tangents,
    target: Tensor,
    weights: Tensor | None,
    activation: str,
    chunks: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """Compute the gradients and grams of least-squares losses.

    With the residual r, its Jacobian J = d r / d latent, and P pixels, the loss is the mean of r^2,
    its gradient 2 / P J^T r, and its gram 2 / P J^T J. Weights multiply each pixel's square, and P
    is then their sum.

    Args:
        losses: least-squares losses.
        tangents: a generator's images and, if it ends in an activation, that activation's input.
        target: the targets [B, ...].
        weights: the pixels' weights [B, ...], or None.
        activation: the activation's name, or empty.
        chunks: each chunk's first direction and its number of directions.

    Returns:
        gradient [B, d] and gram [B, d, d] of each loss, in order.
    """
    image, *before = tangents.outputs
    root = None if weights is None else weights.sqrt()
    scale = 2.0 * inverse_total(weights, target)
    residuals = []
    for loss in losses:
        if activation in loss.residual_before_activation:
            output, given = 1, loss.residual_before_activation[activation](before[0], target)
        else:
            assert loss.residual is not None
            output, given = 0, loss.residual(image, target)
        residual, slope, factor = given
        if root is not None:
            residual, slope = residual * root, root if slope is None else slope * root
        residuals.append((output, residual, slope, factor))
    # All losses share a chunk's tangents, which are released before the next chunk.
    parts: list[list[Tensor]] = [[] for _ in losses]
    for first, count in chunks:
        for part, (output, _, slope, _) in zip(parts, residuals, strict=True):
            part.append(tangents.jacobian(output, slope, first, count))
    results = []
    for part, (_, residual, _, factor) in zip(parts, residuals, strict=True):
        jacobian = part[0] if len(part) == 1 else torch.cat(part, dim=1)
        gradient = torch.bmm(jacobian, residual.reshape(-1, jacobian.shape[2], 1))
        gram = torch.bmm(jacobian, jacobian.transpose(1, 2))
        one = scale * factor
        results += [gradient.squeeze(2) * _for_axes(one, 2), gram * _for_axes(one * factor, 3)]
    return results


def _for_axes(scale: Any, axes: int) -> Any:
    """Return a number, or numbers per target [B], to multiply a tensor of so many axes by."""
    return scale.reshape(-1, *(1,) * (axes - 1)) if isinstance(scale, Tensor) else scale
