"""The generators that a reproduction works on: bundles that were given, or trained for it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinv.bundle import MANIFEST_NAME, Bundle, Manifest
from pyinv.datasets import Dataset, load_dataset
from pyinv.demo import BUNDLE as DIGITS_BUNDLE
from pyinv.errors import BundleError, DependencyError, InputError
from pyinv.images import RANGE_SLACK
from pyinv.inverter import Inverter
from pyinv.papers.request import Request
from pyinv.priors import Normal, Uniform
from pyinv.training.folder import BUNDLES
from pyinv.validation import shape_text

__all__ = [
    "Generator",
    "HeldOut",
    "choose",
    "find_bundles",
    "free_key",
    "obtain_generators",
]

FloatArray = NDArray[np.float32]

CHANNELS = (1, 3)
"""Those of images that a figure can show."""
PROBES = 16
"""Images that are made to see whether a generator keeps to its value range."""


@dataclass(frozen=True, eq=False)
class Generator:
    """A generator of a reproduction.

    Args:
        key: its name in the ids of runs, tables and figures; no other generator has it.
        inverter: its bundle, open.
    """

    key: str
    inverter: Inverter

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.inverter.manifest

    @property
    def title(self) -> str:
        """What to call it to a person."""
        name = self.manifest.name or self.inverter.bundle.path.stem
        return name if self.data is None else f"{name} on {self.data}"

    @property
    def data(self) -> str | None:
        """The name of the data it was trained on, where the bundle says so."""
        name = self.manifest.origin.get("data")
        return None if name is None else str(name)

    @property
    def prior_name(self) -> str:
        """ "uniform" or "normal"."""
        return self.manifest.prior.kind()

    def describe_origin(self) -> str:
        """Return how it was trained, as far as its bundle tells."""
        origin = self.manifest.origin
        if not origin:
            return "its bundle does not say how it was trained"
        told = "trained"
        if "data" in origin:
            told += f" on {origin['data']}"
        for name, words in (("images", " ({:,} images)"), ("iterations", " for {:,} iterations")):
            if isinstance(origin.get(name), int):
                told += words.format(origin[name])
        settings = origin.get("configuration")
        if isinstance(settings, dict) and {"name", "batch_size", "learning_rate"} <= set(settings):
            told += (
                f" of {settings['batch_size']} images, Adam at a learning rate of "
                f"{settings['learning_rate']} (configuration {settings['name']})"
            )
        return told

    def describe_image(self) -> str:
        """Return its image's size in words, as in 32×32, 3 channels."""
        channels, height, width = self.manifest.image_shape
        return f"{height}×{width}, {channels} channel{'' if channels == 1 else 's'}"

    def describe_batch_norm(self) -> str:
        """Return its batch-norm mode in words."""
        if self.manifest.batch_norm == "batch":
            return "statistics of the images that run together"
        return "running statistics, folded into the weights (eval mode)"


def find_bundles(path: str | os.PathLike[str], modes: Iterable[str] = ("eval",)) -> list[Path]:
    """Return the bundles that a path stands for.

    Args:
        path: a bundle's folder, or a folder that ``pyinv train`` wrote.
        modes: of a training folder, the batch-norm modes wanted: "eval", "batch".

    Raises:
        BundleError: neither a bundle nor a training folder.
    """
    path = Path(path)
    if (path / MANIFEST_NAME).is_file() or not path.is_dir():
        return [path]
    found = [path / BUNDLES[mode] for mode in modes if (path / BUNDLES[mode]).is_dir()]
    if not found:
        raise BundleError(
            f"{path}: expected a bundle or the folder of a finished training, but it has neither "
            f"{MANIFEST_NAME} nor {BUNDLES['eval']}"
        )
    return found


