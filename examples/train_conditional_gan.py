"""Train a small class-conditional GAN on MNIST and write its generator as a bundle.

    pip install '.[export,cpu]'
    python examples/train_conditional_gan.py --data mnist/ -o digits.bundle   # minutes on one core

Model: latent N(0, 1)^64 and a class label, which the generator embeds and appends to the latent.
The discriminator takes the label as a projection (Miyato & Koyama 2018) and has spectral norm. The
bundle's condition "label" is the class: ``inverter.invert(images, conditions={"label": labels})``.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import pyinv
from pyinv.datasets import load_dataset
from pyinv.export import Label, export
from pyinv.training.adversaries import with_statistics

LATENT_SIZE = 64
CLASSES = 10
IMAGE_SHAPE = (1, 28, 28)


class Generator(nn.Module):
    """Map latents [B, 64] and labels [B] to images [B, 1, 28, 28] in [-1, 1]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, LATENT_SIZE)
        self.layers = nn.Sequential(
            nn.Linear(2 * LATENT_SIZE, 4 * width * 7 * 7, bias=False),
            nn.Unflatten(1, (4 * width, 7, 7)),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        return self.layers(torch.cat([latent, self.embedding(label)], dim=1))


class Discriminator(nn.Module):
    """Map images [B, 1, 28, 28] and labels [B] to logits [B]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        normalise = nn.utils.parametrizations.spectral_norm
        self.trunk = nn.Sequential(
            normalise(nn.Conv2d(1, width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            normalise(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            normalise(nn.Linear(2 * width * 7 * 7, 256)),
            nn.LeakyReLU(0.2),
        )
        self.real = normalise(nn.Linear(256, 1))
        self.embedding = normalise(nn.Embedding(CLASSES, 256))

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        features = self.trunk(image)
        return self.real(features).squeeze(1) + (features * self.embedding(label)).sum(1)


def train(
    images: Tensor, labels: Tensor, *, iterations: int, seed: int = 0, batch_size: int = 64
) -> nn.Module:
    """Train on images [N, 1, 28, 28] in [-1, 1]; return the averaged generator in eval mode."""
    torch.manual_seed(seed)
    generator, discriminator = Generator(), Discriminator()
    averaged = copy.deepcopy(generator)
    # The discriminator learns twice as fast (Heusel et al. 2017).
    solver = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opponent = torch.optim.Adam(discriminator.parameters(), lr=4e-4, betas=(0.5, 0.999))
    started = time.perf_counter()
    for iteration in range(iterations):
        batch = torch.randint(len(images), (batch_size,))
        label = labels[batch]
        fake = generator(torch.randn(batch_size, LATENT_SIZE), label)
        # Hinge losses.
        real_loss = functional.relu(1 - discriminator(images[batch], label)).mean()
        fake_loss = functional.relu(1 + discriminator(fake.detach(), label)).mean()
        opponent.zero_grad()
        (real_loss + fake_loss).backward()
        opponent.step()

        generator_loss = -discriminator(fake, label).mean()
        solver.zero_grad()
        generator_loss.backward()
        solver.step()
        with torch.no_grad():
            for mean, now in zip(averaged.parameters(), generator.parameters(), strict=True):
                mean.lerp_(now, 0.002)
        if (iteration + 1) % max(1, iterations // 10) == 0:
            print(
                f"iteration {iteration + 1}/{iterations}  discriminator "
                f"{(real_loss + fake_loss).item():.2f}  generator {generator_loss.item():.2f}  "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
    drawn = ((torch.randn(256, LATENT_SIZE), torch.randint(CLASSES, (256,))) for _ in range(100))
    return with_statistics(averaged, drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder of MNIST's IDX files")
    parser.add_argument("-o", "--output", type=Path, default=Path("digits.bundle"))
    parser.add_argument("--iterations", type=int, default=4000, help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="[%(default)s]")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_dataset(arguments.data, split="train", image_shape=IMAGE_SHAPE)
    if data.labels is None:
        parser.error(f"{arguments.data} has no labels")
    pixels = data.images.astype(np.float32).reshape(-1, *IMAGE_SHAPE)
    generator = train(
        torch.from_numpy(pixels / 127.5 - 1),
        torch.tensor([int(label) for label in data.labels]),
        iterations=arguments.iterations,
        seed=arguments.seed,
    )
    export(
        generator,
        arguments.output,
        latent_shape=LATENT_SIZE,
        prior=pyinv.Normal(),
        value_range=(-1, 1),
        inputs={"label": Label(CLASSES)},
        name="MNIST conditional GAN",
        overwrite=True,
    )
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
