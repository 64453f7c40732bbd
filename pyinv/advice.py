"""What a run's images and results tell: likely mistakes, quality, and what to try next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.bundle import Manifest
from pyinv.caution import warned
from pyinv.images import scaled
from pyinv.recipes import EFFORTS, Recipe, default
from pyinv.result import Status

__all__ = ["are_eight_bit", "check_range", "next_step", "not_exact", "peak_ratio", "wants_exact"]

FloatArray = NDArray[np.float32]

# Where a generator's images may leave the range: targets outside by more than this part of its span
# are compared with its own.
_REACH = 0.25
_LOOKED_AT = 64  # images
_VALUES = 4096  # of an image
# The fewest values of a picture that say something about its scale or its rounding.
_FEWEST = 16
# In dB: below the first, images and generator hardly have anything in common; between the others,
# the generator may have made the images, and its latents are not exact yet.
_POOR, _GOOD, _EXACT = 15.0, 35.0, 80.0


def check_range(
    images: FloatArray, manifest: Manifest, own_images: Callable[[], FloatArray]
) -> str:
    """Warn about images that are probably scaled for another value range; return the warning or "".

    Args:
        images: checked targets, [N, *target_shape].
        manifest: the bundle's manifest.
        own_images: generates a few images to compare with; called only on suspicion.
    """
    if manifest.observes:
        return ""
    low, high = manifest.value_range
    least, most = float(images.min()), float(images.max())
    reach = _REACH * (high - low)
    if not manifest.bounded and (least < low - reach or most > high + reach):
        own = own_images()
        least_own, most_own = float(own.min()), float(own.max())
        margin = 0.5 * (most_own - least_own)
        if least < least_own - margin or most > most_own + margin:
            remedy = f"rescale them to [{low:g}, {high:g}]"
            if least >= 0 and most <= 255 and most > 2 * high:
                remedy = f"if they are 0 to 255, use {scaled('images / 255', low, high)}"
            return warned(
                f"the images' values lie in [{least:.4g}, {most:.4g}], outside value_range "
                f"[{low:g}, {high:g}] and far outside the generator's own; {remedy}"
            )
    pictures = manifest.targets_are_pictures and manifest.target_size >= _FEWEST
    if not pictures or (low >= 0 and high <= 1):
        return ""
    if least >= 0 and most <= 1 and most - least > 0.25:
        own = own_images()
        if np.mean((own < 0) | (own > 1)) > 0.05:
            return warned(
                f"all values of the images lie in [0, 1], and value_range is [{low:g}, {high:g}]: "
                "if they are 0 to 1, as from torchvision's ToTensor, use "
                f"{scaled('images', low, high)}"
            )
    return ""


def are_eight_bit(images: FloatArray, manifest: Manifest) -> bool:
    """Whether most images are pictures with 8-bit values, judged by up to 64 of them."""
    if not manifest.targets_are_pictures:
        return False
    low, high = manifest.value_range
    some = images[:: -(-len(images) // _LOOKED_AT)].reshape(-1, manifest.target_size)
    some = some[:, :: -(-manifest.target_size // _VALUES)]
    levels = (some.astype(np.float64) - low) * (255 / (high - low))
    inside = (levels > 0.5) & (levels < 254.5)
    rounded = ~inside | (np.abs(levels - np.rint(levels)) < 1e-3)
    found = rounded.all(axis=1) & (inside.sum(axis=1) >= _FEWEST)
    return bool(2 * found.sum() > len(some))


def wants_exact(recipe: Recipe) -> bool:
    """Whether the recipe is ``precise`` with its tolerance for exact images."""
    return recipe.name == "precise" and recipe.stages[-1].loss_tolerance <= 1e-8


def not_exact(status: NDArray[Any]) -> str:
    """Say that the recipe ``precise`` found no exact latents for most targets, or ""."""
    finished = int(np.sum(status != Status.CANCELLED))
    missed = finished - int(np.sum(status == Status.CONVERGED_TOLERANCE))
    if 2 * missed <= finished:
        return ""
    return (
        f"the recipe precise did not reproduce {missed} of {finished} images exactly: for images "
        "that this generator did not make, and for 8-bit files, use the recipe default or "
        "reconstruct; for its own images, try more restarts"
    )


def peak_ratio(mse: Any, value_range: tuple[float, float]) -> FloatArray:
    """Return the peak signal-to-noise ratio of mean squared errors, in decibels."""
    low, high = value_range
    with np.errstate(divide="ignore"):
        decibels = 20 * np.log10(high - low) - 10 * np.log10(np.asarray(mse, dtype=np.float64))
    return np.asarray(decibels, dtype=np.float32)


def next_step(
    status: NDArray[Any],
    psnr: FloatArray | None,
    recipe: Recipe,
    manifest: Manifest,
    *,
    eight_bit: bool,
    doubt: str = "",
) -> str:
    """Return one sentence about what to try next, or "" if there is nothing to advise.

    ``doubt`` is the warning about the images, or "".
    """
    done = status != Status.CANCELLED
    finished = int(done.sum())
    if not finished:
        return ""
    broken = int(np.sum(status == Status.NON_FINITE))
    if broken:
        return (
            f"{broken} of {finished} targets met values that are not finite: try a lower "
            "learning_rate, or check that the generator is finite where the latents were"
        )
    if doubt:
        return doubt
    if wants_exact(recipe):
        return not_exact(status)
    level = float(np.nanmedian(psnr[done])) if psnr is not None and (psnr == psnr).any() else None
    improving = int(np.sum(status == Status.STEP_LIMIT_IMPROVING))
    if 2 * improving > finished:
        more = f"more max_steps than {recipe.stages[-1].max_steps}"
        if recipe.name == "default" and _spends(recipe) in _lower_efforts(manifest):
            more = 'effort="best"'
        return f"{improving} of {finished} targets were still improving: try {more}"
    if level is not None and level < _POOR:
        checks = [
            "that the images are scaled to value_range",
            "that they look like the generator's",
        ]
        if manifest.conditions:
            checks.insert(1, f"the conditions ({', '.join(manifest.conditions)})")
        return f"the images hardly resemble their targets: check {', and '.join(checks)}"
    matched = np.mean(status[done] == Status.CONVERGED_TOLERANCE) >= 0.5
    solvable = any(manifest.has_normal_equations(loss) for loss in ("whitened", "mse"))
    inexact = level is not None and _GOOD <= level < _EXACT and not matched
    if inexact and solvable and not eight_bit:
        return "if the generator made these images, the recipe precise finds their exact latents"
    return ""


def _spends(recipe: Recipe) -> tuple[int, int]:
    """Return what an effort decides on: the restarts, and the most steps of the last stage."""
    return recipe.restarts, recipe.stages[-1].max_steps


def _lower_efforts(manifest: Manifest) -> list[tuple[int, int]]:
    """Return what ``default`` spends by each effort, of those that spend less than "best"."""
    *others, best = (_spends(default(manifest, effort=effort)) for effort in EFFORTS)
    return [spent for spent in others if spent != best]
