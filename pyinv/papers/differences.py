"""Differences from the paper that all reports state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyinv.papers.experiment import Experiment

__all__ = ["add_shared_differences", "joined"]


def joined(texts: Iterable[str]) -> str:
    """Return the texts as one, without duplicates."""
    return "; ".join(dict.fromkeys(texts))


def add_shared_differences(
    experiments: Sequence[Experiment],
    *,
    training: str,
    image: str,
    batch_norm: str,
    draws: str,
) -> None:
    """Add the rows that every report has: training, images, batch norm, draws and precision.

    Args:
        experiments: the report's experiments.
        training: the paper's training data and training settings.
        image: the paper's image size.
        batch_norm: the paper's batch-norm mode.
        draws: how the paper draws random numbers.
    """
    report, generators = experiments[0].report, [one.generator for one in experiments]
    report.difference("Generator", training, joined(one.describe_origin() for one in generators))
    report.difference("Images", image, joined(one.describe_image() for one in generators))
    here = joined(one.describe_batch_norm() for one in generators)
    report.difference("Batch norm", batch_norm, here)
    report.difference(
        "Random draws",
        draws,
        "one per component that needs one, a function (Philox) of the seed "
        f"({experiments[0].request.seed}), target, step and component",
    )
    report.difference("Precision", "not given", "float32")
