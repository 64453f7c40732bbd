"""Limits on what files unpack to, checked against their headers before anything is unpacked.

A small compressed file can unpack to gigabytes. The limits hold for the whole process.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyinv.errors import InputError
from pyinv.validation import whole_number

__all__ = ["check_bytes", "check_pixels", "max_bytes", "max_pixels", "set_size_limits"]

# A file may always unpack to this many times its size; deflate reaches 1032 times.
PLAUSIBLE_RATIO = 10
# JPEG's. Images are resized a few rows at a time, which takes much memory for those of one row.
MAX_SIDE = 2**16 - 1


@dataclass
class _Limits:
    pixels: int = 2**26
    bytes: int = 2**29


_limits = _Limits()


def set_size_limits(*, max_pixels: int | None = None, max_bytes: int | None = None) -> None:
    """Set how much files of images and arrays may unpack to, for the whole process.

    Args:
        max_pixels: height times width of an image; 2^26 (67 million) by default. None leaves it.
        max_bytes: bytes that a compressed file (.npz, .zip, .gz, Parquet, Arrow) unpacks to; 2^29
            (512 MiB) by default. None leaves it. Ten times the file's size is always allowed.

    Raises:
        InputError: a limit below 1.
    """
    if max_pixels is not None:
        _limits.pixels = whole_number("max_pixels", max_pixels, at_least=1)
    if max_bytes is not None:
        _limits.bytes = whole_number("max_bytes", max_bytes, at_least=1)


def max_pixels() -> int:
    """Return how many pixels an image may have."""
    return _limits.pixels


def max_bytes() -> int:
    """Return how many bytes a compressed file may unpack to."""
    return _limits.bytes


def check_pixels(name: str, height: int, width: int) -> None:
    """Raise InputError if an image has too many pixels, according to its header."""
    if max(height, width) > MAX_SIDE:
        raise InputError(
            f"{name}: an image may be at most {MAX_SIDE} pixels high and wide, got {height} x "
            f"{width}; cut it into pieces"
        )
    if height * width > _limits.pixels:
        raise InputError(
            f"{name}: an image may have at most {_limits.pixels} pixels, got {height} x {width}; "
            "shrink it, or raise --max-pixels (pyinv.set_size_limits)"
        )


def check_bytes(name: str, unpacked: int, packed: int) -> None:
    """Raise InputError if ``packed`` bytes unpack to too many, according to the file's header."""
    if unpacked > max(_limits.bytes, PLAUSIBLE_RATIO * packed):
        raise InputError(
            f"{name}: {packed} bytes would unpack to {unpacked}, more than the limit of "
            f"{_limits.bytes}; if the file is right, raise --max-bytes (pyinv.set_size_limits)"
        )
