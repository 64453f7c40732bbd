"""Export a PyTorch generator to a bundle."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyinv
from pyinv.bundle import BATCH_NORM_MODES, MAX_SOLVED, RUNTIMES, FileRecord, Function, Manifest
from pyinv.caution import has_strict, warn
from pyinv.conditions import Condition
from pyinv.errors import BundleError, DependencyError, ExportError
from pyinv.priors import PRIORS, Normal, Prior, Uniform

from .capture.inputs import with_inputs
from .capture.noise import NOISE_MODES, with_noise
from .capture.onnx_file import OnnxModule
from .capture.output import OneOutput, check_output
from .capture.trace import Shapes, TracedGenerator, prepare, trace_generator, uncompiled
from .check import Reference, check_file
from .derivatives.losses import GivenLosses, Loss, resolve_losses, try_losses
from .encoder import check_encoder, write_encoder
from .generator import (
    TRIED,
    check_bounds,
    check_generator,
    check_independence,
    check_reading,
    check_value_range,
)
from .observation import Observed, check_observation, prepare_observation, write_observation
from .origin import checked_origin
from .passes.output_activation import OutputActivation
from .preconditioner import write_preconditioner
from .runtimes.onnx import OPSET
from .staging import check_target, staged
from .writer import write_functions

__all__ = ["check_shape", "export"]


@has_strict(ExportError)
@torch.inference_mode(False)
@torch.enable_grad()
def export(
    generator: nn.Module,
    path: str | os.PathLike[str],
    *,
    latent_shape: int | Sequence[int],
    prior: Prior,
    losses: GivenLosses | None = None,
    normal_equations: bool | None = None,
    value_range: tuple[float, float] | None = None,
    batch_norm: str = "eval",
    inputs: Mapping[str, Any] | None = None,
    condition_shape: int | Sequence[int] | None = None,
    output: str | int | None = None,
    noise: str | None = None,
    noise_seed: int = 0,
    encoder: nn.Module | None = None,
    observe: Callable[[Any], Any] | None = None,
    weights: bool = False,
    runtimes: str | Iterable[str] = ("onnx",),
    name: str | None = None,
    origin: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    strict: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Export a generator to a bundle, with one objective and its gradient per loss.

    The bundle has these functions:

    - ``forward``: latent [B, d] -> image [B, *image_shape];
    - an objective per loss: latent [B, d], image [B, *image_shape] -> loss [B], gradient [B, d] =
      d loss_b / d latent_b;
    - normal equations for each loss that is a mean of squares: the objective's outputs and gram
      [B, d, d] = 2 / P J^T J, with J the derivative of the squared quantity and P the number of
      values in an image;
    - with ``encoder``, also ``encode``: image [B, *image_shape] -> latent [B, d].

    An image here is what the generator makes of one latent. Its shape may be [C, H, W], or any
    other with one axis or more: a vector [n], audio [C, T], a volume [C, D, H, W].

    Each also takes condition [B, n], with n columns for all that is given per target. Latents of
    any shape are flattened to d. Before the bundle appears at ``path``, each function is run in its
    runtime and compared with PyTorch at several batch sizes: max |difference| <= 1e-5 max |value|
    (or PyTorch's own rounding error, where that is larger). A failed export leaves nothing behind.

    The generator is copied to float32 on the CPU and put in eval mode there. The original is not
    changed; it may be on any device and in half precision.

    Args:
        generator: maps [B, *latent_shape] (and ``inputs``) to images [B, C, H, W], or to a tensor
            [B, ...] of any other shape. May also be a module from torch.jit.load, script or
            trace, or from ``load_onnx``.
        path: the bundle's folder. Must be missing or empty unless ``overwrite``.
        latent_shape: one latent's shape: 100, (100,) or (100, 1, 1).
        prior: the distribution of latents, ``Uniform`` or ``Normal``.
        losses: any of "mse", "l1", "bce", "whitened", ``whitened(...)``, ``perceptual(...)`` and
            torch callables (image, target) -> [B]; a mapping gives names. bce maps ``value_range``
            to [0, 1]; whitened needs a generator that ends in a tanh or sigmoid whose values fill
            ``value_range``. Each image's loss must depend on that image alone. By default mse, and
            whitened where the generator allows it.
        normal_equations: whether to write the normal equations of mse and whitened, which
            Levenberg-Marquardt needs. None writes them where they exist, which is for
            batch_norm="eval" and at most 512 latent components. True raises an error where they do
            not.
        value_range: the values of black and white, or in general the lowest and highest value of
            the images that the generator was trained on: (-1, 1), (0, 1), ... None takes it from a
            final tanh (-1, 1) or sigmoid (0, 1), including any scaling that follows, and for other
            generators from 64 images, with a warning. A generator without a last activation may
            overshoot: an output outside the range given only causes a warning, and the manifest's
            ``bounded`` is then False. With bce it is an error, because bce has no value there.
        batch_norm: "eval" folds running statistics into the weights; "batch" uses the statistics
            of each batch, and the gradient is then that of the summed loss.
        inputs: what the generator takes beside the latent, by the names of forward's arguments;
            the latent is the first argument that is not named. ``Label(classes)``,
            ``OneHot(classes)`` and ``Condition(shape)`` are given for each target when inverting:
            integers [B], one-hot vectors [B, classes] and floats [B, *shape] for the generator.
            Numbers, strings, bools, None and tensors are fixed: the same for all targets.
        condition_shape: short for ``inputs`` with ``Condition(condition_shape)`` as the second
            argument.
        noise: for generators that draw noise in forward, with torch.randn, rand, normal_ and the
            like. "freeze" draws it once, the same for all images. "latent" makes normal noise [B,
            ...] a part of the latent, which then has shape [d + number of noise values], the noise
            last.
        noise_seed: the seed of frozen noise.
        output: which tensor is the image, for a generator that returns several: a key or index of
            the dictionary, tuple or list that it returns, or an attribute of the object.
        encoder: maps targets [B, *image_shape] in ``value_range`` (and the conditions) to
            latents, [B, *latent_shape] or [B, d]. The bundle then has the function ``encode``,
            which ``Inverter.encode`` and ``invert(init="encoder")`` use.
        observe: a fixed, differentiable A, if targets are y = A(x), observations of images x: a
            blur, downsampling, a projection, a measurement matrix. A module or function that maps
            images [B, *image_shape] to targets [B, ...] of any shape; of a physics operator of
            deepinv, its method ``A`` is used, which adds no noise. Losses and normal equations are
            then those of A(G(z)), latents are still turned into images, and the bundle also has the
            function ``observe``: image [B, *image_shape] -> target [B, *target_shape]. Targets may
            have any finite values, because A's need not lie in ``value_range``.
        weights: let each target have weights per pixel, for ``invert(weights=...)``: for masks,
            inpainting, and pixels of different noise. The objectives and normal equations then also
            take weights of the target's shape, and losses are weighted means, sum(w l) / sum(w).
            The losses must be means over pixels: mse, l1, bce, whitened.
        runtimes: the runtimes to export for, one or both of "onnx" and "torchscript". The first is
            the default when the bundle is opened.
        name: the bundle's name; the generator's class name by default.
        origin: where the generator comes from, for people and reports: JSON values, such as
            {"data": "mnist", "iterations": 2000}. Stored in the manifest.
        overwrite: replace an existing bundle.
        strict: raise an ExportError instead of a ``PyinvWarning`` about a likely mistake, such as a
            value range that the generator's last activation contradicts.
        progress: called with a line about each step.

    Returns:
        The bundle's path.

    Raises:
        ExportError: the generator or a loss cannot be exported, or the result does not agree with
            PyTorch.
        OutputError: the path is taken or cannot be written.
        DependencyError: the runtimes include "onnx", and ONNX Runtime is not installed.

    Examples:
        >>> export(netG, "faces.bundle", latent_shape=(100, 1, 1), prior=Normal())
        >>> export(
        ...     biggan, "biggan.bundle", latent_shape=128, prior=Normal(),
        ...     inputs={"class_label": OneHot(1000), "truncation": 0.4},
        ... )
    """
    say = progress or (lambda line: None)
    generator = uncompiled(generator)
    latent_sizes = check_shape("latent_shape", latent_shape)
    second = None
    if condition_shape is not None:
        second = Condition(check_shape("condition_shape", condition_shape))
    output = check_output(output)
    given = None if value_range is None else _range(value_range)
    if batch_norm not in BATCH_NORM_MODES:
        raise ExportError(f"batch_norm must be 'eval' or 'batch', got {batch_norm!r}")
    if noise is not None and noise not in NOISE_MODES:
        raise ExportError(f"noise must be 'freeze' or 'latent', got {noise!r}")
    if not isinstance(prior, Uniform | Normal):
        raise ExportError(f"prior must be {PRIORS}, got {prior!r}")
    if not isinstance(weights, bool):
        raise ExportError(
            f"weights must be True or False, got {type(weights).__name__}: the weights themselves "
            "are given to Inverter.invert"
        )
    resolve = partial(resolve_losses, "mse" if losses is None else losses, weighted=weights)
    resolved = resolve(value_range=given or (-1.0, 1.0))
    solve = _wants_normal_equations(normal_equations, resolved, latent_sizes, batch_norm)
    chosen = _runtimes(runtimes)
    origin = checked_origin(origin)
    target = Path(path)
    check_target(target, overwrite=overwrite)

    module = prepare(generator, batch_norm=batch_norm)
    named = with_inputs(module, inputs, second, latent_sizes)
    observes = None if observe is None else prepare_observation(observe)
    prepared: nn.Module = OneOutput(named, output)
    if noise is not None:
        prepared, latent_sizes = with_noise(
            prepared, latent_sizes, named.conditions, prior, noise, seed=noise_seed
        )
        solve = _wants_normal_equations(normal_equations, resolved, latent_sizes, batch_norm)
    image_shape, found = check_generator(prepared, latent_sizes, named.conditions, prior, noise)
    shapes = Shapes(latent_sizes, image_shape, named.conditions, weights)
    traced = None
    if given is None:
        say("tracing the generator")
        traced = trace_generator(prepared, shapes, batch_norm=batch_norm)
        own = traced.output_activation.value_range
        low, high = own or found
        if not low < high or (own is None and any(loss.bounded for loss in resolved)):
            ending = traced.output_activation.operator
            raise ExportError(
                f"value_range must be given: the generator ends in {ending}, which has no fixed "
                "range; give that of the training images, such as (-1, 1)"
            )
        check_value_range(None, (low, high), found, traced.output_activation)
        resolved = resolve(value_range=(low, high))
        bounded = own is not None
    else:
        low, high = given
        bounded = check_bounds(found, given, () if observes else resolved)
    if observes is not None:
        reference = Reference(prepared, shapes, prior=prior, value_range=(low, high))
        with torch.no_grad():
            images = reference.image(reference.draw(TRIED, seed=3))
        observed = check_observation(observes, images, (low, high), resolved)
        shapes = replace(shapes, observed=observed)
    try_losses(resolved, shapes.target, (low, high))
    encodes = None if encoder is None else check_encoder(encoder, shapes, (low, high))
    reference = Reference(prepared, shapes, prior=prior, value_range=(low, high), observe=observes)
    if isinstance(generator, torch.jit.ScriptModule) and batch_norm == "eval":
        check_reading(generator, named, output, reference)
    if isinstance(module, OnnxModule) and noise is None and batch_norm == "eval":
        drawn = reference.arguments(reference.draw(TRIED, seed=1))
        check_file(module, named.arguments(*drawn)[0])

    if observes is not None:
        say("tracing the generator and its observation")
        traced = trace_generator(Observed(prepared, observes), shapes, batch_norm=batch_norm)
    elif traced is None:
        say("tracing the generator")
        traced = trace_generator(prepared, shapes, batch_norm=batch_norm)
    if batch_norm == "eval":
        check_independence(reference)
    if losses is None and traced.output_activation.fits((low, high)):
        resolved += resolve_losses("whitened", value_range=(low, high), weighted=weights)
    _check_output_activation(traced.output_activation, (low, high), resolved)
    if given is not None:
        # With observe, the last activation is the observation's.
        activation = None if observes is not None else traced.output_activation
        check_value_range(given, given, found, activation)
    if traced.reduced:
        warn(
            "the generator asks for float16 or bfloat16; the bundle computes in float32 throughout"
        )
    for loss in resolved:
        expected = getattr(loss.value, "value_range", None)
        if expected not in (None, (low, high)):
            warn(
                f"the loss {loss.name} expects images in ({expected[0]:g}, {expected[1]:g}), and "
                f"value_range is ({low:g}, {high:g}): give both the same"
            )
    solved = [loss for loss in resolved if loss.is_least_squares] if solve else []

    with staged(target) as staging:
        try:
            functions = write_functions(staging, traced, reference, resolved, solved, chosen, say)
        except ExportError as error:
            if normal_equations or not solved:
                raise _with_cause(error, traced) from error
            # The other functions may still export; if not, this call raises the error.
            for file in staging.iterdir():
                file.unlink()
            functions = write_functions(staging, traced, reference, resolved, (), chosen, say)
            warn(f"the bundle gets no normal equations: {error}")
        if observes is not None:
            functions += write_observation(staging, observes, shapes, (low, high), chosen, say)
        if encodes is not None:
            functions += write_encoder(staging, encodes, chosen, say)
        preconditioner = None
        if batch_norm == "eval":
            say("averaging the generator's curvature")
            preconditioner = write_preconditioner(staging, reference)
        manifest = _manifest(staging, functions, reference, batch_norm)
        manifest = replace(manifest, preconditioner=preconditioner)
        manifest = replace(manifest, bounded=bounded, name=name or _name(generator), origin=origin)
        manifest.write(staging)
    return target


