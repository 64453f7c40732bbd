"""The TorchScript runtime's C++ extension. Not a public interface: use pyinv.Inverter."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from pyinv import _core

built_with: str

class TorchObjective(_core.Objective):
    def __init__(
        self,
        path: str,
        method: str,
        *,
        threads: int,
        device: _core.Device | None = None,
        tf32: bool = False,
        most_at_once: int = 0,
    ) -> None: ...

class TorchFunction:
    def __init__(
        self,
        path: str,
        method: str,
        *,
        threads: int,
        device: _core.Device | None = None,
        tf32: bool = False,
    ) -> None: ...
    def run(
        self,
        inputs: Mapping[str, npt.NDArray[np.float32]],
        *,
        interrupted: Callable[[], bool] | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]: ...
