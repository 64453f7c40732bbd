r"""The method ``layers``: an inverse for each layer of a generator, composed and fine-tuned.

For G(z) = G_F(g_k(... g_1(z))), r_0 = z, r_i = g_i(r_{i-1}) and x = G_F(r_k), z from the prior:

1. for each i, e_i minimises
   $d(r_{i-1}, e_i(r_i)) + 0.01\, d(r_i, g_i(e_i(r_i)))$  (equations 6 to 8);
2. e_F minimises the mean squared error $|r_k - e_F(x)|^2$;
3. E = e_1(e_2(... e_k(e_F(x)))) (equation 9) minimises, from there and with its 1x1 convolutions
   fixed, $d(z, \hat z) + d(r_k, \hat r_k) + d(r_k, g_k(... g_1(\hat z))) + |x - G(\hat z)|^2$
   with $\hat r_k = e_F(x)$ and $\hat z = E(x)$.

d is 1 - cosine, over each pixel's channels and averaged, for a generator that normalises lengths
with pixel norm, and the mean squared error for others.

Source: Bau et al. 2019, section 2, method (d); the loss weights and the choice of fixed layers are
from the authors' code (davidbau/ganseeing). Its training loops never call ``zero_grad``, so each
step follows the sum of all gradients so far. Here each step follows the gradient of its own batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyinv.errors import ExportError, InputError
from pyinv.export import export
from pyinv.export.capture.torchscript_reader import load_torchscript
from pyinv.export.layers import Layers, first_layers, split
from pyinv.export.runtimes.onnx_reader import read_generator
from pyinv.models.layer_encoders import (
    LayeredEncoder,
    make_first_encoder,
    make_layer_encoder,
    make_tail_encoder,
)
from pyinv.training.draws import Purpose
from pyinv.training.encoder_configurations import EncoderConfiguration, Schedule
from pyinv.training.encoder_methods import Phase, Setting
from pyinv.training.frozen import FrozenGenerator

__all__ = ["layer_phases", "with_layers"]

# lambda of equation 8, from the authors' code.
REGENERATED_WEIGHT = 0.01


def with_layers(
    configuration: EncoderConfiguration, generator: FrozenGenerator
) -> EncoderConfiguration:
    """Return the configuration with the names of its layers filled in.

    The default layers are the generator's first nonlinear ones, one for each of ``layer_schedules``
    but the last, or fewer if the generator has fewer.

    Raises:
        InputError: the generator cannot be split into layers, or not into those named.
    """
    try:
        module = _module(generator)
        count = len(configuration.layer_schedules) - 1
        names = configuration.layers or first_layers(module, count)
        split(module, names)
    except ExportError as error:
        raise InputError(f"{generator.name}: {error}") from None
    *schedules, tail = configuration.layer_schedules
    return configuration.replace(layers=names, layer_schedules=(*schedules[: len(names)], tail))


def layer_phases(setting: Setting) -> list[Phase]:
    """Return the phases of the method: e_1 to e_k, e_F, and all of them jointly.

    Raises:
        InputError: the generator cannot be cut there, or there is no encoder for an activation.
    """
    generator = setting.generator
    configuration = with_layers(setting.configuration, generator)
    layers = split(_module(generator), configuration.layers).to(setting.device)
    problem = _Problem(setting, layers, _encoders(setting, layers))
    parts = [partial(_Layer, number=i + 1) for i in range(len(layers.layers))]
    kinds: list[Callable[..., Phase]] = [*parts, _Tail, _Whole]
    phases: list[Phase] = []
    first = 0
    for kind, schedule in zip(kinds, configuration.schedules, strict=True):
        phases.append(kind(problem, schedule, first=first))
        first += schedule.iterations
    return phases


def _module(generator: FrozenGenerator) -> nn.Module:
    """Return the generator as a module with layers, read back from ONNX if necessary."""
    read: nn.Module
    module, bundle = generator.module, generator.bundle
    if module is not None and not isinstance(module, torch.jit.ScriptModule):
        return module
    if bundle is not None and "onnx" in bundle.manifest.runtimes:
        read = read_generator(bundle)
        return read
    if module is None:
        assert bundle is not None
        module = load_torchscript(bundle.file(bundle.manifest.forward("torchscript")))
    # TorchScript does not expose its layers; an ONNX graph exposes its operators.
    with tempfile.TemporaryDirectory() as folder:
        path = export(
            module,
            Path(folder) / "read.bundle",
            latent_shape=generator.latent_shape if bundle is None else generator.latent_size,
            prior=generator.prior,
            losses="mse",
            normal_equations=False,
            value_range=generator.value_range,
        )
        read = read_generator(path)
    return read


def _encoders(setting: Setting, layers: Layers) -> dict[str, nn.Module]:
    """Create the networks e1, e2, ..., eF."""
    generator = setting.generator
    normalizes = generator.normalizes_latent
    shapes = layers.shapes(generator.latent_shape)

    def first() -> nn.Module:
        size, prior = generator.latent_size, generator.prior
        return make_first_encoder(size, shapes[0], prior, normalizes=normalizes)

    def later(i: int) -> nn.Module:
        return make_layer_encoder(shapes[i - 1], shapes[i], normalizes=normalizes)

    def tail() -> nn.Module:
        return make_tail_encoder(
            generator.image_shape,
            shapes[-1],
            value_range=generator.value_range,
            width=setting.configuration.width,
        )

    makers: list[Callable[[], nn.Module]] = [
        first,
        *(partial(later, i) for i in range(1, len(shapes))),
        tail,
    ]
    names = [*(f"e{i + 1}" for i in range(len(shapes))), "eF"]
    return {
        name: setting.network(make, Purpose.LAYER, number)
        for number, (name, make) in enumerate(zip(names, makers, strict=True))
    }


@dataclass(frozen=True)
class _Problem:
    """State shared by the phases.

    Args:
        setting: the training's setting.
        layers: the generator, split into layers.
        encoders: e1, e2, ..., eF.
    """

    setting: Setting
    layers: Layers
    encoders: Mapping[str, nn.Module]

    def latents(self, number: int) -> Tensor:
        """Return z [B, *latent_shape]."""
        return self.setting.latents(number).view(-1, *self.setting.generator.latent_shape)

    def distance(self, found: Tensor, true: Tensor) -> Tensor:
        """Return d, a mean over the batch."""
        if self.setting.generator.normalizes_latent:
            return 1 - functional.cosine_similarity(found, true).mean()
        return functional.mse_loss(found, true)

    def whole(self) -> LayeredEncoder:
        """Return E, which shares its weights with the encoders."""
        *layers, tail = self.encoders.values()
        return LayeredEncoder(layers, tail)


class _Part(Phase):
    """A phase that trains one of the encoders."""

    def __init__(
        self,
        problem: _Problem,
        schedule: Schedule,
        *,
        name: str,
        first: int,
        losses: tuple[str, ...],
    ) -> None:
        network = problem.encoders[name]
        super().__init__(
            name,
            problem.setting,
            schedule,
            first=first,
            networks={name: network},
            solvers={name: problem.setting.adam(network.parameters())},
            losses=losses,
        )
        self._problem = problem

    def encoder(self) -> None:
        return None


class _Layer(_Part):
    """The phase that trains e_i."""

    def __init__(self, problem: _Problem, schedule: Schedule, *, first: int, number: int) -> None:
        losses = ("inverted", "regenerated")
        super().__init__(problem, schedule, name=f"e{number}", first=first, losses=losses)
        self._number = number

    def step(self, iteration: int) -> dict[str, float]:
        problem = self._problem
        layers = problem.layers
        latents = problem.latents(self.first + iteration)
        with torch.no_grad():
            before, after = [latents, *layers.activations(latents, self._number)][-2:]
        found = self.networks[self.name](after).view_as(before)
        inverted = problem.distance(found, before)
        regenerated = problem.distance(layers.layers[self._number - 1](found), after)
        self.update(self.name, inverted + REGENERATED_WEIGHT * regenerated)
        return {"inverted": inverted.item(), "regenerated": regenerated.item()}


class _Tail(_Part):
    """The phase that trains e_F."""

    def __init__(self, problem: _Problem, schedule: Schedule, *, first: int) -> None:
        super().__init__(problem, schedule, name="eF", first=first, losses=("activation",))

    def step(self, iteration: int) -> dict[str, float]:
        layers = self._problem.layers
        with torch.no_grad():
            activation = layers.activations(self._problem.latents(self.first + iteration))[-1]
            images = layers.tail(activation.clone())
        loss = functional.mse_loss(self.networks["eF"](images), activation)
        self.update("eF", loss)
        return {"activation": loss.item()}


class _Whole(Phase):
    """The phase that fine-tunes E."""

    def __init__(self, problem: _Problem, schedule: Schedule, *, first: int) -> None:
        self._encoder = problem.whole()
        free = [
            parameter
            for name, parameter in self._encoder.named_parameters()
            if "last" not in name.split(".")
        ]
        super().__init__(
            "whole",
            problem.setting,
            schedule,
            first=first,
            networks=problem.encoders,
            solvers={"whole": problem.setting.adam(free)},
            losses=("latent", "activation", "regenerated", "image"),
        )
        self._problem = problem

    def step(self, iteration: int) -> dict[str, float]:
        problem = self._problem
        layers, distance = problem.layers, problem.distance
        latents = problem.latents(self.first + iteration)
        with torch.no_grad():
            activation = layers.activations(latents)[-1]
            images = layers.tail(activation.clone())
        found_activation = self._encoder.tail(images)
        found = self._encoder.latent(found_activation).view_as(latents)
        regenerated = layers.activations(found)[-1]
        losses = {
            "latent": distance(found, latents),
            "activation": distance(found_activation, activation),
            "regenerated": distance(regenerated, activation),
            "image": functional.mse_loss(layers.tail(regenerated.clone()), images),
        }
        self.update("whole", torch.stack(list(losses.values())).sum())
        return {name: loss.item() for name, loss in losses.items()}

    def encoder(self) -> nn.Module:
        return self._encoder
