"""Pick the exported tensor out of what a generator returns: a dictionary, tuple or object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pyinv.errors import ExportError

__all__ = ["OneOutput", "check_output"]


class OneOutput(nn.Module):
    """A generator that returns one of the tensors that the given one returns.

    Args:
        generator: the generator.
        output: which of its outputs: a key, an attribute or an index; None for a generator that
            returns one tensor.
    """

    def __init__(self, generator: nn.Module, output: str | int | None) -> None:
        super().__init__()
        self.generator = generator
        self.output = output

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the tensor, or raise ExportError with the outputs that exist."""
        returned = self.generator(*inputs)
        if self.output is None:
            if isinstance(returned, Tensor):
                return returned
            raise ExportError(_several(returned))
        if isinstance(returned, Tensor):
            raise ExportError(
                f"the generator returns one tensor, and output={self.output!r} picks one of "
                "several: leave output out"
            )
        picked = _pick(returned, self.output)
        if not isinstance(picked, Tensor):
            raise ExportError(
                f"the generator's output {self.output!r} is {_a(type(picked).__name__)}, and must "
                "be a tensor: pick another, or wrap the generator in a module that returns it"
            )
        return picked


def check_output(output: Any) -> str | int | None:
    """Return ``output`` if it can pick one of several outputs, or raise ExportError."""
    if output is None or (isinstance(output, str | int) and not isinstance(output, bool)):
        return output
    raise ExportError(
        f"output must be a key, the name of an attribute, or an index, got {output!r}"
    )


def _pick(returned: Any, output: str | int) -> Any:
    if isinstance(output, str):
        if isinstance(returned, Mapping) and output in returned:
            return returned[output]
        if not isinstance(returned, Mapping) and hasattr(returned, output):
            return getattr(returned, output)
    elif isinstance(returned, Mapping):
        if output in returned:
            return returned[output]
    elif _is_sequence(returned) and -len(returned) <= output < len(returned):
        return returned[output]
    raise ExportError(f"{_what(returned)}, and has no output {output!r}{_choices(returned)}")


def _several(returned: Any) -> str:
    choices = _choices(returned)
    if not choices:
        return f"{_what(returned)}: wrap it in a module that returns a tensor"
    return f"{_what(returned)}, and a bundle has one tensor{choices}"


def _what(returned: Any) -> str:
    kind = type(returned).__name__
    if _is_sequence(returned):
        items = f"{len(returned)} item{'' if len(returned) == 1 else 's'}"
        return f"the generator returns {_a(kind)} of {items}"
    return f"the generator returns {_a(kind)}"


def _choices(returned: Any) -> str:
    """Say which values ``output`` may have; nothing if there are none."""
    choices = [repr(name) for name in _names(returned)]
    if _is_sequence(returned):
        choices += [str(index) for index in range(len(returned))]
    return f": give output={' or '.join(choices)} (--output-item)" if choices else ""


def _names(returned: Any) -> list[Any]:
    """Return the keys or the attributes of what a generator returned."""
    if isinstance(returned, Mapping):
        return list(returned)
    if dataclasses.is_dataclass(returned):
        return [field.name for field in dataclasses.fields(returned)]
    if isinstance(returned, tuple):
        return list(getattr(returned, "_fields", ()))
    return [name for name in getattr(returned, "__dict__", {}) if not name.startswith("_")]


def _is_sequence(returned: Any) -> bool:
    return isinstance(returned, Sequence) and not isinstance(returned, str | bytes)


def _a(kind: str) -> str:
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
