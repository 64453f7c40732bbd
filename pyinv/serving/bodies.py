"""Reading what clients send: bodies, image files, arrays and JSON, each within its limits."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from pyinv.array_files import read_header
from pyinv.bundle import Manifest
from pyinv.errors import one_line
from pyinv.images import convert_rows, load_images, not_pictures, picture_rows
from pyinv.serving.limits import Limits
from pyinv.serving.refusals import Refusal, refused
from pyinv.validation import check_rows, shape_text

__all__ = ["Body", "File", "images_of", "latents_of", "parse_json", "read_body", "split_body"]

FloatArray = NDArray[np.float32]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_NPY = b"\x93NUMPY"
_MOST_FIELDS = 32
_MOST_AXES = 32  # of any array in NumPy 1
_LONGEST_NAME = 80


@dataclass(frozen=True)
class File:
    """A file that was sent: its field in a form ("" if it is the whole body), name and content."""

    field: str
    name: str
    data: bytes


@dataclass(frozen=True)
class Body:
    """A request's body: files, and a form's other fields as (name, text)."""

    files: list[File]
    fields: list[tuple[str, str]]


async def read_body(
    request: Request, limits: Limits, deadline: float, hold: Callable[[int], None]
) -> bytes:
    """Return the whole body.

    Args:
        request: the request.
        limits: for the body's size.
        deadline: the event loop's time by which the body must be complete.
        hold: called with the size of each part; may raise a Refusal.

    Raises:
        Refusal: the body is too large (413) or too slow (408).
        ClientDisconnect: the client is gone.
    """
    # Without closing the connection: a client that still sends would not get the answer.
    too_large = Refusal(413, f"the body must be at most {limits.max_body} bytes; send less")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.max_body:
        raise too_large

    async def read() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > limits.max_body:
                raise too_large
            hold(len(part))
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(read(), deadline - asyncio.get_running_loop().time())
    except asyncio.TimeoutError:
        text = "the body did not arrive within the request's timeout"
        raise Refusal(408, text, {"Connection": "close"}) from None


async def split_body(headers: Headers, data: bytes, limits: Limits) -> Body:
    """Return the files and fields of a body, which may be a form; raise Refusal if it is broken."""
    content_type = headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded" and not data.lstrip().startswith(
        (_PNG, _JPEG, _NPY, b"[", b"{")
    ):
        raise Refusal(
            415,
            "the body is none of PNG, JPEG, .npy and JSON; send one of these, or a form as "
            "multipart/form-data (curl -F images=@FILE)",
        )
    if not data:
        raise Refusal(400, "the body is empty; send a PNG, JPEG or .npy file")
    if kind != "multipart/form-data":
        return Body([File("", "the body", data)], [])
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    # The parser would leave out the unfinished part.
    if boundary and not data.rstrip().endswith(b"--" + boundary + b"--"):
        raise Refusal(400, "malformed form: it ends before its last boundary; send all of it")

    async def whole() -> AsyncIterator[bytes]:
        yield data

    parser = MultiPartParser(
        headers,
        whole(),  # type: ignore[arg-type]
        max_files=limits.max_images + 1,
        max_fields=_MOST_FIELDS,
        max_part_size=limits.max_body,
    )
    parser.spool_max_size = limits.max_body + 1  # the parts stay in memory
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(limits) from None
        raise Refusal(400, f"malformed form: {one_line(error)}") from None
    except Exception as error:  # of an odd character set, for example
        raise Refusal(400, f"malformed form: {type(error).__name__}: {one_line(error)}") from None
    files: list[File] = []
    fields: list[tuple[str, str]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            content = await value.read()
            await value.close()
            if content or value.filename:  # not the empty file input of a browser's form
                number = f"file {len(files)}"
                files.append(File(name, (value.filename or number)[:_LONGEST_NAME], content))
        elif name == "latents":
            if value.strip():
                files.append(File(name, name, value.encode()))
        else:
            fields.append((name, value))
    return Body(files, fields)


def images_of(files: list[File], manifest: Manifest, limits: Limits, fit: str) -> FloatArray:
    """Return the images of files, float32 [n, *target_shape] in the bundle's value range.

    Raises:
        Refusal: too many or too large (413), of another type (415), damaged or of another shape
            (422).
    """
    if not files:
        raise Refusal(400, "no image was sent; send a PNG, JPEG or .npy file")
    found: list[FloatArray] = []
    for file in files:
        if file.data.startswith(_NPY):
            array = _array_of(file)
            _check_pixels(file.name, array.shape, manifest, limits)
            with refused(422):
                rows = picture_rows(array, Path(file.name), manifest)
                images = convert_rows(rows, Path(file.name), manifest, fit)
        elif file.data.startswith((_PNG, _JPEG)):
            if not manifest.targets_are_pictures:
                raise Refusal(415, f"{file.name}: {not_pictures(manifest)}; send a .npy file")
            _check_header(file, limits)
            with refused(422):
                images = load_images(_opened(file), manifest, fit=fit)
        else:
            kinds = "PNG, JPEG or .npy" if manifest.targets_are_pictures else ".npy"
            raise Refusal(415, f"{file.name}: expected a {kinds} file")
        found.append(images)
        if sum(map(len, found)) > limits.max_images:
            raise _too_many(limits)
    return np.concatenate(found) if len(found) > 1 else found[0]


def latents_of(file: File, manifest: Manifest, limits: Limits) -> FloatArray:
    """Return latents [n, d] from a .npy file or JSON.

    JSON is an array, [n, *latent_shape] or [n, d], or an object with such an array as "latents".

    Raises:
        Refusal: damaged, or of another shape (422), or too many (413).
    """
    given: Any
    if file.data.startswith(_NPY):
        given = _array_of(file)
    else:
        given = parse_json(file.data, "latents")
        if isinstance(given, dict):
            if set(given) != {"latents"}:
                raise Refusal(422, 'expected {"latents": [[...], ...]}')
            given = given["latents"]
    with refused(422):
        latents = check_rows(given, "latents", manifest.latent_shape, None)
    if len(latents) > limits.max_images:
        raise _too_many(limits)
    return latents


def parse_json(data: str | bytes, name: str) -> Any:
    """Return the value of JSON, or raise Refusal (422)."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(422, f"{name}: not valid JSON ({one_line(error)})") from None


