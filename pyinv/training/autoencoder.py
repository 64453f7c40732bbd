"""Training the autoencoder of latent diffusion, and exporting its decoder and encoder."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import DependencyError
from pyinv.extras import install_command
from pyinv.priors import Normal
from pyinv.progress import Progress, check_progress
from pyinv.training.autoencoder_configurations import AutoencoderConfiguration

try:
    import torch
except ImportError:
    raise DependencyError(f"training needs PyTorch: {install_command('export')}") from None

from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyinv.models.autoencoder import Autoencoder, LatentDecoder, LatentEncoder
from pyinv.training.adversaries import STATISTICS_BATCHES, descend
from pyinv.training.checkpoint import write_weights
from pyinv.training.draws import Purpose, draw_batch, random
from pyinv.training.folder import TrainingData, TrainingFolder
from pyinv.training.gan import check_device, check_pixels, check_threads
from pyinv.training.loop import run_training, torch_settings

__all__ = ["TrainedAutoencoder", "train_autoencoder"]

_VALUE_RANGE = (-1.0, 1.0)
_GRID_IMAGES = 32
_COLUMNS = 8


@dataclass(frozen=True)
class TrainedAutoencoder:
    """A finished training.

    Attributes:
        folder: the training's folder.
        configuration: the training's configuration.
        bundle: the decoder's bundle, with the encoder as its function ``encode``.
        weights: file with the state dict of ``pyinv.models.autoencoder.Autoencoder``.
    """

    folder: Path
    configuration: AutoencoderConfiguration
    bundle: Path
    weights: Path


def train_autoencoder(
    configuration: AutoencoderConfiguration,
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
) -> TrainedAutoencoder:
    r"""Train a KL-regularized autoencoder, and export its decoder together with its encoder.

    With q(z|x) the encoder's normal distribution, z drawn from it, D the decoder and P the number
    of pixel values, each iteration makes one step of Adam on the mean over a batch of

    $$
    \frac{1}{P} \left( \lVert D(z) - x \rVert_1 + w \, \text{KL}(q(z|x), N(0, I)) \right)
    $$

    with w the configuration's ``divergence_weight``. The exported weights are a running average.
    Each latent channel is then scaled to mean 0 and variance 1 over training images, so the prior
    of the exported decoder is N(0, 1).

    The folder contains ``configuration.json``; ``checkpoint.pt``; ``losses.csv``; in ``samples``,
    after each tenth of the iterations, images above their reconstructions; ``autoencoder.pt``, the
    exported state dict; and ``generator.bundle``. It works like that of ``train_gan``.

    Args:
        configuration: the configuration.
        images: uint8 [N, C, H, W] of the configuration's ``image_shape``, at least one batch.
        folder: output folder, created if necessary.
        data_name: name of the images, for the bundle's manifest.
        device: "cpu", "cuda", "cuda:1" and so on. Runs on a GPU are not bit-reproducible.
        threads: number of CPU threads; None uses every core available to this process.
        progress: as for ``train_gan``, with "reconstruction_loss", the first term, and
            "divergence_loss", the KL divergence over P.
        say: called with a line of text for each event other than an iteration.
        overwrite: start over in a folder that contains another training.
        checkpoint_seconds: time between checkpoints.

    Raises:
        InputError, OutputError, RunError, DeviceError, KeyboardInterrupt: as for ``train_gan``.

    Source: Rombach et al. 2022, section 3.1 and appendix G; without their perceptual loss and
    discriminator. They scale all channels by one number.

    Examples:
        >>> photos = load_dataset("cifar10.zip", image_shape=(3, 32, 32))
        >>> settings = get_autoencoder_configuration("kl-f4-32")
        >>> trained = train_autoencoder(settings, photos.images, "decoder", data_name="cifar10")
        >>> Inverter(trained.bundle).invert(images, recipe="precise", init="encoder")
    """
    pixels = check_pixels(images, configuration.image_shape, configuration.batch_size)
    where = check_device(device)
    count = check_threads(threads)
    check_progress(progress)
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    data = TrainingData(data_name, len(pixels), digest)
    say = say or (lambda line: None)
    with (
        AutoencoderFolder(Path(folder), configuration, data, overwrite=overwrite) as opened,
        torch_settings(count),
    ):
        run_training(
            opened,
            lambda: AutoencoderTraining(configuration, pixels, where),
            lambda training: _export(training, opened, say),
            progress=progress,
            say=say,
            checkpoint_seconds=checkpoint_seconds,
        )
    return TrainedAutoencoder(opened.path, configuration, opened.bundles["eval"], opened.weights)


class AutoencoderFolder(TrainingFolder):
    """A folder for the training of an autoencoder; see ``TrainingFolder``."""

    kind = "an autoencoder"
    free = ("iterations", "source", "name")
    loss_names = ("reconstruction", "divergence")

    def __init__(
        self,
        path: Path,
        configuration: AutoencoderConfiguration,
        data: TrainingData,
        *,
        overwrite: bool = False,
    ) -> None:
        super().__init__(path, configuration, data, overwrite=overwrite)
        self.weights = path / "autoencoder.pt"

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, **super().describe()}

    def read_description(self, described: Mapping[str, Any]) -> tuple[Any, TrainingData]:
        configuration = AutoencoderConfiguration.from_description(described["configuration"])
        return configuration, TrainingData(**described["data"])


class AutoencoderTraining:
    """The autoencoder, its optimizer, and the average of its weights; see ``loop.Training``.

    Args:
        configuration: the configuration.
        pixels: uint8 [N, C, H, W], the images.
        device: the device to train on.
    """

    loss_names: tuple[str, ...] = AutoencoderFolder.loss_names
    value_range = _VALUE_RANGE

    def __init__(
        self,
        configuration: AutoencoderConfiguration,
        pixels: NDArray[np.uint8],
        device: torch.device,
    ) -> None:
        self.configuration = configuration
        self.iteration = 0
        self.whole = True
        self.losses: list[tuple[float, float]] = []
        self._pixels = pixels
        self._device = device
        # Creating a layer draws weights from PyTorch's global random state, which is the caller's.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random(configuration.seed, Purpose.GENERATOR).initial_seed())
            network = Autoencoder(
                configuration.image_shape[0],
                configuration.latent_channels,
                configuration.factor,
                configuration.width,
            )
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network, self.averaged = network, copy.deepcopy(network)
        self.solver = torch.optim.Adam(
            network.parameters(), lr=configuration.learning_rate, fused=True
        )

    def step(self) -> tuple[float, float]:
        """Run one iteration; return the reconstruction loss and the KL divergence per pixel."""
        self.whole = False
        configuration, number = self.configuration, self.iteration
        images = self._batch(number)
        mean, log_variance = self.network.encode(images)
        noise = torch.randn(
            mean.shape, generator=random(configuration.seed, Purpose.LATENTS, number)
        ).to(self._device)
        made = self.network.decode(mean + torch.exp(log_variance / 2) * noise)
        reconstruction = functional.l1_loss(made, images)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        divergence = divergence / images.numel()
        descend(self.solver, reconstruction + configuration.divergence_weight * divergence)
        # The first weights are noise, so the averaging window starts short and grows.
        average = get_ema_multi_avg_fn(min(configuration.averaging, (1 + number) / (10 + number)))
        average(list(self.averaged.parameters()), list(self.network.parameters()), None)
        both = torch.stack([reconstruction, divergence]).tolist()
        losses = (both[0], both[1])
        self.losses.append(losses)
        self.iteration += 1
        self.whole = True
        return losses

    @torch.no_grad()
    def trained(self) -> Autoencoder:
        """Return a copy of the averaged network with the latents' mean and standard deviation."""
        network = copy.deepcopy(self.averaged).eval()
        means = [network.encode(self._batch(number))[0] for number in range(STATISTICS_BATCHES)]
        latents = torch.cat(means)
        network.mean.copy_(latents.mean((0, 2, 3)))
        network.std.copy_(latents.std((0, 2, 3)))
        return network

    @torch.no_grad()
    def samples(self) -> NDArray[np.float32]:
        """Return fixed images in rows of 8, each row above its reconstructions."""
        images = self._images(np.arange(min(_GRID_IMAGES, len(self._pixels))))
        made = self.averaged.decode(self.averaged.encode(images)[0])
        rows = zip(images.split(_COLUMNS), made.split(_COLUMNS), strict=True)
        shown: NDArray[np.float32] = (
            torch.cat([part for pair in rows for part in pair]).cpu().numpy()
        )
        return shown

    @property
    def finite(self) -> bool:
        """Whether the losses of the last iteration and all weights are finite."""
        return all(map(math.isfinite, self.losses[-1] if self.losses else ())) and all(
            bool(torch.isfinite(tensor).all()) for tensor in self.network.state_dict().values()
        )

    def state(self) -> dict[str, Any]:
        """Return the state that the next iteration depends on, and the losses so far."""
        return {
            "iteration": self.iteration,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "solver": self.solver.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Load the output of ``state`` of the same configuration.

        Raises:
            AttributeError, KeyError, RuntimeError, TypeError, ValueError: the state is invalid.
        """
        self.iteration = int(state["iteration"])
        self.losses = [(pair[0], pair[1]) for pair in state["losses"].tolist()]
        if len(self.losses) != self.iteration:
            raise ValueError(f"{self.iteration} iterations with {len(self.losses)} losses")
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.solver.load_state_dict(state["solver"])

    def _batch(self, number: int) -> Tensor:
        """Return an iteration's images."""
        configuration = self.configuration
        count = len(self._pixels)
        return self._images(draw_batch(configuration.seed, number, configuration.batch_size, count))

    def _images(self, chosen: NDArray[np.int64]) -> Tensor:
        low, high = _VALUE_RANGE
        images = torch.from_numpy(self._pixels[chosen]).to(self._device).float()
        images = images * ((high - low) / 255) + low
        return images.contiguous(memory_format=torch.channels_last)


def _export(
    training: AutoencoderTraining, folder: AutoencoderFolder, say: Callable[[str], None]
) -> None:
    from pyinv.export import export

    network = training.trained().cpu()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    write_weights(folder.weights, network)
    path = folder.bundles["eval"]
    say(f"exporting {path}")
    export(
        LatentDecoder(network),
        path,
        latent_shape=training.configuration.latent_shape,
        prior=Normal(),
        losses=("mse",),
        value_range=_VALUE_RANGE,
        encoder=LatentEncoder(network),
        name=training.configuration.name,
        overwrite=True,
        origin=folder.origin,
    )
    say(f"wrote {path}")
