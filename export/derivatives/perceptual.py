"""A perceptual loss: the distance between images in pixels and in a network's features."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyinv.errors import ExportError

from ..capture.onnx_file import OnnxModule
from ..capture.torchscript_reader import load_torchscript
from ..capture.trace import prepare, trace_features
from ..check import check_file
from ..diagnostics import first_line
from .losses import Specialised

__all__ = ["Perceptual", "perceptual"]

_WHAT = "feature network"
_EXAMPLES = 2
# The most layer names that an error message lists.
_MOST_NAMED = 40

Features = Callable[[Tensor], Sequence[Tensor]]


def perceptual(
    features: nn.Module | str | os.PathLike[str],
    layers: str | Iterable[str] | None = None,
    weight: float = 1.0,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Perceptual:
    """The perceptual loss, for ``export(losses=...)``: L1 in pixels and in a network's features.

    For images x and x' of P values, and layers l = 1 ... L of the network with N_l values each,

        loss = 1/P sum |x - x'| + weight / L * sum_l 1/N_l sum |f_l(x) - f_l(x')|

    The network is copied to float32 on the CPU, put in eval mode and frozen. A bundle with this
    loss contains the network's weights. Each evaluation runs the network on the image and on the
    target, and backpropagates through it to the image.

    The result is also a differentiable torch function, image and target [B, C, H, W] -> loss [B],
    which runs on the device of its images.

    Source: the image distance d_I of Bau et al. 2019 (Seeing What a GAN Cannot Generate, method
    a), there with features of an ImageNet VGG16.

    Args:
        features: maps images [B, C, H, W] to features: a module, or a TorchScript module or file.
        layers: names of submodules, as in ``named_modules()``, whose outputs are compared; None
            compares the network's own output. A TorchScript network supports only None.
        weight: the weight of the feature term, at least 0.
        mean: subtracted from each channel of images in [0, 1]; one number, or one per channel.
            With ``mean`` or ``std`` the network gets (u - mean) / std, where u is the image mapped
            from ``value_range`` to [0, 1]; with neither, it gets the image unchanged.
        std: divides each channel; one number, or one per channel.
        value_range: the range of the images' values; used only with ``mean`` or ``std``.

    Raises:
        ExportError: the network cannot be read or copied, has no such layer, or a number is out of
            range. When called or exported: the network does not take such images, or does not
            return features.

    Examples:
        >>> vgg = torchvision.models.vgg16(weights="IMAGENET1K_V1").features[:22]  # to conv4_3
        >>> loss = perceptual(vgg, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        >>> export(netG, "faces.bundle", latent_shape=100, prior=Normal(), losses=("mse", loss))
    """
    if isinstance(features, str | os.PathLike):
        features = load_torchscript(Path(features), what=_WHAT)
    weight = _number("weight", weight)
    if weight < 0:
        raise ExportError(f"perceptual: weight must be at least 0, got {weight:g}")
    names = None if layers is None else _names(layers)
    if names is not None:
        _check_layers(features, names)
    scale, shift = _normalisation(mean, std, value_range)
    return Perceptual(
        _FeatureNetwork(prepare(features, batch_norm="eval", what=_WHAT), names, scale, shift),
        weight,
        None if scale is None else (float(value_range[0]), float(value_range[1])),
    )


class Perceptual(Specialised):
    """The perceptual loss, image and target [B, C, H, W] -> loss [B]; see ``perceptual``."""

    __name__ = "perceptual"  # its name among a bundle's losses

    def __init__(
        self,
        network: _FeatureNetwork,
        weight: float,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.weight = weight
        self.value_range = value_range  # of the images; None: any
        self._network = network
        self._copies: dict[tuple[torch.device, torch.dtype], _FeatureNetwork] = {}
        self._checked: set[tuple[int, ...]] = set()

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the loss [B] of images [B, C, H, W], differentiable in both arguments."""
        if image.ndim == target.ndim and image.ndim != 4:
            sizes = ", ".join(map(str, image.shape[1:]))
            raise ExportError(
                f"perceptual compares images [B, C, H, W], and these targets are [B, {sizes}]: use "
                "mse or l1, or a torch function (image, target) -> [B]"
            )
        if image.shape != target.shape:
            raise ExportError(
                "perceptual takes an image and a target of one shape [B, C, H, W], got "
                f"{list(image.shape)} and {list(target.shape)}"
            )
        self._check(tuple(image.shape[1:]))
        return self._loss(self._network_for(image.device, image.dtype), image, target)

    def for_images(self, shape: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss for one image shape, using the network's graph with folded batch norm."""
        self._check(shape)
        features = trace_features(self._network, shape)
        return lambda image, target: self._loss(features, image, target)

    def _loss(self, features: Features, image: Tensor, target: Tensor) -> Tensor:
        loss = _distance(image, target)
        found, expected = features(image), features(target)
        factor = self.weight / len(found)
        for one, other in zip(found, expected, strict=True):
            loss = loss + factor * _distance(one, other)
        return loss

    def _check(self, shape: tuple[int, ...]) -> None:
        """Check the network by running it once on images of a new shape."""
        if shape in self._checked:
            return
        images = torch.rand(_EXAMPLES, *shape, generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found, again = self._try(images), self._try(images)
        for name, one, other in zip(self._network.described, found, again, strict=True):
            _check_features(name, one)
            if not torch.allclose(one, other, rtol=1e-5, atol=1e-6):
                raise ExportError(
                    f"{name} differs for the same images: it draws noise or drops out in eval mode"
                )
        if isinstance(self._network.network, OnnxModule):
            check_file(self._network.network, [images])
        self._checked.add(shape)

    def _try(self, images: Tensor) -> Sequence[Tensor]:
        try:
            activations: Sequence[Tensor] = self._network(images)
            return activations
        except ExportError:
            raise
        except Exception as error:
            given = ", ".join(map(str, images.shape[1:]))
            raise ExportError(
                f"the {_WHAT} does not take images [B, {given}]: {first_line(error)}; give one for "
                "images of this size and number of channels"
            ) from error

    def _network_for(self, device: torch.device, dtype: torch.dtype) -> _FeatureNetwork:
        if (device.type, dtype) == ("cpu", torch.float32):
            return self._network
        if (device, dtype) not in self._copies:
            self._copies[device, dtype] = copy.deepcopy(self._network).to(device, dtype)
        return self._copies[device, dtype]


class _FeatureNetwork(nn.Module):
    """Images [B, C, H, W] -> the outputs of the named layers, in the order given."""

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        layers: tuple[str, ...] | None,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.layers = layers
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    @property
    def described(self) -> list[str]:
        """The name of each result in error messages."""
        if self.layers is None:
            return [f"the output of the {_WHAT}"]
        return [f"the output of layer {name!r} of the {_WHAT}" for name in self.layers]

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.scale is not None and self.shift is not None:
            if self.scale.shape[0] not in (1, images.shape[1]):
                raise ExportError(
                    f"perceptual: mean and std are of {self.scale.shape[0]} channels, the images "
                    f"have {images.shape[1]}: give one number, or one for each channel"
                )
            images = images * self.scale + self.shift
        if self.layers is None:
            return [self.network(images)]
        found: dict[str, Any] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                # The next layer may change its input in place.
                found[name] = output.clone() if isinstance(output, Tensor) else output

            return hook

        # Hooks are registered per call, because those of a copied module would write into the
        # original's results.
        handles = [
            self.network.get_submodule(name).register_forward_hook(keep(name))
            for name in self.layers
        ]
        try:
            self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        for name in self.layers:
            if name not in found:
                raise ExportError(
                    f"layer {name!r} of the {_WHAT} does not run when it is called: name another"
                )
        return [found[name] for name in self.layers]


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().flatten(1).mean(1)


def _check_features(name: str, features: object) -> None:
    if not isinstance(features, Tensor):
        raise ExportError(
            f"{name} must be a tensor, it is {type(features).__name__}: name layers that return "
            "one, or wrap the network in a module that does"
        )
    if features.ndim < 2 or features.shape[0] != _EXAMPLES or features.numel() == 0:
        raise ExportError(
            f"{name} must be [B, ...], features of each image; of {_EXAMPLES} images it is "
            f"{list(features.shape)}"
        )
    if not features.is_floating_point() or not bool(torch.isfinite(features).all()):
        raise ExportError(f"{name} must be finite floats: check its weights")


def _names(layers: str | Iterable[str]) -> tuple[str, ...]:
    try:
        names = (layers,) if isinstance(layers, str) else tuple(layers)
    except TypeError:
        names = ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ExportError(f"perceptual: layers must be names of submodules, got {layers!r}")
    for name in names:
        if names.count(name) > 1:
            raise ExportError(f"perceptual: layer {name!r} is given twice: give each once")
    return names


def _check_layers(features: object, names: Sequence[str]) -> None:
    if isinstance(features, torch.jit.ScriptModule):
        raise ExportError(
            "perceptual: layers cannot be taken out of a TorchScript network: save one that ends "
            "at the layer, or returns its features, and leave layers out"
        )
    if not isinstance(features, nn.Module):
        return  # which prepare refuses
    known = [name for name, _ in features.named_modules() if name]
    for name in names:
        if name not in known:
            listed = ", ".join(known[:_MOST_NAMED]) or "none"
            more = f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
            raise ExportError(f"the {_WHAT} has no layer {name!r}; it has {listed}{more}")


def _normalisation(
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    value_range: tuple[float, float],
) -> tuple[Tensor | None, Tensor | None]:
    """The scale and shift, each [C, 1, 1] or [1, 1, 1], that combine mapping and normalisation."""
    if mean is None and std is None:
        return None, None
    means = _per_channel("mean", 0.0 if mean is None else mean)
    stds = _per_channel("std", 1.0 if std is None else std)
    if min(stds) <= 0:
        raise ExportError(f"perceptual: std must be above 0, got {std!r}")
    if len(means) != len(stds) and 1 not in (len(means), len(stds)):
        raise ExportError(
            f"perceptual: mean has {len(means)} channels and std {len(stds)}: give as many of each"
        )
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ExportError(f"perceptual: value_range must be (lowest, highest), got {value_range!r}")
    subtracted = low + (high - low) * torch.tensor(means, dtype=torch.float64)
    scale = 1 / ((high - low) * torch.tensor(stds, dtype=torch.float64))
    shift = -subtracted * scale
    scale = scale.expand(shift.shape)
    return scale.float()[:, None, None], shift.float()[:, None, None]


def _per_channel(name: str, given: float | Sequence[float]) -> list[float]:
    values = list(given) if isinstance(given, Iterable) else [given]
    if not values:
        raise ExportError(f"perceptual: {name} is empty: give one number, or one for each channel")
    return [_number(name, value) for value in values]


def _number(name: str, given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ExportError(f"perceptual: {name} must be a number, got {given!r}")
    return value
