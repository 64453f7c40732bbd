"""Losses: per-target means over values, written so that their exported gradient takes few passes.

A built-in loss gives each pixel's loss and its derivative with respect to the pixel in closed form;
``mean_over_pixels`` makes the mean of them, weighted if the target has weights. Constant factors of
the derivative are given separately: the exporter multiplies the [B, d] gradient by them, and by
1/P for a mean over P pixels, at the end, rather than every pixel at the start.

Images and pixels here are a generator's outputs of any shape [B, ...] and their values.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyinv.errors import ExportError

from ..capture.trace import prepare
from ..diagnostics import first_line

__all__ = [
    "Loss",
    "Specialised",
    "Whitened",
    "check_loss",
    "inverse_total",
    "mean_over_pixels",
    "resolve_losses",
    "try_losses",
    "whitened",
]

LossFunction = Callable[[Tensor, Tensor], Tensor]
Cotangent = tuple[Tensor, Tensor, float]
# A residual, and its derivative as a factor per pixel (None: 1) and a common factor.
Residual = tuple[Tensor, Tensor | None, float]

# The limits of torch.nn.functional.binary_cross_entropy, so that values agree at saturated pixels.
_LOWEST_LOG = -100.0
_SMALLEST_VARIANCE = 1e-12
# The number of images that a loss is checked on.
_TRIED = 2


@dataclass(frozen=True)
class Loss:
    """A named loss from (image, target), both [B, ...], to one value per image, [B].

    value: the loss as a differentiable function, of each pixel [B, ...] if ``per_pixel``.
    per_pixel: whether the loss is a mean over pixels of a loss of each pixel, and so may be
        weighted.
    cotangent: None, or (image, target) -> (losses [B, ...], directions [B, ...], factor), of each
        pixel, with d loss / d image = factor * direction.
    before_activation: like cotangent, for generators that end in the given activation ("tanh",
        "sigmoid"): a function of (the activation's input, image, target) that returns the
        derivative with respect to that input.
    value_before_activation: like value, for such generators: a function of (the activation's
        input, target).
    bounded: whether the loss is undefined for images outside the value range.
    residual: for a loss that is the mean over pixels of a squared residual, else None:
        (image, target) -> (residual, slope, factor) with d residual / d image = factor * slope.
    residual_before_activation: like residual, from (the activation's input, target).
    needs_activation: whether the loss requires a generator that ends in such an activation.
    """

    name: str
    value: LossFunction
    per_pixel: bool = False
    cotangent: Callable[[Tensor, Tensor], Cotangent] | None = None
    before_activation: Mapping[str, Callable[[Tensor, Tensor, Tensor], Cotangent]] = field(
        default_factory=dict
    )
    value_before_activation: Mapping[str, LossFunction] = field(default_factory=dict)
    bounded: bool = False
    residual: Callable[[Tensor, Tensor], Residual] | None = None
    residual_before_activation: Mapping[str, Callable[[Tensor, Tensor], Residual]] = field(
        default_factory=dict
    )
    needs_activation: bool = False

    @property
    def is_least_squares(self) -> bool:
        """Whether the loss is the mean of a squared residual and therefore has normal equations."""
        return self.residual is not None or bool(self.residual_before_activation)

    def mean(self, value: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss [B] from what ``value`` or ``value_before_activation`` returned."""
        return mean_over_pixels(value, weights) if self.per_pixel else value

    def for_images(self, shape: tuple[int, ...]) -> Loss:
        """Return the loss in the form it is traced in, for images of this shape."""
        if isinstance(self.value, Specialised):
            return replace(self, value=self.value.for_images(shape))
        return self


class Specialised(ABC):
    """A loss function that is traced in a different form than it is called in."""

    @abstractmethod
    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the loss [B] of images [B, ...]."""

    @abstractmethod
    def for_images(self, shape: tuple[int, ...]) -> LossFunction:
        """Return the function in the form it is traced in, for images of this shape."""


@dataclass(frozen=True)
class Whitened:
    """The whitened loss with given parameters; returned by ``whitened``."""

    exponent: float = 0.25
    saturation: float = 1e-4

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise ExportError(f"whitened: exponent must be at least 0, got {self.exponent!r}")
        if not 0 < self.saturation < 1:
            raise ExportError(
                f"whitened: saturation must lie between 0 and 1, got {self.saturation!r}"
            )


GivenLoss = str | LossFunction | Whitened
GivenLosses = GivenLoss | Mapping[str, GivenLoss] | Iterable[GivenLoss]


def whitened(exponent: float = 0.25, saturation: float = 1e-4) -> Whitened:
    """The whitened loss, for ``export(losses=...)``: the error before the last activation.

    For a generator tanh(F(z)) with images x in [-1, 1] it is the mean over all pixels of r^2,

        r = (1 - x^2)^exponent (F(z) - artanh(x))

    with x clamped to a distance of ``saturation`` from -1 and 1. A pixel that is closer, or beyond,
    has too few digits to determine F: there r is 0 if F(z) is at least as far out.

    Other value ranges are mapped to [-1, 1] first. A final sigmoid is written as a tanh:
    sigmoid(u) = (1 + tanh(u / 2)) / 2.

    F is piecewise linear for most generators, which benefits second-order recipes. The weight
    compensates for the noise in x that artanh amplifies: exponent 1 weights pixels as the squared
    error does, exponent 0 weights them equally. Use this loss for images that the generator made;
    photographs saturate.

    Args:
        exponent: at least 0.
        saturation: pixels closer than this to -1 or 1 count as saturated; in (0, 1).

    Raises:
        ExportError: a parameter is out of range.
    """
    return Whitened(exponent, saturation)


def mean_over_pixels(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean [B] of values [B, ...], weighted by weights [B, ...] if given."""
    axes = tuple(range(1, values.ndim))
    if weights is None:
        return values.mean(axes)
    return (values * weights).sum(axes) / weights.sum(axes)


def inverse_total(weights: Tensor | None, values: Tensor) -> Any:
    """Return what the sum over pixels of weights times values is multiplied by for the mean.

    It is 1/P, or [B] with weights.
    """
    if weights is None:
        return 1.0 / math.prod(int(size) for size in values.shape[1:])
    return weights.sum(tuple(range(1, weights.ndim))).reciprocal()


def _mse() -> Loss:
    def value(image: Tensor, target: Tensor) -> Tensor:
        return (image - target) ** 2

    def cotangent(image: Tensor, target: Tensor) -> Cotangent:
        residual = image - target
        return residual * residual, residual, 2.0

    def residual(image: Tensor, target: Tensor) -> Residual:
        return image - target, None, 1.0

    return Loss("mse", value, True, cotangent, residual=residual)


def _l1() -> Loss:
    def value(image: Tensor, target: Tensor) -> Tensor:
        return (image - target).abs()

    def cotangent(image: Tensor, target: Tensor) -> Cotangent:
        residual = image - target
        return residual.abs(), residual.sign(), 1.0

    return Loss("l1", value, True, cotangent)


def _bce(value_range: tuple[float, float]) -> Loss:
    low, high = value_range
    scale = 1.0 / (high - low)

    def unit(values: Tensor) -> Tensor:
        # Shift before scaling, so that 1 - p is exact near p = 1, where a tanh generator saturates.
        shifted = values if low == 0 else values - low
        return shifted if scale == 1 else shifted * scale

    def value(image: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy(unit(image), unit(target), reduction="none")

    def cotangent(image: Tensor, target: Tensor) -> Cotangent:
        p, t = unit(image), unit(target)
        q = 1.0 - p
        log_p = p.log().clamp(min=_LOWEST_LOG)
        log_q = q.log().clamp(min=_LOWEST_LOG)
        # -(t log p + (1 - t) log q) with one product fewer.
        direction = (p - t) / (p * q).clamp(min=_SMALLEST_VARIANCE)
        return t * (log_q - log_p) - log_q, direction, scale

    # Computed from the last activation's input, bce needs neither logarithms of values near 0 nor
    # the division by p (1 - p), in which one bit of a saturated pixel outweighs all the others:
    # with p = sigmoid(v), -(t log p + (1 - t) log(1 - p)) = softplus(v) - v t, d/dv = p - t. This
    # is torch.nn.functional.binary_cross_entropy_with_logits.
    def before_sigmoid(logit: Tensor, image: Tensor, target: Tensor) -> Cotangent:
        loss = torch.nn.functional.softplus(logit) - logit * target
        return loss, image - target, 1.0

    def before_tanh(half_logit: Tensor, image: Tensor, target: Tensor) -> Cotangent:
        # tanh(u) maps to p = sigmoid(2 u), and d/du = 2 (p - t) is image - target again.
        softplus = torch.nn.functional.softplus(half_logit + half_logit)
        return softplus - half_logit * (target + 1.0), image - target, 1.0

    def with_logits(logit: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")

    def with_half_logits(half_logit: Tensor, target: Tensor) -> Tensor:
        return with_logits(2.0 * half_logit, (target + 1.0) / 2.0)

    ends = {
        (-1.0, 1.0): ("tanh", before_tanh, with_half_logits),
        (0.0, 1.0): ("sigmoid", before_sigmoid, with_logits),
    }
    if value_range not in ends:
        return Loss("bce", value, True, cotangent, bounded=True)
    activation, before, value_before = ends[value_range]
    return Loss(
        "bce",
        value,
        True,
        cotangent,
        {activation: before},
        {activation: value_before},
        bounded=True,
    )


def _whitened(parameters: Whitened, value_range: tuple[float, float]) -> Loss:
    low, high = value_range
    scale = 2.0 / (high - low)

    def whiten(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each pixel's weight, its artanh, and whether it is not saturated."""
        # 1 + x and 1 - x of the pixel mapped to [-1, 1]. Computed from the unmapped pixel, each is
        # exact where it is small, which is where the logarithm depends on every bit.
        up = target - low if low else target
        down = high - target
        if scale != 1:
            up, down = up * scale, down * scale
        inside = torch.minimum(up, down) >= parameters.saturation
        ends = parameters.saturation, 2.0 - parameters.saturation
        up, down = up.clamp(*ends).log(), down.clamp(*ends).log()
        return torch.exp((up + down) * parameters.exponent), (up - down) * 0.5, inside

    def residual_from(half: float) -> Callable[[Tensor, Tensor], Residual]:
        def residual(end: Tensor, target: Tensor) -> Residual:
            weight, logit, inside = whiten(target)
            short = (end if half == 1 else end * half) - logit
            weight = torch.where(inside | (short * logit < 0), weight, 0.0)
            return weight * short, weight, half

        return residual

    def cotangent_from(
        residual: Callable[[Tensor, Tensor], Residual],
    ) -> Callable[[Tensor, Tensor, Tensor], Cotangent]:
        def cotangent(end: Tensor, image: Tensor, target: Tensor) -> Cotangent:
            r, slope, factor = residual(end, target)
            assert slope is not None
            return r * r, r * slope, 2.0 * factor

        return cotangent

    def value_from(residual: Callable[[Tensor, Tensor], Residual]) -> LossFunction:
        return lambda end, target: residual(end, target)[0] ** 2

    def value(image: Tensor, target: Tensor) -> Tensor:
        raise ExportError("the whitened loss needs the input of the generator's last activation")

    residuals = {"tanh": residual_from(1.0), "sigmoid": residual_from(0.5)}
    return Loss(
        "whitened",
        value,
        per_pixel=True,
        before_activation={name: cotangent_from(r) for name, r in residuals.items()},
        value_before_activation={name: value_from(r) for name, r in residuals.items()},
        residual_before_activation=residuals,
        needs_activation=True,
    )


def resolve_losses(
    losses: GivenLosses,
    *,
    value_range: tuple[float, float],
    weighted: bool = False,
) -> tuple[Loss, ...]:
    """Resolve the user's ``losses`` argument into Loss objects with distinct names.

    Args:
        losses: one or several of "mse", "l1", "bce", "whitened", ``whitened(...)`` and torch
            callables (image, target) -> [B]. A mapping names them; otherwise a callable is named
            by its ``__name__``.
        value_range: the range of image values; bce maps it to [0, 1].
        weighted: whether the losses are to be weighted means over pixels.

    Raises:
        ExportError: a loss is unknown, unnamed or repeated, cannot be weighted, or there is none.
    """
    built_in: dict[str, Callable[[], Loss]] = {
        "mse": _mse,
        "l1": _l1,
        "bce": lambda: _bce(value_range),
        "whitened": lambda: _whitened(Whitened(), value_range),
    }
    pairs: list[tuple[str | None, GivenLoss]]
    if isinstance(losses, str | Whitened) or callable(losses):
        pairs = [(None, losses)]
    elif isinstance(losses, Mapping):
        pairs = list(losses.items())
    elif isinstance(losses, Iterable):
        pairs = [(None, loss) for loss in losses]
    else:
        raise ExportError(f"losses must be names or callables, got {type(losses).__name__}")

    resolved: dict[str, Loss] = {}
    for given_name, loss in pairs:
        if isinstance(loss, str):
            if loss == "perceptual":
                raise ExportError(
                    "loss 'perceptual' needs a feature network: give "
                    "pyinv.export.perceptual(network) in its place"
                )
            if loss not in built_in:
                raise ExportError(
                    f"unknown loss {loss!r}: use one of {', '.join(built_in)}, or a torch callable"
                )
            made = built_in[loss]()
        elif isinstance(loss, Whitened):
            made = _whitened(loss, value_range)
        elif callable(loss):
            name = str(getattr(loss, "__name__", type(loss).__name__))
            made = Loss(name, _of_each_image(loss, given_name or name))
        else:
            raise ExportError(
                f"a loss must be a name or a callable (image, target), got {type(loss).__name__}"
            )
        made = replace(made, name=given_name or made.name)
        # The name becomes part of a file's name.
        if not isinstance(made.name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", made.name):
            raise ExportError(
                f"loss name {made.name!r} must be letters, digits, '_', '-' or '.': "
                "name it yourself with losses={'my_loss': ...}"
            )
        if weighted and not made.per_pixel:
            raise ExportError(
                f"loss {made.name!r} is not a mean over pixels that weights=True could weight: use "
                f"any of {', '.join(built_in)}, or export it without weights"
            )
        if made.name in resolved:
            raise ExportError(f"two losses are named {made.name!r}: name them with a mapping")
        resolved[made.name] = made
    if not resolved:
        raise ExportError("losses is empty: give at least one, for example losses=('mse',)")
    return tuple(resolved.values())


def _of_each_image(loss: LossFunction, name: str) -> LossFunction:
    """Return a user's loss as it is traced: a module is copied, and [B, 1, 1, 1] becomes [B]."""
    if isinstance(loss, Specialised):
        return loss
    if isinstance(loss, nn.Module):
        loss = prepare(loss, batch_norm="eval", what=f"loss {name!r}")

    def value(image: Tensor, target: Tensor) -> Tensor:
        values = loss(image, target)
        if isinstance(values, Tensor) and set(values.shape[1:]) == {1}:
            return values.flatten()
        return values

    return value


def try_losses(
    losses: Iterable[Loss], shape: tuple[int, ...], value_range: tuple[float, float]
) -> None:
    """Evaluate each user-defined loss once on noise, before any work starts.

    Raises:
        ExportError: a loss fails on images of this shape, or does not return one
            differentiable value per image.
    """
    low, high = value_range
    for loss in losses:
        if loss.cotangent is not None or loss.before_activation:
            continue
        random = torch.Generator().manual_seed(0)
        image, target = low + (high - low) * torch.rand(2, _TRIED, *shape, generator=random)
        image.requires_grad_(True)
        try:
            # If the loss draws random numbers, the caller's random state must not change.
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                value = loss.value(image, target)
        except ExportError as error:
            raise ExportError(f"loss {loss.name!r}: {error}") from error
        except Exception as error:
            sizes = ", ".join(map(str, shape))
            raise ExportError(
                f"loss {loss.name!r} fails on images [B, {sizes}]: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        check_loss(value, _TRIED, loss.name)
        if not value.requires_grad:
            raise ExportError(
                f"loss {loss.name!r} cannot be differentiated: compute it from the image with "
                "torch, without detach() or no_grad()"
            )


def check_loss(value: object, batch: Any, name: str) -> None:
    """Check that a loss has one value per image of a batch."""
    if not isinstance(value, Tensor) or value.ndim != 1 or value.shape[0] != batch:
        got = type(value).__name__
        if isinstance(value, Tensor):
            sizes = list(value.shape)
            batches = ["B"] if sizes and sizes[0] == batch else sizes[:1]
            got = f"[{', '.join(map(str, [*batches, *sizes[1:]]))}]"
        raise ExportError(
            f"loss {name!r} must return one value per image, [B], it returned {got}: "
            "take the mean over all axes but the first"
        )
