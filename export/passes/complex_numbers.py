"""Replace complex tensors in a traced graph by real and imaginary parts.

ONNX has no complex tensors, and the tangents are real.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from pyinv.errors import ExportError

from .fourier import complex_to_real, fourier
from .graph import is_op

__all__ = ["RealParts", "is_complex"]

aten = torch.ops.aten


def is_complex(module: fx.GraphModule) -> bool:
    """Whether a graph has complex tensors."""
    values = (tree_leaves(node.meta.get("val")) for node in module.graph.nodes)
    return any(isinstance(v, Tensor) and v.is_complex() for own in values for v in own)


@dataclass(frozen=True)
class _Complex:
    """A complex tensor; ``imaginary`` is None for 0."""

    real: Tensor
    imaginary: Tensor | None

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(self.real) if self.imaginary is None else self.imaginary
        return self.real, zero


class RealParts(fx.Interpreter):
    """Run a graph, with each complex tensor as its real and imaginary parts.

    Args:
        module: the graph.
        describe: returns the start of an error message about a node.
    """

    def __init__(self, module: fx.GraphModule, describe: Callable[[fx.Node], str]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self.describe = describe

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            value = super().run_node(n)
            complex_constant = isinstance(value, Tensor) and value.is_complex()
            return _Complex(value.real.clone(), value.imag.clone()) if complex_constant else value
        if n.op != "call_function":
            return super().run_node(n)
        if n.target is aten.view.default:
            # The parts need not have the strides that a view asks for.
            n.target = aten.reshape.default
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if is_op(n, "select") and is_op(n.args[0], "view_as_real"):
            # x.real and x.imag
            source: Any = n.args[0]
            if args[1] == args[0].ndim - 1:
                return self.env[source.args[0]].parts[args[2]]
        leaves = tree_leaves((args, kwargs, n.meta.get("val")))
        if not any(
            isinstance(a, _Complex) or (isinstance(a, Tensor) and a.is_complex()) for a in leaves
        ):
            return super().run_node(n)
        operator: Any = n.target
        name = operator._schema.name.removeprefix("aten::")
        rule = _RULES.get(name)
        if rule is not None:
            try:
                return rule(*args, **kwargs)
            except ExportError as error:
                raise ExportError(f"{self.describe(n)}: {error}") from error
        if name not in _LINEAR:
            raise ExportError(
                f"{self.describe(n)} of complex numbers, which cannot be exported: write it with "
                "the real and imaginary parts, x.real and x.imag"
            )
        kwargs = {key: torch.float32 if key == "dtype" else value for key, value in kwargs.items()}
        real, imaginary = (operator(*_part(args, i), **_part(kwargs, i)) for i in (0, 1))
        if isinstance(real, list | tuple):
            return [_Complex(*pair) for pair in zip(real, imaginary, strict=True)]
        return _Complex(real, imaginary)


def _part(given: Any, i: int) -> Any:
    """Arguments with the real (0) or imaginary (1) parts of complex tensors."""
    return tree_map(lambda a: a.parts[i] if isinstance(a, _Complex) else a, given)


def _add(x: Any, y: Any, *, alpha: float = 1) -> Any:
    (a, b), (c, d) = _numbers(x), _numbers(y)
    return _Complex(a + alpha * c, b + alpha * d)


def _sub(x: Any, y: Any, *, alpha: float = 1) -> Any:
    return _add(x, y, alpha=-alpha)


def _numbers(x: Any) -> tuple[Any, Any]:
    """The parts of a complex or real tensor or number."""
    if isinstance(x, _Complex):
        return x.parts
    return (x.real, x.imag) if isinstance(x, complex) else (x, 0.0)


def _product(times: Callable[[Any, Any], Any], x: Any, y: Any) -> _Complex:
    """A product of two tensors, of which at least one is complex."""
    if not isinstance(x, _Complex | complex):
        c, d = _numbers(y)
        return _Complex(times(x, c), times(x, d))
    (a, b) = _numbers(x)
    if not isinstance(y, _Complex | complex):
        return _Complex(times(a, y), times(b, y))
    c, d = _numbers(y)
    return _Complex(times(a, c) - times(b, d), times(a, d) + times(b, c))


def _mul(x: Any, y: Any) -> _Complex:
    return _product(lambda a, b: a * b, x, y)


def _div(x: Any, y: Any) -> _Complex:
    if not isinstance(y, _Complex | complex):
        return _product(lambda a, b: a / b, x, y)
    c, d = _numbers(y)
    size = c * c + d * d
    return _mul(x, _Complex(c / size, -d / size))


def _exp(x: _Complex) -> _Complex:
    return _polar(x.real.exp(), x.parts[1])


def _polar(size: Tensor, angle: Tensor) -> _Complex:
    return _Complex(size * angle.cos(), size * angle.sin())


def _abs(x: _Complex) -> Tensor:
    a, b = x.parts
    square = a * a + b * b
    # As PyTorch's, the gradient at 0 is 0.
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _angle(x: _Complex) -> Tensor:
    a, b = x.parts
    return torch.atan2(b, a)


def _conj(x: Any) -> Any:
    if not isinstance(x, _Complex):
        return x
    return _Complex(x.real, None if x.imaginary is None else -x.imaginary)


def _cast(x: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
    if isinstance(x, _Complex):
        return x if dtype is None or dtype.is_complex else x.real
    return _Complex(x.to(torch.float32), None)


def _filled(create: Any) -> Callable[..., _Complex]:
    def filled(*args: Any, **kwargs: Any) -> _Complex:
        args = tuple(a.real if isinstance(a, _Complex | complex) else a for a in args)
        return _Complex(create(*args, **{**kwargs, "dtype": torch.float32}), None)

    return filled


def _scaled(parts: tuple[Tensor, Tensor | None], sizes: list[int], normalization: int) -> _Complex:
    """Divide by the square root (1) or the whole (2) of the number of values transformed."""
    factor = {0: 1.0, 1: math.prod(sizes) ** -0.5, 2: 1.0 / math.prod(sizes)}[normalization]
    real, imaginary = parts
    if factor == 1.0:
        return _Complex(real, imaginary)
    return _Complex(real * factor, None if imaginary is None else imaginary * factor)


def _fft_r2c(x: Tensor, axes: list[int], normalization: int, onesided: bool) -> _Complex:
    sizes = [int(x.shape[axis]) for axis in axes]
    first = sizes[-1] // 2 + 1 if onesided else sizes[-1]
    parts = fourier((x, None), axes[-1], sign=-1, first=first)
    for axis in axes[:-1]:
        parts = fourier(parts, axis, sign=-1)
    return _scaled(parts, sizes, normalization)


def _fft_c2c(x: Any, axes: list[int], normalization: int, forward: bool) -> _Complex:
    sizes = [int(x.real.shape[axis]) for axis in axes]
    parts = (x.real, x.imaginary)
    for axis in axes:
        parts = fourier(parts, axis, sign=-1 if forward else 1)
    return _scaled(parts, sizes, normalization)


def _fft_c2r(x: _Complex, axes: list[int], normalization: int, last: int) -> Tensor:
    sizes = [*(int(x.real.shape[axis]) for axis in axes[:-1]), int(last)]
    parts = (x.real, x.imaginary)
    for axis in axes[:-1]:
        parts = fourier(parts, axis, sign=1)
    return _scaled((complex_to_real(parts, axes[-1], int(last)), None), sizes, normalization).real


_RULES: dict[str, Callable[..., Any]] = {
    "_conj": _conj,
    "_conj_physical": _conj,
    "_fft_c2c": _fft_c2c,
    "_fft_c2r": _fft_c2r,
    "_fft_r2c": _fft_r2c,
    "_to_copy": _cast,
    "abs": _abs,
    "add": _add,
    "angle": _angle,
    "bmm": lambda x, y: _product(torch.bmm, x, y),
    "complex": _Complex,
    "conj": _conj,
    "conj_physical": _conj,
    "div": _div,
    "exp": _exp,
    "full": _filled(torch.full),
    "full_like": _filled(torch.full_like),
    "imag": lambda x: x.parts[1],
    "mm": lambda x, y: _product(torch.mm, x, y),
    "mul": _mul,
    "ones": _filled(torch.ones),
    "ones_like": _filled(torch.ones_like),
    "polar": _polar,
    "real": lambda x: x.real,
    "reciprocal": lambda x: _div(1.0, x),
    "resolve_conj": lambda x: x,
    "sub": _sub,
    "sym_numel": lambda x: x.real.numel(),
    "sym_size": lambda x, axis: x.real.shape[axis],
    "view_as_complex": lambda x: _Complex(x.select(-1, 0), x.select(-1, 1)),
    "view_as_real": lambda x: torch.stack(x.parts, -1),
    "zeros": _filled(torch.zeros),
    "zeros_like": _filled(torch.zeros_like),
}

# Operators that act on the real and imaginary parts alike.
_LINEAR = (
    "_reshape_alias", "_unsafe_view", "alias", "cat", "clone", "constant_pad_nd", "contiguous",
    "cumsum", "detach", "diagonal", "expand", "flip", "gather", "index", "index_select",
    "lift_fresh_copy", "mean", "narrow", "neg", "permute", "repeat", "reshape", "resolve_neg",
    "roll", "select", "slice",
    "split", "split_with_sizes", "squeeze", "stack", "sum", "t", "transpose", "tril", "triu",
    "unbind", "unsqueeze", "view", "where",
)  # fmt: skip
