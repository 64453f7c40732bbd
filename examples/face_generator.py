"""Export a published face generator from its state dict.

    pip install '.[export,cpu]'
    python examples/face_generator.py generator.pt -o face.bundle

The weights are those of https://github.com/fletchersarip93/face-generator (Apache-2.0), a DCGAN for
32x32 crops of CelebA. A state dict contains only tensors, so this file defines the architecture,
with the names that the keys start with. Use the same steps for any generator whose weights you
have: define the module, load the weights, specify the latents and images, export.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from pyinv import PyinvError, Uniform
from pyinv.export import export

LATENT_SIZE = 100


class FaceGenerator(nn.Module):
    """Map latents [B, 100] in [-1, 1] to images [B, 3, 32, 32] in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()

        def enlarge(inputs: int, outputs: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)

        self.generator_deconv = nn.Sequential(
            # No activation here, and no biases before batch norm.
            nn.Sequential(
                nn.ConvTranspose2d(LATENT_SIZE, 256, 4, bias=False),
                nn.BatchNorm2d(256),
            ),
            nn.Sequential(
                nn.Conv2d(256, 128, 3, padding=1, bias=False),
                nn.BatchNorm2d(128),
                nn.LeakyReLU(0.2),
            ),
            nn.Sequential(enlarge(128, 64), nn.BatchNorm2d(64), nn.LeakyReLU(0.2)),
            nn.Sequential(enlarge(64, 32), nn.BatchNorm2d(32), nn.LeakyReLU(0.2)),
            nn.Sequential(nn.ConvTranspose2d(32, 3, 4, stride=2, padding=1)),
        )

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.generator_deconv(latent.view(-1, LATENT_SIZE, 1, 1))
        return image.tanh()


def load_face_generator(path: Path) -> FaceGenerator:
    """Load a state dict; weights_only prevents a downloaded file from running code."""
    generator = FaceGenerator()
    generator.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return generator.eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="the state dict, a .pt file")
    parser.add_argument("-o", "--output", type=Path, default=Path("face.bundle"))
    parser.add_argument(
        "--loss", action="append", help="mse, l1, bce or whitened; repeatable [mse and whitened]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle")
    arguments = parser.parse_args()
    try:
        generator = load_face_generator(arguments.weights)
    except Exception as error:
        print(f"{arguments.weights}: not this generator's state dict ({error})", file=sys.stderr)
        return 1
    try:
        path = export(
            generator,
            arguments.output,
            latent_shape=LATENT_SIZE,
            prior=Uniform(-1.0, 1.0),
            losses=arguments.loss,
            name="faces 32x32",
            overwrite=arguments.overwrite,
            progress=lambda line: print(line, file=sys.stderr),
        )
    except PyinvError as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
