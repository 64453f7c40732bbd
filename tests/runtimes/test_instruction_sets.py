"""The convolutions with each set of instructions that this processor has, not only the best."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_core = pytest.importorskip("pyinv._core")
pytest.importorskip("torch")
pytest.importorskip("onnx")

HERE = Path(__file__).parent
SETS = ("avx512", "avx2", "portable")


def run(instructions: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYINV_MAX_CPU_ISA": instructions},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def used(instructions: str) -> str:
    return run(instructions, "-c", "from pyinv import _core; print(_core.cpu_isa())").strip()


@pytest.mark.parametrize("instructions", SETS)
def test_the_environment_limits_the_instructions(instructions: str) -> None:
    assert used(instructions) in SETS[SETS.index(instructions) :]
    assert used("portable") == "portable"


@pytest.mark.parametrize("instructions", ["avx2", pytest.param("portable", marks=pytest.mark.slow)])
def test_convolutions_with_lesser_instructions(instructions: str) -> None:
    if used(instructions) != instructions or _core.cpu_isa() == instructions:
        pytest.skip("not a lesser set of this processor")
    files = [str(HERE / name) for name in ("test_convolutions.py", "test_by_target.py")]
    run(instructions, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *files)


def test_avx2_and_avx512_give_the_same_bits() -> None:
    """The product with the fastest kernels differs by machine and by moment; results must not."""
    if used("avx512") != "avx512":
        pytest.skip("a processor without AVX-512")
    code = (
        "import pyinv; from pyinv.demo import BUNDLE; "
        "inverter = pyinv.Inverter(BUNDLE, threads=1); "
        "images = inverter.generate(inverter.sample(3, seed=0)); "
        "found = inverter.invert(images, recipe='adam', max_steps=5); "
        "print(images.tobytes().hex(), found.latents.tobytes().hex())"
    )
    assert run("avx512", "-c", code) == run("avx2", "-c", code)


def test_an_unknown_set_is_refused() -> None:
    code = "from pyinv import _core; _core.cpu_isa()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYINV_MAX_CPU_ISA": "avx1024"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "PYINV_MAX_CPU_ISA should be avx512, avx2 or portable, got avx1024" in done.stderr
