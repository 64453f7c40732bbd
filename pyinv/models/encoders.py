"""Encoders for any generator, with a network by name and an output layer to match the prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyinv.models.luo import InverseGenerator
from pyinv.models.resnet import ResNetEncoder
from pyinv.priors import Prior, Uniform

__all__ = ["Encoder", "make_encoder"]


class Encoder(nn.Module):
    """Image [B, C, H, W] in the value range -> latent [B, d], matching the prior.

    Images are mapped to [-1, 1] first. The network's output is mapped to the prior: for a uniform
    prior by a tanh scaled to [low, high], as in table 5 of Luo et al. 2017; for a normal one, which
    is unbounded, by multiplying by the standard deviation and adding the mean. For a generator that
    normalises its latent's length, the output is scaled to the prior's typical length, sqrt(d).

    Args:
        network: image [B, C, H, W] -> [B, d].
        prior: prior of the latents.
        value_range: value range of the images.
        unit_length: whether the generator normalises its latent's length.
    """

    def __init__(
        self,
        network: nn.Module,
        prior: Prior,
        value_range: tuple[float, float] = (-1.0, 1.0),
        unit_length: bool = False,
    ) -> None:
        super().__init__()
        low, high = value_range
        self.network = network
        self.middle, self.reach = (low + high) / 2, (high - low) / 2
        self.bounded = isinstance(prior, Uniform)
        self.mean = prior.mean
        self.scale = prior.std
        if isinstance(prior, Uniform) and not unit_length:
            self.scale = (prior.high - prior.low) / 2
        self.unit_length = unit_length

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.network((image - self.middle) / self.reach)
        if self.unit_length:
            square = (found * found).mean(1, keepdim=True)
            return found * torch.rsqrt(square + 1e-8) * self.scale
        if self.bounded:
            found = torch.tanh(found)
        return found * self.scale + self.mean


def make_encoder(
    image_shape: tuple[int, int, int],
    latent_size: int,
    *,
    prior: Prior,
    value_range: tuple[float, float] = (-1.0, 1.0),
    network: str = "auto",
    width: int = 64,
    unit_length: bool = False,
) -> Encoder:
    """Create an encoder for images of this shape, with PyTorch's default initial weights.

    Args:
        image_shape: (C, H, W), any.
        latent_size: d.
        prior: prior of the latents.
        value_range: value range of the images.
        network: "luo", "resnet", or "auto", which means "luo".
        width: channels of the first layer.
        unit_length: whether the generator normalises its latent's length.
    """
    layers: nn.Module
    if network == "resnet":
        layers = ResNetEncoder(image_shape, latent_size, width)
    else:
        layers = InverseGenerator(image_shape, latent_size, width)
    return Encoder(layers, prior, value_range, unit_length)
