"""The runtimes and devices that the engine's tests run on, if they are available."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pyinv import _core, runtimes
from pyinv.bundle import RUNTIMES
from pyinv.devices import open_device
from pyinv.errors import DependencyError


@dataclass(frozen=True)
class Backend:
    """A runtime and device for objectives."""

    runtime: str
    device: str  # "cpu" or "cuda"

    @cached_property
    def stream(self) -> _core.Device:
        """The engine's device, one for all objectives of a run."""
        return open_device(self.device if self.device == "cpu" else f"{self.device}:0")

    def load(self, objective: Any, path: Path | str, **options: Any) -> _core.Objective:
        """Write an objective of support/objectives.py to ``path`` and load it from there."""
        return objective.load(path, runtime=self.runtime, device=self.stream, **options)

    @cached_property
    def missing(self) -> str | None:
        """Why this backend is unavailable; None if it seems available without loading it.

        Tests of a missing backend are not collected, unless it is required.
        """
        if self.runtime == "torchscript":
            if find_spec("pyinv._torch") is None:
                return None if _required("PYINV_REQUIRE_TORCHSCRIPT") else "built without torch"
            if find_spec("torch") is None:
                return None if _required("PYINV_REQUIRE_TORCHSCRIPT") else "there is no torch"
        if self.device == "cuda" and not _required("PYINV_REQUIRE_CUDA", self.runtime):
            if not _core.built_with_cuda():
                return "this build has no CUDA"
            if _core.cuda_device_count() == 0:
                return "there is no GPU"
        return None

    def require(self) -> None:
        """Skip the test if the loaded runtime does not support the device.

        With PYINV_REQUIRE_TORCHSCRIPT=1 or PYINV_REQUIRE_CUDA=1 the test fails instead; with
        PYINV_REQUIRE_CUDA=torchscript it does so for that runtime.
        """
        try:
            loaded = runtimes.load(self.runtime)
        except DependencyError as error:
            if self.runtime == "onnx":
                raise
            absent(str(error), "PYINV_REQUIRE_TORCHSCRIPT")
        if self.device == "cuda":
            if not _core.built_with_cuda():
                absent("this build has no CUDA", "PYINV_REQUIRE_CUDA", self.runtime)
            if _core.cuda_device_count() == 0:
                absent("there is no GPU", "PYINV_REQUIRE_CUDA", self.runtime)
            if not loaded.has_cuda:
                absent(f"{loaded} has no CUDA", "PYINV_REQUIRE_CUDA", self.runtime)
            if self.runtime == "onnx":
                runtimes.preload_cuda()


def absent(what: str, promise: str, runtime: str | None = None) -> NoReturn:
    """Skip the test, or fail it if the environment promises what it needs.

    A promise is "1" or the name of the only runtime that it holds for. Without a ``runtime``,
    either value counts.
    """
    if _required(promise, runtime):
        pytest.fail(f"{promise}={os.environ[promise]}, but {what}")
    pytest.skip(what)


def _required(promise: str, runtime: str | None = None) -> bool:
    promised = os.environ.get(promise)
    return promised == "1" or (promised in RUNTIMES and runtime in (None, promised))


@cache
def missing_gpu() -> str | None:
    """Return why tests marked ``gpu`` cannot run; None if they can, or are required."""
    there = _core.cuda_device_count() > 0 or Path("/dev/nvidia0").exists()
    return None if there or _required("PYINV_REQUIRE_CUDA") else "there is no GPU"


BACKENDS = [
    pytest.param(Backend("onnx", "cpu"), id="onnx-cpu"),
    pytest.param(Backend("torchscript", "cpu"), id="torchscript-cpu"),
    pytest.param(Backend("onnx", "cuda"), id="onnx-cuda", marks=pytest.mark.gpu),
    pytest.param(Backend("torchscript", "cuda"), id="torchscript-cuda", marks=pytest.mark.gpu),
]
