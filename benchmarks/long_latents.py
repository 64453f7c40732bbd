#!/usr/bin/env python3
"""Compare methods of inverting the decoder of an autoencoder, at equal cost.

    pyinv train autoencoder --data cifar10.zip -o decoder
    python benchmarks/long_latents.py decoder --data cifar10.zip             # latents 4x8x8
    python benchmarks/long_latents.py decoder --data cifar10.zip --tiles 2   # latents 4x16x16
    python benchmarks/long_latents.py decoder --data cifar10.zip --engine    # pyinv itself
    python benchmarks/long_latents.py kl --data cifar10.zip --diffusers --tiles 4   # 4x16x16
    python benchmarks/long_latents.py kl --data cifar10.zip --diffusers --tiles 16  # 4x64x64

The targets are what the decoder makes of the encoder's latents z* of test images, as floats and
rounded to 8 bits. With --tiles N an image is N x N test images side by side, which the decoder,
being convolutional, takes as it is. All methods are in plain PyTorch, on all targets at once. The
figures are medians over targets of 10 log10(|z - z*|^2 / |z*|^2), in dB: at equal forward
equivalents, and at the CPU time that 100 steps of Adam take. A forward pass or an encoder's pass is
1 forward equivalent, a loss with its gradient 2, a product with J^T J 3, and J^T J itself 1 + d.
With --engine, pyinv's recipes run on the same targets, in turn with 100 steps of Adam in PyTorch.

With --diffusers, the autoencoder is diffusers' AutoencoderKL with the levels of Stable Diffusion
(f = 8), an eighth of its channels and one block per level instead of two. It is trained on mosaics
of 2 x 2 images on first use, and kept in the folder. The environment of benchmarks/zoo.txt has
diffusers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp, vjp

import pyinv
from pyinv import recipes
from pyinv.datasets import load_dataset
from pyinv.export import export
from pyinv.models.autoencoder import Autoencoder, LatentDecoder, LatentEncoder
from pyinv.training import AutoencoderConfiguration

COSTS = (50, 100, 202, 400, 800)
SHARES = (0.25, 0.5, 1.0, 2.0)
CHUNK = 64  # tangents per pass
CURVATURE = 1e-3  # about the mean of the gram's diagonal
IMAGES = ("float", "8 bits")
# The training of AutoencoderKL.
ITERATIONS = 400
BATCH = 8
RATE = 2e-3
DIVERGENCE_WEIGHT = 1e-6  # Rombach et al. 2022, appendix G


@dataclass
class Problem:
    """Targets with everything that methods may evaluate, and the cost of doing so.

    Attributes:
        trace: (forward equivalents, CPU seconds, dB of each target) of each recorded latent.
    """

    decoder: Callable[[Tensor], Tensor]
    encoder: Callable[[Tensor], Tensor]
    targets: Tensor
    latents: Tensor
    average_gram: Tensor | None
    cost: float = 0.0
    seconds: float = 0.0
    trace: list[tuple[float, float, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.code = self.encoder(self.targets)

    def begin(self) -> None:
        self.cost, self.seconds, self.trace = 0.0, 0.0, []
        self._since = time.process_time()

    def record(self, z: Tensor) -> None:
        self.seconds += time.process_time() - self._since
        error = dot(z - self.latents, z - self.latents) / dot(self.latents, self.latents)
        self.trace.append((self.cost, self.seconds, 10 * torch.log10(error)))
        self._since = time.process_time()

    def encode(self, images: Tensor) -> Tensor:
        self.cost += 1
        with torch.no_grad():
            return self.encoder(images)

    def decode(self, z: Tensor) -> Tensor:
        self.cost += 1
        with torch.no_grad():
            return self.decoder(z)

    def objective(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of the pixels, and its gradient."""
        self.cost += 2
        return self._slope(z, lambda made: made - self.targets)

    def encoded_objective(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of E(D(z)) to E(x), and its gradient."""
        self.cost += 4
        return self._slope(z, lambda made: self.encoder(made) - self.code)

    @staticmethod
    def _mean_square(residual: Tensor) -> Tensor:
        return residual.square().flatten(1).mean(1)

    def _slope(self, z: Tensor, residual: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        loss = self._mean_square(residual(self.decoder(z)))
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        return loss.detach(), gradient

    def gram_times(self, z: Tensor, direction: Tensor) -> Tensor:
        """Return 2/P J^T J times the direction."""
        self.cost += 3
        _, pull = vjp(self.decoder, z)
        _, pushed = jvp(self.decoder, (z,), (direction,))
        (product,) = pull(pushed)
        return product.detach() * (2 / self.targets[0].numel())

    def grams(self, z: Tensor) -> Tensor:
        """Return 2/P J^T J, [B, d, d]."""
        self.cost += 1 + z[0].numel()
        return torch.stack([gram(self.decoder, one) for one in z])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of each target's vectors, in double precision."""
    return (a.flatten(1).double() * b.flatten(1).double()).sum(1)


def per_target(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def gram(decoder: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return 2/P J^T J of one latent, [d, d]."""
    directions = torch.eye(z.numel()).view(z.numel(), *z.shape)
    columns = []
    for chunk in directions.split(CHUNK):
        _, pushed = jvp(decoder, (z.repeat(len(chunk), *[1] * z.ndim),), (chunk,))
        columns.append(pushed.detach().flatten(1))
    jacobian = torch.cat(columns)
    return jacobian @ jacobian.T * (2 / jacobian.shape[1])


def adam(problem: Problem, z: Tensor, steps: int = 100) -> None:
    """Adam with learning rate 0.1, falling along a cosine."""
    mean, square = torch.zeros_like(z), torch.zeros_like(z)
    problem.record(z)
    for k in range(steps):
        _, gradient = problem.objective(z)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        rate = 0.05 * (1 + math.cos(math.pi * k / steps))
        scale = (square / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8
        z = z - rate / (1 - 0.9 ** (k + 1)) * mean / scale
        problem.record(z)


Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


def lbfgs(
    problem: Problem,
    z: Tensor,
    budget: float,
    *,
    evaluate: Evaluate | None = None,
    inverse: Tensor | None = None,
    history: int = 20,
) -> Tensor:
    """L-BFGS by the rules of ``pyinv.LBFGS``; ``inverse`` replaces the identity it starts from."""
    evaluate = evaluate or problem.objective
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y, 1 / s y, 0 for none
    end = problem.cost + budget
    problem.record(z)
    loss, gradient = evaluate(z)

    def start(vector: Tensor) -> Tensor:
        return vector if inverse is None else (vector.flatten(1) @ inverse).view_as(vector)

    def direction() -> Tensor:
        found, weights = -gradient, []
        for s, y, inverse_sy in reversed(pairs):
            weights.append(inverse_sy * dot(s, found))
            found = found - per_target(weights[-1], z) * y
        found = start(found)
        if pairs:
            s, y, _ = pairs[-1]
            found = found * per_target(dot(s, y) / dot(y, start(y)).clamp_min(1e-300), z)
        elif inverse is None:
            found = found * per_target(0.3 / dot(found, found).sqrt().clamp_min(1e-300), z)
        for (s, y, inverse_sy), weight in zip(pairs, reversed(weights), strict=True):
            found = found + per_target(weight - inverse_sy * dot(y, found), z) * s
        return found

    step, length = direction(), torch.ones(len(z))
    while problem.cost < end:
        trial = z + per_target(length, z) * step
        trial_loss, trial_gradient = evaluate(trial)
        enough = 1e-4 * length * dot(gradient, step).float()
        accepted = (trial_loss < loss) & (trial_loss <= loss + enough)
        mask = per_target(accepted, z)
        s, y = mask * (trial - z), mask * (trial_gradient - gradient)
        sy = dot(s, y)
        kept = sy > 1e-10 * dot(y, y)
        if pairs:  # a rejected step repeats the last pair, with weight 0
            s = torch.where(per_target(kept, z) > 0, s, pairs[-1][0])
            y = torch.where(per_target(kept, z) > 0, y, pairs[-1][1])
        pairs = [*pairs, (s, y, torch.where(kept, 1 / sy.clamp_min(1e-300), 0.0))][-history:]
        z = torch.where(mask > 0, trial, z)
        gradient = torch.where(mask > 0, trial_gradient, gradient)
        loss = torch.where(accepted, trial_loss, loss)
        length = torch.where(accepted, torch.ones_like(length), 0.3 * length)
        step = torch.where(mask > 0, direction(), step)
        problem.record(z)
    return z


def fixed_point(problem: Problem, z: Tensor, budget: float, *, rate: float, memory: int) -> Tensor:
    """z <- z - rate (E(D(z)) - E(x)), with Anderson acceleration over ``memory`` differences.

    Source: the forward step of Hong et al. 2024 (arXiv:2409.18442), whose other variants use
    momentum and Adam; Walker & Ni 2011 for the acceleration.
    """
    latents: list[Tensor] = []
    residuals: list[Tensor] = []
    end = problem.cost + budget
    problem.record(z)
    while problem.cost < end:
        residual = problem.code - problem.encode(problem.decode(z))
        latents, residuals = [*latents, z][-memory - 1 :], [*residuals, residual][-memory - 1 :]
        step = rate * residual
        if len(residuals) > 1:
            moves, changes = (
                torch.stack([(b - a).flatten(1) for a, b in itertools.pairwise(v)], 2)
                for v in (latents, residuals)
            )
            moves, changes = moves.double(), changes.double()
            normal = changes.mT @ changes
            ridge = 1e-10 * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-30
            normal = normal + ridge.view(-1, 1, 1) * torch.eye(normal.shape[1])
            weights = torch.linalg.solve(
                normal, changes.mT @ residual.flatten(1, 3)[..., None].double()
            )
            step = step - ((moves + rate * changes) @ weights).float().view_as(z)
        z = z + step
        problem.record(z)
    return z


def gauss_newton(
    problem: Problem,
    z: Tensor,
    budget: float,
    *,
    products: int,
    inverse: Tensor | None = None,
    damping: float = 1e-4,
    tolerance: float = 0.03,
) -> None:
    """Levenberg-Marquardt whose steps are found by conjugate gradients on products with J^T J."""

    def precondition(vector: Tensor) -> Tensor:
        return vector if inverse is None else (vector.flatten(1) @ inverse).view_as(vector)

    end = problem.cost + budget
    problem.record(z)
    loss, gradient = problem.objective(z)
    damped = torch.full((len(z),), damping * CURVATURE)
    while problem.cost < end:
        step, residual = torch.zeros_like(z), -gradient
        moved = precondition(residual)
        direction, size, first = moved, dot(residual, moved), dot(residual, residual)
        for _ in range(products):
            product = problem.gram_times(z, direction) + per_target(damped, z) * direction
            length = size / dot(direction, product).clamp_min(1e-300)
            step = step + per_target(length, z) * direction
            residual = residual - per_target(length, z) * product
            if bool((dot(residual, residual) < tolerance**2 * first).all()):
                break
            moved = precondition(residual)
            before, size = size, dot(residual, moved)
            direction = moved + per_target(size / before.clamp_min(1e-300), z) * direction
        trial_loss, trial_gradient = problem.objective(z + step)
        accepted = trial_loss < loss
        mask = per_target(accepted, z)
        z = torch.where(mask > 0, z + step, z)
        gradient = torch.where(mask > 0, trial_gradient, gradient)
        loss = torch.where(accepted, trial_loss, loss)
        damped = torch.where(accepted, 0.1 * damped, 10 * damped)
        problem.record(z)


def levenberg_marquardt(problem: Problem, z: Tensor, budget: float) -> None:
    """Levenberg-Marquardt on J^T J itself."""
    end = problem.cost + budget
    problem.record(z)
    loss, gradient = problem.objective(z)
    damping = torch.full((len(z),), 1e-3, dtype=torch.float64)
    accepted = torch.ones(len(z), dtype=torch.bool)
    while problem.cost < end:
        if accepted.any():
            matrix = problem.grams(z).double()
        mean = matrix.diagonal(dim1=1, dim2=2).mean(1)
        damped = matrix + (damping * mean).view(-1, 1, 1) * torch.eye(matrix.shape[1])
        step = -torch.linalg.solve(damped, gradient.flatten(1).double()).float().view_as(z)
        trial_loss, trial_gradient = problem.objective(z + step)
        accepted = trial_loss < loss
        mask = per_target(accepted, z)
        z = torch.where(mask > 0, z + step, z)
        gradient = torch.where(mask > 0, trial_gradient, gradient)
        loss = torch.where(accepted, trial_loss, loss)
        damping = torch.where(accepted, 0.1 * damping, 10 * damping).clamp_min(1e-8)
        problem.record(z)


def methods(problem: Problem, budget: float) -> dict[str, Callable[[], Any]]:
    """Return every method, by name."""
    start = problem.code

    def encoder_then_pixels() -> None:
        found = fixed_point(problem, start, 24, rate=1.0, memory=5)
        lbfgs(problem, found, budget - 24)

    def encoded_then_pixels() -> None:
        found = lbfgs(problem, start, 48, evaluate=problem.encoded_objective)
        lbfgs(problem, found, budget - 48)

    runs: dict[str, Callable[[], Any]] = {
        "Adam, 100 steps, from the mean": lambda: adam(problem, torch.zeros_like(start)),
        "Adam, 100 steps": lambda: adam(problem, start),
        "L-BFGS": lambda: lbfgs(problem, start, budget),
        "L-BFGS on E(D(z)) - E(x)": lambda: lbfgs(
            problem, start, budget, evaluate=problem.encoded_objective
        ),
        "fixed point": lambda: fixed_point(problem, start, budget, rate=1.0, memory=0),
        "fixed point, Anderson 5": lambda: fixed_point(problem, start, budget, rate=1.0, memory=5),
        "fixed point, Anderson 20": lambda: fixed_point(
            problem, start, budget, rate=1.0, memory=20
        ),
        "Anderson 5, then L-BFGS": encoder_then_pixels,
        "L-BFGS on E(D(z)) - E(x), then on pixels": encoded_then_pixels,
        "Gauss-Newton CG": lambda: gauss_newton(problem, start, budget, products=20),
    }
    if problem.average_gram is None:
        return runs
    average = problem.average_gram.double()
    inverse = torch.linalg.inv(average).float()
    ridge = 0.01 * average.diagonal().mean() * torch.eye(len(average))
    damped = torch.linalg.inv(average + ridge).float()
    return runs | {
        "L-BFGS, average gram": lambda: lbfgs(problem, start, budget, inverse=inverse),
        "L-BFGS, damped average gram": lambda: lbfgs(problem, start, budget, inverse=damped),
        "Gauss-Newton CG, average gram": lambda: gauss_newton(
            problem, start, budget, products=10, inverse=inverse
        ),
        "Levenberg-Marquardt": lambda: levenberg_marquardt(
            problem, start, max(budget, 5 * (3 + start[0].numel()))
        ),
    }


def measure(problem: Problem, budget: float, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Run the methods in turn, ``rounds`` times; return a row for each."""
    chosen = {
        name: run
        for name, run in methods(problem, budget).items()
        if not names or any(one.lower() in name.lower() for one in names)
    }
    times: dict[str, list[list[float]]] = {name: [] for name in chosen}
    traces = {}
    for _ in range(rounds):
        for name, run in chosen.items():
            problem.begin()
            run()
            traces[name] = problem.trace
            times[name].append([seconds for _, seconds, _ in problem.trace])
    curves = {
        name: [
            (cost, statistics.median(at), float(errors.median()), float(errors.max()))
            for (cost, _, errors), at in zip(
                traces[name], zip(*times[name], strict=True), strict=True
            )
        ]
        for name in chosen
    }
    allowed = curves["Adam, 100 steps"][-1][1] if "Adam, 100 steps" in curves else math.inf
    return [
        {
            "method": name,
            "at_cost": {cost: _last(curve, 0, cost) for cost in COSTS},
            "at_time": {share: _last(curve, 1, share * allowed) for share in SHARES},
            "end": curve[-1],
        }
        for name, curve in curves.items()
    ]


def _last(curve: list[tuple[float, ...]], column: int, limit: float) -> float | None:
    """Return the median error of the last latent within the limit; None if the method had ended."""
    within = [row for row in curve if row[column] <= limit]
    if not within or curve[-1][column] < 0.9 * limit:
        return None
    return within[-1][2]


def report(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a Markdown table."""
    costs = " | ".join(map(str, COSTS))
    shares = " | ".join(f"{share:g} T" for share in SHARES)
    print(f"| | {costs} | {shares} | end (worst), at cost |\n|{'---|' * (len(COSTS) + 6)}")
    for row in rows:
        cells = [*row["at_cost"].values(), *row["at_time"].values()]
        texts = ["–" if cell is None else f"{cell:.1f}" for cell in cells]
        cost, _, median, worst = row["end"]
        texts.append(f"{median:.1f} ({worst:.1f}), {cost:,.0f}")
        print(f"| {row['method']} | {' | '.join(texts)} |", flush=True)


def engine(problem: Problem, bundle: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Run pyinv's recipes, and 100 steps of Adam in PyTorch, in turn; return a row for each."""
    inverter = pyinv.Inverter(bundle, batch_size=len(problem.targets), threads=threads)
    images = problem.targets.numpy()
    manifest = inverter.manifest
    settings = {
        "adam, 100 steps": recipes.adam(manifest).replace(
            start="encoder", loss_tolerance=0.0, max_steps=100
        )
    }
    for steps in (25, 50, 100):
        settings[f"decoder, {steps} steps"] = recipes.decoder(manifest).replace(max_steps=steps)
    settings["decoder"] = recipes.decoder(manifest)
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        problem.begin()
        adam(problem, problem.code)
        peer = problem.seconds
        _, _, errors = problem.trace[-1]
        rows.setdefault("Adam in PyTorch, 100 steps", {"times": [], "errors": errors})
        rows["Adam in PyTorch, 100 steps"]["times"].append(1.0)
        for name, recipe in settings.items():
            since = time.process_time()
            found = inverter.invert(images, recipe=recipe)
            seconds = time.process_time() - since
            z = torch.from_numpy(found.latents).view_as(problem.latents)
            problem.begin()
            problem.record(z)
            row = rows.setdefault(name, {"times": [], "errors": problem.trace[-1][2]})
            row["times"].append(seconds / peer)
            row["evaluations"] = float(np.median(found.steps))
            row["loss"] = float(np.median(found.loss))
    print("\n| | CPU time / Adam in PyTorch | dB (worst) | steps | mse |\n|---|---|---|---|---|")
    for name, row in rows.items():
        ratio, errors = statistics.median(row["times"]), row["errors"]
        print(
            f"| {name} | {ratio:.2f} | {float(errors.median()):.1f} ({float(errors.max()):.1f}) "
            f"| {row.get('evaluations', 100):.0f} | {row.get('loss', math.nan):.2g} |",
            flush=True,
        )
    return [{"method": name, **row, "errors": row["errors"].tolist()} for name, row in rows.items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of pyinv train autoencoder, or of --diffusers")
    parser.add_argument("--data", required=True)
    parser.add_argument("--diffusers", action="store_true", help="diffusers' AutoencoderKL")
    parser.add_argument("--tiles", type=int, default=1, help="test images per side [%(default)s]")
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--budget", type=float, default=400, help="forward equivalents")
    parser.add_argument("--method", action="append", default=[], help="part of a method's name")
    parser.add_argument("--images", choices=(*IMAGES, "all"), default="all")
    parser.add_argument(
        "--gram-samples",
        type=int,
        default=8,
        help="latents of training images that the average gram is taken over; 0 leaves out the "
        "methods with d x d matrices [%(default)s]",
    )
    parser.add_argument("--engine", action="store_true", help="pyinv's recipes instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    decoder, encoder = opened(arguments)
    with torch.no_grad():
        photos = tiled(arguments.data, "test", arguments.targets, arguments.tiles)
        latents = encoder(photos)
        made = decoder(latents)
    average = None
    if arguments.gram_samples and not arguments.engine:
        with torch.no_grad():
            others = encoder(
                tiled(arguments.data, "train", arguments.gram_samples, arguments.tiles)
            )
        average = torch.stack([gram(decoder, one) for one in others]).mean(0)
    found = {}
    for images in IMAGES:
        if arguments.images not in (images, "all"):
            continue
        targets = made if images == "float" else ((made + 1) * 127.5).round() / 127.5 - 1
        problem = Problem(decoder, encoder, targets, latents, average)
        print(
            f"\n{images}, latents {'x'.join(map(str, latents.shape[1:]))}, batch {len(latents)}\n"
        )
        if arguments.engine:
            found[images] = engine(
                problem, bundle_of(arguments), arguments.rounds, arguments.threads
            )
            continue
        found[images] = measure(problem, arguments.budget, arguments.method, arguments.rounds)
        report(found[images])
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def bundle_of(arguments: argparse.Namespace) -> Path:
    """Return the trained bundle, or for other sizes one that is exported on first use."""
    if arguments.tiles == 1 and not arguments.diffusers:
        return arguments.folder / "generator.bundle"
    path = arguments.folder / f"tiles{arguments.tiles}.bundle"
    if not path.exists():
        decoder, encoder = opened(arguments)
        with torch.no_grad():
            shape = encoder(torch.zeros(1, 3, *[32 * arguments.tiles] * 2)).shape[1:]
        export(
            decoder,
            path,
            latent_shape=tuple(shape),
            prior=pyinv.Normal(),
            value_range=(-1, 1),
            encoder=encoder,
        )
    return path


def opened(arguments: argparse.Namespace) -> tuple[LatentDecoder, LatentEncoder]:
    """Return the decoder and encoder that the arguments ask for."""
    network: Any
    if arguments.diffusers:
        network = KlAutoencoder()
        path = arguments.folder / "kl.pt"
        if not path.exists():
            train(network, tiled(arguments.data, "train", 4000, 2))
            arguments.folder.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), path)
    else:
        path = arguments.folder / "autoencoder.pt"
        described = json.loads((arguments.folder / "configuration.json").read_text("utf-8"))
        settings = AutoencoderConfiguration.from_description(described["configuration"])
        network = Autoencoder(
            settings.image_shape[0], settings.latent_channels, settings.factor, settings.width
        )
    network.load_state_dict(torch.load(path, weights_only=True))
    network.eval().requires_grad_(False)
    return LatentDecoder(network), LatentEncoder(network)


class KlAutoencoder(nn.Module):
    """AutoencoderKL of diffusers, with the methods of ``pyinv.models.autoencoder.Autoencoder``."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        torch.manual_seed(0)
        self.network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 64, 64),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
        )
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("std", torch.ones(4))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network.encode(image).latent_dist
        return found.mean, found.logvar

    def decode(self, latent: Tensor) -> Tensor:
        image: Tensor = self.network.decode(latent).sample
        return image


def train(network: KlAutoencoder, images: Tensor) -> None:
    """Train like ``pyinv.training.train_autoencoder``, without its average of weights."""
    random = torch.Generator().manual_seed(0)
    solver = torch.optim.Adam(network.parameters(), lr=RATE)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(solver, ITERATIONS)
    for number in range(ITERATIONS):
        batch = images[torch.randint(len(images), (BATCH,), generator=random)]
        mean, log_variance = network.encode(batch)
        noise = torch.randn(mean.shape, generator=random)
        made = network.decode(mean + torch.exp(log_variance / 2) * noise)
        loss = (made - batch).abs().mean()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        solver.zero_grad()
        (loss + DIVERGENCE_WEIGHT * divergence / batch.numel()).backward()
        solver.step()
        rates.step()
        if number % 100 == 99:
            print(f"{number + 1} of {ITERATIONS} iterations: L1 {loss.item():.4f}", flush=True)
    with torch.no_grad():
        latents = torch.cat([network.encode(part)[0] for part in images[:256].split(32)])
        network.mean.copy_(latents.mean((0, 2, 3)))
        network.std.copy_(latents.std((0, 2, 3)))


def tiled(data: str, split: str, count: int, tiles: int) -> Tensor:
    """Return images of tiles x tiles photographs each, [count, 3, 32 tiles, 32 tiles]."""
    pixels = load_dataset(data, split=split, image_shape=(3, 32, 32)).images
    chosen = np.random.default_rng(0).permutation(len(pixels))[: count * tiles**2]
    grid = pixels[chosen].reshape(count, tiles, tiles, 3, 32, 32).transpose(0, 3, 1, 4, 2, 5)
    images = grid.reshape(count, 3, 32 * tiles, 32 * tiles)
    return torch.from_numpy(np.ascontiguousarray(images)).float() / 127.5 - 1


if __name__ == "__main__":
    main()
