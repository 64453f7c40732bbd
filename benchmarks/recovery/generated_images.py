"""Section ``recovery``: latents of the generator's own images, whose true latents are known."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from .bench import Bench
from .generators import Subject
from .methods import PRECISE, first_order, precise
from .rows import result_row

__all__ = ["run"]

# A multiple of the lanes. The targets of first-order runs all take the same number of steps, so
# splitting such a run into calls costs no time.
AT_A_TIME = 256
LATENCY_TARGETS = 16


def run(bench: Bench, subjects: Sequence[Subject], *, complete: bool) -> list[dict[str, Any]]:
    """Return one row per generator and method; only those of ``precise`` unless complete."""
    rows = []
    if PRECISE in bench.methods:
        rows += [_precise_row(bench, subject) for subject in subjects]
    if complete:
        for subject in subjects:
            wanted = bench.requested(first_order(subject.inverter().manifest, bench.steps).items())
            latents, images = subject.targets(bench.targets)
            for name, recipe in wanted.items():
                found = bench.cache.run(
                    f"{subject.key}: {name}, {bench.steps} updates",
                    subject.inverter(),
                    images,
                    recipe,
                    true_latents=latents,
                    at_a_time=AT_A_TIME,
                )
                rows.append(result_row(subject, name, found, latents, images))
    return rows


def _precise_row(bench: Bench, subject: Subject) -> dict[str, Any]:
    inverter = subject.inverter()
    latents, images = subject.targets(bench.targets)
    recipe = precise(inverter.manifest)
    found = bench.cache.run(
        f"{subject.key}: {PRECISE}", inverter, images, recipe, true_latents=latents
    )
    row = result_row(subject, PRECISE, found, latents, images)
    row["latency"] = _latency(bench, subject)
    return row


def _latency(bench: Bench, subject: Subject) -> dict[str, Any]:
    """Return the time for a single image."""
    inverter = subject.inverter(batch_size=1)
    _, images = subject.targets(bench.few(LATENCY_TARGETS))
    recipe = precise(inverter.manifest)

    def measure() -> dict[str, Any]:
        inverter.invert(images[:1], recipe=recipe)  # loads and plans
        seconds = []
        for row in range(len(images)):
            started = time.perf_counter()
            inverter.invert(images[row : row + 1], recipe=recipe)
            seconds.append(time.perf_counter() - started)
        return {
            "images": len(seconds),
            "median_seconds": statistics.median(seconds),
            "greatest_seconds": max(seconds),
        }

    settings = [subject.weights, len(images), recipe.describe(), bench.threads]
    return bench.cache.measurement(f"{subject.key}: one image alone", settings, measure)
