"""Trace generators, encoders and feature networks to ATen graphs with a symbolic batch size.

Batch norm is folded. Functions of a network, such as the gradient of a loss, are traced from the
folded graph, so that the forward and backward passes share the folded weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.overrides import TorchFunctionMode, resolve_name

from pyinv.errors import ExportError

from ..diagnostics import first_line, named_operator
from ..passes.canonicalize import (
    fold_batch_norm,
    has_batch_statistics,
    instance_norm_as_group_norm,
    one_pixel_convolution_as_dense,
    unit_stride_transposed_as_convolution,
)
from ..passes.decompose import decomposition_table
from ..passes.output_activation import OutputActivation, expose_output_activation
from ..passes.simplify import simplify
from .torchscript_reader import Scripted

__all__ = [
    "Shapes",
    "TracedGenerator",
    "prepare",
    "refuse_randomness",
    "trace_decomposed",
    "trace_encoder",
    "trace_features",
    "trace_generator",
]

# A batch size for tracing that no layer has, so that no other size is mistaken for it. Tracing
# computes nothing, and the examples' memory is never touched.
_EXAMPLE_BATCH = 97


@dataclass(frozen=True)
class Shapes:
    """Shapes of one target's latent, image and condition, without the batch axis."""

    latent: tuple[int, ...]
    image: tuple[int, int, int]
    condition: tuple[int, ...] | None = None

    @property
    def latent_size(self) -> int:
        """The number of components of a latent, d."""
        return math.prod(self.latent)

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a bundle's inputs by name; the latent is flattened."""
        condition = {} if self.condition is None else {"condition": self.condition}
        return {"latent": (self.latent_size,), "image": self.image, **condition}


@dataclass(frozen=True)
class TracedGenerator:
    """A generator's graph, which returns the image and the input of the last activation."""

    module: fx.GraphModule
    output_activation: OutputActivation


def prepare(generator: nn.Module, *, batch_norm: str, what: str = "generator") -> nn.Module:
    """Copy a generator to float32 on the CPU, in the mode it is exported in.

    The copy is in eval mode; with batch_norm="batch" its batch norm layers use the statistics of
    each batch and track no running statistics. The generator itself is not changed. ``what`` names
    it in error messages.
    """
    if isinstance(generator, torch.jit.ScriptModule):
        generator = Scripted(generator)
    if not isinstance(generator, nn.Module):
        raise ExportError(f"{what} must be a torch.nn.Module, got {type(generator).__name__}")
    tensors = [*generator.parameters(), *generator.buffers()]
    for tensor in tensors:
        if tensor.is_meta:
            raise ExportError(f"{what} is on the meta device and has no weights: load them first")
        if tensor.is_quantized or tensor.is_complex():
            raise ExportError(
                f"{what} has {tensor.dtype} weights: convert them to float32 before export"
            )
    # deepcopy refuses non-leaf tensors, such as the weight of an old-style weight norm.
    memo: dict[int, Any] = {}
    for module in generator.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        copied = copy.deepcopy(generator, memo)
    except Exception as error:
        raise ExportError(f"{what} cannot be copied: {first_line(error)}") from error
    copied = copied.cpu().float().eval().requires_grad_(False)
    if batch_norm == "batch":
        for module in copied.modules():
            if isinstance(module, Scripted):
                module.batch_statistics = True
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
    return copied


def _fakes(shapes: Sequence[Sequence[int]]) -> tuple[FakeTensorMode, list[Tensor]]:
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    tensors: list[Tensor] = []
    for i, sizes in enumerate(shapes):
        # Equal sizes share a symbol (DUCK): all inputs have the same batch size.
        context: Any = StatelessSymbolicContext(
            dynamic_sizes=[DimDynamic.DUCK] + [DimDynamic.STATIC] * len(sizes)
        )
        tensors.append(
            mode.from_tensor(
                torch.empty(_EXAMPLE_BATCH, *sizes),
                symbolic_context=context,
                source=ConstantSource(f"input_{i}"),
            )
        )
    return mode, tensors


# Queries about a tensor, which cannot be the cause of a failure.
_QUERIES = ("__get__", ".size", ".stride", ".dim")


class _Watch(TorchFunctionMode):
    """Record the last torch function called, and keep each interpolation a single operator.

    Tracing needs the Python dispatcher, because some operators otherwise mistake the symbolic batch
    size for a number. It would decompose interpolations into index arithmetic.
    """

    def __init__(self, what: str = "the generator") -> None:
        super().__init__()
        self.what = what
        self.called = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = resolve_name(func) or ""
        if name and not name.endswith(_QUERIES):
            self.called = name
        if func is torch.nn.functional.interpolate:
            whole = _interpolate(*args, **(kwargs or {}))
            if whole is not None:
                return whole
        if isinstance(func, torch._ops.OpOverload) and "upsample" in str(func):
            with no_python_dispatcher():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def describe(self) -> str:
        """Name the network, and the function in it that is being traced."""
        return f"{self.what} (in {self.called})" if self.called else self.what


