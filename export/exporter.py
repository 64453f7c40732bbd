"""Export: from a PyTorch generator to a bundle."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import pyinv
from pyinv.bundle import MAX_SOLVED, RUNTIMES, FileRecord, Function, Manifest
from pyinv.errors import BundleError, ExportError
from pyinv.priors import Normal, Prior, Uniform

from .capture.trace import Shapes, TracedGenerator, prepare, trace_generator
from .check import Reference, check_function, onnx_function, torchscript_function
from .derivatives.functions import trace_functions
from .derivatives.losses import GivenLosses, Loss, resolve_losses, try_losses
from .diagnostics import first_line, quiet
from .encoder import check_encoder, write_encoder
from .origin import checked_origin
from .passes.graph import Signature
from .passes.output_activation import OutputActivation
from .passes.peak_memory import bytes_per_target
from .runtimes.onnx import OPSET, WEIGHTS_FILE, WeightsFile, to_onnx, write_onnx
from .runtimes.onnx_operators import operators_in
from .runtimes.torchscript_writer import FUNCTIONS_FILE, method_names, write_torchscript
from .staging import check_target, staged

__all__ = ["export"]

_RUNTIME_NAMES = {"onnx": "ONNX", "torchscript": "TorchScript"}
_BATCH_NORM_MODES = ("eval", "batch")
_RANGE_SAMPLES = 64
# What normal equations may take for one target before their directions are split up.
_MOST_BYTES_PER_TARGET = 1 << 28
# Values this far outside, relative to the range's width, are rounding.
_RANGE_SLACK = 1e-5
# Of a warning in export itself: its two decorators lie between.
_CALLER = 4


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
    value_range: tuple[float, float] = (-1.0, 1.0),
    batch_norm: str = "eval",
    condition_shape: int | Sequence[int] | None = None,
    encoder: nn.Module | None = None,
    runtimes: str | Iterable[str] = ("onnx",),
    name: str | None = None,
    origin: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a generator, and one objective with its gradient per loss, as a bundle.

    The bundle's functions are ``forward``: latent [B, d] -> image [B, C, H, W]; for every loss an
    objective: latent [B, d], image [B, C, H, W] -> loss [B], gradient [B, d] = d loss_b / d
    latent_b; and for losses that are a mean of squares its normal equations: the same and gram
    [B, d, d] = 2 / P J^T J, with J the derivative of what is squared and P the number of pixels.
    With ``encoder`` there is also ``encode``: image [B, C, H, W] -> latent [B, d]. Each takes
    condition [B, k] as well where there is one. Latents of any shape are flattened to d. Before the
    bundle appears at ``path``, each function is run in its runtime and compared with PyTorch at
    several batches: max |difference| <= 1e-5 max |value| (or PyTorch's own rounding error, where
    that is larger). A failed export leaves nothing behind.

    The generator is copied to float32 on the CPU and put in eval mode there; it is not changed
    itself, and it may be on any device and in half precision.

    Args:
        generator: maps [B, *latent_shape] (and a condition [B, k]) to images [B, C, H, W]. What
            torch.jit.load, script or trace returned will do as well.
        path: the bundle's folder. Must not exist, or be empty, unless ``overwrite``.
        latent_shape: one latent's shape: 100, (100,) or (100, 1, 1).
        prior: what latents are drawn from, ``Uniform`` or ``Normal``.
        losses: any of "mse", "l1", "bce", "whitened", ``whitened(...)``, ``perceptual(...)`` and
            torch callables (image, target) -> [B]; a mapping gives names. bce maps ``value_range``
            to [0, 1]; whitened needs a generator that ends in a tanh or sigmoid that fills it. Each
            image's loss must depend on that image alone. By default mse, and whitened where it can
            be.
        normal_equations: whether to write the normal equations of mse and whitened, which
            Levenberg-Marquardt needs. None: where they exist, which is for batch_norm="eval" and
            at most 512 latent components. True: insist.
        value_range: lowest and highest pixel value. An output outside draws a warning, as some
            generators overshoot, and the manifest's ``bounded`` is then False; for bce it is an
            error, as bce has no value there.
        batch_norm: "eval" folds running statistics into the weights; "batch" keeps the statistics
            of each batch, and the gradient is then that of the summed loss.
        condition_shape: one condition's shape, 10 or (10,), when the generator takes a second
            argument.
        encoder: maps images [B, C, H, W] in ``value_range`` (and a condition [B, k]) to latents,
            [B, *latent_shape] or [B, d]. The bundle then has the function ``encode``, which
            ``Inverter.encode`` and ``invert(init="encoder")`` use.
        runtimes: what is to run the bundle, one or both of "onnx" and "torchscript"; where the
            bundle is opened and nothing else is said, the first is taken.
        name: the bundle's name; the generator's class name by default.
        origin: where the generator comes from, for people and reports: JSON values, such as
            {"data": "mnist", "iterations": 2000}. Kept in the manifest.
        overwrite: replace an existing bundle.
        progress: called with a line about each step.

    Returns:
        The bundle's path.

    Raises:
        ExportError: the generator or a loss cannot be exported, or the result does not agree.
        OutputError: the path is taken or cannot be written.

    Examples:
        >>> export(netG, "faces.bundle", latent_shape=(100, 1, 1), prior=Normal())
    """
    say = progress or (lambda line: None)
    latent_sizes = _shape("latent_shape", latent_shape)
    condition_sizes = (
        None if condition_shape is None else _shape("condition_shape", condition_shape)
    )
    if condition_sizes is not None and len(condition_sizes) != 1:
        raise ExportError(
            f"condition_shape must be one number, got {list(condition_sizes)}: "
            "flatten the condition and reshape it in the generator"
        )
    low, high = _range(value_range)
    if batch_norm not in _BATCH_NORM_MODES:
        raise ExportError(f"batch_norm must be 'eval' or 'batch', got {batch_norm!r}")
    if not isinstance(prior, Uniform | Normal):
        raise ExportError(f"prior must be pyinv.Uniform or pyinv.Normal, got {prior!r}")
    resolved = resolve_losses("mse" if losses is None else losses, value_range=(low, high))
    solve = _wants_normal_equations(normal_equations, resolved, latent_sizes, batch_norm)
    wanted = _runtimes(runtimes)
    origin = checked_origin(origin)
    target = Path(path)
    check_target(target, overwrite=overwrite)

    prepared = prepare(generator, batch_norm=batch_norm)
    image_shape, bounded = _try(
        prepared, latent_sizes, condition_sizes, prior, (low, high), resolved
    )
    try_losses(resolved, image_shape, (low, high))
    shapes = Shapes(latent_sizes, image_shape, condition_sizes)
    encodes = None if encoder is None else check_encoder(encoder, shapes, (low, high))
    reference = Reference(prepared, shapes, prior=prior, value_range=(low, high))
    if isinstance(generator, torch.jit.ScriptModule) and batch_norm == "eval":
        _check_reading(generator, reference)

    say("tracing the generator")
    traced = trace_generator(prepared, shapes, batch_norm=batch_norm)
    if losses is None and traced.output_activation.fits((low, high)):
        resolved += resolve_losses("whitened", value_range=(low, high))
    _check_output_activation(traced.output_activation, (low, high), resolved)
    solved = [loss for loss in resolved if loss.is_least_squares] if solve else []

    with staged(target) as staging:
        try:
            functions = _write(staging, traced, reference, resolved, solved, wanted, say)
        except ExportError as error:
            if normal_equations or not solved:
                raise
            # The rest may be fine; where it is not, that is what fails now.
            for file in staging.iterdir():
                file.unlink()
            functions = _write(staging, traced, reference, resolved, (), wanted, say)
            warnings.warn(f"the bundle gets no normal equations: {error}", stacklevel=_CALLER)
        if encodes is not None:
            functions += write_encoder(staging, encodes, wanted, say)
        manifest = _manifest(staging, functions, reference, batch_norm)
        manifest = replace(manifest, bounded=bounded, name=name or _name(generator), origin=origin)
        manifest.write(staging)
    return target


