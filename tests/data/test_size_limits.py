"""Small files that would unpack to too much are refused by their headers."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyinv import size_limits
from pyinv.array_files import read_array
from pyinv.bundle import Bundle
from pyinv.cli import main
from pyinv.datasets import load_dataset
from pyinv.errors import InputError
from pyinv.images import load_images, read_pixels, resize_pixels
from pyinv.jobs.opening import open_source
from pyinv.size_limits import set_size_limits
from pyinv.tables import read_column

UNPACKED = 2**25
ZEROS = bytes(UNPACKED)
GRAY = (1, 8, 8)


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """Small limits, so that bombs are quick to make; the usual ones afterwards."""
    monkeypatch.setattr(size_limits, "_limits", size_limits._Limits())
    set_size_limits(max_pixels=2**20, max_bytes=2**20)


def array_bytes(header_shape: tuple[int, ...], content: bytes) -> bytes:
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": header_shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def packed(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def idx(path: Path) -> Path:
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", UNPACKED // 64, 8, 8)
    path.write_bytes(gzip.compress(header + ZEROS))
    return path


def picture(path: Path, side: int = 2048) -> Path:
    Image.new("L", (side, side)).save(path)
    return path


def npz(path: Path) -> Path:
    content = array_bytes((UNPACKED // 64, 1, 8, 8), ZEROS)
    return packed(path / "a.npz", "images.npy", content)


def parquet(path: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    flat = pa.array(np.zeros(UNPACKED, np.uint8))
    image = pa.FixedSizeListArray.from_arrays(flat, 64)
    parquet.write_table(pa.table({"image": image}), path / "a.parquet", compression="zstd")
    return path / "a.parquet"


def arrow(path: Path, *, stream: bool) -> Path:
    pa = pytest.importorskip("pyarrow")
    flat = pa.array(np.zeros(UNPACKED, np.uint8))
    table = pa.table({"image": pa.FixedSizeListArray.from_arrays(flat, 64)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(path / "a.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    return path / "a.arrow"


def repeated(path: Path, column: str) -> Path:
    """Write one long text, which a column has many times."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"id": [f"{row}" for row in range(100)], "image": [b"x"] * 100}
    table[column] = ["a" * 2**20 if column == "id" else bytes(2**20)] * 100
    parquet.write_table(
        pa.table(table), path / "a.parquet", dictionary_pagesize_limit=2**24, compression="zstd"
    )
    return path / "a.parquet"


BOMBS = {
    "image": lambda path, manifest: load_images(picture(path / "a.png"), manifest),
    "npz of images": lambda path, manifest: load_images(npz(path), manifest),
    "npz": lambda path, manifest: read_array(npz(path), "images"),
    "npz data set": lambda path, manifest: load_dataset(npz(path), image_shape=GRAY),
    "IDX": lambda path, manifest: load_dataset(idx(path / "a.gz"), image_shape=GRAY),
    "zip": lambda path, manifest: load_dataset(
        packed(path / "a.zip", "a.png", ZEROS), image_shape=GRAY
    ),
    "image in a zip": lambda path, manifest: load_dataset(
        packed(path / "a.zip", "a.png", picture(path / "a.png").read_bytes()), image_shape=GRAY
    ),
    "image of a job": lambda path, manifest: (
        next(open_source([picture(path / "a.png")], manifest, fit="crop").read(0, 1))
        .targets[0]
        .load()
    ),
    "Parquet": lambda path, manifest: open_source([parquet(path)], manifest, fit="crop"),
    "Arrow": lambda path, manifest: open_source([arrow(path, stream=False)], manifest, fit="crop"),
    "Arrow stream": lambda path, manifest: open_source(
        [arrow(path, stream=True)], manifest, fit="crop"
    ),
}