def _with_cause(error: ExportError, traced: TracedGenerator) -> ExportError:
    """Add to an error what is known of the generator's code."""
    text = str(error)
    used = re.search(r"uses (\w+::\w+),", text)
    # The gradient of a network's operator is named for that operator.
    line = traced.lines.get(used[1].removesuffix("_backward"), "") if used else ""
    if used and line:
        return ExportError(text.replace(used[0], f"uses {used[1]} (at {line}),"))
    if traced.functions and "gradient is off" in text:
        names = ", ".join(traced.functions)
        return ExportError(
            f"{text}; the backward of {names} may not be the derivative of its forward: write a "
            "gradient of your own as y = x + (f(x) - x).detach()"
        )
    return error


def _wants_normal_equations(
    given: bool | None, losses: Sequence[Loss], latent_shape: Sequence[int], batch_norm: str
) -> bool:
    if given is not None and not isinstance(given, bool):
        raise ExportError(f"normal_equations must be True, False or None, got {given!r}")
    size = math.prod(latent_shape)
    unmet = ""
    if batch_norm != "eval":
        unmet = "images that do not depend on one another: export with batch_norm='eval'"
    elif size > MAX_SOLVED:
        unmet = (
            f"a latent of at most {MAX_SOLVED} components, and this one has {size}: leave "
            "them out, and use a recipe that needs gradients only, such as pyinv.recipes.default"
        )
    elif not any(loss.is_least_squares for loss in losses):
        unmet = "a loss that is a mean of squares: add 'mse' or 'whitened' to losses"
    if given and unmet:
        raise ExportError(f"normal_equations=True needs {unmet}")
    return given is not False and not unmet


