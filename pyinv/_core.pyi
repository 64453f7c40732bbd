"""The engine's C++ extension. Not a public interface: use pyinv.Inverter."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__version__: str
max_restarts: int
max_steps: int
max_preconditioned: int
max_solved: int

class DeviceError(RuntimeError): ...

class OutOfMemory(RuntimeError):
    partial: dict[str, Any]  # the results so far, if raised by invert()

class Cancelled(RuntimeError): ...

class RunFailed(RuntimeError):
    partial: dict[str, Any]

class Device:
    @property
    def kind(self) -> str: ...
    @property
    def index(self) -> int: ...
    def synchronize(self) -> None: ...

def cpu_device() -> Device: ...
def cpu_isa() -> str: ...
def cuda_device(index: int = 0) -> Device: ...
def built_with_cuda() -> bool: ...
def cuda_device_count() -> int: ...
def cuda_device_name(index: int) -> str: ...

class Objective:
    @property
    def latent_size(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def condition_size(self) -> int: ...
    @property
    def takes_weights(self) -> bool: ...
    @property
    def has_gram(self) -> bool: ...
    @property
    def device(self) -> Device: ...

class OnnxObjective(Objective):
    def __init__(
        self,
        path: str,
        *,
        threads: int,
        device: Device | None = None,
        tf32: bool = False,
        most_at_once: int = 0,
        operators: Sequence[str] = (),
        input_operators: Sequence[str] = (),
        files: Mapping[str, str] = {},  # the SHA-256 of what may be read; empty: unchecked
    ) -> None: ...

class OnnxFunction:
    def __init__(
        self,
        path: str,
        *,
        threads: int,
        device: Device | None = None,
        tf32: bool = False,
        files: Mapping[str, str] = {},
    ) -> None: ...
    def run(
        self,
        inputs: Mapping[str, npt.NDArray[Any]],
        *,
        interrupted: Callable[[], bool] | None = None,
    ) -> dict[str, npt.NDArray[Any]]: ...

def load_onnxruntime(path: str) -> str: ...
def invert(
    *,
    objectives: Sequence[Objective],
    recipe: str,
    prior: str,
    images: npt.NDArray[np.float32],
    initial: npt.NDArray[np.float32] | None = None,
    condition: npt.NDArray[np.float32] | None = None,
    weights: npt.NDArray[np.float32] | None = None,
    true_latents: npt.NDArray[np.float32] | None = None,
    preconditioner: npt.NDArray[np.float32] | None = None,
    target_ids: npt.NDArray[np.uint64],
    seed: int,
    lanes: int,
    coupled: bool = False,
    trace_every: int = 0,
    poll_every: int = 0,
    progress: Callable[[dict[str, Any]], object] | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> dict[str, Any]: ...

class Stream:
    def __init__(
        self,
        *,
        objectives: Sequence[Objective],
        recipe: str,
        prior: str,
        preconditioner: npt.NDArray[np.float32] | None,
        seed: int,
        lanes: int,
        rows: int,
        has_initial: bool = False,
    ) -> None: ...
    def put(
        self,
        *,
        images: npt.NDArray[np.float32],
        ids: npt.NDArray[np.uint64],
        initial: npt.NDArray[np.float32] | None = None,
        condition: npt.NDArray[np.float32] | None = None,
        weights: npt.NDArray[np.float32] | None = None,
    ) -> int: ...
    def end(self) -> None: ...
    def cancel(self, numbers: Sequence[int]) -> None: ...
    def take(self) -> dict[str, Any] | None: ...
    def stop(self) -> None: ...

def draw_initial(
    prior: str,
    seed: int,
    target_ids: npt.NDArray[np.uint64],
    restart: int,
    size: int,
) -> npt.NDArray[np.float32]: ...
def read_manifest(folder: str | os.PathLike[str]) -> bytes: ...
def check_manifest(content: bytes) -> None: ...
def check_files(folder: str | os.PathLike[str], manifest: bytes, contents: bool) -> None: ...
def onnx_recordable(operators: Sequence[str]) -> bool: ...
def onnx_without_cuda(operators: Sequence[str]) -> list[str]: ...
def torchscript_allows(operator: str) -> bool: ...
def torchscript_unlisted(source: bytes) -> list[str]: ...
def torchscript_storages(pickle: bytes) -> list[tuple[bytes, int]]: ...
def parse_json(text: str) -> Any: ...
def sha256(parts: Sequence[bytes], portable: bool) -> str: ...
def philox(
    counter: npt.NDArray[np.uint32], key: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]: ...
