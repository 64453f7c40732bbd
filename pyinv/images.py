"""Images: conversion from files and arrays to a bundle's format, and back to files.

Inside pyinv, images are float32 [N, C, H, W] in the bundle's value range. Targets of any other
shape, [N, *image_shape], are read from arrays, audio also from WAV files, vectors from tables.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pyinv.array_files import read_array
from pyinv.atomic_files import write_whole
from pyinv.audio import WAV_SUFFIXES, read_wav
from pyinv.bundle import PICTURE_CHANNELS, Manifest
from pyinv.errors import DependencyError, InputError, check_source, one_line, reading
from pyinv.interrupts import say
from pyinv.size_limits import check_pixels, max_pixels
from pyinv.tables import TABLE_SUFFIXES, read_table
from pyinv.validation import as_numpy, first_bad_row, shape_text

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "check_images",
    "load_images",
    "load_named_images",
    "load_weights",
    "not_pictures",
    "picture_names",
    "save_grid",
    "save_images",
    "scaled",
    "to_uint8",
]

FloatArray = NDArray[np.float32]
PathLike = str | os.PathLike[str]
ImageSource = str | os.PathLike[str] | IO[bytes]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Suffixes of the image files that a folder is searched for."""

ARRAY_SUFFIXES = (".npy", ".npz")
# Pillow's names of the formats of IMAGE_SUFFIXES. It would also read others, some with programs.
FILE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
STRIP_PIXELS = 2**20  # that are floats at a time
FITS = ("crop", "stretch")
FILE_CHANNELS = PICTURE_CHANNELS
GRID_TILE = 128  # pixels of an enlarged image in a grid, at most
GRID_WIDTH = 2048
_FOR_NOISE = "if they are noisy, export the generator with a value_range that holds the noise"
RANGE_SLACK = 1e-4  # of the range's span: tolerance for rounding in a generator's last layer


def scaled(unit: str, low: float, high: float) -> str:
    """Return the expression that maps ``unit``, from 0 to 1, to a value range, for messages."""
    shift = "" if low == 0 else f" {'-' if low < 0 else '+'} {abs(low):g}"
    return f"{unit} * {high - low:g}{shift}"


