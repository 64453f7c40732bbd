"""Whitened latents: a normal prior for latents whose distribution is known only from samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyinv.errors import ExportError

__all__ = ["Whitening"]

# Directions in which samples vary less than this fraction of the largest variance are kept at it.
_LEAST_VARIANCE = 1e-6


class Whitening(nn.Module):
    """A generator of latents w, as one of u with w = mean + u basis and u ~ N(0, I).

    The mean and the covariance, basis^T basis, are those of samples of w. Use it for latents that a
    network computes, such as StyleGAN's w and W+, so that ``pyinv.Normal()`` is their prior.

    Args:
        generator: maps [B, *shape, k] (and a condition) to images, for latents w of k components.
        samples: samples of w, [N, k] with N > k, for example of a mapping network.

    Attributes:
        mean: [k].
        basis: [k, k], symmetric.

    Raises:
        ExportError: the samples are too few, not finite, or have another shape.

    Examples:
        >>> samples = mapping(torch.randn(10_000, 512))
        >>> whitening = Whitening(synthesis, samples)
        >>> export(whitening, "faces.bundle", latent_shape=(14, 512), prior=Normal())  # W+
        >>> whitening.latents(inversion.latents.reshape(-1, 14, 512))
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, generator: nn.Module, samples: Any) -> None:
        super().__init__()
        rows = torch.as_tensor(samples).detach().double().cpu()
        if rows.ndim != 2 or len(rows) <= rows.shape[1]:
            raise ExportError(
                "samples must have shape [N, k] with more samples than components, got "
                f"{list(rows.shape)}: draw more"
            )
        if not bool(torch.isfinite(rows).all()):
            raise ExportError("samples must be finite, got NaN or infinity")
        variances, axes = torch.linalg.eigh(torch.cov(rows.T))
        floor = _LEAST_VARIANCE * float(variances.max())
        if floor <= 0:
            raise ExportError("samples must vary, and these are all the same")
        scales = variances.clamp(min=floor).sqrt()
        self.generator = generator
        self.register_buffer("mean", rows.mean(0).float())
        self.register_buffer("basis", ((axes * scales) @ axes.T).float())

    def forward(self, whitened: Tensor, *condition: Tensor) -> Any:
        return self.generator(self.mean + whitened @ self.basis, *condition)

    def latents(self, whitened: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the latents w [..., k] of whitened latents [..., k]."""
        rows = torch.as_tensor(np.asarray(whitened, np.float32))
        found: np.ndarray[Any, np.dtype[np.float32]]
        found = (self.mean.cpu() + rows @ self.basis.cpu()).numpy()
        return found
