"""The generators of a reproduction: given bundles, or generators trained for it."""

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
from pyinv.extras import install_command
from pyinv.images import RANGE_SLACK, not_pictures
from pyinv.inverter import Inverter
from pyinv.papers.folder import open_folder
from pyinv.papers.request import Request
from pyinv.priors import Normal, Uniform
from pyinv.training.folder import BUNDLES

__all__ = [
    "Generator",
    "GivenData",
    "choose",
    "find_bundles",
    "free_key",
    "obtain_generators",
]

CHANNELS = (1, 3)
"""The channel counts that a figure can show."""
PROBES = 16
"""Images generated to check whether a generator stays in its value range."""


@dataclass(frozen=True, eq=False)
class Generator:
    """A generator of a reproduction.

    Args:
        key: its unique name in the ids of runs, tables and figures.
        inverter: the inverter of its bundle.
    """

    key: str
    inverter: Inverter

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.inverter.manifest

    @property
    def title(self) -> str:
        """Its name for people."""
        name = self.manifest.name or self.inverter.bundle.path.stem
        return name if self.data is None else f"{name} on {self.data}"

    @property
    def data(self) -> str | None:
        """The name of the dataset it was trained on, if the bundle says so."""
        name = self.manifest.origin.get("data")
        return None if name is None else str(name)

    @property
    def source(self) -> Path:
        """Its training folder, which also has the PyTorch module, or else its bundle."""
        bundle = self.inverter.bundle.path
        return bundle.parent if (bundle.parent / "generator.pt").is_file() else bundle

    def describe_origin(self) -> str:
        """Describe how it was trained, as far as its bundle says."""
        origin = self.manifest.origin
        if not origin:
            return "its bundle does not say how it was trained"
        text = "trained"
        if "data" in origin:
            text += f" on {origin['data']}"
        for name, words in (("images", " ({:,} images)"), ("iterations", " for {:,} iterations")):
            if isinstance(origin.get(name), int):
                text += words.format(origin[name])
        settings = origin.get("configuration")
        if isinstance(settings, dict) and {"name", "batch_size", "learning_rate"} <= set(settings):
            text += (
                f" of {settings['batch_size']} images, Adam at a learning rate of "
                f"{settings['learning_rate']} (configuration {settings['name']})"
            )
        return text

    def describe_image(self) -> str:
        """Return its image size as text, such as "32×32, 3 channels"."""
        channels, height, width = self.manifest.image_shape
        return f"{height}×{width}, {channels} channel{'' if channels == 1 else 's'}"

    def describe_batch_norm(self) -> str:
        """Describe its batch-norm mode."""
        if self.manifest.batch_norm == "batch":
            return "batch statistics, over the images that run together"
        return "running statistics, folded into the weights (eval mode)"


