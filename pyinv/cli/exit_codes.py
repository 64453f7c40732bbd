"""Exit codes, for scripts; `pyinv --help` explains them."""

from __future__ import annotations

__all__ = ["DONE", "FAILED", "INTERRUPTED", "NON_FINITE", "TIMED_OUT", "UNFINISHED", "USAGE"]

DONE = 0
FAILED = 1
USAGE = 2
NON_FINITE = 3
UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h
TIMED_OUT = 124  # as timeout(1) says it
INTERRUPTED = 130  # 128 + SIGINT, the shell convention
