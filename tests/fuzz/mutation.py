"""Random changes of files, and what readers may answer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np

from pyinv.errors import PyinvError

NUMBERS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]


def read_or_refused(read: Callable[[], object]) -> None:
    """Call a reader, which may refuse with one line that can be shown."""
    try:
        read()
    except PyinvError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message, message
    assert message.isprintable(), message


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Return the content after one to four changes."""
    data = bytearray(content)
    for _ in range(random.integers(1, 5)):
        # Headers, at the beginning, matter most.
        end = min(len(data), 64) if random.random() < 0.3 else len(data)
        at = int(random.integers(0, max(1, end)))
        length = int(random.integers(1, 33))
        match random.integers(0, 6):
            case 0:
                data[at : at + 1] = random.bytes(1)
            case 1:
                data[at : at + 4] = NUMBERS[random.integers(len(NUMBERS))]
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = random.bytes(length)
            case 4:
                data[at:at] = data[at : at + length]
            case _ if random.random() < 0.2:
                del data[at:]
    return bytes(data)


def mutated_png(content: bytes, random: np.random.Generator) -> bytes:
    """Return a PNG file with a changed chunk and right checksums, so that decoders go further."""
    chunks, at = [], 8
    while at < len(content):
        size = struct.unpack_from(">I", content, at)[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    changed = int(random.integers(len(chunks)))
    kind, data = chunks[changed]
    if kind == b"IDAT" and random.random() < 0.5:
        data = zlib.compress(mutated(zlib.decompress(data), random))
    else:
        data = mutated(data, random)
    chunks[changed] = (kind, data)
    return content[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
