"""Write a bundle's functions for each runtime, and check them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import fx

from pyinv.bundle import Function

from .capture.trace import Shapes, TracedGenerator
from .check import (
    NetworkReference,
    Reference,
    check_function,
    onnx_function,
    torchscript_function,
)
from .derivatives.functions import trace_functions
from .derivatives.losses import Loss
from .passes.graph import Signature
from .passes.peak_memory import bytes_per_target
from .runtimes.onnx import WEIGHTS_FILE, WeightsFile, to_onnx, write_onnx
from .runtimes.onnx_operators import operators_in
from .runtimes.torchscript_writer import FUNCTIONS_FILE, method_names, write_torchscript

__all__ = ["network_files", "write_functions", "write_network"]

_RUNTIME_NAMES = {"onnx": "ONNX", "torchscript": "TorchScript"}
# The memory of normal equations for one target above which their directions are split into chunks.
_MOST_BYTES_PER_TARGET = 1 << 28


@dataclass(frozen=True)
class _Planned:
    """A function to be written for each runtime.

    bytes_per_target: the peak memory of normal equations per target; None for other functions.
    """

    name: str
    loss: Loss | None
    signature: Signature
    bytes_per_target: int | None = None


def write_functions(
    folder: Path,
    traced: TracedGenerator,
    reference: Reference,
    losses: Sequence[Loss],
    solved: Sequence[Loss],
    runtimes: Sequence[str],
    say: Callable[[str], None],
) -> list[Function]:
    """Trace, write and check a bundle's functions.

    Args:
        folder: the folder to write to.
        traced: the traced generator.
        reference: the generator in PyTorch, which the written functions are compared with.
        losses: the losses to write an objective for.
        solved: the losses among them to write normal equations for.
        runtimes: the runtimes to write for.
        say: called with a line about each step.

    Raises:
        ExportError: a function cannot be written, or differs from PyTorch.
    """
    say(f"tracing the gradient of {', '.join(loss.name for loss in losses)}")
    whole = trace_functions(
        traced,
        losses,
        reference.shapes,
        value_range=reference.value_range,
        solved=solved,
        most_bytes_per_target=_MOST_BYTES_PER_TARGET,
    )
    planned = _plan(whole, losses, solved, reference.shapes)
    return _write_planned(folder, reference, whole, planned, runtimes, say)


def _plan(
    whole: fx.GraphModule, losses: Sequence[Loss], solved: Sequence[Loss], shapes: Shapes
) -> list[_Planned]:
    """List the functions, with the positions of their outputs in the graph."""
    names = list(shapes.inputs)
    forward = Signature(shapes.generator_inputs, {0: "image"})
    planned = [_Planned("forward", None, forward)]
    places = {}
    for i, loss in enumerate(losses):
        places[loss.name] = 1 + 2 * i
        outputs = {1 + 2 * i: "loss", 2 + 2 * i: "gradient"}
        planned.append(_Planned("objective", loss, Signature(tuple(names), outputs)))
    for i, loss in enumerate(solved):
        first = 1 + 2 * len(losses) + 2 * i
        outputs = {places[loss.name]: "loss", first: "gradient", first + 1: "gram"}
        planned.append(
            _Planned(
                "normal_equations",
                loss,
                Signature(tuple(names), outputs),
                bytes_per_target(whole, outputs),
            )
        )
    return planned


def _write_planned(
    folder: Path,
    reference: Reference,
    whole: fx.GraphModule,
    planned: Sequence[_Planned],
    runtimes: Sequence[str],
    say: Callable[[str], None],
) -> list[Function]:
    inputs = reference.shapes.inputs
    functions: list[Function] = []
    for runtime in runtimes:
        say(f"writing {_RUNTIME_NAMES[runtime]}")
        write = _write_onnx if runtime == "onnx" else _write_torchscript
        written = write(folder, whole, planned, inputs)
        for function, plan in zip(written, planned, strict=True):
            path = folder / function.file
            if function.method is None:
                name, run = function.file, onnx_function(path)
            else:
                name = f"{function.file}: {function.method}"
                run = torchscript_function(path, function.method)
            worst = check_function(name, run, reference, plan.name, plan.loss)
            say(f"{name} agrees with PyTorch to {worst:.1e}")
        functions += written
    return functions


def _write_onnx(
    folder: Path,
    whole: fx.GraphModule,
    planned: Sequence[_Planned],
    inputs: Mapping[str, tuple[int, ...]],
) -> list[Function]:
    functions = []
    models = to_onnx(whole, [plan.signature for plan in planned], inputs=inputs)
    with open(folder / WEIGHTS_FILE, "wb") as stream:
        weights = WeightsFile(stream)
        for plan, model in zip(planned, models, strict=True):
            loss = "" if plan.loss is None else f"_{plan.loss.name}"
            file = f"{plan.name}{loss}.onnx"
            write_onnx(model, folder / file, weights)
            function = _function(plan, "onnx", file)
            if plan.loss is not None:
                operators, readers = operators_in(folder / file)
                function = replace(function, operators=operators, input_operators=readers)
            functions.append(function)
    return functions


def _write_torchscript(
    folder: Path,
    whole: fx.GraphModule,
    planned: Sequence[_Planned],
    inputs: Mapping[str, tuple[int, ...]],
) -> list[Function]:
    methods = method_names((plan.name, plan.loss.name if plan.loss else "") for plan in planned)
    write_torchscript(
        whole,
        {method: plan.signature for method, plan in zip(methods, planned, strict=True)},
        folder / FUNCTIONS_FILE,
        inputs=tuple(inputs),
    )
    return [
        _function(plan, "torchscript", FUNCTIONS_FILE, method)
        for method, plan in zip(methods, planned, strict=True)
    ]


def _function(plan: _Planned, runtime: str, file: str, method: str | None = None) -> Function:
    return Function(
        name=plan.name,
        runtime=runtime,
        file=file,
        loss=None if plan.loss is None else plan.loss.name,
        method=method,
        bytes_per_target=plan.bytes_per_target,
    )


def network_files(name: str) -> set[str]:
    """Return the names of the files that ``write_network`` may write."""
    return {f"{name}.onnx", f"{name}.pt", f"{name}_weights.bin"}


def write_network(
    folder: Path,
    name: str,
    graph: fx.GraphModule,
    inputs: Mapping[str, tuple[int, ...]],
    taken: tuple[str, ...],
    output: str,
    reference: NetworkReference,
    runtimes: Sequence[str],
    say: Callable[[str], None],
) -> list[Function]:
    """Write one more function, in files of its own, for each runtime, and check it.

    Args:
        folder: the bundle's folder.
        name: the function's name.
        graph: its graph, with one output.
        inputs: the shapes of the graph's inputs by name; "image" comes first.
        taken: the names of the inputs that the function has.
        output: its output's name.
        reference: the network in PyTorch.
        runtimes: the runtimes to write for.
        say: called with a line about each step.

    Raises:
        ExportError: the function cannot be written, or differs from PyTorch.
    """
    signature = Signature(taken, {0: output})
    functions = []
    for runtime in runtimes:
        file = f"{name}.onnx" if runtime == "onnx" else f"{name}.pt"
        if runtime == "onnx":
            (model,) = to_onnx(graph, [signature], inputs=inputs)
            weights_file = f"{name}_weights.bin"
            with open(folder / weights_file, "wb") as stream:
                write_onnx(model, folder / file, WeightsFile(stream, weights_file))
            run = onnx_function(folder / file)
        else:
            write_torchscript(graph, {name: signature}, folder / file, inputs=list(inputs))
            run = torchscript_function(folder / file, name)
        worst = check_function(file, run, reference, name, None)
        say(f"{file} agrees with PyTorch to {worst:.1e}")
        functions.append(Function(name, runtime, file, method=name if runtime != "onnx" else None))
    return functions
