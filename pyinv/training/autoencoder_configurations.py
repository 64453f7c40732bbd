"""Autoencoder training configurations by name. Needs no PyTorch."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyinv.errors import InputError
from pyinv.training.settings import Settings

__all__ = [
    "AUTOENCODER_CONFIGURATIONS",
    "AutoencoderConfiguration",
    "get_autoencoder_configuration",
]


@dataclass(frozen=True)
class AutoencoderConfiguration(Settings):
    """All settings that determine an autoencoder, apart from data and machine.

    Args:
        name: name of the configuration.
        image_shape: (C, H, W), with H and W multiples of ``factor``.
        latent_channels: channels of a latent.
        factor: f; a latent has H/f x W/f positions. A power of two, 2 to 32.
        width: channels of the layers next to the image, a multiple of 4.
        divergence_weight: weight of the KL divergence to N(0, 1), above 0.
        batch_size: images per iteration.
        iterations: training steps.
        learning_rate: Adam's learning rate.
        averaging: decay per iteration of the average of the weights, which is exported.
        seed: random seed.
        source: where the settings come from.

    Raises:
        InputError: an invalid value.
    """

    name: str
    image_shape: tuple[int, int, int]
    latent_channels: int = 4
    factor: int = 4
    width: int = 16
    divergence_weight: float = 1e-6
    batch_size: int = 16
    iterations: int = 2000
    learning_rate: float = 1e-3
    averaging: float = 0.995
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        self._count("factor", 2, 32)
        if self.factor.bit_count() != 1:
            raise InputError(f"factor must be a power of two such as 4 or 8, got {self.factor}")
        try:
            shape = tuple(operator.index(size) for size in self.image_shape)
        except TypeError:
            shape = ()
        if len(shape) != 3 or min(shape) < 1 or any(size % self.factor for size in shape[1:]):
            raise InputError(
                "image_shape must be (channels, height, width), height and width multiples of "
                f"{self.factor}, got {self.image_shape!r}"
            )
        self._set("image_shape", shape)
        self._count("latent_channels", 1)
        self._count("width", 4)
        if self.width % 4:
            raise InputError(f"width must be a multiple of 4, got {self.width}")
        self._number("divergence_weight", above=0)
        self._count("batch_size", 1)
        self._count("iterations", 1)
        self._number("learning_rate", above=0)
        self._number("averaging", at_least=0, below=1)
        self._count("seed", 0, 2**63 - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent."""
        _, height, width = self.image_shape
        return self.latent_channels, height // self.factor, width // self.factor

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON values, for ``from_description``."""
        return {**dataclasses.asdict(self), "image_shape": list(self.image_shape)}

    @classmethod
    def _read(cls, described: Mapping[str, Any]) -> dict[str, Any]:
        return {**described, "image_shape": tuple(described["image_shape"])}


def get_autoencoder_configuration(name: str) -> AutoencoderConfiguration:
    """Return the configuration of this name; raise InputError if there is none."""
    if name not in AUTOENCODER_CONFIGURATIONS:
        known = ", ".join(AUTOENCODER_CONFIGURATIONS)
        raise InputError(f"configuration must be one of {known}; got {name!r}")
    return AUTOENCODER_CONFIGURATIONS[name]


AUTOENCODER_CONFIGURATIONS: dict[str, AutoencoderConfiguration] = {
    configuration.name: configuration
    for configuration in (
        AutoencoderConfiguration(
            "kl-f4-32",
            (3, 32, 32),
            source="Rombach et al. 2022, appendix G, without the perceptual loss and the "
            "discriminator; 32 pixels, an eighth of the channels and few iterations, to be quick",
        ),
    )
}
"""Every named configuration."""
