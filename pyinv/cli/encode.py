"""``pyinv encode``: encode images with a bundle's encoder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from pyinv.atomic_files import OutputFile
from pyinv.cli.console import Console
from pyinv.cli.options import (
    add_conditions,
    add_machine_options,
    add_overwrite,
    add_size_limits,
    add_timeout,
    conditions,
    input_files,
    machine_options,
)
from pyinv.errors import OutputError
from pyinv.images import FITS, load_named_images

__all__ = ["add_parser", "run"]

_EPILOG = """\
OUT.npz contains latents and sources (the file of each image); OUT.npy contains only the latents.
The latents are approximate; `pyinv invert --init encoder` starts from them and refines them.

examples:
  pyinv encode faces.bundle photos/ -o latents.npz
  pyinv generate faces.bundle --latents latents.npz -o reconstructions.png
"""


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "encode",
        parents=[shared],
        help="find latents in one pass, with a bundle that has an encoder",
        description="Find latents of images in one pass of the bundle's encoder, without search.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder or address")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="image files, folders, .npy or .npz files; for generators of audio also .wav files",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help=".npz or .npy file to write"
    )
    parser.add_argument(
        "--fit",
        choices=FITS,
        default="crop",
        help="how to fit images of another size: cover and crop, or stretch [%(default)s]",
    )
    add_overwrite(parser)
    add_conditions(parser)
    add_machine_options(parser)
    add_size_limits(parser)
    add_timeout(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    from pyinv.inverter import Inverter

    kind = Path(arguments.output).suffix.lower()
    if kind not in (".npz", ".npy"):
        raise OutputError(f"{arguments.output}: expected a file name that ends in .npz or .npy")
    with OutputFile(
        arguments.output, overwrite=arguments.overwrite, inputs=input_files(arguments)
    ) as output:
        inverter = Inverter(arguments.bundle, **machine_options(arguments))
        inverter.manifest.encode(inverter.runtime)  # before the images are read
        given = conditions(arguments, inverter.manifest)
        images, sources = load_named_images(arguments.images, inverter.manifest, fit=arguments.fit)
        start = time.perf_counter()
        latents = inverter.encode(images, conditions=given, timeout=arguments.timeout)
        seconds = time.perf_counter() - start
        if kind == ".npy":
            output.write(lambda file: np.save(file, latents))
        else:
            output.write(lambda file: np.savez(file, latents=latents, sources=np.array(sources)))
    console.message(f"wrote {len(latents)} latents to {arguments.output}")
    console.result(
        {
            "bundle": arguments.bundle,
            "images": len(latents),
            "latent_shape": list(inverter.manifest.latent_shape),
            "seconds": seconds,
            "output": arguments.output,
        }
    )
