"""``pyinv generate``: generate images from random or given latents."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from pyinv.array_files import read_array
from pyinv.atomic_files import OutputFile, OutputFolder
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

__all__ = ["add_parser", "run"]


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "generate",
        parents=[shared],
        help="generate images from random or given latents",
        description="Generate images from latents drawn from the prior or read from a file.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder or address")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help=".npz: latents and images; .npy: images; .png: one grid of all images, "
        "in which small ones are enlarged; "
        "otherwise a folder with one PNG per image; only arrays if the bundle's targets are not "
        "pictures",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "-n", type=int, default=16, metavar="N", help="number of random latents [%(default)s]"
    )
    source.add_argument(
        "--latents", metavar="FILE", help=".npy, or .npz with an array named latents, instead"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random latents [%(default)s]"
    )
    add_overwrite(parser)
    add_conditions(parser)
    add_machine_options(parser)
    add_size_limits(parser)
    add_timeout(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    from pyinv.images import not_pictures, picture_names, save_grid, save_images
    from pyinv.inverter import Inverter

    kind = _kind(arguments.output)
    replacing: dict[str, Any] = {
        "overwrite": arguments.overwrite,
        "inputs": input_files(arguments),
    }
    with (
        OutputFolder(arguments.output)
        if kind == ""
        else OutputFile(arguments.output, **replacing) as output
    ):
        inverter = Inverter(arguments.bundle, **machine_options(arguments))
        if kind in ("", ".png") and not inverter.manifest.is_picture:
            raise OutputError(
                f"{arguments.output}: {not_pictures(inverter.manifest)}; write .npz or .npy"
            )
        if arguments.latents is None:
            latents = inverter.sample(arguments.n, seed=arguments.seed)
        else:
            latents = read_array(arguments.latents, "latents")
        given = conditions(arguments, inverter.manifest)
        if isinstance(output, OutputFolder):
            names = picture_names(len(latents))
            output.check_free((f"{name}.png" for name in names), **replacing)
        images = inverter.generate(latents, conditions=given, timeout=arguments.timeout)
        value_range = inverter.manifest.value_range
        if isinstance(output, OutputFolder):
            save_images(images, output.path, value_range)
        elif kind == ".png":
            output.write(lambda file: save_grid(images, file, value_range))
        elif kind == ".npy":
            output.write(lambda file: np.save(file, images))
        else:
            output.write(lambda file: np.savez(file, latents=latents, images=images))
    console.message(f"wrote {len(images)} images to {arguments.output}")
    console.result(
        {
            "bundle": arguments.bundle,
            "images": len(images),
            "image_shape": list(inverter.manifest.image_shape),
            "latents": arguments.latents,
            "seed": arguments.seed if arguments.latents is None else None,
            "output": arguments.output,
        }
    )


def _kind(output: str) -> str:
    """Return the suffix of the output file, or an empty string for a folder."""
    path = Path(output)
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy", ".png"):
        return suffix
    if suffix and not path.is_dir() and not output.endswith("/"):
        raise OutputError(
            f"{output}: expected .npz, .npy, .png or a folder to write to; "
            "end a folder's name with /"
        )
    return ""
