"""Uncertainty: how far the latent behind an image may be from the one that was found.

From the pixel residual's Jacobian at the latent, the noise of the image, and other latents that
agree with the image as well. docs/uncertainty.md has the derivation, and says when the figures can
be trusted. ``pyinv.Inverter.uncertainty`` is what measures it.
"""

from pyinv.uncertainty.laplace import FLOAT32_ROUNDING, TF32_ROUNDING, laplace_uncertainty
from pyinv.uncertainty.mixture import widened
from pyinv.uncertainty.result import Uncertainty

__all__ = ["FLOAT32_ROUNDING", "TF32_ROUNDING", "Uncertainty", "laplace_uncertainty", "widened"]
