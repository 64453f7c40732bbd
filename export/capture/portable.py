"""Run user code as it is exported: in float32, on the CPU, eagerly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

__all__ = ["Portable", "portable"]

_REDUCED = (torch.float16, torch.bfloat16)
_TO_REDUCED = (Tensor.half, Tensor.bfloat16)
_TO_DEVICE = (Tensor.cuda, Tensor.cpu)
_LSTM = (torch.lstm, torch.ops.aten.lstm.input)


class Portable(TorchFunctionMode):
    """Ignore devices and reduced precisions that are written in a network's forward.

    float16 and bfloat16 become float32, autocast has no effect, and all devices are the CPU.

    Attributes:
        reduced: whether the code asked for a reduced precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reduced = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TO_REDUCED:
            self.reduced = True
            func, args, kwargs = Tensor.float, args[:1], {}
        elif func in _TO_DEVICE:
            return args[0]
        elif func is Tensor.type and len(args) > 1 and isinstance(args[1], str):
            args, kwargs = (args[0], self._portable_type(args[1])), {}
        else:
            is_to = func is Tensor.to
            if is_to and len(args) > 1 and type(args[1]) is int:  # a GPU's number
                args = (args[0], torch.device("cpu"), *args[2:])
            args = self._portable(tuple(args), is_to)
            kwargs = {
                name: self._portable(value, is_to or name == "device")
                for name, value in (kwargs or {}).items()
            }
        basic: Any = nullcontext()
        if torch.is_autocast_enabled("cpu"):
            self.reduced = True
            basic = torch.autocast("cpu", enabled=False)
        elif func in _LSTM:
            # Its fused kernel has no ONNX operator and no second derivative.
            basic = _without_fused_kernels()
        with basic:
            return self.call(func, args, kwargs)

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function whose arguments are portable."""
        return func(*args, **kwargs)

    def _portable_type(self, name: str) -> str:
        """Replace a tensor type such as "torch.cuda.HalfTensor"."""
        kind = name.rpartition(".")[2]
        if kind in ("HalfTensor", "BFloat16Tensor"):
            self.reduced = True
            kind = "FloatTensor"
        return f"torch.{kind}"

    def _portable(self, arguments: Any, may_name_device: bool) -> Any:
        def portable(given: Any) -> Any:
            if isinstance(given, torch.dtype) and given in _REDUCED:
                self.reduced = True
                return torch.float32
            if isinstance(given, torch.device) or (may_name_device and isinstance(given, str)):
                return torch.device("cpu")
            return given

        return tree_map(portable, arguments)


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    # torch.backends.mkldnn.flags warns of GPUs that are not there.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


_call_scripted = torch.jit.ScriptFunction.__call__


def _call_unscripted(function: Any, *args: Any, **kwargs: Any) -> Any:
    # torch.jit.script keeps the function for torch.compile, which inlines it.
    python = getattr(function, "_torchdynamo_inline", None)
    if python is None:
        return _call_scripted(function, *args, **kwargs)
    return python(*args, **kwargs)


@contextmanager
def portable(mode: Portable | None = None) -> Iterator[None]:
    """Run user code as it is exported.

    Functions under ``torch.compile`` are not compiled, and those under ``torch.jit.script`` run as
    Python: scripts mistake a symbolic size for a number. Attention is computed with basic
    operators: its fused kernels have no ONNX operator and no second derivative.
    Distributions do not check their arguments: that would be a decision by values.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    validates = Distribution._validate_args
    torch.backends.mha.set_fastpath_enabled(False)
    Distribution.set_default_validate_args(False)
    try:
        with (
            torch.compiler.set_stance("force_eager"),
            torch._dynamo.config.patch(error_on_nested_fx_trace=False),
            sdpa_kernel(SDPBackend.MATH),
            patch.object(torch.jit.ScriptFunction, "__call__", _call_unscripted),
            mode or Portable(),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        Distribution.set_default_validate_args(validates)
