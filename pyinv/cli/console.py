"""Console output: results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyinv.errors import PyinvWarning, printable

__all__ = ["Console"]


@dataclass(frozen=True)
class Console:
    """A command's console output.

    Args:
        json: print results as one JSON object instead of text.
        quiet: print no messages and no progress.
        warned: the warnings so far.
    """

    json: bool = False
    quiet: bool = False
    warned: list[str] = field(default_factory=list)

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
            print(printable(text), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Print an error message."""
        print(f"pyinv: error: {printable(text)}", file=sys.stderr, flush=True)

    @contextmanager
    def shows_warnings(self) -> Iterator[None]:
        """Print pyinv's warnings as messages, one line each."""
        with warnings.catch_warnings():
            usual = warnings.showwarning

            def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
                if not issubclass(category, PyinvWarning):
                    usual(message, category, *place, **more)
                elif str(message) not in self.warned:
                    self.warned.append(str(message))
                    self.message(f"pyinv: warning: {message}")

            warnings.showwarning = show
            yield

    def result(self, values: Mapping[str, Any]) -> None:
        """Print the result and the warnings as JSON, if requested. NaN and infinity become null."""
        if self.json:
            if self.warned:
                values = {**values, "warnings": self.warned}
            print(json.dumps(_finite(values), allow_nan=False), flush=True)

    def event(self, values: Mapping[str, Any]) -> None:
        """Print one event of a job as a line of JSON, if requested."""
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
