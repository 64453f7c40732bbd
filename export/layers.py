"""Cut a sequential generator into its first layers and the rest, and export parts of it.

    G(z) = G_F(g_k(... g_2(g_1(z)) ...)),    r_0 = z,    r_i = g_i(r_{i-1})

Source: Bau et al. 2019, "Inverting layers of a large generator", section 1 and equations 6 and 7
for r_i; ``StandardisedTail`` is the problem of equation 1, ``ResidualGenerator`` that of equations
10 to 12.
"""

from __future__ import annotations

import inspect
import itertools
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pyinv.bundle import Bundle
from pyinv.errors import ExportError, InputError
from pyinv.priors import Normal, Prior, Uniform

from .capture.trace import prepare
from .check import draw_latents
from .diagnostics import first_line
from .exporter import export
from .origin import checked_origin

__all__ = [
    "Layers",
    "ResidualGenerator",
    "StandardisedTail",
    "TailScale",
    "first_layers",
    "split",
]

_ORIGIN = "layers"
_SAMPLED_AT_ONCE = 64
_MOST_LISTED = 60
# What export_tail and export_residual decide themselves.
_DECIDED = ("latent_shape", "prior", "condition_shape", "batch_norm")


def split(generator: nn.Module, names: Sequence[str]) -> Layers:
    """Cut a generator after each of the named submodules: G(z) = G_F(g_k(... g_1(z))).

    The parts compute what the whole does, to the bit, in eval mode. The generator is copied to
    float32 on the CPU, and not changed itself.

    Its forward may be any chain of submodules, with reshapes and functions between them; nested
    Sequentials are looked into as far as the names go. Submodules with no named ones inside are
    taken as they are, whatever they compute.

    Args:
        generator: maps a latent [B, *latent_shape] to an image. No TorchScript module, but what
            ``read_generator`` makes of a bundle will do.
        names: qualified names of submodules, "layer1" or "layers.2", in the order in which forward
            calls them. One tensor alone, the named submodule's output, may pass each cut; the size
            of the batch may be asked of any.

    Returns:
        the parts.

    Raises:
        ExportError: no such submodule (the names that exist are listed), names out of order, or a
            cut that more than one tensor passes, as over a skip connection.

    Examples:
        >>> layers = split(generator, ["layer1", "layer2", "layer3", "layer4"])
        >>> r1, r2, r3, r4 = layers.activations(latents)
        >>> images = layers.tail(r4)

    Source: Bau et al. 2019, section 1.
    """
    wanted = _names(names)
    prepared = _prepared(generator)
    existing = [name for name, _ in prepared.named_modules() if name]
    for name in wanted:
        if name not in existing:
            raise ExportError(f"the generator has no layer {name!r}: it has {_listed(existing)}")
    chain = _Chain(prepared, wanted)
    places = [chain.place(name) for name in wanted]
    pairs = list(zip(wanted, places, strict=True))
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
                + (f"cut after {_listed(possible)}" if possible else "it is no chain of layers")
            )
    *first, tail = chain.parts(places)
    return Layers(wanted, first, tail)


def first_layers(generator: nn.Module, count: int = 4) -> tuple[str, ...]:
    """Return the names of a generator's first nonlinear layers, for ``split``.

    These are layer1, layer2 and so on where there are submodules of these names; else the
    activations (``nn.ReLU`` and its like) after which one tensor alone passes to layers with
    weights, from the first.

    Args:
        generator: as for ``split``.
        count: how many to name; fewer are returned where there are fewer.

    Raises:
        ExportError: there is none, or the generator cannot be cut.
    """
    prepared = _prepared(generator)
    numbered = [f"layer{number + 1}" for number in range(count)]
    if set(numbered) <= {name for name, _ in prepared.named_children()}:
        return tuple(numbered)
    activations = [name for name, module in prepared.named_modules() if _is_activation(module)]
    chain = _Chain(prepared, activations)
    found = [name for name in chain.cuts() if name in activations and chain.has_weights_after(name)]
    if not found:
        raise ExportError(
            "the generator has no activation modules after which it can be cut: "
            f"name layers yourself, of {_listed(name for name, _ in prepared.named_modules())}"
        )
    return tuple(found[:count])


