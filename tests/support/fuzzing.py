"""Run many generated cases in a child process, where a crash, a hang or a leak is seen.

A fuzzer is a module with ``check(number)``, which makes a case from its number, runs it and raises
for what should not happen, and perhaps ``prepare()``, for what is done once.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

SECONDS = 20  # of one case
MEGABYTES = 512  # that all cases of a process may add to its peak
REPLACE = 77  # the exit status of a process that grew, for another to go on
TESTS = Path(__file__).parent.parent


def problems(module: str, cases: range, *, most: int = 10) -> list[str]:
    """Return what went wrong, at most ``most`` lines that each start with the case's number."""
    found: list[str] = []
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        while cases and len(found) < most:
            command = [
                sys.executable,
                "-m",
                "support.fuzzing",
                module,
                str(cases[0]),
                str(cases[-1]),
            ]
            done = subprocess.run(
                command, capture_output=True, cwd=folder, env=environment, text=True
            )
            reports = [json.loads(line) for line in done.stdout.splitlines()]
            found += [f"{r['case']}: {r['problem']}" for r in reports if "problem" in r]
            if done.returncode == 0:
                break
            last = reports[-1]["case"] if reports else cases[0]
            if done.returncode != REPLACE:
                hung = done.returncode == -signal.SIGALRM
                how = "a hang" if hung else f"exit status {done.returncode}"
                found.append(f"{last}: {how} {done.stderr[-500:]}".strip())
            cases = range(last + 1, cases.stop)
    return found[:most]


def _run(module: str, first: int, last: int) -> int:
    """Report each case to standard output before it runs, and return the exit status."""
    import resource

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    # Allocations beyond this fail, before they take the machine's memory.
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    fuzzer = importlib.import_module(module)
    if hasattr(fuzzer, "prepare"):
        fuzzer.prepare()
    before = peak()
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    for number in range(first, last + 1):
        print(json.dumps({"case": number}), file=reports)
        signal.alarm(SECONDS)  # its default action ends the process
        with contextlib.ExitStack() as stack:
            stack.callback(signal.alarm, 0)
            try:
                fuzzer.check(number)
            except BaseException:
                problem = traceback.format_exc(limit=-4)
                print(json.dumps({"case": number, "problem": problem}), file=reports)
        if peak() - before > MEGABYTES:
            problem = f"memory grew by {peak() - before:.0f} MiB"
            print(json.dumps({"case": number, "problem": problem}), file=reports)
            return REPLACE
    return 0


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
