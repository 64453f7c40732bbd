"""``pyinv demo``: recover latents with the bundle included in pyinv."""

from __future__ import annotations

import argparse
from typing import Any

from pyinv.atomic_files import OutputFolder
from pyinv.cli.console import Console
from pyinv.cli.options import add_threads

__all__ = ["add_parser", "run"]


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "demo",
        parents=[shared],
        help="run a demo with the bundle included in pyinv",
        description=(
            "Invert 64 real digits, and recover the latents of 128 generated ones, also with three "
            "kinds of clipping. Writes a picture. Takes about half a minute on two idle cores."
        ),
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="pyinv-demo",
        help="folder for the picture [%(default)s]",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed [%(default)s]")
    add_threads(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    from pyinv import demo

    with OutputFolder(arguments.output) as folder:
        report = demo.run(
            folder.path,
            seed=arguments.seed,
            threads=arguments.threads,
            quiet=console.quiet,
            json=console.json,
        )
    console.result(report)
