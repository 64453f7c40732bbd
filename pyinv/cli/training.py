"""What ``pyinv train gan`` and ``pyinv train encoder`` share: options, and calling the training."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyinv.atomic_files import refuse_inputs
from pyinv.cli import options
from pyinv.cli.console import Console
from pyinv.cli.options import add_threads

__all__ = ["add_machine", "add_output", "add_overwrite", "run_training"]

Trained = TypeVar("Trained")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``."""
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="folder to write to; an unfinished training in it is resumed",
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``."""
    options.add_overwrite(parser, "start over in a folder that contains a training")


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--threads``."""
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... [%(default)s]")
    add_threads(machine)
    options.add_size_limits(parser)


def run_training(
    train: Callable[..., Trained],
    arguments: argparse.Namespace,
    console: Console,
    *inputs: Any,
    **options: Any,
) -> tuple[Trained, float]:
    """Train with the command's options; return the result and the seconds it took."""
    if arguments.overwrite:
        read = [getattr(arguments, name, None) for name in ("data", "generator")]
        refuse_inputs(Path(arguments.output), [path for path in read if path], within=True)
    started = time.perf_counter()
    try:
        trained = train(
            *inputs,
            arguments.output,
            device=arguments.device,
            threads=arguments.threads,
            progress=console.shows_bar,
            say=console.message,
            overwrite=arguments.overwrite,
            **options,
        )
    except KeyboardInterrupt:
        continued = f"the same command continues the training in {arguments.output}"
        raise KeyboardInterrupt(continued) from None
    return trained, time.perf_counter() - started
