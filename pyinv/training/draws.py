"""Random numbers of a training, each a function of (seed, purpose, number) and nothing else.

There is no random state to carry from one iteration to the next, so a training that was stopped
draws what one that was not would have drawn.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from pyinv.priors import Prior, Uniform

__all__ = ["Purpose", "draw_labels", "draw_latents", "random"]


class Purpose(IntEnum):
    """What numbers are drawn for. Values are part of what a seed means: add, never change."""

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
    """Return a source of random numbers on the CPU; ``number`` is the iteration, or the epoch."""
    # Hashed, because PyTorch's generator gives related streams for related seeds.
    words = np.random.SeedSequence((seed, int(purpose), number)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def draw_latents(prior: Prior, count: int, size: int, source: torch.Generator) -> Tensor:
    """Return latents from the prior, float32 [count, size]."""
    if isinstance(prior, Uniform):
        return torch.rand(count, size, generator=source) * (prior.high - prior.low) + prior.low
    return torch.randn(count, size, generator=source) * prior.std + prior.mean


def draw_labels(interval: tuple[float, float], count: int, source: torch.Generator) -> Tensor:
    """Return targets for a discriminator, uniform on the interval, float32 [count]."""
    low, high = interval
    return torch.rand(count, generator=source) * (high - low) + low
