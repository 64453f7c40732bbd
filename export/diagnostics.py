"""Reduce torch's messages for users: one line per error, and no developers' warnings."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

__all__ = ["first_line", "named_operator", "quiet"]


def first_line(error: BaseException) -> str:
    """Return the first nonempty line of an exception's message, or its type's name.

    A line that ends in a colon is continued by the next one. What is not printable, which may be
    quoted from a file, is escaped.
    """
    text = ""
    for line in str(error).splitlines():
        text = f"{text} {line.strip()}".strip()
        if text and not text.endswith(":"):
            break
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text or type(error).__name__


def named_operator(error: BaseException | None) -> str | None:
    """Return the ATen operator that an exception or one of its causes names, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if type(error).__name__ == "GuardOnDataDependentSymNode":
            # A Python number was read from a tensor: .item(), float(), if.
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output, warnings and logs of torch and onnxscript in this context."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
