"""How far a job is: for a progress function, and as events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from pyinv.progress import Progress
from pyinv.streaming import TargetResult

__all__ = ["Meter"]

_SECONDS_PER_REPORT = 1.0


class Meter:
    """Reports progress: to a progress function after each result, and as events now and then."""

    def __init__(self, send: Callable[..., None], report: Progress | None, targets: int) -> None:
        self._send = send
        self._report = report
        self._targets = targets
        self._began = self._sent = time.monotonic()
        self._finished = 0
        self._losses = 0
        self._sum = 0.0

    def count(self, result: TargetResult) -> None:
        """Count a result."""
        self._finished += 1
        if math.isfinite(result.loss):
            self._losses += 1
            self._sum += result.loss
        now = time.monotonic()
        if now - self._sent < _SECONDS_PER_REPORT and self._finished < self._targets:
            return
        self._sent = now
        rate = self._finished / max(now - self._began, 1e-9)
        if self._report is not None:
            self._report(
                {
                    "finished": self._finished,
                    "targets": self._targets,
                    "active": 0,
                    "evaluations": 0,
                    "mean_loss": self._sum / max(self._losses, 1),
                }
            )
        self._send(
            "progress",
            finished=self._finished,
            targets=self._targets,
            images_per_second=rate,
            seconds_left=(self._targets - self._finished) / rate,
        )
