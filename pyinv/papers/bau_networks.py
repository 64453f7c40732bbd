"""The loss, encoders and generator layers that the methods of Bau et al. need.

They are created once, in the reproduction's folder: ``networks/<generator>`` has the feature
network and the bundles, ``encoders/<generator>-<method>`` the encoders' training folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pyinv.bundle import Bundle
from pyinv.datasets import Dataset
from pyinv.errors import BundleError, ExportError
from pyinv.export import export, perceptual
from pyinv.export.layers import Layers, ResidualGenerator, first_layers, split
from pyinv.export.runtimes.onnx_reader import read_generator
from pyinv.inverter import Inverter
from pyinv.models.classifier import Classifier
from pyinv.models.progan import pixel_norm
from pyinv.papers.encoders import Encoder
from pyinv.papers.folder import open_folder
from pyinv.papers.generators import Generator, GivenData
from pyinv.papers.pixels import FloatArray
from pyinv.papers.request import Request
from pyinv.training.checkpoint import read_checkpoint, write_checkpoint
from pyinv.training.classifier import train_classifier
from pyinv.training.encoder import train_encoder
from pyinv.training.encoder_configurations import EncoderConfiguration, get_encoder_configuration
from pyinv.training.frozen import FrozenGenerator, open_generator

__all__ = ["Networks", "Residual"]

CONFIGURATION = "bau-32"
LETTERS = {"latent+image": "b", "layers": "d"}  # the paper's methods
MOST_LAYERS = 4  # before G_F, as in the paper
PERCEPTUAL = "perceptual"
FEATURES = ("layer2", "layer4")  # of the classifier
FEATURE_ITERATIONS = 1500
BATCH = 64  # batch size for computing layer activations


@dataclass(frozen=True, eq=False)
class Residual:
    """The generator of method (f): its latent is the residuals, its condition is z_0.

    Args:
        inverter: the inverter of its bundle.
        generator: the same generator in PyTorch.
        normalizes: whether the generator normalises each layer's input.
    """

    inverter: Inverter
    generator: ResidualGenerator
    normalizes: bool

    @property
    def rate(self) -> float:
        """The factor for the paper's learning rate that the latent's scaling requires, a mean."""
        return 1 / float(np.sqrt(np.mean(np.square(self.generator.scales))))

    def layer(self, latents: FloatArray, first: FloatArray) -> FloatArray:
        """Return the activations of the last layer before G_F, [N, ...], for latents and z_0."""
        parts = [
            self.generator.activation_of(latents[rows], first[rows]) for rows in _parts(len(first))
        ]
        return _compared(np.concatenate(parts), self.normalizes)

    def describe(self) -> str:
        """Describe the residuals, for comparison with the paper's."""
        steps = ", ".join(f"{self.rate * scale:.2f}" for scale in self.generator.scales)
        return (
            f"{len(self.generator.shapes)}, scaled so that the penalty equals that of a normal "
            f"prior; this makes Adam's steps {steps} times as long as without scaling"
        )


