"""Progress reports during a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from pyinv.errors import DependencyError, InputError

__all__ = ["Progress", "check_progress", "duration", "progress_reporter"]

Progress = Callable[[dict[str, Any]], None]

# A long run prints a line less often, after a twentieth of its time, so that its log stays short.
LINE_EVERY = 10.0  # seconds
LINE_EVERY_SHARE = 0.05


def check_progress(progress: bool | Progress | None) -> None:
    """Validate the argument ``progress`` of a run or a training.

    Raises:
        InputError: not None, a bool or a function.
        DependencyError: ``progress`` is True and tqdm is not installed.
    """
    if progress is True:
        if find_spec("tqdm") is None:
            raise DependencyError("progress=True needs tqdm: pip install tqdm")
    elif progress is not None and progress is not False and not callable(progress):
        raise InputError(f"progress must be None, True or a function, got {progress!r}")


def duration(seconds: float) -> str:
    """Return a duration as text, such as "about 5 minutes"."""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


@contextmanager
def progress_reporter(
    progress: bool | Progress | None, targets: int, max_steps: int, unit: str = "images"
) -> Iterator[Progress | None]:
    """Yield the function that the engine reports progress to; close the bar at the end.

    Args:
        progress: None or False for no reports; True for a bar on standard error if that is a
            terminal, and otherwise a line about every ten seconds; or a function.
        targets: number of targets.
        max_steps: maximum number of steps per attempt.
        unit: name of the targets.

    Raises:
        InputError, DependencyError: as ``check_progress``.
    """
    check_progress(progress)
    if progress is not True:
        yield progress or None
        return

    def worked(now: dict[str, Any]) -> float:
        # Targets that use all their steps finish together at the end. Estimate progress from the
        # number of evaluations, but never above the number of targets started.
        started = min(now["finished"] + now["active"], targets)
        return float(max(now["finished"], min(now["evaluations"] / max_steps, started)))

    if not sys.stderr.isatty():
        yield _lines(targets, unit, worked)
        return
    from tqdm import tqdm

    layout = (
        "{percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} "
        f"{unit} [{{elapsed}}<{{remaining}}, {{rate_fmt}}{{postfix}}]"
    )
    with tqdm(total=targets, unit=f" {unit}", bar_format=layout, file=sys.stderr) as bar:

        def report(now: dict[str, Any]) -> None:
            bar.n = int(worked(now))
            bar.set_postfix_str(f"mean loss {now['mean_loss']:.3g}", refresh=False)
            bar.refresh()

        yield report


def _lines(targets: int, unit: str, worked: Callable[[dict[str, Any]], float]) -> Progress:
    """Return the function that prints a line to standard error if the last is long enough ago."""
    began = printed = time.monotonic()

    def report(now: dict[str, Any]) -> None:
        nonlocal printed
        moment = time.monotonic()
        elapsed = moment - began
        if moment - printed < max(LINE_EVERY, LINE_EVERY_SHARE * elapsed):
            return
        printed = moment
        done = worked(now)
        rate = done / elapsed
        parts = [f"{now['finished']:,} of {targets:,} {unit} done", f"{rate:.3g} {unit}/s"]
        if 0 < done < targets:
            parts.append(f"{duration((targets - done) / rate)} left")
        if now["active"]:
            parts.append(f"mean loss {now['mean_loss']:.3g}")
        print(f"{done / targets:4.0%}  {', '.join(parts)}", file=sys.stderr, flush=True)

    return report
