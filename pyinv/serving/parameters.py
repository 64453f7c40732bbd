"""The parameters of requests, given in the URL or as fields of a form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.bundle import Manifest
from pyinv.conditions import condition_rows
from pyinv.serving.bodies import parse_json
from pyinv.serving.limits import Limits
from pyinv.serving.refusals import Refusal, refused
from pyinv.target_ids import target_id

__all__ = ["PARAMETERS", "Parameter", "Parameters"]

_SEEDS = 2**64


@dataclass(frozen=True)
class Parameter:
    """What the documentation says about a parameter; ``schema`` is its JSON schema."""

    description: str
    schema: dict[str, Any]


PARAMETERS = {
    "recipe": Parameter("The name of one of the recipes that are served.", {"type": "string"}),
    "loss": Parameter("One of the bundle's losses instead of the recipe's.", {"type": "string"}),
    "effort": Parameter(
        "For the recipe default.", {"type": "string", "enum": ["fast", "default", "best"]}
    ),
    "seed": Parameter(
        "Seeds all random draws, with the ids. Requests with the same seed share lanes.",
        {"type": "integer", "minimum": 0, "maximum": _SEEDS - 1},
    ),
    "id": Parameter(
        "An image's id, which seeds its random draws; repeat it for several images. A whole number "
        "below 2^47 is used as it is, other text is hashed. By default images are numbered from 0.",
        {"type": "array", "items": {"type": "string"}},
    ),
    "conditions": Parameter(
        "What the generator takes beside the latent, as JSON: one value for all images, or a list "
        "with one for each.",
        {"type": "string", "example": '{"label": 3}'},
    ),
    "timeout": Parameter(
        "Seconds after which the request is given up, at most the service's own timeout.",
        {"type": "number", "exclusiveMinimum": 0},
    ),
    "fit": Parameter(
        "How images of another size are resized: covered and cropped, or stretched.",
        {"type": "string", "enum": ["crop", "stretch"]},
    ),
    "format": Parameter(
        "The format of the answer; otherwise the header Accept decides.", {"type": "string"}
    ),
}


class Parameters:
    """The parameters of a request.

    Args:
        given: names with their text; empty text counts as not given.
        allowed: the names that the endpoint takes.

    Raises:
        Refusal: another name, or one that is given twice.
    """

    def __init__(self, given: Iterable[tuple[str, str]], allowed: Sequence[str]) -> None:
        self._given: dict[str, list[str]] = {}
        for name, text in given:
            if name not in allowed:
                raise Refusal(
                    400, f"unknown parameter {name[:80]!r}; expected {', '.join(allowed)}"
                )
            if text.strip():
                self._given.setdefault(name, []).append(text.strip())
        for name, texts in self._given.items():
            if name != "id" and len(texts) > 1:
                raise Refusal(400, f"{name} is given {len(texts)} times; give it once")

    def text(self, name: str, choices: Sequence[str] | None = None) -> str | None:
        """Return a parameter's text, or None."""
        text = self._given.get(name, [None])[0]
        if choices is not None and text is not None and text not in choices:
            raise Refusal(400, f"{name} must be one of {', '.join(choices)}, got {text[:80]!r}")
        return text

    def seed(self, default: int) -> int:
        """Return the seed."""
        text = self.text("seed")
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < _SEEDS):
            raise Refusal(
                400, f"seed must be a whole number from 0 to below 2^64, got {text[:80]!r}"
            )
        return int(text)

    def timeout(self, limits: Limits) -> float:
        """Return the seconds that the request may take."""
        text = self.text("timeout")
        if text is None:
            return limits.timeout
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= limits.timeout:
            raise Refusal(
                400,
                f"timeout must be a number of seconds > 0 and <= {limits.timeout:g}, got "
                f"{text[:80]!r}",
            )
        return seconds

    def ids(self, count: int) -> tuple[list[str | int], NDArray[np.uint64]]:
        """Return the ids of images, and what seeds their draws [count]."""
        given = self._given.get("id")
        if given is None:
            return list(range(count)), np.arange(count, dtype=np.uint64)
        if len(given) != count:
            raise Refusal(400, f"give one id per image, got {len(given)} for {count}")
        ids: list[str | int] = [_number_or_text(text) for text in given]
        with refused(400):
            return ids, np.array([target_id(id) for id in ids], dtype=np.uint64)

    def given_conditions(self) -> Any:
        """Return the conditions as they were given, or None."""
        text = self.text("conditions")
        return None if text is None else parse_json(text, "conditions")

    def conditions(self, manifest: Manifest, count: int) -> NDArray[np.float32] | None:
        """Return the conditions [count, k], or None if the bundle has none."""
        with refused(400):
            return condition_rows(manifest.conditions, self.given_conditions(), count)


def _number_or_text(text: str) -> str | int:
    # A number as Python writes it: "007" is another id than "7".
    if text.isascii() and text.isdecimal() and len(text) <= 15 and str(int(text)) == text:
        return int(text)
    return text
