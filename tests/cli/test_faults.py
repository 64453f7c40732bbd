"""Any call that opens, writes, flushes or renames a file may fail."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.faults import CASES, write_inputs
from support.paths import REPOSITORY

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="preloads a library, which cc builds",
)
TESTS = REPOSITORY / "tests"
NEEDS = {
    "pictures": ["PIL"],
    "job": ["pyarrow"],
    "merge": ["pyarrow"],
    "download": ["fsspec", "filelock"],
    "export": ["torch"],
    "train": ["torch"],
    "reproduce": ["matplotlib"],
}
# Those that take longer fail at some of their calls only.
STRIDES = {"export": 7, "train": 7, "reproduce": 11}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "faults.so"
    source = TESTS / "support" / "faults.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True)
    return path


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in STRIDES)) for name in CASES],
)
def test_a_call_that_fails_leaves_the_old_or_the_new(library, tmp_path, case):
    for package in NEEDS.get(case, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    (tmp_path / "inputs").mkdir()
    write_inputs(tmp_path / "inputs")
    command = ["-m", "support.faults", case, str(tmp_path), str(STRIDES.get(case, 1))]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=TESTS,
        env=os.environ | {"LD_PRELOAD": str(library), "PYINV_CACHE": str(tmp_path / "out")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:-1] == []
    calls = int(lines[-1].removeprefix(f"{case}: ").removesuffix(" calls"))
    assert calls >= 5
