"""Encoders of any generator's images: the layers by name, the ending by the latents' prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyinv.models.luo import InverseGenerator
from pyinv.models.resnet import ResNetEncoder
from pyinv.priors import Prior, Uniform

__all__ = ["Encoder", "make_encoder"]


class Encoder(nn.Module):
    """Image [B, C, H, W] in the value range -> latent [B, d], of the prior's kind.

    Images are mapped to [-1, 1] first. What the network returns is mapped to the prior: for a
    uniform one by a tanh that is scaled to [low, high], as in table 5 of Luo et al. 2017; a normal
    one is unbounded, so there it is times the deviation, plus the mean. For a generator that takes
    away the latent's length it is scaled to the length that is usual for the prior, sqrt(d).

    Args:
        network: image [B, C, H, W] -> [B, d].
        prior: the latents'.
        value_range: the images'.
        unit_length: whether the generator takes away the latent's length.
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
    """Return an encoder of images of this shape, with first weights as PyTorch draws them.

    Args:
        image_shape: (C, H, W), any.
        latent_size: d.
        prior: the latents'.
        value_range: the images'.
        network: "luo", "resnet", or "auto", which is "luo".
        width: channels of the first layer.
        unit_length: whether the generator takes away the latent's length.
    """
    layers: nn.Module
    if network == "resnet":
        layers = ResNetEncoder(image_shape, latent_size, width)
    else:
        layers = InverseGenerator(image_shape, latent_size, width)
    return Encoder(layers, prior, value_range, unit_length)