@dataclass(frozen=True)
class _Planned:
    """A function that is to be written, whatever the runtime.

    bytes_per_target: of normal equations, else None.
    """

    name: str
    loss: Loss | None
    signature: Signature
    bytes_per_target: int | None = None


def _wants_normal_equations(
    given: bool | None, losses: Sequence[Loss], latent_shape: Sequence[int], batch_norm: str
) -> bool:
    if given is not None and not isinstance(given, bool):
        raise ExportError(f"normal_equations must be True, False or None, got {given!r}")
    size = math.prod(latent_shape)
    lacking = ""
    if batch_norm != "eval":
        lacking = "images do not depend on one another: export with batch_norm='eval'"
    elif size > MAX_SOLVED:
        lacking = (
            f"a latent has at most {MAX_SOLVED} components, and this one has {size}: leave "
            "them out, and use a recipe of first order, such as pyinv.recipes.default"
        )
    elif not any(loss.is_least_squares for loss in losses):
        lacking = "a loss is a mean of squares: add 'mse' or 'whitened' to losses"
    if given and lacking:
        raise ExportError(f"normal_equations=True, which there are only where {lacking}")
    return given is not False and not lacking


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


def _write(
    folder: Path,
    traced: TracedGenerator,
    reference: Reference,
    losses: Sequence[Loss],
    solved: Sequence[Loss],
    runtimes: Sequence[str],
    say: Callable[[str], None],
) -> list[Function]:
    """Trace, write and check all functions: with normal equations of the losses ``solved``."""
    say(f"tracing the gradient of {', '.join(loss.name for loss in losses)}")
    whole = trace_functions(
        traced,
        losses,
        reference.shapes,
        value_range=reference.value_range,
        solved=solved,
        most_bytes_per_target=_MOST_BYTES_PER_TARGET,
    )
    planned = _plan(whole, losses, solved, reference.shapes)
    return _write_functions(folder, reference, whole, planned, runtimes, say)


