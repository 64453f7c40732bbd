"""Measure how fast, and how often, `precise` recovers the face generator's images on a GPU.

    python benchmarks/gpu_recovery.py generator.pt
    python benchmarks/gpu_recovery.py generator.pt --count 100 --batch-size 64 --device cpu

The state dict is the one that examples/face_generator.py exports. The program prints one JSON
object per number of lanes, each on its own line, so that results remain if it is stopped. Needs
`pip install '.[export,cpu]'`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from face_generator import load_example

import pyinv
from pyinv import evaluation, export

THRESHOLDS = ("1e-4", "1e-8")
WARM_UP = 8  # images of the warm-up run, which loads, compiles and allocates


class TimeUp(Exception):
    """Raised to end a run; its results so far count."""


def measure(
    bundle: Path,
    *,
    count: int,
    batch_size: int,
    device: str,
    runtime: str,
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    """Return the time and the share of recovered latents."""
    inverter = pyinv.Inverter(bundle, device=device, runtime=runtime, batch_size=batch_size)
    latents = inverter.sample(count, seed=seed)
    images = inverter.generate(latents)
    started = time.perf_counter()
    inverter.invert(images[:WARM_UP], recipe="precise", seed=seed)
    warmed = time.perf_counter()

    def stop_in_time(_: dict[str, Any]) -> None:
        if time.perf_counter() - warmed > seconds:
            raise TimeUp

    try:
        found = inverter.invert(images, recipe="precise", seed=seed, progress=stop_in_time)
        finished = True
    except TimeUp as stopped:
        found, finished = stopped.inversion, False  # type: ignore[attr-defined]
    taken = time.perf_counter() - warmed
    done = found.status != pyinv.Status.CANCELLED
    error = evaluation.latent_error(latents, found.latents)
    statuses = [one.name.lower() for one in map(pyinv.Status, found.status.tolist())]
    return {
        "count": count,
        "batch_size": batch_size,
        "device": inverter.device,
        "runtime": inverter.runtime,
        "finished": finished,
        "done": int(done.sum()),
        "warm_up_seconds": warmed - started,
        "seconds": taken,
        "latents_per_second": int(done.sum()) / taken,
        # A share of all images: those not reached in time count as not recovered.
        "recovered": {limit: float((error < float(limit)).mean()) for limit in THRESHOLDS},
        "median_error": float(np.median(error)),
        "status": {name: statuses.count(name) for name in sorted(set(statuses))},
        "mean_steps": float(found.steps.mean()),
        "mean_attempts": float(found.attempts.mean()),
        "mean_normal_equations": float(found.normal_equations.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("state_dict", type=Path, help="the generator's state dict")
    parser.add_argument("--count", type=int, default=1000, help="images [%(default)s]")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[256, 1000])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runtime", default="torchscript")
    parser.add_argument("--seconds", type=float, default=30.0, help="limit of a run [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = load_example().load_face_generator(arguments.state_dict)
    with tempfile.TemporaryDirectory() as folder:
        print("exporting the generator", file=sys.stderr, flush=True)
        bundle = export.export(
            generator,
            Path(folder) / "faces.bundle",
            latent_shape=(100,),
            prior=pyinv.Uniform(-1.0, 1.0),
            losses=("mse",),
            value_range=(-1.0, 1.0),
            normal_equations=True,
            runtimes=(arguments.runtime,),
        )
        for batch_size in arguments.batch_size:
            print(f"{arguments.count} images, batch size {batch_size}", file=sys.stderr, flush=True)
            result = measure(
                bundle,
                count=arguments.count,
                batch_size=batch_size,
                device=arguments.device,
                runtime=arguments.runtime,
                seed=arguments.seed,
                seconds=arguments.seconds,
            )
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
