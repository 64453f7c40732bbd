#!/usr/bin/env python3
"""Export a StyleGAN2 generator; compare its speed with PyTorch and recover its latents.

    python benchmarks/stylegan2.py                # speed at batches 1 and 16; 64 latents of w
    python benchmarks/stylegan2.py --latents w+ --size 32

The generator has a mapping network, modulated and demodulated convolutions, noise buffers and skip
connections, as Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN". Its
weights are random. Needs `pip install '.[export,cpu]'`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path

import loop
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import pyinv
from pyinv.export import Whitening, export


class ModulatedConvolution(nn.Module):
    """A convolution with weights per image, run as one convolution with a group per image."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style: int, *, up: bool, demodulate: bool
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.affine = nn.Linear(style, inputs)
        nn.init.normal_(self.affine.weight, std=style**-0.5)
        nn.init.ones_(self.affine.bias)
        self.scale = (inputs * kernel**2) ** -0.5
        self.up, self.demodulate = up, demodulate

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, inputs, height, width = x.shape
        _, outputs, _, kernel, _ = self.weight.shape
        weight = self.scale * self.weight * self.affine(style).view(batch, 1, inputs, 1, 1)
        if self.demodulate:
            norms = weight.pow(2).sum([2, 3, 4]) + 1e-8
            weight = weight * torch.rsqrt(norms).view(batch, outputs, 1, 1, 1)
        x = x.reshape(1, batch * inputs, height, width)
        if self.up:
            weight = weight.transpose(1, 2).reshape(batch * inputs, outputs, kernel, kernel)
            x = functional.conv_transpose2d(x, weight, stride=2, groups=batch)
        else:
            weight = weight.view(batch * outputs, inputs, kernel, kernel)
            x = functional.conv2d(x, weight, padding=kernel // 2, groups=batch)
        return x.view(batch, outputs, *x.shape[2:])


class Layer(nn.Module):
    """A modulated 3x3 convolution, a blur after upsampling, noise, bias and leaky ReLU."""

    def __init__(self, channels: int, style: int, size: int, *, up: bool = False) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(
            channels, channels, 3, style, up=up, demodulate=True
        )
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("blur", (taps[:, None] * taps / 16).view(1, 1, 4, 4))
        self.register_buffer("noise", 0.1 * torch.randn(1, 1, size, size))
        self.bias = nn.Parameter(0.1 * torch.randn(channels, 1, 1))
        self.up = up

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.convolution(x, style)
        if self.up:
            batch, channels, height, width = x.shape
            x = functional.pad(x, (1, 1, 1, 1)).reshape(-1, 1, height + 2, width + 2)
            x = functional.conv2d(x, self.blur).view(batch, channels, height - 1, width - 1)
        return functional.leaky_relu(x + self.noise + self.bias, 0.2) * math.sqrt(2)


class Synthesis(nn.Module):
    """W+ [B, layers, style] -> images [B, 3, size, size]."""

    def __init__(self, size: int, channels: int, style: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.layers, self.rgb = nn.ModuleList([Layer(channels, style, 4)]), nn.ModuleList()
        sizes = [4 * 2**i for i in range(int(math.log2(size)) - 1)]
        for edge in sizes[1:]:
            self.layers.append(Layer(channels, style, edge, up=True))
            self.layers.append(Layer(channels, style, edge))
        for _ in sizes:
            self.rgb.append(ModulatedConvolution(channels, 3, 1, style, up=False, demodulate=False))
        self.styles = len(self.layers) + 1

    def forward(self, styles: Tensor) -> Tensor:
        x = self.layers[0](self.start.repeat(styles.shape[0], 1, 1, 1), styles[:, 0])
        image = self.rgb[0](x, styles[:, 1])
        for i, to_rgb in enumerate(self.rgb[1:]):
            x = self.layers[2 * i + 1](x, styles[:, 2 * i + 1])
            x = self.layers[2 * i + 2](x, styles[:, 2 * i + 2])
            image = functional.interpolate(image, scale_factor=2.0, mode="bilinear")
            image = image + to_rgb(x, styles[:, 2 * i + 3])
        return torch.tanh(0.3 * image)


class Mapping(nn.Module):
    """z [B, style] -> w [B, style]."""

    def __init__(self, style: int, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(style, style) for _ in range(layers))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=style**-0.5)

    def forward(self, z: Tensor) -> Tensor:
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), 0.2) * math.sqrt(2)
        return x


