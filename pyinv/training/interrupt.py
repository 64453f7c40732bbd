"""Deferring Ctrl-C until an iteration is complete."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """A context in which the first Ctrl-C only sets ``asked``, and the second interrupts at once.

    Has no effect where Ctrl-C does not raise KeyboardInterrupt: outside the main thread, or if the
    caller has installed a handler.

    Args:
        say: called at the first Ctrl-C.
    """

    def __init__(self, say: Callable[[], None] = lambda: None) -> None:
        self.asked = False
        self._say = say
        self._installed = False

    def __enter__(self) -> Interrupt:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(self, *error: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> Any:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # A stream refuses reentrant writes; that must not fail the iteration.
        with contextlib.suppress(RuntimeError):
            self._say()
