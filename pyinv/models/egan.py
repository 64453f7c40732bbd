"""Egan, Zhang & Shen's two generators: a DCGAN, and one that ends in a pixel shuffle.

Both are trained against DCGAN's discriminator.
"""

from __future__ import annotations

from torch import nn

from pyinv.models.dcgan import DcganGenerator, make_discriminator

__all__ = ["PixelShuffleGenerator", "make_discriminator", "make_generator"]


class PixelShuffleGenerator(DcganGenerator):
    """Latent [B, d] -> image [B, C, S, S] in [-1, 1].

    ``DcganGenerator``, but for the last hidden layer. With w the width, at 64 pixels:

    ========================================================== ====================
    layer                                                      output
    ========================================================== ====================
    as in ``DcganGenerator``                                   2w x 16 x 16
    convolution 3x3                                            4w x 16 x 16
    pixel shuffle by 2, batch norm, ReLU                       w x 32 x 32
    up-convolution 4x4, stride 2, tanh                         C x 64 x 64
    ========================================================== ====================

    Source: Egan et al. 2018, section 4.1.3; pixel shuffle: Shi et al. 2016 (arXiv:1609.05158).
    This is a reading of it. The paper puts the shuffle in the place of the fourth hidden layer's
    up-convolution and adapts the three before it, without saying how; here these are as they
    were, and a convolution makes the 4w channels that the shuffle takes. Its kernel of 3x3 keeps
    the size.

    Arguments are those of ``DcganGenerator``.
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


def make_generator(
    name: str, latent_size: int, image_shape: tuple[int, int, int], *, width: int
) -> DcganGenerator:
    """Return the generator of the model of this name.

    "egan" is the basic one, 512 x 4 x 4 to 64 x 32 x 32 at width 64 (section 4.1.2): a
    ``DcganGenerator``. Against its list of layers, which begins at the second, the first is the
    one of PyTorch's example that the paper builds on.
    """
    channels, size, _ = image_shape
    kind = PixelShuffleGenerator if name == "egan-pixel-shuffle" else DcganGenerator
    return kind(latent_size, size, channels, width)
