"""Inpainting and compressed sensing with a face generator: latents from a part of what they make.

    pip install '.[export,cpu]'
    python examples/inverse_problems.py generator.pt -o inverse_problems.png

Two problems that are solved with the generator alone, for images that it made:

- inpainting: half of the pixels of each image are missing, others for each. The bundle takes
  weights, and the missing pixels get the weight 0;
- compressed sensing: instead of an image's 3,072 values x, 307 random sums of them are known,
  y = A x with Gaussian A, as in Bora et al. 2017 ("Compressed sensing using generative models").
  The bundle observes images with A.

The picture has three rows for each problem: images, what is known of them, and what was found. The
weights of the generator are those that face_generator.py describes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from face_generator import LATENT_SIZE, load_face_generator
from torch import nn

import pyinv
from pyinv.export import export
from pyinv.images import save_grid

SHOWN = 10


def gaussian_measurements(values: int, count: int) -> nn.Module:
    """The operator A: images [B, ...] of so many values to measurements [B, count]."""
    matrix = nn.Linear(values, count, bias=False)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        matrix.weight.copy_(torch.randn(count, values, generator=random) / count**0.5)
    return nn.Sequential(nn.Flatten(), matrix)


def report(problem: str, inversion: pyinv.Inversion, latents: np.ndarray) -> None:
    errors = np.square(inversion.latents - latents).mean(axis=1)
    print(
        f"{problem}: {np.sum(errors < 1e-4)} of {len(errors)} latents found to a mean squared "
        f"error below 1e-4, {np.sum(errors < 1e-8)} below 1e-8; largest {errors.max():.1e}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="the state dict, a .pt file")
    parser.add_argument("-n", type=int, default=SHOWN, help="number of images [%(default)s]")
    parser.add_argument("--share", type=float, default=0.1, help="measurements per value [0.1]")
    parser.add_argument("-o", "--output", type=Path, default=Path("inverse_problems.png"))
    arguments = parser.parse_args()
    generator = load_face_generator(arguments.weights)
    prior = pyinv.Uniform(-1.0, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        path = export(
            generator, Path(folder) / "a", latent_shape=LATENT_SIZE, prior=prior, weights=True
        )
        inverter = pyinv.Inverter(path)
        latents = inverter.sample(arguments.n, seed=1)
        images = inverter.generate(latents)
        low, _ = inverter.manifest.value_range

        known = np.random.default_rng(0).random((len(images), 1, 32, 32)) < 0.5
        torn = np.where(known, images, np.float32(low))
        filled = inverter.invert(torn, weights=known, recipe="precise")
        report("inpainting, half of the pixels", filled, latents)

        values = images[0].size
        operator = gaussian_measurements(values, round(arguments.share * values))
        path = export(
            generator, Path(folder) / "b", latent_shape=LATENT_SIZE, prior=prior, observe=operator
        )
        inverter = pyinv.Inverter(path)
        measured = inverter.observe(images)
        sensed = inverter.invert(measured, recipe="precise")
        report(f"compressed sensing, {measured.shape[1]} of {values} values", sensed, latents)
        # What the measurements say of an image without a generator: the nearest image to A^T y.
        matrix = operator[1].weight.detach().numpy()
        linear = np.linalg.lstsq(matrix, measured.T, rcond=None)[0].T.reshape(images.shape)
        rows = (images, torn, filled.images, images, linear.clip(-1, 1), sensed.images)
        shown = np.concatenate([row[:SHOWN] for row in rows])
        save_grid(shown, arguments.output, (-1.0, 1.0), columns=min(SHOWN, len(images)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
