"""``pyinv train``: train the papers' networks on your images."""

from __future__ import annotations

import argparse
from typing import Any

from pyinv.cli.console import Console
from pyinv.cli.options import real, whole
from pyinv.cli.train_autoencoder import add_autoencoder
from pyinv.cli.train_encoder import add_encoder
from pyinv.cli.training import add_machine, add_output, add_overwrite, run_training
from pyinv.datasets import DATASET_FORMATS, load_dataset
from pyinv.extras import install_command
from pyinv.models import MODELS, get_model
from pyinv.priors import Normal, Uniform
from pyinv.training import CONFIGURATIONS, GanConfiguration, get_configuration

__all__ = ["add_parser", "run"]

_DEFAULT = "lipton-32"
_PRIORS = {"uniform": Uniform(), "normal": Normal()}


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "train",
        help="train a generator, an autoencoder or an encoder (needs torch)",
        description="Train a generator, autoencoder or encoder. See `pyinv train gan --help`.",
    )
    kinds = parser.add_subparsers(metavar="KIND", dest="kind", required=True, title="kinds")
    _add_gan(kinds, shared)
    add_autoencoder(kinds, shared)
    add_encoder(kinds, shared)


def _add_gan(kinds: Any, shared: argparse.ArgumentParser) -> None:
    parser = kinds.add_parser(
        "gan",
        parents=[shared],
        help="a generator, with a GAN",
        description=(
            "Train a generator on your images, and write a bundle for pyinv invert and pyinv\n"
            "generate. Configurations have the papers' settings; options override them.\n"
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
        "--config",
        metavar="NAME",
        default=_DEFAULT,
        help="configuration, see below [%(default)s]",
    )
    add_overwrite(parser)

    settings = parser.add_argument_group("settings", "each overrides the configuration's setting")
    settings.add_argument("--model", metavar="NAME", help=f"one of {', '.join(MODELS)}")
    settings.add_argument(
        "--prior", choices=tuple(_PRIORS), help="prior of latents: uniform on [-1, 1], or N(0, 1)"
    )
    whole(settings, "--image-size", "pixels per side; images are resized to it")
    settings.add_argument(
        "--channels", type=int, metavar="N", choices=(1, 3), help="1 for gray, 3 for colour"
    )
    whole(
        settings,
        "--iterations",
        "training steps of each network; a larger number extends a finished training",
    )
    whole(settings, "--width", "channels of the layer next to the image")
    whole(settings, "--batch-size", "images per iteration")
    real(settings, "--learning-rate", "learning rate of both networks")
    whole(settings, "--seed", "random seed")

    add_machine(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    configuration = _configuration(arguments)
    from pyinv.training.gan import check_device, check_threads, train_gan

    # Reading the images may take minutes.
    check_device(arguments.device)
    check_threads(arguments.threads)
    console.message(f"reading {arguments.data}")
    data = load_dataset(arguments.data, split="train", image_shape=configuration.image_shape)
    count = min(len(data.images), configuration.training_images or len(data.images))
    shape = "x".join(map(str, configuration.image_shape))
    console.message(f"training {configuration.name} on {count} images of {data.name}, {shape}")
    trained, seconds = run_training(
        train_gan, arguments, console, configuration, data.images, data_name=data.name
    )
    bundle = trained.bundles.get("eval")
    if bundle is not None:
        console.message(f"try: pyinv generate {bundle} -n 64 -o samples.png")
    console.result(
        {
            "folder": str(trained.folder),
            "bundles": {mode: str(path) for mode, path in trained.bundles.items()},
            "configuration": configuration.describe(),
            "data": data.name,
            "images": count,
            "seconds": seconds,
        }
    )


def _configuration(arguments: argparse.Namespace) -> GanConfiguration:
    """Return the named configuration with the command line's changes."""
    configuration = get_configuration(arguments.config)
    channels, size, _ = configuration.image_shape
    changes: dict[str, Any] = {
        "model": arguments.model,
        "prior": None if arguments.prior is None else _PRIORS[arguments.prior],
        "iterations": arguments.iterations,
        "width": arguments.width,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if arguments.image_size is not None or arguments.channels is not None:
        side = size if arguments.image_size is None else arguments.image_size
        changes["image_shape"] = (arguments.channels or channels, side, side)
    model = get_model(changes.get("model", configuration.model))
    if configuration.width is not None and "width" not in dict(model.options):
        changes.setdefault("width", None)
    if configuration.growth and not model.grows:
        changes["growth"] = 0
    changed = [name for name, value in changes.items() if value != getattr(configuration, name)]
    if changed:
        changes["source"] = f"{configuration.source}; changed: {', '.join(changed)}"
    return configuration.replace(**changes)


def _epilog() -> str:
    width = max(map(len, CONFIGURATIONS))
    rows = []
    for name, configuration in CONFIGURATIONS.items():
        prior = configuration.prior.kind()
        shape = "x".join(map(str, configuration.image_shape))
        rows.append(
            f"  {name:<{width}}  {shape:<8}  {prior:<7}  batch {configuration.batch_size:<4}"
            f"{configuration.iterations:>6} iterations of {configuration.model}"
        )
    listed = "\n".join(rows)
    return f"""\
configurations (channels x height x width, prior):
{listed}
Configurations of up to 32 pixels take minutes on a CPU. Those of 64 pixels take hours: use a GPU.

contents of DIR:
  generator.bundle        the generator, for pyinv invert, generate and info
  generator-batch.bundle  the same with batch statistics (creswell only)
  samples/                images of 64 latents after each tenth of the iterations
  losses.csv              losses of discriminator and generator, one line per iteration
  configuration.json      all settings, and a description of the images
  checkpoint.pt           the state to resume from
  generator.pt            the generator's weights

Ctrl-C saves a checkpoint, and the same command resumes. On a CPU with the same number of threads,
the final weights are bit-identical to those of an uninterrupted training.

examples:
  pyinv train gan --data mnist/ -o digits
  pyinv train gan --data mnist/ --config creswell --prior normal -o digits-normal
  pyinv train gan --data omniglot/ --config creswell-omniglot -o characters
  pyinv train gan --data photos/ --config egan --device cuda -o photos-gan
"""
