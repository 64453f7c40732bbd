"""Measure how well recipes reproduce images that the generator did not make, and at what cost.

    python benchmarks/photographs.py                    # all generators, as tables
    python benchmarks/photographs.py --json             # the same as one JSON object
    python benchmarks/photographs.py faces mnist --targets 8

Generators: `vae` and `conditional` (examples/train_vae.py, examples/train_conditional_gan.py; test
digits), `mnist` and `omniglot` (`pyinv train gan --config egan-32`; test digits, and characters of
unseen alphabets), `cifar` (`--config lipton-32 --channels 3`; test photographs), `faces` (weights
by others; photographs of CIFAR-10's test set, which are not faces) and `gan_face_generate` (a PyPI
package of that name; the same photographs at 64x64). Missing ones are trained into the cache first;
those whose data or package is missing are skipped.

Methods: the recipe "default" with each effort, and with a stronger prior; "adam" and "reconstruct";
and Adam as one would write it in PyTorch: learning rate 0.1, all targets in one batch, latents
clamped to a uniform prior's bounds, 500 and 2,000 steps from one draw for each target, and the best
of 4 draws after 2,000 steps. All contenders run in turn, with equal threads. Costs are the CPU time
of the process for the whole batch, and forward equivalents for each target (a forward pass is 1, an
objective with its gradient 2, normal equations 1 + d). Errors are mean squared errors of the pixels
in the bundle's value range, and peak signal-to-noise ratios of the mean error.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from recovery.data import FACES, MNIST, OMNIGLOT, REPOSITORY, find_data
from recovery.generators import Missing
from torch import nn

import pyinv
from pyinv import recipes
from pyinv.datasets import load_dataset, to_range
from pyinv.errors import PyinvError
from pyinv.export import Label, export
from pyinv.papers.precise import cost_arrays
from pyinv.recipes import Recipe

CIFAR = Path("cifar10", "cifar10.zip")
LEARNING_RATE = 0.1


@dataclass
class Subject:
    """A generator with its bundle, and images that it did not make.

    Args:
        module: the generator, in eval mode.
        inverter: of its bundle.
        images: [N, *image_shape] in the bundle's value range.
        labels: [N], if the generator takes a class label.
    """

    module: nn.Module
    inverter: pyinv.Inverter
    images: np.ndarray
    labels: np.ndarray | None = None

    @property
    def conditions(self) -> dict[str, np.ndarray] | None:
        """The conditions for ``invert``."""
        return None if self.labels is None else {"label": self.labels}


def example(name: str) -> ModuleType:
    """Load an example by its name."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Subjects:
    """Make the generators: load them from the cache, or train them.

    Args:
        data: the folder of all data.
        cache: the folder for trained generators and bundles.
        count: the number of target images.
        threads: of training and of the inverters.
    """

    def __init__(self, data: Path, cache: Path, count: int, threads: int) -> None:
        self.data, self.cache, self.count, self.threads = data, cache, count, threads

    def vae(self) -> Subject:
        """A VAE's decoder for MNIST, N(0, 1)^32."""
        made = example("train_vae")
        module = self._trained(
            "vae", made.make_decoder, lambda: made.train(self._digits(0), epochs=10)
        )
        return self._exported("vae", module, 32, pyinv.Normal(), (0, 1), MNIST)

    def conditional(self) -> Subject:
        """A class-conditional GAN for MNIST, N(0, 1)^64."""
        made = example("train_conditional_gan")

        def train() -> nn.Module:
            trained: nn.Module = made.train(self._digits(-1), self._labels(), iterations=4000)
            return trained

        module = self._trained("conditional", made.Generator, train)
        inputs = {"label": Label(10)}
        return self._exported(
            "conditional", module, 64, pyinv.Normal(), (-1, 1), MNIST, inputs=inputs
        )

    def mnist(self) -> Subject:
        """A DCGAN for MNIST, N(0, 1)^100."""
        return self._gan("mnist", "egan-32", MNIST)

    def omniglot(self) -> Subject:
        """A DCGAN for Omniglot, N(0, 1)^100."""
        return self._gan("omniglot", "egan-32", OMNIGLOT)

    def cifar(self) -> Subject:
        """A DCGAN for CIFAR-10, U(-1, 1)^100."""
        return self._gan("cifar", "lipton-32", CIFAR, image_shape=(3, 32, 32))

    def faces(self) -> Subject:
        """A generator of faces that others trained, U(-1, 1)^100."""
        path = self._file(FACES)
        module = example("face_generator").load_face_generator(path)
        return self._exported("faces", module, 100, pyinv.Uniform(), (-1, 1), CIFAR)

    def gan_face_generate(self) -> Subject:
        """The generator of the package gan-face-generate, 64x64, N(0, 1)^100."""
        try:
            from gan_face_generate import models  # type: ignore[import-not-found]
        except ImportError:
            raise Missing("pip install --no-deps gan_face_generate==1.1.1") from None
        module = models.Generator(0, 3, 100, 64)
        weights = Path(models.__file__).with_name("weights.tar")
        module.load_state_dict(torch.load(weights, map_location="cpu")["netG_state_dict"])
        shape = (100, 1, 1)
        return self._exported("gan_face_generate", module, shape, pyinv.Normal(), (-1, 1), CIFAR)

    def _file(self, name: Path) -> Path:
        if not (self.data / name).exists():
            raise Missing(f"no {name} in {self.data}")
        return self.data / name

    def _digits(self, low: float) -> torch.Tensor:
        data = load_dataset(self._file(MNIST), split="train", image_shape=(1, 28, 28))
        return torch.from_numpy(to_range(data.images, (low, 1.0)))

    def _labels(self) -> torch.Tensor:
        data = load_dataset(self._file(MNIST), split="train", image_shape=(1, 28, 28))
        assert data.labels is not None
        return torch.tensor([int(label) for label in data.labels])

    def _trained(
        self, name: str, make: Callable[[], nn.Module], train: Callable[[], nn.Module]
    ) -> nn.Module:
        path = self.cache / f"{name}.pt"
        if not path.is_file():
            print(f"{name}: training", file=sys.stderr)
            trained = train()
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(trained.state_dict(), path)
        module = make()
        module.load_state_dict(torch.load(path, weights_only=True))
        return module

    def _gan(self, name: str, configuration: str, data: Path, **changes: Any) -> Subject:
        from pyinv import models
        from pyinv.training import get_configuration, train_gan

        settings = dataclasses.replace(get_configuration(configuration), **changes)
        folder = self.cache / "generators" / name
        if not (folder / "generator.pt").is_file():
            images = load_dataset(
                self._file(data), split="train", image_shape=settings.image_shape
            ).images
            folder.parent.mkdir(parents=True, exist_ok=True)
            say: Callable[[str], None] = lambda line: print(f"{name}: {line}", file=sys.stderr)  # noqa: E731
            train_gan(settings, images, folder, data_name=name, threads=self.threads, say=say)
        module = models.get_model(settings.model).generator(
            settings.latent_size, settings.image_shape, **settings.options
        )
        module.load_state_dict(torch.load(folder / "generator.pt", weights_only=True))
        return self._exported(name, module, settings.latent_size, settings.prior, (-1, 1), data)

    def _exported(
        self,
        name: str,
        module: nn.Module,
        latent_shape: Any,
        prior: Any,
        value_range: tuple[float, float],
        data: Path,
        **options: Any,
    ) -> Subject:
        module.eval().requires_grad_(False)
        bundle = export(
            module,
            self.cache / "photographs" / f"{name}.bundle",
            latent_shape=latent_shape,
            prior=prior,
            value_range=value_range,
            overwrite=True,
            **options,
        )
        inverter = pyinv.Inverter(bundle, threads=self.threads)
        shape = inverter.manifest.image_shape
        held = load_dataset(self._file(data), split="test", image_shape=shape)
        chosen = np.random.default_rng(0).permutation(len(held.images))[: self.count]
        labels = None
        if inverter.manifest.conditions:
            assert held.labels is not None
            labels = np.array([int(held.labels[i]) for i in chosen])
        return Subject(module, inverter, to_range(held.images[chosen], value_range), labels)


