"""Options that several commands have."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyinv.array_files import read_array
from pyinv.batching import DEFAULT_BATCH_SIZE
from pyinv.bundle import RUNTIMES, Manifest
from pyinv.conditions import Input, Label
from pyinv.errors import InputError
from pyinv.tables import TABLE_SUFFIXES, read_column

__all__ = [
    "add_conditions",
    "add_machine_options",
    "add_overwrite",
    "add_size_limits",
    "add_strict",
    "add_threads",
    "add_timeout",
    "conditions",
    "input_files",
    "machine_options",
    "real",
    "whole",
]

_INPUTS = ("bundle", "images", "latents", "init", "weights")  # options that name files
_VALUE = "a number or a .npy, .npz or .parquet file"

# What takes arguments: a parser, or a group of its arguments.
Arguments = argparse._ActionsContainer


def whole(arguments: Arguments, name: str, help: str, **settings: Any) -> None:
    """Add an option that is a whole number."""
    arguments.add_argument(name, type=int, metavar="N", help=help, **settings)


def real(arguments: Arguments, name: str, help: str) -> None:
    """Add an option that is a real number."""
    arguments.add_argument(name, type=float, metavar="X", help=help)


def add_timeout(arguments: Arguments) -> None:
    """Add ``--timeout``."""
    arguments.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="end after S seconds, with the results so far, if there are any",
    )


def add_threads(arguments: Arguments) -> None:
    """Add ``--threads``."""
    whole(arguments, "--threads", "CPU threads [all cores]")


def add_overwrite(arguments: Arguments, help: str = "replace existing files") -> None:
    """Add ``--overwrite``."""
    arguments.add_argument("--overwrite", action="store_true", help=help)


def add_size_limits(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-pixels`` and ``--max-bytes``, which ``main`` sets."""
    limits = parser.add_argument_group("limits of input files")
    whole(limits, "--max-pixels", "pixels of an image [67108864]")
    whole(
        limits,
        "--max-bytes",
        "bytes that a compressed file unpacks to [536870912, or ten times the file's]",
    )


def input_files(arguments: argparse.Namespace) -> list[str]:
    """Return the files that a command reads, and may not replace. Some may not exist."""
    given = [value for name in _INPUTS if (value := getattr(arguments, name, None)) is not None]
    files = [file for value in given for file in ([value] if isinstance(value, str) else value)]
    conditions = [text.partition("=")[2] or text for text in arguments.condition or ()]
    return files + conditions


def add_strict(arguments: Arguments) -> None:
    """Add ``--strict``."""
    arguments.add_argument(
        "--strict", action="store_true", help="make warnings of likely mistakes errors"
    )


def add_machine_options(parser: argparse.ArgumentParser, *, batch_size: bool = False) -> None:
    """Add runtime, device and threads to a command, optionally with ``--batch-size``."""
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--runtime",
        default="auto",
        metavar="NAME",
        help=f"{' or '.join(RUNTIMES)}, if the bundle supports it [the bundle's first]",
    )
    machine.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1 and so on, or auto [%(default)s]"
    )
    machine.add_argument(
        "--tf32", action="store_true", help="let a GPU use TF32: faster, relative errors near 1e-3"
    )
    add_threads(machine)
    if batch_size:
        machine.add_argument(
            "--batch-size",
            type=_whole_or_text,
            default=DEFAULT_BATCH_SIZE,
            metavar="N",
            help='targets that run in parallel, or "auto" [%(default)s]',
        )


def add_conditions(arguments: Arguments) -> None:
    """Add ``--condition``."""
    arguments.add_argument(
        "--condition",
        metavar="NAME=VALUE",
        action="append",
        help="what the generator takes beside the latent; `pyinv info` lists it. A number for all "
        "targets, or a .npy, .npz or .parquet file with a row for each; repeat for several; NAME= "
        "may be left out if there is one",
    )


def conditions(arguments: argparse.Namespace, manifest: Manifest) -> dict[str, Any] | None:
    """Return the conditions of ``--condition``, or None; raise InputError if they are no such."""
    found: dict[str, Any] = {}
    for text in arguments.condition or ():
        name, equals, value = text.partition("=")
        if not equals or (name not in manifest.conditions and Path(text).exists()):
            if not manifest.conditions:
                raise InputError("--condition: this bundle takes no conditions; leave it out")
            if len(manifest.conditions) > 1:
                raise InputError(
                    f"--condition must be NAME=VALUE, got {text!r}; the bundle takes "
                    f"{', '.join(manifest.conditions)}"
                )
            name, value = next(iter(manifest.conditions)), text
        if name in found:
            raise InputError(f"--condition gives {name!r} twice; give it once")
        if not value:
            raise InputError(f"--condition {name}= needs {_VALUE}")
        found[name] = _number_or_array(value, name)
    missing = [name for name in manifest.conditions if name not in found]
    if missing and found.keys() <= manifest.conditions.keys():  # a wrong name is refused later
        needed = {name: manifest.conditions[name] for name in missing}
        described = ", ".join(f"{name} ({condition})" for name, condition in needed.items())
        options = " ".join(f"--condition {name}={_example(needed[name])}" for name in missing)
        raise InputError(f"this bundle also needs {described}; add {options}")
    return found or None


def _example(condition: Input) -> str:
    """Return a value of a condition as ``--condition`` takes it."""
    if isinstance(condition, Label):
        return str(min(3, condition.classes - 1))
    return f"{condition.high:g}" if condition.columns == 1 else "FILE.npy"


def _number_or_array(text: str, name: str) -> Any:
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    if not Path(text).is_file():
        raise InputError(f"--condition {name} must be {_VALUE}, and there is no file {text}")
    if Path(text).suffix.lower() in TABLE_SUFFIXES:
        return read_column(Path(text), name)
    return read_array(text, name)


def machine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options as arguments of ``Inverter``."""
    names = ("runtime", "device", "tf32", "threads", "batch_size")
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def _whole_or_text(given: str) -> int | str:
    return int(given) if given.isdecimal() else given
