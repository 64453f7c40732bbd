"""Simplify a traced graph: ONNX Runtime runs its operators at every step.

A gradient traced from autograd contains many aliases, recomputed masks, powers, broadcast ones and
symbolic sizes. After these passes, activation gradients have one form, ``where(a > 0, g, slope*g)``
with ``a`` the activation's output; reshapes use numbers and at most one -1; everything that depends
on weights alone is a constant; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from .graph import add_constant, constant, insert, is_op, shape

__all__ = ["simplify"]

aten = torch.ops.aten

_ALIASES = ("alias", "clone", "lift_fresh_copy", "lift_fresh", "contiguous")
_RESHAPES = ("view", "reshape", "_unsafe_view")
_BINARY = ("add", "sub", "mul", "div")
_TRANSPOSES = ("t", "transpose", "permute")
# The most elements of a folded constant with no constant inputs. Other folded constants may not
# have more elements than their inputs.
_LARGEST_MADE_CONSTANT = 1 << 16


def simplify(module: fx.GraphModule, *, keep_detach: bool = False) -> None:
    """Rewrite a module's graph in place until nothing changes.

    Args:
        module: the module.
        keep_detach: keep ``detach``, for graphs that will be differentiated.
    """
    passes: tuple[Callable[[fx.GraphModule, fx.Node], bool], ...] = (
        _drop_alias,
        _drop_whole_slice,
        *(() if keep_detach else (_drop_detach,)),
        _undo_transposes,
        _fix_reshape,
        _merge_reshapes,
        _drop_expand,
        _fill_scalar,
        _plain_where,
        _drop_neutral,
        _plain_power,
        _activation_gradient,
        _late_scalar,
        _fold_constant,
    )
    changed = True
    while changed:
        changed = False
        for rewrite in passes:
            for node in list(module.graph.nodes):
                if node.op == "call_function" and (node.users or node.is_impure()):
                    changed |= rewrite(module, node)
            module.graph.eliminate_dead_code()
        changed |= _share(module.graph)
    module.recompile()


def _replace(node: fx.Node, by: Any) -> bool:
    node.replace_all_uses_with(by)
    return True


def _drop_alias(module: fx.GraphModule, node: fx.Node) -> bool:
    if is_op(node, *_ALIASES):
        return _replace(node, node.args[0])
    if is_op(node, *_RESHAPES, "expand", "_to_copy") and node.args:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if is_op(node, "_to_copy"):
            before, after = source.meta["val"], node.meta["val"]
            return before.dtype == after.dtype and _replace(node, source)
        return shape(source) == shape(node) and _replace(node, source)
    return False


def _drop_whole_slice(module: fx.GraphModule, node: fx.Node) -> bool:
    """Remove a slice that takes the whole axis, such as x[:, None] makes."""
    if not is_op(node, "slice"):
        return False
    source = node.args[0]
    return shape(source) == shape(node) and _replace(node, source)  # type: ignore[arg-type]


def _drop_detach(module: fx.GraphModule, node: fx.Node) -> bool:
    return is_op(node, "detach") and _replace(node, node.args[0])


def _order(node: Any) -> list[int]:
    """The source axis of each axis of a transposition."""
    axes = list(range(node.meta["val"].ndim))
    if is_op(node, "permute"):
        return [axes[i] for i in node.args[1]]
    first, second = (0, -1) if is_op(node, "t") else node.args[1:]
    axes[first], axes[second] = axes[second], axes[first]
    return axes


def _undo_transposes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Remove a transpose that is the identity, alone or combined with the one before it."""
    if not is_op(node, *_TRANSPOSES):
        return False
    source: Any = node.args[0]
    order = _order(node)
    if is_op(source, *_TRANSPOSES):
        before = _order(source)
        if [before[axis] for axis in order] == sorted(order):
            return _replace(node, source.args[0])
    if order == sorted(order):
        return _replace(node, source)
    sizes: Any = shape(source)
    if [axis for axis in order if sizes[axis] != 1] != [
        axis for axis in range(len(sizes)) if sizes[axis] != 1
    ]:
        return False
    # Only axes of size 1 move.
    after: Any = shape(node)
    node.target = aten.reshape.default
    node.args = (source, [size if isinstance(size, int) else -1 for size in after])
    return True


