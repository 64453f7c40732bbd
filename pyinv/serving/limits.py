"""The limits that keep a client from occupying the service."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from pyinv.errors import InputError
from pyinv.validation import whole_number

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Args:
        timeout: seconds from a request's first byte to its answer, above 0. A request may ask for
            fewer. What has not been answered by then is cancelled, and its lanes are freed.
        max_body: bytes of a request's body.
        max_pixels: height times width of an image file, checked before it is decoded. Decoding
            takes about 35 bytes per pixel of a colour image.
        max_images: images or latents of a request.
        queue: images that may wait for a lane, over all requests. With more, requests are refused
            with status 503.
        streams: streams that are open at once. Requests share a stream if they have the same
            recipe, loss, effort and seed. The one that was idle for longest is closed for another;
            if none is idle, requests are refused with status 503.
        max_held: bytes of bodies that are held at once, over all requests.

    Raises:
        InputError: a limit out of range.
    """

    timeout: float = 60.0
    max_body: int = 16 * 2**20
    max_pixels: int = 2**24
    max_images: int = 64
    queue: int = 256
    streams: int = 4
    max_held: int = 256 * 2**20

    def __post_init__(self) -> None:
        if not (isinstance(self.timeout, int | float) and 0 < self.timeout < math.inf):
            raise InputError(f"timeout must be a number of seconds > 0, got {self.timeout!r}")
        for field in fields(self):
            if field.name != "timeout":
                least = 0 if field.name == "queue" else 1
                whole_number(field.name, getattr(self, field.name), at_least=least)
