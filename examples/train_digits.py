"""Train the small DCGAN behind `pyinv demo` and write its bundle and held-out digits.

    pip install '.[examples,cpu]'
    python examples/train_digits.py --output my-digits              # a few minutes on one core
    python examples/train_digits.py --output my-digits --epochs 20  # enough for legible digits

Data: scikit-learn's handwritten digits (1,797 images of 8x8, values 0..16), interpolated bilinearly
to 16x16 and scaled to [-1, 1]. 64 images, balanced over the classes, are held out from training.
They are the "real" images that the demo inverts.

Model: a DCGAN (Radford et al. 2015) reduced to 16x16, latent U(-1, 1)^d. Comments in the code
explain the differences from the paper. The same seed, number of threads and library versions give
the same weights.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from pyinv import Uniform, export
from pyinv.training.adversaries import with_statistics

LATENT_SIZE = 16
IMAGE_SIZE = 16
HELD_OUT = 64


class DigitsGenerator(nn.Module):
    """Map latents [B, d] to images [B, 1, 16, 16] in [-1, 1]."""

    def __init__(self, latent_size: int = LATENT_SIZE, width: int = 32) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent_size, 4 * width, 4, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent.reshape(-1, self.latent_size, 1, 1))


class DigitsDiscriminator(nn.Module):
    """Map images [B, 1, 16, 16] to (logit [B], latent estimate [B, d]).

    The second head estimates the latent of a generated image (the mutual-information term of
    InfoGAN, Chen et al. 2016, over the whole latent). It makes every component affect the image:
    a GAN trained on so few images may learn to ignore some components, which could then not be
    recovered. Spectral norm (Miyato et al. 2018) in place of the paper's batch norm, and some
    dropout, keep the discriminator from overpowering the generator.
    """

    def __init__(self, latent_size: int = LATENT_SIZE, width: int = 48) -> None:
        super().__init__()
        normalise = nn.utils.parametrizations.spectral_norm
        self.trunk = nn.Sequential(
            normalise(nn.Conv2d(1, width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            normalise(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(0.3)
        self.real = nn.Linear(16 * 2 * width, 1)
        self.latent = nn.Sequential(
            nn.Linear(16 * 2 * width, 128), nn.LeakyReLU(0.2), nn.Linear(128, latent_size)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(image)
        return self.real(self.dropout(features)).squeeze(1), self.latent(features)


def split_digits() -> tuple[Tensor, Tensor, Tensor]:
    """Return training images [1733, 1, 16, 16], held-out images [64, 1, 16, 16] and labels [64]."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = functional.interpolate(images, size=IMAGE_SIZE, mode="bilinear").clamp(-1, 1)
    order = np.random.default_rng(0).permutation(len(images))
    # One digit of each class in turn, so that each class occurs six or seven times in 64 images.
    queues = [[i for i in order if digits.target[i] == label] for label in range(10)]
    held_out = [queues[n % 10][n // 10] for n in range(HELD_OUT)]
    training = np.setdiff1d(np.arange(len(images)), held_out)
    return images[training], images[held_out], torch.tensor(digits.target[held_out])


def draw_latents(count: int, latent_size: int = LATENT_SIZE) -> Tensor:
    return torch.rand(count, latent_size) * 2 - 1


def augment(images: Tensor) -> Tensor:
    """Shift images by up to one pixel and add a little noise.

    Real and generated images are augmented alike (Zhao et al. 2020), so that the discriminator
    cannot memorise 1,733 images and the generator does not learn the noise.
    """
    padded = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    row, column = torch.randint(0, 3, (2,)).tolist()
    shifted = padded[:, :, row : row + IMAGE_SIZE, column : column + IMAGE_SIZE]
    return shifted + 0.05 * torch.randn_like(shifted)


def train(
    images: Tensor,
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    latent_weight: float = 1.5,
    seed: int = 0,
) -> nn.Module:
    """Train on `images` and return the generator with averaged weights, in eval mode."""
    torch.manual_seed(seed)
    generator, discriminator = DigitsGenerator(), DigitsDiscriminator()
    for module in [*generator.modules(), *discriminator.modules()]:
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
    averaged = copy.deepcopy(generator)
    # DCGAN's beta1 = 0.5; the discriminator learns twice as fast (Heusel et al. 2017).
    generator_solver = torch.optim.Adam(
        generator.parameters(), lr=learning_rate, betas=(0.5, 0.999)
    )
    discriminator_solver = torch.optim.Adam(
        discriminator.parameters(), lr=2 * learning_rate, betas=(0.5, 0.999)
    )
    binary = functional.binary_cross_entropy_with_logits
    started = time.perf_counter()
    for epoch in range(epochs):
        # Constant for the first half, then linear decay to 0.
        fraction = min(1.0, 2 * (1 - epoch / epochs))
        for solver, peak in ((generator_solver, 1), (discriminator_solver, 2)):
            solver.param_groups[0]["lr"] = peak * learning_rate * fraction
        losses = np.zeros(3)
        batches = torch.randperm(len(images)).split(batch_size)[: len(images) // batch_size]
        for batch in batches:
            latent = draw_latents(batch_size)
            fake = generator(latent)
            real_logit, _ = discriminator(augment(images[batch]))
            fake_logit, _ = discriminator(augment(fake.detach()))
            # One-sided label smoothing (Salimans et al. 2016).
            discriminator_loss = binary(real_logit, torch.full_like(real_logit, 0.9)) + binary(
                fake_logit, torch.zeros_like(fake_logit)
            )
            discriminator_solver.zero_grad()
            discriminator_loss.backward()
            discriminator_solver.step()

            fake_logit, guess = discriminator(augment(fake))
            fooling = binary(fake_logit, torch.ones_like(fake_logit))
            guessing = functional.mse_loss(guess, latent)
            generator_solver.zero_grad()
            discriminator_solver.zero_grad()
            (fooling + latent_weight * guessing).backward()
            generator_solver.step()
            # The same pass trains the latent head, but not the discriminator's other layers.
            for parameter in [*discriminator.trunk.parameters(), *discriminator.real.parameters()]:
                parameter.grad = None
            discriminator_solver.step()
            losses += [discriminator_loss.item(), fooling.item(), guessing.item()]
            with torch.no_grad():
                for mean, now in zip(averaged.parameters(), generator.parameters(), strict=True):
                    mean.lerp_(now, 0.002)
        if epoch % 10 == 9 or epoch == epochs - 1:
            d_loss, g_loss, latent_loss = losses / len(batches)
            print(
                f"epoch {epoch + 1:4d}/{epochs}  discriminator {d_loss:.3f}  generator {g_loss:.3f}"
                f"  latent error {latent_loss:.3f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    return with_statistics(averaged, (draw_latents(256) for _ in range(100)))


def write_grid(images: Tensor, path: Path, *, columns: int = 16, zoom: int = 4) -> None:
    rows = images.shape[0] // columns
    tiles = images[: rows * columns, 0].reshape(rows, columns, IMAGE_SIZE, IMAGE_SIZE)
    tiles = functional.pad(tiles, (1, 1, 1, 1), value=-1.0)
    sheet = tiles.permute(0, 2, 1, 3).reshape(rows * (IMAGE_SIZE + 2), -1)
    pixels = ((sheet + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(
        path
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("digits"), help="folder to write to [%(default)s]"
    )
    parser.add_argument("--epochs", type=int, default=100, help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="[%(default)s]")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)

    training, held_out, labels = split_digits()
    generator = train(training, epochs=arguments.epochs, seed=arguments.seed)
    torch.save(generator.state_dict(), arguments.output / "digits.pt")
    with torch.no_grad():
        write_grid(generator(draw_latents(256)), arguments.output / "samples.png")
    np.savez_compressed(
        arguments.output / "digits.npz",
        images=held_out.numpy(),
        labels=labels.to(torch.uint8).numpy(),
    )
    export.export(
        generator,
        arguments.output / "digits.bundle",
        latent_shape=(LATENT_SIZE,),
        prior=Uniform(-1.0, 1.0),
        losses=("mse", "whitened", "l1", "bce"),
        value_range=(-1.0, 1.0),
        name="digits 16x16",
        overwrite=True,
    )
    print(f"wrote digits.bundle, digits.npz, digits.pt and samples.png to {arguments.output}")


if __name__ == "__main__":
    main()
