"""Deferring Ctrl-C until an iteration is complete."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from pyinv.interrupts import RAISING, SIGNALS, note, raises_interrupt

__all__ = ["Interrupt"]


class Interrupt:
    """A context in which the first Ctrl-C only sets ``asked``, and the second interrupts at once.

    One within a second of another counts as the same. So do SIGTERM and SIGHUP on the command line.
    Has no effect where they do not raise KeyboardInterrupt: outside the main thread, or if the
    caller has installed a handler.

    Args:
        say: called at the first Ctrl-C.
    """

    def __init__(self, say: Callable[[], None] = lambda: None) -> None:
        self.asked = False
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in SIGNALS:
            if raises_interrupt(number):
                self._before[number] = signal.signal(number, self._note)
        RAISING.append(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        RAISING.remove(self._note)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        follows = note(number)
        if self.asked:
            if not follows:
                raise KeyboardInterrupt
            return
        self.asked = True
        # A stream refuses reentrant writes; that must not fail the iteration.
        with contextlib.suppress(RuntimeError):
            self._say()
