"""Ctrl-C, held back until an iteration is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """While this is entered, the first Ctrl-C only sets ``asked``; the second interrupts at once.

    Where Ctrl-C does not raise KeyboardInterrupt anyway (in another thread than the main one, or
    under a handler of the caller's), nothing is changed.

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> Any:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # A stream in the middle of a write refuses another; no iteration may fail for that.
        with contextlib.suppress(RuntimeError):
            self._say()
