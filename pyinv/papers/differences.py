"""Report content that all papers share: differences from the paper, versions and hardware."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyinv.papers.generators import Generator
from pyinv.papers.report import Report
from pyinv.papers.run_cache import RunCache

__all__ = ["add_shared_differences", "made_with"]


def made_with(runs: RunCache) -> dict[str, Any]:
    """Return the versions and hardware used for a report, including those of cached runs."""
    return {
        **runs.made_with(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def add_shared_differences(
    report: Report,
    generators: Sequence[Generator],
    *,
    training: str,
    image: str,
    batch_norm: str,
    draws: str,
    seed: int,
) -> None:
    """Add the rows that every report has: training, images, batch norm, draws and precision.

    Args:
        report: the report to add them to.
        generators: the report's generators.
        training: the paper's training data and training settings.
        image: the paper's image size.
        batch_norm: the paper's batch-norm mode.
        draws: how the paper draws random numbers.
        seed: the reproduction's seed.
    """

    def joined(describe: str) -> str:
        """Return the generators' descriptions without duplicates."""
        return "; ".join(dict.fromkeys(getattr(one, describe)() for one in generators))

    report.difference("Generator", training, joined("describe_origin"))
    report.difference("Images", image, joined("describe_image"))
    report.difference("Batch norm", batch_norm, joined("describe_batch_norm"))
    report.difference(
        "Random draws",
        draws,
        "one per component that needs one, a function (Philox) of the seed "
        f"({seed}), target, step and component",
    )
    report.difference("Precision", "not given", "float32")