def find_bundles(path: str | os.PathLike[str], modes: Iterable[str] = ("eval",)) -> list[Path]:
    """Return the bundles at a path.

    Args:
        path: a bundle's folder, or a folder that ``pyinv train`` wrote.
        modes: the batch-norm modes to take from a training folder: "eval", "batch".

    Raises:
        BundleError: neither a bundle nor a training folder.
    """
    path = Path(path)
    if (path / MANIFEST_NAME).is_file() or not path.is_dir():
        return [path]
    found = [path / BUNDLES[mode] for mode in modes if (path / BUNDLES[mode]).is_dir()]
    if not found:
        raise BundleError(
            f"{path}: expected a bundle or the folder of a finished training run, but it has "
            f"neither {MANIFEST_NAME} nor {BUNDLES['eval']}"
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
    """Open the reproduction's folder and the given generators, or train one per dataset and prior.

    Args:
        request: the reproduction's settings.
        paper: the paper's authors, for messages.
        configuration: maps a dataset's name to the name of the paper's training configuration.
        priors: the priors that the paper's method supports.
        losses: the losses that it minimises.
        modes: the batch-norm modes that it supports.
        test_images: how many test images each dataset must have.
        overshoots: whether images may leave the value range, as they do when the last layer has no
            bounded activation.

    Raises:
        BundleError: a bundle is missing or damaged, or has no graph of a required loss.
        OutputError: the reproduction's folder cannot be created or written to.
        InputError: a generator with another prior, another batch-norm mode or a condition, or whose
            images leave its value range or cannot be shown in a figure; bad data.
        DependencyError: a generator has to be trained, but torch is missing.
        KeyboardInterrupt: Ctrl-C during training; its checkpoint remains.
    """
    open_folder(request.folder)
    found: Sequence[str | os.PathLike[str]] = request.generators
    if not found:
        found = _train(request, configuration, priors, test_images=test_images)
    generators: list[Generator] = []
    for path in found:
        for bundle in find_bundles(path, modes):
            inverter = Inverter(Bundle.open(bundle), **request.machine)
            _check(inverter, bundle, paper, priors, losses, modes)
            if not overshoots:
                _check_range(inverter, bundle)
            taken = [generator.key for generator in generators]
            generators.append(Generator(free_key(_full_name(inverter), taken), inverter))
    return generators


class GivenData:
    """The given datasets. Each split is read once per image shape.

    Args:
        request: the reproduction's settings.
        needs_tests: whether a dataset without test images is an error; otherwise these are missing.
    """

    def __init__(self, request: Request, *, needs_tests: bool = False) -> None:
        self._request = request
        self._needs_tests = needs_tests
        self._read: dict[tuple[str, str, tuple[int, ...]], Dataset | None] = {}

    def of(
        self, generator: Generator, split: str = "test", *, any_data: bool = False
    ) -> Dataset | None:
        """Return a split of a generator's dataset, in its image shape; None if it is not given.

        It comes from the given dataset whose name the bundle states. If the bundle states no name
        and only one dataset is given, it comes from that one.

        Args:
            generator: the generator.
            split: "train" or "test".
            any_data: if only one dataset is given, use it whatever the bundle says.

        Raises:
            InputError: data that cannot be read or has no test images although they are needed, or
                two datasets with the same name.
        """
        path = self.path_of(generator, split, any_data=any_data)
        return None if path is None else self.load(path, split, generator)

    def path_of(
        self, generator: Generator, split: str, *, any_data: bool = False
    ) -> str | os.PathLike[str] | None:
        """Return the path of the dataset that ``of`` reads; None if there is none."""
        read = {path: self.load(path, split, generator) for path in self._request.data}
        own = [
            path
            for path, dataset in read.items()
            if dataset is not None
            and (
                dataset.name == generator.data
                or (len(read) == 1 and (any_data or generator.data is None))
            )
        ]
        if len(own) > 1:
            raise _two_of(str(generator.data))
        return own[0] if own else None

    def load(
        self, path: str | os.PathLike[str], split: str, generator: Generator
    ) -> Dataset | None:
        """Return a split in a generator's image shape; None if there are no test images."""
        shape = generator.manifest.image_shape
        key = (os.fspath(path), split, shape)
        if key not in self._read:
            try:
                self._read[key] = load_dataset(path, split=split, image_shape=shape)
            except InputError as error:
                if split == "train" or self._needs_tests:
                    raise
                self.load(path, "train", generator)  # raises if the data itself is bad
                self._request.say(f"continuing without test images: {error}")
                self._read[key] = None
        return self._read[key]


def choose(dataset: Dataset, count: int, *, seed: int) -> NDArray[np.int64]:
    """Return ``count`` random rows of a dataset, to use as targets, in random order.

    Datasets are often sorted by class, but targets that share a batch should be mixed.

    Raises:
        InputError: the dataset has fewer images.
    """
    _check_count(dataset, count)
    return np.random.default_rng(seed).choice(len(dataset), count, replace=False)


def free_key(name: str, taken: Collection[str]) -> str:
    """Return a name in the characters that ids may have, with a number appended if it is taken."""
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key}-{number}"
    return free


def _check_count(dataset: Dataset, count: int) -> None:
    if count > len(dataset):
        raise InputError(
            f"{dataset.source}: {count} targets were requested, but there are only {len(dataset)} "
            "test images; request fewer"
        )


