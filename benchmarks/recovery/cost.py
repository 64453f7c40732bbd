"""Section ``cost``: the engine compared with the same algorithm in PyTorch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyinv
from pyinv import evaluation
from pyinv.batching import DEFAULT_BATCH_SIZE
from pyinv.recipes import Recipe

from .bench import Bench
from .generators import Subject
from .methods import PRECISE, precise
from .peers import Peer, Tangents, VmapJvp, recover, whitened

__all__ = ["run"]

# Targets per number of lanes, which take the slowest contender about half a minute.
TARGETS = {1: 4, 8: 16, DEFAULT_BATCH_SIZE: DEFAULT_BATCH_SIZE}
ROUNDS = 3
PEERS: dict[str, type[Peer]] = {"tangents": Tangents, "vmap_jvp": VmapJvp}
AT_A_TIME = (1, 4, 16, 64)
# Thread pools spin for some milliseconds after their last work, and would take cores from the next
# contender.
PAUSE_SECONDS = 0.1
EVALUATION_SECONDS = 0.5

Run = Callable[[], dict[str, Any]]


def run(bench: Bench, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return the seconds per image and their ratios, per generator and number of lanes."""
    if PRECISE not in bench.methods:
        return []
    torch.set_num_threads(bench.threads)
    rows = []
    for lanes, most in TARGETS.items():
        for subject in subjects:
            targets = bench.few(most)
            recipe = _first_stage(precise(subject.inverter(batch_size=lanes).manifest))
            settings = {
                "weights": subject.weights,
                "lanes": lanes,
                "targets": targets,
                "recipe": recipe.describe(),
                "rounds": ROUNDS,
                "threads": bench.threads,
                "torch": torch.__version__,
            }
            name = f"{subject.key}: cost on {lanes} {'lane' if lanes == 1 else 'lanes'}"

            def measure(
                subject: Subject = subject, lanes: int = lanes, targets: int = targets
            ) -> dict[str, Any]:
                return _measure(subject, lanes, targets)

            rows.append(bench.cache.measurement(name, settings, measure))
    return rows


def _first_stage(recipe: Recipe) -> Recipe:
    """Return the stage with all but one of an attempt's normal equations; the other is a check."""
    return recipe.replace(stages=recipe.stages[:1], restarts=0)


def _measure(subject: Subject, lanes: int, targets: int) -> dict[str, Any]:
    inverter = subject.inverter(batch_size=lanes)
    truth, images = subject.targets(targets)
    batch = min(lanes, targets)
    pixels = torch.from_numpy(images)
    initial = np.full_like(truth, subject.prior.mean)
    recipe = _first_stage(precise(inverter.manifest)).fit(subject.prior)
    peers = {
        name: _fastest(kind, subject, pixels[:batch], torch.from_numpy(initial[:batch]))
        for name, kind in PEERS.items()
    }

    def engine() -> dict[str, Any]:
        found = inverter.invert(images, recipe=recipe, init=initial)
        return {"latents": found.latents, "normal_equations": found.normal_equations.mean()}

    def of_peer(peer: Peer) -> Run:
        def run() -> dict[str, Any]:
            start = torch.from_numpy(initial)
            found = recover(peer, pixels, start, recipe, subject.prior, lanes=lanes)
            evaluated = found.normal_equations.double().mean()
            return {"latents": found.latents.numpy(), "normal_equations": evaluated}

        return run

    runs: dict[str, Run] = {"pyinv": engine}
    runs |= {name: of_peer(peer) for name, peer in peers.items()}
    inverter.invert(images[:batch], recipe=recipe, init=initial[:batch])  # loads and plans
    last: dict[str, dict[str, Any]] = {}
    seconds = _rounds(
        {name: lambda run=run, name=name: last.update({name: run()}) for name, run in runs.items()}
    )
    row = _compared({name: [one / targets for one in many] for name, many in seconds.items()})
    return {
        "generator": subject.key,
        "lanes": lanes,
        "targets": targets,
        "rounds": ROUNDS,
        "seconds_per_image": row.pop("median"),
        **row,
        "recovered": {
            name: evaluation.recovery_rate(
                evaluation.latent_error(truth, np.reshape(one["latents"], truth.shape)), 1e-4
            )
            for name, one in last.items()
        },
        "mean_normal_equations": {
            name: float(one["normal_equations"]) for name, one in last.items()
        },
        "peer_settings": {name: _settings(peer) for name, peer in peers.items()},
        "one_evaluation": _one_evaluation(inverter, peers, images[:batch], initial[:batch]),
    }


