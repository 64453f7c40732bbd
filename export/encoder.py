"""Encoders: a bundle's function from images to latents, exported with the bundle or added later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyinv.bundle import Bundle, FileRecord, Function
from pyinv.errors import ExportError

from .capture.inputs import NamedInputs
from .capture.onnx_file import OnnxModule
from .capture.trace import Shapes, prepare, trace_encoder
from .check import EncoderReference, check_file
from .diagnostics import first_line
from .origin import checked_origin
from .staging import check_target, staged
from .writer import network_files, write_network

__all__ = ["CheckedEncoder", "add_encoder", "check_encoder", "write_encoder"]

_TRIED = 2


@dataclass(frozen=True)
class CheckedEncoder:
    """An encoder, prepared for export and checked against a bundle's images and latents."""

    module: nn.Module
    shapes: Shapes
    value_range: tuple[float, float]


@torch.inference_mode(False)
def add_encoder(
    bundle: Bundle | str | os.PathLike[str],
    encoder: nn.Module,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    origin: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a copy of a bundle that also has the function ``encode``.

    The bundle's original generator is not needed. If the bundle already has an encoder, it is
    replaced. As ``export`` does with generators, the encoder is copied to float32 on the CPU, put
    in eval mode, and the written function is compared with PyTorch.

    Args:
        bundle: the bundle, or its folder. It is not changed, unless ``path`` is its folder and
            ``overwrite`` is given.
        encoder: maps targets [B, *target_shape], which are images in the bundle's value range
            unless the bundle observes them (and the bundle's conditions, in the manifest's order),
            to latents, [B, *latent_shape] or [B, d].
        path: the new bundle's folder. Must be missing or empty unless ``overwrite``.
        name: the new bundle's name; None keeps the bundle's.
        origin: JSON values for the manifest that replace the bundle's; None keeps them.
        overwrite: replace an existing bundle.
        progress: called with a line about each step.

    Returns:
        The new bundle's path.

    Raises:
        BundleError: the bundle is missing or damaged.
        ExportError: the encoder does not fit the bundle or cannot be exported.
        OutputError: the path is taken or cannot be written.

    Examples:
        >>> add_encoder("faces.bundle", encoder, "faces-encoder.bundle")
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = opened.manifest
    target = Path(path)
    check_target(target, overwrite=overwrite)
    origin = manifest.origin if origin is None else checked_origin(origin)
    shapes = Shapes(manifest.latent_shape, manifest.target_shape, manifest.conditions)
    encodes = check_encoder(encoder, shapes, manifest.value_range)
    with staged(target) as folder:
        others = [function for function in manifest.functions if function.name != "encode"]
        owned = network_files("encode")
        for file in manifest.files:
            if file not in owned:
                shutil.copy2(opened.path / file, folder / file)
        added = write_encoder(folder, encodes, manifest.runtimes, progress or (lambda line: None))
        replace(
            manifest,
            functions=(*others, *added),
            files={file.name: FileRecord.of(file) for file in sorted(folder.iterdir())},
            name=manifest.name if name is None else name,
            origin=origin,
        ).write(folder)
    return target


def check_encoder(
    encoder: nn.Module, shapes: Shapes, value_range: tuple[float, float]
) -> CheckedEncoder:
    """Check an encoder by running it on a few images, before any work starts.

    Raises:
        ExportError: the encoder does not take such images, or does not return such latents.
    """
    module = prepare(encoder, batch_norm="eval", what="encoder")
    prepared = NamedInputs(module, shapes.conditions)
    inputs = EncoderReference(prepared, shapes, value_range).draw(_TRIED, seed=0)
    given = f"images {_batch_of(shapes.image)}"
    given += "".join(f" and {name} ({one})" for name, one in shapes.conditions.items())
    shapes_allowed = dict.fromkeys((shapes.latent, (shapes.latent_size,)))
    latent = " or ".join(_batch_of(shape) for shape in shapes_allowed)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = prepared(*inputs.values())
            again = prepared(*inputs.values())
            # Tracing refuses batch norm without running statistics, with an error that names it.
            alone = again[:1]
            if not _has_batch_statistics(prepared):
                alone = prepared(*(rows[:1] for rows in inputs.values()))
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the encoder does not take this bundle's {given}: {first_line(error)}; give one "
            "that was made for images of this size"
        ) from error
    if not isinstance(found, Tensor):
        raise ExportError(
            f"the encoder must return latents {latent}, it returned {type(found).__name__}: wrap "
            "it in a module that returns the latent alone"
        )
    if found.shape[:1] != (_TRIED,) or tuple(found.shape[1:]) not in shapes_allowed:
        raise ExportError(
            f"the encoder must return latents {latent}, as this bundle has them; it returned "
            f"{list(found.shape)} for {_TRIED} images: give an encoder of this generator"
        )
    if not found.is_floating_point():
        raise ExportError(
            f"the encoder must return floats, it returned {found.dtype}: convert them"
        )
    if not bool(torch.isfinite(found).all()):
        raise ExportError("the encoder must return finite latents: check its weights")
    if not torch.allclose(found, again, rtol=1e-5, atol=1e-6):
        raise ExportError(
            "the encoder returned different latents for the same images: it draws noise or drops "
            "out in eval mode; let it return the mean alone"
        )
    close = alone.shape == found[:1].shape and torch.allclose(
        found[:1], alone, rtol=1e-3, atol=1e-3 * float(found.abs().max())
    )
    if not close:
        raise ExportError(
            "the encoder returned another latent for an image that was alone in its batch: let it "
            "look at each image by itself"
        )
    if isinstance(module, OnnxModule):
        check_file(module, prepared.arguments(*inputs.values())[0])
    return CheckedEncoder(prepared, shapes, value_range)


def _has_batch_statistics(module: nn.Module) -> bool:
    return any(
        isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None
        for part in module.modules()
    )


def _batch_of(shape: Sequence[int]) -> str:
    return f"[B, {', '.join(map(str, shape))}]"


def write_encoder(
    folder: Path,
    encoder: CheckedEncoder,
    runtimes: Sequence[str],
    say: Callable[[str], None],
) -> list[Function]:
    """Write the function ``encode`` for each runtime into a bundle's folder, and check it.

    Raises:
        ExportError: the encoder cannot be exported, or the written function differs from PyTorch.
    """
    shapes = replace(encoder.shapes, weighted=False)
    say("tracing the encoder")
    graph = trace_encoder(encoder.module, shapes)
    inputs = {"image": shapes.target, **shapes.inputs}  # the image comes first
    taken = tuple(name for name in inputs if name != "latent")
    reference = EncoderReference(encoder.module, shapes, encoder.value_range)
    return write_network(folder, "encode", graph, inputs, taken, "latent", reference, runtimes, say)
