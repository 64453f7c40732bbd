"""The training loop, which can be interrupted and resumed with bit-identical results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pyinv.errors import InputError, OutputError, RunError
from pyinv.progress import Progress
from pyinv.training.checkpoint import is_out_of_memory, read_checkpoint, write_checkpoint
from pyinv.training.folder import TrainingFolder
from pyinv.training.interrupt import Interrupt
from pyinv.training.progress import beside_bar, iteration_reporter

__all__ = ["Training", "grid_due", "run_training", "torch_settings"]

GRIDS = 10


class Training(Protocol):
    """The interface of a training.

    Attributes:
        iteration: number of completed iterations.
        whole: False during an iteration, when the state must not be saved.
        losses: the losses of all iterations, in the format that the folder writes.
        loss_names: names of the losses of the last iteration.
        value_range: value range of ``samples``.
        finite: whether the losses of the last iteration and all weights are finite.
    """

    iteration: int
    whole: bool

    @property
    def losses(self) -> Any: ...

    @property
    def loss_names(self) -> tuple[str, ...]: ...

    @property
    def value_range(self) -> tuple[float, float]: ...

    @property
    def finite(self) -> bool: ...

    def step(self) -> tuple[float, ...]:
        """Run one iteration; return its losses."""

    def samples(self) -> NDArray[np.float32] | None:
        """Return sample images of the current state, [N, C, H, W], or None if too early."""

    def state(self) -> dict[str, Any]:
        """Return the state that the next iteration depends on, and the losses so far."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Load the output of ``state``."""


TrainingT = TypeVar("TrainingT", bound=Training)


def run_training(
    folder: TrainingFolder,
    start: Callable[[], TrainingT],
    export: Callable[[TrainingT], None],
    *,
    progress: bool | Progress | None,
    say: Callable[[str], None],
    checkpoint_seconds: float,
) -> None:
    """Run a training in its folder, or resume the one there, and export the result.

    Does nothing if the folder holds the finished training.

    Args:
        folder: the folder, entered.
        start: returns the training before its first iteration.
        export: writes the trained networks.
        progress: as for ``iteration_reporter``.
        say: called with a line of text for each event other than an iteration.
        checkpoint_seconds: time between checkpoints.

    Raises:
        InputError: the checkpoint is missing, damaged, or has more iterations than requested.
        OutputError: the folder cannot be written to. The last checkpoint is unchanged.
        RunError: a loss or weight became NaN or infinite. The last checkpoint is unchanged.
        KeyboardInterrupt: Ctrl-C, after the current iteration and a checkpoint.
    """
    iterations = folder.configuration.iterations
    if not folder.missing():
        there = " and ".join(path.name for path in folder.bundles.values())
        verb = "is" if len(folder.bundles) == 1 else "are"
        say(
            f"{folder.path}: all {iterations} iterations were done before; "
            f"{there} {verb} there already"
        )
        return
    state = read_checkpoint(folder.checkpoint)
    if state is None:
        folder.refuse_lost_checkpoint()
        if folder.lost_its_start:
            say("no checkpoint was written before the last run ended; starting over")
    training = start()
    if state is not None:
        _resume(training, state, folder)
    folder.write_configuration()
    if training.iteration:
        say(f"continuing after iteration {training.iteration} of {iterations}")
        # A crash may have happened between writing the checkpoint and the losses.
        folder.write_losses(training.losses)
    _iterate(training, folder, progress, say, checkpoint_seconds)
    export(training)


