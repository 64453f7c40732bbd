"""Some moments of the fuzzer of signals; by hand there are as many as one likes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from support.paths import REPOSITORY


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_signals_at_random_moments():
    for package in ("torch", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    command = [sys.executable, str(REPOSITORY / "tests" / "fuzz" / "signals.py"), "20"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("20 moments, 0 failed\n")
