"""Whitened latents: a normal prior for latents whose distribution is known only from samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyinv.errors import ExportError

from .diagnostics import first_line

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
        try:
            rows = torch.as_tensor(samples).detach().cpu()
            rows = rows if rows.is_complex() else rows.double()
        except Exception as error:
            raise ExportError(
                f"samples must be numbers [N, k], got {type(samples).__name__}: {first_line(error)}"
            ) from error
        if rows.ndim != 2 or len(rows) <= rows.shape[1] or rows.numel() == 0 or rows.is_complex():
            raise ExportError(
                "samples must be real numbers of shape [N, k], more samples than components, got "
                f"{rows.dtype} {list(rows.shape)}: draw more"
            )
        covariance = torch.atleast_2d(torch.cov(rows.T))
        if not bool(torch.isfinite(covariance).all()):
            raise ExportError("samples must be finite, got NaN, infinity or numbers too large")
        variances, axes = torch.linalg.eigh(covariance)
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
