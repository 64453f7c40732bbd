"""Tolerances between two computations of a quantity: the one table for all tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Tolerance(NamedTuple):
    relative: float
    absolute: float


EXACT = Tolerance(0.0, 0.0)

TOLERANCES: dict[str, dict[str, Tolerance]] = {
    "cpu": {
        # Uniform draws use exact operations and one rounding.
        "uniform draw": EXACT,
        # log, sqrt and cos, each accurate to an ulp or two, for a result below 6.8.
        "normal draw": Tolerance(0.0, 2e-6),
        # The engine against the twin after 50 steps.
        "latent": Tolerance(0.0, 1e-5),
        "loss": Tolerance(1e-4, 1e-6),
        # Quasi-Newton steps: their curvature is a difference of gradients, in which rounding is
        # significant for short steps. A start that is off by 1e-7 changes the twin's result by up
        # to 5e-4.
        "latent, quasi-newton": Tolerance(1e-3, 1e-3),
        "loss, quasi-newton": Tolerance(1e-3, 1e-6),
        "latent error, quasi-newton": Tolerance(1e-2, 1e-4),
        # A mean of squares of latents that may differ by the tolerance of "latent".
        "latent error": Tolerance(1e-4, 1e-6),
        # The same call in parts, with other lanes or threads: matrix products round differently.
        "latent, other batch": Tolerance(0.0, 1e-4),
        "loss, other batch": Tolerance(1e-3, 1e-5),
        # Two runtimes after 200 Adam steps.
        "latent, other runtime": Tolerance(0.0, 1e-3),
        "loss, other runtime": Tolerance(1e-2, 1e-5),
    },
    # A GPU sums in another order and has its own exp, log and tanh. No test takes more than 200
    # steps.
    "cuda": {
        "uniform draw": EXACT,
        "normal draw": Tolerance(0.0, 2e-6),
        "latent": Tolerance(0.0, 1e-3),
        "loss": Tolerance(1e-2, 1e-5),
        "latent, quasi-newton": Tolerance(1e-3, 1e-3),
        "loss, quasi-newton": Tolerance(1e-2, 1e-5),
        "latent error, quasi-newton": Tolerance(1e-2, 1e-4),
        "latent error": Tolerance(1e-2, 1e-4),
        "latent, other batch": Tolerance(0.0, 1e-3),
        "loss, other batch": Tolerance(1e-2, 1e-5),
        "latent, other runtime": Tolerance(0.0, 1e-3),
        "loss, other runtime": Tolerance(1e-2, 1e-5),
    },
}


def assert_close(actual: Any, expected: Any, quantity: str, *, device: str = "cpu") -> None:
    """Assert closeness. NaN equals NaN: a loss that was never finite is NaN on both sides."""
    relative, absolute = TOLERANCES[device][quantity]
    np.testing.assert_allclose(
        actual, expected, rtol=relative, atol=absolute, equal_nan=True, err_msg=quantity
    )