def _interpolate(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    """Interpolate images with one operator; None where no single operator does it."""
    operators = {
        "nearest": torch.ops.aten.upsample_nearest2d.default,
        "nearest-exact": torch.ops.aten._upsample_nearest_exact2d.default,
        "bilinear": torch.ops.aten.upsample_bilinear2d.default,
        "bicubic": torch.ops.aten.upsample_bicubic2d.default,
    }
    if x.ndim != 4 or mode not in operators or antialias:
        return None
    if (size is None) == (scale_factor is None):
        return None
    given = size if size is not None else scale_factor
    pair = list(given) if isinstance(given, list | tuple) else [given, given]
    scales: list[float | None] = [None, None]
    if scale_factor is not None:
        if not recompute_scale_factor:
            scales = [float(scale) for scale in pair]
        pair = [math.floor(int(x.shape[2 + i]) * float(pair[i])) for i in range(2)]
    corners = [bool(align_corners)] if mode in ("bilinear", "bicubic") else []
    with no_python_dispatcher():
        result: Tensor = operators[mode](x, [int(edge) for edge in pair], *corners, *scales)
    return result


@contextmanager
def _explained(tracing: Callable[[], str]) -> Iterator[None]:
    """Turn an exception raised during tracing into a one-line error that names the operator."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        what, operator = tracing(), named_operator(error)
        if operator is None:
            raise ExportError(
                f"{what} cannot be traced: {type(error).__name__}: {first_line(error)}"
            ) from error
        raise ExportError(
            f"{what} uses {operator}, which cannot be exported: {first_line(error)}"
        ) from error


def trace_generator(generator: nn.Module, shapes: Shapes, *, batch_norm: str) -> TracedGenerator:
    """Trace a prepared generator to a graph: latent [B, d] (and condition) -> image."""
    inputs = [shape for name, shape in shapes.inputs.items() if name != "image"]

    def forward(latent: Tensor, *condition: Tensor) -> Tensor:
        if len(shapes.latent) != 1:
            latent = latent.view(latent.shape[0], *shapes.latent)
        image: Tensor = generator(latent, *condition)
        return image

    module = _trace_network(forward, inputs, batch_norm=batch_norm, what="the generator")
    return TracedGenerator(module, expose_output_activation(module))


def trace_encoder(encoder: nn.Module, shapes: Shapes) -> fx.GraphModule:
    """Trace a prepared encoder, using only operators that ONNX has.

    The inputs are the image, an unused latent, and the condition. The output is the latent [B, d].
    """
    latent, *inputs = shapes.inputs.values()

    def encode(image: Tensor, *condition: Tensor) -> Tensor:
        latent: Tensor = encoder(image, *condition)
        return latent.flatten(1)

    traced = _trace_network(encode, inputs, batch_norm="eval", what="the encoder")

    # The batch size is read from the first input.
    def function(image: Tensor, latent: Tensor, *condition: Tensor) -> list[Tensor]:
        return [traced(image, *condition)]

    image, *condition = inputs
    described = [image, latent, *condition]
    return trace_decomposed(function, described, describe=lambda: "the encoder")


def trace_features(features: nn.Module, image: tuple[int, int, int]) -> fx.GraphModule:
    """Trace a prepared network: images [B, *image] -> list of features."""
    return _trace_network(features, [image], batch_norm="eval", what="the feature network")


def _trace_network(
    forward: Callable[..., Any], inputs: Sequence[tuple[int, ...]], *, batch_norm: str, what: str
) -> fx.GraphModule:
    """Trace a network that draws no random numbers, and fold its batch norm."""
    watch = _Watch(what)
    with _explained(watch.describe):
        mode, fakes = _fakes(inputs)
        with mode, enable_python_dispatcher(), torch.no_grad(), watch:
            module = make_fx(torch.func.functionalize(forward, remove="mutations"))(*fakes)
        refuse_randomness(module.graph, what)
        instance_norm_as_group_norm(module)
        coupled = has_batch_statistics(module)
        if coupled and batch_norm == "eval":
            raise ExportError(
                f"{what}'s batch norm has no running statistics and uses those of each batch: "
                + (
                    "export it with batch_norm='batch'"
                    if what == "the generator"
                    else "train it with track_running_stats=True"
                )
            )
        if not coupled and batch_norm == "batch":
            raise ExportError(
                "batch_norm='batch' needs a generator with batch norm, this one has none: "
                "leave batch_norm at 'eval'"
            )
        simplify(module)
        fold_batch_norm(module)
        one_pixel_convolution_as_dense(module)
        unit_stride_transposed_as_convolution(module)
        simplify(module)
    return module


def trace_decomposed(
    function: Callable[..., Any],
    inputs: Sequence[tuple[int, ...]],
    *,
    describe: Callable[[], str],
) -> fx.GraphModule:
    """Trace a function of traced networks, decomposing normalisations and similar operators.

    Args:
        function: maps tensors [B, *shape] to a tensor or a list of them.
        inputs: the shapes of these tensors, without the batch axis.
        describe: returns the name of the traced function for error messages.
    """
    with _explained(describe):
        mode, fakes = _fakes(inputs)
        with mode, enable_python_dispatcher(), torch.no_grad(), _Watch():
            module = make_fx(function, decomposition_table=decomposition_table())(*fakes)
        simplify(module)
    return module


def refuse_randomness(graph: fx.Graph, what: str) -> None:
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and (
            torch.Tag.nondeterministic_seeded in node.target.tags
        ):
            raise ExportError(
                f"{what} draws random numbers with {node.target._schema.name}: "
                "an exported function must give the same image for the same latent"
            )
