"""What compressed Arrow files unpack to, by their own headers.

pyarrow unpacks a whole record batch at once, and has no limit. The layout is that of Arrow's
format: https://arrow.apache.org/docs/format/Columnar.html (IPC) and format/Message.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["unpacked_size"]

_MAGIC = b"ARROW1"
_CONTINUED = 2**32 - 1
_DICTIONARY, _BATCH = 2, 3  # types of messages


@dataclass(frozen=True)
class _Table:
    """A table of FlatBuffers: its bytes, and where it begins."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """Return the table that the bytes hold."""
        return cls(data, _number("<I", data, 0))

    def place(self, field: int) -> int | None:
        """Return where a field is, or None if it has its default."""
        fields = self.at - _number("<i", self.data, self.at)
        slot = 4 + 2 * field
        if slot >= _number("<H", self.data, fields):
            return None
        offset = _number("<H", self.data, fields + slot)
        return self.at + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        """Return a field's number."""
        at = self.place(field)
        return 0 if at is None else _number(kind, self.data, at)

    def table(self, field: int) -> _Table | None:
        """Return the table in a field."""
        at = self.place(field)
        return None if at is None else _Table(self.data, at + _number("<I", self.data, at))

    def structs(self, field: int, kind: str) -> list[tuple[int, ...]]:
        """Return the structs in a field."""
        vector = self.table(field)
        if vector is None:
            return []
        size, first = struct.calcsize(kind), vector.at + 4
        count = _number("<I", self.data, vector.at)
        return list(struct.iter_unpack(kind, self.data[first : first + size * count]))


def unpacked_size(path: Path) -> int:
    """Return the bytes that the dictionaries of a file and its largest batch unpack to.

    Batches that are not compressed count as 0.

    Raises:
        struct.error, ValueError, OSError: the file is damaged, or cannot be read.
    """
    dictionaries = largest = 0
    with open(path, "rb") as file:
        for message, body in _messages(file):
            kind, content = message.number(1, "<B"), message.table(2)
            if kind == _DICTIONARY and content is not None:
                dictionaries += _size(content.table(1), file, body)
            elif kind == _BATCH:
                largest = max(largest, _size(content, file, body))
    return dictionaries + largest


def _messages(file: BinaryIO) -> Iterator[tuple[_Table, int]]:
    """Yield each message of a file, and where its body begins."""
    if file.read(len(_MAGIC)) == _MAGIC:
        file.seek(-10, 2)
        size = _number("<i", file.read(4), 0)
        file.seek(-10 - size, 2)
        footer = _Table.root(file.read(size))
        for field in (2, 3):  # dictionaries, record batches
            for at, length, _, _ in footer.structs(field, "<qiiq"):
                message = _message(file, at)
                if message is not None:
                    yield message, at + length
        return
    at = 0
    while (message := _message(file, at)) is not None:
        body = file.tell()
        yield message, body
        at = body + max(0, message.number(3, "<q"))


def _message(file: BinaryIO, at: int) -> _Table | None:
    """Return the message at a place and read up to its body; None at the end of a stream."""
    file.seek(at)
    size = file.read(4)
    if size == struct.pack("<I", _CONTINUED):
        size = file.read(4)
    count = _number("<i", size, 0) if size else 0
    return _Table.root(file.read(count)) if count > 0 else None


def _size(batch: _Table | None, file: BinaryIO, body: int) -> int:
    """Return the bytes that a batch unpacks to: each compressed buffer begins with its own."""
    if batch is None or batch.place(3) is None:  # not compressed
        return 0
    total = 0
    for offset, length in batch.structs(2, "<qq"):
        if length > 0:
            file.seek(body + offset)
            unpacked = _number("<q", file.read(8), 0)
            total += length if unpacked < 0 else unpacked
    return total


def _number(kind: str, data: bytes, at: int) -> int:
    return int(struct.unpack_from(kind, data, at)[0])
