"""Compare the engine with a plain PyTorch loop on a published face generator.

    python benchmarks/face_generator.py generator.pt
    python benchmarks/face_generator.py generator.pt --count 32 --steps 200 --json

The state dict is the one that examples/face_generator.py exports. Both sides recover the latents of
the same images, from the same first latents, with Adam and stochastic clipping; the random draws of
clipping differ. Needs `pip install '.[export,cpu]'`; the full run takes minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

import pyinv
from pyinv import cores, export

LEARNING_RATE = 0.05
BATCH = 64


def load_example() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "examples" / "face_generator.py"
    spec = importlib.util.spec_from_file_location("face_generator_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def invert_with_torch(
    generator: nn.Module, targets: Tensor, initial: Tensor, *, steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Run a plain PyTorch loop; return the latents and losses [N] of the best step.

    Adam is written out, because torch.optim.Adam counts steps per tensor. Here a resampled
    component restarts, with moments of zero and bias corrections that count its own steps.
    """
    random = torch.Generator().manual_seed(seed)
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    latent = initial.clone().requires_grad_(True)
    mean, square, age = (torch.zeros_like(initial) for _ in range(3))
    best_loss = torch.full((len(targets),), torch.inf)
    best_latent = initial.clone()
    for step in range(steps + 1):
        loss = ((generator(latent) - targets) ** 2).mean(dim=(1, 2, 3))
        with torch.no_grad():
            better = loss < best_loss
            best_loss[better] = loss[better]
            best_latent[better] = latent[better]
        if step == steps:
            break
        (gradient,) = torch.autograd.grad(loss.sum(), latent)
        with torch.no_grad():
            age += 1
            mean.lerp_(gradient, 1 - beta1)
            square.lerp_(gradient**2, 1 - beta2)
            scale = (square / (1 - beta2**age)).sqrt() + epsilon
            latent -= LEARNING_RATE * mean / (1 - beta1**age) / scale
            outside = (latent <= -1) | (latent >= 1)
            fresh = torch.rand(latent.shape, generator=random) * 2 - 1
            latent[outside] = fresh[outside]
            for state in (mean, square, age):
                state[outside] = 0.0
    return best_latent, best_loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("state_dict", type=Path, help="the generator's state dict")
    parser.add_argument("--count", type=int, default=256, help="images [%(default)s]")
    parser.add_argument("--steps", type=int, default=2000, help="steps [%(default)s]")
    parser.add_argument("--threads", type=int, help="threads of both sides [all cores]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    threads = arguments.threads or cores.usable_cores()
    torch.set_num_threads(threads)
    generator = load_example().load_face_generator(arguments.state_dict)
    generator.eval().requires_grad_(False)
    recipe = pyinv.Recipe(
        "Adam + stochastic clipping",
        (
            pyinv.Stage(
                pyinv.Adam(LEARNING_RATE),
                constraint=pyinv.StochasticClip(),
                max_steps=arguments.steps,
            ),
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "faces.bundle"
        say("exporting the generator")
        export.export(
            generator,
            bundle,
            latent_shape=(100,),
            prior=pyinv.Uniform(-1.0, 1.0),
            losses=("mse",),
            normal_equations=False,
            value_range=(-1.0, 1.0),
        )
        inverter = pyinv.Inverter(bundle, batch_size=BATCH, threads=threads)
        truth = inverter.sample(arguments.count, seed=arguments.seed)
        initial = inverter.sample(arguments.count, seed=arguments.seed + 1)
        with torch.no_grad():
            targets = generator(torch.from_numpy(truth))
        say("pyinv")
        started = time.perf_counter()
        inversion = inverter.invert(
            targets.numpy(),
            recipe=recipe,
            init=initial,
            seed=arguments.seed,
            progress=sys.stderr.isatty(),
        )
        seconds = {"pyinv": time.perf_counter() - started}
    # Let the engine's spinning threads go to sleep before PyTorch is timed.
    time.sleep(0.5)
    say("PyTorch")
    started = time.perf_counter()
    parts = [
        invert_with_torch(
            generator, target, first, steps=arguments.steps, seed=arguments.seed + part
        )
        for part, (target, first) in enumerate(
            zip(targets.split(BATCH), torch.from_numpy(initial).split(BATCH), strict=True)
        )
    ]
    seconds["pytorch"] = time.perf_counter() - started
    found = {
        "pyinv": (inversion.latents, inversion.loss),
        "pytorch": tuple(torch.cat(part).detach().numpy() for part in zip(*parts, strict=True)),
    }
    sides = {
        name: {
            "mean_latent_error": float(np.mean((latents - truth) ** 2)),
            "mean_image_error": float(np.mean(losses)),
            "median_image_error": float(np.median(losses)),
            "seconds": seconds[name],
        }
        for name, (latents, losses) in found.items()
    }
    ratios = {
        key: sides["pyinv"][key] / sides["pytorch"][key]
        for key in ("mean_latent_error", "mean_image_error", "median_image_error", "seconds")
    }
    if arguments.json:
        report = {
            "count": arguments.count,
            "steps": arguments.steps,
            "learning_rate": LEARNING_RATE,
            "threads": threads,
            **sides,
            "ratio": ratios,
        }
        print(json.dumps(report))
        return
    print(f"{arguments.count} images, {arguments.steps} steps, {threads} threads\n")
    print(f"{'':<16}{'mean latent error':>18}{'mean image error':>18}{'median':>11}{'seconds':>9}")
    for name, side in [*sides.items(), ("pyinv / pytorch", ratios)]:
        print(
            f"{name:<16}{side['mean_latent_error']:>18.4g}{side['mean_image_error']:>18.4g}"
            f"{side['median_image_error']:>11.4g}{side['seconds']:>9.3g}"
        )


if __name__ == "__main__":
    main()
