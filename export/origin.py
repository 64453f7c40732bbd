"""The ``origin`` entry of a bundle's manifest: where the generator comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pyinv.errors import ExportError

__all__ = ["checked_origin"]


def checked_origin(given: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        origin = json.loads(json.dumps({} if given is None else dict(given), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"origin must be a mapping of JSON values, got {given!r} ({error})"
        ) from None
    return dict(origin)