def check_images(images: Any, manifest: Manifest) -> FloatArray:
    """Check images and return them in the engine's format, without a copy if possible.

    Args:
        images: [N, *image_shape] in the bundle's value range, N >= 1: a NumPy array, a PyTorch
            tensor on the CPU (detached here if it requires a gradient), or anything else with
            ``__dlpack__``. Any floating type; only C-contiguous float32 avoids a copy. If the
            generator's own images may leave the range, so may these.
        manifest: the bundle's manifest.

    Returns:
        float32 [N, *image_shape], sharing memory with ``images`` if possible.

    Raises:
        InputError: wrong shape, type or range, NaN, or no image.
    """
    expected = f"float32 [N, {shape_text(manifest.target_shape)}]"
    several = isinstance(images, list | tuple) and len(images) > 0
    if isinstance(images[0] if several else images, str | PurePath):
        paths = "paths" if several else repr(str(images))
        raise InputError(
            f"images must be {expected}, got {type(images).__name__}; read files with "
            f"pyinv.load_images({paths}, inverter.manifest)"
        )
    array = as_numpy(images, "images", expected)
    low, high = manifest.value_range
    if array.dtype.kind in "iub" and manifest.observes:
        raise InputError(f"images must be {expected}, got {array.dtype}; convert them to floats")
    if array.dtype.kind in "iub":
        floats = (
            "images.astype('float32')"
            if isinstance(images, np.ndarray)
            else "numpy.asarray(images, 'float32')"
        )
        raise InputError(
            f"images must be {expected} in [{low:g}, {high:g}], got {array.dtype}; "
            + (
                f"scale them: {scaled(f'{floats} / 255', low, high)}"
                if array.dtype == np.uint8
                else "convert them to floats in that range"
            )
        )
    if array.shape[1:] != manifest.target_shape:
        raise InputError(
            f"images must be {expected}, got [{shape_text(array.shape)}]; "
            f"{_remedy_for_shape(array.shape, manifest.target_shape)}"
        )
    if len(array) == 0:
        raise InputError(f"images must be {expected} with N >= 1, got no image")
    array = np.ascontiguousarray(array, dtype=np.float32)
    # min() and max() make no copy, and a NaN anywhere makes both NaN.
    lowest, highest = float(array.min()), float(array.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise InputError(
            f"images must be finite, but image {first_bad_row(array)} holds NaN or infinity; "
            "remove it"
        )
    slack = _slack(manifest)
    if lowest < low - slack or highest > high + slack:
        fix = f"rescale them to [{low:g}, {high:g}] or clip them; {_FOR_NOISE}"
        if highest > 2 * max(abs(low), abs(high)) and lowest >= 0 and highest <= 255:
            fix = f"if they are 0 to 255, use {scaled('images / 255', low, high)}"
        raise InputError(
            f"images must be in [{low:g}, {high:g}], got [{lowest:.4g}, {highest:.4g}]; {fix}"
        )
    return array


def _slack(manifest: Manifest) -> float:
    """Return by how much targets may leave the value range."""
    if manifest.observes or not manifest.bounded:
        return float(np.finfo(np.float32).max)
    low, high = manifest.value_range
    return RANGE_SLACK * (high - low)


def _remedy_for_shape(got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Return what to do about an array whose rows do not have the wanted shape."""
    axes = len(wanted) + 1
    if got == wanted:
        return "add a batch axis: images[None]"
    if len(wanted) == 3:
        channels, height, width = wanted
        if got[1:] == (height, width, channels):
            return "put channels first: images.transpose(0, 3, 1, 2)"
        if got[1:] == (height, width) and channels == 1:
            return "add a channel axis: images[:, None]"
        if len(got) == axes and got[1] != channels:
            return f"the generator makes {channels}-channel images, these have {got[1]}"
        if len(got) == axes:
            return f"resize them to {height} x {width}, or use load_images on files"
    elif len(got) > 0 and got[1:] == wanted[1:] and wanted[0] == 1:
        return "add a channel axis: images[:, None]"
    if len(got) != axes:
        return f"they need {axes} axes and have {len(got)}"
    return f"the generator's outputs have the shape [{shape_text(wanted)}]"


def load_images(
    paths: ImageSource | Iterable[ImageSource], manifest: Manifest, *, fit: str = "crop"
) -> FloatArray:
    """Read images from files and folders, shaped and scaled for a bundle.

    Args:
        paths: one path or open file or several, each of

            - an image file that Pillow can read. It is rotated according to its EXIF data,
              composited on white if it is transparent, and converted from colour to gray (Rec. 601)
              or from gray to colour as the bundle requires. Of an animation, the first frame is
              used. An open binary file will do, such as ``io.BytesIO(bytes)``;
            - a folder, searched recursively for image files (``IMAGE_SUFFIXES``) in natural order
              (2.png before 10.png), without hidden files;
            - a .npy or .npz file (of several arrays, the one named "images"): uint8, scaled from
              0-255, or floating point, already in the bundle's value range. [N, C, H, W],
              [N, H, W, C], one image without N, or gray without C, if the bundle's channel count
              makes it unambiguous;
            - for a bundle whose targets are not pictures: a .npy or .npz file of floats
              [N, *image_shape], or one target without N; for audio, [C, T] or [T], also .wav files
              (PCM with 8, 16, 24 or 32 bits, values in [-1, 1]) of C channels and T frames, and
              folders of them; for vectors [n], also .parquet files with n numeric columns, which
              needs pyarrow.
        manifest: the bundle's manifest.
        fit: how to resize images of another size (antialiased bicubic). "crop" keeps the aspect
            ratio: the image is scaled to cover the bundle's size and cropped at the centre, as in
            most training pipelines. "stretch" keeps the whole image and changes its aspect ratio.

    Returns:
        float32 [N, *image_shape] in the bundle's value range.

    Raises:
        InputError: nothing found; a file that is missing, unreadable or truncated; an array of the
            wrong shape, type or range. The message names the file.
    """
    return load_named_images(paths, manifest, fit=fit)[0]


def load_named_images(
    paths: ImageSource | Iterable[ImageSource], manifest: Manifest, *, fit: str = "crop"
) -> tuple[FloatArray, list[str]]:
    """Like ``load_images``, but also return the name of each image.

    Returns:
        (images [N, *image_shape], N names: a file's path, followed by ``[i]`` for row i of an
        array).
    """
    check_fit(fit)
    if isinstance(paths, (str, os.PathLike)) or hasattr(paths, "read"):
        paths = [cast("ImageSource", paths)]
    sources = [source for path in paths for source in _sources(path, manifest)]
    count = sum(source.count for source in sources)
    if count == 0:
        raise InputError("no images given; name image files, folders, .npy or .npz files")
    images = np.empty((count, *manifest.target_shape), dtype=np.float32)
    names: list[str] = []
    for source in sources:
        rows = images[len(names) : len(names) + source.count]
        if source.array is None:
            read = _read_image if manifest.targets_are_pictures else _read_audio
            rows[0] = read(source, manifest, fit)
            names.append(str(source.path))
        else:
            _convert(source, rows, manifest, fit)
            names.extend(f"{source.path}[{row}]" for row in range(source.count))
    return images, names


def load_picture(
    file: ImageSource, name: str, manifest: Manifest, *, fit: str = "crop"
) -> FloatArray:
    """Read one image file, [C, H, W], as ``load_images`` does for a bundle of pictures.

    Args:
        file: its path, or an open binary file.
        name: its name in error messages.
        manifest: the bundle's manifest.
        fit: as for ``load_images``.

    Raises:
        InputError: not an image, or a damaged one.
    """
    channels, height, width = manifest.target_shape
    return _to_range(read_pixels(file, name, channels, height, width, fit), manifest)


def target_suffixes(manifest: Manifest) -> tuple[str, ...]:
    """Return the suffixes, in lower case, of the files that may each hold one target."""
    return IMAGE_SUFFIXES if manifest.targets_are_pictures else _audio_suffixes(manifest)


def picture_rows(array: NDArray[Any], path: Path, manifest: Manifest) -> NDArray[Any]:
    """Return a view of a file's array as [N, H, W, C], or [N, *image_shape] without three axes.

    Raises:
        InputError: the array has another shape, an ambiguous one, or the wrong type.
    """
    shaped = _channels_last if len(manifest.target_shape) == 3 else _batched
    return shaped(array, path, manifest)


def convert_rows(rows: NDArray[Any], path: Path, manifest: Manifest, fit: str) -> FloatArray:
    """Convert what ``picture_rows`` returns to targets, float32 [N, *image_shape].

    Raises:
        InputError: a value is out of range.
    """
    images = np.empty((len(rows), *manifest.target_shape), dtype=np.float32)
    _convert(_Source(path, len(rows), rows), images, manifest, fit)
    return images


def load_weights(path: PathLike, manifest: Manifest, *, fit: str = "crop") -> NDArray[Any]:
    """Read weights for ``Inverter.invert`` from a file.

    Args:
        path: a .npy or .npz file (of several arrays, the one named "weights"), which is returned
            unchanged; or for pictures an image file, with black for 0 and white for 1, which is
            resized as the images are.
        manifest: the bundle's manifest.
        fit: as for ``load_images``.

    Raises:
        InputError: the file cannot be read.
    """
    if not manifest.targets_are_pictures or Path(path).suffix.lower() not in IMAGE_SUFFIXES:
        return read_array(path, "weights")
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give an image, or .npy or .npz")
    _, height, width = manifest.target_shape
    return read_pixels(Path(path), str(path), 1, height, width, fit).transpose(2, 0, 1)


def not_pictures(manifest: Manifest) -> str:
    """Say that a bundle's targets are not pictures, with their shape."""
    return f"this bundle's targets are not pictures (shape [{shape_text(manifest.target_shape)}])"


def to_uint8(images: FloatArray, value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Return [N, C, H, W] images in ``value_range`` as uint8 [N, H, W, C], rounded and clipped.

    Raises:
        InputError: not four axes.
    """
    if images.ndim != 4:
        raise InputError(f"pictures must be [N, C, H, W], got [{shape_text(images.shape)}]")
    low, high = value_range
    scaled = (images - low) * (255.0 / (high - low))
    pixels: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


def save_images(
    images: FloatArray,
    directory: PathLike,
    value_range: tuple[float, float],
    *,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Write one PNG file per image into ``directory``, which must exist.

    Args:
        images: [N, C, H, W] in ``value_range``, C of 1, 3 or 4.
        directory: the folder.
        value_range: (low, high), the values of black and white.
        names: file names without suffix; numbers by default.

    Returns:
        the paths written.

    Raises:
        OutputError: a file cannot be written; those before it are.
    """
    paths: list[Path] = []
    try:
        for row, name in enumerate(picture_names(len(images)) if names is None else names):
            path = Path(directory) / f"{name}.png"
            picture = io.BytesIO()
            to_pillow(to_uint8(images[row : row + 1], value_range)[0]).save(picture, format="PNG")
            write_whole(path, picture.getbuffer())
            paths.append(path)
    except KeyboardInterrupt as interrupt:
        say(interrupt, f"{len(paths)} of {len(images)} images were written to {directory}")
        raise
    return paths


def picture_names(count: int) -> list[str]:
    """Return the names of ``count`` pictures: their numbers, all of the same length."""
    digits = len(str(max(count - 1, 0)))
    return [f"{row:0{digits}d}" for row in range(count)]


def save_grid(
    images: FloatArray,
    path: Any,
    value_range: tuple[float, float],
    *,
    columns: int | None = None,
) -> None:
    """Write all images into one PNG, side by side with a white line between them.

    Small images are enlarged by a whole factor, so that each pixel becomes a square: up to 128
    pixels per image, as long as the grid stays about 2048 pixels wide.

    Args:
        images: [N, C, H, W] in ``value_range``, C of 1, 3 or 4.
        path: a path or a binary file to write to.
        value_range: (low, high), the values of black and white.
        columns: images per row; about the square root of N by default.
    """
    pixels = to_uint8(images, value_range)
    count, height, width, channels = pixels.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    sheet = np.full(
        (rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, dtype=np.uint8
    )
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    size = max(height, width)
    zoom = max(1, min(GRID_TILE // size, GRID_WIDTH // (columns * size)))
    to_pillow(sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)).save(path, format="PNG")


def check_fit(fit: str) -> None:
    """Raise InputError unless ``fit`` is one of the ways to resize an image."""
    if fit not in FITS:
        raise InputError(f"fit must be one of {', '.join(FITS)}; got {fit!r}")


def check_value_range(value_range: Any) -> tuple[float, float]:
    """Return (low, high), the values of black and white, or raise InputError."""
    try:
        low, high = (float(bound) for bound in value_range)
    except (TypeError, ValueError, OverflowError):
        low = high = math.nan
    if not (low < high and math.isfinite(high - low)):
        raise InputError(f"value_range must be (low, high) with low < high, got {value_range!r}")
    return low, high


def image_names(
    path: Path,
    names: Iterable[PurePath] | None = None,
    *,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> list[PurePath]:
    """Return the names of image files in natural order: 2.png before 10.png.

    Args:
        path: a folder, searched recursively.
        names: names to choose from instead, relative to ``path``, such as an archive's entries.
        suffixes: the suffixes of the files, in lower case.

    Returns:
        names relative to ``path``, without hidden files and the metadata files that macOS adds to
        archives.
    """
    if names is None:
        names = (file.relative_to(path) for file in path.rglob("*"))
    return sorted(
        (
            name
            for name in names
            if name.suffix.lower() in suffixes
            and not any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
        ),
        key=_natural,
    )


def read_pixels(
    file: PathLike | IO[bytes], name: str, channels: int, height: int, width: int, fit: str
) -> FloatArray:
    """Read one image file and resize it (antialiased bicubic).

    It is converted to floats a few rows at a time, because floats take four times its memory.

    Args:
        file: a path or an open binary file.
        name: its name in error messages.
        channels: C, one of ``FILE_CHANNELS``.
        height: the height to resize to.
        width: the width to resize to.
        fit: "crop" or "stretch", as in ``load_images``.

    Returns:
        float32 [height, width, C] from 0 to 1.

    Raises:
        InputError: not an image, a truncated or damaged one, or one of too many pixels.
    """
    pillow = _pillow()
    from PIL import ImageOps

    if pillow.MAX_IMAGE_PIXELS is not None:  # ours is checked instead
        pillow.MAX_IMAGE_PIXELS = max(pillow.MAX_IMAGE_PIXELS, max_pixels())
    with reading(name, "image", "replace or remove it"):
        try:
            image = pillow.open(file, formats=FILE_FORMATS)
        except pillow.UnidentifiedImageError:  # its text has the address of an open file
            raise ValueError("no image in it") from None
        except pillow.DecompressionBombError as error:
            raise InputError(f"{name}: {one_line(error)}; shrink it") from None
        with image:
            check_pixels(name, image.height, image.width)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            strips = (convert_pixels(strip, channels) for strip in _strips(image))
            return _resize_strips(strips, (image.height, image.width), height, width, fit)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the rows of a Pillow image, a few at a time."""
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def convert_pixels(image: Image.Image, channels: int) -> FloatArray:
    """Return a Pillow image as float32 [H, W, C] from 0 to 1, C one of ``FILE_CHANNELS``."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit gray. Pillow's conversion to 8 bits does not scale.
        gray = np.asarray(image, dtype=np.float32)
        if image.mode == "F" or gray.min() < 0 or gray.max() > 65535:
            raise ValueError("pixels of mode " + image.mode + " have no known range")
        gray = gray[..., None] / np.float32(65535)
        if channels == 4:
            return np.concatenate([gray, gray, gray, np.ones_like(gray)], axis=2)
        return np.repeat(gray, channels, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if channels != 4:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, channels)
    return np.divide(pixels, 255, dtype=np.float32)


def resize_pixels(unit: FloatArray, height: int, width: int, fit: str) -> FloatArray:
    """Resize pixels from 0 to 1 (antialiased bicubic).

    Args:
        unit: float32 [..., H, W, C] from 0 to 1.
        height: the new height.
        width: the new width.
        fit: "crop" or "stretch", as in ``load_images``.

    Returns:
        float32 [..., height, width, C] from 0 to 1; ``unit`` itself if it has that size already.
    """
    if unit.shape[-3:-1] == (height, width):
        return unit
    return _resize_strips([unit], unit.shape[-3:-1], height, width, fit)


def _resize_strips(
    strips: Iterable[FloatArray], size: tuple[int, int], height: int, width: int, fit: str
) -> FloatArray:
    """Resize pixels that come a few rows at a time, [..., rows, W, C], of ``size`` [H, W]."""
    from_height, from_width = size
    if size == (height, width):
        return np.concatenate(list(strips), axis=-3)
    left = top = 0.0
    if fit == "crop":
        scale = min(from_width / width, from_height / height)
        left = max((from_width - width * scale) / 2, 0.0)
        top = max((from_height - height * scale) / 2, 0.0)
    narrow = [_resize_rows(np.moveaxis(strip, -1, -3), width, left) for strip in strips]
    planes = np.concatenate(narrow, axis=-2).swapaxes(-1, -2)
    planes = _resize_rows(planes, height, top).swapaxes(-1, -2)
    return np.moveaxis(planes, -3, -1).clip(0, 1)  # bicubic overshoots at edges


def _resize_rows(planes: FloatArray, size: int, margin: float) -> FloatArray:
    """Resize [..., L] to [..., size], cropping a margin at both ends, in one Pillow call."""
    pillow = _pillow()
    # As a float image, because Pillow rounds 8-bit pixels between its two passes.
    rows = pillow.fromarray(np.ascontiguousarray(planes.reshape(-1, planes.shape[-1])))
    resized = rows.resize(
        (size, rows.height),
        resample=pillow.Resampling.BICUBIC,
        box=(margin, 0.0, rows.width - margin, float(rows.height)),
    )
    return np.asarray(resized, dtype=np.float32).reshape(*planes.shape[:-1], size)


@dataclass(frozen=True)
class _Source:
    path: Path  # of an open file, its name
    count: int
    # [count, H, W, C], of any size; or [count, *image_shape], if targets do not have three axes
    array: NDArray[Any] | None = None
    file: IO[bytes] | None = None


def _sources(given: ImageSource, manifest: Manifest) -> list[_Source]:
    if not isinstance(given, (str, os.PathLike)):
        if not manifest.targets_are_pictures:
            raise InputError(f"open files must be of images, and {not_pictures(manifest)}")
        name = getattr(given, "name", None)
        return [_Source(Path(name if isinstance(name, str) else "the image"), 1, file=given)]
    path = Path(given)
    suffixes = target_suffixes(manifest)
    if path.is_dir():
        found = [name for name in image_names(path, suffixes=suffixes) if (path / name).is_file()]
        if not found and manifest.targets_are_pictures:
            raise InputError(
                f"{path}: no image files in this folder; "
                f"expected some of {', '.join(IMAGE_SUFFIXES)}"
            )
        if not found:
            raise InputError(f"{path}: {not_pictures(manifest)}; {_instead(manifest)}")
        return [_Source(path / name, 1) for name in found]
    check_source(path)
    if path.suffix.lower() in ARRAY_SUFFIXES:
        array = picture_rows(read_array(path, "images"), path, manifest)
        return [_Source(path, len(array), array)]
    if path.suffix.lower() in TABLE_SUFFIXES and len(manifest.target_shape) == 1:
        array = _batched(read_table(path, manifest.target_size), path, manifest)
        return [_Source(path, len(array), array)]
    if not (manifest.targets_are_pictures or path.suffix.lower() in suffixes):
        raise InputError(f"{path}: {not_pictures(manifest)}; {_instead(manifest)}")
    if path.suffix.lower() in (".txt", ".lst", ".parquet", ".arrow", ".feather"):
        raise InputError(
            f"{path}: only jobs read lists and tables of images; invert it with pyinv.run_job, or "
            "with pyinv invert and an output folder, OUT/"
        )
    return [_Source(path, 1)]


def _audio_suffixes(manifest: Manifest) -> tuple[str, ...]:
    """Return the suffixes of audio files, if targets can be audio: [C, T], or mono [T]."""
    return WAV_SUFFIXES if len(manifest.target_shape) <= 2 else ()


def _instead(manifest: Manifest) -> str:
    """Say which files hold targets that are not pictures."""
    array = f"give a .npy or .npz file of floats [N, {shape_text(manifest.target_shape)}]"
    if len(manifest.target_shape) == 1:
        return f"{array}, a .parquet file or .wav files"
    return f"{array}, or .wav files" if _audio_suffixes(manifest) else array


def _natural(path: PurePath) -> tuple[list[list[tuple[bool, int, str]]], str]:
    # Numbers compare as numbers; the leading flag prevents comparing text with numbers. The path
    # itself orders a.png and A.png, whose order would otherwise depend on the file system.
    pieces = [
        [
            (piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece)
            for piece in re.split(r"(\d+)", part.lower())
        ]
        for part in path.parts
    ]
    return pieces, str(path)


def _channels_last(array: NDArray[Any], path: Path, manifest: Manifest) -> NDArray[Any]:
    """Return the array as [N, H, W, C], or raise if its layout is wrong or ambiguous."""
    channels, height, width = manifest.target_shape
    candidates: list[NDArray[Any]] = []
    if array.ndim == 4:
        if array.shape[1] == channels:
            candidates.append(array.transpose(0, 2, 3, 1))
        if array.shape[3] == channels:
            candidates.append(array)
    elif array.ndim == 3:
        if channels == 1:
            candidates.append(array[..., None])
            if array.shape[2] == 1 and array.shape[0] > 1:
                candidates.append(array[None])
        else:
            if array.shape[0] == channels:
                candidates.append(array[None].transpose(0, 2, 3, 1))
            if array.shape[2] == channels:
                candidates.append(array[None])
    elif array.ndim == 2 and channels == 1:
        candidates.append(array[None, ..., None])
    if manifest.target_size == 1:
        candidates = candidates[:1]  # all layouts are equivalent
    if len(candidates) > 1:
        exact = [one for one in candidates if one.shape[1:3] == (height, width)]
        candidates = exact if len(exact) == 1 else candidates
    expected = f"[N, {shape_text(manifest.target_shape)}] or [N, {height}, {width}, {channels}]"
    got = f"{path}: expected images {expected}, got [{shape_text(array.shape)}]"
    if not candidates:
        raise InputError(f"{got}; give it the bundle's {channels} channel(s)")
    if len(candidates) > 1:
        raise InputError(f"{got}, which could be either; save it in the first layout")
    if candidates[0].size == 0:
        raise InputError(f"{path}: expected images {expected}, got an empty array")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(
            f"{path}: expected uint8 (0-255) or floating images, got {array.dtype}; convert them"
        )
    return candidates[0]


def _batched(array: NDArray[Any], path: Path, manifest: Manifest) -> NDArray[Any]:
    """Return the array as [N, *image_shape], or raise if it has another shape or type."""
    shape = manifest.target_shape
    expected = f"{path}: expected floats [N, {shape_text(shape)}]"
    if array.dtype.kind != "f":
        raise InputError(f"{expected}, got {array.dtype}; convert it")
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape or len(array) == 0:
        raise InputError(
            f"{expected} or [{shape_text(shape)}], got [{shape_text(array.shape)}]; reshape it"
        )
    return array


def _convert(source: _Source, rows: FloatArray, manifest: Manifest, fit: str) -> None:
    """Write the images of a source's array into ``rows`` [N, *image_shape]."""
    convert = _convert_array if len(manifest.target_shape) == 3 else _copy_array
    convert(source, rows, manifest, fit)


def _copy_array(source: _Source, rows: FloatArray, manifest: Manifest, fit: str) -> None:
    """Write a source's targets into ``rows`` [N, *image_shape]."""
    assert source.array is not None
    rows[:] = source.array
    _check_values(source.path, rows, manifest)


def _read_audio(source: _Source, manifest: Manifest, fit: str) -> FloatArray:
    """Return one file's audio in the bundle's shape, [C, T] or [T]."""
    path = source.path
    samples = read_wav(path)
    shape = manifest.target_shape
    wanted = shape if len(shape) == 2 else (1, *shape)
    if samples.shape != wanted:
        channels, frames = samples.shape
        raise InputError(
            f"{path}: expected {wanted[0]} channel(s) of {wanted[1]} frames, got {channels} of "
            f"{frames}; cut, pad or mix it"
        )
    samples = samples.reshape(shape)
    _check_values(path, samples[None], manifest)
    return samples


def _check_values(path: Path, rows: FloatArray, manifest: Manifest) -> None:
    low, high = manifest.value_range
    slack = _slack(manifest)
    lowest, highest = float(rows.min()), float(rows.max())
    if not (lowest >= low - slack and highest <= high + slack):
        raise InputError(
            f"{path}: the values must be finite and in [{low:g}, {high:g}], got "
            f"[{lowest:.4g}, {highest:.4g}]; rescale them; {_FOR_NOISE}"
        )


def _convert_array(source: _Source, rows: FloatArray, manifest: Manifest, fit: str) -> None:
    """Write a source's images into ``rows`` [N, C, H, W], one at a time to bound memory."""
    assert source.array is not None
    _, height, width = manifest.target_shape
    low, high = manifest.value_range
    span = high - low
    for index, image in enumerate(source.array):
        if image.dtype == np.uint8:
            unit = image.astype(np.float32) / np.float32(255)
        else:
            unit = ((image.astype(np.float64) - low) / span).astype(np.float32)
            fits = image.shape[:2] == manifest.target_shape[1:]
            slack = _slack(manifest) if fits else RANGE_SLACK * span
            lowest, highest = float(image.min()), float(image.max())
            if not (lowest >= low - slack and highest <= high + slack):
                raise InputError(
                    f"{source.path}: image {index} must be finite and in [{low:g}, {high:g}], got "
                    f"[{lowest:.4g}, {highest:.4g}]; rescale the array, or save it as uint8; "
                    f"{_FOR_NOISE}"
                )
            if fits:
                rows[index] = image.transpose(2, 0, 1)  # unscaled, hence exact
                continue
        rows[index] = _to_range(resize_pixels(unit, height, width, fit), manifest)


def _read_image(source: _Source, manifest: Manifest, fit: str) -> FloatArray:
    """Return one file's image as [C, H, W] in the bundle's value range."""
    return load_picture(source.file or source.path, str(source.path), manifest, fit=fit)


def _to_range(unit: FloatArray, manifest: Manifest) -> FloatArray:
    low, high = manifest.value_range
    scaled = unit.transpose(2, 0, 1) * np.float32(high - low) + np.float32(low)
    return scaled.clip(low, high)


def to_pillow(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return uint8 [H, W, C] as a Pillow image."""
    pillow = _pillow()
    if pixels.shape[2] not in (1, 3, 4):
        raise InputError(
            f"images of {pixels.shape[2]} channels cannot be written as PNG; write .npz or .npy"
        )
    one_plane = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    image: Image.Image = pillow.fromarray(np.ascontiguousarray(one_plane))
    return image


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise DependencyError(
            "reading and writing image files needs Pillow: pip install pillow"
        ) from None
    return Image
