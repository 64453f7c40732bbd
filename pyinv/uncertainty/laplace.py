"""Uncertainty around one optimum: the Laplace approximation of the posterior."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.priors import Prior
from pyinv.uncertainty.result import Uncertainty

__all__ = ["DETERMINED", "FLOAT32_ROUNDING", "TF32_ROUNDING", "laplace_uncertainty"]

DoubleArray = NDArray[np.float64]

FLOAT32_ROUNDING = 2.0**-24
"""The largest relative error of rounding to float32."""

TF32_ROUNDING = 2.0**-11
"""The largest relative error of rounding to TF32, which has 10 bits of mantissa."""

DETERMINED = 0.5
"""A direction is determined if its standard deviation is at most this fraction of the prior's. At
one half, the image is as informative about it as three independent draws are about the mean of a
normal distribution whose mean has this prior."""

# Fixed-point iteration, as the noise depends on the degrees of freedom and vice versa; each round
# shrinks the error by a factor below d / P.
_NOISE_ROUNDS = 10


def laplace_uncertainty(
    latents: NDArray[Any],
    images: NDArray[Any],
    generated: NDArray[Any] | None,
    gradient: NDArray[Any],
    gram: NDArray[Any],
    *,
    prior: Prior,
    value_range: tuple[float, float] | None,
    noise: float | NDArray[Any] | None = None,
    weights: NDArray[Any] | None = None,
    about: NDArray[Any] | None = None,
    rounding: float = FLOAT32_ROUNDING,
) -> Uncertainty:
    r"""Return the uncertainty of latents, from the normal equations of the pixel loss at them.

    With J the Jacobian of the P pixels at the latent z, r = G(z) - x, noise s, and a prior of
    standard deviation $\sigma$, the posterior is approximated as normal, with

    $$
    C = \left( \frac{J^T J}{s^2} + \frac{I}{\sigma^2} \right)^{-1}, \qquad
    \delta = -C \left( \frac{J^T r}{s^2} + \frac{z - \text{mean}}{\sigma^2} \right)
    $$

    its covariance and the displacement from z to its mean. The standard error about z is the root
    of $\operatorname{diag}(C) + \delta^2$. A uniform prior is treated as the normal prior
    with the same mean and standard deviation.

    Args:
        latents: [N, d].
        images: [N, ...], the targets.
        generated: [N, ...], G(latents), to estimate the noise from; unused if ``noise`` is
            given.
        gradient: [N, d], 2/P Jᵀr.
        gram: [N, d, d], 2/P JᵀJ.
        prior: the prior of the latents.
        value_range: the range that images are clipped to; None: they are not.
        noise: standard deviation of the pixel noise, above 0, one for all or [N]; None estimates it
            for each image from its residual and the remaining degrees of freedom, which requires
            P > d.
        weights: [N, P] or [1, P], the pixels' weights in gradient and gram, in which P is then
            their sum. The noise variance of a pixel is s^2 / weight. None: all 1.
        about: [N, d], the latents that standard errors are about; None uses ``latents``.
        rounding: the relative rounding error of the computation of gram and images.

    Returns:
        the Uncertainty, with standard errors [N, d]. Rows with non-finite inputs are unknown.

    Source: the Laplace approximation, as in MacKay 1992 ("Bayesian interpolation"), who also
    derives the effective degrees of freedom. The displacement, and treating the uniform prior as
    normal, are ours; docs/uncertainty.md evaluates them.
    """
    count, size = latents.shape
    weights = np.ones((1, images[0].size)) if weights is None else weights
    total = weights.sum(axis=1, dtype=np.float64)
    z = latents.astype(np.float64)
    slope = gradient.astype(np.float64) * (total / 2)[:, None]  # Jᵀr
    curvature = gram.astype(np.float64) * (total / 2)[:, None, None]  # JᵀJ
    known = np.isfinite(z).all(1) & np.isfinite(slope).all(1) & np.isfinite(curvature).all((1, 2))
    z[~known], slope[~known], curvature[~known] = 0, 0, 0

    eigenvalues, directions = np.linalg.eigh(curvature)
    # Rounding the matrix's elements moves no eigenvalue by more than this fraction of its Frobenius
    # norm, so smaller ones cannot be distinguished from zero.
    lost = rounding * np.linalg.norm(eigenvalues, axis=1, keepdims=True)
    eigenvalues = np.where(eigenvalues > lost, eigenvalues, 0.0)

    squared = np.full(count, np.nan if noise is None else np.square(noise, dtype=np.float64))
    largest = np.abs(images).max() if value_range is None else max(map(abs, value_range))
    floor = (rounding * float(largest)) ** 2
    if noise is None:
        assert generated is not None
        squared = _mean_square(images, generated, weights, value_range)
        known &= np.isfinite(squared)
        pixels = np.count_nonzero(weights, axis=1)
        squared = _noise_variance(np.where(known, squared, 0.0), eigenvalues, prior, pixels, floor)
    squared = np.maximum(squared, floor)

    variances = _variances(eigenvalues, squared, prior)
    # Where J is zero, so is Jᵀr except for rounding errors, which the large variance would amplify.
    toward_image = np.where(eigenvalues > 0, _along(directions, -slope / squared[:, None]), 0.0)
    toward_mean = _along(directions, (prior.mean - z) / prior.std**2)
    step = np.einsum("nij,nj->ni", directions, variances * (toward_image + toward_mean))
    away = 0.0 if about is None else z - about
    mean_square = np.einsum("nij,nj->ni", directions**2, variances) + (step + away) ** 2

    found = Uncertainty.unknown(count, (size,))
    found.standard_error[known] = np.sqrt(mean_square)[known]
    smallest, largest = eigenvalues[:, 0], eigenvalues[:, -1]
    condition = np.full(count, np.inf)
    np.divide(largest, smallest, out=condition, where=smallest > 0)
    found.condition_number[known] = np.sqrt(condition)[known]
    worst = np.sqrt(variances.max(axis=1))
    found.identifiable[:] = known & (smallest > 0) & (worst <= DETERMINED * prior.std)
    found.noise[known] = np.sqrt(squared)[known]
    return found


def _along(directions: DoubleArray, vectors: DoubleArray) -> DoubleArray:
    """Return the components of vectors [n, d] along eigenvectors [n, d, d], which are columns."""
    components: DoubleArray = np.einsum("nij,ni->nj", directions, vectors)
    return components


def _variances(eigenvalues: DoubleArray, squared: DoubleArray, prior: Prior) -> DoubleArray:
    """Return the variance along each eigenvector, [n, d], for noise variances [n]."""
    variances: DoubleArray = 1.0 / (eigenvalues / squared[:, None] + 1.0 / prior.std**2)
    return variances


def _mean_square(
    images: NDArray[Any],
    generated: NDArray[Any],
    weights: NDArray[Any],
    value_range: tuple[float, float] | None,
) -> DoubleArray:
    """Return each image's mean of weight times squared residual, [n], corrected for clipping.

    Clipping noisy pixels to the value range removes noise that points out of the range. In an image
    with pixels at an end of the range, only residuals that point to its middle are used, because
    clipping (at the near end) does not change them.
    """
    low, high = (-np.inf, np.inf) if value_range is None else value_range
    pixels = images.reshape(len(images), -1).astype(np.float64)
    noiseless = generated.reshape(len(images), -1).astype(np.float64)
    residual = pixels - noiseless
    inward = residual * ((low + high) / 2 - noiseless) > 0
    known = weights > 0
    clipped = (known & ((pixels <= low) | (pixels >= high))).any(axis=1, keepdims=True)
    used = known & np.where(clipped, inward, True)
    squares: DoubleArray = np.sum(weights * residual**2, axis=1, where=used)
    squares /= np.maximum(used.sum(axis=1), 1)
    return squares


def _noise_variance(
    mean_square: DoubleArray,
    eigenvalues: DoubleArray,
    prior: Prior,
    pixels: NDArray[np.intp],
    floor: float,
) -> DoubleArray:
    """Return the unbiased estimate of each image's noise variance, [n].

    The latent fits the noise in as many directions as the image determines, which shrinks the
    residual. Each direction counts by the fraction that the image rather than the prior determines.
    """
    squared = np.maximum(mean_square, floor)
    for _ in range(_NOISE_ROUNDS):
        shares = eigenvalues * _variances(eigenvalues, squared, prior) / squared[:, None]
        squared = np.maximum(mean_square * pixels / (pixels - shares.sum(axis=1)), floor)
    return squared
