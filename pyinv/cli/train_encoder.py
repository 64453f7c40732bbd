"""``pyinv train encoder``: train an encoder of any generator, a bundle's included."""

from __future__ import annotations

import argparse
import time
from typing import Any

from pyinv.cli.console import Console
from pyinv.cli.exit_codes import DONE, INTERRUPTED
from pyinv.cli.export import parse_prior, parse_shape
from pyinv.datasets import DATASET_FORMATS, load_dataset
from pyinv.errors import DependencyError
from pyinv.training import (
    ENCODER_CONFIGURATIONS,
    EncoderConfiguration,
    get_encoder_configuration,
)
from pyinv.training.encoder_configurations import LATENT_LOSSES, METHODS, NETWORKS

__all__ = ["add_encoder", "run"]

# Those of Bau et al. for the methods that are theirs.
_DEFAULTS = {"latent+image": "bau-32", "layers": "bau-32"}
_DEFAULT = "luo-32"


def add_encoder(kinds: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = kinds.add_parser(
        "encoder",
        parents=[shared],
        help="an encoder, from a generator's images to their latents",
        description=(
            "Train an encoder of a generator, and write the generator's bundle with it, for\n"
            "pyinv encode and pyinv invert --init encoder. The generator is not changed, and a\n"
            "bundle is enough: its own gradients stand for back-propagation through it.\n"
            'Needs PyTorch: pip install "pyinv[export]"'
        ),
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "generator",
        metavar="GENERATOR",
        help="a bundle; the folder of pyinv train gan; or, as for pyinv export, module:factory, "
        "file.py:factory or a TorchScript file",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="folder to write to; if it holds a part of this training, it is continued",
    )
    parser.add_argument(
        "--method", choices=METHODS, help="how to train, listed below [the configuration's]"
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="settings to start from, listed below [bau-32 for latent+image and layers, else "
        f"{_DEFAULT}]",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help=f"real images, for bigan, or aegan with --real-share: {DATASET_FORMATS}",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin again in a folder that holds a training"
    )

    settings = parser.add_argument_group("settings", "each overrides the configuration's own")
    settings.add_argument("--network", choices=NETWORKS, help="the encoder's layers")
    settings.add_argument("--width", type=int, metavar="N", help="channels of its first layer")
    settings.add_argument("--latent-loss", choices=LATENT_LOSSES, help="of direct and latent+image")
    settings.add_argument(
        "--image-loss",
        metavar="NAME",
        help="of aegan and latent+image: a loss that the generator's bundle has, or auto",
    )
    settings.add_argument(
        "--image-weight", type=float, metavar="X", help="of the image loss in latent+image"
    )
    settings.add_argument(
        "--real-share",
        type=float,
        metavar="X",
        help="of each batch of aegan, from 0 to 1: how many images are real ones, from --data",
    )
    settings.add_argument(
        "--gradient-penalty", type=float, metavar="X", help="weight, on bigan's discriminator"
    )
    settings.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help="updates; with more than before, a finished training is continued (not layers)",
    )
    settings.add_argument("--batch-size", type=int, metavar="N", help="images in an iteration")
    settings.add_argument(
        "--learning-rate", type=float, metavar="X", help="the first one (not layers)"
    )
    settings.add_argument("--seed", type=int, metavar="N", help="of all random draws")

    source = parser.add_argument_group("generator", "of a module or TorchScript file only")
    source.add_argument(
        "--latent-shape", metavar="N[,N...]", type=parse_shape, help="of one latent, such as 100"
    )
    source.add_argument(
        "--prior",
        metavar="KIND[:A,B]",
        type=parse_prior,
        help="uniform[:low,high] or normal[:mean,std] [uniform:-1,1]",
    )
    source.add_argument(
        "--value-range",
        metavar=("LOW", "HIGH"),
        nargs=2,
        type=float,
        help="of the generator's pixels [-1 1]",
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... [%(default)s]")
    machine.add_argument("--threads", type=int, metavar="N", help="CPU threads [all cores]")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the command; return its exit code."""
    configuration = _configuration(arguments)
    try:
        import torch  # noqa: F401
    except ImportError:
        raise DependencyError("training needs PyTorch: pip install 'pyinv[export]'") from None
    from pyinv.training.encoder import train_encoder
    from pyinv.training.encoder_methods import check_method
    from pyinv.training.frozen import open_generator
    from pyinv.training.gan import check_device, check_threads

    device = check_device(arguments.device)
    threads = check_threads(arguments.threads)
    generator = open_generator(
        arguments.generator,
        latent_shape=arguments.latent_shape,
        prior=arguments.prior,
        value_range=arguments.value_range,
        device=device,
        threads=threads,
    )
    # Reading the images may take minutes.
    configuration = check_method(configuration, generator, has_data=arguments.data is not None)
    data: dict[str, Any] = {}
    if arguments.data is not None:
        console.message(f"reading {arguments.data}")
        images = load_dataset(arguments.data, split="train", image_shape=generator.image_shape)
        data = {"data": images.images, "data_name": images.name}
    shape = "x".join(map(str, generator.image_shape))
    console.message(
        f"training an encoder of {generator.name}, {shape}: {configuration.method}, "
        f"{configuration.iterations} iterations of {configuration.batch_size}"
    )
    started = time.perf_counter()
    try:
        trained = train_encoder(
            configuration,
            generator,
            arguments.output,
            device=arguments.device,
            threads=threads,
            progress=console.shows_progress,
            say=console.message,
            overwrite=arguments.overwrite,
            **data,
        )
    except KeyboardInterrupt:
        console.error(f"interrupted; the same command continues what is in {arguments.output}")
        return INTERRUPTED
    seconds = time.perf_counter() - started
    console.message(f"try: pyinv invert {trained.bundle} IMAGES --init encoder -o latents.npz")
    console.result(
        {
            "folder": str(trained.folder),
            "bundle": str(trained.bundle),
            "weights": str(trained.weights),
            "configuration": trained.configuration.describe(),
            "seconds": seconds,
        }
    )
    return DONE


def _configuration(arguments: argparse.Namespace) -> EncoderConfiguration:
    """Return the named configuration with the command line's changes."""
    name = arguments.config or _DEFAULTS.get(arguments.method, _DEFAULT)
    configuration = get_encoder_configuration(name, arguments.method)
    names = (
        "network",
        "width",
        "latent_loss",
        "image_loss",
        "image_weight",
        "real_share",
        "gradient_penalty",
        "batch_size",
        "seed",
    )
    given = {name: getattr(arguments, name) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    if arguments.learning_rate is not None:
        schedule = configuration.schedule.replace(learning_rate=arguments.learning_rate)
        changes["schedule"] = schedule
    changed = [name for name, value in changes.items() if value != getattr(configuration, name)]
    changed_configuration = configuration.replace(**changes)
    if arguments.iterations is not None:
        changed_configuration = changed_configuration.with_iterations(arguments.iterations)
        changed.append("iterations")
    if not changed:
        return configuration
    source = f"{configuration.source}; changed: {', '.join(changed)}"
    return changed_configuration.replace(source=source)


def _epilog() -> str:
    width = max(map(len, ENCODER_CONFIGURATIONS))
    rows = [
        f"  {name:<{width}}  {one.method:<12}  batch {one.batch_size:<4}"
        f"{one.schedule.iterations:>6} iterations, learning rate {one.schedule.learning_rate:g}"
        for name, one in ENCODER_CONFIGURATIONS.items()
    ]
    listed = "\n".join(rows)
    return f"""\
methods, with z from the prior and x = G(z):
  direct        distance of E(x) from z (Luo et al. 2017)
  aegan         distance of G(E(x)) from x, which may be real images (Luo et al. 2017, eq. 5-8)
  latent+image  the sum of both (Bau et al. 2019, method b)
  bigan         encoder, generator and discriminator together; writes that generator
                (Donahue et al. 2017, with the networks of Luo et al. 2017)
  layers        an inverse for each of G's layers, then all fine-tuned (Bau et al. 2019, method d)

configurations, with the method that each has by default:
{listed}
Those that end in -32 take minutes on a CPU with images of 32 pixels; give the others a GPU.

what DIR will hold:
  generator.bundle        the generator with the function encode
  encoder.pt              the encoder's weights, a state dict
  samples/                images, each row above what G(E(x)) makes of it, after each tenth
  losses.csv              one line per iteration
  configuration.json      all settings, and which generator and images
  checkpoint.pt           what a later run continues from

Ctrl-C keeps what was done, and the same command continues. On a CPU, with as many threads, the
weights at the end are the same to the last bit as if it had not been stopped.

examples:
  pyinv train encoder faces.bundle -o faces-encoder
  pyinv train encoder digits/ --method direct -o digits-encoder
  pyinv train encoder faces.bundle --data photos/ --real-share 0.5 -o faces-encoder
  pyinv train encoder progan/ --config bau-32 --method layers -o progan-encoder
  pyinv train encoder models.py:make_generator --latent-shape 100 -o encoder
"""
