"""GAN training configurations, including the papers' settings by name."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyinv.errors import InputError
from pyinv.models import get_model
from pyinv.priors import PRIORS, Normal, Prior, Uniform, prior_from_description
from pyinv.training.settings import Settings, finite

__all__ = ["CONFIGURATIONS", "GanConfiguration", "get_configuration"]


@dataclass(frozen=True)
class GanConfiguration(Settings):
    """All settings that determine a training's result, apart from data and machine.

    Args:
        name: name of the configuration.
        model: one of ``pyinv.models.MODELS``.
        image_shape: (C, H, W), one that the model supports.
        prior: prior of the latents.
        latent_size: components of a latent.
        width: channels of the layers next to the image; None for the model's default.
        batch_size: number of real images, and of generated ones, per iteration.
        iterations: training steps of each network.
        learning_rate: Adam's learning rate, for both networks.
        beta1: Adam's first decay rate.
        beta2: Adam's second decay rate.
        real_labels: the discriminator's label of each real image is drawn from this interval;
            (1, 1) for hard labels.
        fake_labels: the same for generated images; (0, 0) for hard labels.
        averaging: decay per iteration of the average of the generator's weights, which is exported;
            0 exports the last weights.
        growth: iterations per phase of a model that grows from 4x4 pixels: one phase at 4x4, then
            two for each doubling, the first of which fades in the new size. The full size is
            trained until the end. 0 trains at the full size from the start.
        gradient_penalty: weight g of the discriminator's penalty g / 2 E |dD(x)/dx|^2 on real
            images x (Mescheder et al. 2018, R1); 0 for none.
        penalty_every: add the penalty once every ``penalty_every`` iterations, with its weight
            multiplied by that number.
        training_images: number of images to train on, from the first; None for all.
        losses: the objectives to export. "mse" and "whitened" include their normal equations, which
            the recipe "precise" needs, except in a bundle with batch statistics.
        batch_norm: the bundles to write, "eval" and "batch": see ``pyinv.export.export``.
        seed: random seed.
        source: where the settings come from.

    Raises:
        InputError: an invalid value.
    """

    # Fields added after the first trainings and bundles. Descriptions without them mean the
    # defaults.
    _later = frozenset({"beta2", "growth", "gradient_penalty", "penalty_every"})

    name: str
    model: str
    image_shape: tuple[int, int, int]
    prior: Prior = field(default_factory=Uniform)
    latent_size: int = 100
    width: int | None = None
    batch_size: int = 64
    iterations: int = 2000
    learning_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    real_labels: tuple[float, float] = (1.0, 1.0)
    fake_labels: tuple[float, float] = (0.0, 0.0)
    averaging: float = 0.0
    growth: int = 0
    gradient_penalty: float = 0.0
    penalty_every: int = 1
    training_images: int | None = None
    losses: tuple[str, ...] = ("mse", "whitened")
    batch_norm: tuple[str, ...] = ("eval",)
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        self._shape("image_shape")
        if self.width is not None:
            self._count("width", 1)
        model = get_model(self.model)
        model.check(self.image_shape, **self.options)
        if not isinstance(self.prior, Uniform | Normal):
            raise InputError(f"prior must be {PRIORS}, got {self.prior!r}")
        self._count("latent_size", 1)
        # Batch norm needs statistics over several images.
        self._count("batch_size", 2)
        self._count("iterations", 1)
        self._count("seed", 0, 2**63 - 1)
        if self.training_images is not None:
            self._count("training_images", 1)
        self._number("learning_rate", above=0)
        for name in ("beta1", "beta2"):
            self._number(name, at_least=0, below=1)
        self._number("averaging", at_least=0, below=1)
        self._count("growth", 0)
        if self.growth and not model.grows:
            raise InputError(f"growth must be 0 for model {self.model}, got {self.growth}")
        self._number("gradient_penalty", at_least=0)
        self._count("penalty_every", 1)
        for name in ("real_labels", "fake_labels"):
            self._interval(name)
        self._listed("losses", ("mse", "whitened", "l1", "bce"))
        self._listed("batch_norm", ("eval", "batch"))

    @property
    def options(self) -> dict[str, int]:
        """The model's options that this configuration sets."""
        return {} if self.width is None else {"width": self.width}

    def grown(self, iteration: int) -> tuple[int, float]:
        """Return the image size in an iteration, and how far it is faded in, above 0 to 1."""
        full = self.image_shape[1]
        if not self.growth:
            return full, 1.0
        phase, within = divmod(iteration, self.growth)
        size = 4 << (phase + 1) // 2
        if size > full:
            return full, 1.0
        return size, (within + 1) / self.growth if phase % 2 else 1.0

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON values, for ``from_description``.

        Fields in ``_later`` that have their default are left out.
        """
        described = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in self._later or getattr(self, item.name) != item.default
        }
        plain = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in described.items()
        }
        return {**plain, "prior": self.prior.describe()}

    @classmethod
    def _read(cls, described: Mapping[str, Any]) -> dict[str, Any]:
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in described.items()
        }
        return {**values, "prior": prior_from_description(described["prior"])}

    def _shape(self, name: str) -> None:
        value = getattr(self, name)
        try:
            self._set(name, tuple(operator.index(size) for size in value))
        except TypeError:
            raise InputError(f"{name} must be (channels, height, width), got {value!r}") from None

    def _listed(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        names = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else []
        if not names or any(names.count(one) > 1 or one not in known for one in names):
            got = names if isinstance(value, tuple | list) else repr(value)
            raise InputError(
                f"{name} must be a list of some of {', '.join(known)}, each once; got {got}"
            )
        self._set(name, tuple(names))

    def _interval(self, name: str) -> None:
        value = getattr(self, name)
        try:
            low, high = map(finite, value)
        except (TypeError, ValueError):
            low = high = math.nan
        if not low <= high:
            raise InputError(f"{name} must be two numbers, the lower first, got {value!r}")
        self._set(name, (low, high))


def get_configuration(name: str) -> GanConfiguration:
    """Return the configuration of this name; raise InputError if there is none."""
    if name not in CONFIGURATIONS:
        raise InputError(f"configuration must be one of {', '.join(CONFIGURATIONS)}; got {name!r}")
    return CONFIGURATIONS[name]


# Settings that the papers do not specify are ours: the average over weights, Adam's beta1 = 0.5 for
# Creswell & Bharath (Radford et al. 2016, section 3), the length of "lipton", and all differences
# in the 32-pixel configurations, which should take about five minutes on two cores.
_CRESWELL = GanConfiguration(
    "creswell",
    "creswell",
    (1, 28, 28),
    batch_size=128,
    iterations=500,
    learning_rate=2e-3,
    averaging=0.98,
    training_images=50_000,
    losses=("bce", "mse", "whitened", "l1"),
    batch_norm=("eval", "batch"),
    source="Creswell & Bharath 2016, section 4.1 and table 1",
)
_LIPTON = GanConfiguration(
    "lipton",
    "dcgan",
    (3, 64, 64),
    iterations=20_000,
    averaging=0.999,
    losses=("mse", "whitened", "l1"),
    source="Lipton & Tripathi 2017, section 3: DCGAN (Radford et al. 2016) as Amos 2016 trains it",
)
_EGAN = GanConfiguration(
    "egan",
    "egan",
    (3, 64, 64),
    prior=Normal(),
    # The generator of section 4.2.1: 20 epochs of 121,267 photographs.
    iterations=37_900,
    real_labels=(0.7, 1.2),
    fake_labels=(0.0, 0.3),
    averaging=0.999,
    losses=("mse", "whitened", "l1"),
    source="Egan et al. 2018, sections 4.1.1, 4.1.2 and 4.1.4",
)

# Karras et al. 2018, section A.1, except for the loss. They use WGAN-GP; the softplus loss with R1
# takes one pass less through the discriminator per iteration.
_PROGAN = GanConfiguration(
    "progan-256",
    "progan",
    (3, 256, 256),
    prior=Normal(),
    latent_size=512,
    batch_size=16,
    iterations=750_000,
    learning_rate=1e-3,
    beta1=0.0,
    beta2=0.99,
    averaging=0.999,
    # 800,000 images per phase.
    growth=50_000,
    gradient_penalty=10.0,
    penalty_every=16,
    losses=("mse", "l1"),
    source="Karras et al. 2018, table 2 and section A.1, as Bau et al. 2019 use it",
)


def _quick(configuration: GanConfiguration) -> GanConfiguration:
    return configuration.replace(
        name=f"{configuration.name}-32",
        image_shape=(1, 32, 32),
        width=32,
        iterations=3000,
        averaging=0.995,
        source=f"{configuration.source}; 32 pixels, half the width and few iterations, to be quick",
    )


CONFIGURATIONS: dict[str, GanConfiguration] = {
    configuration.name: configuration
    for configuration in (
        _CRESWELL,
        _CRESWELL.replace(
            name="creswell-omniglot",
            iterations=2000,
            training_images=None,
            source="Creswell & Bharath 2016, section 4.2 and table 1",
        ),
        _quick(_LIPTON),
        _quick(_EGAN),
        _LIPTON,
        _EGAN,
        _PROGAN.replace(
            name="progan-32",
            image_shape=(3, 32, 32),
            latent_size=128,
            width=32,
            batch_size=32,
            iterations=5000,
            learning_rate=2e-3,
            averaging=0.998,
            growth=400,
            gradient_penalty=1.0,
            penalty_every=8,
            source=f"{_PROGAN.source}; 32 pixels, a quarter of the latent and of the channels, and "
            "few iterations, to be quick",
        ),
        _PROGAN,
    )
}
"""Every named configuration."""
