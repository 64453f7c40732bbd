"""Ctrl-C and SIGTERM during a job: they end its stream within a step, and nothing else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from pyinv.interrupts import raises_interrupt

__all__ = ["Signals"]

T = TypeVar("T")


class Signals:
    """A context in which Ctrl-C and SIGTERM set ``received``, and interrupt ``watch`` alone.

    Has no effect outside the main thread, or on signals that the caller handles or ignores.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._waits = False
        self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                ends = number == signal.SIGTERM and signal.getsignal(number) == signal.SIG_DFL
                if ends or raises_interrupt(number):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @property
    def name(self) -> str:
        """The name of the signal that came; of Ctrl-C, if another handler caught it."""
        return (self.received or signal.SIGINT).name

    def watch(self, items: Generator[T, None, None]) -> Iterator[T]:
        """Yield items until a signal comes, and then those that ``items`` yields when interrupted.

        Args:
            items: on KeyboardInterrupt, yields what it has left and raises it again.
        """
        while self.received is None or self._interrupted:
            try:
                self._waits = self.received is None
                item = next(items)
                self._waits = False
            except (KeyboardInterrupt, StopIteration):
                self._waits = False
                return
            yield item
        items.close()

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """A context in which the signals raise KeyboardInterrupt; one that came before does not."""
        self._waits = self.received is None
        try:
            yield
        finally:
            self._waits = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, signal.Signals(number)
        if first and self._waits:
            self._interrupted = True
            raise KeyboardInterrupt