def _check_output_activation(
    activation: OutputActivation, value_range: tuple[float, float], losses: Sequence[Loss]
) -> None:
    for loss in losses:
        if loss.needs_activation and not activation.fits(value_range):
            low, high = value_range
            raise ExportError(
                f"loss {loss.name!r} needs a generator that ends in tanh or sigmoid with values in "
                f"value_range [{low:g}, {high:g}], this one ends in {activation.describe()}: use "
                "another loss"
            )


def _name(generator: nn.Module) -> str:
    """The generator's class name; for TorchScript, the original class's; for ONNX, the file's."""
    if isinstance(generator, torch.jit.ScriptModule):
        return str(generator.original_name)
    if isinstance(generator, OnnxModule):
        return generator.path.stem
    return type(generator).__name__


def _manifest(
    folder: Path, functions: Sequence[Function], reference: Reference, batch_norm: str
) -> Manifest:
    shapes = reference.shapes
    files = list(dict.fromkeys(function.file for function in functions))
    files += [file.name for file in sorted(folder.iterdir()) if file.name not in files]
    exporter: dict[str, Any] = {
        "pyinv": pyinv.__version__,
        # Drop the build's label, so that a bundle does not depend on it.
        "torch": torch.__version__.split("+")[0],
    }
    if any(function.runtime == "onnx" for function in functions):
        exporter["onnx_opset"] = OPSET
    try:
        return Manifest(
            latent_shape=shapes.latent,
            image_shape=shapes.image,
            observation_shape=shapes.observed,
            value_range=reference.value_range,
            prior=reference.prior,
            functions=tuple(functions),
            files={file: FileRecord.of(folder / file) for file in files},
            batch_norm=batch_norm,
            conditions=shapes.conditions,
            weights=shapes.weighted,
            exporter=exporter,
        )
    except BundleError as error:
        raise ExportError(str(error)) from error