def _two_of(name: str) -> InputError:
    return InputError(f"two datasets are named {name}; give only one of them")


def _check(
    inverter: Inverter,
    bundle: Path,
    paper: str,
    priors: Sequence[type[Uniform] | type[Normal]],
    losses: Sequence[str],
    modes: Sequence[str],
) -> None:
    """Raise unless the paper's method supports this bundle."""
    manifest = inverter.manifest
    if not manifest.is_picture:
        raise InputError(
            f"{bundle}: {not_pictures(manifest)}, and {paper} is about images; give a generator of "
            "images"
        )
    if manifest.observes:
        raise InputError(
            f"{bundle}: its targets are observations of images, and {paper} is about images; "
            "export the generator again without observe"
        )
    if not isinstance(manifest.prior, tuple(priors)):
        kinds = " or ".join(prior.kind() for prior in priors)
        raise InputError(
            f"{bundle}: the method of {paper} needs a generator with a {kinds} prior, but this "
            f"one's is {manifest.prior}; give another generator"
        )
    if manifest.batch_norm not in modes:
        raise InputError(
            f"{bundle}: this reproduction of {paper} needs a bundle with batch_norm "
            f"{' or '.join(map(repr, modes))}, but this one has {manifest.batch_norm!r}; "
            "give another one"
        )
    if manifest.image_shape[0] not in CHANNELS:
        raise InputError(
            f"{bundle}: expected images of 1 or 3 channels, which figures can show, but this "
            f"generator makes {manifest.image_shape[0]}; give another generator"
        )
    if manifest.conditions:
        raise InputError(
            f"{bundle}: expected a generator of the latent alone, but this one also takes "
            f"{', '.join(manifest.conditions)}; give another generator"
        )
    missing = [loss for loss in losses if loss not in manifest.losses]
    if missing:
        raise BundleError(
            f"{bundle}: the method of {paper} minimises the loss {missing[0]!r}, but this bundle "
            f"has only {', '.join(manifest.losses)}; export it again with this loss"
        )
    size = inverter.batch_size
    # Any number of targets must split into batches of at least two.
    if manifest.batch_norm == "batch" and isinstance(size, int) and size < 3:
        raise InputError(
            f"{bundle}: computes batch-norm statistics over the targets of a batch, and needs a "
            f"batch size of 3 or more, got {size}; give a larger one"
        )


def _check_range(inverter: Inverter, bundle: Path) -> None:
    """Raise if a generator's images leave the value range that its bundle states."""
    low, high = inverter.manifest.value_range
    images = inverter.generate(inverter.sample(PROBES))
    least, most = float(images.min()), float(images.max())
    slack = RANGE_SLACK * (high - low)
    if not (low - slack <= least and most <= high + slack):
        raise InputError(
            f"{bundle}: expected images in its value range [{low:g}, {high:g}], but its generator "
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
    """Train one generator per dataset and prior, and return their folders.

    Resumes a training run that was stopped, and reuses a finished one.
    """
    if find_spec("torch") is None:
        raise DependencyError(
            "no generator was given, and training one needs torch: "
            f"{install_command('export')}; or give a bundle (--generator)"
        )
    from pyinv.training import GanConfiguration, get_configuration, train_gan

    # Report a wrong machine option now, not after the training.
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
                    **request.training,
                )
            except KeyboardInterrupt:
                done = len(folders)
                raise KeyboardInterrupt(
                    f"{done} of {len(planned) * len(priors)} generators are trained; run the same "
                    "command to resume from the last checkpoint"
                ) from None
            folders.append(folder)
    return folders


def _full_name(inverter: Inverter) -> str:
    """Return the generator's name followed by its dataset, prior and batch-norm mode."""
    manifest = inverter.manifest
    parts = [manifest.name or inverter.bundle.path.stem, str(manifest.origin.get("data", ""))]
    parts += [manifest.prior.kind(), "batch" if manifest.batch_norm == "batch" else ""]
    return " ".join(filter(None, parts))
