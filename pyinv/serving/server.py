"""Runs the service with uvicorn, and ends it without losing requests."""

from __future__ import annotations

import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pyinv.errors import InputError, one_line
from pyinv.serving.service import Service, State
from pyinv.validation import whole_number

__all__ = ["Server", "listen"]

# Seconds after the last deadline: for answers on their way, and for connections to close.
_GRACE = 5


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address; port 0 takes a free one.

    Raises:
        InputError: it cannot be.
    """
    port = whole_number("port", port, at_least=0, at_most=65535)
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port}: {one_line(error)}") from None
    # asyncio sets it only for sockets whose protocol it knows. Without it, the second part of an
    # answer waits 40 ms for the client's acknowledgement of the first.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bound.setblocking(False)
    return bound


class Server(uvicorn.Server):
    """A server of one application.

    The first SIGTERM or SIGINT drains it: new requests are refused with status 503, and it ends
    once those under way have been answered, at the latest after their timeout. The second ends it
    at once.

    Attributes:
        forced: whether a second signal ended it.
    """

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=_GRACE,
            )
        )
        # Clients could fill the log with broken forms.
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        self.forced = False
        self._service: Service = app.state.service
        self._ticks = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal. Unlike the base's, raises it no second time at the end."""
        if self._service.state is State.DRAINING:
            self.forced = self.should_exit = True
            self.config.timeout_graceful_shutdown = 0
            logging.getLogger("uvicorn.error").disabled = True  # of the requests that this cuts off
        else:
            self.drain()

    def drain(self) -> None:
        """End once all requests have been answered. For any thread."""
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times per second."""
        if self._service.state is State.FAILED:
            self.should_exit = True
        if self._service.state is State.DRAINING:
            self._ticks += 1
            late = self._ticks > 10 * (self._service.limits.timeout + _GRACE)
            if late or not self._service.requests:
                self.should_exit = True
        return await super().on_tick(counter)