def _fix_reshape(module: fx.GraphModule, node: fx.Node) -> bool:
    """Write the one size that depends on the batch as -1, and a squeeze as a reshape."""
    if not is_op(node, *_RESHAPES, "squeeze"):
        return False
    sizes = shape(node)
    assert sizes is not None
    if sum(not isinstance(size, int) for size in sizes) > 1:
        return False
    fixed = [size if isinstance(size, int) else -1 for size in sizes]
    # A view requires strides, which ONNX does not have and removed copies no longer guarantee.
    was_squeeze = is_op(node, "squeeze")
    node.target = aten.reshape.default
    if was_squeeze:
        node.args = (node.args[0], fixed)
        return True
    if list(node.args[1]) == fixed:  # type: ignore[arg-type]
        return False
    if all(isinstance(size, int) for size in node.args[1]) and -1 not in fixed:  # type: ignore[union-attr]
        return False
    node.args = (node.args[0], fixed)
    return True


def _merge_reshapes(module: fx.GraphModule, node: fx.Node) -> bool:
    if not is_op(node, *_RESHAPES) or not is_op(node.args[0], *_RESHAPES):
        return False
    node.update_arg(0, node.args[0].args[0])  # type: ignore[union-attr]
    return True


def _other_has_the_shape(node: fx.Node, argument: int) -> bool:
    other = node.args[1 - argument]
    return isinstance(other, fx.Node) and shape(other) == shape(node)


def _drop_expand(module: fx.GraphModule, node: fx.Node) -> bool:
    """Remove an expand from an operand that the operator broadcasts anyway."""
    if not is_op(node, *_BINARY):
        return False
    for i in (0, 1):
        operand = node.args[i]
        if is_op(operand, "expand") and _other_has_the_shape(node, i):
            node.update_arg(i, operand.args[0])  # type: ignore[union-attr]
            return True
    return False


def _scalar(module: fx.GraphModule, node: Any) -> float | None:
    """The number that fills a tensor, if it is known."""
    if is_op(node, "full", "full_like", "scalar_tensor"):
        value = node.args[0] if is_op(node, "scalar_tensor") else node.args[1]
        return float(value) if isinstance(value, int | float) else None
    if is_op(node, "ones", "ones_like"):
        return 1.0
    if is_op(node, "zeros", "zeros_like"):
        return 0.0
    if is_op(node, "expand", "unsqueeze", *_RESHAPES):
        return _scalar(module, node.args[0])
    if is_op(node, "mul", "div") and not node.kwargs:
        a, b = (x if isinstance(x, int | float) else _scalar(module, x) for x in node.args)
        if a is not None and b is not None:
            return a * b if is_op(node, "mul") else a / b
    found = constant(module, node)
    if found is not None and found.ndim == 0 and found.is_floating_point():
        return float(found)
    return None


def _fill_scalar(module: fx.GraphModule, node: fx.Node) -> bool:
    if not is_op(node, *_BINARY) or node.kwargs:
        return False
    for i in (0, 1):
        operand = node.args[i]
        if isinstance(operand, fx.Node) and _other_has_the_shape(node, i):
            value = _scalar(module, operand)
            if value is not None and operand.meta["val"].dtype == node.meta["val"].dtype:
                node.update_arg(i, value)
                return True
    return False


def _plain_where(module: fx.GraphModule, node: fx.Node) -> bool:
    """Replace constant tensors in a where by numbers."""
    if not is_op(node, "where") or len(node.args) != 3 or shape(node.args[0]) != shape(node):  # type: ignore[arg-type]
        return False
    for i in (1, 2):
        operand = node.args[i]
        if isinstance(operand, fx.Node) and operand.op != "get_attr":
            value = _scalar(module, operand)
            if value is not None and operand.meta["val"].dtype == node.meta["val"].dtype:
                with module.graph.inserting_before(node):
                    node.update_arg(i, add_constant(module, torch.tensor(value)))
                return True
    return False


