"""Calls that end early: after a time, or when another thread says so."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from pyinv.errors import CancelledError, InputError

__all__ = ["Cancel", "check_stopped", "stoppable", "stopped"]

P = ParamSpec("P")
R = TypeVar("R")


class Cancel(Protocol):
    """What another thread sets to end a call, such as a ``threading.Event``."""

    def is_set(self) -> bool:
        """Return whether it is set."""


_limits: ContextVar[tuple[tuple[float, Cancel | None], ...]] = ContextVar(
    "pyinv_limits", default=()
)


def stopped() -> bool:
    """Return whether the call of this context should end."""
    return any(
        time.monotonic() >= deadline or (cancel is not None and cancel.is_set())
        for deadline, cancel in _limits.get()
    )


def check_stopped() -> None:
    """Raise CancelledError if the call of this context should end."""
    if stopped():
        raise CancelledError("ended by its timeout or by cancel, before it had a result")


@contextmanager
def _limited(timeout: Any, cancel: Any) -> Iterator[None]:
    deadline = math.inf
    if timeout is not None:
        number = isinstance(timeout, numbers.Real) and not isinstance(timeout, bool)
        if not number or not float(timeout) > 0:
            raise InputError(f"timeout must be a number of seconds above 0, got {timeout!r}")
        deadline = time.monotonic() + float(timeout)
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise InputError(f"cancel must be a threading.Event, got {type(cancel).__name__}")
    if timeout is None and cancel is None:
        yield
        return
    token = _limits.set((*_limits.get(), (deadline, cancel)))
    try:
        yield
    finally:
        _limits.reset(token)


def stoppable(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function whose keywords ``timeout`` and ``cancel`` end what it calls."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with _limited(kwargs.get("timeout"), kwargs.get("cancel")):
            return function(*args, **kwargs)

    return wrapper
