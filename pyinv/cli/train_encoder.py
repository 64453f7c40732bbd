"""``pyinv train encoder``: train an encoder for any generator, including a bundle."""

from __future__ import annotations

import argparse
from typing import Any

from pyinv.cli.console import Console
from pyinv.cli.export import parse_prior, parse_shape
from pyinv.cli.options import real, whole
from pyinv.cli.training import add_machine, add_output, add_overwrite, run_training
from pyinv.datasets import DATASET_FORMATS, load_dataset
from pyinv.extras import install_command
from pyinv.training import (
    ENCODER_CONFIGURATIONS,
    EncoderConfiguration,
    get_encoder_configuration,
)
from pyinv.training.encoder_configurations import LATENT_LOSSES, METHODS, NETWORKS

__all__ = ["add_encoder", "run"]

# The methods of Bau et al. default to their configuration.
_DEFAULTS = {"latent+image": "bau-32", "layers": "bau-32"}
_DEFAULT = "luo-32"


def add_encoder(kinds: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = kinds.add_parser(
        "encoder",
        parents=[shared],
        help="an encoder, from a generator's images to their latents",
        description=(
            "Train an encoder for a generator, and write the generator's bundle with the encoder\n"
            "for pyinv encode and pyinv invert --init encoder. Only bigan changes the\n"
            "generator. A bundle is enough: its gradients replace back-propagation through\n"
            "the generator.\n"
            f"Needs PyTorch: {install_command('export')}"
        ),
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "generator",
        metavar="GENERATOR",
        help="a bundle; the folder of pyinv train gan; or, as for pyinv export, module:factory, "
        "file.py:factory, or a TorchScript or ONNX file",
    )
    add_output(parser)
    parser.add_argument(
        "--method", choices=METHODS, help="training method, see below [the configuration's]"
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        help=f"configuration, see below [bau-32 for latent+image and layers, otherwise {_DEFAULT}]",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help=f"real images, for bigan, or aegan with --real-share: {DATASET_FORMATS}",
    )
    add_overwrite(parser)

    settings = parser.add_argument_group("settings", "each overrides the configuration's setting")
    settings.add_argument("--network", choices=NETWORKS, help="the encoder's architecture")
    whole(settings, "--width", "channels of its first layer")
    settings.add_argument(
        "--latent-loss", choices=LATENT_LOSSES, help="latent loss of direct and latent+image"
    )
    settings.add_argument(
        "--image-loss",
        metavar="NAME",
        help="image loss of aegan and latent+image: a loss of the generator's bundle, or auto",
    )
    real(settings, "--image-weight", "weight of the image loss in latent+image")
    real(
        settings,
        "--real-share",
        "fraction of real images, from --data, in each batch of aegan, 0 to 1",
    )
    real(settings, "--gradient-penalty", "weight of the gradient penalty on bigan's discriminator")
    whole(
        settings,
        "--iterations",
        "training steps; a larger number extends a finished training (not layers)",
    )
    whole(settings, "--batch-size", "images per iteration")
    real(settings, "--learning-rate", "initial learning rate (not layers)")
    whole(settings, "--seed", "random seed")

    source = parser.add_argument_group("generator", "for a module, TorchScript or ONNX file only")
    source.add_argument(
        "--latent-shape",
        metavar="N[,N...]",
        type=parse_shape,
        help="shape of one latent, such as 100",
    )
    source.add_argument(
        "--prior",
        metavar="KIND[:A,B]",
        type=parse_prior,
        help="uniform[:low,high] or normal[:mean,std]",
    )
    source.add_argument(
        "--value-range",
        metavar=("LOW", "HIGH"),
        nargs=2,
        type=float,
        help="range of the generator's pixels, such as -1 1",
    )

    add_machine(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    configuration = _configuration(arguments)
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
    trained, seconds = run_training(
        train_encoder, arguments, console, configuration, generator, **data
    )
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
  bigan         encoder, generator and discriminator jointly; writes the new generator
                (Donahue et al. 2017, with the networks of Luo et al. 2017)
  layers        an inverse for each of G's layers, then all fine-tuned (Bau et al. 2019, method d)

configurations, with their default methods:
{listed}
The -32 configurations take minutes on a CPU with images of 32 pixels; use a GPU for the others.

contents of DIR:
  generator.bundle        the generator with the function encode
  encoder.pt              the encoder's weights, a state dict
  samples/                rows of images x above G(E(x)), after each tenth of the iterations
  losses.csv              one line per iteration
  configuration.json      all settings, and a description of generator and images
  checkpoint.pt           the state to resume from

Ctrl-C saves a checkpoint, and the same command resumes. On a CPU with the same number of threads,
the final weights are bit-identical to those of an uninterrupted training.

examples:
  pyinv train encoder faces.bundle -o faces-encoder
  pyinv train encoder digits/ --method direct -o digits-encoder
  pyinv train encoder faces.bundle --data photos/ --real-share 0.5 -o faces-encoder
  pyinv train encoder progan/ --config bau-32 --method layers -o progan-encoder
  pyinv train encoder models.py:make_generator --latent-shape 100 --prior normal \\
      --value-range -1 1 -o encoder
"""
