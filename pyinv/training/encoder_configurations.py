"""Encoder training configurations, including the papers' settings by name. Needs no PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyinv.errors import InputError
from pyinv.training.settings import Settings
from pyinv.validation import whole_number

__all__ = [
    "ENCODER_CONFIGURATIONS",
    "LATENT_LOSSES",
    "METHODS",
    "NETWORKS",
    "EncoderConfiguration",
    "Schedule",
    "get_encoder_configuration",
]

METHODS = ("direct", "aegan", "latent+image", "bigan", "layers")
"""The methods of training an encoder."""

NETWORKS = ("auto", "luo", "resnet")
LATENT_LOSSES = ("auto", "mse", "cosine")


@dataclass(frozen=True)
class Schedule(Settings):
    """The length and learning rate of a phase.

    Args:
        iterations: number of training steps, at least 1.
        learning_rate: Adam's initial learning rate, above 0.
        drops: the iterations, counted from 0 in the phase, at which the learning rate is multiplied
            by ``factor``; increasing.
        factor: multiplier, above 0.

    Raises:
        InputError: an invalid value.
    """

    iterations: int
    learning_rate: float = 2e-4
    drops: tuple[int, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        self._count("iterations", 1)
        self._number("learning_rate", above=0)
        self._number("factor", above=0)
        try:
            drops = tuple(whole_number("drops", drop, at_least=1) for drop in self.drops)
        except TypeError:
            raise InputError(f"drops must be a list of iterations, got {self.drops!r}") from None
        if list(drops) != sorted(set(drops)):
            raise InputError(f"drops must increase, got {list(drops)}")
        self._set("drops", drops)

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration of the phase, counted from 0."""
        return self.learning_rate * self.factor ** sum(drop <= iteration for drop in self.drops)

    def stretched(self, factor: float) -> Schedule:
        """Return a schedule ``factor`` times as long, with its drops scaled accordingly."""
        drops = sorted({max(1, round(drop * factor)) for drop in self.drops})
        return self.replace(iterations=max(1, round(self.iterations * factor)), drops=tuple(drops))

    def describe(self) -> dict[str, Any]:
        """Return every field as JSON values; ``from_description`` reads them."""
        return {**dataclasses.asdict(self), "drops": list(self.drops)}

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Schedule:
        """Return the schedule for the output of ``describe()``; raise InputError if invalid."""
        try:
            return cls(**{**described, "drops": tuple(described["drops"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"not a schedule: {error}") from None


@dataclass(frozen=True)
class EncoderConfiguration(Settings):
    """All settings that determine an encoder, apart from generator, data and machine.

    Args:
        name: name of the configuration.
        method: one of ``METHODS``; ``pyinv.training.encoder_methods`` has their equations.
        network: the encoder's architecture: "luo", table 5 of Luo et al. 2017; "resnet", a residual
            network of ResNet-18's depth; or "auto", which means "luo". The method "layers" has its
            own.
        width: channels of the encoder's first layer, and of all layers next to the image.
        latent_loss: loss between latents: "mse", the mean over components of the squared
            difference; "cosine", 1 - cosine; or "auto", which means "cosine" if the generator
            normalises its latent's length, otherwise "mse".
        image_loss: loss between images: a loss of the generator's bundle, or "auto", which means
            "bce" if the generator has it, otherwise "mse".
        image_weight: the weight lambda of the image loss in "latent+image".
        real_share: the fraction in [0, 1] of real images in each batch of "aegan".
        gradient_penalty: weight of the penalty on the discriminator's gradient in "bigan"; 0 for
            none.
        batch_size: images per iteration, at least 2.
        schedule: schedule of "direct", "aegan", "latent+image" and "bigan".
        beta1: Adam's first decay rate; the second is 0.999.
        layers: for the method "layers", the submodules after which to cut the generator. If empty,
            its first nonlinear ones, one for each layer schedule (``layerwise.with_layers``).
        layer_schedules: for the method "layers", the schedules of the inverse of each layer and of
            the inverse of the rest.
        fine_tuning: for the method "layers", the schedule of the composed encoder.
        seed: random seed.
        source: where the settings come from.

    Raises:
        InputError: an invalid value.
    """

    name: str
    method: str = "aegan"
    network: str = "auto"
    width: int = 64
    latent_loss: str = "auto"
    image_loss: str = "auto"
    image_weight: float = 1.0
    real_share: float = 0.0
    gradient_penalty: float = 0.0
    batch_size: int = 64
    schedule: Schedule = field(default_factory=lambda: Schedule(20_000))
    beta1: float = 0.5
    layers: tuple[str, ...] = ()
    layer_schedules: tuple[Schedule, ...] = ()
    fine_tuning: Schedule | None = None
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        self._one_of("method", METHODS)
        self._one_of("network", NETWORKS)
        self._one_of("latent_loss", LATENT_LOSSES)
        if not isinstance(self.image_loss, str) or not self.image_loss:
            raise InputError(f"image_loss must be a loss's name or 'auto', got {self.image_loss!r}")
        self._count("width", 1)
        # Batch norm needs statistics over several images.
        self._count("batch_size", 2)
        self._count("seed", 0, 2**63 - 1)
        self._number("image_weight", at_least=0)
        self._number("gradient_penalty", at_least=0)
        self._number("real_share", at_least=0, at_most=1)
        self._number("beta1", at_least=0, below=1)
        self._check_layers()

    def _check_layers(self) -> None:
        names = tuple(self.layers)
        if not all(isinstance(name, str) and name for name in names):
            raise InputError(f"layers must be names of submodules, got {self.layers!r}")
        self._set("layers", names)
        self._set("layer_schedules", tuple(self.layer_schedules))
        if self.method != "layers":
            return
        if len(self.layer_schedules) < 2 or self.fine_tuning is None:
            raise InputError(
                f"method layers needs layer_schedules and fine_tuning, and {self.name} has none; "
                "take a configuration that has them (bau, bau-32)"
            )
        if names and len(self.layer_schedules) != len(names) + 1:
            raise InputError(
                f"layer_schedules must be {len(names) + 1}, one per layer and one for the rest, "
                f"got {len(self.layer_schedules)}"
            )

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """The schedules of the method's phases, in order."""
        if self.method != "layers":
            return (self.schedule,)
        assert self.fine_tuning is not None
        return (*self.layer_schedules, self.fine_tuning)

    @property
    def iterations(self) -> int:
        """The total number of iterations over all phases."""
        return sum(schedule.iterations for schedule in self.schedules)

    def with_iterations(self, iterations: int) -> EncoderConfiguration:
        """Return a copy with about this many iterations.

        A method with one phase gets exactly this many, and its learning rate drops at the same
        iterations as before. All phases of "layers" are scaled by the same factor, including their
        drops.

        Raises:
            InputError: fewer than 1.
        """
        count = whole_number("iterations", iterations, at_least=1)
        if self.method != "layers":
            return self.replace(schedule=self.schedule.replace(iterations=count))
        factor = count / self.iterations
        assert self.fine_tuning is not None
        return self.replace(
            layer_schedules=tuple(one.stretched(factor) for one in self.layer_schedules),
            fine_tuning=self.fine_tuning.stretched(factor),
        )

    def describe(self) -> dict[str, Any]:
        """Return every field as JSON values; ``from_description`` reads them."""
        return {name: _plain(getattr(self, name)) for name in self._names()}

    @classmethod
    def _read(cls, described: Mapping[str, Any]) -> dict[str, Any]:
        read = Schedule.from_description
        values = dict(described)
        values["schedule"] = read(described["schedule"])
        values["layer_schedules"] = tuple(map(read, described["layer_schedules"]))
        if described["fine_tuning"] is not None:
            values["fine_tuning"] = read(described["fine_tuning"])
        return values

    def difference(
        self, other: EncoderConfiguration, *, ignore: tuple[str, ...] = ()
    ) -> str | None:
        """Return the name of the first field that differs between two configurations, or None.

        Fields that the method does not use are ignored. If a method has one phase and only its
        length differs, the name is "iterations".
        """
        unused: tuple[str, ...] = ("schedule",)
        if self.method != "layers":
            unused = ("schedule", "layers", "layer_schedules", "fine_tuning")
        field = super().difference(other, ignore=(*ignore, *unused))
        if field is not None or self.method == "layers":
            return field
        mine = self.schedule.replace(iterations=other.schedule.iterations)
        if mine != other.schedule:
            return "schedule"
        if "iterations" not in ignore and self.schedule != other.schedule:
            return "iterations"
        return None

    def _one_of(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.describe()
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def get_encoder_configuration(name: str, method: str | None = None) -> EncoderConfiguration:
    """Return a named configuration.

    Args:
        name: one of ``ENCODER_CONFIGURATIONS``.
        method: one of ``METHODS``, with the configuration's settings for that method; None for the
            configuration's default.

    Raises:
        InputError: no such configuration or method.
    """
    if name not in ENCODER_CONFIGURATIONS:
        known = ", ".join(ENCODER_CONFIGURATIONS)
        raise InputError(f"configuration must be one of {known}; got {name!r}")
    found = ENCODER_CONFIGURATIONS[name]
    if method is None:
        return found
    return found.replace(method=method, **_FOR_METHOD.get((name, method), {}))


_LUO = EncoderConfiguration(
    "luo",
    network="luo",
    # Not specified by the paper: six epochs of CelebA's 202,599 images.
    schedule=Schedule(19_000),
    source="Luo et al. 2017, appendix and tables 3 to 6; the number of iterations is ours",
)
# The public code (davidbau/ganseeing) calls 100 batches of 32 an epoch.
_EPOCH = 100
_BAU = EncoderConfiguration(
    "bau",
    method="latent+image",
    network="resnet",
    batch_size=32,
    schedule=Schedule(100 * _EPOCH, 1e-3, (20 * _EPOCH, 60 * _EPOCH)),
    beta1=0.9,
    layer_schedules=(
        Schedule(100 * _EPOCH, 1e-4, (20 * _EPOCH, 60 * _EPOCH)),
        Schedule(100 * _EPOCH, 1e-4, (60 * _EPOCH, 80 * _EPOCH)),
        Schedule(100 * _EPOCH, 1e-4, (20 * _EPOCH, 60 * _EPOCH)),
        Schedule(100 * _EPOCH, 1e-4, (20 * _EPOCH, 60 * _EPOCH)),
        Schedule(100 * _EPOCH, 1e-2, (20 * _EPOCH, 60 * _EPOCH)),
    ),
    fine_tuning=Schedule(
        1000 * _EPOCH, 1e-5, (50 * _EPOCH, 150 * _EPOCH, 350 * _EPOCH), factor=0.5
    ),
    source="Bau et al. 2019, section 2, and the code at github.com/davidbau/ganseeing",
)
_QUICK_LAYER = Schedule(400, 2e-3, (200, 320))
_QUICK_TAIL = Schedule(1500, 2e-3, (1000, 1350))

ENCODER_CONFIGURATIONS: dict[str, EncoderConfiguration] = {
    configuration.name: configuration
    for configuration in (
        _LUO.replace(
            name="luo-32",
            width=32,
            schedule=Schedule(3000, 1e-3, (2000, 2700), factor=0.3),
            source=f"{_LUO.source}; half the width and few iterations, to be quick",
        ),
        _BAU.replace(
            name="bau-32",
            width=32,
            schedule=Schedule(2000, 1e-3, (1200, 1700)),
            layer_schedules=(*(_QUICK_LAYER,) * 4, _QUICK_TAIL),
            fine_tuning=Schedule(2500, 5e-4, (1200, 1800, 2200), factor=0.4),
            source=f"{_BAU.source}; half the width and few iterations, to be quick",
        ),
        _LUO,
        _BAU,
    )
}
"""Every named configuration."""

# At 1e-3, or without the penalty, the discriminator wins within a few hundred iterations.
_FOR_METHOD: dict[tuple[str, str], dict[str, Any]] = {
    ("luo-32", "bigan"): {"schedule": Schedule(3000, 5e-4, (2000, 2700)), "gradient_penalty": 1.0}
}
