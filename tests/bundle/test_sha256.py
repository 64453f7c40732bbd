"""The engine's SHA-256, with and without the CPU's instructions, against Python's."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pyinv import _core


@pytest.mark.parametrize("portable", [True, False])
def test_digests_are_those_of_hashlib(portable: bool) -> None:
    content = np.random.default_rng(0).bytes(1 << 16)
    for length in [*range(260), 1000, 1 << 16]:
        expected = hashlib.sha256(content[:length]).hexdigest()
        assert _core.sha256([content[:length]], portable) == expected, length


@pytest.mark.parametrize("portable", [True, False])
def test_a_digest_does_not_depend_on_the_parts(portable: bool) -> None:
    random = np.random.default_rng(1)
    for _ in range(200):
        parts = [random.bytes(int(size)) for size in random.integers(0, 200, 8)]
        expected = hashlib.sha256(b"".join(parts)).hexdigest()
        assert _core.sha256(parts, portable) == expected
