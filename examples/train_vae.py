"""Train a small VAE on MNIST and write its decoder as a bundle.

    pip install '.[export,cpu]'
    python examples/train_vae.py --data mnist/ -o vae.bundle      # a few minutes on one core

Model: latent N(0, 1)^32, decoder of two transposed convolutions that ends in a sigmoid, so the
value range is (0, 1). Trained on the evidence lower bound with a Bernoulli likelihood (Kingma &
Welling 2014). Only the decoder is exported.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import pyinv
from pyinv.datasets import load_dataset
from pyinv.export import export

LATENT_SIZE = 32
IMAGE_SHAPE = (1, 28, 28)


def make_encoder() -> nn.Module:
    """Images [B, 1, 28, 28] to means and log variances, [B, 2 * 32]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 2 * LATENT_SIZE),
    )


def make_decoder() -> nn.Module:
    """Latents [B, 32] to images [B, 1, 28, 28] in [0, 1]."""
    return nn.Sequential(
        nn.Linear(LATENT_SIZE, 64 * 7 * 7),
        nn.ReLU(),
        nn.Unflatten(1, (64, 7, 7)),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
        nn.Sigmoid(),
    )


def train(images: Tensor, *, epochs: int, seed: int = 0, batch_size: int = 128) -> nn.Module:
    """Train on images [N, 1, 28, 28] in [0, 1]; return the decoder in eval mode."""
    torch.manual_seed(seed)
    encoder, decoder = make_encoder(), make_decoder()
    solver = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    batches = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(solver, epochs * batches)
    started = time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).split(batch_size)[:batches]:
            mean, log_variance = encoder(images[batch]).chunk(2, dim=1)
            latent = mean + (log_variance / 2).exp() * torch.randn_like(mean)
            error = functional.binary_cross_entropy(decoder(latent), images[batch], reduction="sum")
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
            loss = (error + divergence) / len(batch)
            solver.zero_grad()
            loss.backward()
            solver.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        mean_loss = total / batches
        print(f"epoch {epoch + 1}/{epochs}  loss {mean_loss:.2f}  {seconds:.0f} s", flush=True)
    return decoder.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder of MNIST's IDX files")
    parser.add_argument("-o", "--output", type=Path, default=Path("vae.bundle"))
    parser.add_argument("--epochs", type=int, default=10, help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="[%(default)s]")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pixels = load_dataset(arguments.data, split="train", image_shape=IMAGE_SHAPE).images
    images = torch.from_numpy(pixels.astype(np.float32) / 255).reshape(-1, *IMAGE_SHAPE)
    decoder = train(images, epochs=arguments.epochs, seed=arguments.seed)
    export(
        decoder,
        arguments.output,
        latent_shape=LATENT_SIZE,
        prior=pyinv.Normal(),
        value_range=(0, 1),
        name="MNIST VAE",
        overwrite=True,
    )
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
