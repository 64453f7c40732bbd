"""Progressive GAN: the networks of Karras et al. 2018, as Bau et al. 2019 use them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "GrowingDiscriminator",
    "GrowingGenerator",
    "ProGanDiscriminator",
    "ProGanGenerator",
    "growing",
    "pixel_norm",
]

SLOPE = 0.2
SMALLEST = 4
# Keeps the root and its derivative finite at 0 (Karras et al. 2018, section 4.2).
EPSILON = 1e-8


def pixel_norm(x: Tensor) -> Tensor:
    r"""Divide each pixel's vector of channels by its root mean square.

    $$
    b = a / \sqrt{\tfrac1C \sum_j a_j^2 + 10^{-8}}
    $$

    Zero vectors stay zero. Source: Karras et al. 2018 (arXiv:1710.10196), section 4.2.

    Args:
        x: [B, C] or [B, C, H, W].
    """
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPSILON)


class EqualizedConv2d(nn.Module):
    r"""A convolution whose weights are stored with unit variance and scaled at runtime.

    The scale is that of He et al. 2015, ``gain`` / sqrt(C k k). Adam's steps do not depend on the
    gradient's magnitude, so all layers then learn equally fast. Source: Karras et al. 2018, section
    4.1.

    Args:
        before: C, channels of the input.
        after: channels of the output.
        kernel: k.
        padding: zeros on each side.
        gain: sqrt(2) if a rectifier follows, otherwise 1.
        bias: whether to add a bias per output channel.
    """

    weight_std = 1.0
    """Initial standard deviation of the weights."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        *,
        padding: int = 0,
        gain: float = math.sqrt(2),
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None
        self.padding = padding
        self.scale = gain / math.sqrt(before * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class EqualizedConvTranspose2d(EqualizedConv2d):
    """A transposed convolution from 1x1 to k x k pixels, each the sum of C products."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__(before, after, kernel)
        self.weight = nn.Parameter(torch.randn(before, after, kernel, kernel))
        self.scale = math.sqrt(2 / before)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv_transpose2d(x, self.weight * self.scale, self.bias)


class FirstLayer(nn.Module):
    """Latent [B, d] -> pixel norm, 4x4 convolution, leaky ReLU -> [B, C, 4, 4]."""

    def __init__(self, latent_size: int, after: int) -> None:
        super().__init__()
        self.convolution = EqualizedConvTranspose2d(latent_size, after, SMALLEST)

    def forward(self, latent: Tensor) -> Tensor:
        x = pixel_norm(latent.reshape(latent.shape[0], -1, 1, 1))
        return functional.leaky_relu(self.convolution(x), SLOPE)


class Layer(nn.Module):
    """Pixel norm, upsampling by 2 if ``doubles``, 3x3 convolution, leaky ReLU."""

    def __init__(self, before: int, after: int, *, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.convolution = EqualizedConv2d(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_norm(x)
        if self.doubles:
            x = _doubled(x)
        return functional.leaky_relu(self.convolution(x), SLOPE)


class Output(nn.Module):
    """Pixel norm and a 1x1 convolution to an image."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.convolution = EqualizedConv2d(before, channels, 1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.convolution(pixel_norm(x))
        return image


class ProGanGenerator(nn.Module):
    """Latent [B, d] -> image [B, C, S, S], trained on images in [-1, 1] but not bounded to them.

    A chain of ``layer1`` ... ``layer2n`` and ``output``, two layers for each of the n sizes 4, 8,
    ..., S. Each begins with pixel norm, including the first, so an image does not depend on the
    length of its latent. With w the width:

    ============ ==================================================== ==================
    layer        what it does                                         output
    ============ ==================================================== ==================
    ``layer1``   pixel norm, 4x4 convolution, leaky ReLU (0.2)        c(4) x 4 x 4
    ``layer2``   pixel norm, 3x3 convolution, leaky ReLU              c(4) x 4 x 4
    ``layer3``   pixel norm, up by 2, 3x3 convolution, leaky ReLU     c(8) x 8 x 8
    ``layer4``   pixel norm, 3x3 convolution, leaky ReLU              c(8) x 8 x 8
    ...          likewise up to S, where c(S) = w                     w x S x S
    ``output``   pixel norm, 1x1 convolution                          C x S x S
    ============ ==================================================== ==================

    c doubles with each halving of the size, up to 8w if S is 256 and 4w if it is less. At 256
    pixels and w = 64 these are the 512, 512, 512, 512, 256, 128, 64 channels of the paper, in 15
    convolutions.

    Source: Karras et al. 2018 (arXiv:1710.10196), table 2 and section 4. There pixel norm follows
    each leaky ReLU. Moving it to the start of the next layer gives the same function, and follows
    Bau et al. 2019, section 3.2, so that r_i is the output of ``layer``\\ i.

    Args:
        latent_size: d.
        image_size: S, a power of two from 8.
        channels: C.
        width: w.
    """

    normalizes_latent = True
    """The image is independent of the latent's length."""

    def __init__(
        self, latent_size: int = 512, image_size: int = 256, channels: int = 3, width: int = 64
    ) -> None:
        super().__init__()
        before = 0
        self.sizes = _sizes(image_size)
        for stage, after in enumerate(_widths(image_size, width)):
            first = Layer(before, after, doubles=True) if stage else FirstLayer(latent_size, after)
            self.add_module(f"layer{2 * stage + 1}", first)
            self.add_module(f"layer{2 * stage + 2}", Layer(after, after, doubles=False))
            before = after
        self.output = Output(before, channels)

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Apply the two layers of one size; stage 0 takes latents."""
        for layer in (2 * number + 1, 2 * number + 2):
            x = self.get_submodule(f"layer{layer}")(x)
        return x

    def forward(self, latent: Tensor) -> Tensor:
        x = latent
        for number in range(len(self.sizes)):
            x = self.stage(number, x)
        image: Tensor = self.output(x)
        return image


class Block(nn.Module):
    """Two 3x3 convolutions, each with leaky ReLU, and downsampling by 2."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution1 = EqualizedConv2d(before, before, 3, padding=1)
        self.convolution2 = EqualizedConv2d(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.convolution1, self.convolution2):
            x = functional.leaky_relu(convolution(x), SLOPE)
        return _halved(x)


class Input(nn.Module):
    """Image -> 1x1 convolution, leaky ReLU."""

    def __init__(self, channels: int, after: int) -> None:
        super().__init__()
        self.convolution = EqualizedConv2d(channels, after, 1)

    def forward(self, image: Tensor) -> Tensor:
        return functional.leaky_relu(self.convolution(image), SLOPE)


class LastBlock(nn.Module):
    """[B, C, 4, 4] -> logit [B], with the spread over the batch as an additional channel.

    The channel is the standard deviation over the batch, averaged over channels and pixels.
    Source: Karras et al. 2018, section 3.
    """

    def __init__(self, before: int) -> None:
        super().__init__()
        self.convolution1 = EqualizedConv2d(before + 1, before, 3, padding=1)
        self.convolution2 = EqualizedConv2d(before, before, SMALLEST)
        self.logit = EqualizedConv2d(before, 1, 1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        spread = torch.sqrt(x.var(0, correction=0) + EPSILON).mean()
        x = torch.cat([x, spread.expand(x.shape[0], 1, *x.shape[2:])], dim=1)
        for convolution in (self.convolution1, self.convolution2):
            x = functional.leaky_relu(convolution(x), SLOPE)
        logit: Tensor = self.logit(x)
        return logit.reshape(-1)


class ProGanDiscriminator(nn.Module):
    """Image [B, C, S, S] -> logit [B], which depends on the other images of the batch.

    It has the generator's sizes and channels c in reverse: a 1x1 convolution to w channels; for
    each size from S to 8 a 3x3 convolution, another to the next size's channels and an average over
    2x2 pixels; at 4x4 the standard deviation over the batch, a 3x3 convolution, a 4x4 convolution
    and a dense layer. All but the last have leaky ReLU (0.2); there is no pixel norm. Source:
    Karras et al. 2018, table 2.

    Args:
        image_size: S, a power of two from 8.
        channels: C.
        width: w.
    """

    def __init__(self, image_size: int = 256, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.sizes = _sizes(image_size)
        widths = _widths(image_size, width)
        self.input = Input(channels, width)
        self.blocks = nn.ModuleList(
            LastBlock(own) if stage == 0 else Block(own, widths[stage - 1])
            for stage, own in enumerate(widths)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.input(image)
        for block in reversed(self.blocks):
            x = block(x)
        logit: Tensor = x
        return logit


class _Growing(nn.Module):
    """A network that grows through several image sizes, fading in each new size.

    Attributes:
        size: current image size in pixels.
        alpha: weight of the current size; below 1 while it is being faded in.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._sizes = sizes
        self.grow(sizes[-1], 1.0)

    def grow(self, size: int, alpha: float) -> None:
        """Set the current size and its weight."""
        self._stage = self._sizes.index(size)
        self.size, self.alpha = size, alpha


class GrowingGenerator(_Growing):
    """A generator in training: latent [B, d] -> image [B, C, size, size].

    While a size is faded in, the image is ``alpha`` times that of the new size plus 1 - ``alpha``
    times that of half the size, upsampled. Source: Karras et al. 2018, figure 2.

    Args:
        generator: the fully grown generator.
    """

    def __init__(self, generator: ProGanGenerator) -> None:
        super().__init__(generator.sizes)
        self.generator = generator
        channels = generator.output.convolution.weight.shape[0]
        self.outputs = nn.ModuleList(
            Output(_width_after(generator, stage), channels)
            for stage in range(len(generator.sizes) - 1)
        )

    def forward(self, latent: Tensor) -> Tensor:
        before = x = latent
        for stage in range(self._stage + 1):
            before, x = x, self.generator.stage(stage, x)
        image: Tensor = self._output(self._stage)(x)
        if self.alpha < 1:
            image = torch.lerp(_doubled(self._output(self._stage - 1)(before)), image, self.alpha)
        return image

    def _output(self, stage: int) -> nn.Module:
        return self.outputs[stage] if stage < len(self.outputs) else self.generator.output


class GrowingDiscriminator(_Growing):
    """A discriminator in training: image [B, C, size, size] -> logit [B].

    While a size is faded in, the output of its block is mixed, like the generator's images, with
    the previous input of the next block: the half-size image after its own 1x1 convolution.

    Args:
        discriminator: the fully grown discriminator.
    """

    def __init__(self, discriminator: ProGanDiscriminator) -> None:
        super().__init__(discriminator.sizes)
        self.discriminator = discriminator
        channels = discriminator.input.convolution.weight.shape[1]
        self.inputs = nn.ModuleList(
            Input(channels, _width_before(block)) for block in discriminator.blocks[:-1]
        )

    def forward(self, image: Tensor) -> Tensor:
        blocks = self.discriminator.blocks
        x = blocks[self._stage](self._input(self._stage)(image))
        if self.alpha < 1:
            x = torch.lerp(self._input(self._stage - 1)(_halved(image)), x, self.alpha)
        for stage in reversed(range(self._stage)):
            x = blocks[stage](x)
        logit: Tensor = x
        return logit

    def _input(self, stage: int) -> nn.Module:
        return self.inputs[stage] if stage < len(self.inputs) else self.discriminator.input


def growing(network: nn.Module) -> GrowingGenerator | GrowingDiscriminator:
    """Return a growing version of this network, which shares its layers."""
    if isinstance(network, ProGanGenerator):
        return GrowingGenerator(network)
    assert isinstance(network, ProGanDiscriminator)
    return GrowingDiscriminator(network)


def shrunk(images: Tensor, size: int, alpha: float) -> Tensor:
    """Return training images for a growing network of this size and alpha.

    Images are downsampled by averaging. While a size is faded in, so is its detail: the image is
    ``alpha`` times that of the size plus 1 - ``alpha`` times that of half the size, upsampled.

    Args:
        images: [B, C, S, S].
        size: S, or S divided by a power of two.
        alpha: above 0, at most 1.

    Returns:
        [B, C, size, size].
    """
    factor = images.shape[-1] // size
    own = functional.avg_pool2d(images, factor) if factor > 1 else images
    return own if alpha == 1 else torch.lerp(_doubled(_halved(own)), own, alpha)


def _sizes(image_size: int) -> list[int]:
    """Return the image sizes in pixels, from 4 to the full size."""
    return [SMALLEST << stage for stage in range((image_size // SMALLEST).bit_length())]


def _widths(image_size: int, width: int) -> list[int]:
    """Return the channels at each size, from 4x4 to the full size."""
    most = max(4, image_size // 32)
    return [width * min(most, image_size // size) for size in _sizes(image_size)]


def _width_after(generator: ProGanGenerator, stage: int) -> int:
    layer: Any = generator.get_submodule(f"layer{2 * stage + 2}")
    return int(layer.convolution.weight.shape[0])


def _width_before(block: nn.Module) -> int:
    # In the last block, the first convolution has an extra input channel for the spread.
    convolution: Any = block.convolution2 if isinstance(block, LastBlock) else block.convolution1
    return int(convolution.weight.shape[1])


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _halved(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 2)
