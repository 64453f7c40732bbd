"""Requests that are not answered: an HTTP status and one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyinv.errors import PyinvError, one_line

__all__ = ["RETRY", "Refusal", "refused"]

RETRY = {"Retry-After": "1"}
"""The header of a refusal that will not last."""


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        message: one line: what was expected, and what came.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


@contextmanager
def refused(status: int) -> Iterator[None]:
    """Turn pyinv's errors about arguments into refusals with this status."""
    try:
        yield
    except PyinvError as error:
        raise Refusal(status, one_line(error)) from None
