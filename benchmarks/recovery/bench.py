"""The settings that every section of the benchmark gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pyinv.recipes import Recipe

from .generators import Missing
from .run_cache import RunCache

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """The benchmark's settings.

    Args:
        targets: images per generator in the section recovery; the most in any other section.
        steps: steps of the first-order methods.
        threads: the threads of all contenders.
        methods: the methods to measure, from ``METHODS``.
        cache: the cache of results.
        say: called with a line of progress.
        skipped: one line per measurement that was not possible, with the reason.
    """

    targets: int
    steps: int
    threads: int
    methods: frozenset[str]
    cache: RunCache
    say: Callable[[str], None]
    skipped: list[str]

    def few(self, most: int) -> int:
        """Return the number of targets of a section that uses at most ``most``."""
        return min(most, self.targets)

    def requested(self, recipes: Iterable[tuple[str, Recipe]]) -> dict[str, Recipe]:
        """Return the recipes whose names were requested."""
        return {name: recipe for name, recipe in recipes if name in self.methods}

    def skip(self, what: str, why: Missing) -> None:
        """Record, once, that something is not measured."""
        line = f"{what}: {why}"
        if line not in self.skipped:
            self.skipped.append(line)
            self.say(f"skipped: {line}")
