"""Inputs of a generator beside the latent: conditions of each target, and fixed values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyinv.caution import warn
from pyinv.conditions import Condition, Input, Label, OneHot
from pyinv.errors import ExportError

from ..diagnostics import quiet
from .onnx_file import OnnxModule
from .portable import portable
from .torchscript_reader import Scripted

__all__ = ["NamedInputs", "draw_conditions", "with_inputs"]

_FIXED = "a number, string, bool, None or tensor for a fixed value"
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_ROUNDS = ("floor", "int", "long", "round", "to", "trunc", "type")


class NamedInputs(nn.Module):
    """A network of one tensor and conditions, which takes the conditions as one tensor.

    Its forward takes latents (an encoder's: images) and float rows [B, n], with each condition's
    columns in turn, and calls the network with its own arguments.

    Args:
        network: the network, prepared.
        conditions: its conditions, by name.
        fixed: values that are the same for all targets, by name.
        positional: the names of the arguments given by position, in order; "" is the latent.
        keywords: how the network calls the other arguments; also of names.
        latent: the name of the latent, if it is given by keyword.
    """

    def __init__(
        self,
        network: nn.Module,
        conditions: Mapping[str, Input],
        fixed: Mapping[str, Any] | None = None,
        *,
        positional: Sequence[str] | None = None,
        keywords: Sequence[str] = (),
        latent: str = "",
    ) -> None:
        super().__init__()
        self.network = network
        self.conditions = dict(conditions)
        self.latent = latent
        self.positional = ("", *conditions) if positional is None else tuple(positional)
        self.keywords = tuple(keywords)
        self._values: dict[str, Any] = {}
        self._tensors: dict[str, str] = {}
        for name, value in (fixed or {}).items():
            if isinstance(value, Tensor):
                self._tensors[name] = f"fixed_{len(self._tensors)}"
                own = value.detach().cpu().clone()
                self.register_buffer(
                    self._tensors[name], own.float() if own.is_floating_point() else own
                )
            else:
                self._values[name] = value

    def forward(self, latent: Tensor, *rows: Tensor) -> Any:
        positional, keywords = self.arguments(latent, *rows)
        return self.network(*positional, **keywords)

    def arguments(self, latent: Tensor, *rows: Tensor) -> tuple[list[Any], dict[str, Any]]:
        """Return the network's arguments: those by position, and those by keyword."""
        values = {self.latent: latent, **self._values}
        values |= {name: getattr(self, buffer) for name, buffer in self._tensors.items()}
        start = 0
        for name, condition in self.conditions.items():
            end = start + condition.columns
            values[name] = _argument(condition, rows[0][:, start:end])
            start = end
        return [values[n] for n in self.positional], {n: values[n] for n in self.keywords}

    def of(self, network: nn.Module, conditions: Mapping[str, Input] | None = None) -> NamedInputs:
        """The same inputs for another network of the same arguments, or as other conditions."""
        fixed = {name: getattr(self, buffer) for name, buffer in self._tensors.items()}
        return NamedInputs(
            network,
            self.conditions if conditions is None else conditions,
            {**self._values, **fixed},
            positional=self.positional,
            keywords=self.keywords,
            latent=self.latent,
        )


def _argument(condition: Input, columns: Tensor) -> Tensor:
    """Return a condition as the network takes it."""
    if isinstance(condition, Condition):
        sizes = condition.sizes
        return columns if len(sizes) == 1 else columns.reshape(columns.shape[0], *sizes)
    if isinstance(condition, OneHot):
        classes = torch.arange(condition.classes, dtype=columns.dtype)
        return ((columns - classes).abs() < 0.5).to(columns.dtype)
    return (columns.reshape(-1) + 0.5).long()


def draw_conditions(
    conditions: Mapping[str, Input], count: int, *, random: torch.Generator
) -> Tensor:
    """Draw rows of conditions, float32 [count, n]: any labels, and floats in their range.

    Among two or more labels are 0 and the last class.
    """
    columns = []
    for condition in conditions.values():
        if isinstance(condition, Condition):
            uniform = torch.rand(count, condition.columns, generator=random)
            columns.append(condition.low + (condition.high - condition.low) * uniform)
            continue
        labels = torch.randint(condition.classes, (count,), generator=random)
        if count > 1:
            places = torch.randperm(count, generator=random)
            labels[places[0]], labels[places[1]] = 0, condition.classes - 1
        columns.append(labels.float()[:, None])
    return torch.cat(columns, 1)


def with_inputs(
    generator: nn.Module,
    inputs: Mapping[str, Any] | None,
    condition_shape: Condition | None,
    latent_shape: Sequence[int],
) -> NamedInputs:
    """Return a prepared generator that takes the latent and its conditions as one tensor.

    Args:
        generator: the prepared generator.
        inputs: what its arguments are, by name; the latent is the first that is not named.
        condition_shape: instead of ``inputs``, its second argument.
        latent_shape: one latent's shape.

    Raises:
        ExportError: inputs that the generator does not take, or others that it needs.
    """
    if inputs is not None and condition_shape is not None:
        raise ExportError(
            "condition_shape describes the second argument, and inputs all but the latent: leave "
            "out condition_shape"
        )
    given = _checked(inputs)
    parameters = _parameters(generator)
    if condition_shape is not None:
        names = [parameter.name for parameter in parameters if parameter.kind not in _VARIADIC]
        given = {names[1] if len(names) > 1 else "condition": condition_shape}
        if len(names) < 2:
            # Where forward takes one argument, the call says so.
            return NamedInputs(generator, given)
    bound = _bound(generator, parameters, given)
    return _with_labels(bound, latent_shape, infer=condition_shape is not None)


def _checked(inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping) or not all(name and type(name) is str for name in inputs):
        raise ExportError(
            f'inputs must be a dictionary such as {{"label": Label(10)}}, got {inputs!r}'
        )
    for name, value in inputs.items():
        if value is not None and not isinstance(value, Input | bool | int | float | str | Tensor):
            raise ExportError(
                f"inputs[{name!r}] must be Label(classes), OneHot(classes), Condition(shape), or "
                f"{_FIXED}, got {value!r}"
            )
    return dict(inputs)


@dataclass(frozen=True)
class _Parameter:
    name: str
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    required: bool = True


def _parameters(generator: nn.Module) -> list[_Parameter]:
    """List the arguments of a generator's forward."""
    if isinstance(generator, OnnxModule | Scripted):
        kind = inspect.Parameter.POSITIONAL_ONLY
        # A scripted forward may have defaults.
        required = isinstance(generator, OnnxModule)
        return [_Parameter(name, kind, required) for name in generator.input_names]
    try:
        # A wrapper's own arguments, not those of the function it wraps.
        found = inspect.signature(generator.forward, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return [_Parameter("", inspect.Parameter.VAR_POSITIONAL)]
    return [_Parameter(one.name, one.kind, one.default is one.empty) for one in found]


def _bound(
    generator: nn.Module, parameters: Sequence[_Parameter], given: Mapping[str, Any]
) -> NamedInputs:
    """Find out how forward takes the latent and what is given."""
    kinds = [parameter.kind for parameter in parameters]
    named = {one.name: one for one in parameters if one.kind not in _VARIADIC}
    for name in given:
        if name not in named and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ExportError(
                f"inputs has {name!r}, and the generator takes {', '.join(named)}: use its names"
            )
    latent = next((name for name in named if name not in given), "")
    if not latent and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise ExportError(
            f"inputs names all that the generator takes ({', '.join(named)}): leave out the latent"
        )
    positional, keywords = [], []
    skipped = ""
    for name, parameter in named.items():
        if name not in given and name != latent:
            skipped = skipped or name
            if parameter.required:
                raise ExportError(
                    f"the generator takes {', '.join(named)}, and its latent is {latent}: say what "
                    f"{name} is, such as inputs={{{name!r}: Label(classes)}}, or Condition(shape), "
                    f"or {_FIXED}; in the shell, --input {name}=label:10 or "
                    f"--input {name}=condition:4"
                )
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            keywords.append(name)
        elif not skipped:
            positional.append(name)
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ExportError(
                f"the generator takes its inputs by position ({', '.join(named)}): say what "
                f"{skipped} is as well"
            )
        else:
            keywords.append(name)
    if not latent:
        positional.append("")
    return NamedInputs(
        generator,
        {name: value for name, value in given.items() if isinstance(value, Input)},
        {name: value for name, value in given.items() if not isinstance(value, Input)},
        positional=positional,
        keywords=[*keywords, *(name for name in given if name not in named)],
        latent=latent,
    )


class _IndexWatch(TorchFunctionMode):
    """Find the conditions that a network uses as integers.

    Attributes:
        cast: the columns of conditions that it casts to integers.
        classes: the number of classes of each column that it uses as an index.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        # The memory of a condition, or of the same rounded, and its column.
        self._columns = {rows[:, i].data_ptr(): i for i in range(rows.shape[1])}
        self._kept: list[Tensor] = []
        self.cast: set[int] = set()
        self.classes: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("input")
        column = self._columns.get(first.data_ptr()) if isinstance(first, Tensor) else None
        if column is None:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        second = args[1] if len(args) > 1 else kwargs.get("weight", kwargs.get("num_classes"))
        if name == "embedding" and isinstance(second, Tensor):
            self.classes[column] = second.shape[0]
        elif name == "one_hot" and isinstance(second, int) and second > 0:
            self.classes[column] = second
        result = func(*args, **kwargs)
        if name in _ROUNDS and isinstance(result, Tensor):
            self._kept.append(result)
            self._columns[result.data_ptr()] = column
            if not result.is_floating_point():
                self.cast.add(column)
        return result


def _with_labels(bound: NamedInputs, latent_shape: Sequence[int], *, infer: bool) -> NamedInputs:
    """Find class labels that are described as floats.

    With ``infer``, a float that is an index without being cast becomes a label, with a warning.
    """
    floats = {name: c for name, c in bound.conditions.items() if isinstance(c, Condition)}
    if not any(condition.columns == 1 for condition in floats.values()):
        return bound
    rows = torch.zeros(2, sum(condition.columns for condition in bound.conditions.values()))
    watch = _IndexWatch(rows)
    runs = False
    with suppress(Exception), quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        with portable(), watch:
            bound(torch.zeros(2, *latent_shape), rows)
        runs = True
    start = 0
    for name, condition in bound.conditions.items():
        column, start = start, start + condition.columns
        if name not in floats or condition.columns != 1:
            continue
        classes = watch.classes.get(column)
        label = f"inputs={{{name!r}: Label({classes or 'classes'})}}"
        if not runs and classes is not None:
            use = f"the generator uses {name!r} as an index of {classes} classes"
            if not infer:
                raise ExportError(f"{use}: give {label}")
            warn(f"{use}: it becomes a label; give {label} instead of condition_shape")
            return bound.of(bound.network, {name: Label(classes)})
        low, high = floats[name].low, floats[name].high
        if runs and column in watch.cast and low >= -1 and high <= 1:
            warn(
                f"the generator casts {name!r} to integers, and the checks draw it between {low:g} "
                f"and {high:g}: give {label}, or Condition(shape, low, high) with its range"
            )
    return bound
