r"""Methods of training an encoder, each a list of phases that the training loop runs in order.

G is the generator, which is frozen, z a latent drawn from its prior, x an image, E the encoder. The
methods minimise over E's weights:

``direct``
    $E_z\, d_L(z, E(G(z)))$. Luo et al. 2017, section 4.1 ("directly training"), after
    Perarnau et al. 2016, equation 3; $d_L$ is the mean over components of the squared
    difference, or 1 - cosine.
``aegan``
    $E_x\, d_I(G(E(x)), x)$ with x = G(z). Luo et al. 2017, equations 5 to 8. A fraction of
    each batch may be real images, as in the domain-guided encoder of Zhu et al. 2020 (IDInvert).
``latent+image``
    $E_z [d_L(z, E(G(z))) + \lambda\, d_I(G(E(G(z))), G(z))]$. Bau et al. 2019, equations 3
    to 5.
``bigan``
    Donahue et al. 2017, with the networks of Luo et al. 2017: see ``bigan.py``.
``layers``
    Bau et al. 2019, equations 6 to 9: see ``layerwise.py``.

To add a method, write a function (Setting) -> list of ``Phase``, and call it in ``make_phases``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pyinv.errors import InputError
from pyinv.models.encoders import make_encoder
from pyinv.training.adversaries import descend
from pyinv.training.draws import Purpose, draw_batch, draw_latents, random
from pyinv.training.encoder_configurations import EncoderConfiguration, Schedule
from pyinv.training.frozen import FrozenGenerator

__all__ = [
    "Phase",
    "Setting",
    "check_method",
    "latent_distance",
    "make_phases",
]

# The methods that use each of the settings that are not common to all.
_METHODS_OF = {
    "latent_loss": ("direct", "latent+image"),
    "image_loss": ("aegan", "latent+image"),
    "image_weight": ("latent+image",),
    "real_share": ("aegan",),
    "gradient_penalty": ("bigan",),
}


@dataclass
class Setting:
    """State shared by the phases of a training: configuration, generator and random draws.

    All draws are functions of only (seed, purpose, number), so that a resumed training draws the
    same numbers as an uninterrupted one.

    Args:
        configuration: the configuration.
        generator: G.
        device: the device of networks and batches.
        pixels: real images, uint8 [N, C, H, W], or None.
    """

    configuration: EncoderConfiguration
    generator: FrozenGenerator
    device: torch.device
    pixels: NDArray[np.uint8] | None = None

    def latents(
        self, number: int, purpose: Purpose = Purpose.LATENTS, count: int | None = None
    ) -> Tensor:
        """Return the latents of an iteration, drawn from the prior, [batch, d]."""
        generator, configuration = self.generator, self.configuration
        size = configuration.batch_size if count is None else count
        source = random(configuration.seed, purpose, number)
        return draw_latents(generator.prior, size, generator.latent_size, source).to(self.device)

    def real(self, number: int, count: int) -> Tensor:
        """Return an iteration's real images in the value range, [count, C, H, W]."""
        assert self.pixels is not None
        rows = draw_batch(self.configuration.seed, number, count, len(self.pixels))
        chosen = self.pixels[rows]
        low, high = self.generator.value_range
        return torch.from_numpy(chosen).to(self.device).float() * ((high - low) / 255) + low

    def network(
        self, make: Callable[[], nn.Module], purpose: Purpose, number: int = 0
    ) -> nn.Module:
        """Return ``make()`` on the device, with initial weights from (seed, purpose, number).

        PyTorch's global random state, which is the caller's, is preserved.
        """
        source = random(self.configuration.seed, purpose, number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.initial_seed())
            made = make()
        return made.to(self.device).train()

    def adam(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam for these parameters; the loop sets its learning rate before every step."""
        return torch.optim.Adam(parameters, lr=0.0, betas=(self.configuration.beta1, 0.999))


class Phase(ABC):
    """A part of a training with its own loss and learning rate.

    The loop calls ``step(0)``, ``step(1)``, ... ``step(schedule.iterations - 1)``, and sets the
    learning rate of all ``solvers`` to ``schedule.rate(iteration)`` before each. A checkpoint
    between two steps contains the state dicts of all phases' ``networks`` and of this phase's
    ``solvers``, so a step must depend only on these and on its number. Draw with
    ``Setting.latents`` and ``Setting.real``, and pass them ``first + iteration``, so that no phase
    repeats another's draws.

    Args:
        name: name on the progress bar and in losses.csv, one word.
        setting: the setting, shared by all phases of the training.
        schedule: iterations and learning rates.
        first: the total number of iterations of the preceding phases.
        networks: the networks that this phase trains, by name. Phases that share a network use the
            same name; different networks need different names.
        solvers: optimizers, by name.
        losses: names of the losses that ``step`` returns, in order.
    """

    def __init__(
        self,
        name: str,
        setting: Setting,
        schedule: Schedule,
        *,
        first: int,
        networks: Mapping[str, nn.Module],
        solvers: Mapping[str, torch.optim.Optimizer],
        losses: tuple[str, ...],
    ) -> None:
        self.name = name
        self.setting = setting
        self.schedule = schedule
        self.first = first
        self.networks = dict(networks)
        self.solvers = dict(solvers)
        self.losses = losses

    @abstractmethod
    def step(self, iteration: int) -> dict[str, float]:
        """Run one step; return the losses before it, by the names in ``losses``."""

    @abstractmethod
    def encoder(self) -> nn.Module | None:
        """Return the complete encoder, image [B, C, H, W] -> latent [B, d].

        The loop copies it, in eval mode and with statistics from ``batch``. A phase that trains
        only a part returns None and has no sample grids; the last phase must not return None.
        """

    def generator(self) -> nn.Module | None:
        """Return the jointly trained generator, latent [B, d] -> image; None if it is frozen.

        A jointly trained generator replaces the frozen one in the bundle.
        """
        return None

    @property
    def value_range(self) -> tuple[float, float]:
        """The value range of ``batch`` and ``generator``; by default the frozen generator's."""
        return self.setting.generator.value_range

    def batch(self, number: int, purpose: Purpose = Purpose.LATENTS) -> Tensor:
        """Return images to train the encoder on, [batch, C, H, W]; by default G(z)."""
        return self.setting.generator.generate(self.setting.latents(number, purpose))

    def update(self, name: str, loss: Tensor) -> None:
        """Make one step of the named solver down the gradient of ``loss``."""
        descend(self.solvers[name], loss)


class _EncoderPhase(Phase):
    """A phase that trains only E, with a frozen G."""

    def __init__(self, setting: Setting, losses: tuple[str, ...]) -> None:
        configuration, generator = setting.configuration, setting.generator
        network = setting.network(
            lambda: make_encoder(
                generator.image_shape,
                generator.latent_size,
                prior=generator.prior,
                value_range=generator.value_range,
                network=configuration.network,
                width=configuration.width,
                unit_length=generator.normalizes_latent,
            ),
            Purpose.ENCODER,
        )
        super().__init__(
            configuration.method,
            setting,
            configuration.schedule,
            first=0,
            networks={"encoder": network},
            solvers={"encoder": setting.adam(network.parameters())},
            losses=losses,
        )

    def encoder(self) -> nn.Module:
        return self.networks["encoder"]


class Direct(_EncoderPhase):
    """The method ``direct``, which compares latents."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, ("latent",))
        self._distance = latent_distance(setting)

    def step(self, iteration: int) -> dict[str, float]:
        latents = self.setting.latents(self.first + iteration)
        images = self.setting.generator.generate(latents)
        loss = self._distance(self.encoder()(images), latents).mean()
        self.update("encoder", loss)
        return {"latent": loss.item()}


class Aegan(_EncoderPhase):
    """The method ``aegan``, which compares images through the frozen generator."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, ("image",))
        self._loss = image_loss(setting.configuration, setting.generator)
        self._real = round(setting.configuration.real_share * setting.configuration.batch_size)

    def batch(self, number: int, purpose: Purpose = Purpose.LATENTS) -> Tensor:
        setting = self.setting
        parts = []
        made = setting.configuration.batch_size - self._real
        if made:
            latents = setting.latents(number, purpose, made)
            parts.append(setting.generator.generate(latents))
        if self._real:
            parts.append(setting.real(number, self._real))
        return torch.cat(parts)

    def step(self, iteration: int) -> dict[str, float]:
        images = self.batch(self.first + iteration)
        found = self.encoder()(images)
        loss = self.setting.generator.loss(self._loss, found, images).mean()
        self.update("encoder", loss)
        return {"image": loss.item()}


class LatentAndImage(_EncoderPhase):
    """The method ``latent+image``, which compares latents and images."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, ("latent", "image"))
        self._distance = latent_distance(setting)
        self._loss = image_loss(setting.configuration, setting.generator)

    def step(self, iteration: int) -> dict[str, float]:
        generator = self.setting.generator
        latents = self.setting.latents(self.first + iteration)
        images = generator.generate(latents)
        found = self.encoder()(images)
        of_latents = self._distance(found, latents).mean()
        of_images = generator.loss(self._loss, found, images).mean()
        self.update("encoder", of_latents + self.setting.configuration.image_weight * of_images)
        return {"latent": of_latents.item(), "image": of_images.item()}


def check_method(
    configuration: EncoderConfiguration, generator: FrozenGenerator, *, has_data: bool
) -> EncoderConfiguration:
    """Check that the method can train an encoder for this generator, before any work.

    Returns:
        the configuration, with the names of the layers for "layers" filled in.

    Raises:
        InputError: the method does not use a setting; the generator does not have the loss, the
            layers or a supported image size; or real images are missing or not used.
        ExportError: the generator cannot be exported.
    """
    method, share = configuration.method, configuration.real_share
    for setting, methods in _METHODS_OF.items():
        value = getattr(configuration, setting)
        if method not in methods and value != getattr(EncoderConfiguration, setting):
            raise InputError(
                f"{setting} is for method {' and '.join(methods)}, got {setting}={value!r} for "
                f"{method}; leave it out"
            )
    if share and not has_data:
        raise InputError(
            f"real_share={share:g} needs real images, got none; give data (--data), or real_share=0"
        )
    if has_data and method == "aegan" and not share:
        raise InputError(
            "method aegan takes real images only as a share of each batch, got data and "
            "real_share=0; give real_share (--real-share 0.5), or leave data out"
        )
    if has_data and method not in ("aegan", "bigan"):
        raise InputError(
            f"method {method} trains on generated images alone, got data; leave data (--data) out, "
            "or choose aegan or bigan"
        )
    if share and not round(share * configuration.batch_size):
        raise InputError(
            f"real_share={share:g} is less than one image in a batch of "
            f"{configuration.batch_size}; give a larger share (--real-share) or batch "
            "(--batch-size)"
        )
    if method in ("aegan", "latent+image"):
        generator.check_loss(image_loss(configuration, generator))
    if method == "bigan":
        from pyinv.training.bigan import check_images

        check_images(generator.image_shape)
    else:
        generator.check_export()  # bigan exports its own
    if method == "layers":
        from pyinv.training.layerwise import with_layers

        return with_layers(configuration, generator)
    return configuration


def make_phases(setting: Setting) -> list[Phase]:
    """Return the phases of the configuration's method, in order."""
    method = setting.configuration.method
    if method == "direct":
        return [Direct(setting)]
    if method == "aegan":
        return [Aegan(setting)]
    if method == "latent+image":
        return [LatentAndImage(setting)]
    if method == "bigan":
        from pyinv.training.bigan import Bigan

        return [Bigan(setting)]
    from pyinv.training.layerwise import layer_phases

    return layer_phases(setting)


def latent_distance(setting: Setting) -> Callable[[Tensor, Tensor], Tensor]:
    """Return d_L of the configuration: (found [B, d], latents [B, d]) -> [B]."""
    name = setting.configuration.latent_loss
    if name == "auto":
        name = "cosine" if setting.generator.normalizes_latent else "mse"
    if name == "cosine":
        return lambda found, latents: 1 - functional.cosine_similarity(found, latents)
    return lambda found, latents: ((found - latents) ** 2).mean(1)


def image_loss(configuration: EncoderConfiguration, generator: FrozenGenerator) -> str:
    """Return the name of d_I, resolving "auto"."""
    name = configuration.image_loss
    if name == "auto":
        return "bce" if "bce" in generator.losses else "mse"
    return name
