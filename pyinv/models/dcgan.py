"""DCGAN: the networks of Radford, Metz & Chintala 2016 at 32 and 64 pixels."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["DcganDiscriminator", "DcganGenerator"]


class DcganGenerator(nn.Module):
    """Latent [B, d] -> image [B, C, S, S] in [-1, 1].

    With w the width, at 64 pixels (w = 64 by default):

    ========================================================== ====================
    layer                                                      output
    ========================================================== ====================
    up-convolution 4x4 of a 1x1 image, batch norm, ReLU        8w x 4 x 4
    up-convolution 4x4, stride 2, batch norm, ReLU             4w x 8 x 8
    up-convolution 4x4, stride 2, batch norm, ReLU             2w x 16 x 16
    up-convolution 4x4, stride 2, batch norm, ReLU             w x 32 x 32
    up-convolution 4x4, stride 2, tanh                         C x 64 x 64
    ========================================================== ====================

    At 32 pixels the widest layer is left out: 4w x 4 x 4, 2w x 8 x 8, w x 16 x 16, C x 32 x 32.

    Source: Radford et al. 2016 (arXiv:1511.06434), figure 1, there with w = 128; Amos 2016, whose
    code Lipton & Tripathi use, has w = 64. Both have 5x5 kernels. These are 4x4, as in PyTorch's
    DCGAN example: as a multiple of the stride, every pixel is the sum of equally many terms, with
    two thirds of the arithmetic.

    Args:
        latent_size: d.
        image_size: S, 32 or 64.
        channels: C.
        width: w.
    """

    def __init__(
        self, latent_size: int = 100, image_size: int = 64, channels: int = 1, width: int = 64
    ) -> None:
        super().__init__()
        widths = _widths(image_size, width)
        layers: list[nn.Module] = [
            nn.Unflatten(1, (latent_size, 1, 1)),
            nn.ConvTranspose2d(latent_size, widths[0], 4, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for before, after in pairwise(widths):
            layers += self.up(before, after)
        layers += [nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def up(self, before: int, after: int) -> list[nn.Module]:
        """Return the layers that double the size, from ``before`` channels to ``after``."""
        return [
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image


class DcganDiscriminator(nn.Module):
    """Image [B, C, S, S] in [-1, 1] -> logit [B].

    With w the width, at 64 pixels (w = 64 by default):

    ========================================================== ====================
    layer                                                      output
    ========================================================== ====================
    convolution 4x4, stride 2, leaky ReLU (0.2)                w x 32 x 32
    convolution 4x4, stride 2, batch norm, leaky ReLU (0.2)    2w x 16 x 16
    convolution 4x4, stride 2, batch norm, leaky ReLU (0.2)    4w x 8 x 8
    convolution 4x4, stride 2, batch norm, leaky ReLU (0.2)    8w x 4 x 4
    convolution 4x4                                            1
    ========================================================== ====================

    At 32 pixels the widest layer is left out. The sigmoid is part of the loss. Source: as for
    ``DcganGenerator``.

    Args:
        image_size: S, 32 or 64.
        channels: C.
        width: w.
    """

    def __init__(self, image_size: int = 64, channels: int = 1, width: int = 64) -> None:
        super().__init__()
        widths = _widths(image_size, width)[::-1]
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2),
        ]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, bias=False), nn.Flatten(0))

    def forward(self, image: Tensor) -> Tensor:
        logit: Tensor = self.layers(image)
        return logit


def _widths(image_size: int, width: int) -> list[int]:
    """Return the channels of the generator's hidden layers, from 4x4 to half the image size."""
    return [width * factor for factor in ((8, 4, 2, 1) if image_size == 64 else (4, 2, 1))]
