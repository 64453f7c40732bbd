"""``Inversion``: the result of an inversion."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyinv.array_files import read_npz
from pyinv.errors import InputError

if TYPE_CHECKING:
    from pyinv.uncertainty import Uncertainty

__all__ = ["Inversion", "Status"]

FloatArray = NDArray[np.float32]


class Status(enum.IntEnum):
    """How a target ended, with the engine's codes. ``text`` is the status in words."""

    CONVERGED_TOLERANCE = 0
    """Converged: the loss reached the recipe's loss tolerance."""
    CONVERGED_PLATEAU = 1
    """Converged: the loss stopped changing, so more steps would make no further progress. Without a
    loss tolerance this is the normal end. The optimum may be local: restarts can find a better one.
    """
    STEP_LIMIT = 2
    """All steps were used, and over the last tenth of them the loss fell by 1 % or less."""
    STEP_LIMIT_IMPROVING = 3
    """All steps were used, and the loss was still falling, by more than 1 % over the last tenth of
    them: more steps help."""
    NON_FINITE = 4
    """The loss or gradient became NaN or infinite. A lower learning rate helps."""
    CANCELLED = 5
    """The run was cancelled before this target finished."""
    INVALID = 6
    """In a stream: the target could not be read, or is no image of this bundle."""

    @property
    def text(self) -> str:
        """The status in words."""
        return _TEXTS[self]


_TEXTS = {
    Status.CONVERGED_TOLERANCE: "converged to the tolerance",
    Status.CONVERGED_PLATEAU: "converged (no further progress)",
    Status.STEP_LIMIT: "used all steps (loss nearly flat)",
    Status.STEP_LIMIT_IMPROVING: "used all steps (still improving)",
    Status.NON_FINITE: "not finite",
    Status.CANCELLED: "cancelled",
    Status.INVALID: "invalid",
}


