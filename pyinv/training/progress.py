"""Progress reports during a training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

from pyinv.errors import DependencyError, InputError

__all__ = ["Progress", "beside_bar", "check_progress", "iteration_reporter"]

Progress = Callable[[dict[str, Any]], None]


def check_progress(progress: bool | Progress | None) -> None:
    """Validate the argument ``progress`` of ``iteration_reporter``.

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
def iteration_reporter(
    progress: bool | Progress | None, done: int, iterations: int
) -> Iterator[Progress | None]:
    """Yield the function to call after every iteration; close the bar at the end.

    Args:
        progress: None or False for no reports, True for a progress bar on standard error, or a
            function.
        done: number of iterations of earlier runs.
        iterations: total number of iterations.
    """
    if progress is None or progress is False:
        yield None
        return
    if progress is not True:
        yield progress
        return
    from tqdm import tqdm

    layout = "{percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=iterations, initial=done, bar_format=layout, file=sys.stderr) as bar:

        def report(now: dict[str, Any]) -> None:
            losses = [
                f"{name.removesuffix('_loss')} {value:.3g}"
                for name, value in now.items()
                if name.endswith("_loss")
            ]
            bar.set_postfix_str(f"losses: {', '.join(losses)}", refresh=False)
            bar.update()

        yield report


def beside_bar(progress: bool | Progress | None) -> AbstractContextManager[None]:
    """A context for printing lines: it clears the progress bar, and redraws it afterwards."""
    if progress is not True:
        return nullcontext()
    from tqdm import tqdm

    mode: AbstractContextManager[None] = tqdm.external_write_mode(file=sys.stderr)
    return mode
