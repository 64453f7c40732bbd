"""The generators whose latents are recovered. They are loaded, or trained if missing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pyinv
from pyinv import export, models
from pyinv.bundle import Bundle
from pyinv.datasets import load_dataset, to_range
from pyinv.errors import BundleError, InputError
from pyinv.priors import Prior
from pyinv.training import GanConfiguration, get_configuration

from .data import FACES, MNIST, OMNIGLOT, REPOSITORY

__all__ = ["GENERATORS", "NOISY_RANGE", "Missing", "Subject", "obtain"]

FloatArray = NDArray[np.float32]

VALUE_RANGE = (-1.0, 1.0)
NOISY_RANGE = (-4.0, 4.0)
"""A range for images with unclipped noise, to nine standard deviations of the strongest."""

# The seed of the targets, not used elsewhere in the benchmark or in training.
TARGET_SEED = 20_170_215
UNSEEN_SEED = 7


class Missing(Exception):
    """A generator or images are not available; the message says what is missing."""


@dataclass(frozen=True)
class Source:
    """The source of a generator.

    Args:
        title: a description.
        data: its file or folder in the data folder.
        configuration: the training configuration; None for published weights.
    """

    title: str
    data: Path
    configuration: str | None = None


GENERATORS = {
    "faces": Source("faces that others trained, U(-1, 1)^100", FACES),
    "mnist": Source("MNIST, N(0, 1)^100", MNIST, "egan-32"),
    "omniglot": Source("Omniglot, N(0, 1)^100", OMNIGLOT, "egan-32"),
    "lipton-mnist": Source("MNIST, U(-1, 1)^100", MNIST, "lipton-32"),
}
"""Every generator by name. The last runs only on request."""

BY_DEFAULT = ("faces", "mnist", "omniglot")


class Subject:
    """A generator with its bundles, targets that it made, and images that it never saw.

    Args:
        key: the generator's name in ``GENERATORS``.
        module: the generator, in eval mode.
        latent_size: the number of latent components.
        prior: the prior of the latents.
        origin: a description of its source, as JSON values.
        bundles: the folder for its bundles.
        unseen_data: data with images that it was not trained on, if available.
        threads: the threads of its inverters.
        say: called with a line about each export.
    """

    def __init__(
        self,
        key: str,
        module: nn.Module,
        latent_size: int,
        prior: Prior,
        origin: dict[str, Any],
        *,
        bundles: Path,
        unseen_data: Path | None,
        threads: int,
        say: Callable[[str], None],
    ) -> None:
        self.key = key
        self.module = module.eval().requires_grad_(False)
        self.latent_size = latent_size
        self.prior = prior
        self.threads = threads
        self._origin = origin
        self._bundles = bundles
        self._unseen_data = unseen_data
        self._say = say
        self._inverters: dict[tuple[str, int | None], pyinv.Inverter] = {}

    @cached_property
    def weights(self) -> str:
        """The SHA-256 of the weights."""
        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def inverter(self, *, batch_size: int | None = None) -> pyinv.Inverter:
        """Return the inverter of the bundle with the losses mse and whitened."""
        return self._inverter("", batch_size, losses=("mse", "whitened"), value_range=VALUE_RANGE)

    def noisy_inverter(self) -> pyinv.Inverter:
        """Return an inverter that takes images in ``NOISY_RANGE``, with the loss mse."""
        return self._inverter("-noisy", None, losses=("mse",), value_range=NOISY_RANGE)

    def exponent_inverter(self, exponent: float) -> pyinv.Inverter:
        """Return an inverter whose whitened loss has this exponent."""
        losses = (export.whitened(exponent=exponent),)
        named = f"-exponent-{exponent:g}"
        return self._inverter(named, None, losses=losses, value_range=VALUE_RANGE)

    def targets(self, count: int) -> tuple[FloatArray, FloatArray]:
        """Return the first ``count`` draws of latents [N, d] from the prior, and their images."""
        inverter = self.inverter()
        latents = inverter.sample(count, seed=TARGET_SEED)
        return latents.reshape(count, -1), inverter.generate(latents)

    def unseen(self, count: int) -> tuple[FloatArray, str]:
        """Return images that the generator did not make, and a description."""
        if self._unseen_data is None:
            latents = self.inverter().sample(2 * count, seed=TARGET_SEED + 1)
            images = self.inverter().generate(latents)
            return (images[::2] + images[1::2]) / 2, "each the mean of two generated images"
        manifest = self.inverter().manifest
        try:
            held = load_dataset(self._unseen_data, split="test", image_shape=manifest.image_shape)
        except InputError as error:
            raise Missing(f"no unseen images: {error}") from None
        chosen = np.random.default_rng(UNSEEN_SEED).choice(len(held), count, replace=False)
        return to_range(held.images[chosen], VALUE_RANGE), f"test images of {held.name}"

    def describe(self) -> dict[str, Any]:
        """Return a description of the generator, as JSON values."""
        manifest = self.inverter().manifest
        size = self.latent_size
        products = multiply_adds(self.module, size)
        return {
            "title": GENERATORS[self.key].title,
            "prior": self.prior.describe(),
            "latent_size": size,
            "image_shape": list(manifest.image_shape),
            "origin": self._origin,
            "weights": self.weights,
            "multiply_adds_per_forward": products,
            # The symmetric half of a [d, P] matrix times its transpose.
            "gram_in_forwards": size * (size + 1) / 2 * manifest.image_size / products,
        }

    def _inverter(
        self,
        named: str,
        batch_size: int | None,
        *,
        losses: tuple[Any, ...],
        value_range: tuple[float, float],
    ) -> pyinv.Inverter:
        if (named, batch_size) not in self._inverters:
            path = self._export(named, losses, value_range)
            options = {} if batch_size is None else {"batch_size": batch_size}
            inverter = pyinv.Inverter(path, threads=self.threads, **options)
            self._inverters[named, batch_size] = inverter
        return self._inverters[named, batch_size]

    def _export(
        self, named: str, losses: tuple[Any, ...], value_range: tuple[float, float]
    ) -> Path:
        """Return the path of a bundle; export it unless this exporter has written it before."""
        path = self._bundles / f"{self.key}{named}.bundle"
        origin = {"weights": self.weights, "exporter": _exporter(), **self._origin}
        try:
            if Bundle.open(path).manifest.origin == origin:
                return path
        except BundleError:
            pass
        self._say(f"{self.key}: exporting {path.name}")
        self._bundles.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # Noisy targets leave the range of the last activation.
            warnings.filterwarnings("ignore", "the generator ends in")
            return export.export(
                self.module,
                path,
                latent_shape=self.latent_size,
                prior=self.prior,
                losses=losses,
                value_range=value_range,
                normal_equations=True,
                name=f"{self.key}{named}",
                origin=origin,
                overwrite=True,
            )


def obtain(
    key: str,
    *,
    data: Path | None,
    cache: Path,
    threads: int,
    progress: bool,
    say: Callable[[str], None],
) -> Subject:
    """Load a generator, and train it first if necessary.

    Args:
        key: one of ``GENERATORS``.
        data: the data folder, if there is one.
        cache: the folder of ``generators``, for training, and ``bundles``.
        threads: the threads for training and for the inverters.
        progress: whether training shows a progress bar.
        say: called with a line about each step.

    Raises:
        Missing: neither the generator nor the data to train it on is available.
        KeyboardInterrupt: Ctrl-C during training, which saves a checkpoint.
    """
    source = GENERATORS[key]
    place = None if data is None else data / source.data
    there = place is not None and place.exists()
    options = {"bundles": cache / "bundles", "threads": threads, "say": say}
    if source.configuration is None:
        if place is None or not there:
            raise Missing(f"no {source.data} in {data or 'any folder of data'}")
        example = _faces_example()
        module, size = example.load_face_generator(place), example.LATENT_SIZE
        origin = {"weights_of": "github.com/fletchersarip93/face-generator"}
        prior = pyinv.Uniform(-1.0, 1.0)
        return Subject(key, module, size, prior, origin, unseen_data=None, **options)
    folder = cache / "generators" / key
    unseen = place if there else None
    if not (folder / "generator.pt").is_file():
        if place is None or not there:
            raise Missing(
                f"no {source.data} in {data or 'any folder of data'} to train it on, nor a "
                f"trained one in {folder}"
            )
        _train(key, get_configuration(source.configuration), place, folder, threads, progress, say)
    configuration, origin = _read(folder)
    if configuration.difference(
        get_configuration(source.configuration), ignore=("losses", "source", "batch_norm")
    ):
        say(f"{key}: {folder} holds another training than {source.configuration}'s; taking it")
    module = models.get_model(configuration.model).generator(
        configuration.latent_size, configuration.image_shape, **configuration.options
    )
    module.load_state_dict(torch.load(folder / "generator.pt", weights_only=True))
    size, prior = configuration.latent_size, configuration.prior
    return Subject(key, module, size, prior, origin, unseen_data=unseen, **options)


def multiply_adds(generator: nn.Module, latent_size: int) -> int:
    """Return the multiply-adds of a forward pass with direct convolutions."""
    counted = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        # A convolution uses each weight once per output position, a transposed one once per input
        # position.
        places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        counted += weight.numel() * int(places[0, 0].numel() if places.ndim == 4 else 1)

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    hooks = [
        layer.register_forward_hook(count)
        for layer in generator.modules()
        if isinstance(layer, kinds)
    ]
    try:
        with torch.no_grad():
            generator(torch.zeros(1, latent_size))
    finally:
        for hook in hooks:
            hook.remove()
    return counted


def _train(
    key: str,
    configuration: GanConfiguration,
    data: Path,
    folder: Path,
    threads: int,
    progress: bool,
    say: Callable[[str], None],
) -> None:
    from pyinv.training import train_gan

    say(f"{key}: training {configuration.name} into {folder}; about 8 minutes on two cores")
    images = load_dataset(data, split="train", image_shape=configuration.image_shape)
    folder.parent.mkdir(parents=True, exist_ok=True)
    train_gan(
        configuration,
        images.images,
        folder,
        data_name=images.name,
        threads=threads,
        progress=progress,
        say=say,
    )


def _read(folder: Path) -> tuple[GanConfiguration, dict[str, Any]]:
    """Return the configuration of a finished training, and its origin."""
    path = folder / "configuration.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        configuration = GanConfiguration.from_description(content["configuration"])
        data = content["data"]
        origin = {
            "configuration": configuration.name,
            "model": configuration.model,
            "width": configuration.width,
            "iterations": configuration.iterations,
            "seed": configuration.seed,
            "data": data["name"],
            "images": data["images"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a training's ({' '.join(str(error).split())}); delete {folder}"
        ) from None
    return configuration, origin


def _exporter() -> str:
    """Return the SHA-256 of the exporter's files, because another exporter writes other bundles."""
    folder = Path(export.__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _faces_example() -> ModuleType:
    path = REPOSITORY / "examples" / "face_generator.py"
    spec = importlib.util.spec_from_file_location("face_generator_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
