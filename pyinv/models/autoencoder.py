"""The autoencoder of latent diffusion: images to latents that are smaller images, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Autoencoder", "LatentDecoder", "LatentEncoder"]

_NORM_CHANNELS = 4  # per group of group norm; LDM has 32 groups of 4 channels at 128 channels


class Autoencoder(nn.Module):
    """A KL-regularized autoencoder: image [B, C, H, W] -> latent [B, c, H/f, W/f] -> image.

    Residual blocks of group norm, SiLU and 3x3 convolutions, with self-attention at the smallest
    size. Each of log2(f) levels halves the image, and doubles the channels up to 4 times
    ``width``. The decoder has one block more per level than the encoder, and ends in no activation.

    Source: Rombach et al. 2022, section 3.1 and appendix G; the layers are those of Esser et al.
    2021, table 7, with one block per level instead of two.

    Args:
        channels: C.
        latent_channels: c.
        factor: f, a power of two.
        width: channels of the layers next to the image, a multiple of 4; 128 in the paper.

    Attributes:
        mean, std: mean and standard deviation of each latent channel, [c]; 0 and 1 until they are
            measured. ``LatentEncoder`` and ``LatentDecoder`` normalize latents with them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, channels: int = 3, latent_channels: int = 4, factor: int = 4, width: int = 16
    ) -> None:
        super().__init__()
        widths = [width * min(4, 2**level) for level in range(factor.bit_length())]
        down: list[nn.Module] = [_convolution(channels, width)]
        before = width
        for level, after in enumerate(widths):
            down.append(_ResidualBlock(before, after))
            if level < len(widths) - 1:
                down.append(_convolution(after, after, stride=2))
            before = after
        self.encoder = nn.Sequential(
            *down, *_middle(before), *_head(before, 2 * latent_channels), _Split()
        )
        up: list[nn.Module] = [_convolution(latent_channels, before), *_middle(before)]
        for level, after in reversed(list(enumerate(widths))):
            up += [_ResidualBlock(before, after), _ResidualBlock(after, after)]
            if level > 0:
                up += [nn.Upsample(scale_factor=2), _convolution(after, after)]
            before = after
        self.decoder = nn.Sequential(*up, *_head(before, channels))
        self.register_buffer("mean", torch.zeros(latent_channels))
        self.register_buffer("std", torch.ones(latent_channels))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z|x), [B, c, H/f, W/f] each."""
        found: tuple[Tensor, Tensor] = self.encoder(image)
        return found

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image of a latent that is not normalized, [B, C, H, W]."""
        image: Tensor = self.decoder(latent)
        return image


class LatentDecoder(nn.Module):
    """The generator: latent [B, c, h, w] with components of mean 0 and variance 1 -> image.

    Pixels are clipped to [-1, 1], as when an image is saved. A pixel that is clipped in the target
    then has a residual only on the inner side.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent: Tensor) -> Tensor:
        mean, std = self.autoencoder.mean[:, None, None], self.autoencoder.std[:, None, None]
        return self.autoencoder.decode(latent * std + mean).clamp(-1.0, 1.0)


class LatentEncoder(nn.Module):
    """The encoder for ``LatentDecoder``: image -> the mean of q(z|x), normalized."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor) -> Tensor:
        mean, std = self.autoencoder.mean[:, None, None], self.autoencoder.std[:, None, None]
        return (self.autoencoder.encode(image)[0] - mean) / std


class _Split(nn.Module):
    """[B, 2c, h, w] -> mean and log variance; the latter is clipped to [-30, 20], as in LDM."""

    def forward(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)


class _ResidualBlock(nn.Module):
    """x + convolutions of x, with a 1x1 convolution on the shortcut if the channels change."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_head(before, after), *_head(after, after))
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.shortcut(features) + self.layers(features)
        return changed


class _Attention(nn.Module):
    """Self-attention with one head over all positions, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.projections = nn.Conv2d(channels, 3 * channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        projected = self.projections(self.norm(features)).flatten(2)
        query, key, value = projected.chunk(3, dim=1)  # [B, channels, positions] each
        weights = functional.softmax(query.transpose(1, 2) @ key / math.sqrt(channels), dim=2)
        mixed = value @ weights.transpose(1, 2)
        attended: Tensor = self.output(mixed.reshape(batch, channels, height, width))
        return features + attended


def _middle(channels: int) -> list[nn.Module]:
    return [
        _ResidualBlock(channels, channels),
        _Attention(channels),
        _ResidualBlock(channels, channels),
    ]


def _head(before: int, after: int) -> list[nn.Module]:
    return [_norm(before), nn.SiLU(), _convolution(before, after)]


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // _NORM_CHANNELS, channels, eps=1e-6)


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1)
