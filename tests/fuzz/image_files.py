"""Changed files of images and sounds: they are read, or refused in one line."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import wave
import zlib
from pathlib import Path

import numpy as np
from fuzz.mutation import mutated, mutated_png, png_chunk, read_or_refused
from PIL import Image

from pyinv.audio import read_wav
from pyinv.bundle import Bundle, Manifest
from pyinv.images import load_images, load_weights
from support.tiny_bundle import write_tiny_bundle

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


@functools.cache
def manifest() -> Manifest:
    """Return the manifest of a bundle of small colour images."""
    write_tiny_bundle(Path("bundle"), channels=3)
    return Bundle.open("bundle").manifest


def picture(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """Return a small image file."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, format=kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def sound(width: int) -> bytes:
    """Return a small WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, width, 8000, 0, "NONE", ""))
        writer.writeframes(bytes(range(64)) * width)
    return file.getvalue()


def png(width: int, height: int, colour: int, data: bytes) -> bytes:
    """Return a PNG file of 8 bits a value, whose data need not be those of its size."""
    header = struct.pack(">2I5B", width, height, 8, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def rotated() -> bytes:
    """Return a JPEG file that a camera held upright made."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("JPEG", exif=exif)


SEEDS = {
    "a.png": picture("PNG"),
    "b.png": picture("PNG", "P"),
    "c.png": picture("PNG", "LA"),
    "a.jpg": rotated(),
    "a.gif": picture("GIF", "P"),
    "a.bmp": picture("BMP"),
    "a.tif": picture("TIFF"),
    "b.tif": picture("TIFF", compression="tiff_lzw"),
    "c.tif": picture("TIFF", "F"),
    "a.webp": picture("WEBP"),
    "a.ppm": picture("PPM"),
    "a.wav": sound(2),
    "b.wav": sound(3),
}
# Faults that were found once. The numbers of these cases are 0, 1, 2 ...
FOUND = {
    "nothing.png": b"",
    "a program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "169 million pixels.png": png(13000, 13000, 2, bytes(2**20)),
    "one row.png": png(2**26, 1, 2, bytes(2**20)),
    "one column.png": png(1, 2**26, 2, bytes(2**20)),
    "large.png": png(4096, 4096, 6, bytes(4096 * (4 * 4096 + 1))),
    "2^31 by 2^31.png": png(2**31 - 1, 2**31 - 1, 0, b""),
}


def prepare() -> None:
    manifest()


def check(number: int) -> None:
    random = np.random.default_rng(number)
    if number < len(FOUND):
        name, content = list(FOUND.items())[number]
    else:
        name = list(SEEDS)[number % len(SEEDS)]
        change = mutated_png if name.endswith(".png") and random.random() < 0.7 else mutated
        content = change(SEEDS[name], random)
    path = Path(name)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata
        if path.suffix == ".wav":
            read_or_refused(lambda: read_wav(path))
        else:
            read_or_refused(lambda: load(path))


def load(path: Path) -> None:
    found = load_images(path, manifest())
    assert found.shape == (1, *manifest().target_shape)
    assert np.abs(found).max() <= 1
    load_weights(path, manifest())
