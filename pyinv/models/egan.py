"""Egan, Zhang & Shen's second generator, which ends in a pixel shuffle.

The first is a DCGAN, 512 x 4 x 4 to 64 x 32 x 32 at width 64 (section 4.1.2). Both are trained
against DCGAN's discriminator.
"""

from __future__ import annotations

from torch import nn

from pyinv.models.dcgan import DcganGenerator

__all__ = ["PixelShuffleGenerator"]


class PixelShuffleGenerator(DcganGenerator):
    """Latent [B, d] -> image [B, C, S, S] in [-1, 1].

    Like ``DcganGenerator`` except for the last hidden layer. With w the width, at 64 pixels:

    ========================================================== ====================
    layer                                                      output
    ========================================================== ====================
    as in ``DcganGenerator``                                   2w x 16 x 16
    convolution 3x3                                            4w x 16 x 16
    pixel shuffle by 2, batch norm, ReLU                       w x 32 x 32
    up-convolution 4x4, stride 2, tanh                         C x 64 x 64
    ========================================================== ====================

    Source: Egan et al. 2018, section 4.1.3; pixel shuffle: Shi et al. 2016 (arXiv:1609.05158).
    This is our interpretation. The paper replaces the fourth hidden layer's up-convolution with the
    shuffle and adapts the three layers before it, without saying how. Here those are unchanged, and
    a convolution produces the 4w channels that the shuffle needs. Its 3x3 kernel preserves the
    size.

    Arguments are as for ``DcganGenerator``.
    """

    def __init__(
        self, latent_size: int = 100, image_size: int = 64, channels: int = 1, width: int = 64
    ) -> None:
        self._shuffled = width
        super().__init__(latent_size, image_size, channels, width)

    def up(self, before: int, after: int) -> list[nn.Module]:
        """Return the layers that double the size, from ``before`` channels to ``after``."""
        if after != self._shuffled:
            return super().up(before, after)
        return [
            nn.Conv2d(before, 4 * after, 3, padding=1, bias=False),
            nn.PixelShuffle(2),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
