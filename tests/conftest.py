"""What is collected, and what tests share: bundles that need no torch, runtimes and devices."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyinv.bundle import Bundle
from pyinv.inverter import Inverter
from pyinv.priors import Normal
from support.backends import BACKENDS, Backend, missing_gpu
from support.compare_reference import Engine
from support.tiny_bundle import TinyGenerator, write_tiny_bundle

ALL_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, metavar="CASES", help="the cases of each fuzzer")


def pytest_configure() -> None:
    """Keep each worker of pytest-xdist, and what it starts, to a core of its own.

    So whatever takes as many threads as there are cores takes one.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(ALL_CORES)
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_report_header() -> list[str]:
    missing = {param.id: param.values[0].missing for param in BACKENDS}
    reasons = [f"{name} ({reason})" for name, reason in missing.items() if reason]
    return [f"not collected: tests on {', '.join(reasons)}"] if reasons else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot run here, so that a skip is worth reading."""
    kept, left_out = [], []
    for item in items:
        (left_out if _is_missing(item) else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def _is_missing(item: pytest.Item) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    backends = [value for value in params.values() if isinstance(value, Backend)]
    if backends:
        return any(backend.missing for backend in backends)
    return item.get_closest_marker("gpu") is not None and missing_gpu() is not None


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> Iterator[None]:
    """Python installs no handler for Ctrl-C in a shell's background job, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def all_cores() -> Iterator[None]:
    """For a test whose threads should run at once."""
    if not ALL_CORES:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CORES)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every runtime on every device."""
    request.param.require()
    return request.param


@pytest.fixture
def engine(backend: Backend, tmp_path: Path) -> Engine:
    """The engine's invert(), on every runtime and device."""
    return Engine(backend, tmp_path)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a uniform prior on [-1, 1] and the losses mse, l1 and bce."""
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    write_tiny_bundle(path, losses=("mse", "l1", "bce"))
    return path


@pytest.fixture(scope="session")
def normal_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same generator under a standard normal prior."""
    path = tmp_path_factory.mktemp("bundles") / "normal.bundle"
    write_tiny_bundle(path, prior=Normal(), losses=("mse", "bce"))
    return path


@pytest.fixture(scope="session")
def generator() -> TinyGenerator:
    """What both bundles hold, in NumPy."""
    return TinyGenerator.make()


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture(scope="session")
def inverter(bundle: Bundle) -> Inverter:
    return Inverter(bundle, threads=1)


@pytest.fixture
def changed_bundle(tmp_path: Path) -> Path:
    """A bundle of its own for a test that breaks it."""
    path = tmp_path / "changed.bundle"
    write_tiny_bundle(path)
    return path
