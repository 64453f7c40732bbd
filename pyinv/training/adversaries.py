"""A generator and a discriminator in training: the iteration, and the state to checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyinv.models import get_model, progan
from pyinv.training.configurations import GanConfiguration
from pyinv.training.draws import Purpose, draw_batch, draw_labels, draw_latents, random

__all__ = [
    "STATISTICS_BATCHES",
    "Adversaries",
    "descend",
    "draw_weights",
    "gradient_penalty",
    "with_statistics",
]

GRID_IMAGES = 64
# Number of batches from which the batch-norm statistics of an exported network are computed.
STATISTICS_BATCHES = 32
# Radford et al. 2016, section 3, for weights; for batch norm's factors, PyTorch's DCGAN example.
WEIGHT_STD = 0.02


class Adversaries:
    """Both networks, their optimizers, and the average of the generator's weights.

    Args:
        configuration: the configuration.
        pixels: uint8 [N, C, H, W], the real images.
        device: the device to train on.

    Attributes:
        iteration: number of completed iterations.
        whole: False during an iteration, when the state must not be saved.
        losses: the discriminator's and generator's losses of each iteration, before its step.
    """

    loss_names: tuple[str, ...] = ("discriminator", "generator")

    def __init__(
        self, configuration: GanConfiguration, pixels: NDArray[np.uint8], device: torch.device
    ) -> None:
        self.configuration = configuration
        self.iteration = 0
        self.whole = True
        self.losses: list[tuple[float, float]] = []
        self._pixels = pixels
        self._device = device
        model = get_model(configuration.model)
        self.value_range = model.value_range
        # Creating a layer draws weights from PyTorch's global random state, which is the caller's.
        with torch.random.fork_rng(devices=[]):
            generator = model.generator(
                configuration.latent_size, configuration.image_shape, **configuration.options
            )
            discriminator = model.discriminator(configuration.image_shape, **configuration.options)
            if configuration.growth:
                generator, discriminator = progan.growing(generator), progan.growing(discriminator)
        draw_weights(generator, random(configuration.seed, Purpose.GENERATOR))
        draw_weights(discriminator, random(configuration.seed, Purpose.DISCRIMINATOR))
        self.networks = {"generator": generator, "discriminator": discriminator}
        for network in self.networks.values():
            network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.solvers = {
            name: torch.optim.Adam(
                network.parameters(),
                lr=configuration.learning_rate,
                betas=(configuration.beta1, configuration.beta2),
                fused=True,
            )
            for name, network in self.networks.items()
        }
        if configuration.averaging:
            self.networks["averaged"] = copy.deepcopy(generator)

    def step(self) -> tuple[float, float]:
        """Run one iteration; return the losses of discriminator and generator."""
        self.whole = False
        configuration, number = self.configuration, self.iteration
        generator, discriminator = self.networks["generator"], self.networks["discriminator"]
        size = configuration.batch_size
        labels = random(configuration.seed, Purpose.LABELS, number)
        real_labels = self._moved(draw_labels(configuration.real_labels, size, labels))
        fake_labels = self._moved(draw_labels(configuration.fake_labels, size, labels))
        self._grow(number)
        real = self._real(number)
        is_penalty_step = number % configuration.penalty_every == 0
        penalized = is_penalty_step and configuration.gradient_penalty > 0
        fake = generator(self._latents(Purpose.LATENTS, number))

        loss = functional.binary_cross_entropy_with_logits
        # Two separate batches, so that batch norm sees only real or only generated images.
        logits = discriminator(real.requires_grad_(penalized))
        on_real = loss(logits, real_labels)
        on_fake = loss(discriminator(fake.detach()), fake_labels)
        discriminator_loss = on_real + on_fake
        minimized = discriminator_loss
        if penalized:
            weight = configuration.gradient_penalty * configuration.penalty_every
            minimized = discriminator_loss + weight * gradient_penalty(logits, real)
        self._update("discriminator", minimized)

        # The generator needs the gradient through the discriminator, not that of its weights.
        discriminator.requires_grad_(False)
        generator_loss = functional.softplus(-discriminator(fake)).mean()
        self._update("generator", generator_loss)
        discriminator.requires_grad_(True)
        self._average(number)

        # The only synchronization with the device.
        both = torch.stack([discriminator_loss, generator_loss]).tolist()
        losses = (both[0], both[1])
        self.losses.append(losses)
        self.iteration += 1
        self.whole = True
        return losses

    def sampler(self) -> nn.Module:
        """Return a copy of the generator as it would be exported now, in eval mode.

        Batch norm gets the mean statistics of generated batches.
        """
        sampler = self._best
        if isinstance(sampler, progan.GrowingGenerator):
            sampler = sampler.generator
        latents = (self._latents(Purpose.STATISTICS, n) for n in range(STATISTICS_BATCHES))
        return with_statistics(sampler, latents)

    def samples(self) -> NDArray[np.float32]:
        """Return the images of 64 fixed latents, [64, C, H, W].

        While a network is still growing, its images are enlarged.
        """
        configuration = self.configuration
        source = random(configuration.seed, Purpose.SAMPLES)
        latents = draw_latents(
            configuration.prior, GRID_IMAGES, configuration.latent_size, source
        ).to(self._device)
        sampler = self._best if configuration.growth else self.sampler()
        with torch.no_grad():
            images = functional.interpolate(sampler(latents), configuration.image_shape[1:])
        shown: NDArray[np.float32] = images.cpu().numpy()
        return shown

    @property
    def _best(self) -> nn.Module:
        """The generator whose weights are exported."""
        return self.networks.get("averaged", self.networks["generator"])

    @property
    def finite(self) -> bool:
        """Whether all losses of the last iteration and all weights are finite."""
        return all(map(math.isfinite, self.losses[-1] if self.losses else ())) and all(
            bool(torch.isfinite(tensor).all())
            for network in self.networks.values()
            for tensor in network.state_dict().values()
        )

    def state(self) -> dict[str, Any]:
        """Return the state that the next iteration depends on, and the losses so far."""
        return {
            "iteration": self.iteration,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "solvers": {name: solver.state_dict() for name, solver in self.solvers.items()},
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
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, solver in self.solvers.items():
            solver.load_state_dict(state["solvers"][name])

    def _update(self, name: str, loss: Tensor) -> None:
        descend(self.solvers[name], loss)

    def _grow(self, number: int) -> None:
        if self.configuration.growth:
            for network in self.networks.values():
                assert isinstance(network, progan.GrowingGenerator | progan.GrowingDiscriminator)
                network.grow(*self.configuration.grown(number))

    def _average(self, number: int) -> None:
        averaged = self.networks.get("averaged")
        if averaged is None:
            return
        # The first weights are noise, so the averaging window starts short and grows.
        decay = min(self.configuration.averaging, (1 + number) / (10 + number))
        # All tensors at once: on a GPU, launching a kernel per tensor would dominate.
        average = get_ema_multi_avg_fn(decay)
        average(list(averaged.parameters()), list(self.networks["generator"].parameters()), None)

    def _latents(self, purpose: Purpose, number: int) -> Tensor:
        configuration = self.configuration
        latents = draw_latents(
            configuration.prior,
            configuration.batch_size,
            configuration.latent_size,
            random(configuration.seed, purpose, number),
        )
        return self._moved(latents)

    def _real(self, number: int) -> Tensor:
        """Return an iteration's real images in the value range."""
        seed, size = self.configuration.seed, self.configuration.batch_size
        chosen = self._pixels[draw_batch(seed, number, size, len(self._pixels))]
        low, high = self.value_range
        real = self._moved(torch.from_numpy(chosen)).float()
        real = (real * ((high - low) / 255) + low).contiguous(memory_format=torch.channels_last)
        if self.configuration.growth:
            real = progan.shrunk(real, *self.configuration.grown(number))
        return real

    def _moved(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device; the copy may be asynchronous."""
        if self._device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


def descend(solver: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step down the gradient of ``loss``."""
    solver.zero_grad()
    loss.backward()
    solver.step()


def gradient_penalty(logits: Tensor, *inputs: Tensor) -> Tensor:
    """Return the R1 penalty: half the mean squared norm of the logits' gradient at the inputs.

    Source: Mescheder et al. 2018, equation 9.
    """
    slopes = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    squared = [slope.square().flatten(1).sum(1) for slope in slopes]
    return torch.stack(squared).sum(0).mean() / 2


def draw_weights(network: nn.Module, source: torch.Generator) -> None:
    """Initialize a network as DCGAN does: weights N(0, 0.02^2), batch norm's around 1, biases 0."""
    with torch.no_grad():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    parameter.zero_()
                    continue
                mean = 1.0 if isinstance(module, nn.modules.batchnorm._BatchNorm) else 0.0
                std = getattr(module, "weight_std", WEIGHT_STD)
                drawn = torch.randn(parameter.shape, generator=source)
                parameter.copy_(mean + std * drawn)


def with_statistics(network: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Return a copy in eval mode whose batch norm has the mean statistics of these batches.

    A batch is the input of the network, or a tuple of its inputs. The running statistics from
    training lag behind the weights, and do not match averaged weights.
    """
    measured = copy.deepcopy(network)
    norms = [m for m in measured.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts the same
    measured.train()
    if norms:
        with torch.no_grad():
            for batch in batches:
                measured(*(batch if isinstance(batch, tuple) else (batch,)))
    return measured.eval()
