"""Training a GAN: one resumable call for all configurations."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.cores import usable_cores
from pyinv.errors import DependencyError, DeviceError, InputError, PyinvWarning
from pyinv.extras import install_command
from pyinv.progress import Progress, check_progress
from pyinv.training.configurations import GanConfiguration
from pyinv.validation import as_numpy, shape_text, whole_number

try:
    import torch
except ImportError:
    raise DependencyError(f"training needs PyTorch: {install_command('export')}") from None

from pyinv.training.adversaries import Adversaries
from pyinv.training.checkpoint import write_weights
from pyinv.training.folder import TrainingData, TrainingFolder
from pyinv.training.loop import run_training, torch_settings

__all__ = ["TrainedGan", "check_device", "check_pixels", "check_threads", "train_gan"]


@dataclass(frozen=True)
class TrainedGan:
    """A finished training.

    Attributes:
        folder: the training's folder.
        configuration: the training's configuration.
        bundles: the bundle of each batch-norm mode, "eval", "batch" or both.
        weights: file with the exported generator's state dict, for ``pyinv.models``.
    """

    folder: Path
    configuration: GanConfiguration
    bundles: dict[str, Path]
    weights: Path


def train_gan(
    configuration: GanConfiguration,
    images: Any,
    folder: str | os.PathLike[str],
    *,
    data_name: str,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool | Progress | None = None,
    say: Callable[[str], None] | None = None,
    overwrite: bool = False,
    checkpoint_seconds: float = 60.0,
) -> TrainedGan:
    r"""Train a generator against a discriminator, and export it.

    In each iteration the discriminator D and then the generator G make one step of Adam, on the
    same latents z. D minimises the binary cross-entropy of its logits for real images x and for
    G(z), against labels drawn for each image from the configuration's intervals. G minimises the
    non-saturating loss $-\log \sigma(D(G(z)))$ (Goodfellow et al. 2014, section 3).

    If the configuration has ``averaging``, the average of G's weights is exported,
    $\bar w \leftarrow a_t \bar w + (1 - a_t) w$ with $a_t = \min(a, (1 + t) / (10 +
    t))$. Its batch-norm statistics are measured on generated batches with these weights.

    The folder contains ``configuration.json``; ``checkpoint.pt``; ``losses.csv``; in
    ``samples``, the images of 64 latents, after each tenth of the iterations; ``generator.pt``, the
    exported state dict; ``generator.bundle`` and, if the configuration asks for batch statistics,
    ``generator-batch.bundle``.

    Calling it again on the folder of an unfinished training resumes from the checkpoint. The final
    weights are those of an uninterrupted training: bit-identical on a CPU with the same number of
    threads and the same PyTorch, otherwise up to rounding, which training amplifies. The times of
    checkpoints do not affect the results. A finished folder is returned unchanged. Raise
    ``iterations`` to extend a training. Only one training can run in a folder at a time.

    Args:
        configuration: the configuration.
        images: uint8 [N, C, H, W] of the configuration's ``image_shape``, at least one batch.
        folder: output folder, created if necessary.
        data_name: name of the images, for the bundle's manifest.
        device: "cpu", "cuda", "cuda:1" and so on. Runs on a GPU are not bit-reproducible.
        threads: number of CPU threads; None uses every core available to this process.
        progress: None or False for no reports, True for a progress bar on standard error, or a
            function that is called with a dict of "iteration", "iterations", "discriminator_loss",
            "generator_loss" and "seconds".
        say: called with a line of text for each event other than an iteration; without
            ``progress``, also with the losses and the remaining time whenever samples are written.
        overwrite: start over in a folder that contains another training.
        checkpoint_seconds: time between checkpoints.

    Raises:
        InputError: invalid images, or the folder contains another training or one whose checkpoint
            is damaged or missing.
        OutputError: the folder contains other files, is used by a running training, or cannot be
            written to. The last checkpoint is unchanged.
        RunError: a loss or weight became NaN or infinite. The last checkpoint is unchanged.
        DeviceError: the device does not exist.
        KeyboardInterrupt: Ctrl-C, after the current iteration and a checkpoint. A second Ctrl-C
            interrupts at once.

    Examples:
        >>> digits = load_dataset("mnist/", image_shape=(1, 28, 28))
        >>> train_gan(CONFIGURATIONS["creswell"], digits.images, "digits", data_name="mnist")
    """
    pixels = check_pixels(
        images,
        configuration.image_shape,
        configuration.batch_size,
        configuration.training_images,
    )
    where = check_device(device)
    count = check_threads(threads)
    check_progress(progress)
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    data = TrainingData(data_name, len(pixels), digest)
    say = say or (lambda line: None)
    with (
        TrainingFolder(Path(folder), configuration, data, overwrite=overwrite) as opened,
        torch_settings(count),
    ):
        trained = TrainedGan(opened.path, configuration, opened.bundles, opened.weights)
        run_training(
            opened,
            lambda: Adversaries(configuration, pixels, where),
            lambda adversaries: _export(adversaries, opened, say),
            progress=progress,
            say=say,
            checkpoint_seconds=checkpoint_seconds,
        )
    return trained


def _export(adversaries: Adversaries, folder: TrainingFolder, say: Callable[[str], None]) -> None:
    from pyinv.export import export

    configuration = folder.configuration
    sampler = adversaries.sampler().cpu()
    sampler.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    write_weights(folder.weights, sampler)
    for mode in folder.missing():
        say(f"exporting {folder.bundles[mode]}")
        with warnings.catch_warnings():
            # The value range is that of the training images, even if generated ones exceed it.
            warnings.filterwarnings("ignore", ".*is that the right range", PyinvWarning)
            export(
                sampler,
                folder.bundles[mode],
                latent_shape=(configuration.latent_size,),
                prior=configuration.prior,
                losses=configuration.losses,
                value_range=adversaries.value_range,
                batch_norm=mode,
                name=configuration.name,
                overwrite=True,
                origin=folder.origin,
            )
        say(f"wrote {folder.bundles[mode]}")


def check_pixels(
    images: Any, shape: tuple[int, int, int], batch_size: int, limit: int | None = None
) -> NDArray[np.uint8]:
    """Return the images to train on, the first ``limit`` of ``images``.

    Raises:
        InputError: not uint8 [N, *shape], or fewer than a batch.
    """
    expected = f"uint8 [N, {shape_text(shape)}]"
    array = as_numpy(images, "images", expected)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != shape:
        raise InputError(
            f"images must be {expected}, got {array.dtype} [{shape_text(array.shape)}]; "
            "pyinv.datasets.load_dataset makes them so"
        )
    pixels: NDArray[np.uint8] = array[:limit]
    if len(pixels) < batch_size:
        raise InputError(
            f"images must fill a batch of {batch_size}, got {len(pixels)} to train "
            "on; give more, or a smaller batch_size (--batch-size)"
        )
    return pixels


def check_device(name: str) -> torch.device:
    """Return the device of this name; raise DeviceError if it does not exist."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f'device must be "cpu", "cuda" or "cuda:1" (a number), got {name!r}')
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceError(
            f'PyTorch sees {count} GPUs, got device={name!r}; use device="cpu"'
            + (", or a lower number" if count else ", or a PyTorch with CUDA")
        )
    return device


def check_threads(threads: int | None) -> int:
    """Return the number of threads to use; raise InputError if it is invalid."""
    if threads is None:
        return usable_cores()
    return whole_number("threads", threads, at_least=1, or_else="None")
