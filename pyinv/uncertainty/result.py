"""What an inversion's uncertainty gives back."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.array_files import read_npz

__all__ = ["Uncertainty"]

FloatArray = NDArray[np.float32]

ARRAYS = ("standard_error", "condition_number", "identifiable", "noise")


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What N images say about their latents.

    Args:
        standard_error: float32 [N, *latent_shape], how far each component may be from the true
            one: the root of the mean square, over the latents that agree with image and prior, of
            their distance from the latent given. NaN where it is not known.
        condition_number: float32 [N], the ratio of the Jacobian's largest singular value to its
            smallest; infinity where the smallest is zero to rounding.
        identifiable: bool [N], whether the image determines the latent, as far as was looked: no
            singular value is zero to rounding, no direction keeps more than half of the prior's
            standard deviation, and other optima that agree with the image spread no wider.
        noise: float32 [N], the standard deviation of the noise on a pixel that was taken, in the
            units of the value range: the one given or the one estimated.
        cancelled: whether the measurement was ended early, by Ctrl-C. Targets that were not reached
            are NaN, and not identifiable.

    Indexing with an integer, a slice, a mask or an index array gives those targets' Uncertainty.
    """

    standard_error: FloatArray
    condition_number: FloatArray
    identifiable: NDArray[np.bool_]
    noise: FloatArray
    cancelled: bool = False

    @classmethod
    def unknown(cls, count: int, latent_shape: tuple[int, ...]) -> Uncertainty:
        """Return that of targets about which nothing is known yet: NaN, and not identifiable."""
        return cls(
            standard_error=np.full((count, *latent_shape), np.nan, dtype=np.float32),
            condition_number=np.full(count, np.nan, dtype=np.float32),
            identifiable=np.zeros(count, dtype=np.bool_),
            noise=np.full(count, np.nan, dtype=np.float32),
        )

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, index: Any) -> Uncertainty:
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"target {index} of an Uncertainty of {len(self)}")
            index = slice(index, index + 1 if index != -1 else None)
        return replace(self, **{name: values[index] for name, values in self.arrays().items()})

    def put(self, rows: Any, part: Uncertainty) -> None:
        """Set that of some targets, whose latents may be flat in the part."""
        for name, values in part.arrays().items():
            whole = getattr(self, name)
            whole[rows] = values.reshape(whole[rows].shape)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by their names."""
        return {name: getattr(self, name) for name in ARRAYS}

    def save(self, path: str | os.PathLike[str] | Any) -> None:
        """Write the arrays into one .npz file, under their names.

        Args:
            path: where to, or an open binary file. NumPy adds .npz to a path without it.

        ``Inversion.save`` writes them into an Inversion's file.
        """
        arrays: dict[str, Any] = dict(self.arrays())
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Uncertainty:
        """Read what ``save`` wrote, or ``Inversion.save`` or ``pyinv invert --uncertainty -o``.

        Raises:
            InputError: not such a file.
        """
        arrays: dict[str, Any] = dict(read_npz(path, ARRAYS))
        return cls(**arrays)

    def __repr__(self) -> str:
        targets = f"{len(self)} targets{', cancelled' if self.cancelled else ''}"
        if not np.isfinite(self.noise).any():
            return f"<Uncertainty of {targets}, none of them known>"
        return (
            f"<Uncertainty of {targets}: {int(self.identifiable.sum())} identifiable; "
            f"medians: standard error {np.nanmedian(self.standard_error):.3g}, noise "
            f"{np.nanmedian(self.noise):.3g}, condition number "
            f"{np.nanmedian(self.condition_number):.3g}>"
        )
