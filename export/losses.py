"""Losses: per-image means over pixels, written so that a baked gradient costs few passes.

A built-in loss gives its value and its derivative with respect to the image in closed form. The
constant factors of the derivative (2/P for a mean of P squares) come back separately: the exporter
multiplies the [B, d] gradient by them at the very end rather than every pixel at the beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyinv.errors import ExportError

__all__ = ["Loss", "resolve_losses"]

LossFunction = Callable[[Tensor, Tensor], Tensor]
Cotangent = tuple[Tensor, Tensor, float]

# torch.nn.functional.binary_cross_entropy's own limits, so that values agree at saturated pixels.
_LOWEST_LOG = -100.0
_SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Loss:
    """A named loss from (image, target), both [B, C, H, W], to one value per image, [B].

    value: the loss itself, differentiable.
    cotangent: None, or (image, target) -> (loss [B], direction [B, C, H, W], factor) with
        d loss_b / d image_b = factor * direction_b.
    before_activation: for generators that end in such an activation ("tanh", "sigmoid"), the same
        as cotangent from (the activation's input, image, target), and the derivative with respect
        to that input.
    value_before_activation: value for such generators, from (the activation's input, target).
    bounded: whether images outside the value range have no loss.
    """

    name: str
    value: LossFunction
    cotangent: Callable[[Tensor, Tensor], Cotangent] | None = None
    before_activation: Mapping[str, Callable[[Tensor, Tensor, Tensor], Cotangent]] = field(
        default_factory=dict
    )
    value_before_activation: Mapping[str, LossFunction] = field(default_factory=dict)
    bounded: bool = False


def _pixels(image: Tensor) -> int:
    return int(image.shape[1] * image.shape[2] * image.shape[3])


def _pixel_mean(values: Tensor) -> Tensor:
    return values.mean((1, 2, 3))


def _mse() -> Loss:
    def value(image: Tensor, target: Tensor) -> Tensor:
        return _pixel_mean((image - target) ** 2)

    def cotangent(image: Tensor, target: Tensor) -> Cotangent:
        residual = image - target
        return _pixel_mean(residual * residual), residual, 2.0 / _pixels(image)

    return Loss("mse", value, cotangent)


def _l1() -> Loss:
    def value(image: Tensor, target: Tensor) -> Tensor:
        return _pixel_mean((image - target).abs())

    def cotangent(image: Tensor, target: Tensor) -> Cotangent:
        residual = image - target
        return _pixel_mean(residual.abs()), residual.sign(), 1.0 / _pixels(image)

    return Loss("l1", value, cotangent)


def _bce(value_range: tuple[float, float]) -> Loss:
    low, high = value_range
    scale = 1.0 / (high - low)

    def unit(values: Tensor) -> Tensor:
        # Shift first: then 1 - p is exact near p = 1, where a tanh generator saturates.
        shifted = values if low == 0 else values - low
        return shifted if scale == 1 else shifted * scale

    def value(image: Tensor, target: Tensor) -> Tensor:
        return _pixel_mean(
            torch.nn.functional.binary_cross_entropy(unit(image), unit(target), reduction="none")
        )

    def cotangent(image: Tensor, target: Tensor) -> Cotangent:
        p, t = unit(image), unit(target)
        q = 1.0 - p
        log_p = p.log().clamp(min=_LOWEST_LOG)
        log_q = q.log().clamp(min=_LOWEST_LOG)
        # -(t log p + (1 - t) log q) with one product fewer.
        loss = _pixel_mean(t * (log_q - log_p) - log_q)
        direction = (p - t) / (p * q).clamp(min=_SMALLEST_VARIANCE)
        return loss, direction, scale / _pixels(image)

    # Before its saturating end a generator's bce has neither the logarithms of nearly nothing nor
    # the division by p (1 - p), in which one bit of a saturated pixel outweighs all the others:
    # with p = sigmoid(v), -(t log p + (1 - t) log(1 - p)) = softplus(v) - v t, d/dv = p - t. This
    # is torch.nn.functional.binary_cross_entropy_with_logits.
    def before_sigmoid(logit: Tensor, image: Tensor, target: Tensor) -> Cotangent:
        loss = _pixel_mean(torch.nn.functional.softplus(logit) - logit * target)
        return loss, image - target, 1.0 / _pixels(image)

    def before_tanh(half_logit: Tensor, image: Tensor, target: Tensor) -> Cotangent:
        # tanh(u) maps to p = sigmoid(2 u), and d/du = 2 (p - t) is image - target again.
        softplus = torch.nn.functional.softplus(half_logit + half_logit)
        loss = _pixel_mean(softplus - half_logit * (target + 1.0))
        return loss, image - target, 1.0 / _pixels(image)

    def with_logits(logit: Tensor, target: Tensor) -> Tensor:
        return _pixel_mean(
            torch.nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
        )

    def with_half_logits(half_logit: Tensor, target: Tensor) -> Tensor:
        return with_logits(2.0 * half_logit, (target + 1.0) / 2.0)

    if value_range == (-1.0, 1.0):
        return Loss(
            "bce",
            value,
            cotangent,
            before_activation={"tanh": before_tanh},
            value_before_activation={"tanh": with_half_logits},
            bounded=True,
        )
    if value_range == (0.0, 1.0):
        return Loss(
            "bce",
            value,
            cotangent,
            before_activation={"sigmoid": before_sigmoid},
            value_before_activation={"sigmoid": with_logits},
            bounded=True,
        )
    return Loss("bce", value, cotangent, bounded=True)


def resolve_losses(
    losses: str | LossFunction | Mapping[str, str | LossFunction] | Iterable[str | LossFunction],
    *,
    value_range: tuple[float, float],
) -> tuple[Loss, ...]:
    """Turn what a user gave as losses into Loss objects with distinct names.

    Args:
        losses: one or several of "mse", "l1", "bce" and torch callables (image, target) -> [B];
            a mapping names them, otherwise a callable is known by its ``__name__``.
        value_range: range of image values; bce maps it to [0, 1].

    Raises:
        ExportError: an unknown, unnamed or repeated loss, or none at all.
    """
    built_in = {"mse": _mse, "l1": _l1, "bce": lambda: _bce(value_range)}
    pairs: list[tuple[str | None, str | LossFunction]]
    if isinstance(losses, str) or callable(losses):
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
            if loss not in built_in:
                raise ExportError(
                    f"unknown loss {loss!r}: use one of {', '.join(built_in)}, or a torch callable"
                )
            made = built_in[loss]()
            made = replace(made, name=given_name or made.name)
        elif callable(loss):
            own_name = str(getattr(loss, "__name__", type(loss).__name__))
            made = Loss(given_name or own_name, loss)
        else:
            raise ExportError(
                f"a loss must be a name or a callable (image, target), got {type(loss).__name__}"
            )
        # The name becomes part of a file's name.
        if not isinstance(made.name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", made.name):
            raise ExportError(
                f"loss name {made.name!r} must be letters, digits, '_', '-' or '.': "
                "name it yourself with losses={'my_loss': ...}"
            )
        if made.name in resolved:
            raise ExportError(f"two losses are named {made.name!r}: name them with a mapping")
        resolved[made.name] = made
    if not resolved:
        raise ExportError("losses is empty: give at least one, for example losses=('mse',)")
    return tuple(resolved.values())
