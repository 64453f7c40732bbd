"""Check a generator before export: its inputs, its output, and the output's range."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pyinv.caution import warn
from pyinv.conditions import Input
from pyinv.errors import ExportError
from pyinv.priors import Prior

from .capture.inputs import NamedInputs
from .capture.output import OneOutput
from .capture.trace import Shapes
from .check import Reference
from .derivatives.losses import Loss
from .diagnostics import first_line, quiet
from .passes.output_activation import OutputActivation

__all__ = [
    "TRIED",
    "check_bounds",
    "check_generator",
    "check_independence",
    "check_reading",
    "check_value_range",
]

# The number of latents that a generator is checked on.
TRIED = 64
# Values outside by at most this fraction of the range's width are attributed to rounding.
_RANGE_SLACK = 1e-5
_ALONE = 3


def check_generator(
    generator: nn.Module,
    latent_shape: tuple[int, ...],
    conditions: Mapping[str, Input],
    prior: Prior,
    noise: str | None = None,
) -> tuple[tuple[int, ...], tuple[float, float]]:
    """Check a prepared generator by running it on a few latents, before any work starts.

    Returns:
        the shape of one of its outputs, and the lowest and highest of their values.

    Raises:
        ExportError: the generator does not take such latents, or does not return one tensor per
            latent.
    """
    shapes = Shapes(latent_shape, (1,), conditions)
    reference = Reference(generator, shapes, prior=prior, value_range=(-1.0, 1.0))  # not used here
    inputs = reference.draw(TRIED, seed=0)
    given = f"a latent of shape {['B', *latent_shape]}".replace("'", "")
    given += "".join(f" and {name} ({condition})" for name, condition in conditions.items())
    try:
        # If the generator draws random numbers, the caller's random state must not change.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            image, again = reference.image(inputs), reference.image(inputs)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the generator does not take {given}: {first_line(error)}; "
            "check latent_shape and inputs"
        ) from error
    if image.ndim < 2 or image.shape[0] != TRIED or image.numel() == 0:
        raise ExportError(
            "the generator must return one output per latent, such as images [B, C, H, W] or "
            f"vectors [B, n], it returned {list(image.shape)} for {TRIED} latents"
        )
    if image.layout != torch.strided:
        raise ExportError(
            f"the generator must return a dense tensor, it returned {image.layout}: call to_dense()"
        )
    if not image.is_floating_point():
        raise ExportError(f"the generator must return floats, it returned {image.dtype}")
    if not bool(torch.isfinite(image).all()):
        raise ExportError("the generator returned NaN or infinity: check its weights")
    if not torch.allclose(image, again, rtol=1e-5, atol=1e-6):
        raise ExportError(
            "the generator returned different images for the same latents: it draws noise or drops "
            "out in eval mode; "
            + (
                "noise='freeze' fixes noise, noise='latent' makes it part of the latent "
                "(--noise on the command line)"
                if noise is None
                else "noise fixes draws by torch.randn, rand, normal and the like: use one of these"
            )
        )
    _check_gradient(reference, inputs)
    return tuple(image.shape[1:]), (float(image.min()), float(image.max()))


def check_independence(reference: Reference) -> None:
    """Check that an image does not depend on the other latents of its batch.

    Raises:
        ExportError: it does.
    """
    inputs = reference.draw(TRIED, seed=2)
    few = {name: rows[:_ALONE] for name, rows in inputs.items()}
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        images = reference.seen(inputs)[:_ALONE]
        try:
            alone = reference.seen(few)
        except Exception as error:
            raise ExportError(
                f"the generator fails in PyTorch at batch {_ALONE}: {first_line(error)}"
            ) from error
    tolerance = 1e-3 * float(images.abs().max())
    if alone.shape != images.shape or not torch.allclose(alone, images, rtol=0, atol=tolerance):
        raise ExportError(
            "the generator returned another image for a latent in a smaller batch: let it compute "
            "each image from its own latent, without means, maxima or positions of the batch"
        )


def _check_gradient(reference: Reference, inputs: dict[str, Tensor]) -> None:
    """Raise an error if images have no gradient; warn if it is zero at all latents tried."""
    latent = inputs["latent"].clone().requires_grad_(True)
    gradient = None
    with quiet(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        image = reference.image({**inputs, "latent": latent})
        if image.requires_grad:
            weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
            (gradient,) = torch.autograd.grad(image, latent, weights, allow_unused=True)
    if gradient is None:
        raise ExportError(
            "the generator's images have no gradient with respect to the latent: its forward runs "
            "under torch.no_grad or torch.inference_mode, or detaches the latent; remove that"
        )
    if not gradient.any():
        warn(
            f"the gradient of the generator's images is 0 at all of {TRIED} latents: does it round "
            "them, or are all pixels saturated? Nothing can be recovered where the gradient is 0"
        )


def check_reading(
    generator: torch.jit.ScriptModule,
    named: NamedInputs,
    output: str | int | None,
    reference: Reference,
) -> None:
    """Compare a TorchScript module's images with those of the graph read from it."""
    inputs = reference.draw(TRIED, seed=1)
    try:
        with quiet(), torch.no_grad():
            own = OneOutput(named.of(copy.deepcopy(generator).cpu().float().eval()), output)
            images = Reference(
                own, reference.shapes, prior=reference.prior, value_range=reference.value_range
            ).image(inputs)
    except Exception:
        # The module needs a device or precision that this machine does not have.
        return
    if not torch.allclose(images, reference.image(inputs), rtol=1e-4, atol=1e-5):
        raise ExportError(
            "the TorchScript module computes other images than its graph says: "
            "export the torch.nn.Module that it was made from"
        )