def check_shape(what: str, given: int | Sequence[int]) -> tuple[int, ...]:
    """Return a shape as a tuple, or raise ExportError if it is not one."""
    try:
        sizes = (given,) if isinstance(given, int) else tuple(int(size) for size in given)
    except (TypeError, ValueError):
        sizes = ()
    if not sizes or any(size < 1 for size in sizes):
        raise ExportError(f"{what} must be a number or a tuple of numbers >= 1, got {given!r}")
    return sizes


def _runtimes(given: str | Iterable[str]) -> tuple[str, ...]:
    known = f"any of {', '.join(map(repr, RUNTIMES))}"
    try:
        chosen = (given,) if isinstance(given, str) else tuple(given)
    except TypeError:
        raise ExportError(f"runtimes must be names, got {given!r}: give {known}") from None
    if not chosen:
        raise ExportError(f"runtimes is empty: give {known}")
    for runtime in chosen:
        if runtime not in RUNTIMES:
            raise ExportError(f"unknown runtime {runtime!r}: give {known}")
        if chosen.count(runtime) > 1:
            raise ExportError(f"runtime {runtime!r} is given twice: give each once")
    if "onnx" in chosen:
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise DependencyError(
                "the files for ONNX Runtime are checked with it, and it is not installed: "
                "pip install onnxruntime, or onnxruntime-gpu; or export with runtimes='torchscript'"
            ) from error
    return chosen


def _range(given: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in given)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ExportError(f"value_range must be (lowest, highest), got {given!r}")
    return low, high