class Repeated(nn.Module):
    """w [B, style] -> images: the same style for all layers."""

    def __init__(self, synthesis: Synthesis) -> None:
        super().__init__()
        self.synthesis = synthesis

    def forward(self, w: Tensor) -> Tensor:
        return self.synthesis(w[:, None].expand(-1, self.synthesis.styles, -1))


def make_generator(
    latents: str, *, size: int, channels: int, style: int, seed: int = 0
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a generator of latents "z", "w" or "w+", and its latent shape."""
    torch.manual_seed(seed)
    mapping, synthesis = Mapping(style).eval(), Synthesis(size, channels, style).eval()
    with torch.no_grad():
        samples = mapping(torch.randn(20 * style, style))
    if latents == "z":
        return nn.Sequential(mapping, Repeated(synthesis)).eval(), (style,)
    if latents == "w":
        return Whitening(Repeated(synthesis), samples).eval(), (style,)
    return Whitening(synthesis, samples).eval(), (synthesis.styles, style)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latents", choices=("z", "w", "w+"), default="w")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--style", type=int, default=64, help="components of w [%(default)s]")
    parser.add_argument("--targets", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator, shape = make_generator(
        arguments.latents, size=arguments.size, channels=arguments.channels, style=arguments.style
    )
    report: dict[str, object] = {"latents": arguments.latents, "latent_shape": shape}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "stylegan2.bundle"
        export(
            generator,
            bundle,
            latent_shape=shape,
            prior=pyinv.Normal(),
            value_range=(-1, 1),
            progress=print,
        )
        for batch in arguments.batches:
            report[f"times as fast as eager, batch {batch}"] = speed(
                generator, bundle, shape, batch, arguments
            )
        if arguments.targets:
            report.update(recovery(bundle, arguments))
    print(json.dumps(report, indent=2))


def speed(
    generator: nn.Module,
    bundle: Path,
    shape: tuple[int, ...],
    batch: int,
    arguments: argparse.Namespace,
) -> list[float]:
    """Return the lowest, median and highest ratio of step rates over interleaved rounds."""
    torch.manual_seed(batch)
    latents = torch.rand(batch, *shape) * 2 - 1
    with torch.no_grad():
        targets = generator(torch.rand(batch, *shape) * 2 - 1)
    inverter = pyinv.Inverter(bundle, batch_size=batch, threads=arguments.threads)
    runs = {
        "pyinv": loop.engine_run(inverter, targets.numpy(), latents.flatten(1).numpy()),
        "eager": loop.torch_run(generator.requires_grad_(False), targets, latents),
    }
    steps = {name: loop.steps_for(run, 1.0) for name, run in runs.items()}
    ratios = []
    for repeat in range(arguments.repeats):
        names = list(runs)[:: 1 if repeat % 2 else -1]
        seconds = {name: loop.seconds_per_step(runs[name], steps[name]) for name in names}
        ratios.append(seconds["eager"] / seconds["pyinv"])
    return [round(value, 2) for value in (min(ratios), statistics.median(ratios), max(ratios))]


def recovery(bundle: Path, arguments: argparse.Namespace) -> dict[str, object]:
    inverter = pyinv.Inverter(bundle, threads=arguments.threads)
    latents = inverter.sample(arguments.targets, seed=1)
    inversion = inverter.invert(inverter.generate(latents), recipe="precise")
    errors = np.square(inversion.latents - latents).mean(axis=1)
    return {
        "recovered below 1e-8": int((errors < 1e-8).sum()),
        "targets": arguments.targets,
        "median latent error": float(np.median(errors)),
    }


if __name__ == "__main__":
    main()
