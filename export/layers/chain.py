"""View a generator as a chain of submodules, and cut the chain into parts."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import fx, nn

from pyinv.errors import ExportError

from ..diagnostics import first_line

__all__ = ["Chain", "listed"]

_MOST_LISTED = 60


def listed(names: Iterable[str]) -> str:
    """Join names with commas for an error message: the first 60, and the number of others."""
    known = [name for name in names if name]
    more = len(known) - _MOST_LISTED
    return ", ".join(known[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


class _ChainTracer(fx.Tracer):
    """Trace a generator down to the modules that contain no named submodules."""

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


class Chain:
    """The graph of a generator's modules, and the places where a single tensor passes."""

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
        """Return the node whose value a module returns."""
        ends = [node for node in self._ends.get(name, []) if node in self._of_latent]
        if len(ends) != 1:
            calls = f"calls it {len(ends)} times" if ends else "does not call it"
            raise ExportError(
                f"the generator cannot be cut after {name!r}, its forward {calls}: cut after "
                f"{listed(self.cuts())}"
            )
        return ends[0]

    def cuts(self) -> list[str]:
        """Return the names of the modules after which a single tensor passes, in order."""
        once = [(ends[0], name) for name, ends in self._ends.items() if name and len(ends) == 1]
        order = {node: number for number, node in enumerate(self._nodes)}
        found = [
            (order[node], name)
            for node, name in once
            if node in self._of_latent and self.crossing(node) is None
        ]
        return [name for _, name in sorted(found)]

    def has_weights_after(self, name: str) -> bool:
        """Whether layers other than activations and reshapes follow a module."""
        called = (n for n in self.after(self.place(name)) if n.op == "call_module")
        modules = (self._root.get_submodule(str(node.target)) for node in called)
        return any(any(True for _ in (*m.parameters(), *m.buffers())) for m in modules)

    def after(self, place: fx.Node) -> set[fx.Node]:
        """Return every node that depends on this one."""
        found: set[fx.Node] = set()
        for node in self._nodes:
            if any(source is place or source in found for source in node.all_input_nodes):
                found.add(node)
        return found

    def crossing(self, place: fx.Node) -> str | None:
        """Say why a generator cannot be cut at a node; None if it can."""
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
        """Return the modules between the input, the places and the image."""
        starts, ends = [self._input, *places], [*places, self._result]
        return [self._part(*pair) for pair in zip(starts, ends, strict=True)]

    def _part(self, start: fx.Node, end: fx.Node) -> nn.Module:
        graph = fx.Graph()
        made = {start: graph.placeholder("value")}
        needed = self._before(end, start)
        for node in self._nodes:
            if node not in needed:
                continue
            if self._is_batch(node) and node not in self.after(start):
                made[node] = graph.call_method("size", (made[start], 0))
            else:
                made[node] = graph.node_copy(node, lambda source: made[source])
        graph.output(made[end])
        return fx.GraphModule(self._root, graph, "Layer").eval()

    def _before(self, end: fx.Node, start: fx.Node) -> set[fx.Node]:
        """The nodes between ``start`` and ``end`` that ``end`` depends on."""
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
        """Whether a node is the batch size: axis 0 of the latent or of a module's output."""
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
    """The default values of the arguments of forward that have one."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(root.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def _refuse_work_in_place(nodes: Sequence[fx.Node]) -> None:
    """Turn off in-place operation in functions of forward, or refuse those that require it."""
    for node in nodes:
        if node.op == "call_function" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        changes = node.op == "call_method" and str(node.target).endswith("_")
        if changes and not str(node.target).endswith("__"):
            raise ExportError(
                f"the generator's forward changes a tensor in place, with {node.target}: write "
                f"{str(node.target)[:-1]} to cut it"
            )
