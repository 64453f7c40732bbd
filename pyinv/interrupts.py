"""Ctrl-C, and what the command line treats like it: SIGTERM and SIGHUP.

All three raise KeyboardInterrupt, wherever the program is. ``deferred`` and ``held`` hold that back
where it would lose something.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = [
    "RAISING",
    "SIGNALS",
    "Received",
    "came",
    "deferred",
    "ends_like_ctrl_c",
    "exit_code",
    "held",
    "note",
    "raises_interrupt",
    "say",
]

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
TOGETHER = 1.0  # seconds within which signals count as one: a key that bounced, a group's signals
_noted: list[int] = []  # the signals that came, of those that are handled here
_last = -math.inf  # the time of the last one


def note(number: int) -> bool:
    """Note a signal for ``exit_code``; return whether it follows another one at once.

    The first one ends the program; a second one must not interrupt what that cleans up.
    """
    global _last
    now = time.monotonic()
    follows, _last = now - _last < TOGETHER, now
    _noted.append(number)
    return follows


class Received:
    """Whether a signal was held back: true once one was."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self) -> bool:
        """Return whether a signal came."""
        return bool(self.numbers)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        note(number)
        self.numbers.append(number)


_deferring: Received | None = None  # of the main thread


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not note(number):
        raise KeyboardInterrupt


RAISING: list[Any] = [signal.default_int_handler, _interrupt]
"""The handlers that raise KeyboardInterrupt."""


def raises_interrupt(number: int) -> bool:
    """Return whether a signal raises KeyboardInterrupt, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(number) in RAISING


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
def held() -> Iterator[None]:
    """Hold back KeyboardInterrupt of signals until the end, so that a write is whole.

    Within ``deferred`` they are held back until the end of that.
    """
    global _last
    outermost = _deferring is None
    with deferred() as received:
        yield
    if outermost and received():
        _last = -math.inf  # as if it came only now
        handler: Any = signal.getsignal(received.numbers[0])
        handler(received.numbers[0], None)


@contextlib.contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, where they would end the process.

    Of signals that come at once, only the first one raises it.
    """
    global _last
    _noted.clear()
    _last = -math.inf
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def came() -> bool:
    """Return whether a signal came that is handled here."""
    return bool(_noted)


def exit_code() -> int:
    """Return the exit code of an interrupted program: 128 and the first signal's number."""
    return 128 + int(_noted[0] if _noted else signal.SIGINT)


def say(interrupt: object, text: str) -> None:
    """Give an exception that is a KeyboardInterrupt without a message this one."""
    if isinstance(interrupt, KeyboardInterrupt) and not interrupt.args:
        interrupt.args = (text,)