@pytest.mark.parametrize("read", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_before_they_are_unpacked(bundle_path, tmp_path, read):
    manifest = Bundle.open(bundle_path).manifest
    with pytest.raises(InputError, match=r"--max-(bytes|pixels)"):
        read(tmp_path, manifest)
    for path in tmp_path.iterdir():
        path.unlink()
    set_size_limits(max_pixels=2**23, max_bytes=2**27)
    refused = ""
    try:
        read(tmp_path, manifest)
    except InputError as error:  # of zeros, which are no image
        refused = str(error)
    assert "--max" not in refused


def test_nothing_is_unpacked_or_allocated_for_a_bomb(bundle_path, tmp_path):
    path = npz(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_array(path, "images")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_array_is_not_allocated_by_its_header(tmp_path):
    path = packed(tmp_path / "a.npz", "images.npy", array_bytes((2**40,), b"12"))
    with pytest.raises(InputError, match=f"takes {2**40} bytes, got 2"):
        read_array(path, "images")


def test_jobs_refuse_idx_headers_that_the_file_cannot_hold(bundle_path, tmp_path):
    manifest = Bundle.open(bundle_path).manifest
    path = tmp_path / "a"
    for sizes, message in (((2**32 - 1, 8, 8), "truncated"), ((1, 2**15, 2**15), "--max-pixels")):
        path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", *sizes) + bytes(64))
        with pytest.raises(InputError, match=message):
            open_source([path], manifest, fit="crop")


def test_commands_raise_the_limits(capsys, bundle_path, tmp_path):
    path = picture(tmp_path / "a.png")
    command = ["invert", str(bundle_path), str(path), "-o", str(tmp_path / "o.npz")]
    command += ["--max-steps", "1"]
    assert main(command) == 1
    assert "raise --max-pixels" in capsys.readouterr().err
    assert main([*command, "--max-pixels", str(2**22)]) in (0, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_images_read_in_strips_are_those_read_at_once(monkeypatch, tmp_path, mode, fit):
    rng = np.random.default_rng(0)
    channels = {"RGB": 3, "RGBA": 4}.get(mode, 1)
    pixels = rng.integers(0, 256, (37, 53, channels)).astype("uint16" if mode == "I;16" else "u1")
    image = Image.fromarray(pixels.squeeze())
    options = {}
    if mode == "P":
        image, options = image.convert("P"), {"transparency": 3}
    image.save(tmp_path / "a.png", **options)
    file, name = tmp_path / "a.png", "a.png"
    whole = read_pixels(file, name, 3, 9, 11, fit)
    unscaled = read_pixels(file, name, 3, 37, 53, fit)
    np.testing.assert_array_equal(resize_pixels(unscaled, 9, 11, fit), whole)
    monkeypatch.setattr("pyinv.images.STRIP_PIXELS", 200)
    np.testing.assert_array_equal(read_pixels(file, name, 3, 9, 11, fit), whole)
    np.testing.assert_array_equal(read_pixels(file, name, 3, 37, 53, fit), unscaled)


def test_a_large_photograph_is_not_converted_to_floats_at_once(tmp_path):
    set_size_limits(max_pixels=2**26)
    path = picture(tmp_path / "a.png", 4096)
    tracemalloc.start()
    try:
        read_pixels(path, "a.png", 3, 8, 8, "crop")
        assert tracemalloc.get_traced_memory()[1] < 4096 * 4096 * 4  # one plane of floats
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [0, -1, 1.5, "much"])
def test_a_limit_out_of_range_is_refused(limit):
    with pytest.raises(InputError, match="max_bytes"):
        set_size_limits(max_bytes=limit)


def test_rows_that_repeat_a_long_value_are_read_a_few_at_a_time(bundle_path, tmp_path):
    manifest = Bundle.open(bundle_path).manifest
    set_size_limits(max_bytes=2**22)
    source = open_source([repeated(tmp_path, "image")], manifest, fit="crop")
    chunks = list(source.read(0, 100))
    assert max(len(chunk.targets) for chunk in chunks) <= 4
    assert sum(len(chunk.targets) for chunk in chunks) == 100
    with pytest.raises(InputError, match="--max-bytes"):
        open_source([repeated(tmp_path, "id")], manifest, fit="crop")


def test_columns_of_numbers_are_limited(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"label": np.zeros(2**18)}), path)
    with pytest.raises(InputError, match="--max-bytes"):
        read_column(path, "label")
    set_size_limits(max_bytes=2**21)
    assert len(read_column(path, "label")) == 2**18