def _drop_neutral(module: fx.GraphModule, node: fx.Node) -> bool:
    if not is_op(node, *_BINARY) or node.kwargs or len(node.args) != 2:
        return False
    a, b = node.args
    if is_op(node, "add", "mul") and isinstance(a, int | float) and isinstance(b, fx.Node):
        node.args = (b, a)
        a, b = b, a
    if not isinstance(a, fx.Node) or not isinstance(b, int | float):
        return False
    neutral = 0 if is_op(node, "add", "sub") else 1
    same_type = a.meta["val"].dtype == node.meta["val"].dtype
    if b == neutral and same_type and shape(a) == shape(node):
        return _replace(node, a)
    if is_op(node, "div") and same_type:
        node.target, node.args = aten.mul.Tensor, (a, 1.0 / b)
        return True
    if is_op(node, "mul") and node.target is not aten.mul.Tensor:
        node.target = aten.mul.Tensor
        return True
    chained = is_op(node, "mul") and is_op(a, "mul") and isinstance(a.args[1], int | float)
    if chained and a.meta["val"].is_floating_point() and len(a.users) == 1:
        node.args = (a.args[0], a.args[1] * b)  # type: ignore[operator]
        return True
    return False


def _plain_power(module: fx.GraphModule, node: fx.Node) -> bool:
    if not is_op(node, "pow") or not isinstance(node.args[1], int | float):
        return False
    base, exponent = node.args
    if exponent == 1:
        return _replace(node, base)
    if exponent in (2, 3):
        with module.graph.inserting_before(node):
            power = insert(module.graph, aten.mul.Tensor, base, base)
            if exponent == 3:
                power = insert(module.graph, aten.mul.Tensor, power, base)
            return _replace(node, power)
    return False


def _activation_output(x: fx.Node, name: str, *arguments: object) -> fx.Node | None:
    """The activation's output for x that the forward pass computed."""
    for user in x.users:
        if is_op(user, name) and user.args[0] is x and tuple(user.args[1:]) == arguments:
            return user
    return None


def _activation_gradient(module: fx.GraphModule, node: fx.Node) -> bool:
    graph = module.graph
    if is_op(node, "threshold_backward"):
        gradient, a, threshold = node.args
        with graph.inserting_before(node):
            positive = insert(graph, aten.gt.Scalar, a, float(threshold))  # type: ignore[arg-type]
            zero = add_constant(module, torch.zeros(()))
            return _replace(node, insert(graph, aten.where.self, positive, gradient, zero))
    if is_op(node, "leaky_relu_backward"):
        gradient, x, slope, is_result = node.args
        a = x
        # The output has the input's sign only if the slope is positive.
        if not is_result and float(slope) > 0:  # type: ignore[arg-type]
            own = [args for args in ((slope,), ()) if args or slope == 0.01]
            found = [_activation_output(x, "leaky_relu", *args) for args in own]  # type: ignore[arg-type]
            a = next((output for output in found if output is not None), x)
        with graph.inserting_before(node):
            positive = insert(graph, aten.gt.Scalar, a, 0.0)
            scaled = insert(graph, aten.mul.Tensor, gradient, slope)
            return _replace(node, insert(graph, aten.where.self, positive, gradient, scaled))
    if is_op(node, "elu_backward"):
        gradient, alpha, scale, input_scale, is_result, x = node.args
        a = x
        if not is_result:
            found = [
                user
                for user in x.users  # type: ignore[union-attr]
                if is_op(user, "elu")
                and (*user.args[1:], *(1, 1, 1)[len(user.args) - 1 :])
                == (alpha, scale, input_scale)
            ]
            with graph.inserting_before(node):
                a = (
                    found[0]
                    if found
                    else insert(graph, aten.elu.default, x, alpha, scale, input_scale)
                )
        with graph.inserting_before(node):
            positive = insert(graph, aten.gt.Scalar, a, 0.0)
            below = insert(graph, aten.add.Tensor, a, float(alpha) * float(scale))  # type: ignore[arg-type]
            below = insert(
                graph, aten.mul.Tensor, insert(graph, aten.mul.Tensor, gradient, below), input_scale
            )
            above = insert(graph, aten.mul.Tensor, gradient, scale)
            return _replace(node, insert(graph, aten.where.self, positive, above, below))
    return False


