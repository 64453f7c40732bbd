"""Cut a sequential generator into its first layers and its tail, and export the parts.

    G(z) = G_F(g_k(... g_2(g_1(z)) ...)),    r_0 = z,    r_i = g_i(r_{i-1})

Source: Bau et al. 2019, "Inverting layers of a large generator", section 1 and equations 6 and 7
for r_i.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyinv.errors import ExportError, PyinvWarning
from pyinv.priors import PRIORS, Normal, Prior, Uniform
from pyinv.validation import shape_text

from ..capture.onnx_file import OnnxModule
from ..capture.trace import prepare
from ..check import draw_latents
from ..diagnostics import first_line
from ..exporter import check_shape, export
from ..origin import checked_origin
from .chain import Chain, listed
from .residuals import ResidualGenerator
from .tail import ORIGIN, StandardisedTail

__all__ = ["Layers", "first_layers", "split"]

_SAMPLED_AT_ONCE = 64
# Export options that export_tail and export_residual set themselves.
_DECIDED = ("latent_shape", "prior", "condition_shape", "batch_norm")


def split(generator: nn.Module, names: Sequence[str]) -> Layers:
    """Cut a generator after each of the named submodules: G(z) = G_F(g_k(... g_1(z))).

    In eval mode the parts together compute exactly what the generator does. The generator is copied
    to float32 on the CPU; the original is not changed.

    Its forward may be any chain of submodules, with reshapes and functions between them. Nested
    Sequentials are opened if a name refers to a module inside them. Other submodules are treated as
    units, whatever they compute.

    Args:
        generator: maps a latent [B, *latent_shape] to an image. Cannot be a TorchScript module, but
            may be the result of ``read_generator``.
        names: qualified names of submodules, "layer1" or "layers.2", in the order in which forward
            calls them. Only one tensor, the named submodule's output, may cross each cut. The batch
            size may be read from any tensor.

    Returns:
        the parts.

    Raises:
        ExportError: no such submodule (the message lists the names that exist), names out of order,
            or a cut that more than one tensor crosses, as with a skip connection.

    Examples:
        >>> layers = split(generator, ["layer1", "layer2", "layer3", "layer4"])
        >>> r1, r2, r3, r4 = layers.activations(latents)
        >>> images = layers.tail(r4)

    Source: Bau et al. 2019, section 1.
    """
    cut_names = _names(names)
    prepared = _prepared(generator)
    existing = [name for name, _ in prepared.named_modules() if name]
    for name in cut_names:
        if name not in existing:
            raise ExportError(f"the generator has no layer {name!r}: it has {listed(existing)}")
    chain = Chain(prepared, cut_names)
    places = [chain.place(name) for name in cut_names]
    pairs = list(zip(cut_names, places, strict=True))
    for (before, earlier), (after, later) in itertools.pairwise(pairs):
        if earlier is later:
            raise ExportError(
                f"layers {before!r} and {after!r} end at the same place: name one of them"
            )
        if later not in chain.after(earlier):
            raise ExportError(
                f"layer {after!r} does not come after {before!r}: name layers in the order in "
                "which the generator calls them"
            )
    for name, place in pairs:
        crossing = chain.crossing(place)
        if crossing is not None:
            possible = chain.cuts()
            raise ExportError(
                f"the generator cannot be cut after {name!r}, {crossing}: "
                + (f"cut after {listed(possible)}" if possible else "it is not a chain of layers")
            )
    *first, tail = chain.parts(places)
    return Layers(cut_names, first, tail)


def first_layers(generator: nn.Module, count: int = 4) -> tuple[str, ...]:
    """Return the names of a generator's first nonlinear layers, for ``split``.

    These are layer1, layer2 and so on if submodules with these names exist. Otherwise they are the
    first activations (``nn.ReLU`` and similar) after which a single tensor passes to layers with
    weights.

    Args:
        generator: as for ``split``.
        count: how many names to return; fewer are returned if fewer exist.

    Raises:
        ExportError: no such layer exists, or the generator cannot be cut.
    """
    prepared = _prepared(generator)
    numbered = [f"layer{number + 1}" for number in range(count)]
    if set(numbered) <= {name for name, _ in prepared.named_children()}:
        return tuple(numbered)
    activations = [name for name, module in prepared.named_modules() if _is_activation(module)]
    chain = Chain(prepared, activations)
    found = [name for name in chain.cuts() if name in activations and chain.has_weights_after(name)]
    if not found:
        raise ExportError(
            "the generator has no activation modules after which it can be cut: "
            f"name layers yourself, of {listed(name for name, _ in prepared.named_modules())}"
        )
    return tuple(found[:count])


class Layers:
    """A generator in parts, G(z) = G_F(g_k(... g_1(z))); returned by ``split``.

    Attributes:
        names: the submodules after which the generator is cut.
        layers: g_1 to g_k, in eval mode; their weights require no gradient.
        tail: G_F.
    """

    def __init__(self, names: Sequence[str], layers: Sequence[nn.Module], tail: nn.Module) -> None:
        self.names = tuple(names)
        self.layers = tuple(layers)
        self.tail = tail

    def __repr__(self) -> str:
        return f"Layers({', '.join(self.names)})"

    def to(self, device: torch.device | str) -> Layers:
        """Move every part to a device; return this object."""
        for part in (*self.layers, self.tail):
            part.to(device)
        return self

    def activations(self, latents: Tensor, count: int | None = None) -> list[Tensor]:
        """Return r_1 to r_k for latents [B, *latent_shape]: r_i = g_i(r_{i-1}), r_0 the latents.

        Differentiable in the latents.

        Args:
            latents: the generator's input.
            count: how many activations to return, from the first; None for all.
        """
        found = [latents]
        for layer in self.layers[:count]:
            # A layer that works in place must not change the returned activations.
            found.append(layer(found[-1].clone()))
        return found[1:]

    def shapes(self, latent_shape: int | Sequence[int]) -> list[tuple[int, ...]]:
        """Return the shapes of r_1 to r_k, without the batch axis.

        Raises:
            ExportError: the generator does not take latents of this shape.
        """
        sizes = check_shape("latent_shape", latent_shape)
        with torch.no_grad():
            try:
                found = self.activations(torch.ones(2, *sizes, device=self._device()))
            except Exception as error:
                raise ExportError(
                    f"the generator does not take a latent of shape [B, {shape_text(sizes)}]: "
                    f"{first_line(error)}; check latent_shape"
                ) from error
        return [tuple(activation.shape[1:]) for activation in found]

    def standardised_tail(
        self,
        latent_shape: int | Sequence[int],
        prior: Prior,
        *,
        samples: int = 1024,
        seed: int = 0,
    ) -> StandardisedTail:
        """Return G_F as a generator of latents with mean 0 and standard deviation 1.

        Args:
            latent_shape: shape of the whole generator's latent z.
            prior: what z is drawn from.
            samples: the number of draws of z for the mean and deviation of r_k, at least 2.
            seed: the seed of these draws.

        Raises:
            ExportError: an argument is invalid, or the activation does not vary.
        """
        shape = self.shapes(latent_shape)[-1]
        if not isinstance(prior, Uniform | Normal):
            raise ExportError(f"prior must be {PRIORS}, got {prior!r}")
        if not isinstance(samples, int) or samples < 2:
            raise ExportError(f"samples must be a number >= 2, got {samples!r}")
        mean, std = self._moments(check_shape("latent_shape", latent_shape), prior, samples, seed)
        return StandardisedTail(self.tail, shape, mean, std)

    def export_tail(
        self,
        path: str | os.PathLike[str],
        *,
        latent_shape: int | Sequence[int],
        prior: Prior,
        samples: int = 1024,
        seed: int = 0,
        origin: Mapping[str, Any] | None = None,
        **export_options: Any,
    ) -> Path:
        """Export G_F alone, with the activation r_k as its latent: the problem of Bau's equation 1.

        The bundle's latent u has the shape of r_k and the prior Normal(0, 1): r_k = mean + std * u,
        with the mean and standard deviation of each channel of r_k (the axis after the batch) over
        samples of z. They are stored in the manifest's origin. ``TailScale.of(bundle)`` converts
        between u and r_k.

        Args:
            path: the bundle's folder.
            latent_shape: shape of the whole generator's latent z.
            prior: what z is drawn from.
            samples: the number of draws of z for the mean and standard deviation, at least 2.
            seed: the seed of these draws.
            origin: as in ``export``; "layers" is added to it.
            export_options: the other arguments of ``pyinv.export.export``.

        Returns:
            the bundle's path.

        Raises:
            ExportError, OutputError: as ``export`` does; or an argument that does not fit.

        Examples:
            >>> layers.export_tail("tail.bundle", latent_shape=128, prior=Normal())
            >>> u = Inverter("tail.bundle").invert(images).latents
            >>> r4 = TailScale.of("tail.bundle").activation_of(u)
        """
        _refuse_decided(export_options)
        given = checked_origin(origin)
        tail = self.standardised_tail(latent_shape, prior, samples=samples, seed=seed)
        return export(
            tail,
            path,
            latent_shape=tail.shape,
            prior=Normal(),
            origin={
                **given,
                ORIGIN: {
                    "kind": "tail",
                    "after": list(self.names),
                    "samples": samples,
                    "seed": seed,
                    **tail.scale.describe(),
                },
            },
            **export_options,
        )

    def residual_generator(
        self, latent_shape: int | Sequence[int], *, weights: float | Sequence[float] = 1.0
    ) -> ResidualGenerator:
        """Return the generator of residuals of Bau's method (f); see ``ResidualGenerator``.

        Args:
            latent_shape: shape of the whole generator's latent z.
            weights: lambda_1 to lambda_{k-1}, each above 0; or one for all.

        Raises:
            ExportError: an argument is invalid, or k is 1, so that no residual can be added.
        """
        return ResidualGenerator(self, check_shape("latent_shape", latent_shape), weights)

    def export_residual(
        self,
        path: str | os.PathLike[str],
        *,
        latent_shape: int | Sequence[int],
        weights: float | Sequence[float] = 1.0,
        losses: Any = None,
        origin: Mapping[str, Any] | None = None,
        **export_options: Any,
    ) -> Path:
        r"""Export the generator of Bau's method (f): the latent is residuals, the condition z_0.

        $$
        x = G_F(g_k(\delta_{k-1} + g_{k-1}(\cdots \delta_1 + g_1(z_0))))
        $$

        The bundle's latent u, of shape [d], is the concatenation of $\delta_1, \dots,
        \delta_{k-1}$, each divided by its scale (see ``ResidualGenerator``). The prior is
        Normal(0, 1), and the condition is z_0, flattened. With these scales the penalty
        ``PriorPenalty(1.0)`` is $\sum_i \lambda_i \operatorname{mean}(\delta_i^2)$, the term
        of equation 12 as implemented in the authors' code. To start from residuals of 0, call
        ``invert(images, conditions=z0, init=numpy.zeros((N, d)))``.

        Args:
            path: the bundle's folder.
            latent_shape: shape of the whole generator's latent z.
            weights: lambda_1 to lambda_{k-1}, each above 0; or one for all. The paper uses 1.
            losses: as in ``export``. The paper uses L1 in pixels plus L1 in features of VGG16.
            origin: as in ``export``; "layers" is added to it.
            export_options: the other arguments of ``pyinv.export.export``.

        Returns:
            the bundle's path.

        Raises:
            ExportError, OutputError: as ``export`` does; or an argument that does not fit.

        Source: Bau et al. 2019, equations 10 to 12.
        """
        _refuse_decided(export_options)
        given = checked_origin(origin)
        generator = self.residual_generator(latent_shape, weights=weights)
        with warnings.catch_warnings():
            # The prior only defines the penalty. Residuals drawn from it are large, so the range of
            # their images says nothing about the range of the generator's images.
            warnings.filterwarnings("ignore", ".*is that the right range", PyinvWarning)
            return export(
                generator,
                path,
                latent_shape=generator.latent_size,
                prior=Normal(),
                condition_shape=math.prod(generator.latent_shape),
                losses=losses,
                origin={
                    **given,
                    ORIGIN: {
                        "kind": "residuals",
                        "after": list(self.names),
                        "shapes": [list(shape) for shape in generator.shapes],
                        "weights": list(generator.weights),
                        "scales": list(generator.scales),
                    },
                },
                **export_options,
            )

    def _device(self) -> torch.device:
        for part in (*self.layers, self.tail):
            for tensor in (*part.parameters(), *part.buffers()):
                return tensor.device
        return torch.device("cpu")

    def _moments(
        self, latent_shape: tuple[int, ...], prior: Prior, samples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of each channel of r_k, float32 [C]."""
        random = torch.Generator().manual_seed(seed)
        latents = draw_latents(prior, samples, math.prod(latent_shape), random=random)
        total = squares = torch.zeros(())
        count = 0
        with torch.no_grad():
            # In double, so that a small deviation next to a large mean keeps its digits.
            for part in latents.view(-1, *latent_shape).split(_SAMPLED_AT_ONCE):
                r = self.activations(part.to(self._device()))[-1].double().cpu()
                axes = [0, *range(2, r.ndim)]
                total, squares = total + r.sum(axes), squares + (r * r).sum(axes)
                count += r.numel() // r.shape[1]
        mean = total / count
        std = (squares / count - mean * mean).clamp(min=0).sqrt()
        varies = std > 1e-6 * (squares / count).sqrt()
        if not bool(varies.any()):
            raise ExportError(
                f"the activation after {self.names[-1]!r} is the same for all latents: check the "
                "weights, or cut elsewhere"
            )
        # A channel that is the same for all z has deviation 0.
        std = torch.where(varies, std, (std[varies] ** 2).mean().sqrt())
        return mean.float(), std.float()


def _prepared(generator: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose modules do not change their inputs."""
    if isinstance(generator, torch.jit.ScriptModule | OnnxModule):
        kind = "an ONNX" if isinstance(generator, OnnxModule) else "a TorchScript"
        raise ExportError(
            f"{kind} generator has no layers to cut it by: give the torch.nn.Module that it "
            "was made from, or export it and give pyinv.export.read_generator(bundle)"
        )
    prepared = prepare(generator, batch_norm="eval")
    for module in prepared.modules():
        # The module's input may be an activation that is still needed.
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return prepared


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(
        module, nn.MultiheadAttention
    )


def _names(names: Sequence[str]) -> tuple[str, ...]:
    given = [names] if isinstance(names, str) else list(names)
    if not given or not all(isinstance(name, str) and name for name in given):
        raise ExportError(f"names must be one name of a submodule or more, got {names!r}")
    for name in given:
        if given.count(name) > 1:
            raise ExportError(f"layer {name!r} is named twice: name each once")
    return tuple(given)


def _refuse_decided(options: Mapping[str, Any]) -> None:
    for name in _DECIDED:
        if name in options:
            raise ExportError(f"{name} follows from the layers here: leave it out")