def _plan(
    whole: fx.GraphModule, losses: Sequence[Loss], solved: Sequence[Loss], shapes: Shapes
) -> list[_Planned]:
    """The functions, with their places among the graph's outputs."""
    names = ["latent", "image", *(["condition"] if shapes.condition is not None else [])]
    forward = Signature(tuple(name for name in names if name != "image"), {0: "image"})
    planned = [_Planned("forward", None, forward)]
    places = {}
    for i, loss in enumerate(losses):
        places[loss.name] = 1 + 2 * i
        outputs = {1 + 2 * i: "loss", 2 + 2 * i: "gradient"}
        planned.append(_Planned("objective", loss, Signature(tuple(names), outputs)))
    for i, loss in enumerate(solved):
        first = 1 + 2 * len(losses) + 2 * i
        outputs = {places[loss.name]: "loss", first: "gradient", first + 1: "gram"}
        planned.append(
            _Planned(
                "normal_equations",
                loss,
                Signature(tuple(names), outputs),
                bytes_per_target(whole, outputs),
            )
        )
    return planned


def _write_functions(
    folder: Path,
    reference: Reference,
    whole: fx.GraphModule,
    planned: Sequence[_Planned],
    runtimes: Sequence[str],
    say: Callable[[str], None],
) -> list[Function]:
    shapes = reference.shapes
    inputs: dict[str, tuple[int, ...]] = {"latent": (shapes.latent_size,), "image": shapes.image}
    if shapes.condition is not None:
        inputs["condition"] = shapes.condition
    functions: list[Function] = []
    for runtime in runtimes:
        say(f"writing {_RUNTIME_NAMES[runtime]}")
        write = _write_onnx if runtime == "onnx" else _write_torchscript
        written = write(folder, whole, planned, inputs)
        for function, plan in zip(written, planned, strict=True):
            path = folder / function.file
            if function.method is None:
                name, run = function.file, onnx_function(path)
            else:
                name = f"{function.file}: {function.method}"
                run = torchscript_function(path, function.method)
            worst = check_function(name, run, reference, plan.name, plan.loss)
            say(f"{name} agrees with PyTorch to {worst:.1e}")
        functions += written
    return functions