def pytorch_adam(subject: Subject, starts: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (steps, losses [N], latents [N, d]) after 500 and 2,000 steps of Adam in PyTorch."""
    manifest = subject.inverter.manifest
    images = torch.from_numpy(subject.images).repeat_interleave(starts, 0)
    arguments = []
    if subject.labels is not None:
        arguments.append(torch.from_numpy(subject.labels).repeat_interleave(starts, 0))
    drawn = subject.inverter.sample(len(images), seed=1)
    latent = torch.from_numpy(drawn).requires_grad_(True)
    solver = torch.optim.Adam([latent], lr=LEARNING_RATE)
    for step in range(2001):
        losses = (subject.module(latent, *arguments) - images).square().flatten(1).mean(1)
        if step in (500, 2000):
            best = losses.detach().view(-1, starts).min(1)
            rows = torch.arange(len(best.values)) * starts + best.indices
            yield step, best.values.numpy(), latent.detach()[rows].flatten(1).numpy()
        solver.zero_grad()
        losses.sum().backward()
        solver.step()
        if isinstance(manifest.prior, pyinv.Uniform):
            with torch.no_grad():
                latent.clamp_(manifest.prior.low, manifest.prior.high)


def measure(subject: Subject, *, peers: bool) -> list[dict[str, Any]]:
    """Run every method; return a row for each."""
    inverter = subject.inverter
    manifest = inverter.manifest
    rows: list[dict[str, Any]] = []

    def add(name: str, loss: np.ndarray, latents: np.ndarray, cost: float, seconds: float) -> None:
        low, high = manifest.value_range
        moments = manifest.prior
        if isinstance(moments, pyinv.Uniform):
            center, scale = (moments.low + moments.high) / 2, (moments.high - moments.low) / 12**0.5
        else:
            center, scale = moments.mean, moments.std
        mean = float(np.mean(loss))
        rows.append(
            {
                "method": name,
                "mse": mean,
                "median_mse": float(np.median(loss)),
                "psnr": float(10 * np.log10((high - low) ** 2 / mean)),
                "forward_equivalents": cost,
                "cpu_seconds": seconds,
                # 1 for draws from the prior.
                "mean_square_of_latents": float(np.mean(((latents - center) / scale) ** 2)),
            }
        )

    def run(name: str, recipe: Recipe) -> None:
        started = time.process_time()
        found = inverter.invert(subject.images, recipe=recipe, conditions=subject.conditions)
        seconds = time.process_time() - started
        cost = cost_arrays(found, manifest.latent_size)["forward_equivalents"].mean()
        add(name, found.loss, found.latents.reshape(len(found), -1), float(cost), seconds)

    # Load the functions before anything is timed.
    warm = recipes.reconstruct(manifest).replace(max_steps=1, restarts=0)
    inverter.invert(subject.images, recipe=warm, conditions=subject.conditions)
    for effort in recipes.EFFORTS:
        run(f"default, effort {effort}", recipes.default(manifest, effort=effort))
    run("default, prior_weight 0.1", recipes.default(manifest, prior_weight=0.1))
    run("adam", recipes.adam(manifest))
    run("reconstruct", recipes.reconstruct(manifest))
    if peers:
        for starts in (1, 4):
            started = time.process_time()
            for steps, loss, latents in pytorch_adam(subject, starts):
                seconds = time.process_time() - started
                if starts == 1 or steps == 2000:
                    name = f"PyTorch Adam, {steps:,} steps" + (", best of 4" if starts > 1 else "")
                    add(name, loss, latents, 2.0 * steps * starts, seconds)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| method | mse | median | PSNR, dB | forward equivalents | CPU s | z² |",
        "|---|---|---|---|---|---|---|",
    ]
    cells = (
        "| {method} | {mse:.5f} | {median_mse:.5f} | {psnr:.1f} | {forward_equivalents:,.0f} | "
        "{cpu_seconds:.2f} | {mean_square_of_latents:.1f} |"
    )
    return "\n".join([*lines, *(cells.format(**row) for row in rows)])


NAMES = ("vae", "conditional", "mnist", "omniglot", "cifar", "faces", "gan_face_generate")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generators", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--targets", type=int, default=16, help="images of each [%(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--no-peers", action="store_true", help="leave PyTorch's Adam out")
    parser.add_argument("--data", type=Path, help="the folder of all data; also PYINV_DATA")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "build" / "recovery")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    for name in ("targets", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    unknown = [name for name in arguments.generators if name not in NAMES]
    if unknown:
        parser.error(f"generators are {', '.join(NAMES)}; got {', '.join(unknown)}")
    data = find_data(arguments.data)
    if data is None:
        parser.error("no data found; give its folder with --data")
    torch.set_num_threads(arguments.threads)
    subjects = Subjects(data, arguments.cache, arguments.targets, arguments.threads)
    results: dict[str, Any] = {}
    for name in arguments.generators or NAMES:
        try:
            subject = getattr(subjects, name)()
        except (Missing, PyinvError) as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
            continue
        results[name] = measure(subject, peers=not arguments.no_peers)
        if not arguments.json:
            print(f"\n{name}, {len(subject.images)} images\n\n{table(results[name])}", flush=True)
    if arguments.json:
        print(json.dumps({"targets": arguments.targets, "generators": results}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
