"""Compare the measured figures with the promised ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pyinv.batching import DEFAULT_BATCH_SIZE

from .methods import PRECISE, RECONSTRUCT

__all__ = ["judge"]

RECOVERED = {
    "faces": {"1e-4": 0.999, "1e-8": 0.99},
    "mnist": {"1e-4": 0.99},
    "omniglot": {"1e-4": 0.99},
}
CHEAPER = 50.0
COVERAGE = (0.90, 0.99)


def judge(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every promise that was measured: what, figure, wanted, met."""
    promises = [*_recovered(report), *_cost(report), *_noise(report)]
    return [
        {
            "what": what,
            "figure": figure,
            "wanted": _range_text(low, high),
            "met": figure is not None and low <= figure <= high,
        }
        for what, figure, low, high in promises
    ]


Promise = tuple[str, float | None, float, float]


def _recovered(report: dict[str, Any]) -> Iterator[Promise]:
    for row in report.get("results", []):
        if row["recipe"] != PRECISE:
            continue
        for threshold, wanted in RECOVERED.get(row["generator"], {}).items():
            what = f"{row['generator']}: share with a latent error below {threshold}"
            yield what, row["recovered"][threshold], wanted, math.inf
        # The same unit for both: a step's forward and backward passes are two forward equivalents.
        cheaper = row.get("cheaper_than_100000_steps", {}).get("a step is 2 forwards")
        what = f"{row['generator']}: times fewer forward equivalents than 100,000 steps"
        yield what, cheaper, CHEAPER, math.inf


def _cost(report: dict[str, Any]) -> Iterator[Promise]:
    for row in report.get("cost", []):
        wanted = 2.0 if row["lanes"] == DEFAULT_BATCH_SIZE else 1.0
        what = f"{row['generator']}: times faster than PyTorch on {row['lanes']} lanes"
        yield what, row["times_faster"]["median"], wanted, math.inf


def _noise(report: dict[str, Any]) -> Iterator[Promise]:
    for row in report.get("noise", []):
        about = f"{row['generator']}, noise of variance {row['variance']:g}"
        for name, ratio in row.get("over_best_first_order", {}).items():
            if name.startswith(RECONSTRUCT):
                what = f"{about}: latent error of {name}, over {row['best_first_order']}'s"
                yield what, ratio, -math.inf, 1.0
        for name, covered in row["coverage"].items():
            yield f"{about}: share in 95 % intervals, {name}", covered["inside"], *COVERAGE


def _range_text(low: float, high: float) -> str:
    if math.isinf(high):
        return f"at least {low:g}"
    return f"at most {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"
