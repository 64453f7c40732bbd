"""Section ``consistency``: whether many starts on one unseen image lead to one latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import evaluation, recipes
from pyinv.priors import Uniform

from .bench import Bench
from .generators import Missing, Subject
from .methods import RECONSTRUCT, first_order
from .run_cache import Found

__all__ = ["clusters_of", "run"]

IMAGES = 3
STARTS = 100
START_SEED = 3

# Two latents belong to one optimum if a chain of latents connects them, with at most this root mean
# square difference per component between neighbours, in standard deviations of the prior. Latents
# that agree are much closer, and draws from the prior are 1.4 apart.
LINK = 0.1
# Optima count as equal if their losses are within this share of the lowest.
EQUAL = 0.01
SHOWN = 10


def run(bench: Bench, subjects: Sequence[Subject], *, complete: bool) -> list[dict[str, Any]]:
    """Return one row per generator, image and method; first-order methods only if complete."""
    rows = []
    starts = bench.few(STARTS)
    for subject in subjects:
        try:
            images, source = subject.unseen(IMAGES)
        except Missing as why:
            bench.skip(f"{subject.key}, consistency", why)
            continue
        inverter = subject.inverter()
        wanted = {}
        if RECONSTRUCT in bench.methods:
            recipe = recipes.reconstruct(inverter.manifest)
            wanted[RECONSTRUCT] = recipe.replace(restarts=0, start="prior")
        if complete:
            paper = "lipton-stochastic" if isinstance(subject.prior, Uniform) else "lipton-none"
            papers = first_order(inverter.manifest, bench.steps)
            chosen = [(name, papers[name]) for name in (paper, "adam")]
            wanted |= bench.requested(chosen)
        for name, recipe in wanted.items():
            found = bench.cache.run(
                f"{subject.key}: {starts} starts on {len(images)} unseen images, {name}",
                inverter,
                np.repeat(images, starts, axis=0),
                recipe,
                seed=START_SEED,
            )
            for index in range(len(images)):
                mine = slice(index * starts, (index + 1) * starts)
                rows.append(
                    {
                        "generator": subject.key,
                        "image": index,
                        "source": source,
                        "recipe": name,
                        "starts": starts,
                        **_spread(subject, found, mine),
                    }
                )
    return rows


def clusters_of(latents: NDArray[Any], link: float) -> list[NDArray[np.int64]]:
    """Return the rows of each cluster by single linkage, the largest first.

    Args:
        latents: [N, d].
        link: the largest root mean square difference between two linked latents.
    """
    rows = latents.astype(np.float64)
    squares = np.square(rows).sum(axis=1)
    distance = squares[:, None] + squares - 2 * rows @ rows.T
    linked = distance <= link**2 * rows.shape[1]
    np.fill_diagonal(linked, True)
    left = set(range(len(rows)))
    clusters = []
    while left:
        cluster: set[int] = set()
        edge = {min(left)}
        while edge:
            cluster |= edge
            edge = set(np.flatnonzero(linked[list(edge)].any(axis=0)).tolist()) - cluster
        left -= cluster
        clusters.append(np.array(sorted(cluster)))
    return sorted(clusters, key=len, reverse=True)


def _spread(subject: Subject, found: Found, mine: slice) -> dict[str, Any]:
    """Return the spread of the latents and losses of one image's starts."""
    inverter = subject.inverter()
    latents, loss = found.latents[mine], found.loss[mine]
    drawn = inverter.sample(len(latents), seed=START_SEED).reshape(len(latents), -1)
    deviation = latents.std(axis=0)
    clusters = clusters_of(latents, LINK * subject.prior.std)
    best = [rows[np.argmin(loss[rows])] for rows in clusters]
    images = inverter.generate(latents[best])
    lowest = int(np.argmin(loss[best]))
    described = [
        {
            "size": len(rows),
            "loss": float(loss[one]),
            "latent_distance_to_best": _distance(latents[one], latents[best[lowest]]),
            "image_distance_to_best": _distance(image, images[lowest]),
        }
        for rows, one, image in zip(clusters, best, images, strict=True)
    ]
    equal = [one for one in described if one["loss"] <= (1 + EQUAL) * described[lowest]["loss"]]
    several = len(latents) > 1
    return {
        # Lipton & Tripathi's measure, and its value for draws from the prior.
        "pairwise_distance": evaluation.pairwise_distance(latents) if several else None,
        "pairwise_distance_of_prior": evaluation.pairwise_distance(drawn) if several else None,
        "component_deviation": {
            "mean": float(deviation.mean()),
            "greatest": float(deviation.max()),
            "of_prior": subject.prior.std,
        },
        "loss": {
            "least": float(loss.min()),
            "median": float(np.median(loss)),
            "greatest": float(loss.max()),
        },
        "clusters": len(clusters),
        "largest_clusters": described[:SHOWN],
        "optima_of_equal_loss": equal[:SHOWN],
    }


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the mean squared difference."""
    return float(np.square(one.astype(np.float64) - other).mean())
