"""Random numbers of a training, each a function of only (seed, purpose, number).

No random state carries over from one iteration to the next, so a resumed training draws the same
numbers as an uninterrupted one.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyinv.priors import Prior, Uniform

__all__ = ["Purpose", "draw_batch", "draw_labels", "draw_latents", "random"]


class Purpose(IntEnum):
    """The purpose of a random draw. Changing a value would change the results of every seed."""

    GENERATOR = 0
    DISCRIMINATOR = 1
    ORDER = 2
    LATENTS = 3
    LABELS = 4
    SAMPLES = 5
    STATISTICS = 6
    SHIFTS = 7
    ENCODER = 20
    LAYER = 21
    TARGETS = 22


def random(seed: int, purpose: Purpose, number: int = 0) -> torch.Generator:
    """Return a random number generator on the CPU; ``number`` is the iteration or epoch."""
    # Hashed, because PyTorch's generator produces correlated streams for similar seeds.
    words = np.random.SeedSequence((seed, int(purpose), number)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def draw_latents(prior: Prior, count: int, size: int, source: torch.Generator) -> Tensor:
    """Draw latents from the prior, float32 [count, size]."""
    if isinstance(prior, Uniform):
        return torch.rand(count, size, generator=source) * (prior.high - prior.low) + prior.low
    return torch.randn(count, size, generator=source) * prior.std + prior.mean


def draw_labels(interval: tuple[float, float], count: int, source: torch.Generator) -> Tensor:
    """Draw labels for a discriminator, uniform on the interval, float32 [count]."""
    low, high = interval
    return torch.rand(count, generator=source) * (high - low) + low


def draw_batch(seed: int, number: int, size: int, count: int) -> NDArray[np.int64]:
    """Return the indices of an iteration's images, out of ``count``.

    Each image is seen once per epoch, in a different order; a last partial batch is dropped.
    """
    epoch, batch = divmod(number, count // size)
    return _epoch(seed, epoch, count)[batch * size : (batch + 1) * size]


@lru_cache(maxsize=1)
def _epoch(seed: int, number: int, count: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = torch.randperm(
        count, generator=random(seed, Purpose.ORDER, number)
    ).numpy()
    return order
