"""Training an encoder for a generator: one resumable call for all methods."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import DependencyError, InputError
from pyinv.extras import install_command
from pyinv.progress import Progress, check_progress
from pyinv.training.encoder_configurations import EncoderConfiguration

try:
    import torch
except ImportError:
    raise DependencyError(f"training needs PyTorch: {install_command('export')}") from None

from torch import nn

from pyinv.training.adversaries import STATISTICS_BATCHES, with_statistics
from pyinv.training.checkpoint import write_weights
from pyinv.training.draws import Purpose
from pyinv.training.encoder_folder import EncoderData, EncoderFolder
from pyinv.training.encoder_methods import Phase, Setting, check_method, make_phases
from pyinv.training.folder import BUNDLES
from pyinv.training.frozen import FrozenGenerator, open_generator
from pyinv.training.gan import check_device, check_pixels, check_threads
from pyinv.training.loop import run_training, torch_settings

__all__ = ["EncoderTraining", "TrainedEncoder", "train_encoder"]

GRID_IMAGES = 32
_COLUMNS = 8


@dataclass(frozen=True)
class TrainedEncoder:
    """A finished training.

    Attributes:
        folder: the training's folder.
        configuration: the training's configuration.
        bundle: the generator's bundle, with the function ``encode``.
        weights: file with the exported encoder's state dict.
    """

    folder: Path
    configuration: EncoderConfiguration
    bundle: Path
    weights: Path


def train_encoder(
    configuration: EncoderConfiguration,
    generator: Any,
    folder: str | os.PathLike[str],
    *,
    data: Any = None,
    data_name: str = "images",
    device: str = "cpu",
    threads: int | None = None,
    progress: bool | Progress | None = None,
    say: Callable[[str], None] | None = None,
    overwrite: bool = False,
    checkpoint_seconds: float = 60.0,
) -> TrainedEncoder:
    r"""Train an encoder E for a frozen generator G, and write G's bundle with ``encode``.

    ``configuration.method`` determines what E minimises, with z from the prior, x = G(z), and
    $d_L$ and $d_I$ the latent and the image loss:

    =============  ====================================================  ==========================
    method         minimised over E                                      source
    =============  ====================================================  ==========================
    direct         $d_L(z, E(x))$                                  Luo et al. 2017, sec. 4.1
    aegan          $d_I(G(E(x)), x)$                               Luo et al. 2017, eq. 5-8
    latent+image   $d_L(z, E(x)) + \lambda d_I(G(E(x)), x)$        Bau et al. 2019, eq. 3-5
    bigan          a GAN of pairs; G and a discriminator train along     Donahue et al. 2017, eq. 3
    layers         an inverse for each layer of G, then E fine-tuned     Bau et al. 2019, eq. 6-9
    =============  ====================================================  ==========================

    During training, E uses the batch-norm statistics of each batch. The exported encoder uses
    statistics measured at the end, over 32 batches.

    The folder contains ``configuration.json``; ``checkpoint.pt``; ``losses.csv``; in ``samples``,
    after each tenth of the iterations, images x above G(E(x)); ``encoder.pt``, the exported state
    dict; and ``generator.bundle``. With bigan, that bundle contains the generator that was trained
    jointly, whose weights are in ``generator.pt``.

    Calling it again on the folder of an unfinished training resumes from the checkpoint. The final
    weights are those of an uninterrupted training: bit-identical on a CPU with the same number of
    threads and the same versions of PyTorch and ONNX Runtime. A finished folder is returned
    unchanged. For methods with one phase, raise ``iterations`` to extend a training.

    Args:
        configuration: the configuration.
        generator: a ``FrozenGenerator`` from ``open_generator``, or its first argument: a bundle, a
            training's folder, module:factory, or a TorchScript or ONNX file.
        folder: output folder, created if necessary.
        data: real images for bigan and for the ``real_share`` of aegan, uint8 [N, C, H, W] of the
            generator's image shape, at least one batch. Without them, bigan uses generated images.
        data_name: name of the images, for the bundle's manifest.
        device: "cpu", "cuda", "cuda:1" and so on. Runs on a GPU are not bit-reproducible.
        threads: number of CPU threads; None uses every core available to this process.
        progress: None or False for no reports, True for a progress bar on standard error, or a
            function that is called with a dict of "iteration", "iterations", "seconds" and each
            loss, such as "latent_loss".
        say: called with a line of text for each event other than an iteration; without
            ``progress``, also with the losses and the remaining time after each tenth of the
            iterations.
        overwrite: start over in a folder that contains another training.
        checkpoint_seconds: time between checkpoints.

    Raises:
        InputError: the generator or images do not fit the method, or the folder contains another
            training or one whose checkpoint is damaged or missing.
        BundleError, ExportError: the generator cannot be read.
        OutputError: the folder contains other files, is used by a running training, or cannot be
            written to. The last checkpoint is unchanged.
        RunError: a loss or weight became NaN or infinite. The last checkpoint is unchanged.
        DeviceError: the device does not exist.
        KeyboardInterrupt: Ctrl-C, after the current iteration and a checkpoint. A second Ctrl-C
            interrupts at once.

    Examples:
        >>> settings = get_encoder_configuration("luo-32", "aegan")
        >>> trained = train_encoder(settings, "faces.bundle", "faces-encoder")
        >>> Inverter(trained.bundle).invert(images, init="encoder")
    """
    where = check_device(device)
    count = check_threads(threads)
    check_progress(progress)
    say = say or (lambda line: None)
    with torch_settings(count):
        frozen = generator
        if not isinstance(frozen, FrozenGenerator):
            frozen = open_generator(generator, device=where, threads=count)
        frozen.to(where)
        configuration = check_method(configuration, frozen, has_data=data is not None)
        _refuse_its_folder(frozen, Path(folder))
        pixels = None
        if data is not None:
            pixels = check_pixels(data, frozen.image_shape, _real_images(configuration))
        setting = Setting(configuration, frozen, where, pixels)
        with EncoderFolder(
            Path(folder),
            configuration,
            _data(data_name, pixels, frozen),
            generator=frozen.origin,
            overwrite=overwrite,
        ) as opened:
            run_training(
                opened,
                lambda: EncoderTraining(setting),
                lambda training: _export(training, opened, say),
                progress=progress,
                say=say,
                checkpoint_seconds=checkpoint_seconds,
            )
    return TrainedEncoder(opened.path, configuration, opened.bundles["eval"], opened.weights)


class EncoderTraining:
    """Runs the phases of a method in order; see ``loop.Training``.

    Args:
        setting: the setting, shared by all phases.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.phases = make_phases(setting)
        self.iteration = 0
        self.whole = True
        self._rows: list[list[tuple[float, ...]]] = [[] for _ in self.phases]

    @property
    def losses(self) -> list[tuple[str, tuple[str, ...], list[tuple[float, ...]]]]:
        """The name, loss names, and losses in each iteration, of each phase."""
        pairs = zip(self.phases, self._rows, strict=True)
        return [(phase.name, phase.losses, rows) for phase, rows in pairs]

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses of the last iteration."""
        return self._at(max(0, self.iteration - 1))[1].losses

    @property
    def value_range(self) -> tuple[float, float]:
        """Value range of ``samples``."""
        return self.phases[-1].value_range

    def step(self) -> tuple[float, ...]:
        """Run one iteration; return its losses."""
        self.whole = False
        number, phase = self._at(self.iteration)
        local = self.iteration - phase.first
        rate = phase.schedule.rate(local)
        for solver in phase.solvers.values():
            for group in solver.param_groups:
                group["lr"] = rate
        found = phase.step(local)
        losses = tuple(found[name] for name in phase.losses)
        self._rows[number].append(losses)
        self.iteration += 1
        self.whole = True
        return losses

    def encoder(self) -> nn.Module | None:
        """Return a copy of the encoder as it would be exported now, in eval mode."""
        phase = self._at(max(0, self.iteration - 1))[1]
        network = phase.encoder()
        if network is None:
            return None
        batches = (phase.batch(n, Purpose.STATISTICS) for n in range(STATISTICS_BATCHES))
        return with_statistics(network, batches)

    def generator(self) -> nn.Module | None:
        """Return a copy of the jointly trained generator, in eval mode; None if it is frozen."""
        setting = self.setting
        network = self.phases[-1].generator()
        if network is None:
            return None
        latents = (setting.latents(n, Purpose.STATISTICS) for n in range(STATISTICS_BATCHES))
        return with_statistics(network, latents)

    def samples(self) -> NDArray[np.float32] | None:
        """Return fixed images x in rows of 8, each row above its G(E(x))."""
        encoder = self.encoder()
        if encoder is None:
            return None
        phase = self._at(max(0, self.iteration - 1))[1]
        batch = phase.batch(0, Purpose.SAMPLES)
        # Spread over the batch, whose last images may be real ones.
        count = min(GRID_IMAGES, len(batch))
        images = batch[np.linspace(0, len(batch) - 1, count).round()]
        trained = self.generator()
        with torch.no_grad():
            found = encoder(images)
            made = self.setting.generator.generate(found) if trained is None else trained(found)
        rows = zip(images.split(_COLUMNS), made.reshape(images.shape).split(_COLUMNS), strict=True)
        pictures = torch.cat([part for pair in rows for part in pair])
        shown: NDArray[np.float32] = pictures.cpu().numpy()
        return shown

    @property
    def finite(self) -> bool:
        """Whether all losses of the last iteration and all weights are finite."""
        rows = self._rows[self._at(max(0, self.iteration - 1))[0]]
        return all(map(math.isfinite, rows[-1] if rows else ())) and all(
            bool(torch.isfinite(tensor).all())
            for network in self._networks().values()
            for tensor in network.state_dict().values()
        )

    def state(self) -> dict[str, Any]:
        """Return the state that the next iteration depends on, and the losses so far."""
        phase = self._at(self.iteration)[1]
        return {
            "iteration": self.iteration,
            "losses": [torch.tensor(rows, dtype=torch.float64) for rows in self._rows],
            "networks": {name: net.state_dict() for name, net in self._networks().items()},
            "solvers": {name: solver.state_dict() for name, solver in phase.solvers.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Load the output of ``state`` of the same configuration.

        Raises:
            AttributeError, KeyError, RuntimeError, TypeError, ValueError: the state is invalid.
        """
        self.iteration = int(state["iteration"])
        rows = [[tuple(row) for row in one.tolist()] for one in state["losses"]]
        if len(rows) != len(self.phases) or sum(map(len, rows)) != self.iteration:
            raise ValueError(f"{self.iteration} iterations with {sum(map(len, rows))} losses")
        self._rows = rows
        for name, network in self._networks().items():
            network.load_state_dict(state["networks"][name])
        for name, solver in self._at(self.iteration)[1].solvers.items():
            solver.load_state_dict(state["solvers"][name])

    def _at(self, iteration: int) -> tuple[int, Phase]:
        """Return the index and phase of an iteration; after the end, those of the last phase."""
        number = sum(phase.first <= iteration for phase in self.phases) - 1
        return number, self.phases[number]

    def _networks(self) -> dict[str, nn.Module]:
        return {name: net for phase in self.phases for name, net in phase.networks.items()}


