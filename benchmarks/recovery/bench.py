"""What every section of the benchmark is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pyinv.recipes import Recipe

from .generators import Missing
from .run_cache import RunCache

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """The benchmark as it was asked for.

    Args:
        targets: images a generator in the section recovery; the most in any other.
        steps: updates of the first-order methods.
        threads: of everybody.
        methods: the methods to measure, of ``METHODS``.
        cache: where results are kept.
        say: called with a line of progress.
        skipped: what could not be measured and why, a line each.
    """

    targets: int
    steps: int
    threads: int
    methods: frozenset[str]
    cache: RunCache
    say: Callable[[str], None]
    skipped: list[str]

    def few(self, most: int) -> int:
        """Return how many targets a section that takes fewer takes."""
        return min(most, self.targets)

    def wanted(self, recipes: Iterable[tuple[str, Recipe]]) -> dict[str, Recipe]:
        """Return the recipes whose names were asked for."""
        return {name: recipe for name, recipe in recipes if name in self.methods}

    def skip(self, what: str, why: Missing) -> None:
        """Note, once, that something is not measured."""
        line = f"{what}: {why}"
        if line not in self.skipped:
            self.skipped.append(line)
            self.say(f"skipped: {line}")
