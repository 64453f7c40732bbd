"""Console output: results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Console"]


@dataclass(frozen=True)
class Console:
    """A command's console output.

    Args:
        json: print results as one JSON object instead of text.
        quiet: print no messages and no progress.
    """

    json: bool = False
    quiet: bool = False

    @property
    def shows_progress(self) -> bool:
        """Whether to show progress on standard error."""
        return not self.quiet

    @property
    def shows_bar(self) -> bool:
        """Whether to show a progress bar: standard error is a terminal."""
        return not self.quiet and sys.stderr.isatty()

    def message(self, text: str) -> None:
        """Print a message to standard error."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Print an error message."""
        print(f"pyinv: error: {text}", file=sys.stderr, flush=True)

    def result(self, values: Mapping[str, Any]) -> None:
        """Print the result as JSON, if requested. NaN and infinity become null."""
        if self.json:
            print(json.dumps(_finite(values), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