def obtain_generators(
    request: Request,
    *,
    paper: str,
    configuration: Callable[[str], str],
    priors: Sequence[type[Uniform] | type[Normal]],
    losses: Sequence[str] = ("mse",),
    modes: Sequence[str] = ("eval",),
    test_images: int = 0,
    overshoots: bool = False,
) -> list[Generator]:
    """Open the generators that were given, or train one for each data set and prior.

    Args:
        request: what the reproduction was asked for.
        paper: the paper's authors, for messages.
        configuration: gives the name of the paper's training configuration for a data set's.
        priors: those that the paper's method is made for.
        losses: those that it minimises.
        modes: the batch-norm modes wanted.
        test_images: how many test images each data set must have.
        overshoots: whether images may leave the value range, as those of a last layer without
            bounds do.

    Raises:
        BundleError: a bundle is missing or damaged, or lacks a loss.
        InputError: a generator with another prior, another batch-norm mode, a condition, or images
            that no figure shows or that leave its value range; bad data.
        DependencyError: a generator has to be trained, and torch is missing.
        KeyboardInterrupt: Ctrl-C during a training, which keeps its checkpoint.
    """
    found: Sequence[str | os.PathLike[str]] = request.generators
    if not found:
        found = _train(request, configuration, priors, test_images=test_images)
    generators: list[Generator] = []
    for path in found:
        for bundle in find_bundles(path, modes):
            inverter = Inverter(Bundle.open(bundle), **request.machine)
            _check(inverter, bundle, paper, priors, losses, modes)
            _check_batch_size(inverter, bundle)
            if not overshoots:
                _check_range(inverter, bundle)
            taken = [generator.key for generator in generators]
            generators.append(Generator(free_key(_full_name(inverter), taken), inverter))
    return generators


class HeldOut:
    """The test images of the data that was given, each read once for a shape.

    Args:
        request: what the reproduction was asked for.
        needed: whether data without test images is an error; else it counts as not given.
    """

    def __init__(self, request: Request, *, needed: bool) -> None:
        self._paths = request.data
        self._say = request.say
        self._needed = needed
        self._read: dict[tuple[str, tuple[int, ...]], Dataset | None] = {}

    def of(self, generator: Generator, *, any_data: bool = False) -> Dataset | None:
        """Return the test images of a generator's data, in its image shape.

        They are those of the data path with the name that the bundle gives. A bundle that gives
        none takes the data there is, if it is one path. None: there is no such data.

        Args:
            generator: the generator.
            any_data: take the data there is, if it is one path, whatever the bundle says.

        Raises:
            InputError: data that cannot be read or lacks needed test images, or two paths of one
                name.
        """
        shape = generator.manifest.image_shape
        read = [self._load(path, shape) for path in self._paths]
        held = [dataset for dataset in read if dataset is not None]
        if len(read) == len(held) == 1 and (any_data or generator.data is None):
            return held[0]
        own = [dataset for dataset in held if dataset.name == generator.data]
        if len(own) > 1:
            raise _two_of(own[0].name)
        return own[0] if own else None

    def _load(self, path: str | os.PathLike[str], shape: tuple[int, int, int]) -> Dataset | None:
        key = (os.fspath(path), shape)
        if key not in self._read:
            try:
                self._read[key] = load_dataset(path, split="test", image_shape=shape)
            except InputError as error:
                if self._needed:
                    raise
                load_dataset(path, image_shape=shape)  # raises where the data itself is bad
                self._say(f"going on without test images: {error}")
                self._read[key] = None
        return self._read[key]


def choose(dataset: Dataset, count: int, *, seed: int) -> NDArray[np.int64]:
    """Return which images to take as targets: ``count`` random rows, in random order.

    Data lies sorted by what it shows, and targets that run together should be mixed.

    Raises:
        InputError: there are not so many.
    """
    _check_count(dataset, count)
    return np.random.default_rng(seed).choice(len(dataset), count, replace=False)


def free_key(name: str, taken: Collection[str]) -> str:
    """Return a name in the letters that ids may have, numbered where it is taken."""
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key}-{number}"
    return free


def _check_count(dataset: Dataset, count: int) -> None:
    if count > len(dataset):
        raise InputError(
            f"{dataset.source}: {count} targets were asked for, and there are {len(dataset)} test "
            "images; ask for fewer"
        )


def _two_of(name: str) -> InputError:
    return InputError(f"two data sets are called {name}; give one of them")