def _write_onnx(
    folder: Path,
    whole: fx.GraphModule,
    planned: Sequence[_Planned],
    inputs: Mapping[str, tuple[int, ...]],
) -> list[Function]:
    functions = []
    models = to_onnx(whole, [plan.signature for plan in planned], inputs=inputs)
    with open(folder / WEIGHTS_FILE, "wb") as stream:
        weights = WeightsFile(stream)
        for plan, model in zip(planned, models, strict=True):
            loss = "" if plan.loss is None else f"_{plan.loss.name}"
            file = f"{plan.name}{loss}.onnx"
            write_onnx(model, folder / file, weights)
            function = _function(plan, "onnx", file)
            if plan.loss is not None:
                operators, readers = operators_in(folder / file)
                function = replace(function, operators=operators, input_operators=readers)
            functions.append(function)
    return functions


def _write_torchscript(
    folder: Path,
    whole: fx.GraphModule,
    planned: Sequence[_Planned],
    inputs: Mapping[str, tuple[int, ...]],
) -> list[Function]:
    methods = method_names((plan.name, plan.loss.name if plan.loss else "") for plan in planned)
    write_torchscript(
        whole,
        {method: plan.signature for method, plan in zip(methods, planned, strict=True)},
        folder / FUNCTIONS_FILE,
        inputs=tuple(inputs),
    )
    return [
        _function(plan, "torchscript", FUNCTIONS_FILE, method)
        for method, plan in zip(methods, planned, strict=True)
    ]


def _function(plan: _Planned, runtime: str, file: str, method: str | None = None) -> Function:
    return Function(
        name=plan.name,
        runtime=runtime,
        file=file,
        loss=None if plan.loss is None else plan.loss.name,
        method=method,
        bytes_per_target=plan.bytes_per_target,
    )


def _name(generator: nn.Module) -> str:
    """The generator's class, of TorchScript the one that it was made from."""
    if isinstance(generator, torch.jit.ScriptModule):
        return str(generator.original_name)
    return type(generator).__name__


def _manifest(
    folder: Path, functions: Sequence[Function], reference: Reference, batch_norm: str
) -> Manifest:
    shapes = reference.shapes
    files = list(dict.fromkeys(function.file for function in functions))
    files += [file.name for file in sorted(folder.iterdir()) if file.name not in files]
    exporter: dict[str, Any] = {
        "pyinv": pyinv.__version__,
        # Without the build's label, so that a bundle does not depend on it.
        "torch": torch.__version__.split("+")[0],
    }
    if any(function.runtime == "onnx" for function in functions):
        exporter["onnx_opset"] = OPSET
    try:
        return Manifest(
            latent_shape=shapes.latent,
            image_shape=shapes.image,
            value_range=reference.value_range,
            prior=reference.prior,
            functions=tuple(functions),
            files={file: FileRecord.of(folder / file) for file in files},
            batch_norm=batch_norm,
            condition_shape=shapes.condition,
            exporter=exporter,
        )
    except BundleError as error:
        raise ExportError(str(error)) from error


def _shape(what: str, given: int | Sequence[int]) -> tuple[int, ...]:
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
        wanted = (given,) if isinstance(given, str) else tuple(given)
    except TypeError:
        raise ExportError(f"runtimes must be names, got {given!r}: give {known}") from None
    if not wanted:
        raise ExportError(f"runtimes is empty: give {known}")
    for runtime in wanted:
        if runtime not in RUNTIMES:
            raise ExportError(f"unknown runtime {runtime!r}: give {known}")
        if wanted.count(runtime) > 1:
            raise ExportError(f"runtime {runtime!r} is given twice: give each once")
    return wanted