@dataclass(frozen=True, eq=False)
class Inversion:
    """The latents found for N targets.

    Indexing with an integer, a slice, a mask or an index array returns the Inversion of those
    targets.

    Args:
        latents: float32 [N, *latent_shape].
        loss: float32 [N], each target's loss at its latent; NaN where none was finite.
        status: uint8 [N], the codes of ``Status``.
        steps: int64 [N], number of steps over all attempts.
        attempts: int32 [N], number of attempts.
        normal_equations: int64 [N], number of evaluations of the normal equations over all
            attempts; 0 in first-order runs.
        seed: the seed of the run.
        recipe: the recipe, as returned by ``Recipe.describe()``.
        cancelled: whether Ctrl-C ended the run early.
        trace: float32 [N, T] or None: the loss at every ``trace_every``-th step of a target's
            last attempt, NaN for steps after its end.
        psnr: float32 [N] or None: the peak signal-to-noise ratio in decibels between each target
            and the image of its latent, 10 log10(span² / mse), where the span is that of the
            bundle's value range and weights count as in the loss. Infinite if the image is exact,
            NaN if unknown. None if targets are observations, which have no value range.
        hint: what to try next, one sentence, or "" if there is nothing to advise.
        min_latent_error: float32 [N] or None: the lowest mean squared error ||z - true||²/d between
            a target's true latent, as passed to ``invert``, and all latents z that were evaluated
            for it: the initial latent of each attempt, and one per step. It is at most the error of
            ``latents``, up to rounding. NaN if no latent was evaluated or no error was finite.
            Lipton & Tripathi's public code (2017) decides by this error whether a latent was
            recovered.
    """

    latents: FloatArray
    loss: FloatArray
    status: NDArray[np.uint8]
    steps: NDArray[np.int64]
    attempts: NDArray[np.int32]
    normal_equations: NDArray[np.int64]
    seed: int
    recipe: dict[str, Any]
    cancelled: bool = False
    trace: FloatArray | None = None
    min_latent_error: FloatArray | None = None
    psnr: FloatArray | None = None
    hint: str = ""
    _images: Callable[[], FloatArray] | FloatArray | None = field(default=None, repr=False)

    @property
    def images(self) -> FloatArray:
        """G(latents), float32 [N, *image_shape]; computed on first access, then cached.

        Raises:
            InputError: the Inversion was loaded from a file without images.
        """
        if callable(self._images):
            object.__setattr__(self, "_images", self._images())
        if not isinstance(self._images, np.ndarray):
            raise InputError(
                "this Inversion was saved without its images; make them with "
                "inverter.generate(inversion.latents)"
            )
        return self._images

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each target converged, to the tolerance or to a plateau, bool [N]."""
        return self.status <= Status.CONVERGED_PLATEAU

    def counts(self) -> dict[str, int]:
        """Return the number of targets per status, keyed by its name in lower case."""
        return {one.name.lower(): int(np.sum(self.status == one)) for one in Status}

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: Any) -> Inversion:
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"target {index} of an Inversion of {len(self)}")
            index = slice(index, index + 1 if index != -1 else None)
        images: Callable[[], FloatArray] | None = None
        if self._images is not None:
            # Generate all images before indexing: with batch norm over the batch, an image depends
            # on the others.
            images = lambda: self.images[index]  # noqa: E731
        rows: dict[str, Any] = {name: getattr(self, name) for name in (*_ARRAYS, *_OPTIONAL)}
        rows = {name: None if array is None else array[index] for name, array in rows.items()}
        return replace(self, **rows, _images=images)

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.latents.shape))
        ended = ", ".join(
            f"{count} {one.text}" for one in Status if (count := int(np.sum(self.status == one)))
        )
        losses = self.loss[np.isfinite(self.loss)]
        quantiles = "none finite"
        if len(losses):
            low, middle, high = np.quantile(losses, [0, 0.5, 1])
            quantiles = f"min {low:.3g}, median {middle:.3g}, max {high:.3g}"
        quality = ""
        if self.psnr is not None and not np.isnan(self.psnr).all():
            quality = f"PSNR median {np.nanmedian(self.psnr):.1f} dB; "
        steps = f"{self.steps.mean():.0f} per target" if len(self) else "0"
        attempts = self.attempts.mean() if len(self) else 0
        return (
            f"<Inversion of {len(self)} target{'' if len(self) == 1 else 's'}"
            f"{', cancelled' if self.cancelled else ''}: latents [{shape}]; {ended or 'none'}; "
            f"loss {quantiles}; {quality}steps {steps}"
            f"{f', attempts {attempts:.3g}' if attempts > 1 else ''}; "
            f"recipe {self.recipe.get('name')}, seed {self.seed}>"
        )

    def __reduce__(self) -> Any:
        # The function that generates images refers to the engine, which cannot be pickled.
        values = {name: getattr(self, name) for name in _FIELDS}
        return _restore, (values, None if self._images is None else self.images)

    def save(
        self,
        path: str | os.PathLike[str] | Any,
        *,
        images: bool = True,
        sources: Sequence[str] | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        """Save the Inversion to one .npz file.

        Args:
            path: a path or an open binary file. NumPy appends .npz if the path does not end with
                it.
            images: also save G(latents), computing it if necessary.
            sources: N strings to save as well, such as the targets' file names.
            uncertainty: the latents' Uncertainty, to save as well; ``Uncertainty.load`` reads it.

        The arrays are named after the fields. Everything else is stored as JSON under "run".
        """
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {
            name: getattr(self, name) for name in _OPTIONAL if getattr(self, name) is not None
        }
        if images and self._images is not None:
            arrays["images"] = self.images
        if sources is not None:
            arrays["sources"] = np.asarray(sources, dtype=np.str_)
        if uncertainty is not None:
            arrays |= uncertainty.arrays()
        run = {name: getattr(self, name) for name in ("seed", "recipe", "cancelled", "hint")}
        np.savez(path, run=np.asarray(json.dumps(run)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Inversion:
        """Load an Inversion that ``save`` wrote.

        Raises:
            InputError: the file is not a saved Inversion.
        """
        try:
            found: dict[str, Any] = dict(
                read_npz(path, ("run", *_ARRAYS), optional=(*_OPTIONAL, "images"))
            )
            run = json.loads(str(found.pop("run")))
            return cls(
                _images=found.pop("images", None),
                **found,
                seed=int(run["seed"]),
                recipe=dict(run["recipe"]),
                cancelled=bool(run["cancelled"]),
                hint=str(run["hint"]),
            )
        except (ValueError, KeyError, TypeError):
            if not Path(path).exists():
                raise
            raise InputError(
                f"{path}: not a saved Inversion, or truncated; expected what Inversion.save or "
                "`pyinv invert -o` wrote"
            ) from None


_ARRAYS = ("latents", "loss", "status", "steps", "attempts", "normal_equations")
_OPTIONAL = ("trace", "min_latent_error", "psnr")  # arrays or None
_FIELDS = (*_ARRAYS, "seed", "recipe", "cancelled", "hint", *_OPTIONAL)


def _restore(values: dict[str, Any], images: FloatArray | None) -> Inversion:
    return Inversion(**values, _images=images)
