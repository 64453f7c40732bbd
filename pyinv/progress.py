"""Progress reports during a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from pyinv.errors import DependencyError, InputError

__all__ = ["Progress", "check_progress", "progress_reporter"]

Progress = Callable[[dict[str, Any]], None]


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


@contextmanager
def progress_reporter(
    progress: bool | Progress | None, targets: int, max_steps: int, unit: str = "images"
) -> Iterator[Progress | None]:
    """Yield the function that the engine reports progress to; close the bar at the end.

    Args:
        progress: None or False for no reports, True for a progress bar on standard error, or a
            function.
        targets: number of targets.
        max_steps: maximum number of steps per attempt.
        unit: name of the targets on the bar.

    Raises:
        InputError, DependencyError: as ``check_progress``.
    """
    check_progress(progress)
    if progress is not True:
        yield progress or None
        return
    from tqdm import tqdm

    layout = (
        "{percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} "
        f"{unit} [{{elapsed}}<{{remaining}}{{postfix}}]"
    )
    with tqdm(total=targets, bar_format=layout, file=sys.stderr) as bar:

        def report(now: dict[str, Any]) -> None:
            # Targets that use all their steps finish together at the end. Estimate progress from
            # the number of evaluations, but never above the number of targets started.
            estimate = now["evaluations"] // max_steps
            started = min(now["finished"] + now["active"], targets)
            bar.n = max(now["finished"], min(estimate, started))
            bar.set_postfix_str(f"mean loss {now['mean_loss']:.3g}", refresh=False)
            bar.refresh()

        yield report
