"""``pyinv train autoencoder``: train the autoencoder of latent diffusion on your images."""

from __future__ import annotations

import argparse
from typing import Any

from pyinv.cli.console import Console
from pyinv.cli.options import real, whole
from pyinv.cli.training import add_machine, add_output, add_overwrite, run_training
from pyinv.datasets import DATASET_FORMATS, load_dataset
from pyinv.extras import install_command
from pyinv.training import (
    AUTOENCODER_CONFIGURATIONS,
    AutoencoderConfiguration,
    get_autoencoder_configuration,
)

__all__ = ["add_autoencoder", "run"]

_DEFAULT = "kl-f4-32"


def add_autoencoder(kinds: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = kinds.add_parser(
        "autoencoder",
        parents=[shared],
        help="a decoder with its encoder, as in latent diffusion",
        description=(
            "Train a KL-regularized autoencoder on your images, and write its decoder and encoder\n"
            "as one bundle for pyinv invert, encode and generate.\n"
            f"Needs PyTorch: {install_command('export')}"
        ),
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", metavar="PATH", required=True, help=f"images to train on: {DATASET_FORMATS}"
    )
    add_output(parser)
    parser.add_argument(
        "--config", metavar="NAME", default=_DEFAULT, help="configuration, see below [%(default)s]"
    )
    add_overwrite(parser)

    settings = parser.add_argument_group("settings", "each overrides the configuration's setting")
    whole(settings, "--image-size", "pixels per side; images are resized to it")
    settings.add_argument(
        "--channels", type=int, metavar="N", choices=(1, 3), help="1 for gray, 3 for colour"
    )
    whole(settings, "--latent-channels", "channels of a latent")
    whole(settings, "--factor", "pixels per latent position and side: 2, 4, 8, 16 or 32")
    whole(settings, "--width", "channels of the layers next to the image, a multiple of 4")
    whole(settings, "--iterations", "training steps; a larger number extends a finished training")
    whole(settings, "--batch-size", "images per iteration")
    real(settings, "--learning-rate", "learning rate")
    whole(settings, "--seed", "random seed")

    add_machine(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    configuration = _configuration(arguments)
    from pyinv.training.autoencoder import train_autoencoder
    from pyinv.training.gan import check_device, check_threads

    # Reading the images may take minutes.
    check_device(arguments.device)
    check_threads(arguments.threads)
    console.message(f"reading {arguments.data}")
    data = load_dataset(arguments.data, split="train", image_shape=configuration.image_shape)
    shape = "x".join(map(str, configuration.latent_shape))
    console.message(
        f"training {configuration.name} on {len(data.images)} images of {data.name}; latent {shape}"
    )
    trained, seconds = run_training(
        train_autoencoder, arguments, console, configuration, data.images, data_name=data.name
    )
    console.message(f"try: pyinv invert {trained.bundle} IMAGES --init encoder -o latents.npz")
    console.result(
        {
            "folder": str(trained.folder),
            "bundle": str(trained.bundle),
            "weights": str(trained.weights),
            "configuration": trained.configuration.describe(),
            "data": data.name,
            "images": len(data.images),
            "seconds": seconds,
        }
    )


def _configuration(arguments: argparse.Namespace) -> AutoencoderConfiguration:
    """Return the named configuration with the command line's changes."""
    configuration = get_autoencoder_configuration(arguments.config)
    names = (
        "latent_channels",
        "factor",
        "width",
        "iterations",
        "batch_size",
        "learning_rate",
        "seed",
    )
    given = {name: getattr(arguments, name) for name in names}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    channels, size, _ = configuration.image_shape
    if arguments.image_size is not None or arguments.channels is not None:
        side = size if arguments.image_size is None else arguments.image_size
        changes["image_shape"] = (arguments.channels or channels, side, side)
    changed = [name for name, value in changes.items() if value != getattr(configuration, name)]
    if changed:
        changes["source"] = f"{configuration.source}; changed: {', '.join(changed)}"
    return configuration.replace(**changes)


def _epilog() -> str:
    rows = [
        f"  {name}  {'x'.join(map(str, one.image_shape))}, latent "
        f"{'x'.join(map(str, one.latent_shape))}, batch {one.batch_size}, "
        f"{one.iterations} iterations"
        for name, one in AUTOENCODER_CONFIGURATIONS.items()
    ]
    listed = "\n".join(rows)
    return f"""\
configurations:
{listed}

contents of DIR:
  generator.bundle        the decoder, with the encoder as its function encode
  autoencoder.pt          the weights of both, a state dict
  samples/                rows of images above their reconstructions
  losses.csv              one line per iteration
  configuration.json      all settings, and a description of the images
  checkpoint.pt           the state to resume from

Ctrl-C saves a checkpoint, and the same command resumes. On a CPU with the same number of threads,
the final weights are bit-identical to those of an uninterrupted training.

examples:
  pyinv train autoencoder --data cifar10.zip -o decoder
  pyinv train autoencoder --data photos/ --image-size 64 --width 32 --device cuda -o decoder-64
"""
