"""Distances of latents and of layer activations from the true ones, and between latents."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyinv.errors import InputError
from pyinv.evaluation._checks import FloatArray, check_pair, check_rows


def latent_error(latents: Any, found: Any) -> FloatArray:
    r"""Return each target's mean squared latent error.

    $$
    e_n = \frac{1}{d} \lVert z_n - z'_n \rVert_2^2
    $$

    Args:
        latents: the true latents, [N, d] or [N, *latent_shape].
        found: the recovered latents, the same shape.

    Returns:
        float64 [N], at least 0; NaN where a latent contains NaN.

    Raises:
        InputError: shapes that differ, or no latent.

    Source: Lipton & Tripathi 2017, Table 1 (d = 100); Egan et al. 2018, section 4.2.1, step 4.
    """
    true, recovered = check_pair(latents, found, ("latents", "found"), "latents [N, d]")
    difference = true.astype(np.float64) - recovered
    error: FloatArray = np.square(difference).reshape(len(difference), -1).mean(axis=1)
    return error


def cosine_distance(latents: Any, found: Any) -> FloatArray:
    r"""Return each target's cosine distance, 1 - cos of the angle between its latents.

    $$
    e_n = 1 - \frac{z_n \cdot z'_n}{\lVert z_n \rVert \lVert z'_n \rVert}
    = \frac{1}{2} \left\lVert \frac{z_n}{\lVert z_n \rVert}
    - \frac{z'_n}{\lVert z'_n \rVert} \right\rVert^2
    $$

    The second form, in double precision, is exact for latents that almost agree. Use it for
    generators that normalise their latent, which make the same image from z and from 2 z.

    Args:
        latents: the true latents, [N, d] or [N, *latent_shape], or a layer's true activations.
        found: the recovered ones, the same shape.

    Returns:
        float64 [N], from 0 to 2; NaN where a latent contains NaN or is zero.

    Raises:
        InputError: shapes that differ, or no latent.

    Source: Bau et al. 2019, section 2, method b: d_L.
    """
    true, recovered = _flat_pair(latents, found, "latents")
    with np.errstate(invalid="ignore"):
        true = true / np.linalg.norm(true, axis=1, keepdims=True)
        recovered = recovered / np.linalg.norm(recovered, axis=1, keepdims=True)
    distance: FloatArray = np.square(true - recovered).sum(axis=1) / 2
    return distance


def relative_error(activations: Any, found: Any) -> FloatArray:
    r"""Return each target's relative error of a layer's activations.

    $$
    e_n = \frac{\lVert r_n - r'_n \rVert_2}{\lVert r_n \rVert_2}
    $$

    Args:
        activations: the true activations, [N, ...].
        found: the recovered activations, the same shape.

    Returns:
        float64 [N], at least 0; NaN where an activation is NaN or all true ones are zero.

    Raises:
        InputError: shapes that differ, or no activation.
    """
    true, recovered = _flat_pair(activations, found, "activations")
    size = np.linalg.norm(true, axis=1)
    error: FloatArray = np.linalg.norm(true - recovered, axis=1)
    return error / np.where(size > 0, size, np.nan)


def pairwise_distance(latents: Any) -> float:
    r"""Return the mean distance between two latents, divided by the number of components.

    $$
    \frac{2}{N (N - 1)} \sum_{i < j} \frac{\lVert z_i - z_j \rVert_2}{d}
    $$

    The distance is the norm, not its square: two samples of U(-1, 1)^100 are sqrt(200 / 3) apart in
    the quadratic mean, which divided by 100 is 0.0816, and the paper's baseline is .0815. All pairs
    count. Distances are computed from differences, which are exact for latents that almost agree.

    Args:
        latents: [N, d] or [N, *latent_shape], N >= 2: the latents recovered for one image from N
            starts.

    Returns:
        a number of at least 0; NaN if a latent contains NaN.

    Raises:
        InputError: fewer than two latents.

    Source: Lipton & Tripathi 2017, Table 2.
    """
    rows = check_rows(latents, "latents", "latents [N, d]")
    if len(rows) < 2:
        raise InputError("latents must be [N, d] with N >= 2, got 1; a distance takes two")
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    total = sum(
        float(np.linalg.norm(flat[row + 1 :] - flat[row], axis=1).sum())
        for row in range(len(flat) - 1)
    )
    return total / (len(flat) * (len(flat) - 1) / 2) / flat.shape[1]


def _flat_pair(true: Any, found: Any, name: str) -> tuple[FloatArray, FloatArray]:
    rows, others = check_pair(true, found, (name, "found"), f"{name} [N, d]")
    return tuple(  # type: ignore[return-value]
        one.astype(np.float64).reshape(len(one), -1) for one in (rows, others)
    )
