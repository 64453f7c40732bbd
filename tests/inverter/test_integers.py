"""Whole numbers of any size and kind: taken, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import pyinv
from pyinv.errors import PyinvError
from pyinv.inverter import Inverter
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import LBFGS, Adam, StepDecay
from support.tiny_bundle import write_tiny_bundle

QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=2))
NUMBERS = (
    *(-(10**400), -(2**63), -(2**31) - 1, -1, 2**31, 2**32, 2**63, 2**64, 10**400),
    *(1.5, 1e300, float("nan"), "1", True, b"1", None, [1], np.zeros(2), np.float32(1)),
)


@pytest.fixture(scope="module")
def inverter(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "b"
    write_tiny_bundle(path, normal_equations=("mse",))
    return Inverter(path, threads=1)


@pytest.fixture(scope="module")
def images(inverter):
    return inverter.generate(inverter.sample(1))


def run(setting: str) -> Callable:
    return lambda inverter, images, n: inverter.invert(images, recipe=QUICK, **{setting: n})


CALLS = {
    "threads": lambda inverter, images, n: Inverter(inverter.bundle, threads=n),
    "batch_size": lambda inverter, images, n: Inverter(inverter.bundle, threads=1, batch_size=n),
    "sample": lambda inverter, images, n: inverter.sample(n) if _is_small(n) else None,
    "sample's seed": lambda inverter, images, n: inverter.sample(1, seed=n),
    "seed": run("seed"),
    "restarts": lambda inverter, images, n: QUICK.replace(restarts=n),
    "max_steps": lambda inverter, images, n: Stage(Adam(0.1), max_steps=n),
    "trace_every": run("trace_every"),
    "target_ids": lambda inverter, images, n: inverter.invert(images, recipe=QUICK, target_ids=[n]),
    "target_id": lambda inverter, images, n: pyinv.target_id(n),
    "generate": lambda inverter, images, n: inverter.generate(inverter.sample(1), batch_size=n),
    "evaluate": lambda inverter, images, n: inverter.evaluate(
        inverter.sample(1), images, batch_size=n
    ),
    "normal_equations": lambda inverter, images, n: inverter.normal_equations(
        inverter.sample(1), images, batch_size=n
    ),
    "window": lambda inverter, images, n: list(inverter.stream(images, recipe=QUICK, window=n)),
    "stream's seed": lambda inverter, images, n: list(
        inverter.stream(images, recipe=QUICK, seed=n)
    ),
    "n_hops": lambda inverter, images, n: inverter.uncertainty(
        inverter.sample(1), images, noise=0.1, n_hops=n if _is_small(n) else 10**400
    ),
    "history": lambda inverter, images, n: LBFGS(history=n),
    "every": lambda inverter, images, n: StepDecay(every=n, factor=0.5),
    "patience": lambda inverter, images, n: Stage(Adam(0.1), patience=n),
    "max_pixels": lambda inverter, images, n: pyinv.set_size_limits(max_pixels=n),
}


def _is_small(number: object) -> bool:
    """Return whether a test has time for so many."""
    return not (isinstance(number, int) and 2**20 < number < 10**300)


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    from pyinv import size_limits

    monkeypatch.setattr(size_limits, "_limits", size_limits._Limits())


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whole_numbers_are_taken_or_refused(inverter, images, call):
    for number in NUMBERS:
        try:
            call(inverter, images, number)
        except PyinvError as error:
            message = str(error)
        else:
            continue
        assert "\n" not in message, number