def _check(
    inverter: Inverter,
    bundle: Path,
    paper: str,
    priors: Sequence[type[Uniform] | type[Normal]],
    losses: Sequence[str],
    modes: Sequence[str],
) -> None:
    """Raise unless the paper's method can work on this bundle."""
    manifest = inverter.manifest
    if not isinstance(manifest.prior, tuple(priors)):
        wanted = " or ".join(prior.kind() for prior in priors)
        raise InputError(
            f"{bundle}: the method of {paper} needs a generator with a {wanted} prior, and this "
            f"one's is {manifest.prior}; give another generator"
        )
    if manifest.batch_norm not in modes:
        raise InputError(
            f"{bundle}: this reproduction of {paper} needs a bundle with batch_norm "
            f"{' or '.join(map(repr, modes))}, and this one has {manifest.batch_norm!r}; "
            "give another one"
        )
    if manifest.image_shape[0] not in CHANNELS:
        raise InputError(
            f"{bundle}: expected images of 1 or 3 channels, which figures can show, and this "
            f"generator makes {manifest.image_shape[0]}; give another generator"
        )
    if manifest.condition_shape is not None:
        raise InputError(
            f"{bundle}: expected a generator without a condition, and this one takes "
            f"[{shape_text(manifest.condition_shape)}]; give another generator"
        )
    missing = [loss for loss in losses if loss not in manifest.losses]
    if missing:
        raise BundleError(
            f"{bundle}: the method of {paper} minimises the loss {missing[0]!r}, and this bundle "
            f"has only {', '.join(manifest.losses)}; export it again with this loss"
        )


def _check_batch_size(inverter: Inverter, bundle: Path) -> None:
    """Raise unless targets in any number can be divided into groups of two or more."""
    size = inverter.batch_size
    if inverter.manifest.batch_norm == "batch" and isinstance(size, int) and size < 3:
        raise InputError(
            f"{bundle}: takes batch-norm statistics over targets that run together, and needs a "
            f"batch size of 3 or more, got {size}; give a larger one"
        )


def _check_range(inverter: Inverter, bundle: Path) -> None:
    """Raise where a generator's images leave the value range that its bundle states."""
    low, high = inverter.manifest.value_range
    images = inverter.generate(inverter.sample(PROBES))
    least, most = float(images.min()), float(images.max())
    slack = RANGE_SLACK * (high - low)
    if not (low - slack <= least and most <= high + slack):
        raise InputError(
            f"{bundle}: expected images in its value range [{low:g}, {high:g}], and its generator "
            f"makes values from {least:.4g} to {most:.4g}; export it again with the right "
            "value_range"
        )


def _train(
    request: Request,
    configuration: Callable[[str], str],
    priors: Sequence[type[Uniform] | type[Normal]],
    *,
    test_images: int,
) -> list[Path]:
    """Train a generator for each data set and prior, and return their folders.

    A training that was stopped goes on, and a finished one is taken as it is.
    """
    if find_spec("torch") is None:
        raise DependencyError(
            "no generator was given, and training one needs torch: "
            "pip install 'pyinv[export]', or give a bundle (--generator)"
        )
    from pyinv.training import GanConfiguration, get_configuration, train_gan

    # A wrong machine option is told now and not after the training.
    Inverter(DIGITS_BUNDLE, **request.machine)
    # All configurations of a paper have one image shape.
    shape = get_configuration(request.configuration or configuration("")).image_shape
    planned: list[tuple[GanConfiguration, Dataset]] = []
    for path in request.data:
        if test_images:
            _check_count(load_dataset(path, split="test", image_shape=shape), test_images)
        dataset = load_dataset(path, image_shape=shape)
        if any(dataset.name == other.name for _, other in planned):
            raise _two_of(dataset.name)
        named = get_configuration(request.configuration or configuration(dataset.name))
        planned.append((named, dataset))
    folders: list[Path] = []
    for named, dataset in planned:
        for prior in priors:
            configured = named.replace(seed=request.seed)
            if not isinstance(named.prior, prior):
                configured = configured.replace(prior=prior())
            folder = request.folder / "generators" / f"{dataset.name}-{prior.kind()}"
            request.say(f"training {named.name} on {dataset.name}, {prior.kind()} prior")
            try:
                train_gan(
                    configured,
                    dataset.images,
                    folder,
                    data_name=dataset.name,
                    device=request.machine.get("device", "cpu"),
                    threads=request.machine.get("threads"),
                    progress=request.progress,
                    say=request.say,
                )
            except KeyboardInterrupt:
                done = len(folders)
                raise KeyboardInterrupt(
                    f"{done} of {len(planned) * len(priors)} generators are trained; the same "
                    "command goes on from the last checkpoint"
                ) from None
            folders.append(folder)
    return folders


def _full_name(inverter: Inverter) -> str:
    """Return what the generator's data, prior and batch-norm mode make of its name."""
    manifest = inverter.manifest
    parts = [manifest.name or inverter.bundle.path.stem, str(manifest.origin.get("data", ""))]
    parts += [manifest.prior.kind(), "batch" if manifest.batch_norm == "batch" else ""]
    return " ".join(filter(None, parts))