def check_bounds(
    found: tuple[float, float], value_range: tuple[float, float], losses: Sequence[Loss]
) -> bool:
    """Return whether images with these lowest and highest values lie in the value range.

    Raises:
        ExportError: they do not, and a loss is not defined there.
    """
    low, high = value_range
    slack = _RANGE_SLACK * (high - low)
    inside = found[0] >= low - slack and found[1] <= high + slack
    bounded = [loss.name for loss in losses if loss.bounded]
    if bounded and not inside:
        raise ExportError(
            f"the generator's values lie in {_interval(found)}, outside value_range "
            f"({low:g}, {high:g}), where {bounded[0]} has no value"
        )
    return inside


def check_value_range(
    given: tuple[float, float] | None,
    value_range: tuple[float, float],
    found: tuple[float, float],
    activation: OutputActivation | None,
) -> None:
    """Warn about a value range that is probably not the generator's.

    Args:
        given: the range that the caller gave, if any.
        value_range: the range of the bundle.
        found: the lowest and highest value of some images.
        activation: the generator's last activation; None if it is not known.
    """
    low, high = value_range
    own = None if activation is None else activation.value_range
    ends = "" if activation is None else f"the generator ends in {activation.describe()}"
    if given is None and own is None:
        warn(
            f"value_range is not given, and {ends}, which has no fixed range: using that of "
            f"{TRIED} images, {_interval(found)}; give the range of the training images, such as "
            "(-1, 1) or (0, 1)"
        )
    elif given is None:
        if own != (-1.0, 1.0):
            warn(
                f"value_range is not given, and {ends}: using ({low:g}, {high:g}); give it if it "
                "is right"
            )
    elif activation is not None and own is not None:
        if not activation.fits(value_range):
            wider = low <= own[0] and own[1] <= high
            warn(
                f"{ends}, and value_range is ({low:g}, {high:g}): give value_range="
                f"({own[0]:g}, {own[1]:g}), if that is the range of the training images"
                + ("; a wider one is for targets with noise outside of it" if wider else "")
            )
    elif not check_bounds(found, value_range, ()):
        warn(
            f"the generator's values lie in {_interval(found)}, outside value_range "
            f"({low:g}, {high:g}): is that the right range?"
        )
    elif found[0] >= (low + high) / 2 or found[1] <= (low + high) / 2:
        warn(
            f"the generator's values lie in {_interval(found)}, in one half of value_range "
            f"({low:g}, {high:g}): is that the right range?"
        )


def _interval(found: tuple[float, float]) -> str:
    return f"[{found[0]:.3g}, {found[1]:.3g}]"
