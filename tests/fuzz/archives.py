"""Changed arrays, archives, IDX files and tables: they are read, or refused in one line."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from fuzz import image_files
from fuzz.mutation import mutated, read_or_refused
from pyarrow import parquet

from pyinv.array_files import read_array
from pyinv.datasets import load_dataset
from pyinv.images import load_images
from pyinv.jobs.opening import open_source
from pyinv.tables import read_column

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
Change = Callable[[bytes], bytes]


def array(values: object) -> bytes:
    """Return a .npy file."""
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def idx(shape: tuple[int, ...] = PIXELS.shape, content: bytes = PIXELS.tobytes()) -> bytes:
    """Return an IDX file of images."""
    return bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape) + content


PICTURE = image_files.picture("PNG")
TABLE = pa.table(
    {
        "id": ["a", "b", "c"],
        "image": pa.array([PICTURE] * 3),
        "label": [0.0, 1.0, 2.0],
        "tags": [["x"], [], ["y", "z"]],
    }
)
ROWS = pa.table({"image": pa.array(list(PIXELS.reshape(3, 64)), pa.list_(pa.uint8(), 64))})


def parquet_file(table: pa.Table, **options: object) -> bytes:
    """Return a Parquet file."""
    file = io.BytesIO()
    parquet.write_table(table, file, **options)
    return file.getvalue()


def arrow_file(table: pa.Table, *, stream: bool = False, codec: str | None = None) -> bytes:
    """Return an Arrow file, of the file or the stream format."""
    file = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=codec)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(file, table.schema, options=options) as writer:
        writer.write_table(table)
    return file.getvalue()


# How each file is made, of parts that are changed before they are packed, or as a whole.
SEEDS: dict[str, Callable[[Change], bytes]] = {
    "a.npy": lambda change: change(array(PIXELS)),
    "b.npy": lambda change: change(array(PIXELS[:, None].astype(">f4"))),
    "a.npz": lambda change: zipped({"images.npy": change(array(PIXELS[:, None]))}),
    "b.npz": lambda change: change(zipped({"images.npy": array(PIXELS)})),
    "c.npz": lambda change: change(zipped({"images.npy": array(PIXELS)}, zipfile.ZIP_STORED)),
    "a.zip": lambda change: zipped({"a/a.png": change(PICTURE), "b/b.png": PICTURE}),
    "b.zip": lambda change: change(zipped({"a/a.png": PICTURE})),
    "a-idx3-ubyte": lambda change: change(idx()),
    "b-idx3-ubyte.gz": lambda change: gzip.compress(change(idx())),
    "c-idx3-ubyte.gz": lambda change: change(gzip.compress(idx())),
    "a.parquet": lambda change: change(parquet_file(TABLE)),
    "b.parquet": lambda change: change(parquet_file(TABLE, compression="NONE")),
    "c.parquet": lambda change: change(parquet_file(ROWS, use_dictionary=False)),
    "a.arrow": lambda change: change(arrow_file(TABLE)),
    "b.arrow": lambda change: change(arrow_file(TABLE, stream=True)),
    "c.arrow": lambda change: change(arrow_file(TABLE, codec="zstd")),
    "d.arrow": lambda change: change(arrow_file(ROWS, stream=True, codec="lz4")),
}
# Faults that were found once. The numbers of these cases are 0, 1, 2 ...
FOUND = {
    "a header that is no Python.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',",
    "400 digits.npy": b"\x93NUMPY\x01\x00\xd0\x01"
    + (b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 390 + b",)}").ljust(464),
    "an unknown method.npz": zipped({"images.npy": b"1" * 50}).replace(b"\x08\x00", b"\x63\x00"),
    "ids that are no text.parquet": parquet_file(
        TABLE.set_column(0, "id", pa.array([b"\xca", b"b", b"c"]).view("string"))
    ),
    "a message with a control character.parquet": parquet_file(TABLE).replace(
        b"PAR1\x15", b"PAR1\x1e", 1
    ),
    "1 GiB, by its header-idx3-ubyte.gz": gzip.compress(idx((2**14, 2**8, 2**8), b"")),
    "600 GB, by its header.npy": array(PIXELS).replace(b"(3, 8, 8)", b"(9999999999,)"),
}


def prepare() -> None:
    image_files.prepare()


def check(number: int) -> None:
    random = np.random.default_rng(number)
    if number < len(FOUND):
        name, content = list(FOUND.items())[number]
    else:
        name = list(SEEDS)[number % len(SEEDS)]
        content = SEEDS[name](lambda part: mutated(part, random))
    path = Path(name)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in readers(path):
            read_or_refused(read)


def readers(path: Path) -> list[Callable[[], object]]:
    """Return every way to read a file that its suffix allows."""
    suffix, manifest = path.suffix, image_files.manifest()

    def job() -> None:
        for chunk in open_source([path], manifest, fit="crop").read(0, 2):
            for target in chunk.targets:
                target.load()

    table = suffix in (".parquet", ".arrow")
    found: list[Callable[[], object]] = []
    if suffix not in (".npz", ".zip"):
        found += [job]
    if not table:
        found += [lambda: load_dataset(path, image_shape=(1, 8, 8))]
    if suffix in (".npy", ".npz"):
        found += [lambda: read_array(path, "images")]
    if suffix in (".npy", ".npz", ".parquet"):
        found += [lambda: load_images(path, manifest)]
    if suffix == ".parquet":
        found += [lambda: read_column(path, "label")]
    return found
