"""Ctrl-C, and what the command line treats like it: SIGTERM and SIGHUP.

All three raise KeyboardInterrupt, wherever the program is. ``deferred`` holds that back where it
would lose something.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

__all__ = [
    "SIGNALS",
    "Received",
    "deferred",
    "ends_like_ctrl_c",
    "exit_code",
    "note",
    "raises_interrupt",
]

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_noted: list[int] = []  # the signals that came, of those that are handled here


def note(number: int) -> None:
    """Note a signal that is handled here, for ``exit_code``."""
    _noted.append(number)


class Received:
    """Whether a signal was held back: true once one was."""

    def __init__(self) -> None:
        self._received = False

    def __call__(self) -> bool:
        """Return whether a signal came."""
        return self._received

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        note(number)
        self._received = True


_deferring: Received | None = None  # of the main thread


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    note(number)
    raise KeyboardInterrupt


def raises_interrupt(number: int) -> bool:
    """Return whether a signal raises KeyboardInterrupt, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(number) in (signal.default_int_handler, _interrupt)


@contextlib.contextmanager
def deferred() -> Iterator[Received]:
    """Hold back KeyboardInterrupt of signals. They are noted, and raise nothing afterwards.

    A context within another one notes the same signals. Has no effect outside the main thread, or
    on signals that the program handles in another way.
    """
    global _deferring
    if threading.current_thread() is not threading.main_thread():
        yield Received()
        return
    if _deferring is not None:
        yield _deferring
        return
    received = _deferring = Received()
    before = {number: signal.getsignal(number) for number in SIGNALS if raises_interrupt(number)}
    try:
        for number in before:
            signal.signal(number, received.note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _deferring = None


@contextlib.contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, where they would end the process."""
    _noted.clear()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code() -> int:
    """Return the exit code of an interrupted program: 128 and the first signal's number."""
    return 128 + int(_noted[0] if _noted else signal.SIGINT)