def _iterate(
    training: Training,
    folder: TrainingFolder,
    progress: bool | Progress | None,
    say: Callable[[str], None],
    checkpoint_seconds: float,
) -> None:
    """Run the remaining iterations, writing sample grids, checkpoints and reports."""
    iterations = folder.configuration.iterations
    began = saved = training.iteration
    started = saved_at = time.monotonic()

    def save() -> None:
        nonlocal saved, saved_at
        if saved == training.iteration:
            return
        # A checkpoint that cannot be resumed from must not replace one that can.
        if not training.finite:
            raise _diverged(training, folder.checkpoint)
        write_checkpoint(
            folder.checkpoint,
            {**folder.describe(), **training.state()},
        )
        folder.write_losses(training.losses)
        saved, saved_at = training.iteration, time.monotonic()

    def run(interrupt: Interrupt, report: Progress | None) -> None:
        while training.iteration < iterations:
            losses = training.step()
            if not all(map(math.isfinite, losses)):
                raise _diverged(training, folder.checkpoint)
            iteration = training.iteration
            named = dict(zip(training.loss_names, losses, strict=True))
            if grid_due(iteration, iterations):
                samples = training.samples()
                picture = ""
                if samples is not None:
                    if not np.isfinite(samples).all():
                        raise _diverged(training, folder.checkpoint)
                    written = folder.write_samples(samples, training.value_range, iteration)
                    picture = f"; {written}"
                if report is None:
                    left = (time.monotonic() - started) / (iteration - began)
                    listed = ", ".join(f"{name} {loss:.3g}" for name, loss in named.items())
                    say(
                        f"iteration {iteration} of {iterations}: losses: {listed}; "
                        f"{_minutes(left * (iterations - iteration))} left{picture}"
                    )
            if interrupt.asked:
                raise KeyboardInterrupt
            if report is not None:
                report(
                    {
                        "iteration": iteration,
                        "iterations": iterations,
                        **{f"{name}_loss": loss for name, loss in named.items()},
                        "seconds": time.monotonic() - started,
                    }
                )
            if time.monotonic() - saved_at >= checkpoint_seconds:
                save()

    def note() -> None:
        with beside_bar(progress):
            say("stopping after this iteration")

    reporter = iteration_reporter(progress, began, iterations)
    try:
        with Interrupt(note) as interrupt, reporter as report:
            try:
                run(interrupt, report)
            except BaseException as error:
                # A diverged state is useless, and on a full disk another file would fail too.
                if training.whole and not isinstance(error, RunError | OutputError):
                    save()
                raise
            save()
    except KeyboardInterrupt:
        say(
            f"the checkpoint holds {saved} of {iterations} iterations"
            if saved
            else "no checkpoint was written"
        )
        raise


def grid_due(iteration: int, iterations: int) -> bool:
    """Whether this iteration completes a tenth of all iterations."""
    return iteration * GRIDS // iterations > (iteration - 1) * GRIDS // iterations


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _diverged(training: Training, checkpoint: Path) -> RunError:
    saved = f"{checkpoint} is from before" if checkpoint.exists() else "no checkpoint was written"
    return RunError(
        f"the training has diverged: after iteration {training.iteration} a loss or a weight is "
        f"NaN or infinite; {saved}. Train with a lower learning rate (--learning-rate), or another "
        "seed (--seed), in another folder"
    )


def _resume(training: Training, state: dict[str, Any], folder: TrainingFolder) -> None:
    """Load a checkpoint, or raise InputError with the reason."""
    path = folder.checkpoint
    with _damage_named(path):
        theirs, trained_on = folder.read_description(state)
    folder.refuse_another(path, theirs, trained_on)
    with _damage_named(path):
        training.load(state)
    asked = folder.configuration.iterations
    if training.iteration > asked:
        raise InputError(
            f"{path}: {training.iteration} iterations are done, got iterations={asked}; ask for "
            f"{training.iteration} or more, or use another folder"
        )


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(
            f"{path}: damaged ({what}); to train from the beginning, delete it or overwrite the "
            "folder (--overwrite)"
        ) from None


@contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """Set PyTorch's process-wide settings, and restore them afterwards."""
    before, searched = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    # A training uses few convolution shapes, so searching for the fastest kernels pays off.
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.benchmark = searched
