"""Noise that a generator draws in its forward: frozen, or made a part of the latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyinv.conditions import Input
from pyinv.errors import ExportError
from pyinv.priors import Normal, Prior

from ..diagnostics import first_line
from .inputs import draw_conditions
from .portable import portable

__all__ = ["NOISE_MODES", "with_noise"]

NOISE_MODES = ("freeze", "latent")

_NORMAL = (torch.randn, torch.randn_like, torch.normal, Tensor.normal_, nn.init.normal_)
_UNIFORM = (torch.rand, torch.rand_like, Tensor.uniform_, nn.init.uniform_)
_LIKE = (torch.randn_like, torch.rand_like)
# Functions that overwrite a tensor, and the names of their parameters.
_IN_PLACE: dict[Callable[..., Any], tuple[str, str, str]] = {
    Tensor.normal_: ("self", "mean", "std"),
    nn.init.normal_: ("tensor", "mean", "std"),
    Tensor.uniform_: ("self", "from", "to"),
    nn.init.uniform_: ("tensor", "a", "b"),
}
# Two batch sizes that no other size is likely to equal: sizes that differ are the batch.
_PROBED = (3, 5)


@dataclass(frozen=True)
class _Draw:
    """One draw: its shape, without the batch if it has one, and the function that asks for it."""

    shape: tuple[int, ...]
    by_target: bool
    normal: bool


class _Answer(TorchFunctionMode):
    """Answer calls that draw normal or uniform noise."""

    def __init__(self, answer: Callable[[tuple[Any, ...], bool], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        normal = func in _NORMAL
        if not normal and func not in _UNIFORM:
            return func(*args, **kwargs)
        if func in _LIKE:
            return self.answer(_sizes(args[0] if args else kwargs["input"]), normal)
        if func is torch.normal:
            return self._normal(*args, **kwargs)
        if func in _IN_PLACE:
            given = dict(zip(_IN_PLACE[func], args, strict=False)) | kwargs
            tensor, first, second = (given.get(name) for name in _IN_PLACE[func])
            first, second = first or 0.0, 1.0 if second is None else second
            scale = second if normal else second - first
            written: Tensor = tensor.copy_(first + scale * self.answer(_sizes(tensor), normal))
            return written
        given = kwargs.get("size", args)
        sizes = given[0] if given and isinstance(given[0], list | tuple) else given
        return self.answer(tuple(sizes), normal)

    def _normal(
        self, mean: Any = 0.0, std: Any = 1.0, size: Any = None, out: Any = None, **_: Any
    ) -> Tensor:
        """Answer torch.normal."""
        if size is None:
            given = [_sizes(value) for value in (mean, std) if isinstance(value, Tensor)]
            size = torch.broadcast_shapes(*given)
        drawn: Tensor = mean + std * self.answer(tuple(size), True)
        return drawn if out is None else out.copy_(drawn)


def _sizes(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape)


class _Noise(nn.Module):
    """A generator whose noise comes from elsewhere.

    With ``frozen``, each draw is a constant, the same for all targets. Otherwise the draws are the
    last components of the latent, which must be normal.
    """

    def __init__(
        self,
        generator: nn.Module,
        draws: Sequence[_Draw],
        latent_shape: Sequence[int],
        prior: Prior,
        *,
        frozen: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.draws = tuple(draws)
        self.latent_shape = tuple(latent_shape)
        self.prior = prior
        self.frozen = frozen
        random = torch.Generator().manual_seed(seed)
        for i, draw in enumerate(self.draws if frozen else ()):
            made = torch.randn if draw.normal else torch.rand
            self.register_buffer(f"draw_{i}", made(draw.shape, generator=random))

    def forward(self, latent: Tensor, *condition: Tensor) -> Any:
        size = math.prod(self.latent_shape)
        flat = latent.flatten(1)
        values, place, number = flat[:, size:], 0, 0

        def answer(sizes: tuple[Any, ...], normal: bool) -> Tensor:
            nonlocal place, number
            draw = self.draws[number]
            if self.frozen:
                found: Tensor = getattr(self, f"draw_{number}")
                # The code may write to its noise.
                found = (found.expand(sizes) if draw.by_target else found).clone()
            else:
                assert isinstance(self.prior, Normal)
                count = math.prod(draw.shape)
                found = values[:, place : place + count].reshape(-1, *draw.shape)
                found = (found - self.prior.mean) / self.prior.std
                place += count
            number += 1
            return found

        with _Answer(answer):
            return self.generator(flat[:, :size].reshape(-1, *self.latent_shape), *condition)


def with_noise(
    generator: nn.Module,
    latent_shape: tuple[int, ...],
    conditions: Mapping[str, Input],
    prior: Prior,
    mode: str,
    *,
    seed: int = 0,
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a prepared generator without random draws, and its latent shape.

    Args:
        generator: the prepared generator.
        latent_shape: its latent's shape.
        conditions: its conditions, by name.
        prior: the distribution of latents.
        mode: "freeze" draws each noise once, from the seed, for all targets. "latent" appends it to
            the latent, which then has shape [d + number of noise values].
        seed: the seed of frozen noise.

    Raises:
        ExportError: the generator draws no noise, or noise that cannot be part of the latent.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ExportError(f"noise_seed must be a whole number >= 0, got {seed!r}")
    draws = _probe(generator, latent_shape, conditions)
    if not draws:
        raise ExportError(
            f"noise={mode!r} needs a generator that draws noise with torch.randn, rand, normal or "
            "the like, and this one draws none: leave noise out, or draw it with one of these"
        )
    if mode == "latent":
        if not isinstance(prior, Normal):
            raise ExportError(f"noise='latent' needs a normal prior, got {prior!r}: freeze it")
        if not all(draw.normal and draw.by_target for draw in draws):
            raise ExportError(
                "noise='latent' needs normal noise [B, ...], this generator draws uniform noise or "
                "shares it between targets: use noise='freeze'"
            )
    wrapped = _Noise(generator, draws, latent_shape, prior, frozen=mode == "freeze", seed=seed)
    if mode == "freeze":
        return wrapped, latent_shape
    return wrapped, (math.prod(latent_shape) + sum(math.prod(draw.shape) for draw in draws),)


def _probe(
    generator: nn.Module, latent_shape: tuple[int, ...], conditions: Mapping[str, Input]
) -> list[_Draw]:
    """List a generator's draws."""
    probes: list[list[tuple[tuple[int, ...], bool]]] = []
    for batch in _PROBED:
        found: list[tuple[tuple[int, ...], bool]] = []

        def answer(sizes: tuple[Any, ...], normal: bool, found: Any = found) -> Tensor:
            found.append((tuple(int(size) for size in sizes), normal))
            return torch.zeros(sizes)

        inputs = [torch.zeros(batch, *latent_shape)]
        if conditions:
            random = torch.Generator().manual_seed(0)
            inputs.append(draw_conditions(conditions, batch, random=random))
        try:
            with torch.no_grad(), portable(), _Answer(answer):
                generator(*inputs)
        except Exception as error:
            raise ExportError(
                f"the generator does not take latents {[batch, *latent_shape]}: {first_line(error)}"
            ) from error
        probes.append(found)
    if len(probes[0]) != len(probes[1]):
        raise ExportError(
            "the generator draws noise once per latent: draw it for the whole batch, [B, ...]"
        )
    draws = []
    for (one, normal), (other, _) in zip(*probes, strict=True):
        by_target = bool(one) and (one[0], other[0]) == _PROBED
        if one[by_target:] != other[by_target:]:
            raise ExportError(
                f"the generator draws noise of shape {list(one)}, which depends on the number of "
                "latents in another axis than the first: draw [B, ...]"
            )
        draws.append(_Draw(one[by_target:], by_target, normal))
    return draws