def _late_scalar(module: fx.GraphModule, node: fx.Node) -> bool:
    """Move a constant factor past linear operators, towards the small tensors near the latent."""
    if not is_op(node, "mul") or len(node.args) != 2 or not isinstance(node.args[1], int | float):
        return False
    if len(node.users) != 1 or not node.meta["val"].is_floating_point():
        return False
    user = next(iter(node.users))
    linear = (
        (is_op(user, "convolution") and user.args[2] is None and user.args[0] is node)
        or (is_op(user, "mm") and user.args[0] is node)
        or (is_op(user, *_RESHAPES, "avg_pool2d", "permute", "pixel_unshuffle"))
        or (is_op(user, "where") and user.args[1] is node and _scalar(module, user.args[2]) == 0)
    )
    if not linear:
        return False
    source, factor = node.args
    with module.graph.inserting_after(user):
        scaled = module.graph.call_function(aten.mul.Tensor, (user, factor))
    scaled.meta["val"] = user.meta["val"]
    user.replace_all_uses_with(scaled, delete_user_cb=lambda other: other is not scaled)
    user.replace_input_with(node, source)  # type: ignore[arg-type]
    return True


def _fold_constant(module: fx.GraphModule, node: fx.Node) -> bool:
    """Evaluate a node that depends on constants alone."""
    if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(
        node.meta.get("val"), Tensor
    ):
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags or node.target._schema.is_mutable:
        return False
    sizes = shape(node)
    assert sizes is not None
    if not all(isinstance(size, int) for size in sizes):
        return False
    tensors: list[Tensor] = []

    def known(argument: fx.Node) -> Any:
        value = constant(module, argument)
        if value is None:
            raise LookupError
        tensors.append(value)
        return value

    # A transposed weight stays a view of the stored weight.
    is_matrix = is_op(node, *_TRANSPOSES) and len(sizes) == 2
    if is_matrix and any(is_op(user, "mm", "addmm", "t") for user in node.users):
        return False
    # So does a slice of rows of a constant that is not a layer's weights: normal equations use a
    # chunk of rows at a time.
    is_rows = is_op(node, "slice") and len(sizes) == 2 and (node.args[1:2] or (0,)) == (0,)
    if is_rows and not any(is_op(user, "mm", "addmm", "t") for user in node.users):
        return False
    try:
        args, kwargs = fx.node.map_arg(node.args, known), fx.node.map_arg(node.kwargs, known)
    except LookupError:
        return False
    largest = max((t.numel() for t in tensors), default=_LARGEST_MADE_CONSTANT)
    if node.meta["val"].numel() > largest:
        return False
    with torch.no_grad():
        value = node.target(*args, **kwargs)
    with module.graph.inserting_before(node):
        return _replace(node, add_constant(module, value.clone()))


def _share(graph: fx.Graph) -> bool:
    """Eliminate common subexpressions."""
    first: dict[Any, fx.Node] = {}
    changed = False
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        if isinstance(node.target, torch._ops.OpOverload) and (
            torch.Tag.nondeterministic_seeded in node.target.tags
        ):
            continue
        key = (node.op, node.target, _frozen(node.args), _frozen(node.kwargs))
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
            changed = True
        else:
            first[key] = node
    return changed


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    # 1, 1.0 and True are equal as keys but differ as arguments.
    return value if isinstance(value, fx.Node) else (type(value), str(value))
