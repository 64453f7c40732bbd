"""Observations: the fixed operator A of targets y = A(G(z)), checked and exported as a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyinv.bundle import Function
from pyinv.errors import ExportError

from .capture.portable import portable
from .capture.trace import Shapes, prepare, trace_observation
from .check import NetworkReference
from .derivatives.losses import Loss
from .diagnostics import first_line, quiet
from .writer import write_network

# The number of images that are also observed without the others.
_ALONE = 3

__all__ = ["Observed", "check_observation", "prepare_observation", "write_observation"]


class _Operator(nn.Module):
    """A module's method, or a function, as a module."""

    def __init__(self, owner: nn.Module | None, function: str | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.owner = owner
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        function = self.function
        if isinstance(function, str):
            function = getattr(self.owner, function)
        return function(image)


class Observed(nn.Module):
    """A generator that returns the observation of its image, and the image."""

    def __init__(self, generator: nn.Module, observe: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.observe = observe

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        image = self.generator(*inputs)
        return self.observe(image), image


def prepare_observation(observe: Any) -> nn.Module:
    """Return ``export``'s argument ``observe`` as a module, prepared as generators are.

    Raises:
        ExportError: it is neither a module nor callable, or cannot be copied.
    """
    owner = getattr(observe, "__self__", None)
    if isinstance(owner, nn.Module):
        observe = _Operator(owner, str(observe.__name__))
    elif callable(getattr(type(observe), "A", None)) and isinstance(observe, nn.Module):
        # A physics operator of deepinv: called itself, it adds noise.
        observe = _Operator(observe, "A")
    elif not isinstance(observe, nn.Module):
        if not callable(observe):
            raise ExportError(
                "observe must be a torch.nn.Module or a function of images, got "
                f"{type(observe).__name__}: wrap a matrix as nn.Sequential(nn.Flatten(), nn.Linear)"
            )
        observe = _Operator(None, observe)
    return prepare(observe, batch_norm="eval", what="observe")


def check_observation(
    observe: nn.Module, image: Tensor, value_range: tuple[float, float], losses: Sequence[Loss]
) -> tuple[int, ...]:
    """Check a prepared operator on images [B, *image_shape], and return one target's shape.

    Raises:
        ExportError: it does not take such images, or does not return one differentiable tensor of
            floats per image, or a loss has no value there.
    """
    given = f"images [B, {', '.join(map(str, image.shape[1:]))}]"
    image = image.detach().requires_grad_(True)
    try:
        with quiet(), torch.random.fork_rng(devices=[]), torch.enable_grad(), portable():
            seen, again = observe(image), observe(image)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"observe does not take the generator's {given}: {first_line(error)}"
        ) from error
    if not isinstance(seen, Tensor):
        raise ExportError(
            f"observe must return one tensor, it returned {type(seen).__name__}: wrap it in a "
            "module that returns one"
        )
    if seen.ndim < 2 or seen.shape[0] != len(image) or seen.numel() == 0:
        raise ExportError(
            "observe must return one observation [...] per image, that is [B, ...], it returned "
            f"{list(seen.shape)} for {len(image)} images"
        )
    if not seen.is_floating_point():
        way = "return real and imaginary parts" if seen.is_complex() else "convert them"
        raise ExportError(f"observe must return floats, it returned {seen.dtype}: {way}")
    if not bool(torch.isfinite(seen).all()):
        raise ExportError("observe returned NaN or infinity for images of the generator")
    if not torch.allclose(seen, again, rtol=1e-5, atol=1e-6):
        raise ExportError(
            "observe returned different values for the same images: it draws noise; give the "
            "operator without noise, such as physics.A"
        )
    with quiet(), torch.no_grad(), portable():
        alone = observe(image[:_ALONE])
    if not torch.allclose(alone, seen[:_ALONE], rtol=1e-4, atol=1e-5):
        raise ExportError(
            "observe returned another observation for an image in a smaller batch: let it observe "
            "each image alone; a module with batch norm that a function calls must be in eval mode"
        )
    (gradient,) = (
        torch.autograd.grad(seen, image, torch.randn_like(seen), allow_unused=True)
        if seen.requires_grad
        else (None,)
    )
    if gradient is None or not bool(gradient.any()):
        raise ExportError(
            "observe has no gradient with respect to the images: it rounds or detaches them; give "
            "a differentiable operator"
        )
    seen = seen.detach()
    low, high = value_range
    least, most = float(seen.min()), float(seen.max())
    bounded = [loss.name for loss in losses if loss.bounded]
    if bounded and (least < low or most > high):
        raise ExportError(
            f"observe's values lie in [{least:.3g}, {most:.3g}], outside value_range ({low:g}, "
            f"{high:g}), where {bounded[0]} has no value: use another loss"
        )
    return tuple(seen.shape[1:])


class _Reference(NetworkReference):
    """Compute observations in plain PyTorch."""

    def draw(self, count: int, *, seed: int) -> dict[str, Tensor]:
        """Draw rough and smooth images in the value range."""
        random = torch.Generator().manual_seed(seed)
        return {"image": self.images(self.shapes.image, count, random)}

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the targets [B, *target_shape] of images [B, *image_shape]."""
        with torch.no_grad(), portable():
            return {"target": self.network(inputs["image"])}


def write_observation(
    folder: Path,
    observe: nn.Module,
    shapes: Shapes,
    value_range: tuple[float, float],
    runtimes: Sequence[str],
    say: Callable[[str], None],
) -> list[Function]:
    """Write the function ``observe`` for each runtime into a bundle's folder, and check it.

    Raises:
        ExportError: the operator cannot be exported, or the written function differs from PyTorch.
    """
    graph = trace_observation(observe, shapes)
    reference = _Reference(observe, shapes, value_range)
    inputs = {"image": shapes.image, "latent": (shapes.latent_size,)}
    return write_network(
        folder, "observe", graph, inputs, ("image",), "target", reference, runtimes, say
    )
