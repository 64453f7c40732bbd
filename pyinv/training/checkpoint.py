"""Checkpoints: a training's state, written atomically."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyinv.atomic_files import write_whole
from pyinv.errors import InputError

__all__ = ["is_out_of_memory", "read_checkpoint", "write_checkpoint", "write_weights"]

_FORMAT = 1


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training's state: tensors, numbers and text in dicts and lists.

    Raises:
        OutputError: it cannot be written; the previous checkpoint is unchanged.
    """
    _save(path, {"format": _FORMAT, **state})


def write_weights(path: Path, network: nn.Module) -> None:
    """Write a network's state dict; may raise OutputError."""
    _save(path, network.state_dict())


def _save(path: Path, state: Mapping[str, Any]) -> None:
    # Into memory first: writing to a file, PyTorch would hide the system's error (a full disk).
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, with its tensors on the CPU; return None if there is no file.

    Raises:
        InputError: the file is not a checkpoint, is damaged or unreadable, or was written by a
            newer pyinv.
    """
    # Read the file separately, because torch.load also raises OSError for damaged content.
    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many undocumented types for damaged files
        if is_out_of_memory(error):
            raise
        state = None
    if not isinstance(state, dict) or "format" not in state:
        raise InputError(
            f"{path}: damaged, or not a checkpoint; to train from the beginning, delete it or "
            "overwrite the folder (--overwrite)"
        )
    if state["format"] != _FORMAT:
        raise InputError(
            f"{path}: format is {state['format']!r}, and this pyinv reads {_FORMAT}; "
            "continue with the pyinv that wrote it"
        )
    return state


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    # PyTorch has no exception type for this on a CPU.
    short = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return short or "allocate memory" in str(error)
