"""The images that a reproduction searches: a data set's, or some that the generator makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.datasets import Dataset, load_dataset
from pyinv.errors import InputError
from pyinv.papers.encoders import to_pixels
from pyinv.papers.generators import Generator
from pyinv.papers.request import Request

__all__ = ["Collection", "Collections"]

Pixels = NDArray[np.uint8]

MOST = 20_000  # as Luo et al. have
GENERATED_PER_TARGET = 200  # where there is no data; of 100 targets it makes as many
CHUNK = 2048  # images that are floats at the same time


@dataclass(frozen=True, eq=False)
class Collection:
    """The images that are searched, and those that are looked for.

    Args:
        pixels: uint8 [N, C, H, W], those searched.
        told: what they are, in words.
        bases: uint8 [M, C, H, W], other images, whose like Table 2 and Figure 4 look for.
        bases_told: what these are.
        labels: whole numbers [N], a class each; None where not known.
        base_labels: whole numbers [M]; None where not known.
        dataset: the training images of the data; None without data.
    """

    pixels: Pixels
    told: str
    bases: Pixels
    bases_told: str
    labels: NDArray[np.int64] | None = None
    base_labels: NDArray[np.int64] | None = None
    dataset: Dataset | None = None


class Collections:
    """What is searched for each generator; a data set is read once for an image shape."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._read: dict[tuple[str, str, tuple[int, ...]], Dataset | None] = {}

    def of(self, generator: Generator) -> Collection:
        """Return the collection of the generator's data, or of images that it makes.

        Raises:
            InputError: data that cannot be read, or has one image.
        """
        found = self._data(generator)
        if found is not None:
            return self._of_data(*found)
        if self._request.data:
            self._request.say(
                f"{generator.title}: no data with its data's name was given; images that it makes "
                "are searched"
            )
        return self._generated(generator)

    def _data(self, generator: Generator) -> tuple[Dataset, Dataset | None] | None:
        """Return the training and the test images of the data with the generator's data's name."""
        shape = generator.manifest.image_shape
        loaded = {path: self._load(path, "train", shape) for path in self._request.data}
        named = {
            path: one
            for path, one in loaded.items()
            if one is not None and (len(loaded) == 1 or one.name == generator.data)
        }
        if len(named) > 1:
            raise InputError(f"two data sets are called {generator.data}; give one of them")
        for path, dataset in named.items():
            return dataset, self._load(path, "test", shape)
        return None

    def _load(self, path: Any, split: str, shape: tuple[int, int, int]) -> Dataset | None:
        key = (str(path), split, shape)
        if key not in self._read:
            try:
                self._read[key] = load_dataset(path, split=split, image_shape=shape)
            except InputError as error:
                if split == "train":
                    raise
                self._request.say(f"going on without test images: {error}")
                self._read[key] = None
        return self._read[key]

    def _of_data(self, train: Dataset, test: Dataset | None) -> Collection:
        wanted = self._request.targets
        random = np.random.default_rng(self._request.seed)
        order = random.permutation(len(train))
        bases = test
        # Where the classes of the test images are others, no search could find them.
        if test is not None and test.labels is not None and train.labels is not None:
            bases = test if set(test.labels) & set(train.labels) else None
        if bases is not None:
            chosen = random.permutation(len(bases))[:wanted]
            told = f"{len(chosen):,} test images of {bases.name}"
        else:
            if len(train) < 2:
                raise InputError(f"{train.source}: a search needs 2 images or more, and this has 1")
            bases = train
            chosen, order = np.split(order, [min(wanted, len(train) // 2)])
            told = f"{len(chosen):,} other training images of {bases.name}"
        rows = np.sort(order[:MOST])
        labels, base_labels = _labels(train, rows, bases, chosen)
        return Collection(
            pixels=train.images[rows],
            told=f"{len(rows):,} training images of {train.name}",
            bases=bases.images[chosen],
            bases_told=told,
            labels=labels,
            base_labels=base_labels,
            dataset=train,
        )

    def _generated(self, generator: Generator) -> Collection:
        inverter, request = generator.inverter, self._request
        count = min(MOST, GENERATED_PER_TARGET * request.targets)
        latents = inverter.sample(count + request.targets, seed=request.seed + 1)
        pixels = np.concatenate(
            [
                to_pixels(inverter.generate(some), generator.manifest.value_range)
                for some in np.array_split(latents, -(-len(latents) // CHUNK))
            ]
        )
        return Collection(
            pixels=pixels[:count],
            told=f"{count:,} generated images",
            bases=pixels[count:],
            bases_told=f"{request.targets:,} other generated images",
        )


def _labels(
    train: Dataset, rows: NDArray[np.int64], bases: Dataset, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Return both sets' labels as the numbers of their classes."""
    if train.labels is None or bases.labels is None:
        return None, None
    classes = {name: number for number, name in enumerate(sorted({*train.labels, *bases.labels}))}
    return (
        np.array([classes[train.labels[row]] for row in rows]),
        np.array([classes[bases.labels[row]] for row in chosen]),
    )
