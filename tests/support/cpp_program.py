"""Build the C++ programs of the tests, such as tests/cuda."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import REPOSITORY

NO_GPU = 77  # the program's exit status without a GPU


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if launcher := shutil.which("ccache"):
        environment |= {f"CMAKE_{name}_COMPILER_LAUNCHER": launcher for name in ("CXX", "CUDA")}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment
    )


def build(folder: str, *definitions: str, source: str = "tests/cuda") -> Path:
    """Build a program of the tests and return its folder, which later runs reuse."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    where = REPOSITORY / "build" / folder
    with _alone(where):
        for step in (
            ["cmake", "-S", REPOSITORY / source, "-B", where, *definitions],
            ["cmake", "--build", where, "--parallel", "2"],
        ):
            done = run(*step)
            assert done.returncode == 0, done.stdout + done.stderr
    return where


@contextlib.contextmanager
def _alone(where: Path) -> Iterator[None]:
    """Hold a lock: if two workers need the same program, the second waits and finds it built."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    where.mkdir(parents=True, exist_ok=True)
    with (where / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
