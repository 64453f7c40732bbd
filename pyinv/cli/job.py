"""``pyinv invert`` with an output folder: a job that can be resumed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from pyinv.bundle import Bundle
from pyinv.cli.console import Console
from pyinv.cli.exit_codes import DONE, INTERRUPTED, NON_FINITE, UNFINISHED
from pyinv.cli.options import machine_options, whole
from pyinv.errors import InputError, PyinvError
from pyinv.jobs import JobStopped, JobSummary, run_job
from pyinv.recipes import Recipe

__all__ = ["add_options", "check_options", "is_job", "run"]

_OPTIONS = ("shard", "shard_size", "image_column", "id_column", "columns", "on_error", "workers")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only jobs have."""
    job = parser.add_argument_group(
        "jobs", "with an output folder, OUT/: any number of images, resumed by the same command"
    )
    job.add_argument(
        "--shard",
        metavar="I/N",
        help="work on part I of N, from 1/N to N/N, such as one on each machine",
    )
    whole(job, "--shard-size", "rows of a Parquet file [1000]")
    job.add_argument("--image-column", metavar="NAME", help="a table's column of images [image]")
    job.add_argument("--id-column", metavar="NAME", help="a table's column of ids [id]")
    job.add_argument(
        "--columns", metavar="A,B", help="a table's columns to carry through [all]; '' for none"
    )
    job.add_argument(
        "--on-error",
        choices=("result", "raise"),
        help="give an unreadable image a row with the status invalid, or stop [result]",
    )
    whole(job, "--workers", "threads that decode images [2]")


def is_job(output: str) -> bool:
    """Return whether an output is a folder, and not a file."""
    if output.endswith(("/", os.sep)):
        return True
    return Path(output).is_dir() and Path(output).suffix != ".npz"


def check_options(arguments: argparse.Namespace) -> None:
    """Raise InputError for options of jobs where the output is a file."""
    for name in _OPTIONS:
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')}: is for jobs, which write to a folder: end the "
                "output in /"
            )


def run(arguments: argparse.Namespace, console: Console, bundle: Bundle, recipe: Recipe) -> int:
    """Run or resume a job; return the exit code."""
    from pyinv.inverter import Inverter

    given = {name: getattr(arguments, name) for name in _OPTIONS}
    options = {name: value for name, value in given.items() if value is not None}
    if "columns" in options:
        options["columns"] = [name for name in options["columns"].split(",") if name]
    try:
        summary = run_job(
            Inverter(bundle, **machine_options(arguments)),
            arguments.images,
            arguments.output,
            recipe=recipe,
            seed=arguments.seed,
            noise=arguments.noise if arguments.uncertainty else None,
            conditions=_conditions(arguments, bundle),
            fit=arguments.fit,
            uncertainty=arguments.uncertainty,
            save_images_to=arguments.save_images,
            progress=console.shows_progress,
            on_event=_Events(console),
            **options,
        )
    except JobStopped as stop:
        console.event(
            {
                "event": "stopped",
                "signal": stop.signal,
                "finished": stop.finished,
                "targets": stop.targets,
            }
        )
        console.error(f"ended by {stop.signal}: {stop}")
        return UNFINISHED if stop.signal == "SIGTERM" else INTERRUPTED
    except PyinvError as error:
        console.event({"event": "error", "message": str(error)})
        raise
    _report(summary, console)
    bad = summary.counts.get("non_finite", 0) + summary.counts.get("invalid", 0)
    return NON_FINITE if bad else DONE


class _Events:
    """Prints a job's events, and warnings before the event that follows them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._warned = 0

    def __call__(self, event: dict[str, Any]) -> None:
        console = self._console
        for message in console.warned[self._warned :]:
            console.event({"event": "warning", "message": message})
        self._warned = len(console.warned)
        if event["event"] == "start":
            done = f"; {event['finished']:,} are already done" if event["finished"] else ""
            console.message(
                f"inverting {event['targets']:,} images with recipe {event['recipe']}{done}"
            )
        console.event(event)


def _report(summary: JobSummary, console: Console) -> None:
    counts = ", ".join(
        f"{count:,} {name}" for name, count in sorted(summary.counts.items()) if count
    )
    if not summary.targets:
        console.message(
            "nothing to do: the job has fewer shards than parts, and none for this one; a "
            "smaller --shard-size makes more"
        )
        return
    invalid = "; the column reason says what is wrong" if summary.counts.get("invalid") else ""
    console.message(f"{summary.targets:,} images: {counts}{invalid}")
    if summary.resumed == summary.targets:
        console.message(f"all were done before; the results are {summary.output}/part-*.parquet")
        return
    console.message(
        f"{summary.seconds:.1f} s, {summary.images_per_second:.3g} images/s; wrote "
        f"{summary.output}/part-*.parquet"
    )


def _conditions(arguments: argparse.Namespace, bundle: Bundle) -> dict[str, Any] | None:
    """Return ``--condition`` as a job takes it: numbers for all targets, or columns' names."""
    found: dict[str, Any] = {}
    for text in arguments.condition or ():
        name, equals, value = text.partition("=")
        known = bundle.manifest.conditions
        if not equals and len(known) == 1:
            name, value = next(iter(known)), text
        if not value or name in found:
            raise InputError(f"--condition must be NAME=VALUE, once for each, got {text!r}")
        try:
            found[name] = float(value) if "." in value else int(value)
        except ValueError:
            found[name] = value
    return found or None
