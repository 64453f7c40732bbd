"""The settings of a reproduction, the same for every paper and checked before any work."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyinv.errors import DependencyError, InputError
from pyinv.extras import install_command
from pyinv.validation import whole_number

__all__ = ["Request", "check_plots"]

Paths = Sequence[str | os.PathLike[str]]


def check_plots() -> None:
    """Raise DependencyError if matplotlib, which draws the report's plots, is missing."""
    if find_spec("matplotlib") is None:
        raise DependencyError(
            f"the plots of this report need matplotlib: {install_command('plots')}"
        )


@dataclass(frozen=True)
class Request:
    """The settings of a reproduction.

    Args:
        folder: where the report, its figures and the cached runs go; created if necessary.
        data: paths of datasets, see ``pyinv.datasets``.
        generators: bundles, or folders that ``pyinv train`` wrote. If empty, the paper's own
            generators are trained.
        configuration: name of the training configuration to use instead of the paper's.
        targets: images that each method inverts, at least 2.
        max_steps: steps of the papers' optimisers, at least 1.
        learning_rate: learning rate of the paper's method, above 0; None uses the reproduction's.
        encoders: bundles with an encoder that say how it was trained. If empty, the paper's own
            encoders are trained.
        encoder_iterations: iterations of encoder training, at least 1; None uses the
            configuration's.
        seed: seed of all random draws, 0 to 2^63 - 1.
        machine: arguments of ``Inverter``: runtime, device, batch_size, threads, tf32.
        say: called with each message for the user.
        progress: show progress on standard error.

    Raises:
        InputError: a value out of its range.
    """

    folder: Path
    data: Paths = ()
    generators: Paths = ()
    configuration: str | None = None
    targets: int = 100
    max_steps: int = 1000
    learning_rate: float | None = None
    encoders: Paths = ()
    encoder_iterations: int | None = None
    seed: int = 0
    machine: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None
    progress: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        for name in ("data", "generators", "encoders"):
            paths = getattr(self, name)
            if isinstance(paths, (str, os.PathLike)):
                paths = (paths,)
            object.__setattr__(self, name, tuple(paths))
        whole_number("targets", self.targets, at_least=2)
        whole_number("max_steps", self.max_steps, at_least=1, at_most=2**32 - 1)
        if self.encoder_iterations is not None:
            whole_number("encoder_iterations", self.encoder_iterations, at_least=1)
        # Some draws use the seed plus a small offset.
        whole_number("seed", self.seed, at_least=0, at_most=2**63 - 1)
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise InputError(f"learning_rate must be a finite number > 0, got {rate!r}")
        if not self.data and not self.generators:
            raise InputError(
                "neither data nor a generator was given: give a generator's bundle (--generator), "
                "or data to train one on (--data), or both"
            )

    @property
    def training(self) -> dict[str, Any]:
        """The arguments of a training that come from the machine and the user interface."""
        return {
            "device": self.machine.get("device", "cpu"),
            "threads": self.machine.get("threads"),
            # In a log, the lines of `say` do; a bar is for terminals.
            "progress": self.progress and sys.stderr.isatty(),
            "say": self.say,
        }

    def describe(self) -> dict[str, Any]:
        """Return the settings for the report, as JSON values.

        Without ``machine``: the report states it per run, because cached runs may come from
        another machine.
        """
        return {
            "data": [Path(path).name for path in self.data],
            "generators": [Path(path).name for path in self.generators],
            "configuration": self.configuration,
            "targets": self.targets,
            "max_steps": self.max_steps,
            "learning_rate": self.learning_rate,
            **({"encoders": [Path(path).name for path in self.encoders]} if self.encoders else {}),
            "encoder_iterations": self.encoder_iterations,
            "seed": self.seed,
        }
