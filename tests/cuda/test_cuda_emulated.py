"""The CUDA sources, compiled for the emulator in tests/cuda, do what the CPU's do.

Under AddressSanitizer and UndefinedBehaviorSanitizer; what is compared is in device_test.cpp.
"""

from __future__ import annotations

import sys

import pytest

from support.cpp_program import build, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the emulator needs ucontext"),
]


def test_the_emulated_device_agrees_with_the_cpu() -> None:
    done = run(build("emulated", "-DPYINV_EMULATED=ON") / "device_test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all well\n")