def _export(training: EncoderTraining, folder: EncoderFolder, say: Callable[[str], None]) -> None:
    from pyinv.export import export

    encoder, generator = training.encoder(), training.generator()
    assert encoder is not None
    encoder = encoder.cpu()
    path, frozen = folder.bundles["eval"], training.setting.generator
    write_weights(folder.weights, encoder)
    say(f"exporting {path}")
    if generator is None:
        frozen.write_bundle(encoder, path, origin=folder.origin)
    else:
        generator = generator.cpu()
        write_weights(folder.path / "generator.pt", generator)
        export(
            nn.Sequential(nn.Flatten(), generator),
            path,
            latent_shape=frozen.latent_shape,
            prior=frozen.prior,
            losses=("bce", "mse", "whitened", "l1"),
            value_range=training.value_range,
            encoder=encoder,
            name=folder.configuration.name,
            origin=folder.origin,
            overwrite=True,
        )
    say(f"wrote {path}")


def _refuse_its_folder(generator: FrozenGenerator, folder: Path) -> None:
    """Prevent a training from overwriting the bundle that contains its generator."""
    if generator.bundle is None:
        return
    path = generator.bundle.path.resolve()
    if path in [folder.resolve() / name for name in BUNDLES.values()]:
        raise InputError(
            f"{folder}: holds the generator itself, which must not change; train in another folder"
        )


def _real_images(configuration: EncoderConfiguration) -> int:
    """Return the number of real images per batch, at least 1."""
    if configuration.method == "aegan":
        return max(1, round(configuration.real_share * configuration.batch_size))
    return configuration.batch_size


def _data(name: str, pixels: NDArray[np.uint8] | None, generator: FrozenGenerator) -> EncoderData:
    of_generator = (generator.name, generator.sha256)
    if pixels is None:
        return EncoderData("", 0, "", *of_generator)
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    return EncoderData(name, len(pixels), digest, *of_generator)