class Layers:
    """A generator in parts, G(z) = G_F(g_k(... g_1(z))); what ``split`` returns.

    Attributes:
        names: the submodules after which it is cut.
        layers: g_1 to g_k, in eval mode; their weights take no gradient.
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
            latents: as the generator takes them.
            count: how many of the activations, from the first; None for all.
        """
        found = [latents]
        for layer in self.layers[:count]:
            # A layer that works in place must not change what is returned.
            found.append(layer(found[-1].clone()))
        return found[1:]

    def shapes(self, latent_shape: int | Sequence[int]) -> list[tuple[int, ...]]:
        """Return the shapes of r_1 to r_k, without the batch axis.

        Raises:
            ExportError: the generator does not take latents of this shape.
        """
        sizes = _sizes(latent_shape)
        with torch.no_grad():
            try:
                found = self.activations(torch.ones(2, *sizes, device=self._device()))
            except Exception as error:
                raise ExportError(
                    f"the generator does not take a latent of shape [B, {_comma(sizes)}]: "
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
            samples: draws of z that mean and deviation of r_k are taken over, at least 2.
            seed: of these draws.

        Raises:
            ExportError: an argument that does not fit, or an activation that does not vary.
        """
        shape = self.shapes(latent_shape)[-1]
        if not isinstance(prior, Uniform | Normal):
            raise ExportError(f"prior must be pyinv.Uniform or pyinv.Normal, got {prior!r}")
        if not isinstance(samples, int) or samples < 2:
            raise ExportError(f"samples must be a number >= 2, got {samples!r}")
        mean, std = self._moments(_sizes(latent_shape), prior, samples, seed)
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
        """Export G_F alone, its latent the activation r_k: the problem of Bau's equation 1.

        The bundle's latent u has the shape of r_k and the prior Normal(0, 1): r_k = mean + std * u,
        with mean and standard deviation of each channel of r_k (the axis after the batch) over
        samples of z. They are kept in the manifest's origin, and ``TailScale.of(bundle)`` converts
        between u and r_k.

        Args:
            path: the bundle's folder.
            latent_shape: shape of the whole generator's latent z.
            prior: what z is drawn from.
            samples: draws of z that mean and deviation are taken over, at least 2.
            seed: of these draws.
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
                _ORIGIN: {
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
            ExportError: an argument that does not fit, or k is 1: there is nothing between layers.
        """
        return ResidualGenerator(self, _sizes(latent_shape), weights)

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
        r"""Export the generator of Bau's method (f): a latent of residuals, z_0 as the condition.

        $$
        x = G_F(g_k(\delta_{k-1} + g_{k-1}(\cdots \delta_1 + g_1(z_0))))
        $$

        The bundle's latent u, of shape [d], holds $\delta_1, \dots, \delta_{k-1}$ one after
        the other, each divided by its scale (see ``ResidualGenerator``), its prior is
        Normal(0, 1), and its condition is z_0, flattened. With these scales the penalty
        ``PriorPenalty(1.0)`` is $\sum_i \lambda_i \operatorname{mean}(\delta_i^2)$, the term
        of equation 12 as the authors' code has it. The search begins at residuals of 0 with
        ``invert(images, condition=z0, init=numpy.zeros((N, d)))``.

        Args:
            path: the bundle's folder.
            latent_shape: shape of the whole generator's latent z.
            weights: lambda_1 to lambda_{k-1}, each above 0; or one for all. The paper: 1.
            losses: as in ``export``. The paper: L1 in pixels plus L1 in features of VGG16.
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
        return export(
            generator,
            path,
            latent_shape=generator.latent_size,
            prior=Normal(),
            condition_shape=math.prod(generator.latent_shape),
            losses=losses,
            origin={
                **given,
                _ORIGIN: {
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
        """Mean and standard deviation of each channel of r_k, float32 [C]."""
        random = torch.Generator().manual_seed(seed)
        latents = draw_latents(prior, samples, math.prod(latent_shape), random=random)
        total = squares = torch.zeros(())
        count = 0
        with torch.no_grad():
            # In double: a small deviation next to a large mean keeps its digits.
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
        # A channel that is the same for all z has no deviation of its own.
        std = torch.where(varies, std, (std[varies] ** 2).mean().sqrt())
        return mean.float(), std.float()


@dataclass(frozen=True)
class TailScale:
    """How a tail's bundle scales activations: r_k = mean + std * u, channel by channel.

    Args:
        mean: [C], of r_k over samples of z.
        std: [C], above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, bundle: Bundle | str | os.PathLike[str]) -> TailScale:
        """Return the scale of a bundle that ``Layers.export_tail`` wrote.

        Raises:
            InputError: another bundle.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        described = opened.manifest.origin.get(_ORIGIN)
        if not isinstance(described, dict) or described.get("kind") != "tail":
            raise InputError(
                f"{opened.path} is no tail of a generator: Layers.export_tail makes one"
            )
        return cls(tuple(described["mean"]), tuple(described["std"]))

    def describe(self) -> dict[str, Any]:
        """Return mean and std as JSON values."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def activation_of(self, latent: Any) -> Any:
        """Return r_k for latents u, both [N, C, ...]; NumPy for NumPy, PyTorch for PyTorch."""
        mean, std = self._like(latent)
        return mean + std * latent

    def latent_of(self, activation: Any) -> Any:
        """Return u for activations r_k, both [N, C, ...]; NumPy for NumPy, PyTorch for PyTorch."""
        mean, std = self._like(activation)
        return (activation - mean) / std

    def _like(self, values: Any) -> tuple[Any, Any]:
        if values.ndim < 2 or values.shape[1] != len(self.mean):
            raise InputError(
                f"expected values [N, {len(self.mean)}, ...], got {list(values.shape)}"
            )
        shape = (1, -1) + (1,) * (values.ndim - 2)
        if isinstance(values, Tensor):
            return values.new_tensor(self.mean).view(shape), values.new_tensor(self.std).view(shape)
        mean, std = (np.asarray(x, dtype=values.dtype) for x in (self.mean, self.std))
        return mean.reshape(shape), std.reshape(shape)


class StandardisedTail(nn.Module):
    """Latent u [B, C, ...] -> image G_F(mean + std * u); mean and std are buffers.

    Attributes:
        shape: of r_k and of u, without the batch axis.
        scale: converts between u and r_k.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tail: nn.Module, shape: tuple[int, ...], mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.tail = tail
        self.shape = shape
        self.scale = TailScale(tuple(mean.tolist()), tuple(std.tolist()))
        channelwise = (1, -1) + (1,) * (len(shape) - 1)
        self.register_buffer("mean", mean.reshape(channelwise))
        self.register_buffer("std", std.reshape(channelwise))

    def forward(self, latent: Tensor) -> Tensor:
        """Return images [B, C, H, W]."""
        image: Tensor = self.tail(self.mean + self.std * latent)
        return image


class ResidualGenerator(nn.Module):
    r"""(u [B, d], z_0 [B, *latent_shape] or [B, size]) -> image, Bau's method (f).

    $$
    r_1 = g_1(z_0), \quad r_{i+1} = g_{i+1}(\delta_i + r_i), \quad x = G_F(r_k)
    $$

    u holds the residuals one after the other, $\delta_i$ = scale_i * its part of u. With
    n_i components in $\delta_i$ and $d = \sum_i n_i$,

    $$
    \text{scale}_i = \sqrt{\frac{n_i}{2 d \lambda_i}}
    \quad\Rightarrow\quad \frac{1}{d} \sum_j \frac{u_j^2}{2}
    = \sum_i \lambda_i \operatorname{mean}(\delta_i^2)
    $$

    whose left side is ``PriorPenalty(1.0)`` under the prior Normal(0, 1). A step of Adam's that
    moves components of u by the learning rate moves those of $\delta_i$ by scale_i times it.

    Attributes:
        latent_shape: of z_0.
        shapes: of each residual, without the batch axis.
        latent_size: d.
        weights: lambda_i.
        scales: scale_i.

    Source: Bau et al. 2019, equations 11 and 12; the mean in place of the sum of squares is the
    authors' code's.
    """

    def __init__(
        self, layers: Layers, latent_shape: tuple[int, ...], weights: float | Sequence[float]
    ) -> None:
        super().__init__()
        if len(layers.layers) < 2:
            raise ExportError(
                "residuals are added between layers, and this generator is cut after "
                f"{layers.names[0]!r} alone: name two layers or more"
            )
        self.latent_shape = latent_shape
        self.shapes = layers.shapes(latent_shape)[:-1]
        self._sizes = [math.prod(shape) for shape in self.shapes]
        self.latent_size = sum(self._sizes)
        self.weights = _weights(weights, len(self._sizes))
        self.scales = tuple(
            math.sqrt(size / (2 * self.latent_size * weight))
            for size, weight in zip(self._sizes, self.weights, strict=True)
        )
        self.layers = nn.ModuleList(layers.layers)
        self.tail = layers.tail

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Return images [B, C, H, W] of scaled residuals and z_0."""
        image: Tensor = self.tail(self._last(latent, condition))
        return image

    def residuals_of(self, latent: Any) -> list[Any]:
        """Return the residuals, [N, *shape_i] each, of latents u [N, d].

        NumPy for NumPy, PyTorch for PyTorch.

        Raises:
            InputError: latents of another size.
        """
        if latent.ndim != 2 or latent.shape[1] != self.latent_size:
            raise InputError(f"expected latents [N, {self.latent_size}], got {list(latent.shape)}")
        return self._residuals(latent)

    def latent_of(self, residuals: Sequence[Any]) -> Any:
        """Return the latents u [N, d] of residuals [N, *shape_i]; the inverse of ``residuals_of``.

        Raises:
            InputError: residuals of other shapes.
        """
        got = [tuple(residual.shape[1:]) for residual in residuals]
        if got != self.shapes:
            raise InputError(f"expected residuals of shapes {self.shapes}, got {got}")
        flat = [
            residual.reshape(len(residual), -1) / scale
            for residual, scale in zip(residuals, self.scales, strict=True)
        ]
        return torch.cat(flat, 1) if isinstance(flat[0], Tensor) else np.concatenate(flat, 1)

    def activation_of(self, latent: Any, z_0: Any) -> Any:
        """Return r_k of latents u [N, d] and z_0 [N, *latent_shape] or [N, size].

        NumPy for NumPy, PyTorch for PyTorch.
        """
        if isinstance(latent, Tensor):
            return self._last(latent, z_0)
        with torch.no_grad():
            tensors = (torch.as_tensor(np.asarray(x, np.float32)) for x in (latent, z_0))
            return self._last(*tensors).numpy()

    def _residuals(self, latent: Any) -> list[Any]:
        residuals = []
        start = 0
        for shape, size, scale in zip(self.shapes, self._sizes, self.scales, strict=True):
            part = latent[:, start : start + size]
            residuals.append(part.reshape(-1, *shape) * scale)
            start += size
        return residuals

    def _last(self, latent: Tensor, z_0: Tensor) -> Tensor:
        r: Tensor = self.layers[0](z_0.reshape(-1, *self.latent_shape))
        for residual, layer in zip(self._residuals(latent), self.layers[1:], strict=True):
            r = layer(residual + r)
        return r


# -- Cutting -------------------------------------------------------------------------------------


class _ChainTracer(fx.Tracer):
    """Traces a generator as far as to the modules that hold no named ones."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        parts = [name.split(".") for name in names]
        self._opened = {".".join(part[:end]) for part in parts for end in range(len(part))}
        self.ends: dict[str, list[fx.Node]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._opened

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            self.ends.setdefault(self.path_of_module(m), []).append(result.node)
        return result


class _Chain:
    """The graph of a generator's modules, and where one tensor alone passes."""

    def __init__(self, root: nn.Module, names: Sequence[str]) -> None:
        tracer = _ChainTracer(names)
        try:
            graph = tracer.trace(root, _defaults(root))
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"the generator cannot be cut: {first_line(error)}; its forward must be a chain of "
                "submodules, without decisions that depend on tensors"
            ) from error
        self._root = root
        self._nodes = list(graph.nodes)
        _refuse_work_in_place(self._nodes)
        self._ends = tracer.ends
        inputs = [node for node in self._nodes if node.op == "placeholder" and node.users]
        if len(inputs) != 1:
            raise ExportError(
                "the generator cannot be cut: its forward must take the latent alone, it takes "
                f"{len(inputs)} inputs"
            )
        self._input = inputs[0]
        (result,) = self._nodes[-1].args
        if not isinstance(result, fx.Node):
            raise ExportError(
                "the generator must return one image tensor, it returned "
                f"{type(result).__name__}: wrap it in a module that returns the image alone"
            )
        self._result = result
        self._of_latent = self.after(self._input) | {self._input}

    def place(self, name: str) -> fx.Node:
        """The node whose value a module returns."""
        ends = [node for node in self._ends.get(name, []) if node in self._of_latent]
        if len(ends) != 1:
            calls = f"calls it {len(ends)} times" if ends else "does not call it"
            raise ExportError(
                f"the generator cannot be cut after {name!r}, its forward {calls}: cut after "
                f"{_listed(self.cuts())}"
            )
        return ends[0]

    def cuts(self) -> list[str]:
        """The names of modules after which one tensor alone passes, in order."""
        once = [(ends[0], name) for name, ends in self._ends.items() if name and len(ends) == 1]
        order = {node: number for number, node in enumerate(self._nodes)}
        found = [
            (order[node], name)
            for node, name in once
            if node in self._of_latent and self.crossing(node) is None
        ]
        return [name for _, name in sorted(found)]

    def has_weights_after(self, name: str) -> bool:
        """Whether more follows a module than activations and reshapes."""
        called = (n for n in self.after(self.place(name)) if n.op == "call_module")
        modules = (self._root.get_submodule(str(node.target)) for node in called)
        return any(any(True for _ in (*m.parameters(), *m.buffers())) for m in modules)

    def after(self, place: fx.Node) -> set[fx.Node]:
        """Every node that depends on this one."""
        found: set[fx.Node] = set()
        for node in self._nodes:
            if any(source is place or source in found for source in node.all_input_nodes):
                found.add(node)
        return found

    def crossing(self, place: fx.Node) -> str | None:
        """What keeps a generator from being cut at a node, in words; None where it can be."""
        if place is self._result:
            return "where nothing comes after it"
        after = self.after(place)
        if self._result not in after:
            return "which does not lead to the image"
        for node in self._nodes:
            if node not in after and node.op != "output":
                continue
            for source in node.all_input_nodes:
                before = source in self._of_latent and source not in after
                if before and source is not place and not self._is_batch(source):
                    what = source.target if source.op == "call_module" else source.name
                    return f"where the value of {what!s} passes as well (a skip connection)"
        return None

    def parts(self, places: Sequence[fx.Node]) -> list[nn.Module]:
        """The modules between the input, the places and the image."""
        starts, ends = [self._input, *places], [*places, self._result]
        return [self._part(*pair) for pair in zip(starts, ends, strict=True)]

    def _part(self, start: fx.Node, end: fx.Node) -> nn.Module:
        graph = fx.Graph()
        made = {start: graph.placeholder("value")}
        wanted = self._before(end, start)
        for node in self._nodes:
            if node not in wanted:
                continue
            if self._is_batch(node) and node not in self.after(start):
                made[node] = graph.call_method("size", (made[start], 0))
            else:
                made[node] = graph.node_copy(node, lambda source: made[source])
        graph.output(made[end])
        return fx.GraphModule(self._root, graph, "Layer").eval()

    def _before(self, end: fx.Node, start: fx.Node) -> set[fx.Node]:
        """The nodes that lead to ``end``, as far as to ``start``."""
        found: set[fx.Node] = set()
        after = self.after(start)
        waiting = [end]
        while waiting:
            node = waiting.pop()
            if node is start or node in found:
                continue
            found.add(node)
            if not (self._is_batch(node) and node not in after):
                waiting += node.all_input_nodes
        return found

    def _is_batch(self, node: fx.Node) -> bool:
        """Whether a node is the batch's size: that of axis 0 of the latent or a module's output."""
        if node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
            source = node.args[0]
        elif node.target is operator.getitem and node.args[1] == 0:
            sizes = node.args[0]
            asked = isinstance(sizes, fx.Node) and (
                (sizes.target is getattr and sizes.args[1] == "shape")
                or (sizes.target == "size" and len(sizes.args) == 1)
            )
            source = sizes.args[0] if asked and isinstance(sizes, fx.Node) else None
        else:
            return False
        return source is self._input or any(source in ends for ends in self._ends.values())


def _defaults(root: nn.Module) -> dict[str, Any]:
    """Values for the arguments of forward that have one."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(root.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def _refuse_work_in_place(nodes: Sequence[fx.Node]) -> None:
    """Keep functions of forward from changing their inputs, or refuse those that must."""
    for node in nodes:
        if node.op == "call_function" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        changes = node.op == "call_method" and str(node.target).endswith("_")
        if changes and not str(node.target).endswith("__"):
            raise ExportError(
                f"the generator's forward changes a tensor in place, with {node.target}: write "
                f"{str(node.target)[:-1]} to cut it"
            )


def _prepared(generator: nn.Module) -> nn.Module:
    """A copy in eval mode whose modules change none of their inputs."""
    if isinstance(generator, torch.jit.ScriptModule):
        raise ExportError(
            "a TorchScript generator has no layers to cut it by: give the torch.nn.Module that it "
            "was made from, or export it and give pyinv.export.read_generator(bundle)"
        )
    prepared = prepare(generator, batch_norm="eval")
    for module in prepared.modules():
        # Its input may be an activation that somebody still needs.
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return prepared


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(
        module, nn.MultiheadAttention
    )


# -- Checks --------------------------------------------------------------------------------------


def _names(names: Sequence[str]) -> tuple[str, ...]:
    given = [names] if isinstance(names, str) else list(names)
    if not given or not all(isinstance(name, str) and name for name in given):
        raise ExportError(f"names must be one name of a submodule or more, got {names!r}")
    for name in given:
        if given.count(name) > 1:
            raise ExportError(f"layer {name!r} is named twice: name each once")
    return tuple(given)


def _listed(names: Iterable[str]) -> str:
    listed = [name for name in names if name]
    more = len(listed) - _MOST_LISTED
    return ", ".join(listed[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _sizes(latent_shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        given = (latent_shape,) if isinstance(latent_shape, int) else tuple(latent_shape)
        sizes = tuple(operator.index(size) for size in given)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ExportError(
            f"latent_shape must be a number or a tuple of numbers >= 1, got {latent_shape!r}"
        )
    return sizes


def _comma(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))


def _weights(weights: float | Sequence[float], count: int) -> tuple[float, ...]:
    try:
        given = [float(x) for x in weights] if isinstance(weights, Iterable) else [float(weights)]
    except (TypeError, ValueError):
        given = []
    if len(given) == 1:
        given *= count
    if len(given) != count or not all(math.isfinite(x) and x > 0 for x in given):
        raise ExportError(
            f"weights must be one number above 0, or {count}, one for each residual; got "
            f"{weights!r}"
        )
    return tuple(given)


def _refuse_decided(options: Mapping[str, Any]) -> None:
    for name in _DECIDED:
        if name in options:
            raise ExportError(f"{name} follows from the layers here: leave it out")
