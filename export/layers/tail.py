"""A generator's tail: what follows its first layers, with latents of mean 0 and deviation 1.

Source: Bau et al. 2019, equation 1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyinv.bundle import Bundle
from pyinv.errors import InputError

__all__ = ["ORIGIN", "StandardisedTail", "TailScale"]

# The entry of a manifest's origin that records how a bundle's generator was cut.
ORIGIN = "layers"


@dataclass(frozen=True)
class TailScale:
    """The scale of a tail's activations: r_k = mean + std * u, per channel.

    Args:
        mean: the mean of r_k over samples of z, [C].
        std: its standard deviation, [C], above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, bundle: Bundle | str | os.PathLike[str]) -> TailScale:
        """Return the scale of a bundle that ``Layers.export_tail`` wrote.

        Raises:
            InputError: the bundle was not written by ``Layers.export_tail``.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        described = opened.manifest.origin.get(ORIGIN)
        if not isinstance(described, dict) or described.get("kind") != "tail":
            raise InputError(
                f"{opened.path} is not a generator's tail: Layers.export_tail makes one"
            )
        return cls(tuple(described["mean"]), tuple(described["std"]))

    def describe(self) -> dict[str, Any]:
        """Return mean and std as JSON values."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def activation_of(self, latent: Any) -> Any:
        """Return r_k for latents u, both [N, C, ...]; NumPy for NumPy, PyTorch for PyTorch."""
        mean, std = self._like(latent)
        return mean + std * latent

    def latent_of(self, activation: Any) -> Any:
        """Return u for activations r_k, both [N, C, ...]; NumPy for NumPy, PyTorch for PyTorch."""
        mean, std = self._like(activation)
        return (activation - mean) / std

    def _like(self, values: Any) -> tuple[Any, Any]:
        if values.ndim < 2 or values.shape[1] != len(self.mean):
            raise InputError(
                f"expected values [N, {len(self.mean)}, ...], got {list(values.shape)}"
            )
        shape = (1, -1) + (1,) * (values.ndim - 2)
        if isinstance(values, Tensor):
            return values.new_tensor(self.mean).view(shape), values.new_tensor(self.std).view(shape)
        mean, std = (np.asarray(x, dtype=values.dtype) for x in (self.mean, self.std))
        return mean.reshape(shape), std.reshape(shape)


class StandardisedTail(nn.Module):
    """Latent u [B, C, ...] -> image G_F(mean + std * u); mean and std are buffers.

    Attributes:
        shape: the shape of r_k and u, without the batch axis.
        scale: converts between u and r_k.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tail: nn.Module, shape: tuple[int, ...], mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.tail = tail
        self.shape = shape
        self.scale = TailScale(tuple(mean.tolist()), tuple(std.tolist()))
        channelwise = (1, -1) + (1,) * (len(shape) - 1)
        self.register_buffer("mean", mean.reshape(channelwise))
        self.register_buffer("std", std.reshape(channelwise))

    def forward(self, latent: Tensor) -> Tensor:
        """Return images [B, ...]."""
        image: Tensor = self.tail(self.mean + self.std * latent)
        return image
