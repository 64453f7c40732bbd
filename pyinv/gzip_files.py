"""Files that may be compressed with gzip."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

__all__ = ["opened_gzip"]

_GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def opened_gzip(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that may be compressed with gzip, which its first bytes tell."""
    with open(path, "rb") as stream:
        packed = stream.read(2) == _GZIP_MAGIC
        stream.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield cast("IO[bytes]", unpacked)
        else:
            yield stream
