"""Uncertainty over several optima of the posterior: the mixture of those that fit the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.priors import Prior
from pyinv.uncertainty.laplace import DETERMINED
from pyinv.uncertainty.result import Uncertainty

__all__ = ["widened"]


def widened(
    found: Uncertainty,
    latents: NDArray[Any],
    losses: NDArray[Any],
    others: NDArray[Any],
    other_losses: NDArray[Any],
    other_errors: NDArray[Any],
    *,
    pixels: int | NDArray[Any],
    prior: Prior,
) -> Uncertainty:
    r"""Return the uncertainty with other optima of the posterior taken into account.

    With P pixels, noise s and y = (z - mean)/std,

    $$
    -\log p(z \mid x) = \frac{P}{2 s^2} \text{mse}(z) + \frac{1}{2} \lVert y \rVert^2
    + \text{const}
    $$

    An optimum agrees with the image if this exceeds its value at the latent by at most half the
    95 % quantile of the chi-squared distribution with d degrees of freedom: 95 % of a normal
    posterior lies within that distance of its peak. If any optima agree, the posterior is modelled
    as the mixture of their Laplace approximations.

    Args:
        found: the uncertainty of N latents.
        latents: [N, d].
        losses: [N], their mean squared errors.
        others: [N, H, d], optima found by searches from nearby. The latent's own optimum counts
            once for each search that returned to it.
        other_losses: [N, H], their mean squared errors.
        other_errors: [N, H, d], standard errors about the latent, not the optimum, from the Laplace
            approximation at each optimum. An optimum with non-finite errors never agrees.
        pixels: P, or [N], the sums of the weights of targets that have weights.
        prior: the prior of the latents. A uniform prior is treated as the normal prior with the
            same mean and standard deviation.

    Returns:
        the Uncertainty. A latent is not identifiable if the optima that agree have a standard
        deviation of more than half the prior's in some direction.

    Source: ours. The moments of a mixture are textbook material, and the threshold is that of
    Wilks's regions; docs/uncertainty.md evaluates them.
    """
    here, there = latents[:, None].astype(np.float64), others.astype(np.float64)
    improbable = ((there - prior.mean) ** 2 - (here - prior.mean) ** 2).sum(axis=2) / prior.std**2
    misfit = other_losses.astype(np.float64) - losses[:, None]
    squared = found.noise.astype(np.float64)[:, None] ** 2
    with np.errstate(invalid="ignore"):
        scaled = np.reshape(pixels, (-1, 1)) * misfit / squared
        agree = scaled + improbable <= _chi_squared_95(latents.shape[1])
    agree &= np.isfinite(other_errors).all(axis=2)
    share = (agree / np.maximum(agree.sum(axis=1, keepdims=True), 1))[..., None]
    errors = np.where(share > 0, other_errors.astype(np.float64), 0.0)
    mixed = np.sqrt((share * errors**2).sum(axis=1)).reshape(found.standard_error.shape)
    # The largest eigenvalue of the covariance, from the smaller of the two gram matrices.
    there = np.where(share > 0, there, 0.0)
    away = np.sqrt(share) * (there - (share * there).sum(axis=1, keepdims=True))
    widest = np.linalg.eigvalsh(away @ away.transpose(0, 2, 1))[:, -1]
    alone = ~agree.any(axis=1).reshape(-1, *(1,) * (found.standard_error.ndim - 1))
    return replace(
        found,
        standard_error=np.where(alone, found.standard_error, mixed).astype(np.float32),
        identifiable=found.identifiable & (widest <= (DETERMINED * prior.std) ** 2),
    )


def _chi_squared_95(degrees: int) -> float:
    """Return the 95 % quantile, to 3 % (Wilson & Hilferty 1931)."""
    share = 2 / (9 * degrees)
    return float(degrees * (1 - share + 1.6448536 * share**0.5) ** 3)
