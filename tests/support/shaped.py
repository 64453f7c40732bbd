"""Small generators of targets that are not pictures: vectors, planes, audio, volumes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LATENT", "SHAPES", "shaped"]

LATENT = 6
SHAPES = {
    "vector": (40,),
    "plane": (7, 6),
    "audio": (2, 32),
    "volume": (1, 4, 4, 4),
}


class _Audio(nn.Module):
    """A latent to audio [B, 2, 32], by convolutions along time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT, 48),
            nn.Unflatten(1, (6, 8)),
            nn.Tanh(),
            nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv1d(4, 2, 3, padding=1, padding_mode="replicate"),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)


class _Volume(nn.Module):
    """A latent to volumes [B, 1, 4, 4, 4], by convolutions in space."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT, 64),
            nn.Unflatten(1, (8, 2, 2, 2)),
            nn.BatchNorm3d(8),
            nn.Tanh(),
            nn.ConvTranspose3d(8, 4, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(4, 1, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)


def shaped(name: str) -> nn.Module:
    """Return a seeded generator of targets of the shape ``SHAPES[name]``, from [B, LATENT]."""
    torch.manual_seed(0)
    generator: nn.Module
    if name == "audio":
        generator = _Audio()
    elif name == "volume":
        generator = _Volume()
    else:
        size = torch.Size(SHAPES[name]).numel()
        layers = [nn.Linear(LATENT, 24), nn.Tanh(), nn.Linear(24, size), nn.Tanh()]
        generator = nn.Sequential(*layers, nn.Unflatten(1, SHAPES[name]))
    with torch.no_grad():
        for parameter in generator.parameters():
            # So that values fill a good part of [-1, 1].
            parameter.mul_(2.0)
    return generator.eval()
