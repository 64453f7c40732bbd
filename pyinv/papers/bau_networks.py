"""The loss, encoders and generator layers that the methods of Bau et al. need.

They are created once, in the reproduction's folder: ``networks/<generator>`` has the feature
network and the bundles, ``encoders/<generator>-<method>`` the encoders' training folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
from pyinv.papers.request import Request
from pyinv.training.checkpoint import read_checkpoint, write_checkpoint
from pyinv.training.classifier import train_classifier
from pyinv.training.encoder import train_encoder
from pyinv.training.encoder_configurations import EncoderConfiguration, get_encoder_configuration
from pyinv.training.frozen import FrozenGenerator, open_generator

__all__ = ["Networks", "Residual", "obtain_networks"]

FloatArray = NDArray[np.float32]

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


@dataclass(frozen=True, eq=False)
class Networks:
    """The networks of one generator.

    Args:
        inverter: the inverter of the generator's bundle, with the loss that the methods minimise.
        loss: name of that loss.
        loss_description: what that loss is, in words.
        encoders: inverters of the bundles with encoders, by training method.
        encoders_description: how they were trained, in words.
        layers: the split generator, or None.
        normalizes: whether it normalises each layer's input.
        residual: the generator of method (f), or None.
        why_no_layers: why the generator cannot be split; "" if it can.
    """

    inverter: Inverter
    loss: str
    loss_description: str
    encoders: Mapping[str, Inverter]
    encoders_description: str
    layers: Layers | None
    normalizes: bool
    residual: Residual | None
    why_no_layers: str

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


def obtain_networks(
    generators: Sequence[Generator],
    encoders: Mapping[str, Mapping[str, Encoder]],
    request: Request,
) -> list[Networks]:
    """Train and export the networks that do not exist yet.

    Args:
        generators: the reproduction's generators.
        encoders: the given encoders, by generator key and training method.
        request: gives the folder, the data, the seed, and the encoders' iterations.

    Returns:
        the networks of each generator.

    Raises:
        InputError: bad data.
        ExportError: the generator cannot be exported.
        KeyboardInterrupt: Ctrl-C during training; its checkpoint remains.
    """
    data = GivenData(request)
    return [
        _Maker(generator, encoders[generator.key], data, request).networks()
        for generator in generators
    ]


def _parts(count: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]


def _compared(activations: FloatArray, normalizes: bool) -> FloatArray:
    """Return activations in the form in which they are compared, normalised if necessary."""
    if not normalizes:
        return activations
    normalized: FloatArray = pixel_norm(torch.from_numpy(activations)).numpy()
    return normalized


class _Maker:
    """Creates the networks of one generator."""

    def __init__(
        self,
        generator: Generator,
        encoders: Mapping[str, Encoder],
        data: GivenData,
        request: Request,
    ) -> None:
        self.generator = generator
        self.given = encoders
        self.data = data
        self.request = request
        self.manifest = generator.manifest
        self.folder = request.folder / "networks" / generator.key
        self.frozen: FrozenGenerator = open_generator(
            generator.source, threads=request.machine.get("threads")
        )

    def networks(self) -> Networks:
        names, why = self._names()
        loss, bundle = self._bundle()
        layers = split(self.module, names) if names else None
        residual = None if layers is None else self._residual(layers, loss)
        encoders = self._encoders(names)
        return Networks(
            inverter=self._open(bundle),
            loss=loss,
            loss_description=self._describe_loss(loss),
            encoders={method: self._open(path) for method, path in encoders.items()},
            encoders_description=self._describe_encoders(names),
            layers=layers,
            normalizes=self.frozen.normalizes_latent,
            residual=residual,
            why_no_layers=why,
        )

    @cached_property
    def module(self) -> nn.Module:
        """The generator's module; for a bundle without one, it is read from the ONNX file."""
        return self.frozen.module or read_generator(self.generator.inverter.bundle)

    def _open(self, path: Path) -> Inverter:
        """Open a bundle and allow targets outside its value range, as generated images may be."""
        bundle = Bundle.open(path)
        manifest = replace(bundle.manifest, bounded=False)
        return Inverter(replace(bundle, manifest=manifest), **self.request.machine)

    def _names(self) -> tuple[tuple[str, ...], str]:
        """Return the layers to split after, or else the reason that there are none."""
        try:
            names = first_layers(self.module, MOST_LAYERS)
            split(self.module, names)
        except (BundleError, ExportError) as error:
            path = self.generator.inverter.bundle.path
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
            return self.module is not None
        except (BundleError, ExportError):
            return False

    # -- the loss

    @cached_property
    def _labelled(self) -> Dataset | None:
        """The training split of the generator's dataset, if it has labels."""
        own = self.data.of(self.generator, "train")
        if own is None or own.labels is None or len(set(own.labels)) < 2:
            return None
        return own

    def _bundle(self) -> tuple[str, Path]:
        """Return the loss to minimise and the bundle that has it."""
        given = self.generator.inverter.bundle.path
        if self._labelled is not None and self._has_module:
            loss = PERCEPTUAL
        elif "l1" in self.manifest.losses:
            return "l1", given
        elif self._has_module:
            loss = "l1"
        else:
            return "mse", given
        others = [name for name in self.manifest.losses if name in ("mse", "whitened")]
        losses = [*others, self._features if loss == PERCEPTUAL else loss]
        return loss, self._exported(
            "generator.bundle",
            {"loss": self._made_of(loss)},
            lambda path, origin: export(
                self.module,
                path,
                latent_shape=self.manifest.latent_shape,
                prior=self.manifest.prior,
                losses=losses,
                value_range=self.manifest.value_range,
                name=self.manifest.name,
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
            "seed": self.request.seed,
        }

    @cached_property
    def _features(self) -> Any:
        """The perceptual loss on a classifier's features, trained once."""
        data = self._labelled
        assert data is not None
        assert data.labels is not None
        made_of = self._features_made_of
        path = open_folder(self.folder) / "features.pt"
        saved = read_checkpoint(path)
        if saved is None or saved.get("made_of") != made_of:
            self.request.say(f"training a classifier on {data.name} for the features of d_I")
            classifier = train_classifier(
                data.images,
                data.labels,
                value_range=self.manifest.value_range,
                iterations=FEATURE_ITERATIONS,
                seed=self.request.seed,
                threads=self.request.machine.get("threads"),
                progress=self.request.say,
            )
            state = {"network": classifier.state_dict(), "classes": list(classifier.classes)}
            write_checkpoint(path, {"made_of": made_of, **state})
            saved = read_checkpoint(path)
            assert saved is not None
        network = Classifier(self.manifest.image_shape[0], saved["classes"])
        network.load_state_dict(saved["network"])
        return perceptual(network.eval(), FEATURES)

    def _describe_loss(self, loss: str) -> str:
        if loss == PERCEPTUAL:
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
        return f"{names[loss]} ({why})"

    # -- the layers

    def _residual(self, layers: Layers, loss: str) -> Residual:
        path = self._exported(
            "residuals.bundle",
            {"loss": self._made_of(loss), "layers": list(layers.names)},
            lambda path, origin: layers.export_residual(
                path,
                latent_shape=self.manifest.latent_shape,
                losses=[self._features if loss == PERCEPTUAL else loss],
                normal_equations=False,
                value_range=self.manifest.value_range,
                name=f"residuals of {self.manifest.name or self.generator.key}",
                origin=origin,
                overwrite=True,
            ),
        )
        generator = layers.residual_generator(self.manifest.latent_shape)
        return Residual(self._open(path), generator, self.frozen.normalizes_latent)

    def _exported(
        self,
        name: str,
        made_of: Mapping[str, Any],
        write: Callable[[Path, dict[str, Any]], Path],
    ) -> Path:
        """Return a bundle in the folder; write it unless it exists and was made from the same."""
        origin = {
            **self.manifest.origin,
            "made_of": {"generator": self.frozen.sha256, **made_of},
        }
        path = self.folder / name
        try:
            if Bundle.open(path).manifest.origin.get("made_of") == origin["made_of"]:
                return path
        except BundleError:
            pass
        self.request.say(f"exporting {path}")
        open_folder(self.folder)
        return write(path, origin)

    # -- the encoders

    def _configurations(self, names: tuple[str, ...]) -> dict[str, EncoderConfiguration]:
        named = get_encoder_configuration(CONFIGURATION).replace(seed=self.request.seed)
        losses = self.frozen.losses
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
        if self.request.encoder_iterations is not None:
            return {
                method: one.with_iterations(self.request.encoder_iterations)
                for method, one in configurations.items()
            }
        return configurations

    def _encoders(self, names: tuple[str, ...]) -> dict[str, Path]:
        """Train the missing encoders and return the bundles of all."""
        bundles: dict[str, Path] = {}
        configurations = self._configurations(names)
        for method, configuration in configurations.items():
            if method in self.given:
                bundles[method] = self.given[method].path
                continue
            key = f"{self.generator.key}-{method.replace('+', '-')}"
            self.request.say(
                f"{self.generator.title}: training an encoder by {method}, "
                f"{configuration.iterations:,} iterations"
            )
            try:
                trained = train_encoder(
                    configuration,
                    self.frozen,
                    self.request.folder / "encoders" / key,
                    **self.request.training,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{len(bundles)} of {len(configurations)} encoders of {self.generator.title} "
                    "are trained; run the same command to resume from the last checkpoint"
                ) from None
            bundles[method] = trained.bundle
        return bundles

    def _describe_encoders(self, names: tuple[str, ...]) -> str:
        parts = []
        for method, settings in self._configurations(names).items():
            description = (
                self.given[method].description
                if method in self.given
                else f"{settings.iterations:,} iterations of {settings.batch_size} images "
                f"(configuration {settings.name})"
            )
            parts.append(f"({LETTERS[method]}) {description}")
        return ", ".join(parts)
