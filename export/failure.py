"""What to tell the user about an exception that torch raised: one line, and the operator."""

from __future__ import annotations

import re

__all__ = ["first_line", "named_operator"]


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, or its type's name."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__


def named_operator(error: BaseException | None) -> str | None:
    """The ATen operator an exception, or any exception behind it, complains about."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if type(error).__name__ == "GuardOnDataDependentSymNode":
            # A Python number was taken from a tensor: .item(), float(), if.
            return "aten::_local_scalar_dense"
        operator = getattr(error, "func", None)
        if operator is not None and hasattr(operator, "_schema"):
            return str(operator._schema.name)
        match = re.search(r"\b(\w+)(?:::|\.)(\w+)", _operator_text(str(error)))
        if match:
            return f"{match[1]}::{match[2]}"
        error = error.__cause__ or error.__context__
    return None


def _operator_text(message: str) -> str:
    match = re.search(r"OpOverload\(op='([\w.:]+)'", message)
    if match:
        return match[1]
    match = re.search(r"\b((?:torch\.ops\.)?(aten|prims|torchvision)(?:::|\.)\w+)", message)
    return match[1].removeprefix("torch.ops.") if match else ""
