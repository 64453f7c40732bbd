"""Read the values of an ONNX graph: sizes, constants, users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["array_of", "declare", "only_user", "scalar_of", "sizes_of"]


def sizes_of(value: ir.Value | None) -> tuple[Any, ...] | None:
    """A value's sizes; static sizes are ints."""
    return None if value is None or value.shape is None else tuple(value.shape)


def declare(value: ir.Value, sizes: Sequence[Any] | None, like: ir.Value) -> None:
    """Set a value's sizes, and its element type to that of ``like``."""
    value.shape = None if sizes is None else ir.Shape(sizes)
    if like.dtype is not None:
        value.dtype = like.dtype


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """A constant's value."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def scalar_of(value: ir.Value | None) -> float | None:
    array = array_of(value)
    return float(array.item()) if array is not None and array.size == 1 else None


def only_user(value: ir.Value) -> ir.Node | None:
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None
