"""Paths between latents: straight lines, spherical arcs (SLERP) and great circles.

Samples of a normal prior with many components lie near a sphere. A straight line between two of
them passes through its interior, where the generator saw no latents in training. An arc stays near
the sphere (White 2016, section 2).

Examples:
    >>> first, second = inverter.sample(2)
    >>> images = inverter.generate(slerp(first, second, 9))
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import InputError
from pyinv.validation import as_numpy, shape_text, whole_number

__all__ = ["great_circle", "linear", "slerp"]

FloatArray = NDArray[np.floating[Any]]

SMALLEST_ANGLE = 1e-4
"""In radians. In float32, directions closer to parallel or opposite than this span no plane."""


def linear(a: Any, b: Any, n: int) -> FloatArray:
    r"""Return n latents on the straight line from a to b, evenly spaced, both ends included.

    $$
    z_k = (1 - \mu_k) a + \mu_k b, \quad \mu_k = k / (n - 1)
    $$

    Suitable for a uniform prior, whose cube contains every line between two of its latents.

    Args:
        a: the first latent, any shape.
        b: the last latent, the same shape.
        n: number of latents, at least 2.

    Returns:
        [n, *a.shape], float32 if a and b are, otherwise float64. The ends are exactly a and b.

    Raises:
        InputError: latents that are not finite or differ in shape, or n out of range.
    """
    start, end, dtype = _check_latents(a, b)
    steps = _steps(n)
    return _with_ends(np.outer(1 - steps, start) + np.outer(steps, end), start, end, dtype)


def slerp(a: Any, b: Any, n: int) -> FloatArray:
    r"""Return n latents on the arc from a to b about the origin, at equal angles, with both ends.

    $$
    z_k = \frac{\sin((1 - \mu_k) \theta)}{\sin \theta} a
    + \frac{\sin(\mu_k \theta)}{\sin \theta} b, \quad \mu_k = k / (n - 1)
    $$

    where theta is the angle between a and b. If a and b have the same length, the path is an arc of
    a great circle and all latents have that length. Otherwise, the length changes smoothly from one
    to the other. Parallel latents (theta = 0) give the limit, a straight line.

    Args:
        a: the first latent, any shape, not zero.
        b: the last latent, the same shape, not zero and not opposite to a, because infinitely many
            arcs between opposite latents are equally short.
        n: number of latents, at least 2.

    Returns:
        [n, *a.shape], float32 if a and b are, otherwise float64. The ends are exactly a and b.

    Raises:
        InputError: latents that are zero, opposite, not finite or differ in shape; n out of range.

    Source: White 2016, "Sampling generative networks", section 2.1, after Shoemake 1985. Egan et
    al. 2018, section 5.2, prints the first term with sin(1 - mu) theta and q_1, which would not
    start at z_1; this function assumes that the formula above is meant.
    """
    start, end, dtype = _check_latents(a, b)
    angle = _angle(_direction(start, "a"), _direction(end, "b"))
    if angle > math.pi - SMALLEST_ANGLE:
        raise InputError(
            "b must not be opposite to a, because then no arc is the shortest; go through a third "
            "latent, or use great_circle"
        )
    steps = _steps(n)
    if angle == 0:
        return linear(a, b, n)
    weights = np.sin((1 - steps) * angle), np.sin(steps * angle)
    arc = (np.outer(weights[0], start) + np.outer(weights[1], end)) / math.sin(angle)
    return _with_ends(arc, start, end, dtype)


def great_circle(a: Any, b: Any = None, n: int = 60, *, seed: int = 0) -> FloatArray:
    r"""Return n evenly spaced latents once around a great circle through a, starting at a.

    $$
    z_k = \cos(\phi_k)\, a + \sin(\phi_k)\, \lVert a \rVert w,
    \quad \phi_k = 2 \pi k / n
    $$

    where w is the unit vector perpendicular to a, on the side of b. The circle is closed: after the
    last latent, the next one would be a again.

    Args:
        a: the first latent, any shape of at least 2 components, not zero. All latents have its
            length.
        b: a second latent, which defines the plane: the circle takes the short way from a to b, or
            to b's direction if b has another length. None for a random direction.
        n: number of latents, at least 1.
        seed: seed of the random direction, 0 or above; unused with b.

    Returns:
        [n, *a.shape], float32 if a and b are, otherwise float64. The first is exactly a.

    Raises:
        InputError: latents that are zero, not finite or differ in shape; b on the line through a
            and the origin, which defines no plane; n out of range.

    Source: Egan et al. 2018, section 5.2, Figure 9 (named 8 there); White 2016, section 2.1.
    """
    given = b is not None
    start, other, dtype = _check_latents(a, b if given else a)
    if start.size < 2:
        raise InputError("a must have at least 2 components to turn in, got 1; use linear")
    along = _direction(start, "a")
    n = whole_number("n", n, at_least=1)
    if given:
        towards = _direction(other, "b")
        if not SMALLEST_ANGLE < _angle(along, towards) < math.pi - SMALLEST_ANGLE:
            raise InputError(
                "b must not be a multiple of a, which defines no plane; leave it out for a random "
                "one"
            )
    else:
        random = np.random.default_rng(whole_number("seed", seed, at_least=0))
        towards = random.standard_normal(start.shape)
    across = towards - along * np.vdot(along, towards)
    angles = 2 * math.pi * np.arange(n) / n
    circle = np.outer(np.cos(angles), start)
    circle += np.outer(np.sin(angles), across * (np.linalg.norm(start) / np.linalg.norm(across)))
    return _with_ends(circle, start, None, dtype)


def _check_latents(a: Any, b: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], Any]:
    """Return both latents as float64, and the dtype of the returned path."""
    latents = []
    for value, name in ((a, "a"), (b, "b")):
        latent = as_numpy(value, name, "one latent of finite numbers")
        if latent.size == 0 or not np.isfinite(latent).all():
            got = f"[{shape_text(latent.shape)}]" if latent.size == 0 else "NaN or infinity"
            raise InputError(f"{name} must be one latent of finite numbers, got {got}")
        latents.append(latent)
    start, end = latents
    if start.shape != end.shape:
        raise InputError(
            f"a and b must have the same shape, got [{shape_text(start.shape)}] and "
            f"[{shape_text(end.shape)}]; give one latent each"
        )
    single = np.result_type(start, end, np.float32) == np.float32
    dtype = np.float32 if single else np.float64
    return start.astype(np.float64), end.astype(np.float64), dtype


def _steps(n: Any) -> NDArray[np.float64]:
    """Return mu, n evenly spaced numbers from 0 to 1."""
    count = whole_number("n", n, at_least=2)
    return np.arange(count) / (count - 1)


def _direction(latent: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    length = float(np.linalg.norm(latent))
    if length == 0:
        raise InputError(f"{name} must not be zero, which has no direction; use linear")
    return latent / length


def _angle(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the angle between two unit vectors, accurate near 0 and near pi.

    The arc cosine of their product would lose half of the digits there (W. Kahan, "How futile are
    mindless assessments of roundoff", section 12).
    """
    apart, together = np.linalg.norm(one - other), np.linalg.norm(one + other)
    return 2 * math.atan2(float(apart), float(together))


def _with_ends(
    path: NDArray[np.float64],
    start: NDArray[np.float64],
    end: NDArray[np.float64] | None,
    dtype: Any,
) -> FloatArray:
    """Return the path [n, d] in the latents' shape and dtype, with exact ends."""
    latents: FloatArray = path.reshape(-1, *start.shape).astype(dtype)
    latents[0] = start
    if end is not None:
        latents[-1] = end
    return latents
