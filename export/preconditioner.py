"""The preconditioner of L-BFGS: the inverse of a generator's average curvature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pyinv.bundle import MAX_PRECONDITIONED

from .check import Reference

__all__ = ["PRECONDITIONER_FILE", "write_preconditioner"]

PRECONDITIONER_FILE = "preconditioner.f32"
# Directions of less curvature than this fraction of the mean count as having it. There, an average
# says little of any one image.
_FLOOR = 0.3
_DRAWS = 512
# Fewer draws of large images, down to _FEWEST: each is a pass through the generator and back.
_FEWEST = 32
_MOST_VALUES = 1 << 22
_VALUES_PER_BATCH = 1 << 18


def write_preconditioner(folder: Path, reference: Reference) -> str | None:
    r"""Write the inverse of the mean of J^T J over the prior, plus a floor, float32 [d, d].

    J is the Jacobian of the targets at a latent, so J^T J is the Gauss-Newton Hessian of their mean
    squared error, up to a factor. For noise n of independent components,
    $E[J^T n n^T J] = E[J^T J]$: one gradient for each draw is enough.

    Returns:
        the file's name; None, without writing it, for latents of more than
        ``MAX_PRECONDITIONED`` components, or if the gradients vanish or are not finite.
    """
    size = reference.shapes.latent_size
    if size > MAX_PRECONDITIONED:
        return None
    values = int(np.prod(reference.shapes.target))
    draws = max(_FEWEST, min(_DRAWS, _MOST_VALUES // values))
    most = max(1, min(32, _VALUES_PER_BATCH // values))
    noise = torch.Generator().manual_seed(1)
    gram = torch.zeros(size, size, dtype=torch.float64)
    for batch in range((draws + most - 1) // most):
        count = min(most, draws - batch * most)
        inputs = reference.draw(count, seed=100_000 + batch)
        latent = inputs["latent"].requires_grad_(True)
        seen = reference.seen({**inputs, "latent": latent})
        signs = torch.randint(2, seen.shape, generator=noise) * 2.0 - 1.0
        (gradient,) = torch.autograd.grad(seen, latent, signs)
        gradient = gradient.double()
        gram += gradient.T @ gradient
    mean = gram.trace() / size
    if not (torch.isfinite(gram).all() and mean > 0):
        return None
    inverse = torch.linalg.inv(gram / mean + _FLOOR * torch.eye(size, dtype=torch.float64))
    matrix = ((inverse + inverse.T) / 2).numpy()
    (folder / PRECONDITIONER_FILE).write_bytes(np.ascontiguousarray(matrix, dtype="<f4").tobytes())
    return PRECONDITIONER_FILE
