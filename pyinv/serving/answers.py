"""The formats of answers: JSON, .npy and PNG."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from pyinv.images import save_grid, to_pillow, to_uint8
from pyinv.serving.refusals import Refusal

__all__ = [
    "chosen_format",
    "error_answer",
    "finite",
    "json_answer",
    "npy_answer",
    "png_answer",
]

FloatArray = NDArray[np.float32]

_NPY = "application/x-npy"


def chosen_format(asked: str | None, accept: str, formats: Sequence[str]) -> str:
    """Return the format of an answer, or raise Refusal (406).

    Args:
        asked: the request's parameter, checked, or None.
        accept: its header Accept.
        formats: the names of those that there are; the first is the default.
    """
    if asked is not None:
        return asked
    types = {"json": "application/json", "npy": _NPY, "png": "image/png"}
    accepted = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    for kind in accepted:
        for name in formats:
            if kind == types[name]:
                return name
    anything = ("", "*/*", "application/*", "image/*", "text/html")
    if not any(kind in anything for kind in accepted):
        listed = " or ".join(types[name] for name in formats)
        raise Refusal(406, f"the answer is {listed}; change the header Accept")
    return formats[0]


def png_answer(images: FloatArray, value_range: tuple[float, float]) -> Response:
    """Return one image, or several as a grid, as PNG."""
    file = io.BytesIO()
    if len(images) == 1:
        to_pillow(to_uint8(images, value_range)[0]).save(file, format="PNG")
    else:
        save_grid(images, file, value_range)
    return Response(file.getvalue(), media_type="image/png")


def npy_answer(array: FloatArray, headers: Mapping[str, str] | None = None) -> Response:
    """Return an array as a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return Response(file.getvalue(), media_type=_NPY, headers=headers)


def json_answer(values: Mapping[str, Any], status: int = 200, headers: Any = None) -> Response:
    """Return values, which may be NumPy's, as one line of JSON."""
    text = json.dumps(values, default=_listed, allow_nan=False)
    return Response(text + "\n", status, headers, media_type="application/json")


def _listed(value: Any) -> Any:
    """Return a NumPy value as JSON values; null for NaN and infinity, which JSON does not have."""
    array = np.asarray(value)
    known = np.isfinite(array)
    if not known.all():
        array = array.astype(object)
        array[~known] = None
    return array.tolist()


def finite(value: float) -> float | None:
    """Return a number, or None in place of NaN and infinity."""
    return value if math.isfinite(value) else None


def error_answer(status: int, message: str, headers: Any = None) -> Response:
    """Return an error as one line of JSON."""
    return json_answer({"error": " ".join(message.split())}, status, headers)
