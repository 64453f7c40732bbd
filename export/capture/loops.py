"""Refuse networks that loop over the targets of a batch."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pyinv.errors import ExportError

from .portable import portable

__all__ = ["refuse_loops"]

_SIZES = (2, 3)


def refuse_loops(run: Callable[[int], Any], is_user_file: Callable[[str], bool], what: str) -> None:
    """Raise an error if a network calls some functions once for each target.

    A trace would repeat them for the example's number of targets, which is large.

    Args:
        run: runs the network on that many targets.
        is_user_file: whether a file of this name is the user's code.
        what: the network's name, for the error.
    """
    counts = [_calls(run, size, None) for size in _SIZES]
    if counts[0] is None or counts[1] is None or len(counts[0]) == len(counts[1]):
        return
    few, many = (_calls(run, size, is_user_file) or [] for size in _SIZES)
    before, after = (Counter(map(_lines, stacks)) for stacks in (few, many))
    repeated = [stack for stack in many if after[_lines(stack)] > before[_lines(stack)] > 0]
    if repeated:
        # The loop is in the innermost function that all of these calls come from.
        first, *others = ([frame for frame, _ in stack] for stack in repeated)
        shared = [i for i, frame in enumerate(first) if all(frame in other for other in others)]
        file, line = repeated[0][shared[-1]][1] if shared else repeated[0][-1][1]
        raise ExportError(
            f"{what} loops over the latents of a batch (at {Path(file).name}:{line}): compute them "
            "all at once, in tensors [B, ...]"
        )


# The functions that called one another, outermost first, each with its file and line.
_Stack = list[tuple[FrameType, tuple[str, int]]]


def _lines(stack: _Stack) -> tuple[tuple[str, int], ...]:
    return tuple(place for _, place in stack)


def _calls(
    run: Callable[[int], Any], size: int, is_user_file: Callable[[str], bool] | None
) -> list[_Stack] | None:
    """Return the user's functions behind each call of a torch function; None if the run fails.

    Without ``is_user_file``, calls are only counted, and all are empty.
    """
    mode = _Record(is_user_file)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), mode, portable():
            run(size)
    except Exception:
        return None  # the trace, or a check, says why
    return mode.calls


class _Record(TorchFunctionMode):
    def __init__(self, is_user_file: Callable[[str], bool] | None) -> None:
        super().__init__()
        self.is_user_file = is_user_file
        self.calls: list[_Stack] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stack: _Stack = []
        frame: FrameType | None = sys._getframe(1) if self.is_user_file else None
        while frame is not None:
            if self.is_user_file and self.is_user_file(frame.f_code.co_filename):
                stack.append((frame, (frame.f_code.co_filename, frame.f_lineno)))
            frame = frame.f_back
        self.calls.append(stack[::-1])
        return func(*args, **(kwargs or {}))
