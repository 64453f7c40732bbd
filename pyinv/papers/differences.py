"""What every report tells of where it differs from its paper, and of what it was made with."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyinv.papers.generators import Generator
from pyinv.papers.report import Report
from pyinv.papers.run_cache import RunCache

__all__ = ["made_with", "tell_shared_differences"]


def made_with(runs: RunCache) -> dict[str, Any]:
    """Return the versions and machine behind a report; its runs may be older than the report."""
    return {
        **runs.made_with(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def tell_shared_differences(
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
        report: where to.
        generators: those that it is about.
        training: the data and the training of the paper's generator.
        image: the size of its images.
        batch_norm: its batch-norm mode.
        draws: how the paper drew at random.
        seed: the reproduction's.
    """

    def told(describe: str) -> str:
        """Return what one or several generators have, each thing once."""
        return "; ".join(dict.fromkeys(getattr(one, describe)() for one in generators))

    report.difference("Generator", training, told("describe_origin"))
    report.difference("Images", image, told("describe_image"))
    report.difference("Batch norm", batch_norm, told("describe_batch_norm"))
    report.difference(
        "Random draws",
        draws,
        "one for each component that needs one, by a counter (Philox) of the seed "
        f"({seed}), target, step and component",
    )
    report.difference("Precision", "not given", "float32")