def _too_many(limits: Limits) -> Refusal:
    return Refusal(
        413, f"a request may have at most {limits.max_images} images; split it into several"
    )


def _opened(file: File) -> io.BytesIO:
    opened = io.BytesIO(file.data)
    opened.name = file.name  # for error messages
    return opened


def _check_header(file: File, limits: Limits) -> None:
    """Refuse an image file that is too large to decode; reads its header only."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(_opened(file), formats=("PNG", "JPEG")) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(file.name, "more", limits) from None
    except UnidentifiedImageError:  # its text has the address of an open file
        raise Refusal(422, f"{file.name}: not a readable image, or truncated") from None
    except Exception as error:
        raise Refusal(422, f"{file.name}: not a readable image ({one_line(error)})") from None
    if width * height > limits.max_pixels:
        raise _too_large(file.name, f"{height} x {width}", limits)


def _check_pixels(name: str, shape: tuple[int, ...], manifest: Manifest, limits: Limits) -> None:
    """Refuse an array of too many images, or of images that are larger than allowed."""
    pictures = len(manifest.target_shape) == 3
    if pictures and len(shape) == 4 and shape[0] > limits.max_images:
        raise _too_many(limits)
    if pictures and len(shape) >= 2 and math.prod(shape[-3:]) > 4 * limits.max_pixels:
        raise _too_large(name, f"[{shape_text(shape)}]", limits)


def _too_large(name: str, size: str, limits: Limits) -> Refusal:
    return Refusal(
        413, f"{name}: an image may have at most {limits.max_pixels} pixels, got {size}; shrink it"
    )


def _array_of(file: File) -> NDArray[Any]:
    """Return the array of a .npy file, without a copy.

    The header is checked first: ``numpy.load`` would allocate whatever size it states.
    """
    opened = io.BytesIO(file.data)
    try:
        shape, fortran_order, dtype = read_header(opened)
    except Exception as error:
        raise Refusal(422, f"{file.name}: damaged .npy file ({one_line(error)})") from None
    if dtype.kind not in "fiub":
        raise Refusal(422, f"{file.name}: expected an array of numbers, got {dtype}")
    size, there = math.prod(shape) * dtype.itemsize, len(file.data) - opened.tell()
    if size != there:
        raise Refusal(
            422,
            f"{file.name}: the array [{shape_text(shape)}] takes {size} bytes, got {there}; "
            "send the whole file",
        )
    if not size:
        raise Refusal(422, f"{file.name}: the array [{shape_text(shape)}] is empty")
    if len(shape) > _MOST_AXES:
        raise Refusal(422, f"{file.name}: the array has {len(shape)} axes; send images or latents")
    flat = np.frombuffer(file.data, dtype, offset=opened.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")
