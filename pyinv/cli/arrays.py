"""Arrays that options of the command line name."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import InputError

__all__ = ["read_array"]


def read_array(path: str, name: str) -> NDArray[Any]:
    """Return the array in a .npy file, or the one of this name, or the only one, in a .npz file.

    Raises:
        InputError: no such file or array, or not readable.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return np.asarray(loaded)
        with loaded:
            if name in loaded.files or len(loaded.files) == 1:
                return np.asarray(loaded[name if name in loaded.files else loaded.files[0]])
            found = ", ".join(loaded.files) or "none"
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise InputError(
            f"{path}: not a readable .npy or .npz file, or truncated; save it again with numpy.save"
        ) from None
    raise InputError(f'{path}: expected an array named "{name}", found {found}')
