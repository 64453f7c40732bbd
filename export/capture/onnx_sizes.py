"""Shape arithmetic of ONNX graphs: operators on arrays of sizes, some of which are symbolic.

An array holds numbers, or objects if one of them is a symbolic size. ``on_arrays`` applies an
operator to arrays alone; its function in ``onnx_functions`` applies it to tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import helper

from .onnx_functions import Operation, numbers

__all__ = ["array_of", "is_symbolic", "on_arrays"]

# Larger arrays are made by torch.
_LARGEST = 1 << 16


def is_symbolic(array: np.ndarray) -> bool:
    """Whether one of the array's numbers is symbolic."""
    return array.dtype == object


def array_of(value: Any) -> np.ndarray:
    """Return a number or array as an array, of objects only if one of them is symbolic."""
    array = np.asarray(value, dtype=object if _symbolic(value) else None)
    if array.dtype != object or any(map(_symbolic, array.reshape(-1))):
        return array
    listed = array.reshape(-1).tolist()
    return np.array(listed, dtype=None if listed else np.int64).reshape(array.shape)


def _symbolic(value: Any) -> bool:
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def on_arrays(op: Operation, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray] | None:
    """Apply an operator to arrays; None where no function here does it."""
    function = _FUNCTIONS.get(op.kind)
    result = None if function is None else function(op, *inputs)
    if result is None:
        return None
    results = result if isinstance(result, list) else [result]
    return [array_of(one) for one in results]


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda op, *inputs: function(*inputs)


def _folded(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(op: Operation, first: Any, *others: Any) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return apply


def _axes(op: Operation, given: np.ndarray | None) -> tuple[int, ...]:
    return tuple(numbers(given) if given is not None else op.get("axes", ()))


def _cast(op: Operation, x: np.ndarray) -> Any:
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(op.get("to")))
    if not is_symbolic(x):
        return x.astype(kind)
    convert: Any = torch.sym_float if kind.kind == "f" else torch.sym_int
    flat = np.array([None] * x.size, dtype=object)
    flat[:] = [convert(value) for value in x.reshape(-1)]
    return flat.reshape(x.shape)


def _div(op: Operation, a: np.ndarray, b: np.ndarray) -> Any:
    # Sizes are positive, so rounding down and rounding towards 0 agree.
    return np.floor_divide(a, b) if _whole(a) and _whole(b) else np.true_divide(a, b)


def _whole(x: np.ndarray) -> bool:
    if is_symbolic(x):
        return all(isinstance(value, int | torch.SymInt) for value in x.reshape(-1))
    return x.dtype.kind in "iu"


def _each(function: Callable[[Any], Any], whole: Callable[[Any], Any]) -> Callable[..., Any]:
    """Apply one function to symbolic numbers, and another to an array without any."""

    def apply(op: Operation, x: np.ndarray) -> Any:
        if not is_symbolic(x):
            return whole(x)
        flat = np.array([None] * x.size, dtype=object)
        flat[:] = [function(value) for value in x.reshape(-1)]
        return flat.reshape(x.shape)

    return apply


def _reshape(op: Operation, x: np.ndarray, shape: np.ndarray) -> Any:
    sizes = numbers(shape)
    if not op.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape([int(size) for size in sizes])


def _squeeze(op: Operation, x: np.ndarray, axes: np.ndarray | None = None) -> Any:
    return np.squeeze(x, _axes(op, axes) or None)


def _unsqueeze(op: Operation, x: np.ndarray, axes: np.ndarray | None = None) -> Any:
    return np.expand_dims(x, _axes(op, axes))


def _concat(op: Operation, *inputs: np.ndarray) -> Any:
    return np.concatenate(inputs, op.get("axis"))


def _gather(op: Operation, x: np.ndarray, indices: np.ndarray) -> Any:
    return np.take(x, indices.astype(np.int64), op.get("axis", 0))


def _slice(
    op: Operation,
    x: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> Any:
    begins, stops = numbers(starts), numbers(ends)
    strides = numbers(steps) or [1] * len(begins)
    cut = [slice(None)] * x.ndim
    for axis, *bounds in zip(
        numbers(axes) or range(len(begins)), begins, stops, strides, strict=True
    ):
        cut[axis] = slice(*bounds)
    return x[tuple(cut)]


def _split(op: Operation, x: np.ndarray, sizes: np.ndarray | None = None) -> Any:
    axis = op.get("axis", 0)
    given = numbers(sizes) if sizes is not None else op.get("split")
    if given is None:
        most = math.ceil(x.shape[axis] / op.outputs)
        return np.split(x, range(most, x.shape[axis], most), axis)
    return np.split(x, np.cumsum(given)[:-1], axis)


def _expand(op: Operation, x: np.ndarray, shape: np.ndarray) -> Any:
    if is_symbolic(shape):
        return None
    sizes = np.broadcast_shapes(x.shape, tuple(numbers(shape)))
    return np.broadcast_to(x, sizes) if math.prod(sizes) <= _LARGEST else None


def _tile(op: Operation, x: np.ndarray, repeats: np.ndarray) -> Any:
    return None if is_symbolic(repeats) else np.tile(x, numbers(repeats))


def _constant_of_shape(op: Operation, shape: np.ndarray) -> Any:
    if is_symbolic(shape) or math.prod(numbers(shape)) > _LARGEST:
        return None
    value = op.get("value")
    return np.full(numbers(shape), np.float32(0) if value is None else value.reshape(-1)[0])


def _range(op: Operation, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> Any:
    if any(map(is_symbolic, (start, limit, delta))):
        raise op.unsupported("a limit that depends on the number of latents")
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _reduce(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(op: Operation, x: np.ndarray, axes: np.ndarray | None = None) -> Any:
        return function(x, axis=_axes(op, axes) or None, keepdims=bool(op.get("keepdims", 1)))

    return apply


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Abs": _plain(np.abs),
    "Add": _plain(np.add),
    "And": _plain(np.logical_and),
    "Cast": _cast,
    "Ceil": _each(math.ceil, np.ceil),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Cos": _plain(np.cos),
    "Div": _div,
    "Equal": _plain(np.equal),
    "Exp": _plain(np.exp),
    "Expand": _expand,
    "Floor": _each(math.floor, np.floor),
    "Gather": _gather,
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Identity": _plain(lambda x: x),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Log": _plain(np.log),
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Mod": _plain(np.mod),
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Not": _plain(np.logical_not),
    "Or": _plain(np.logical_or),
    "Pow": _plain(np.power),
    "Range": _range,
    "Reciprocal": _plain(np.reciprocal),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Shape": lambda op, x: np.array(x.shape)[op.get("start", 0) : op.get("end")],
    "Sin": _plain(np.sin),
    "Size": lambda op, x: x.size,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _each(lambda x: x**0.5, np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(np.subtract),
    "Tile": _tile,
    "Transpose": lambda op, x: np.transpose(x, op.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": _plain(np.where),
}
