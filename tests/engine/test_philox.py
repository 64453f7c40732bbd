"""The generator against its published vectors, and the counter that every draw comes from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pyinv import _core
from pyinv.priors import Normal, Uniform
from support import reference
from support.tolerances import assert_close


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = {
    "zeros": (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    "ones": (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    "digits of pi": (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}


@pytest.mark.parametrize("philox", [reference.philox4x32_10, _core.philox], ids=["twin", "engine"])
@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS)
def test_known_answers(philox, counter, key, result):
    np.testing.assert_array_equal(philox(words(counter)[None], words(key)[None])[0], words(result))


def test_engine_equals_twin_on_many_counters():
    random = np.random.default_rng(0)
    counter = random.integers(0, 2**32, (5000, 4), dtype=np.uint32)
    key = random.integers(0, 2**32, (5000, 2), dtype=np.uint32)
    np.testing.assert_array_equal(_core.philox(counter, key), reference.philox4x32_10(counter, key))


def test_counter_holds_component_update_target_purpose_and_restart():
    seed, target, restart, update = 0x123456789ABCDEF0, 0xFEDC_BA98_7654, 0xABC, 7
    counter = np.array([[3, 7, 0xBA987654, 0xFEDCABC1]], dtype=np.uint32)
    key = np.array([[0x9ABCDEF0, 0x12345678]], dtype=np.uint32)
    drawn = reference.random_words(seed, [target], restart, update, reference.RESAMPLING, 4)
    np.testing.assert_array_equal(drawn[0, 3], _core.philox(counter, key)[0])


SEEDS = [0, 1, 2**32, 2**64 - 1]
TARGETS = [0, 1, 2**32 - 1, 2**32, 2**48 - 1]
RESTARTS = [0, 1, 4095]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("restart", RESTARTS)
@pytest.mark.parametrize(
    "prior", [Uniform(), Uniform(0.1, 0.7), Normal(), Normal(-2.0, 0.3)], ids=str
)
def test_initial_latents_equal_the_twins(prior, seed, restart):
    drawn = _core.draw_initial(
        json.dumps(prior.describe()), seed, np.array(TARGETS, dtype=np.uint64), restart, 33
    )
    expected = reference.draw_initial(prior.describe(), seed, TARGETS, restart, 33)
    assert_close(drawn, expected, f"{prior.kind()} draw")


def test_initial_latents_differ_in_every_part_of_the_counter():
    prior = json.dumps(Uniform().describe())
    rows = np.concatenate(
        [
            _core.draw_initial(prior, seed, np.array(TARGETS, dtype=np.uint64), restart, 16)
            for seed in SEEDS
            for restart in RESTARTS
        ]
    )
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_a_target_draws_the_same_in_any_company():
    prior = json.dumps(Normal().describe())
    together = _core.draw_initial(prior, 5, np.arange(50, dtype=np.uint64), 2, 7)
    alone = [_core.draw_initial(prior, 5, np.array([t], dtype=np.uint64), 2, 7) for t in range(50)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
