"""Progress reports during a training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from pyinv.progress import Progress

__all__ = ["beside_bar", "iteration_reporter"]


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
    if progress is not True:
        yield progress or None
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
