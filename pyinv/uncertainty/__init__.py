"""Uncertainty: how far the true latent of an image may be from the one that was found.

It is estimated from the pixel residual's Jacobian at the latent, the noise of the image, and other
latents that fit the image equally well. docs/uncertainty.md has the derivation and says when the
estimates can be trusted. The public interface is ``pyinv.Inverter.uncertainty``.
"""

from pyinv.uncertainty.laplace import FLOAT32_ROUNDING, TF32_ROUNDING, laplace_uncertainty
from pyinv.uncertainty.mixture import widened
from pyinv.uncertainty.result import Uncertainty

__all__ = ["FLOAT32_ROUNDING", "TF32_ROUNDING", "Uncertainty", "laplace_uncertainty", "widened"]