def _range(given: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in given)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ExportError(f"value_range must be (lowest, highest), got {given!r}")
    return low, high


def _try(
    generator: nn.Module,
    latent_shape: tuple[int, ...],
    condition_shape: tuple[int, ...] | None,
    prior: Prior,
    value_range: tuple[float, float],
    losses: Sequence[Loss],
) -> tuple[tuple[int, int, int], bool]:
    """Run the generator on some latents, and say what is wrong with it.

    Returns:
        its image shape, and whether these images lie in the value range.
    """
    shapes = Shapes(latent_shape, (1, 1, 1), condition_shape)
    reference = Reference(generator, shapes, prior=prior, value_range=value_range)
    inputs = reference.draw(_RANGE_SAMPLES, seed=0)
    given = f"a latent of shape {['B', *latent_shape]}".replace("'", "")
    if condition_shape is not None:
        given += f" and a condition of shape [B, {condition_shape[0]}]"
    try:
        # Noise that the generator draws must not change the caller's random state.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            image = reference.image(inputs)
            again = reference.image(inputs)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the generator does not take {given}: {first_line(error)}; "
            "check latent_shape and condition_shape"
        ) from error
    if not isinstance(image, Tensor):
        raise ExportError(
            f"the generator must return one image tensor [B, C, H, W], it returned "
            f"{type(image).__name__}: wrap it in a module that returns the image alone"
        )
    if image.ndim != 4 or image.shape[0] != _RANGE_SAMPLES:
        raise ExportError(
            f"the generator must return images [B, C, H, W], it returned {list(image.shape)} for "
            f"{_RANGE_SAMPLES} latents"
        )
    if not image.is_floating_point():
        raise ExportError(f"the generator must return floats, it returned {image.dtype}")
    if not bool(torch.isfinite(image).all()):
        raise ExportError("the generator returned NaN or infinity: check its weights")
    if not torch.allclose(image, again, rtol=1e-5, atol=1e-6):
        raise ExportError(
            "the generator returned different images for the same latents: it draws noise or drops "
            "out in eval mode; give it fixed noise before export"
        )
    bounded = _check_range(image, value_range, losses)
    _, channels, height, width = image.shape
    return (channels, height, width), bounded


def _check_reading(generator: torch.jit.ScriptModule, reference: Reference) -> None:
    """Compare the images of a TorchScript module with those of its graph as it was read."""
    inputs = reference.draw(_RANGE_SAMPLES, seed=1)
    try:
        with quiet(), torch.no_grad():
            own = copy.deepcopy(generator).cpu().float().eval()
            images = Reference(
                own, reference.shapes, prior=reference.prior, value_range=reference.value_range
            ).image(inputs)
    except Exception:
        # Made for a device or a precision that this machine has not: there is nothing to compare.
        return
    if not torch.allclose(images, reference.image(inputs), rtol=1e-4, atol=1e-5):
        raise ExportError(
            "the TorchScript module computes other images than its graph says: "
            "export the torch.nn.Module that it was made from"
        )


def _check_range(image: Tensor, value_range: tuple[float, float], losses: Sequence[Loss]) -> bool:
    """Return whether images lie in the value range; warn, or raise, where they do not."""
    low, high = value_range
    slack = _RANGE_SLACK * (high - low)
    least, most = float(image.min()), float(image.max())
    if least >= low - slack and most <= high + slack:
        return True
    found = f"the generator's values lie in [{least:.3g}, {most:.3g}], outside value_range"
    bounded = [loss.name for loss in losses if loss.bounded]
    if bounded:
        raise ExportError(f"{found} ({low:g}, {high:g}), where {bounded[0]} has no value")
    warnings.warn(
        f"{found} ({low:g}, {high:g}): is that the right range?",
        stacklevel=_CALLER + 2,
    )
    return False
