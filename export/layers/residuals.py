"""Residuals added between a generator's layers: Bau et al. 2019, equations 10 to 12."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyinv.errors import ExportError, InputError

if TYPE_CHECKING:
    from .layers import Layers

__all__ = ["ResidualGenerator"]


class ResidualGenerator(nn.Module):
    r"""(u [B, d], z_0 [B, *latent_shape] or [B, size]) -> image, Bau's method (f).

    $$
    r_1 = g_1(z_0), \quad r_{i+1} = g_{i+1}(\delta_i + r_i), \quad x = G_F(r_k)
    $$

    u is the concatenation of the scaled residuals: $\delta_i$ is scale_i times its part of u.
    With n_i components in $\delta_i$ and $d = \sum_i n_i$,

    $$
    \text{scale}_i = \sqrt{\frac{n_i}{2 d \lambda_i}}
    \quad\Rightarrow\quad \frac{1}{d} \sum_j \frac{u_j^2}{2}
    = \sum_i \lambda_i \operatorname{mean}(\delta_i^2)
    $$

    whose left side is ``PriorPenalty(1.0)`` under the prior Normal(0, 1). An Adam step that moves
    components of u by the learning rate moves those of $\delta_i$ by scale_i times as much.

    Attributes:
        latent_shape: the shape of z_0.
        shapes: the shape of each residual, without the batch axis.
        latent_size: d.
        weights: the lambda_i.
        scales: the scale_i.

    Source: Bau et al. 2019, equations 11 and 12; the mean in place of the sum of squares follows
    the authors' code.
    """

    def __init__(
        self, layers: Layers, latent_shape: tuple[int, ...], weights: float | Sequence[float]
    ) -> None:
        super().__init__()
        if len(layers.layers) < 2:
            raise ExportError(
                "residuals are added between layers, and this generator is cut after "
                f"{layers.names[0]!r} alone: name two layers or more"
            )
        self.latent_shape = latent_shape
        self.shapes = layers.shapes(latent_shape)[:-1]
        self._sizes = [math.prod(shape) for shape in self.shapes]
        self.latent_size = sum(self._sizes)
        self.weights = _weights(weights, len(self._sizes))
        self.scales = tuple(
            math.sqrt(size / (2 * self.latent_size * weight))
            for size, weight in zip(self._sizes, self.weights, strict=True)
        )
        self.layers = nn.ModuleList(layers.layers)
        self.tail = layers.tail

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Return images [B, ...] of scaled residuals and z_0."""
        image: Tensor = self.tail(self._last(latent, condition))
        return image

    def residuals_of(self, latent: Any) -> list[Any]:
        """Return the residuals of latents u [N, d], each [N, *shape_i].

        NumPy for NumPy, PyTorch for PyTorch.

        Raises:
            InputError: the latents have a different size.
        """
        if latent.ndim != 2 or latent.shape[1] != self.latent_size:
            raise InputError(f"expected latents [N, {self.latent_size}], got {list(latent.shape)}")
        return self._residuals(latent)

    def latent_of(self, residuals: Sequence[Any]) -> Any:
        """Return the latents u [N, d] of residuals [N, *shape_i]; the inverse of ``residuals_of``.

        Raises:
            InputError: the residuals have different shapes.
        """
        got = [tuple(residual.shape[1:]) for residual in residuals]
        if got != self.shapes:
            raise InputError(f"expected residuals of shapes {self.shapes}, got {got}")
        flat = [
            residual.reshape(len(residual), -1) / scale
            for residual, scale in zip(residuals, self.scales, strict=True)
        ]
        return torch.cat(flat, 1) if isinstance(flat[0], Tensor) else np.concatenate(flat, 1)

    def activation_of(self, latent: Any, z_0: Any) -> Any:
        """Return r_k of latents u [N, d] and z_0 [N, *latent_shape] or [N, size].

        NumPy for NumPy, PyTorch for PyTorch.
        """
        if isinstance(latent, Tensor):
            return self._last(latent, z_0)
        with torch.no_grad():
            tensors = (torch.as_tensor(np.asarray(x, np.float32)) for x in (latent, z_0))
            return self._last(*tensors).numpy()

    def _residuals(self, latent: Any) -> list[Any]:
        residuals = []
        start = 0
        for shape, size, scale in zip(self.shapes, self._sizes, self.scales, strict=True):
            part = latent[:, start : start + size]
            residuals.append(part.reshape(-1, *shape) * scale)
            start += size
        return residuals

    def _last(self, latent: Tensor, z_0: Tensor) -> Tensor:
        r: Tensor = self.layers[0](z_0.reshape(-1, *self.latent_shape))
        for residual, layer in zip(self._residuals(latent), self.layers[1:], strict=True):
            r = layer(residual + r)
        return r


def _weights(weights: float | Sequence[float], count: int) -> tuple[float, ...]:
    try:
        given = [float(x) for x in weights] if isinstance(weights, Iterable) else [float(weights)]
    except (TypeError, ValueError):
        given = []
    if len(given) == 1:
        given *= count
    if len(given) != count or not all(math.isfinite(x) and x > 0 for x in given):
        raise ExportError(
            f"weights must be one number above 0, or {count}, one for each residual; got "
            f"{weights!r}"
        )
    return tuple(given)
