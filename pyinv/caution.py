"""Warnings of likely mistakes, and strict mode, in which they are errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import FrameType
from typing import ParamSpec, TypeVar

from pyinv.errors import PyinvError, PyinvWarning, printable

__all__ = ["has_strict", "strict_mode", "warn", "warned"]

P = ParamSpec("P")
R = TypeVar("R")

_error: ContextVar[type[PyinvError] | None] = ContextVar("pyinv_strict", default=None)


@contextmanager
def strict_mode(strict: bool, error: type[PyinvError]) -> Iterator[None]:
    """Make ``warn`` raise ``error`` in this context if ``strict``."""
    token = _error.set(error if strict else None)
    try:
        yield
    finally:
        _error.reset(token)


def has_strict(error: type[PyinvError]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function whose keyword ``strict`` makes its warnings an ``error``."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            strict = kwargs.get("strict", False)
            if not isinstance(strict, bool):
                raise error(f"strict must be True or False, got {strict!r}")
            with strict_mode(strict, error):
                return function(*args, **kwargs)

        return wrapper

    return decorate


def warn(message: str) -> None:
    """Warn with a ``PyinvWarning`` at the line that called pyinv, or raise it in strict mode."""
    error = _error.get()
    if error is not None:
        raise error(message)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_ours(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(message), PyinvWarning, stacklevel=level)


def warned(message: str) -> str:
    """Warn, and return the message."""
    warn(message)
    return message


def _is_ours(frame: FrameType) -> bool:
    """Whether a frame belongs to this package, or to decorators around its functions."""
    name = str(frame.f_globals.get("__name__"))
    return name.startswith(("pyinv.", "torch.", "contextlib"))