class Networks:
    """The networks of one generator. Those that do not exist yet are trained and exported.

    Args:
        generator: the generator.
        encoders: the given encoders, by training method; the missing ones are trained.
        data: the given datasets.
        request: gives the folder, the seed, the machine and the encoders' iterations.

    Attributes:
        inverter: the inverter of the generator's bundle, with the loss that the methods minimise.
        loss: name of that loss.
        loss_description: what that loss is, in words.
        encoders: inverters of the bundles with encoders, by training method.
        encoders_description: how they were trained, in words.
        layers: the split generator, or None.
        normalizes: whether it normalises each layer's input.
        residual: the generator of method (f), or None.
        why_no_layers: why the generator cannot be split; "" if it can.

    Raises:
        InputError: bad data.
        ExportError: the generator cannot be exported.
        KeyboardInterrupt: Ctrl-C during training; its checkpoint remains.
    """

    def __init__(
        self,
        generator: Generator,
        encoders: Mapping[str, Encoder],
        data: GivenData,
        request: Request,
    ) -> None:
        self._generator = generator
        self._given = encoders
        self._data = data
        self._request = request
        self._manifest = generator.manifest
        self._folder = request.folder / "networks" / generator.key
        self._frozen: FrozenGenerator = open_generator(
            generator.source, threads=request.machine.get("threads")
        )
        self.normalizes = self._frozen.normalizes_latent
        names, self.why_no_layers = self._names()
        self.loss, bundle = self._bundle()
        self.loss_description = self._describe_loss()
        self.inverter = self._open(bundle)
        self.layers: Layers | None = split(self._module, names) if names else None
        self.residual = None if self.layers is None else self._residual(self.layers)
        configurations = self._configurations(names)
        self.encoders = {
            method: self._open(path) for method, path in self._encoders(configurations).items()
        }
        self.encoders_description = self._describe_encoders(configurations)

    @property
    def cuts(self) -> int:
        """The number of layers before G_F."""
        return 0 if self.layers is None else len(self.layers.names)

    @property
    def layer_name(self) -> str:
        """The name of the last layer before G_F."""
        return f"layer {self.cuts}"

    def layer(self, latents: FloatArray) -> FloatArray | None:
        """Return the activations of the last layer before G_F, [N, ...]; None without layers.

        If the generator normalises each layer's input, they are normalised in the same way, because
        the next layer ignores their scale at each pixel.
        """
        if self.layers is None:
            return None
        with torch.no_grad():
            parts = [
                self.layers.activations(torch.from_numpy(latents[rows]))[-1].numpy()
                for rows in _parts(len(latents))
            ]
        return _compared(np.concatenate(parts), self.normalizes)

    @cached_property
    def _module(self) -> nn.Module:
        """The generator's module; for a bundle without one, it is read from the ONNX file."""
        return self._frozen.module or read_generator(self._generator.inverter.bundle)

    def _open(self, path: Path) -> Inverter:
        """Open a bundle and allow targets outside its value range, as generated images may be."""
        bundle = Bundle.open(path)
        manifest = replace(bundle.manifest, bounded=False)
        return Inverter(replace(bundle, manifest=manifest), **self._request.machine)

    def _names(self) -> tuple[tuple[str, ...], str]:
        """Return the layers to split after, or else the reason that there are none."""
        try:
            names = first_layers(self._module, MOST_LAYERS)
            split(self._module, names)
        except (BundleError, ExportError) as error:
            path = self._generator.inverter.bundle.path
            return (), str(error).replace(str(path), path.name)
        if len(names) < 2:
            return (
                (),
                f"this generator can only be split after {names[0]}; residuals need two splits",
            )
        return names, ""

    @property
    def _has_module(self) -> bool:
        try:
            return self._module is not None
        except (BundleError, ExportError):
            return False

    # -- the loss

    @cached_property
    def _labelled(self) -> Dataset | None:
        """The training split of the generator's dataset, if it has labels."""
        own = self._data.of(self._generator, "train")
        if own is None or own.labels is None or len(set(own.labels)) < 2:
            return None
        return own

    def _bundle(self) -> tuple[str, Path]:
        """Return the loss to minimise and the bundle that has it."""
        given = self._generator.inverter.bundle.path
        if self._labelled is not None and self._has_module:
            loss = PERCEPTUAL
        elif "l1" in self._manifest.losses:
            return "l1", given
        elif self._has_module:
            loss = "l1"
        else:
            return "mse", given
        others = [name for name in self._manifest.losses if name in ("mse", "whitened")]
        losses = [*others, self._features if loss == PERCEPTUAL else loss]
        return loss, self._exported(
            "generator.bundle",
            {"loss": self._made_of(loss)},
            lambda path, origin: export(
                self._module,
                path,
                latent_shape=self._manifest.latent_shape,
                prior=self._manifest.prior,
                losses=losses,
                value_range=self._manifest.value_range,
                name=self._manifest.name,
                origin=origin,
                overwrite=True,
            ),
        )

    def _made_of(self, loss: str) -> dict[str, Any]:
        """Return everything that a loss depends on, including its name."""
        return {"name": loss, **(self._features_made_of if loss == PERCEPTUAL else {})}

    @cached_property
    def _features_made_of(self) -> dict[str, Any]:
        data = self._labelled
        assert data is not None
        assert data.labels is not None
        digest = hashlib.sha256(np.ascontiguousarray(data.images).data)
        digest.update("\n".join(data.labels).encode())
        return {
            "data": digest.hexdigest(),
            "layers": list(FEATURES),
            "iterations": FEATURE_ITERATIONS,
            "seed": self._request.seed,
        }

    @cached_property
    def _features(self) -> Any:
        """The perceptual loss on a classifier's features, trained once."""
        data = self._labelled
        assert data is not None
        assert data.labels is not None
        made_of = self._features_made_of
        path = open_folder(self._folder) / "features.pt"
        saved = read_checkpoint(path)
        if saved is None or saved.get("made_of") != made_of:
            self._request.say(f"training a classifier on {data.name} for the features of d_I")
            classifier = train_classifier(
                data.images,
                data.labels,
                value_range=self._manifest.value_range,
                iterations=FEATURE_ITERATIONS,
                seed=self._request.seed,
                threads=self._request.machine.get("threads"),
                progress=self._request.say,
            )
            state = {"network": classifier.state_dict(), "classes": list(classifier.classes)}
            write_checkpoint(path, {"made_of": made_of, **state})
            saved = read_checkpoint(path)
            assert saved is not None
        network = Classifier(self._manifest.image_shape[0], saved["classes"])
        network.load_state_dict(saved["network"])
        return perceptual(network.eval(), FEATURES)

    def _describe_loss(self) -> str:
        if self.loss == PERCEPTUAL:
            assert self._labelled is not None
            return (
                f"L1 in pixels and L1 in the features ({' and '.join(FEATURES)}) of a small "
                f"classifier that was trained on the {len(self._labelled):,} training images of "
                f"{self._labelled.name}"
            )
        why = (
            "no labelled training data for a feature network was given"
            if self._has_module
            else "the bundle's own loss"
        )
        names = {"l1": "only L1 in pixels", "mse": "the mean squared error of pixels"}
        return f"{names[self.loss]} ({why})"

    # -- the layers

    def _residual(self, layers: Layers) -> Residual:
        path = self._exported(
            "residuals.bundle",
            {"loss": self._made_of(self.loss), "layers": list(layers.names)},
            lambda path, origin: layers.export_residual(
                path,
                latent_shape=self._manifest.latent_shape,
                losses=[self._features if self.loss == PERCEPTUAL else self.loss],
                normal_equations=False,
                value_range=self._manifest.value_range,
                name=f"residuals of {self._manifest.name or self._generator.key}",
                origin=origin,
                overwrite=True,
            ),
        )
        generator = layers.residual_generator(self._manifest.latent_shape)
        return Residual(self._open(path), generator, self.normalizes)

    def _exported(
        self,
        name: str,
        made_of: Mapping[str, Any],
        write: Callable[[Path, dict[str, Any]], Path],
    ) -> Path:
        """Return a bundle in the folder; write it unless it exists and was made from the same."""
        origin = {
            **self._manifest.origin,
            "made_of": {"generator": self._frozen.sha256, **made_of},
        }
        path = self._folder / name
        try:
            if Bundle.open(path).manifest.origin.get("made_of") == origin["made_of"]:
                return path
        except BundleError:
            pass
        self._request.say(f"exporting {path}")
        open_folder(self._folder)
        return write(path, origin)

    # -- the encoders

    def _configurations(self, names: tuple[str, ...]) -> dict[str, EncoderConfiguration]:
        named = get_encoder_configuration(CONFIGURATION).replace(seed=self._request.seed)
        losses = self._frozen.losses
        configurations = {
            "latent+image": named.replace(
                method="latent+image", image_loss="l1" if "l1" in losses else "mse"
            )
        }
        if names:
            *of_layers, of_rest = named.layer_schedules
            configurations["layers"] = named.replace(
                method="layers",
                layers=names,
                layer_schedules=(*of_layers[: len(names)], of_rest),
            )
        if self._request.encoder_iterations is not None:
            return {
                method: one.with_iterations(self._request.encoder_iterations)
                for method, one in configurations.items()
            }
        return configurations

    def _encoders(self, configurations: Mapping[str, EncoderConfiguration]) -> dict[str, Path]:
        """Train the missing encoders and return the bundles of all."""
        bundles: dict[str, Path] = {}
        for method, configuration in configurations.items():
            if method in self._given:
                bundles[method] = self._given[method].path
                continue
            key = f"{self._generator.key}-{method.replace('+', '-')}"
            self._request.say(
                f"{self._generator.title}: training an encoder by {method}, "
                f"{configuration.iterations:,} iterations"
            )
            try:
                trained = train_encoder(
                    configuration,
                    self._frozen,
                    self._request.folder / "encoders" / key,
                    **self._request.training,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{len(bundles)} of {len(configurations)} encoders of {self._generator.title} "
                    "are trained; run the same command to resume from the last checkpoint"
                ) from None
            bundles[method] = trained.bundle
        return bundles

    def _describe_encoders(self, configurations: Mapping[str, EncoderConfiguration]) -> str:
        parts = []
        for method, settings in configurations.items():
            description = (
                self._given[method].description
                if method in self._given
                else f"{settings.iterations:,} iterations of {settings.batch_size} images "
                f"(configuration {settings.name})"
            )
            parts.append(f"({LETTERS[method]}) {description}")
        return ", ".join(parts)


def _parts(count: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]


def _compared(activations: FloatArray, normalizes: bool) -> FloatArray:
    """Return activations in the form in which they are compared, normalised if necessary."""
    if not normalizes:
        return activations
    normalized: FloatArray = pixel_norm(torch.from_numpy(activations)).numpy()
    return normalized
