"""The engine's C++ extension. Not a public interface: use pyinv.Inverter."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__version__: str
has_cuda: bool

class Objective:
    @property
    def latent_size(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def condition_size(self) -> int: ...

class OnnxObjective(Objective):
    def __init__(self, path: str, *, threads: int) -> None: ...

class OnnxFunction:
    def __init__(self, path: str, *, threads: int) -> None: ...
    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]: ...

def load_onnxruntime(path: str) -> str: ...
def invert(
    *,
    objectives: Sequence[Objective],
    recipe: Mapping[str, Any],
    prior: Mapping[str, Any],
    images: npt.NDArray[np.float32],
    initial: npt.NDArray[np.float32] | None = None,
    condition: npt.NDArray[np.float32] | None = None,
    target_ids: npt.NDArray[np.uint64],
    seed: int,
    lanes: int,
    coupled: bool = False,
    trace_every: int = 0,
    progress: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]: ...
def draw_initial(
    prior: Mapping[str, Any],
    seed: int,
    target_ids: npt.NDArray[np.uint64],
    restart: int,
    size: int,
) -> npt.NDArray[np.float32]: ...
def philox(
    counter: npt.NDArray[np.uint32], key: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]: ...
def fma_peak(threads: int, seconds: float = 0.5) -> float: ...
