"""On a GPU: the engine does there what it does on the CPU, and sanitizers find nothing.

What is compared is in tests/cuda/device_test.cpp: draws (uniforms bit for bit, normals to 1e-6),
and runs over all rules.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.backends import absent
from support.cpp_program import NO_GPU, build, run

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def program() -> Path:
    if shutil.which("nvcc") is None:
        absent("there is no nvcc", "PYINV_REQUIRE_CUDA")
    path = build("gpu", "-DPYINV_EMULATED=OFF", "-DCMAKE_CUDA_FLAGS=-Werror all-warnings")
    if run(path / "device_test", "draws").returncode == NO_GPU:
        absent("there is no GPU", "PYINV_REQUIRE_CUDA")
    return path / "device_test"


def test_the_gpu_agrees_with_the_cpu(program: Path) -> None:
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_the_sanitizer_finds_nothing(program: Path, tool: str) -> None:
    if shutil.which("compute-sanitizer") is None:
        absent("there is no compute-sanitizer", "PYINV_REQUIRE_CUDA")
    done = run(
        "compute-sanitizer", "--tool", tool, "--error-exitcode", "1",
        program, "draws", "lanes", "groups", "cancel",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