def _one_evaluation(
    inverter: pyinv.Inverter, peers: dict[str, Peer], images: Any, latents: Any
) -> dict[str, Any]:
    """Return the milliseconds per image of the normal equations alone, and their ratios."""
    z = torch.from_numpy(latents)
    runs: dict[str, Callable[[], Any]] = {
        "pyinv": lambda: inverter.normal_equations(latents, images, loss="whitened")
    }
    for name, peer in peers.items():
        weights, targets = map(peer.flatten, whitened(torch.from_numpy(images)))
        runs[name] = lambda peer=peer, w=weights, y=targets: peer.normal_equations(z, w, y)
    repeated = {}
    with torch.no_grad():
        for name, run in runs.items():
            repeated[name] = max(1, round(EVALUATION_SECONDS / _seconds(run)))
        seconds = _rounds({name: _several(run, repeated[name]) for name, run in runs.items()})
    milliseconds = {
        name: [1e3 * one / repeated[name] / len(images) for one in many]
        for name, many in seconds.items()
    }
    row = _compared(milliseconds)
    return {"batch": len(images), "milliseconds_per_image": row.pop("median"), **row}


def _several(run: Callable[[], Any], count: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(count):
            run()

    return repeat


def _fastest(kind: type[Peer], subject: Subject, images: Tensor, latents: Tensor) -> Peer:
    """Return a peer with the memory layout and the chunk size that are fastest here."""
    found: list[tuple[float, Peer]] = []
    for channels_last in (False, True):
        for count in AT_A_TIME:
            if count > len(images) and count > AT_A_TIME[0]:
                continue
            peer = kind(
                subject.module,
                subject.latent_size,
                channels_last=channels_last,
                at_a_time=count,
            )
            weights, targets = map(peer.flatten, whitened(images))

            def evaluate(peer: Peer = peer, w: Tensor = weights, y: Tensor = targets) -> None:
                peer.normal_equations(latents, w, y)

            with torch.no_grad():
                found.append((_seconds(evaluate), peer))
    return min(found, key=lambda pair: pair[0])[1]


def _settings(peer: Peer) -> dict[str, Any]:
    return {"channels_last": peer.channels_last, "at_a_time": peer.at_a_time}


def _rounds(runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Return each contender's seconds per round; the order changes each round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for index in range(ROUNDS):
        first = index % len(order)
        for name in order[first:] + order[:first]:
            started = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - started)
            time.sleep(PAUSE_SECONDS)
    return seconds


def _seconds(run: Callable[[], Any]) -> float:
    """Return the time of the second of two calls; the first one warms up."""
    run()
    started = time.perf_counter()
    run()
    return max(time.perf_counter() - started, 1e-6)


def _compared(rounds: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians, and the fastest peer's time relative to the engine's."""
    median = {name: statistics.median(many) for name, many in rounds.items()}
    peer = min((name for name in median if name != "pyinv"), key=median.__getitem__)
    ratios = [other / own for other, own in zip(rounds[peer], rounds["pyinv"], strict=True)]
    return {
        "median": median,
        "fastest_peer": peer,
        "times_faster": {
            "min": min(ratios),
            "median": statistics.median(ratios),
            "max": max(ratios),
        },
    }
