"""Normal equations of a least-squares loss: its gradient and gram (2 / P J^T J)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .jvp import Tangents
from .losses import Loss

__all__ = ["normal_equations"]


def normal_equations(
    losses: Sequence[Loss],
    tangents: Tangents,
    target: Tensor,
    activation: str,
    chunks: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """Compute the gradients and grams of least-squares losses.

    With the residual r, its Jacobian J = d r / d latent, and P pixels, the loss is the mean of r^2,
    its gradient 2 / P J^T r, and its gram 2 / P J^T J.

    Args:
        losses: least-squares losses.
        tangents: a generator's images and, if it ends in an activation, that activation's input.
        target: the targets [B, ...].
        activation: the activation's name, or empty.
        chunks: each chunk's first direction and its number of directions.

    Returns:
        gradient [B, d] and gram [B, d, d] of each loss, in order.
    """
    image, *before = tangents.outputs
    residuals = []
    for loss in losses:
        if activation in loss.residual_before_activation:
            residuals.append((1, *loss.residual_before_activation[activation](before[0], target)))
        else:
            assert loss.residual is not None
            residuals.append((0, *loss.residual(image, target)))
    # All losses share a chunk's tangents, which are released before the next chunk.
    parts: list[list[Tensor]] = [[] for _ in losses]
    for first, count in chunks:
        for part, (output, _, slope, _) in zip(parts, residuals, strict=True):
            part.append(tangents.jacobian(output, slope, first, count))
    results = []
    for part, (_, residual, _, factor) in zip(parts, residuals, strict=True):
        jacobian = part[0] if len(part) == 1 else torch.cat(part, dim=1)
        scale = 2.0 / jacobian.shape[2]
        gradient = torch.bmm(jacobian, residual.reshape(-1, jacobian.shape[2], 1))
        gram = torch.bmm(jacobian, jacobian.transpose(1, 2))
        results += [gradient.squeeze(2) * (scale * factor), gram * (scale * factor * factor)]
    return results
