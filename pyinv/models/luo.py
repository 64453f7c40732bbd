"""The networks of Luo, Xu & Tang 2017, tables 3 to 6, at 64 pixels, and with one layer less at 32.

All kernels are 5x5 with stride 2, padded so that each convolution halves the size, rounded up, and
each up-convolution doubles it. Layers before batch norm have no bias. With the default w = 64, the
widths are the paper's.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = [
    "InverseGenerator",
    "LuoBiganDiscriminator",
    "LuoDiscriminator",
    "LuoGenerator",
]

_SMALLEST = 4
_JOINED = 8


class LuoGenerator(nn.Module):
    """Latent [B, d] -> image [B, C, S, S] in [0, 1]; table 3.

    With w the width, at 64 pixels:

    ==================================================== ====================
    layer                                                output
    ==================================================== ====================
    dense, batch norm, ReLU                              8w x 4 x 4
    up-convolution, batch norm, ReLU                     4w x 8 x 8
    up-convolution, batch norm, ReLU                     2w x 16 x 16
    up-convolution, batch norm, ReLU                     w x 32 x 32
    up-convolution, sigmoid                              C x 64 x 64
    ==================================================== ====================

    At 32 pixels the widest layer is left out: the dense layer's output is 4w x 4 x 4.

    Args:
        latent_size: d.
        image_size: S, 32 or 64.
        channels: C.
        width: w.
    """

    def __init__(
        self, latent_size: int = 100, image_size: int = 64, channels: int = 3, width: int = 64
    ) -> None:
        super().__init__()
        widths = _widths(image_size, width)[::-1]
        layers: list[nn.Module] = [
            nn.Linear(latent_size, widths[0] * _SMALLEST**2),
            nn.Unflatten(1, (widths[0], _SMALLEST, _SMALLEST)),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for before, after in pairwise(widths):
            layers += [_up(before, after, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, _up(width, channels, bias=True), nn.Sigmoid())

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image


class LuoDiscriminator(nn.Module):
    """Image [B, C, S, S] -> logit [B]; table 4.

    With w the width, at 64 pixels: four convolutions to w x 32 x 32, 2w x 16 x 16, 4w x 8 x 8 and
    8w x 4 x 4, each with batch norm and a leaky ReLU (0.2 as in Radford et al. 2016; the table does
    not specify it), and a dense layer. At 32 pixels the last convolution is left out. The sigmoid
    is part of the loss.

    Args:
        image_size: S, 32 or 64.
        channels: C.
        width: w.
    """

    def __init__(self, image_size: int = 64, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        widths = _widths(image_size, width)
        layers: list[nn.Module] = []
        for before, after in pairwise((channels, *widths)):
            layers += _down(before, after, nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(widths[-1] * _SMALLEST**2, 1), nn.Flatten(0)
        )

    def forward(self, image: Tensor) -> Tensor:
        logit: Tensor = self.layers(image)
        return logit


class InverseGenerator(nn.Module):
    """Image [B, C, H, W] -> [B, d], before the last activation; table 5.

    With w the width, at 64 pixels: four convolutions to w x 32 x 32, 2w x 16 x 16, 4w x 8 x 8 and
    8w x 4 x 4, each with batch norm and a ReLU, and a dense layer. For other sizes there are as
    many convolutions as needed to reach 4 pixels or fewer: three at 28 and 32 pixels. No layer is
    wider than 8w. The table's tanh depends on the latents' prior, so it is in ``Encoder``.

    Args:
        image_shape: (C, H, W).
        latent_size: d.
        width: w.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], latent_size: int = 100, width: int = 64
    ) -> None:
        super().__init__()
        channels, height, across = image_shape
        layers: list[nn.Module] = []
        after = width
        while max(height, across) > _SMALLEST or not layers:
            layers += _down(channels, after, nn.ReLU())
            height, across = (height + 1) // 2, (across + 1) // 2
            channels, after = after, min(2 * after, 8 * width)
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(channels * height * across, latent_size)
        )

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.layers(image)
        return found


class LuoBiganDiscriminator(nn.Module):
    """Image [B, C, S, S] and latent [B, d] -> logit [B], high for (x, E(x)); table 6.

    With w the width, at 64 pixels: convolutions to w x 32 x 32, 2w x 16 x 16 and 4w x 8 x 8; then
    the latent is concatenated to every pixel, (4w + d) x 8 x 8; three more convolutions to
    8w x 4 x 4, 8w x 2 x 2 and 8w x 1 x 1; and a dense layer. Each convolution has batch norm and a
    leaky ReLU (0.2). At 32 pixels the third is left out, and the last three are 4w wide. The
    sigmoid is part of the loss.

    Args:
        latent_size: d.
        image_size: S, 32 or 64.
        channels: C.
        width: w.
    """

    def __init__(
        self, latent_size: int = 100, image_size: int = 64, channels: int = 3, width: int = 64
    ) -> None:
        super().__init__()
        *widths, widest = _widths(image_size, width)
        layers: list[nn.Module] = []
        for before, after in pairwise((channels, *widths)):
            layers += _down(before, after, nn.LeakyReLU(0.2))
        self.of_image = nn.Sequential(*layers)
        joint: list[nn.Module] = []
        for before, after in pairwise((widths[-1] + latent_size, widest, widest, widest)):
            joint += _down(before, after, nn.LeakyReLU(0.2))
        self.of_both = nn.Sequential(*joint, nn.Flatten(), nn.Linear(widest, 1), nn.Flatten(0))

    def forward(self, image: Tensor, latent: Tensor) -> Tensor:
        seen = self.of_image(image)
        everywhere = latent[:, :, None, None].expand(-1, -1, _JOINED, _JOINED)
        logit: Tensor = self.of_both(torch.cat([seen, everywhere], 1))
        return logit


def _widths(image_size: int, width: int) -> list[int]:
    """Return the channels of the hidden layers, from half the image size to 4x4."""
    return [width * factor for factor in ((1, 2, 4, 8) if image_size == 64 else (1, 2, 4))]


def _up(before: int, after: int, *, bias: bool) -> nn.Module:
    return nn.ConvTranspose2d(before, after, 5, stride=2, padding=2, output_padding=1, bias=bias)


def _down(before: int, after: int, activation: nn.Module) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 5, stride=2, padding=2, bias=False)
    return [convolution, nn.BatchNorm2d(after), activation]
