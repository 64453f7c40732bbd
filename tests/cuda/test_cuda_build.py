"""nvcc takes all of our CUDA without a warning, and what it makes needs no CUDA to load."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

import pyinv
from support.cpp_program import NO_GPU, build, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc"),
]


@pytest.fixture(scope="module")
def built() -> Path:
    return build("gpu", "-DPYINV_EMULATED=OFF", "-DCMAKE_CUDA_FLAGS=-Werror all-warnings")


def libraries() -> list[Path]:
    spec = importlib.util.find_spec("pyinv._core")
    assert spec is not None
    assert spec.origin is not None
    package = {Path(spec.origin).parent, Path(pyinv.__file__).parent}
    return [path for folder in package for path in folder.rglob("*.so*") if path.is_file()]


def test_all_kernels_compile_without_a_warning(built: Path) -> None:
    assert (built / "device_test").is_file()


def test_the_program_runs_and_finds_a_gpu_or_says_why_not(built: Path) -> None:
    done = run(built / "device_test", "draws")
    if done.returncode == NO_GPU:
        assert done.stdout.startswith("GPU 0 cannot be used: CUDA finds no ")
    else:
        assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
def test_libraries_neither_need_nor_offer_cuda(built: Path) -> None:
    found = [built / "device_test", *libraries()]
    assert len(found) > 1
    for library in found:
        needed = run("readelf", "-d", library).stdout
        assert "NEEDED" in needed
        assert not re.search(r"NEEDED.*\[lib(cudart|cuda)\b", needed), library
        offered = run("readelf", "--dyn-syms", "--wide", library).stdout
        assert not re.search(r"GLOBAL +DEFAULT +\d+ +cuda[A-Z]", offered), library
