"""The GPU check: what it reads, adds up and reports. What it runs needs a GPU, and is not run."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest

from support.backends import absent
from support.paths import REPOSITORY

GPU = "NVIDIA H200, 580.159.04, 143771 MiB, 9.0\n"


@pytest.fixture
def check(tmp_path: Path) -> gpu_check.Check:
    gpu = gpu_check.parse_gpu(GPU)
    assert gpu is not None
    return gpu_check.Check(
        output=tmp_path / "report.json", data=None, seconds=60.0, cores=2, gpu=gpu
    )


def test_the_gpu_of_nvidia_smi() -> None:
    assert gpu_check.parse_gpu(GPU) == {
        "name": "NVIDIA H200",
        "driver": "580.159.04",
        "memory": "143771 MiB",
        "architecture": "90",
    }
    assert gpu_check.parse_gpu(GPU + "NVIDIA A100, 580, 1 MiB, 8.0\n")["architecture"] == "90"
    assert gpu_check.parse_gpu("") is None
    assert gpu_check.parse_gpu("No devices were found") is None


def test_only_that_gpu_is_built_for(check: gpu_check.Check) -> None:
    assert check.environment()["CUDAARCHS"] == "90-real"


def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "gpu_check.py", "--parts", "loop,build"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": ""},
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "build       skipped: no GPU (nvidia-smi finds none)",
        "loop        skipped: no GPU (nvidia-smi finds none)",
    ]
    assert list(tmp_path.iterdir()) == []


def test_parts_come_in_their_order_and_unknown_ones_are_refused() -> None:
    assert gpu_check.parse_parts("tests, build") == ["build", "tests"]
    with pytest.raises(argparse.ArgumentTypeError, match="got nothing-here; give any of build, "):
        gpu_check.parse_parts("build,nothing-here")
    with pytest.raises(argparse.ArgumentTypeError, match="got none; give any of build, "):
        gpu_check.parse_parts("")


def test_a_command_is_stopped_at_its_limit_with_what_it_started() -> None:
    parent = (
        "import subprocess, sys; print('begun', flush=True);"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    done = gpu_check.run([sys.executable, "-c", parent], limit=3.0, environment=dict(os.environ))
    assert (done.ok, done.problem) == (False, "timed out")
    assert done.stdout == "begun\n"
    assert done.seconds < 50  # the sleeping child had the other end of the pipe


def test_a_command_that_is_missing_fails_alone() -> None:
    done = gpu_check.run(["no-such-program"], limit=5.0, environment=dict(os.environ))
    assert done.problem == "status 127"
    assert "no-such-program" in done.stderr


def test_a_part_that_raises_loses_no_other(
    check: gpu_check.Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(check: gpu_check.Check) -> dict[str, object]:
        raise OSError("no room")

    monkeypatch.setitem(gpu_check.PARTS, "loop", fails)
    result = gpu_check.attempt("loop", check)
    assert (result["status"], result["reason"]) == ("failed", "OSError: no room")
    gpu_check.write_report(check, {"loop": result})
    assert json.loads(check.output.read_text())["parts"]["loop"]["reason"] == "OSError: no room"


def test_the_bandwidth_that_the_program_prints() -> None:
    output = (
        "NVIDIA H200, 1048576 x 100\n"
        "copy   4300.0 GB/s\n"
        "step   3956.0 GB/s,  92 % of the copy, none\n"
        "step   3010.5 GB/s,  70 % of the copy, truncated normal cutoff\n"
    )
    assert gpu_check.parse_bandwidth(output) == {
        "copy_gb_per_second": 4300.0,
        "step_gb_per_second": {"none": 3956.0, "truncated normal cutoff": 3010.5},
        "least_share_of_copy": 0.70,
    }
    assert gpu_check.parse_bandwidth("GPU 0 cannot be used\n") == {}


def test_lines_that_were_cut_off_are_left_out() -> None:
    assert gpu_check.json_lines('{"a": 1}\nnoise\n{"a": 2}\n{"a": ') == [{"a": 1}, {"a": 2}]


TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("n", range(4))
def test_some(n):
    assert n != 2, "two is wrong"

@pytest.mark.gpu
def test_absent():
    pytest.skip("there is no GPU")

@pytest.mark.gpu
def test_ends_the_process():
    import os
    os._exit(3)

def test_of_the_cpu():
    raise AssertionError
"""


def test_shards_run_each_test_once_and_tell_what_did_not_end(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: a GPU\n")
    shards = []
    for index in range(2):
        log = tmp_path / f"{index}.jsonl"
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY / "tests"),
            "SHARD": f"{index}/2",
            "SHARD_LOG": str(log),
        }
        subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "support.shard", "-m", "gpu", "-q"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
        )
        shards.append(gpu_check.json_lines(log.read_text()))
    found = gpu_check.summarize(shards)
    assert [found[name] for name in ("collected", "passed", "failed", "skipped", "not_run")] == [
        6, 3, 1, 1, 1,
    ]  # fmt: skip
    assert list(found["failures"]) == ["test_some.py::test_some[2]"]
    assert "two is wrong" in found["failures"]["test_some.py::test_some[2]"]
    assert found["skip_reasons"] == {"Skipped: there is no GPU": 1}
    assert found["unfinished"] == ["test_some.py::test_ends_the_process"]
    line = "\n".join(gpu_check.lines_of("tests", {"status": "failed", **found}))
    assert "3 passed, 1 failed, 1 skipped" in line
    assert "FAILED test_some.py::test_some[2]" in line
    assert "failed 1: AssertionError: two is wrong" in line


def test_recovery_without_data_says_what_it_wants(check: gpu_check.Check) -> None:
    assert gpu_check.recovery(check) == {
        "status": "skipped",
        "reason": "no --data folder with face_generator/generator.pt",
    }


@pytest.mark.parametrize(
    ("promise", "runtime", "fails"),
    [
        ("1", "onnx", True),
        ("1", None, True),
        ("torchscript", "torchscript", True),
        ("torchscript", "onnx", False),
        ("torchscript", None, True),
        ("", "torchscript", False),
    ],
)
def test_cuda_can_be_promised_for_one_runtime(
    monkeypatch: pytest.MonkeyPatch, promise: str, runtime: str | None, fails: bool
) -> None:
    monkeypatch.setenv("PYINV_REQUIRE_CUDA", promise)
    with pytest.raises(pytest.fail.Exception if fails else pytest.skip.Exception):
        absent("there is no GPU", "PYINV_REQUIRE_CUDA", runtime)
