"""The image collection that a reproduction searches: a dataset's images or generated ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyinv.batching import groups
from pyinv.datasets import Dataset
from pyinv.errors import InputError
from pyinv.papers.encoders import to_pixels
from pyinv.papers.generators import Generator, GivenData
from pyinv.papers.pixels import Pixels
from pyinv.papers.request import Request

__all__ = ["Collection", "obtain_collection"]

MOST = 20_000  # as in Luo et al.
GENERATED_PER_TARGET = 200  # without data; reaches MOST at 100 targets
CHUNK = 2048  # images converted to float at a time, to bound memory


@dataclass(frozen=True, eq=False)
class Collection:
    """The images to search, and the query images.

    Args:
        pixels: uint8 [N, C, H, W], the images to search.
        description: what they are, in words.
        bases: uint8 [M, C, H, W], other images, the queries of Table 2 and Figure 4.
        bases_description: what those are, in words.
        labels: integers [N], one class per image; None if unknown.
        base_labels: integers [M]; None if unknown.
        dataset: the training split of the data; None without data.
    """

    pixels: Pixels
    description: str
    bases: Pixels
    bases_description: str
    labels: NDArray[np.int64] | None = None
    base_labels: NDArray[np.int64] | None = None
    dataset: Dataset | None = None


def obtain_collection(generator: Generator, data: GivenData, request: Request) -> Collection:
    """Return the collection from the generator's data, or one of generated images.

    Raises:
        InputError: data that cannot be read, or that has only one image.
    """
    path = data.path_of(generator, "train", any_data=True)
    if path is not None:
        train = data.load(path, "train", generator)
        assert train is not None
        return _of_data(train, data.load(path, "test", generator), request)
    if request.data:
        request.say(
            f"{generator.title}: none of the given datasets is the one it was trained on; "
            "searching generated images instead"
        )
    return _generated(generator, request)


def _of_data(train: Dataset, test: Dataset | None, request: Request) -> Collection:
    random = np.random.default_rng(request.seed)
    order = random.permutation(len(train))
    bases = test
    # If the test split has other classes, as Omniglot's has, no search could find them.
    if test is not None and test.labels is not None and train.labels is not None:
        bases = test if set(test.labels) & set(train.labels) else None
    if bases is not None:
        chosen = random.permutation(len(bases))[: request.targets]
        bases_description = f"{len(chosen):,} test images of {bases.name}"
    else:
        if len(train) < 2:
            raise InputError(f"{train.source}: a search needs at least 2 images, got 1")
        bases = train
        chosen, order = np.split(order, [min(request.targets, len(train) // 2)])
        bases_description = f"{len(chosen):,} other training images of {bases.name}"
    rows = np.sort(order[:MOST])
    labels, base_labels = _labels(train, rows, bases, chosen)
    return Collection(
        pixels=train.images[rows],
        description=f"{len(rows):,} training images of {train.name}",
        bases=bases.images[chosen],
        bases_description=bases_description,
        labels=labels,
        base_labels=base_labels,
        dataset=train,
    )


def _generated(generator: Generator, request: Request) -> Collection:
    inverter = generator.inverter
    count = min(MOST, GENERATED_PER_TARGET * request.targets)
    latents = inverter.sample(count + request.targets, seed=request.seed + 1)
    pixels = np.concatenate(
        [
            to_pixels(inverter.generate(latents[rows]), generator.manifest.value_range)
            for rows in groups(len(latents), CHUNK)
        ]
    )
    return Collection(
        pixels=pixels[:count],
        description=f"{count:,} generated images",
        bases=pixels[count:],
        bases_description=f"{request.targets:,} other generated images",
    )


def _labels(
    train: Dataset, rows: NDArray[np.int64], bases: Dataset, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Return the labels of both sets as class indices."""
    if train.labels is None or bases.labels is None:
        return None, None
    classes = {name: number for number, name in enumerate(sorted({*train.labels, *bases.labels}))}
    return (
        np.array([classes[train.labels[row]] for row in rows]),
        np.array([classes[bases.labels[row]] for row in chosen]),
    )
