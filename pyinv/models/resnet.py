"""A residual network of ResNet-18's depth, for images of any size."""

from __future__ import annotations

import math

from torch import Tensor, nn

__all__ = ["ResNetBody", "ResNetEncoder"]


class ResNetBody(nn.Module):
    """Image [B, C, H, W] -> features [B, channels, H', W'].

    A first convolution to w channels and four stages of two basic blocks. Each stage after the
    first halves the image and doubles the channels, as far as ``stride`` requires. A stride of 32
    is ResNet-18: its first convolution is 7x7 with stride 2, followed by a max pool. At a stride of
    8 the first convolution is 3x3 and preserves the size, as He et al. do for CIFAR-10.

    Source: He et al. 2016 (arXiv:1512.03385), table 1 and section 4.2.

    Args:
        image_shape: (C, H, W).
        width: w; ResNet-18's is 64.
        stride: H / H', a power of two, 1 to 32; by default 32 from 128 pixels on, and 8 below.

    Attributes:
        channels: channels of the features: 8w, or less if the stride is less than 8.
        stride: H' = H / stride, rounded up.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], width: int = 64, stride: int | None = None
    ) -> None:
        super().__init__()
        channels = image_shape[0]
        if stride is None:
            stride = 32 if min(image_shape[1:]) >= 128 else 8
        halvings = stride.bit_length() - 1
        size, first = (7, 2) if halvings > 3 else (3, 1)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, size, stride=first, padding=size // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        if halvings > 4:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        before = width
        for stage in range(4):
            factor = 2 if 0 < stage <= halvings else 1
            after = factor * before
            layers += [_Block(before, after, factor), _Block(after, after, 1)]
            before = after
        self.layers = nn.Sequential(*layers)
        self.channels = before
        self.stride = stride

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.layers(image)
        return features


class ResNetEncoder(nn.Module):
    """Image [B, C, H, W] -> [B, d]: ``ResNetBody`` and a dense layer.

    Args:
        image_shape: (C, H, W).
        latent_size: d.
        width: channels of the first layer.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], latent_size: int, width: int = 64
    ) -> None:
        super().__init__()
        self.body = ResNetBody(image_shape, width)
        pixels = math.prod(-(-size // self.body.stride) for size in image_shape[1:])
        # All pixels instead of their mean: a latent encodes positions.
        self.dense = nn.Linear(self.body.channels * pixels, latent_size)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.dense(self.body(image).flatten(1))
        return found


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential()
        if (before, stride) != (after, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.activation(self.layers(features) + self.shortcut(features))
        return found
