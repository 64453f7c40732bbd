"""Devices that the engine can run on, by name: "cpu", "cuda:0", "cuda:1" and so on."""

from __future__ import annotations

import re
from typing import Any

from pyinv import _core
from pyinv.errors import DeviceError, OutOfMemoryError, one_line

__all__ = ["available_devices", "open_device", "resolve_device"]


def available_devices() -> list[str]:
    """Return the names of the available devices, the CPU first."""
    return ["cpu", *(f"cuda:{index}" for index in range(_core.cuda_device_count()))]


def resolve_device(device: Any, *, runtime_has_cuda: bool) -> str:
    """Return the full name of the requested device.

    Args:
        device: "cpu"; "cuda", which means "cuda:0"; a specific GPU such as "cuda:1"; or "auto" for
            the first GPU if build, machine and runtime all support one, otherwise the CPU.
        runtime_has_cuda: whether the runtime in use can compute on a GPU.

    Raises:
        DeviceError: not a device name, or the device does not exist.
    """
    if device == "auto":
        return "cuda:0" if runtime_has_cuda and _core.cuda_device_count() > 0 else "cpu"
    if device == "cpu":
        return "cpu"
    named = re.fullmatch(r"cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if named is None:
        raise DeviceError(
            f'device must be "cpu", "cuda", "cuda:1" (a number) or "auto", got {device!r}'
        )
    if not _core.built_with_cuda():
        raise DeviceError(
            f'this build has no CUDA, got device={device!r}; use device="cpu", or build pyinv '
            "where a CUDA compiler is found"
        )
    count = _core.cuda_device_count()
    if count == 0:
        raise DeviceError(
            f'no GPU was found, got device={device!r}; use device="cpu", or check that '
            "`nvidia-smi` lists one and CUDA_VISIBLE_DEVICES does not hide it"
        )
    index = int(named[1] or 0)
    if index >= count:
        raise DeviceError(
            f"there {'is 1 GPU' if count == 1 else f'are {count} GPUs'}, got device={device!r}; "
            f"use {' or '.join(available_devices()[1:])}"
        )
    return f"cuda:{index}"


def open_device(name: str) -> _core.Device:
    """Open a device, with its own stream, by its resolved name.

    Raises:
        OutOfMemoryError: other programs have filled the GPU's memory.
        DeviceError: the device cannot be opened.
    """
    if name == "cpu":
        return _core.cpu_device()
    try:
        return _core.cuda_device(int(name.partition(":")[2]))
    except _core.OutOfMemory as error:
        raise OutOfMemoryError(
            f'{name} has no memory left ({one_line(error)}); free some, or use device="cpu"'
        ) from None
    except _core.DeviceError as error:
        raise DeviceError(one_line(error)) from None
