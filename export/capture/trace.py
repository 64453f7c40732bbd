"""Trace generators, encoders and feature networks to ATen graphs with a symbolic batch size.

Batch norm is folded. Functions of a network, such as the gradient of a loss, are traced from the
folded graph, so that the forward and backward passes share the folded weights.
"""

from __future__ import annotations

import copy
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.overrides import resolve_name
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from pyinv.conditions import Input
from pyinv.errors import ExportError

from ..diagnostics import first_line, named_operator
from ..passes.canonicalize import (
    fold_batch_norm,
    has_batch_statistics,
    instance_norm_as_group_norm,
    one_pixel_convolution_as_dense,
    unit_stride_transposed_as_convolution,
)
from ..passes.complex_numbers import RealParts, is_complex
from ..passes.decompose import decomposition_table, write_decompositions
from ..passes.graph import add_constant, constant_named, is_op
from ..passes.modulation import rewrite_convolutions_per_target
from ..passes.network_operators import network_decompositions
from ..passes.output_activation import OutputActivation, expose_output_activation
from ..passes.simplify import simplify
from .loops import refuse_loops
from .onnx_file import OnnxModule
from .portable import Portable, portable
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
    "trace_observation",
    "uncompiled",
]

# Frames below these folders are not the user's code.
_TORCH = str(Path(torch.__file__).parent)
_EXPORT = str(Path(__file__).parents[1])
# A batch size for tracing: a prime that divides no size of a layer, so that no other size is
# mistaken for it. Tracing computes nothing and allocates nothing.
_EXAMPLE_BATCH = 10007
# Larger constants that are computed from small ones are computed by the graph.
_LARGEST_MADE_CONSTANT = 1 << 16


@dataclass(frozen=True)
class Shapes:
    """Shapes of one target's latent and image, without the batch axis, and its conditions.

    weighted: whether objectives take weights, of the target's shape.
    observed: the shape of the target if it is an observation of the image; None if it is the image.
    """

    latent: tuple[int, ...]
    image: tuple[int, ...]
    conditions: Mapping[str, Input] = field(default_factory=dict)
    weighted: bool = False
    observed: tuple[int, ...] | None = None

    @property
    def target(self) -> tuple[int, ...]:
        """The shape of a target."""
        return self.image if self.observed is None else self.observed

    @property
    def latent_size(self) -> int:
        """The number of components of a latent, d."""
        return math.prod(self.latent)

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """The shapes of an objective's inputs by name; the latent is flattened.

        What is called ``image`` there is the target.
        """
        shapes = {"latent": (self.latent_size,), "image": self.target}
        columns = sum(condition.columns for condition in self.conditions.values())
        if columns:
            shapes["condition"] = (columns,)
        if self.weighted:
            shapes["weights"] = self.target
        return shapes

    @property
    def generator_inputs(self) -> tuple[str, ...]:
        """The names of the inputs that the generator takes."""
        return tuple(name for name in self.inputs if name not in ("image", "weights"))


@dataclass(frozen=True)
class TracedGenerator:
    """A generator's graph, which returns the image and the input of the last activation.

    If targets are observations, these two are the observation's, and it returns the image last.

    lines: for each operator's name, the line of the user's code that calls it first.
    functions: the names of the torch.autograd.Functions in it.
    reduced: whether the generator asks for float16 or bfloat16, which were ignored.
    """

    module: fx.GraphModule
    output_activation: OutputActivation
    lines: Mapping[str, str] = field(default_factory=dict)
    functions: Sequence[str] = ()
    reduced: bool = False


def uncompiled(module: Any) -> Any:
    """Return the module behind ``torch.compile(module)``."""
    return getattr(module, "_orig_mod", module)


