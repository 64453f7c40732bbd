"""Section ``noise``: latents of noisy images, and whether the stated errors are correct."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import Inverter, evaluation, recipes
from pyinv.uncertainty import Uncertainty

from .bench import Bench
from .generators import Subject
from .methods import PRECISE, RECONSTRUCT, first_order, precise
from .rows import spread
from .run_cache import Found

__all__ = ["run"]

VARIANCES = (1e-3, 1e-2, 1e-1)
TARGETS = 200
NOISE_SEED = 40_417
# 95 % of normal errors are within this many standard errors.
INTERVAL = 1.959964


def run(bench: Bench, subjects: Sequence[Subject], *, complete: bool) -> list[dict[str, Any]]:
    """Return one row per generator and variance; the first-order methods only if complete."""
    return [
        _row(bench, subject, variance, complete) for subject in subjects for variance in VARIANCES
    ]


def _row(bench: Bench, subject: Subject, variance: float, complete: bool) -> dict[str, Any]:
    count = bench.few(TARGETS)
    truth, clean = subject.targets(count)
    deviation = math.sqrt(variance)
    draws = np.random.default_rng(NOISE_SEED).standard_normal(clean.shape, dtype=np.float32)
    # Not clipped: clipped noise is not normal and does not have the stated variance.
    images = clean + np.float32(deviation) * draws
    about = f"{subject.key}: noise of variance {variance:g}"
    inverter = subject.noisy_inverter()
    methods: dict[str, dict[str, Any]] = {}
    coverage: dict[str, dict[str, Any]] = {}
    if RECONSTRUCT in bench.methods:
        for known, noise in (("known", deviation), ("unknown", None)):
            found = bench.cache.run(
                f"{about}, {RECONSTRUCT}, noise {known}",
                inverter,
                images,
                recipes.reconstruct(inverter.manifest, noise=noise),
            )
            methods[f"{RECONSTRUCT}, noise {known}"] = _errors(found, truth)
            coverage[f"noise {known}"] = bench.cache.measurement(
                f"{about}, uncertainty, noise {known}",
                [noise, bench.threads, *map(_hash, (images, found.latents)), subject.weights],
                partial(_measure, inverter, found, images, truth, noise),
            )
    if PRECISE in bench.methods:
        # Pixels at or beyond the ends of the range have no weight in the whitened residual, so
        # clipping does not change it. No restart would reach the loss of an exact latent.
        own = subject.inverter()
        found = bench.cache.run(
            f"{about}, {PRECISE}",
            own,
            images.clip(-1, 1),
            precise(own.manifest).replace(restarts=0),
        )
        methods[PRECISE] = _errors(found, truth)
    others: dict[str, dict[str, Any]] = {}
    if complete:
        for name, recipe in bench.requested(
            first_order(subject.inverter().manifest, bench.steps).items()
        ).items():
            found = bench.cache.run(
                f"{about}, {name}, {bench.steps} updates", inverter, images, recipe
            )
            others[name] = _errors(found, truth)
    row: dict[str, Any] = {
        "generator": subject.key,
        "variance": variance,
        "targets": count,
        "latent_error": {**methods, **others},
        "coverage": coverage,
    }
    best = min(others, key=lambda name: _mean(others[name]), default=None)
    if best is not None:
        row["best_first_order"] = best
        row["over_best_first_order"] = {
            name: _mean(errors) / _mean(others[best]) for name, errors in methods.items()
        }
    return row


def _errors(found: Found, truth: NDArray[Any]) -> dict[str, Any]:
    return spread(evaluation.latent_error(truth, found.latents))


def _mean(errors: dict[str, Any]) -> float:
    mean = errors["mean"]
    return math.inf if mean is None else float(mean)


def _measure(
    inverter: Inverter,
    found: Found,
    images: NDArray[Any],
    truth: NDArray[Any],
    noise: float | None,
) -> dict[str, Any]:
    """Return how often intervals from the measured uncertainty contain the true latents."""
    uncertainty = inverter.uncertainty(found.latents, images, noise=noise)
    if uncertainty.cancelled:
        raise KeyboardInterrupt
    return _coverage(found.latents, uncertainty, truth)


def _coverage(
    latents: NDArray[Any], uncertainty: Uncertainty, truth: NDArray[Any]
) -> dict[str, Any]:
    """Return the share of components within their 95 % intervals."""
    error, stated = np.abs(latents - truth), uncertainty.standard_error.reshape(latents.shape)
    finite = np.isfinite(stated)
    inside = error[finite] <= INTERVAL * stated[finite]
    return {
        "inside": float(inside.mean()) if inside.size else None,
        "with_an_interval": float(finite.mean()),
        "median_noise": float(np.median(uncertainty.noise)),
        "identifiable": float(uncertainty.identifiable.mean()),
        "median_standard_error": float(np.median(stated[finite])) if inside.size else None,
    }


def _hash(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data.cast("B")).hexdigest()
