"""The engine's streams and runs under ThreadSanitizer; see stream/stream_test.cpp."""

from __future__ import annotations

import sys

import pytest

from support.cpp_program import build, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs ThreadSanitizer"),
]


def test_threads_that_share_a_stream() -> None:
    done = run(build("stream_test", source="tests/engine/stream") / "stream_test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout, done.stderr) == ("all well\n", "")
