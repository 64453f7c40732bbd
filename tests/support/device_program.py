"""Builds tests/cuda: the engine on CUDA against the engine on the CPU, as a program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import REPOSITORY

NO_GPU = 77  # the program's exit status where there is none


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if launcher := shutil.which("ccache"):
        environment |= {f"CMAKE_{name}_COMPILER_LAUNCHER": launcher for name in ("CXX", "CUDA")}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment
    )


def build(folder: str, *definitions: str) -> Path:
    """Returns the folder with the program. It is kept, so that the next run finds it built."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    where = REPOSITORY / "build" / folder
    for step in (
        ["cmake", "-S", REPOSITORY / "tests" / "cuda", "-B", where, *definitions],
        ["cmake", "--build", where, "--parallel", "2"],
    ):
        done = run(*step)
        assert done.returncode == 0, done.stdout + done.stderr
    return where
