"""The command line of benchmarks/recovery.py."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnxruntime
import torch

import pyinv
from pyinv import cores
from pyinv.errors import PyinvError

from . import ablation, consistency, cost, generated_images, noise
from .acceptance import judge
from .bench import Bench
from .data import REPOSITORY, find_data
from .generators import BY_DEFAULT, GENERATORS, Missing, Subject, obtain
from .methods import FIRST_ORDER_STEPS, METHODS
from .run_cache import RunCache
from .tables import tables

__all__ = ["main"]

# The promised figures are for two cores.
THREADS = 2
TARGETS = 1000
SECTIONS = ("recovery", "cost", "noise", "consistency", "ablation")
DONE, FAILED, INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    options = _parse(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        with _stops_keep_what_is_done():
            report = _measure(options, say)
    except KeyboardInterrupt:
        say(f"interrupted; results are in {options.cache}, and the same command resumes")
        return INTERRUPTED
    except (Missing, PyinvError) as error:
        say(f"error: {error}")
        return FAILED
    print(json.dumps(_plain(report)) if options.json else tables(report))
    return DONE


@contextmanager
def _stops_keep_what_is_done() -> Iterator[None]:
    """Treat the signal by which batch systems end a program as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="recovery.py",
        description="Measure the recovery of latents: how many, how exactly, and at what cost.",
        epilog="benchmarks/README.md describes the measurements and how long they take.",
    )
    several: dict[str, Any] = {"action": "append", "metavar": "NAME"}
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument(
        "--generator",
        choices=GENERATORS,
        help=f"one of {', '.join(GENERATORS)}; repeatable [{', '.join(BY_DEFAULT)}]",
        **several,
    )
    parser.add_argument(
        "--targets", type=int, default=TARGETS, help="images per generator [%(default)s]"
    )
    parser.add_argument(
        "--recipe",
        choices=METHODS,
        help=f"one of {', '.join(METHODS)}; repeatable [those that fit a generator's prior]",
        **several,
    )
    parser.add_argument(
        "--section",
        choices=SECTIONS,
        help=f"one of {', '.join(SECTIONS)}; repeatable [all]",
        **several,
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=FIRST_ORDER_STEPS,
        help="steps of the first-order methods [%(default)s]",
    )
    parser.add_argument(
        "--threads", type=int, help=f"threads of all contenders [{THREADS}, or all cores if fewer]"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="holds face_generator/generator.pt, mnist/ and omniglot/ [$PYINV_DATA, or the first "
        "folder called data near the repository that has them]",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        default=REPOSITORY / "build" / "recovery",
        help="for trained generators, bundles and results [build/recovery]",
    )
    reuse = parser.add_mutually_exclusive_group()
    reuse.add_argument(
        "--resume",
        action="store_true",
        help="reuse cached results with the same settings (the default)",
    )
    reuse.add_argument("--fresh", action="store_true", help="measure everything again")
    options = parser.parse_args(arguments)
    for name in ("targets", "steps", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be 1 or more, got {value}")
    if options.data is not None and not options.data.is_dir():
        parser.error(f"--data must be a folder, got {options.data}")
    options.threads = options.threads or min(THREADS, cores.usable_cores())
    options.generator = list(dict.fromkeys(options.generator or BY_DEFAULT))
    return options


def _measure(options: argparse.Namespace, say: Any) -> dict[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        say(f"other programs were running just now (load {load:.1f}): expect noise in seconds")
    torch.set_num_threads(options.threads)
    bar = sys.stderr.isatty()
    cache = RunCache(options.cache / "runs", fresh=options.fresh, progress=bar, say=say)
    bench = Bench(
        targets=options.targets,
        steps=options.steps,
        threads=options.threads,
        methods=frozenset(options.recipe or METHODS),
        cache=cache,
        say=say,
        skipped=[],
    )
    subjects = _obtain(options, bench, bar)
    wanted = options.section or SECTIONS
    report: dict[str, Any] = {
        "benchmark": "recovery of latents",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": options.threads,
        "load_before": load,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pyinv": pyinv.__version__,
        "generators": {subject.key: subject.describe() for subject in subjects},
    }
    # Measure the promised figures first. The papers' methods, which take most of the time, come
    # last: their sections run twice, and the second time the other results come from the cache.
    with_papers = {"noise": noise.run, "consistency": consistency.run}
    if "recovery" in wanted:
        generated_images.run(bench, subjects, complete=False)
    if "cost" in wanted:
        report["cost"] = cost.run(bench, subjects)
    for section, run in with_papers.items():
        if section in wanted:
            run(bench, subjects, complete=False)
    if "ablation" in wanted:
        report["ablation"] = ablation.run(bench, subjects)
    for section, run in with_papers.items():
        if section in wanted:
            report[section] = run(bench, subjects, complete=True)
    if "recovery" in wanted:
        report["results"] = generated_images.run(bench, subjects, complete=True)
    report["skipped"] = bench.skipped
    report["acceptance"] = judge(report)
    report["kept_from_before"] = cache.read_back
    return report


def _obtain(options: argparse.Namespace, bench: Bench, bar: bool) -> list[Subject]:
    """Return the available generators; raise Missing if there is none."""
    data = find_data(options.data)
    subjects = [
        subject
        for key in options.generator
        if (subject := _open(key, data, options, bench, bar)) is not None
    ]
    if not subjects:
        raise Missing(
            "no generator to measure; give a folder with face_generator/generator.pt, mnist/ and "
            "omniglot/ (--data or PYINV_DATA)"
        )
    return subjects


def _open(
    key: str, data: Path | None, options: argparse.Namespace, bench: Bench, bar: bool
) -> Subject | None:
    try:
        return obtain(
            key,
            data=data,
            cache=options.cache,
            threads=options.threads,
            progress=bar,
            say=bench.say,
        )
    except Missing as why:
        bench.skip(key, why)
        return None


def _plain(value: Any) -> Any:
    """Return JSON values, with None for numbers that JSON does not support."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return platform.processor() or platform.machine()
