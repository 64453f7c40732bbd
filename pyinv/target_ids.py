"""Target ids, which seed the random draws of each target."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import InputError
from pyinv.validation import as_numpy

__all__ = ["MAX_TARGET_IDS", "check_target_ids", "target_id"]

# The engine's counters hold 48 bits of target id. ``sample`` uses the upper half and ``invert`` the
# lower: otherwise, inverting G(sample(n, seed)) with the same seed would start at the answer.
MAX_TARGET_IDS = 2**47


def target_id(id: int | str | bytes) -> int:
    """Return the whole number that seeds the random draws of a target with this id.

    Streams, jobs, ``pyinv.ray`` and the service use it, so a target with the same id and seed gets
    the same latent from all of them, and from ``Inverter.invert`` with
    ``target_ids=[target_id(id)]``.

    Args:
        id: a whole number from 0 to below 2^47, which is returned as it is; or text or bytes, which
            are hashed to 47 bits (BLAKE2b of the UTF-8 bytes).

    Raises:
        InputError: anything else.
    """
    if isinstance(id, str | bytes):
        data = id if isinstance(id, bytes) else id.encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(data, digest_size=8).digest()
        return int.from_bytes(digest, "little") % MAX_TARGET_IDS
    whole = isinstance(id, int | np.integer) and not isinstance(id, bool)
    if not whole or not 0 <= id < MAX_TARGET_IDS:
        raise InputError(
            f"an id must be text, bytes or a whole number from 0 to below 2^47, got {id!r}"
        )
    return int(id)


def check_target_ids(target_ids: Any, count: int) -> NDArray[np.uint64]:
    """Return the argument ``target_ids`` of ``Inverter.invert``, [count]; None: the row numbers.

    Raises:
        InputError: a wrong number, type or range.
    """
    if target_ids is None:
        return np.arange(count, dtype=np.uint64)
    expected = f"{count} whole numbers from 0 to below 2^47"
    ids = as_numpy(target_ids, "target_ids", expected)
    if ids.dtype.kind not in "iu" or ids.shape != (count,):
        raise InputError(
            f"target_ids must be {expected}, got {ids.dtype} [{', '.join(map(str, ids.shape))}]; "
            "give one per target"
        )
    if int(ids.min()) < 0 or int(ids.max()) >= MAX_TARGET_IDS:
        raise InputError(
            f"target_ids must be {expected}, got {int(ids.min())} to {int(ids.max())}; "
            "number the targets from 0"
        )
    return np.ascontiguousarray(ids, dtype=np.uint64)
