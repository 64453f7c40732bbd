"""Trace a bundle's functions from a traced generator: forward, objectives, normal equations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from ..capture.trace import Shapes, TracedGenerator, refuse_randomness, trace_decomposed
from ..passes.peak_memory import bytes_per_target
from .jvp import Tangents
from .losses import Loss, check_loss, inverse_total, mean_over_pixels
from .normal_equations import normal_equations

__all__ = ["trace_functions"]

# Chunks of directions; the graph has a copy of the generator for each.
_MOST_CHUNKS = 16


def trace_functions(
    traced: TracedGenerator,
    losses: Sequence[Loss],
    shapes: Shapes,
    *,
    value_range: tuple[float, float],
    solved: Sequence[Loss] = (),
    most_bytes_per_target: int = 1 << 28,
) -> fx.GraphModule:
    """Trace the bundle's functions as one graph, using only operators that ONNX has.

    The graph's inputs are latent, image and, where ``shapes`` has them, condition and weights. Its
    outputs are
    the generated image, then loss [B] and d loss / d latent [B, d] for each loss, then gradient
    [B, d] and gram [B, d, d] for each loss in ``solved``.

    Args:
        traced: the generator, from trace_generator.
        losses: the losses of the objectives.
        shapes: one target's shapes.
        value_range: of the images.
        solved: the losses to trace normal equations for; least-squares losses.
        most_bytes_per_target: the approximate limit on the memory of one target's tangents. To
            stay within it, the latent's directions are split into up to 16 chunks.
    """
    losses = [loss.for_images(shapes.target) for loss in losses]
    tracing = "the generator"
    generator = traced.module
    activation = (
        traced.output_activation.operator if traced.output_activation.fits(value_range) else ""
    )
    inputs = list(shapes.inputs.values())
    basic = None
    if solved:
        basic = trace_decomposed(
            generator,
            [shapes.inputs[name] for name in shapes.generator_inputs],
            describe=lambda: "the generator",
            keep_detach=True,
        )

    def functions(latent: Tensor, target: Tensor, *others: Tensor) -> list[Tensor]:
        nonlocal tracing
        condition, weights = others, None
        if shapes.weighted:
            condition, weights = others[:-1], others[-1]
        latent = latent.detach().requires_grad_(True)
        with torch.enable_grad():
            seen, *others = generator(latent, *condition)
            ends = {activation: others[0]} if activation else {}
            outputs = [(seen if shapes.observed is None else others[-1]).detach()]
            for loss in losses:
                tracing = f"the objective with loss {loss.name!r}"
                outputs += _value_and_gradient(loss, seen, target, weights, latent, ends)
        if basic is not None:
            tracing = "the generator's tangents"
            tangents = Tangents(basic, (latent.detach(), *condition))
            chunks = _chunks(basic, shapes, most_bytes_per_target)
            outputs += normal_equations(solved, tangents, target, weights, activation, chunks)
        return outputs

    module = trace_decomposed(functions, inputs, describe=lambda: tracing)
    refuse_randomness(module.graph, "a loss")
    return module


def _chunks(basic: fx.GraphModule, shapes: Shapes, most_bytes: int) -> list[tuple[int, int]]:
    """Return each chunk's first direction and its number of directions."""
    size = shapes.latent_size
    jacobian = 4 * size * math.prod(shapes.target)
    # Tangents in one direction take as much memory as the generator's activations.
    count = max(1, (most_bytes - jacobian) // max(1, bytes_per_target(basic)))
    count = max(count, -(-size // _MOST_CHUNKS))
    return [(first, min(count, size - first)) for first in range(0, size, count)]


def _value_and_gradient(
    loss: Loss,
    image: Tensor,
    target: Tensor,
    weights: Tensor | None,
    latent: Tensor,
    before: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    if not loss.per_pixel:
        value = loss.value(image, target)
        check_loss(value, latent.shape[0], loss.name)
        (gradient,) = torch.autograd.grad(value.sum(), latent, retain_graph=True)
        return value.detach(), gradient
    activation = next((name for name in loss.before_activation if name in before), None)
    with torch.no_grad():
        if activation is not None:
            end = before[activation]
            losses, direction, factor = loss.before_activation[activation](end, image, target)
        else:
            assert loss.cotangent is not None
            end = image
            losses, direction, factor = loss.cotangent(image, target)
        value = mean_over_pixels(losses, weights)
        scale = inverse_total(weights, losses) * factor
        if weights is not None:
            direction, scale = direction * weights, scale.unsqueeze(1)
    (gradient,) = torch.autograd.grad(end, latent, direction, retain_graph=True)
    return value, gradient * scale
