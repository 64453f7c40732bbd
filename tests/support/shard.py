"""A pytest plugin: run every n-th test, and log each outcome immediately.

    PYTHONPATH=tests SHARD=0/4 SHARD_LOG=shard0.jsonl python -m pytest -p support.shard

SHARD=0/4 selects tests 0, 4, 8 and so on of the collected tests. SHARD_LOG gets one JSON object per
line, one when a test starts and one when it ends, so that the log shows which test was running if
the process is killed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

TAIL = 2000  # the most characters of a failure that are logged


@pytest.hookimpl(trylast=True)  # after pytest's own deselection by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    index, count = map(int, os.environ.get("SHARD", "0/1").split("/"))
    items[:] = items[index::count]
    _write(collected=len(items))


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(started=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # A test's outcome is that of its call, unless setup or teardown did not pass.
    if report.when == "call" or report.outcome != "passed":
        content: dict[str, Any] = {"test": report.nodeid, "outcome": report.outcome}
        content["seconds"] = report.duration
        if report.failed:
            content["why"] = str(report.longrepr)[-TAIL:]
        elif report.skipped and isinstance(report.longrepr, tuple):
            content["why"] = report.longrepr[2]
        _write(**content)


def _write(**content: Any) -> None:
    if path := os.environ.get("SHARD_LOG"):
        with Path(path).open("a") as log:
            log.write(json.dumps(content) + "\n")
