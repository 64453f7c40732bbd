"""Measure what an encoder's start saves: loss over cost, with and without it, on test images.

    python benchmarks/encoder_start.py BUNDLE --data PATH [--targets 200] [--hops 0 1] [--json FILE]

BUNDLE has an encoder (``pyinv train encoder``). The targets are random test images of the dataset,
which the generator did not make. "reconstruct" is run with each number of hops: from the prior's
mean, as is its default, from a draw, and from the encoder. First-order recipes are run with
increasing numbers of steps, from draws and from the encoder. "the encoder's recipe" is the recipe
that reconstruct uses with an encoder, started at the mean, to separate the effect of the solver
from that of the start. A row has the mean and median of the targets' mean squared error, and the
mean cost in forward equivalents (a forward pass is 1, an objective with its gradient 2, normal
equations 1 + d, an encoder's pass 1). The second table has, for each row without the encoder's
start, the cost of the same loss with it, interpolated between its rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pyinv
from pyinv import recipes
from pyinv.cores import usable_cores
from pyinv.datasets import load_dataset, to_range
from pyinv.inverter import Inverter
from pyinv.papers.precise import cost_arrays
from pyinv.recipes import Recipe


def variants(
    inverter: Inverter, hop_counts: Sequence[int], step_counts: Sequence[int]
) -> Iterable[tuple[str, str, Recipe]]:
    """Yield the method, start and recipe of every run."""
    manifest = inverter.manifest
    encoder = recipes.reconstruct(manifest, start="encoder")
    for hops in hop_counts:
        yield "reconstruct", "encoder", encoder.replace(restarts=hops)
        yield "the encoder's recipe", "mean", encoder.replace(restarts=hops, start="mean")
        if manifest.has_normal_equations("mse"):
            for start in ("mean", "prior"):
                drawn = recipes.reconstruct(manifest, start=start)
                yield "reconstruct", start, drawn.replace(restarts=hops)
    named = {"adam": recipes.adam(manifest)}
    if isinstance(manifest.prior, pyinv.Uniform):
        named["lipton"] = recipes.lipton(manifest)
    else:
        named["egan"] = recipes.egan(manifest)
    for name, recipe in named.items():
        for steps in step_counts:
            for start in ("prior", "encoder"):
                yield name, start, recipe.replace(max_steps=steps, loss_tolerance=0.0, start=start)


def measure(
    inverter: Inverter, images: Any, hop_counts: Sequence[int], step_counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a row for every run."""
    rows = []
    size = inverter.manifest.latent_size
    encoded = inverter.encode(images)
    losses, _ = inverter.evaluate(encoded, images)
    rows.append(_row("encode", "encoder", 0, losses, 1.0))
    for method, start, recipe in variants(inverter, hop_counts, step_counts):
        found = inverter.invert(images, recipe=recipe)
        cost = cost_arrays(found, size)["forward_equivalents"].mean() + (start == "encoder")
        length = recipe.restarts if recipe.name == "reconstruct" else recipe.max_steps
        rows.append(_row(method, start, length, found.loss, float(cost)))
        print(
            "{method:20} {start:8} {length:5} {mean:.5f} {median:.5f} {cost:9,.0f}".format(
                **rows[-1]
            ),
            flush=True,
        )
    return rows


def _row(method: str, start: str, length: int, losses: Any, cost: float) -> dict[str, Any]:
    return {
        "method": method,
        "start": start,
        "length": length,
        "mean": float(np.mean(losses)),
        "median": float(np.median(losses)),
        "cost": cost,
    }


def cost_of(loss: float, rows: list[dict[str, Any]]) -> float:
    """Return the cost at which these rows reach a mean loss; infinity if they do not."""
    ordered = sorted(rows, key=lambda row: float(row["cost"]))
    for before, after in zip([None, *ordered], ordered, strict=False):
        if after["mean"] <= loss:
            if before is None or before["mean"] == after["mean"]:
                return float(after["cost"])
            share = np.log(before["mean"] / loss) / np.log(before["mean"] / after["mean"])
            return float(before["cost"] * (after["cost"] / before["cost"]) ** share)
    return float("inf")


def compare(rows: list[dict[str, Any]]) -> None:
    """Print what the encoder's start costs for the loss of each row without it."""
    print("\nmethod               start    length  mean loss      cost   from the encoder   ratio")
    with_encoder = [row for row in rows if row["start"] == "encoder"]
    for row in rows:
        if row["start"] == "encoder":
            continue
        method = "reconstruct" if row["method"] == "the encoder's recipe" else row["method"]
        cost = cost_of(row["mean"], [r for r in with_encoder if r["method"] in (method, "encode")])
        print(
            f"{row['method']:20} {row['start']:8} {row['length']:6} {row['mean']:10.5f} "
            f"{row['cost']:9,.0f}   {cost:16,.0f}   {cost / row['cost']:5.2f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True)
    parser.add_argument("--targets", type=int, default=200)
    parser.add_argument("--hops", type=int, nargs="+", default=[0, 1, 2, 4, 8], metavar="N")
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 100, 300, 1000], metavar="N")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    inverter = Inverter(arguments.bundle, threads=arguments.threads)
    manifest = inverter.manifest
    data = load_dataset(arguments.data, split="test", image_shape=manifest.image_shape)
    chosen = np.random.default_rng(0).permutation(len(data.images))[: arguments.targets]
    images = to_range(data.images[chosen], manifest.value_range)
    rows = measure(inverter, images, arguments.hops, arguments.steps)
    compare(rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
