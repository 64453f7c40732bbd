"""Encoders of a generator's layers: the inverses e_1, ..., e_k and e_F of Bau et al. 2019.

For a generator G(z) = G_F(g_k(... g_1(z))) with r_0 = z and r_i = g_i(r_{i-1}), e_i maps r_i to
r_{i-1}, and e_F an image to r_k. The layers are those of the authors' code (davidbau/ganseeing),
with channels and sizes taken from the activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyinv.errors import InputError
from pyinv.models.encoders import Encoder
from pyinv.models.progan import pixel_norm
from pyinv.models.resnet import ResNetBody
from pyinv.priors import Prior

__all__ = ["LayeredEncoder", "make_first_encoder", "make_layer_encoder", "make_tail_encoder"]

SLOPE = 0.2
_MOST_STRIDE = 32


class PixelNorm(nn.Module):
    """``pyinv.models.progan.pixel_norm`` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(x)


class _ToImage(nn.Module):
    """Activation [B, C, H, W] -> the one before it, [B, C', H', W'], which is not larger.

    Pixel norm, twice 3x3 convolution, batch norm and leaky ReLU, then 1x1 convolution: e_2 to e_4.
    """

    def __init__(
        self, after: tuple[int, int, int], before: tuple[int, int, int], *, normalizes: bool
    ) -> None:
        super().__init__()
        channels, stride = after[0], after[1] // before[1]
        # Large enough to cover every pixel if the generator's layer enlarges by more than 2.
        size = max(3, stride // 2 * 2 + 1)
        self.layers = nn.Sequential(
            *([PixelNorm()] if normalizes else []),
            nn.Conv2d(channels, channels, size, stride=stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(SLOPE),
        )
        self.last = nn.Conv2d(channels, before[0], 1)

    def forward(self, activation: Tensor) -> Tensor:
        found: Tensor = self.last(self.layers(activation))
        return found


class _ToVector(nn.Module):
    """Activation [B, C, H, W] or [B, C] -> vector, [B, *before].

    Pixel norm, a convolution over all pixels, batch norm, leaky ReLU, 1x1 convolution: e_1 without
    its last pixel norm.
    """

    def __init__(
        self, after: tuple[int, int, int], before: tuple[int, ...], *, normalizes: bool
    ) -> None:
        super().__init__()
        channels = after[0]
        self._after, self._before = after, before
        self.layers = nn.Sequential(
            *([PixelNorm()] if normalizes else []),
            nn.Conv2d(channels, channels, after[1:], bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(SLOPE),
        )
        self.last = nn.Conv2d(channels, math.prod(before), 1)

    def forward(self, activation: Tensor) -> Tensor:
        found: Tensor = self.last(self.layers(activation.reshape(-1, *self._after)))
        return found.reshape(-1, *self._before)


class _TailEncoder(nn.Module):
    """Image -> r_k: the encoder e_F, a residual network, a 1x1 convolution and a leaky ReLU."""

    def __init__(
        self,
        body: ResNetBody,
        last: nn.Conv2d,
        activation_shape: tuple[int, ...],
        value_range: tuple[float, float],
    ) -> None:
        super().__init__()
        low, high = value_range
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._shape = activation_shape
        self.body = body
        self.last = last
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, image: Tensor) -> Tensor:
        features = self.body((image - self._middle) / self._half)
        found: Tensor = self.activation(self.last(features))
        return found.reshape(-1, *self._shape)


class LayeredEncoder(nn.Module):
    """Image [B, C, H, W] -> latent [B, d]: E(x) = e_1(e_2(... e_k(e_F(x)))).

    Args:
        layers: e_1 to e_k.
        tail: e_F.

    Source: Bau et al. 2019, equation 9.
    """

    def __init__(self, layers: Sequence[nn.Module], tail: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.tail = tail

    def forward(self, image: Tensor) -> Tensor:
        return self.latent(self.tail(image))

    def latent(self, activation: Tensor) -> Tensor:
        """Return the latents [B, d] of activations r_k."""
        for layer in reversed(self.layers):
            activation = layer(activation)
        return activation.flatten(1)


def make_layer_encoder(
    before: tuple[int, ...], after: tuple[int, ...], *, normalizes: bool
) -> nn.Module:
    """Create e_i, [B, *after] -> [B, *before], for a generator layer from ``before`` to ``after``.

    If ``before`` is an image: pixel norm, twice 3x3 convolution, batch norm and leaky ReLU (0.2),
    then a 1x1 convolution. The first convolution's stride is the factor by which the layer
    enlarges. If ``before`` is a vector: pixel norm, a convolution over all pixels, batch norm,
    leaky ReLU, 1x1 convolution. Hidden layers have as many channels as r_i. The 1x1 convolution is
    called ``last``.

    Args:
        before: shape of r_{i-1}: (C, H, W), (C,) or (C, 1, 1).
        after: shape of r_i.
        normalizes: whether the generator's layers normalise the length of each pixel's vector. If
            not, the length may carry information, and the encoder has no pixel norm.

    Raises:
        InputError: activations of other ranks, or a layer that does not enlarge by a whole number.
    """
    seen = _as_image(after)
    if math.prod(before[1:]) == 1:
        return _ToVector(seen, before, normalizes=normalizes)
    if len(before) != 3:
        raise InputError(f"activations must be vectors or images, got the shape {list(before)}")
    whole = [a % b == 0 for a, b in zip(seen[1:], before[1:], strict=True)]
    ratios = {a // b for a, b in zip(seen[1:], before[1:], strict=True)}
    if len(ratios) > 1 or not all(whole):
        raise InputError(
            "a layer must enlarge height and width by the same whole number, got one from "
            f"{list(before)} to {list(after)}; cut the generator elsewhere"
        )
    return _ToImage(seen, (before[0], before[1], before[2]), normalizes=normalizes)


def make_first_encoder(
    latent_size: int, after: tuple[int, ...], prior: Prior, *, normalizes: bool
) -> nn.Module:
    """Create e_1, [B, *after] -> latent [B, d].

    It is the output of ``make_layer_encoder`` with the output layer of ``Encoder``: pixel norm for
    a generator that normalises its latent, a tanh over the interval of a uniform prior.
    """
    layers = make_layer_encoder((latent_size,), after, normalizes=normalizes)
    return Encoder(layers, prior, unit_length=normalizes)


def make_tail_encoder(
    image_shape: tuple[int, int, int],
    activation_shape: tuple[int, ...],
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    width: int = 64,
) -> nn.Module:
    """Create e_F, image [B, C, H, W] -> r_k [B, *activation_shape].

    A residual network of ResNet-18's depth that reduces the image to the size of r_k, a 1x1
    convolution (over all pixels, if r_k is a vector) and a leaky ReLU (0.2). For images of 256
    pixels and an r_k of 512 x 8 x 8 this is ResNet-18, at width 64.

    Args:
        image_shape: (C, H, W).
        activation_shape: shape of r_k.
        value_range: value range of the images.
        width: channels of the residual network's first layer.

    Raises:
        InputError: r_k is neither a vector nor an image that is smaller by a power of two, 1 to 32.
    """
    if math.prod(activation_shape[1:]) == 1:
        body = ResNetBody(image_shape, width)
        size = [-(-edge // body.stride) for edge in image_shape[1:]]
        last = nn.Conv2d(body.channels, activation_shape[0], (size[0], size[1]))
        return _TailEncoder(body, last, activation_shape, value_range)
    ratio = image_shape[1] // activation_shape[1]
    scaled = tuple(ratio * edge for edge in activation_shape[1:])
    if scaled != image_shape[1:] or ratio & (ratio - 1) or ratio > _MOST_STRIDE:
        raise InputError(
            f"the last layer's activation must be smaller than the image by a power of two up to "
            f"{_MOST_STRIDE}, got {list(activation_shape)} for images of {list(image_shape)}; cut "
            "the generator elsewhere"
        )
    body = ResNetBody(image_shape, width, stride=ratio)
    last = nn.Conv2d(body.channels, activation_shape[0], 1)
    return _TailEncoder(body, last, activation_shape, value_range)


def _as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) == 1:
        return shape[0], 1, 1
    if len(shape) != 3:
        raise InputError(f"activations must be vectors or images, got the shape {list(shape)}")
    return shape[0], shape[1], shape[2]
