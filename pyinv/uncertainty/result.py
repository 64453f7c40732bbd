"""``Uncertainty``: the result of ``Inverter.uncertainty``."""

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
    """How precisely N images determine their latents.

    Args:
        standard_error: float32 [N, *latent_shape], how far each component may be from its true
            value: the root mean square distance from the given latent, over the latents that agree
            with image and prior. NaN where unknown.
        condition_number: float32 [N], the ratio of the Jacobian's largest singular value to its
            smallest; infinity if the smallest is zero up to rounding.
        identifiable: bool [N], whether the image determines the latent, as far as was searched: no
            singular value is zero up to rounding, no direction keeps more than half of the prior's
            standard deviation, and other optima that agree with the image spread no wider.
        noise: float32 [N], the standard deviation of the pixel noise, given or estimated, in the
            units of the value range.
        cancelled: whether Ctrl-C ended the measurement early. Targets that were not reached are
            NaN and not identifiable.

    Indexing with an integer, a slice, a mask or an index array returns the Uncertainty of those
    targets.
    """

    standard_error: FloatArray
    condition_number: FloatArray
    identifiable: NDArray[np.bool_]
    noise: FloatArray
    cancelled: bool = False

    @classmethod
    def unknown(cls, count: int, latent_shape: tuple[int, ...]) -> Uncertainty:
        """Return an Uncertainty with nothing measured yet: NaN and not identifiable."""
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
        """Set the rows of some targets; latents in ``part`` may be flat."""
        for name, values in part.arrays().items():
            whole = getattr(self, name)
            whole[rows] = values.reshape(whole[rows].shape)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by their names."""
        return {name: getattr(self, name) for name in ARRAYS}

    def save(self, path: str | os.PathLike[str] | Any) -> None:
        """Save the arrays to one .npz file, under their names.

        Args:
            path: a path or an open binary file. NumPy appends .npz if the path does not end with
                it.

        To save an Uncertainty together with its Inversion, use ``Inversion.save``.
        """
        arrays: dict[str, Any] = dict(self.arrays())
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Uncertainty:
        """Load what ``save``, ``Inversion.save`` or ``pyinv invert --uncertainty -o`` wrote.

        Raises:
            InputError: the file has no saved Uncertainty.
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