def prepare(generator: nn.Module, *, batch_norm: str, what: str = "generator") -> nn.Module:
    """Copy a generator to float32 on the CPU, in the mode it is exported in.

    The copy is in eval mode; with batch_norm="batch" its batch norm layers use the statistics of
    each batch and track no running statistics. The generator itself is not changed. ``what`` names
    it in error messages.
    """
    generator = uncompiled(generator)
    if isinstance(generator, torch.jit.ScriptModule):
        generator = Scripted(generator)
    if not isinstance(generator, nn.Module):
        raise ExportError(f"{what} must be a torch.nn.Module, got {type(generator).__name__}")
    tensors = [*generator.parameters(), *generator.buffers()]
    for tensor in tensors:
        if nn.parameter.is_lazy(tensor):
            raise ExportError(
                f"{what} has a lazy layer without weights: call it once, or load its weights, first"
            )
        if tensor.is_meta:
            raise ExportError(f"{what} is on the meta device and has no weights: load them first")
        if tensor.is_quantized or (tensor.is_complex() and tensor.dtype != torch.complex64):
            wanted = torch.complex64 if tensor.is_complex() else torch.float32
            raise ExportError(
                f"{what} has {tensor.dtype} weights: convert them to {wanted} before export"
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
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            setattr(module, name, uncompiled(child))
    if batch_norm == "batch":
        for module in copied.modules():
            if isinstance(module, Scripted | OnnxModule):
                module.batch_statistics = True
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
    return copied


def _fakes(shapes: Sequence[Sequence[int]]) -> tuple[FakeTensorMode, list[Tensor]]:
    """Return inputs [B, *shape] of a symbolic batch size, without memory, and their mode."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK])
    rows = mode.from_tensor(
        torch.empty(_EXAMPLE_BATCH), symbolic_context=context, source=ConstantSource("batch")
    )
    with mode:
        return mode, [torch.empty(rows.shape[0], *sizes) for sizes in shapes]


# Sizes for which decisions that depend on the batch size are tried.
_BATCHES_TRIED = tuple(range(2, 66))
# Calls a module.
_CALL = nn.Module.__call__
# The code of torch.autograd.Function.apply.
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
# Functions whose results are made to be written to.
_MAKERS = (
    "clone", "empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros",
    "ones_like", "zeros_like",
)  # fmt: skip
# Operators whose result shares its argument's memory.
_VIEWS = (
    "alias", "expand", "permute", "select", "slice", "squeeze", "t", "transpose", "unsqueeze",
    "view",
)  # fmt: skip
# Queries about a tensor, which cannot be the cause of a failure.
_QUERIES = ("__get__", ".size", ".stride", ".dim")


class _Watch(Portable):
    """Record the last torch function called, and keep each interpolation a single operator.

    Tracing needs the Python dispatcher, because some operators otherwise mistake the symbolic batch
    size for a number. It would decompose interpolations into index arithmetic.
    """

    def __init__(self, what: str = "the generator") -> None:
        super().__init__()
        self.what = what
        self.called = ""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = resolve_name(func) or ""
        if name and not name.endswith(_QUERIES):
            self.called = name
        if func is torch.nn.functional.interpolate:
            whole = _interpolate(*args, **kwargs)
            if whole is not None:
                return whole
        if isinstance(func, torch._ops.OpOverload) and "upsample" in str(func):
            if func._overloadname == "vec":
                func, args = _with_sizes(func, *args)
            with no_python_dispatcher():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def describe(self) -> str:
        """Name the network, and the function in it that is being traced."""
        return f"{self.what} (in {self.called})" if self.called else self.what


class _NetworkWatch(_Watch):
    """Trace a network whose weights are constants.

    What depends on weights alone is computed at once, so that numbers and decisions can be read
    from them. Results computed without gradients are detached, so that they remain so in the graph.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        # The names of the torch.autograd.Functions that were called.
        self.functions: list[str] = []

    def _inside_function(self) -> bool:
        """Whether the forward of a torch.autograd.Function is running, which records its name.

        It runs without gradients, and is differentiated like any other code.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code is _APPLY:
                self.functions.append(frame.f_locals["cls"].__name__)
                return True
            frame = frame.f_back
        return False

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        traced = any(map(_is_traced, leaves))
        # A new tensor may be written to later, so it is a part of the graph.
        makes = (resolve_name(func) or "").rpartition(".")[2] in _MAKERS
        if tensors and not traced and not makes:
            constant = self._computed(func, args, kwargs, tensors)
            if constant is not None:
                return constant
        if traced and args and isinstance(args[0], Tensor) and not _is_traced(args[0]):
            self._refuse_write(func)
        if func is torch.nn.functional.pad:
            padded = _padded(*args, **kwargs)
            if padded is not None:
                return padded
        result = super().call(func, args, kwargs)
        silent = not torch.is_grad_enabled() or torch.is_inference_mode_enabled()
        if silent and traced and not self._inside_function():
            return tree_map(_detached, result)
        return result

    def _computed(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: Sequence[Tensor]
    ) -> Any:
        """The result of a function of constants, if it is no larger than they are."""
        with _disable_current_modes(), torch.no_grad():
            state = torch.get_rng_state()
            result = func(*args, **kwargs)
            if not torch.equal(torch.get_rng_state(), state):
                raise ExportError(_random(self.what, resolve_name(func) or str(func)))
        largest = max(_LARGEST_MADE_CONSTANT, *(tensor.numel() for tensor in given))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result if all(tensor.numel() <= largest for tensor in made) else None

    def _refuse_write(self, func: Any) -> None:
        """Raise an error if a function writes what depends on the latent to a constant."""
        name = (resolve_name(func) or "").rpartition(".")[2]
        writes = name.endswith("_") and not name.endswith("__")
        if writes or name == "__setitem__" or re.fullmatch(r"__i[a-z]+__", name):
            raise ExportError(
                f"{self.what} changes one of its own tensors in forward ({name}), from values that "
                "depend on the latent: work on a copy, such as tensor.clone()"
            )


def _is_traced(value: Any) -> bool:
    if isinstance(value, Tensor):
        while is_functorch_wrapped_tensor(value):  # inside of torch.vmap
            value = get_unwrapped(value)
        # Fake tensors are computed from tensors on the meta device.
        return isinstance(value, FakeTensor) or value.is_meta
    return isinstance(value, torch.SymInt)


def _detached(result: Any) -> Any:
    differentiable = isinstance(result, Tensor) and result.is_floating_point()
    return result.detach() if differentiable and _is_traced(result) else result


def _padded(
    x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor | None:
    """Pad circularly by joining slices, and replicate in one dimension; None for other modes."""
    if mode == "replicate" and x.ndim == 3 and len(pad) == 2:
        # As images of height 1, because the gradient is known for those.
        return torch.nn.functional.pad(x.unsqueeze(2), [*pad, 0, 0], mode).squeeze(2)
    if mode != "circular":
        return None
    for i in range(len(pad) // 2):
        axis, (before, after) = x.ndim - 1 - i, pad[2 * i : 2 * i + 2]
        size = x.shape[axis]
        ends = [x.narrow(axis, size - before, before), x, x.narrow(axis, 0, after)]
        x = torch.cat([part for part in ends if part.shape[axis]], dim=axis)
    return x


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
    if antialias:
        operators = {
            "bilinear": torch.ops.aten._upsample_bilinear2d_aa.default,
            "bicubic": torch.ops.aten._upsample_bicubic2d_aa.default,
        }
    if x.ndim != 4 or mode not in operators:
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


def _with_sizes(func: Any, x: Tensor, size: Any, *rest: Any) -> tuple[Any, tuple[Any, ...]]:
    """An interpolation by scales as the operator that takes sizes, for any batch size."""
    *settings, scales = rest
    if size is None:
        size = [math.floor(int(x.shape[2 + i]) * scale) for i, scale in enumerate(scales)]
    operator = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::")).default
    return operator, (x, size, *settings, *(scales or [None] * len(size)))


@contextmanager
def _explained(tracing: Callable[[], str]) -> Iterator[None]:
    """Turn an exception raised during tracing into a one-line error that names the operator."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        what, operator = tracing() + _at(_user_line(error)), named_operator(error)
        if operator is None:
            raise ExportError(
                f"{what} cannot be traced: {type(error).__name__}: {first_line(error)}"
            ) from error
        if operator == "aten::_local_scalar_dense":
            raise ExportError(
                f"{what} needs a number (aten::_local_scalar_dense) from a tensor that depends on "
                "the latent or on how many there are, for an if, float(), .item() or .tolist(): "
                "compute with tensors instead, and with x.shape[i] instead of tensors of sizes"
            ) from error
        raise ExportError(
            f"{what} uses {operator}, which cannot be exported: {first_line(error)}"
        ) from error


def _user_line(error: BaseException) -> str:
    """The innermost line of user code that an exception passed through; empty if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if _is_user_file(f.filename)]
    return own[-1] if own else ""


def _is_user_file(name: str) -> bool:
    return not name.startswith((_TORCH, _EXPORT, "<"))


def _at(line: str) -> str:
    return f" (at {line})" if line else ""


def trace_generator(generator: nn.Module, shapes: Shapes, *, batch_norm: str) -> TracedGenerator:
    """Trace a prepared generator to a graph: latent [B, d] (and condition) -> image.

    An ``Observed`` generator returns its observation, and then the image.
    """
    inputs = [shapes.inputs[name] for name in shapes.generator_inputs]

    def forward(latent: Tensor, *condition: Tensor) -> Any:
        if len(shapes.latent) != 1:
            latent = latent.view(latent.shape[0], *shapes.latent)
        return generator(latent, *condition)

    module = _trace_network(forward, inputs, batch_norm=batch_norm, what="the generator")
    found = {key: module.meta[key] for key in ("lines", "functions", "reduced")}
    return TracedGenerator(module, expose_output_activation(module), **found)


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


def trace_observation(observe: nn.Module, shapes: Shapes) -> fx.GraphModule:
    """Trace a prepared operator on images, using only operators that ONNX has.

    The inputs are the image and an unused latent. The output is the observation.
    """
    traced = _trace_network(observe, [shapes.image], batch_norm="eval", what="observe")

    def function(image: Tensor, latent: Tensor) -> list[Tensor]:
        return [traced(image)]

    return trace_decomposed(
        function, [shapes.image, (shapes.latent_size,)], describe=lambda: "observe"
    )


def trace_features(features: nn.Module, image: tuple[int, ...]) -> fx.GraphModule:
    """Trace a prepared network: images [B, *image] -> list of features."""
    return _trace_network(features, [image], batch_norm="eval", what="the feature network")


def _trace_network(
    forward: Callable[..., Any], inputs: Sequence[tuple[int, ...]], *, batch_norm: str, what: str
) -> fx.GraphModule:
    """Trace a network that draws no random numbers, and fold its batch norm."""
    watch = _NetworkWatch(what)
    refuse_loops(lambda size: forward(*_drawn(inputs, size)), _is_user_file, what)

    def called(*given: Tensor) -> Any:
        # torch.fx wraps calls of modules in a function whose own argument is called mod.
        with patch.object(nn.Module, "__call__", _CALL):
            return forward(*given)

    with _explained(watch.describe):
        mode, fakes = _fakes(inputs)
        with mode, enable_python_dispatcher(), torch.enable_grad(), portable(watch):
            module = make_fx(
                called,
                decomposition_table=network_decompositions(),
                record_stack_traces=True,
            )(*fakes)
        refuse_randomness(module.graph, what)
        _refuse_fixed_batch(module.graph, what)
        _refuse_decisions_by_batch(mode, what, lambda size: _same(forward, module, inputs, size))
        _refuse_writes_to_detached(module.graph, what)
        module.meta |= {
            "lines": _lines(module.graph),
            "functions": tuple(dict.fromkeys(watch.functions)),
            "reduced": watch.reduced,
        }
        module = _without_writes(module, mode, fakes)
        if is_complex(module):
            module = _without_complex(module, what, mode, fakes)
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
        simplify(module, keep_detach=True)
        rewrite_convolutions_per_target(module)
        fold_batch_norm(module)
        one_pixel_convolution_as_dense(module)
        unit_stride_transposed_as_convolution(module)
        simplify(module, keep_detach=True)
    return module


def _without_writes(
    module: fx.GraphModule, mode: FakeTensorMode, inputs: Sequence[Tensor]
) -> fx.GraphModule:
    """Replace operators that write to their arguments."""
    if not any(_writes(node) for node in module.graph.nodes):
        return module
    # Constants become inputs, because functionalize follows writes to its inputs only.
    graph, names = module.graph, []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        if node.target not in names:
            names.append(node.target)
            with graph.inserting_after(last):
                last = graph.placeholder(f"constant_{len(names)}")
            for same in [n for n in graph.nodes if n.op == "get_attr" and n.target == node.target]:
                same.replace_all_uses_with(last)
                graph.erase_node(same)
    module.recompile()
    constants = [constant_named(module, name) for name in names]
    fakes = [mode.from_tensor(value, static_shapes=True) for value in constants]
    with mode, enable_python_dispatcher(), torch.no_grad():
        pure = make_fx(
            torch.func.functionalize(module, remove="mutations"),
            decomposition_table=write_decompositions(),
        )(*inputs, *fakes)
    graph = pure.graph
    for node in list(graph.nodes):
        if is_op(node, "copy_") and not node.users:
            graph.erase_node(node)  # a write to a constant at the end, which nothing reads
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, value in zip(placeholders[len(inputs) :], constants, strict=True):
        with graph.inserting_before(node):
            node.replace_all_uses_with(add_constant(pure, value))
        graph.erase_node(node)
    pure.meta.update(module.meta)
    pure.recompile()
    return pure


def _without_complex(
    module: fx.GraphModule, what: str, mode: FakeTensorMode, inputs: Sequence[Tensor]
) -> fx.GraphModule:
    """Replace complex tensors by their real and imaginary parts."""

    def describe(node: fx.Node) -> str:
        name = node.target._schema.name  # type: ignore[union-attr]
        return f"{what} uses {name}{_at(_line(node))}"

    module.graph.eliminate_dead_code()
    with mode, enable_python_dispatcher(), torch.no_grad():
        real = make_fx(RealParts(module, describe).run)(*inputs)
    real.meta.update(module.meta)
    return real


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _refuse_fixed_batch(graph: fx.Graph, what: str) -> None:
    """Raise an error if the example's batch size became a number in the graph."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        sizes = [getattr(v, "shape", ()) for v in tree_leaves(node.meta.get("val"))]
        for number in tree_leaves((node.args, node.kwargs, [list(size) for size in sizes])):
            if type(number) is int and number and number % _EXAMPLE_BATCH == 0:
                raise ExportError(
                    f"{what} turns the number of latents into a fixed number"
                    f"{_at(_line(node))}: write -1 or x.shape[0] for that size"
                )


def _refuse_decisions_by_batch(
    mode: FakeTensorMode, what: str, same: Callable[[int], bool]
) -> None:
    """Raise an error if user code decides by the batch size, and gives other results for it.

    ``same`` says whether the graph gives the network's results for a batch size.
    """
    assert mode.shape_env is not None
    for guard in mode.shape_env.guards:
        place = guard.sloc.framework_loc
        if not isinstance(place, traceback.FrameSummary) or not _is_user_file(place.filename):
            continue
        sizes = guard.expr.free_symbols
        others = [n for n in _BATCHES_TRIED if not guard.expr.subs(dict.fromkeys(sizes, n))]
        if others and not same(others[0]):
            raise ExportError(
                f"{what} decides by the number of latents"
                f"{_at(f'{Path(place.filename).name}:{place.lineno}')}, and an exported function "
                "does the same for any number: remove that decision"
            )


def _same(
    forward: Callable[..., Any],
    module: fx.GraphModule,
    inputs: Sequence[tuple[int, ...]],
    size: int,
) -> bool:
    """Whether a graph gives the network's results for a batch of this size."""
    drawn = _drawn(inputs, size)
    with torch.no_grad(), portable():
        expected = tree_leaves(forward(*drawn))
        found = tree_leaves(module(*drawn))
    return all(
        torch.allclose(one, other, rtol=1e-4, atol=1e-5)
        for one, other in zip(found, expected, strict=True)
    )


def _drawn(inputs: Sequence[tuple[int, ...]], size: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    first, *rest = inputs
    # 0 is a class of every label.
    return [
        torch.randn(size, *first, generator=random),
        *(torch.zeros(size, *sizes) for sizes in rest),
    ]


def _refuse_writes_to_detached(graph: fx.Graph, what: str) -> None:
    """Raise an error for x.data[...] = y: values change, and the gradient does not know."""
    for node in graph.nodes:
        written = node.args[0] if _writes(node) and node.args else None
        while is_op(written, *_VIEWS):
            written = written.args[0]  # type: ignore[union-attr]
        # A tensor created without gradients has no other use than detach.
        if is_op(written, "detach") and len(written.args[0].users) > 1:  # type: ignore[union-attr]
            raise ExportError(
                f"{what} writes to .data or to a detached tensor{_at(_line(node))}: write "
                "y = x + (f(x) - x).detach() for other values with the gradient of x, or write to "
                "x.detach().clone()"
            )


def _line(node: fx.Node) -> str:
    """The line of the user's code that a node comes from, as file:line; empty if unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [f"{Path(file).name}:{line}" for file, line in frames if _is_user_file(file)]
    return own[-1] if own else ""


def _lines(graph: fx.Graph) -> dict[str, str]:
    lines: dict[str, str] = {}
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and _line(node):
            lines.setdefault(node.target._schema.name, _line(node))
    return lines


def trace_decomposed(
    function: Callable[..., Any],
    inputs: Sequence[tuple[int, ...]],
    *,
    describe: Callable[[], str],
    keep_detach: bool = False,
) -> fx.GraphModule:
    """Trace a function of traced networks, decomposing normalisations and similar operators.

    Args:
        function: maps tensors [B, *shape] to a tensor or a list of them.
        inputs: the shapes of these tensors, without the batch axis.
        describe: returns the name of the traced function for error messages.
        keep_detach: keep ``detach``, for graphs that will be differentiated.
    """
    decompositions = decomposition_table()
    if keep_detach:
        del decompositions[torch.ops.aten.detach.default]
    with _explained(describe):
        mode, fakes = _fakes(inputs)
        with (
            mode,
            enable_python_dispatcher(),
            torch.no_grad(),
            portable(_Watch()),
        ):
            module = make_fx(function, decomposition_table=decompositions)(*fakes)
        # Some of PyTorch's gradients write to what they compute.
        module = _without_writes(module, mode, fakes)
        simplify(module, keep_detach=keep_detach)
    return module


def refuse_randomness(graph: fx.Graph, what: str) -> None:
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and (
            torch.Tag.nondeterministic_seeded in node.target.tags
        ):
            raise ExportError(_random(what, node.target._schema.name + _at(_line(node))))


def _random(what: str, by: str) -> str:
    return (
        f"{what} draws random numbers with {by}: an exported function must give the same image "
        "for the same latent"
    )
