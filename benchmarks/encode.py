"""Compare the speed of ``Inverter.encode`` with the same network in PyTorch.

    python benchmarks/encode.py            # a table
    python benchmarks/encode.py --batches 1 64 --repeats 5 --threads 2

The encoder is Luo et al.'s inverse generator for 64x64x3 images (Table 5), batch norm in eval mode.
PyTorch runs it unchanged, with folded batch norm, and folded in channels-last memory. Each repeat
times all of them in turn. Needs `pip install '.[export,cpu]'`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import pyinv
from pyinv import cores
from pyinv.export import export

SECONDS = 1.0  # minimum length of a measurement
PAUSE_SECONDS = 0.1  # thread pools spin for some milliseconds after their last work


def make_encoder(width: int = 64) -> nn.Sequential:
    """Luo et al. 2017, Table 5: 5x5 convolutions of stride 2, batch norm, ReLU, a dense layer."""
    channels = [3, width, 2 * width, 4 * width, 8 * width]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [
            nn.Conv2d(before, after, 5, stride=2, padding=2),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width * 16, 100), nn.Tanh())
    with torch.no_grad():  # non-trivial statistics, so that folding has an effect
        for _ in range(4):
            encoder(torch.rand(16, 3, 64, 64) * 2 - 1)
    return encoder.eval().requires_grad_(False)


def fold(encoder: nn.Sequential) -> nn.Sequential:
    """Return the encoder with batch norm folded into the convolutions' weights."""
    layers: list[nn.Module] = []
    for layer in encoder:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False)


def rate(run: Callable[[], object], batch: int) -> float:
    """Return images per second."""
    run()
    started, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < SECONDS:
        run()
        count += batch
    time.sleep(PAUSE_SECONDS)
    return count / seconds


def main() -> None:
    """Time all contenders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores.usable_cores())
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    encoder = make_encoder()
    folded = fold(encoder)
    last = fold(encoder).to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        path = export(
            nn.Sequential(nn.Linear(100, 3 * 64 * 64), nn.Tanh(), nn.Unflatten(1, (3, 64, 64))),
            Path(folder) / "b",
            latent_shape=100,
            prior=pyinv.Uniform(),
            losses=("mse",),
            normal_equations=False,
            encoder=encoder,
        )
        inverter = pyinv.Inverter(path, threads=arguments.threads)
        print(f"torch {torch.__version__}, {arguments.threads} threads; images per second")
        print("batch  pyinv  eager  folded  channels-last  pyinv over the best: median (min-max)")
        for batch in arguments.batches:
            images = np.random.default_rng(0).uniform(-1, 1, (batch, 3, 64, 64)).astype("float32")
            image = torch.from_numpy(images)
            as_last = image.contiguous(memory_format=torch.channels_last)

            def apply(network: nn.Module, x: Tensor) -> Tensor:
                with torch.inference_mode():
                    return network(x)

            difference = np.abs(inverter.encode(images) - apply(encoder, image).numpy()).max()
            if not difference <= 1e-4:
                raise SystemExit(f"the encoders differ by {difference}")
            runs: dict[str, Callable[[], object]] = {
                "pyinv": lambda images=images, batch=batch: inverter.encode(
                    images, batch_size=batch
                ),
                "eager": lambda image=image: apply(encoder, image),
                "folded": lambda image=image: apply(folded, image),
                "channels-last": lambda as_last=as_last: apply(last, as_last),
            }
            rounds = [
                {name: rate(run, batch) for name, run in runs.items()}
                for _ in range(arguments.repeats)
            ]
            rates = [statistics.median(round[name] for round in rounds) for name in runs]
            ratios = [
                round["pyinv"] / max(value for name, value in round.items() if name != "pyinv")
                for round in rounds
            ]
            print(
                f"{batch:5}  {rates[0]:5.0f}  {rates[1]:5.0f}  {rates[2]:6.0f}  {rates[3]:13.0f}  "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
