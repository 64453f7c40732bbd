"""Format the report as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["tables"]

Cell = str | float | int | None

SIDES = ("pyinv", "tangents", "vmap_jvp")


def tables(report: dict[str, Any]) -> str:
    """Return the report as plain text."""
    parts = [
        f"{report['processor']}, {report['threads']} threads; torch {report['torch']}, "
        f"onnxruntime {report['onnxruntime']}, pyinv {report['pyinv']}"
    ]
    if "results" in report:
        parts.append(_results("Own images", report["results"]))
    if "cost" in report:
        parts.append(_cost(report["cost"]))
    if "noise" in report:
        parts.append(_noise(report["noise"]))
    if "consistency" in report:
        parts.append(_consistency(report["consistency"]))
    if "ablation" in report:
        parts.append(_results("Ablation of precise", report["ablation"]))
    parts.append(
        _table(
            "Promises",
            ("what", "measured", "wanted", "met"),
            [
                (one["what"], one["figure"], one["wanted"], "yes" if one["met"] else "NO")
                for one in report["acceptance"]
            ],
        )
    )
    if report["skipped"]:
        parts.append("Skipped\n" + "\n".join(f"  {line}" for line in report["skipped"]))
    return "\n\n".join(parts)


def _results(title: str, rows: Iterable[dict[str, Any]]) -> str:
    return _table(
        title,
        (
            "generator",
            "recipe",
            "targets",
            "< 1e-4",
            "< 1e-8",
            "s/image",
            "forwards",
            "normal eq.",
            "median error",
            "same image",
        ),
        [
            (
                row["generator"],
                row["recipe"],
                row["targets"],
                row["recovered"]["1e-4"],
                row["recovered"]["1e-8"],
                row["seconds_per_image"],
                row["forward_equivalents"],
                row["normal_equations"],
                row["latent_error"]["median"],
                f"{row['failures']['same_image']} of {row['failures']['count']}",
            )
            for row in rows
        ],
    )


def _cost(rows: Sequence[dict[str, Any]]) -> str:
    return _table(
        "Seconds per image, and times faster than the fastest peer in PyTorch",
        (
            "generator",
            "lanes",
            "pyinv",
            "tangents",
            "vmap_jvp",
            "min",
            "median",
            "max",
            "one eval.",
        ),
        [
            (
                row["generator"],
                row["lanes"],
                *(row["seconds_per_image"].get(name) for name in SIDES),
                *(row["times_faster"][name] for name in ("min", "median", "max")),
                row["one_evaluation"]["times_faster"]["median"],
            )
            for row in rows
        ],
    )


def _noise(rows: Iterable[dict[str, Any]]) -> str:
    return _table(
        "Noise: mean latent error, and the share of components in their 95 % intervals",
        ("generator", "variance", "method", "mean", "median", "inside", "best first-order"),
        [
            (
                row["generator"],
                row["variance"],
                name,
                errors["mean"],
                errors["median"],
                row["coverage"].get(name.partition(", ")[2], {}).get("inside"),
                "best" if name == row.get("best_first_order") else "",
            )
            for row in rows
            for name, errors in row["latent_error"].items()
        ],
    )


def _consistency(rows: Iterable[dict[str, Any]]) -> str:
    return _table(
        "One unseen image from many starts",
        (
            "generator",
            "image",
            "recipe",
            "starts",
            "distance",
            "of prior",
            "least loss",
            "median",
            "clusters",
            "largest",
            "equal optima",
        ),
        [
            (
                row["generator"],
                row["image"],
                row["recipe"],
                row["starts"],
                row["pairwise_distance"],
                row["pairwise_distance_of_prior"],
                row["loss"]["least"],
                row["loss"]["median"],
                row["clusters"],
                row["largest_clusters"][0]["size"],
                len(row["optima_of_equal_loss"]),
            )
            for row in rows
        ],
    )


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    cells = [list(header), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [
        bool(rows) and all(not isinstance(row[column], str) for row in rows)
        for column in range(len(header))
    ]
    lines = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
