"""Throughput of streams by lanes, threads and processes, and what a million images cost.

    python benchmarks/production.py BUNDLE [--images FILE.npy] [--effort fast]

Every setting inverts the same images; settings take turns, so that a busy machine slows down all of
them alike. Results: images per second, their ratio to the best setting, and core-hours per million
images. Without ``--images`` the targets are the generator's own images.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import Any

import numpy as np

import pyinv

Setting = tuple[int, int, int]  # lanes, threads, processes


def work(bundle: str, lanes: int, threads: int, options: dict[str, Any], pipe: Any) -> None:
    """Invert the arrays that come through the pipe; runs in a process of its own."""
    inverter = pyinv.Inverter(bundle, batch_size=lanes, threads=threads)
    while (images := pipe.recv()) is not None:
        count = sum(1 for _ in inverter.stream([images], **options))
        pipe.send(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--images", help="targets [N, *image_shape] in the bundle's value range")
    parser.add_argument("--count", type=int, default=1000, help="targets per setting and turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--effort")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8, 32, 64, 128])
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()

    inverter = pyinv.Inverter(arguments.bundle)
    if arguments.images:
        images = np.load(arguments.images)[: arguments.count]
    else:
        images = inverter.generate(inverter.sample(arguments.count))
    options = {"recipe": arguments.recipe}
    if arguments.effort:
        options["effort"] = arguments.effort
    cores = arguments.cores
    settings: list[Setting] = []
    for lanes in arguments.lanes:
        settings += [(lanes, cores, 1), (lanes, 1, cores)] if cores > 1 else [(lanes, 1, 1)]
    rates: dict[Setting, list[float]] = {setting: [] for setting in settings}
    context = multiprocessing.get_context("spawn")
    for turn in range(arguments.turns + 1):  # the first warms up
        for setting in settings:
            lanes, threads, processes = setting
            pipes, workers = [], []
            for _ in range(processes):
                ours, theirs = context.Pipe()
                given = (arguments.bundle, lanes, threads, options, theirs)
                workers.append(context.Process(target=work, args=given))
                workers[-1].start()
                pipes.append(ours)
            # Few lanes are slow: they get fewer images.
            some = images[: max(len(images) * min(lanes, 8) // 8, processes)]
            for pipe in pipes:  # load the functions first
                pipe.send(some[:1])
            for pipe in pipes:
                pipe.recv()
            began = time.perf_counter()
            for pipe, part in zip(pipes, np.array_split(some, processes), strict=True):
                pipe.send(part)
            done = sum(pipe.recv() for pipe in pipes)
            if turn:
                rates[setting].append(done / (time.perf_counter() - began))
            for pipe in pipes:
                pipe.send(None)
            for worker in workers:
                worker.join()
    best = max(statistics.median(each) for each in rates.values())
    print("| lanes | processes x threads | images/s | of the best | core-hours per million |")
    print("|---|---|---|---|---|")
    for (lanes, threads, processes), each in rates.items():
        median = statistics.median(each)
        spread = f"{min(each) / best:.2f}-{max(each) / best:.2f}"
        hours = 1e6 / median * cores / 3600
        cells = (
            lanes,
            f"{processes} x {threads}",
            f"{median:.1f}",
            f"{median / best:.2f} ({spread})",
        )
        print(f"| {' | '.join(map(str, cells))} | {hours:.2f} |")


if __name__ == "__main__":
    main()
