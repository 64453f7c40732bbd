"""Progress: what a run tells its user while it lasts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyinv.errors import DependencyError, InputError

__all__ = ["Progress", "progress_reporter"]

Progress = Callable[[dict[str, Any]], None]


@contextmanager
def progress_reporter(
    progress: bool | Progress | None, targets: int, max_steps: int, unit: str = "images"
) -> Iterator[Progress | None]:
    """Give the function that the engine reports to; a bar is closed at the end.

    Args:
        progress: None or False for silence, True for a bar on standard error, or a function.
        targets: how many there are.
        max_steps: the most steps of one attempt.
        unit: what a bar calls the targets.

    Raises:
        InputError: something else was given.
        DependencyError: a bar was asked for and tqdm is missing.
    """
    if progress is None or progress is False:
        yield None
        return
    if progress is not True:
        if not callable(progress):
            raise InputError(f"progress must be None, True or a function, got {progress!r}")
        yield progress
        return
    try:
        from tqdm import tqdm
    except ImportError:
        raise DependencyError("progress=True needs tqdm: pip install tqdm") from None

    layout = (
        "{percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} "
        f"{unit} [{{elapsed}}<{{remaining}}{{postfix}}]"
    )
    with tqdm(total=targets, bar_format=layout, file=sys.stderr) as bar:

        def report(now: dict[str, Any]) -> None:
            # Targets that run to their last step finish together at the end: count how many
            # attempts' worth of steps were made, and never more than could be done by now.
            made = now["evaluations"] // max_steps
            running = min(now["finished"] + now["active"], targets)
            bar.n = max(now["finished"], min(made, running))
            bar.set_postfix_str(f"mean loss {now['mean_loss']:.3g}", refresh=False)
            bar.refresh()

        yield report
