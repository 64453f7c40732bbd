"""Run everything that needs a GPU in five minutes: build, tests, sanitizers, timings.

    python3 benchmarks/gpu_check.py --output gpu-check.json --data DIR      # or: make gpu-check
    python3 benchmarks/gpu_check.py --parts build,tests

The machine needs an NVIDIA GPU, nvcc, the requirements for building and testing pyinv, and PyTorch
with CUDA in the Python that runs this. Nothing is installed into that Python: the build goes to
build/gpu-check, where later runs without the part "build" find it. benchmarks/README.md describes
the parts. Each part is a separate process with a time limit, and the report is written after each,
so that a failing part does not affect the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu-check"
SITE = WORK / "site"
# The folder where tests/cuda/test_cuda_kernels.py also builds these programs.
PROGRAMS = ROOT / "build" / "gpu"
KERNEL_TESTS = ("draws", "lanes", "groups", "cancel")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
MOST_SHARDS = 12
TAIL = 3000  # characters of a log that a report keeps

# The most seconds per part; the rest of --seconds may be less. Timings come before the tests, which
# run in parallel and would disturb them.
LIMITS = {
    "build": 150.0,
    "bandwidth": 20.0,
    "loop": 100.0,
    "recovery": 75.0,
    "tests": 150.0,
    "sanitizers": 150.0,
}


@dataclass
class Check:
    """The state that all parts share."""

    output: Path
    data: Path | None
    seconds: float
    cores: int
    gpu: dict[str, str]
    started: float = field(default_factory=time.monotonic)

    def left(self, part: str) -> float:
        """Return the seconds that a part may take."""
        return max(5.0, min(LIMITS[part], self.seconds - (time.monotonic() - self.started)))

    def log(self, part: str) -> Path:
        return self.output.with_name(f"{self.output.stem}-{part}.log")

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment for subprocesses, with this Python's programs and the build."""
        folders = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), *cuda_folders()]
        paths = [str(SITE), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PATH": os.pathsep.join(folder for folder in folders if folder),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            "CUDAARCHS": f"{self.gpu['architecture']}-real",
            "CMAKE_BUILD_PARALLEL_LEVEL": str(self.cores),
            **more,
        }


@dataclass(frozen=True)
class Done:
    """The result of a command; its status is None if it was stopped at its limit."""

    status: int | None
    seconds: float
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def problem(self) -> str:
        return "" if self.ok else "timed out" if self.status is None else f"status {self.status}"


def run(command: Sequence[str | Path], *, limit: float, environment: dict[str, str]) -> Done:
    """Run a command in the repository; stop it and its child processes at the limit."""
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Done(127, 0.0, "", str(error))
    try:
        stdout, stderr = process.communicate(timeout=limit)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        status = None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Done(status, time.monotonic() - started, stdout, stderr)


def cuda_folders() -> list[str]:
    """Return the usual folders of CUDA's programs, for machines where they are not on PATH."""
    return [folder for folder in ("/usr/local/cuda/bin", "/opt/cuda/bin") if Path(folder).is_dir()]


def find_gpu() -> dict[str, str] | None:
    """Return the first GPU's name, driver, memory and architecture ("90"); None without one."""
    query = "name,driver_version,memory.total,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_gpu(done.stdout) if done.returncode == 0 else None


def parse_gpu(answer: str) -> dict[str, str] | None:
    """Read nvidia-smi's line, "NVIDIA H200, 580.159.04, 143771 MiB, 9.0"."""
    fields = [part.strip() for part in answer.strip().partition("\n")[0].split(",")]
    if len(fields) != 4 or not re.fullmatch(r"\d+\.\d", fields[3]):
        return None
    names = ("name", "driver", "memory")
    return {**dict(zip(names, fields, strict=False)), "architecture": fields[3].replace(".", "")}


# ------------------------------------------------------------------------------------- the parts


def build(check: Check) -> dict[str, Any]:
    """Build pyinv for this GPU, and the programs of tests/cuda."""
    limit = check.left("build")
    environment = check.environment()
    shutil.rmtree(SITE, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    install = [
        sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps",
        "--no-index", "--disable-pip-version-check", "--target", SITE,
        f"--config-settings=build-dir={WORK / 'wheel'}",
        "--config-settings=cmake.define.PYINV_CUDA=ON",
        "--config-settings=cmake.define.PYINV_TORCH=ON",
        ROOT,
    ]  # fmt: skip
    configure = ["cmake", "-S", ROOT / "tests" / "cuda", "-B", PROGRAMS, "-DPYINV_EMULATED=OFF"]
    if shutil.which("ninja", path=environment["PATH"]) and not PROGRAMS.exists():
        configure += ["-G", "Ninja"]

    def programs() -> list[Done]:
        done = []
        # As in tests/cuda/test_cuda_kernels.py. A build with warnings is still worth measuring.
        for flags in ("-Werror all-warnings", ""):
            done.append(run([*configure, f"-DCMAKE_CUDA_FLAGS={flags}"], limit=limit,
                            environment=environment))  # fmt: skip
            done.append(run(["cmake", "--build", PROGRAMS], limit=limit, environment=environment))
            if done[-1].ok or done[-1].status is None:
                break
        return done

    with ThreadPoolExecutor() as pool:
        installing = pool.submit(run, install, limit=limit, environment=environment)
        building = pool.submit(programs)
        pip, made = installing.result(), building.result()
    # Report the versions of the build and of its dependencies.
    look = """
import json, pyinv, torch
from pyinv import _core, runtimes
onnx = runtimes.load("onnx")
print(json.dumps({
    "pyinv": pyinv.__version__,
    "engine": _core.__file__,
    "torchscript": str(runtimes.load("torchscript")),
    "onnx": str(onnx),
    "onnx_has_cuda": onnx.has_cuda,
    "torch_cuda": torch.version.cuda,
    "gpus": _core.cuda_device_count(),
}))
"""
    steps = {"pip": [pip], "tests/cuda": made}
    if pip.ok:
        seen = run([sys.executable, "-c", look], limit=60.0, environment=environment)
        steps["import pyinv"] = [seen]
    ended = [done for several in steps.values() for done in several]
    write_log(check.log("build"), ended)
    problems = [
        f"{name}: {done.problem}"
        for name, several in steps.items()
        for done in several
        if not done.ok
    ]
    return {
        "status": "failed" if problems else "ok",
        "reason": "; ".join(problems),
        "pip_seconds": pip.seconds,
        "programs_seconds": sum(done.seconds for done in made),
        "built": next(iter(json_lines(seen.stdout)), None) if pip.ok else None,
        "tail": "\n".join(tail(done) for done in ended if not done.ok),
    }


def bandwidth(check: Check) -> dict[str, Any]:
    """Compare the bandwidth of the fused step with a copy."""
    program = PROGRAMS / "step_bandwidth"
    done = run([program], limit=check.left("bandwidth"), environment=check.environment())
    rows = parse_bandwidth(done.stdout)
    return outcome(done, bool(rows)) | {"output": done.stdout, **rows}


def parse_bandwidth(output: str) -> dict[str, Any]:
    """Parse step_bandwidth's output: GB/s of a copy, and of the step per constraint."""
    copied = re.search(r"^copy +([\d.]+) GB/s", output, re.M)
    steps = re.findall(r"^step +([\d.]+) GB/s, +(\d+) % of the copy, (.+)$", output, re.M)
    if copied is None or not steps:
        return {}
    return {
        "copy_gb_per_second": float(copied[1]),
        "step_gb_per_second": {name: float(speed) for speed, _, name in steps},
        "least_share_of_copy": min(int(share) for _, share, _ in steps) / 100,
    }


def loop(check: Check) -> dict[str, Any]:
    """Compare a step of the engine on TorchScript with PyTorch's loops."""
    done = run(
        [
            sys.executable, ROOT / "benchmarks" / "loop.py", "--device", "cuda", "--runtime",
            "torchscript", "--json", "--repeats", "3", "--seconds", "0.3",
            "--peers", "eager", "eager_folded", "channels_last", "graph",
        ],
        limit=check.left("loop"), environment=check.environment(),
    )  # fmt: skip
    write_log(check.log("loop"), [done])
    reports = json_lines(done.stdout)
    return outcome(done, bool(reports)) | {"report": reports[-1] if reports else None}


def recovery(check: Check) -> dict[str, Any]:
    """Run `precise` on the face generator's own images."""
    weights = check.data and check.data / "face_generator" / "generator.pt"
    if weights is None or not weights.is_file():
        return {
            "status": "skipped",
            "reason": "no --data folder with face_generator/generator.pt",
        }
    limit = check.left("recovery")
    program = ROOT / "benchmarks" / "gpu_recovery.py"
    done = run(
        [sys.executable, program, weights, "--seconds", str(0.3 * limit)],
        limit=limit, environment=check.environment(),
    )  # fmt: skip
    write_log(check.log("recovery"), [done])
    runs = json_lines(done.stdout)
    return outcome(done, bool(runs)) | {"runs": runs}


def tests(check: Check) -> dict[str, Any]:
    """Run `pytest -m gpu` in shards, without the kernel tests of the part "sanitizers"."""
    folder = WORK / "tests"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    limit = check.left("tests")
    count = max(1, min(MOST_SHARDS, check.cores - 2))

    def shard(index: int) -> Done:
        path = check.environment()["PYTHONPATH"]
        environment = check.environment(
            PYTHONPATH=os.pathsep.join([path, str(ROOT / "tests")]),
            SHARD=f"{index}/{count}",
            SHARD_LOG=str(folder / f"{index}.jsonl"),
            # Only onnxruntime-gpu supports GPUs; with another wheel its tests are skipped.
            PYINV_REQUIRE_CUDA="1" if has_onnx_cuda(check) else "torchscript",
            PYINV_REQUIRE_TORCHSCRIPT="1",
            OMP_NUM_THREADS="1",
        )
        return run(
            [
                sys.executable, "-m", "pytest", "-p", "support.shard", "-m", "gpu", "-q",
                "--tb=short", "-p", "no:cacheprovider",
                f"--basetemp={folder / f'temporary{index}'}",
                "--ignore", "tests/cuda/test_cuda_kernels.py",
                "-W", "default",  # versions other than those in constraints.txt may warn
            ],
            limit=limit, environment=environment,
        )  # fmt: skip

    with ThreadPoolExecutor(count) as pool:
        shards = list(pool.map(shard, range(count)))
    logs = [folder / f"{index}.jsonl" for index in range(count)]
    result = summarize([json_lines(log.read_text() if log.exists() else "") for log in logs])
    # pytest's status 5: a shard without tests.
    ends = [f"shard {i}: {done.problem}" for i, done in enumerate(shards) if done.status not in
            (0, 1, 5)]  # fmt: skip
    write_log(check.log("tests"), [done for done in shards if not done.ok] or shards[:1])
    bad = result["failed"] > 0 or not result["passed"] or result["not_run"] > 0 or bool(ends)
    reasons = [*ends, *([] if result["passed"] else ["no test passed"])]
    if result["failed"]:
        reasons.insert(0, f"{result['failed']} failed")
    if result["not_run"]:
        reasons.insert(0, f"{result['not_run']} not run")
    return {
        "status": "failed" if bad else "ok",
        "reason": "; ".join(reasons),
        "shards": count,
        "seconds_by_shard": [round(done.seconds, 1) for done in shards],
        **result,
    }


def has_onnx_cuda(check: Check) -> bool:
    """Whether the installed ONNX Runtime supports GPUs."""
    look = "from pyinv import runtimes; raise SystemExit(not runtimes.find_onnxruntime().has_cuda)"
    return run([sys.executable, "-c", look], limit=60.0, environment=check.environment()).ok


def summarize(shards: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Combine the lines that tests/support/shard.py wrote, one list per shard."""
    outcomes: dict[str, dict[str, Any]] = {}
    collected, unfinished = 0, []
    for lines in shards:
        started = None
        for line in lines:
            if "collected" in line:
                collected += line["collected"]
            elif "started" in line:
                started = line["started"]
            elif outcomes.get(line["test"], {}).get("outcome") != "failed":
                outcomes[line["test"]] = line
        if started is not None and started not in outcomes:
            unfinished.append(started)
    by_outcome = {
        name: [line for line in outcomes.values() if line["outcome"] == name]
        for name in ("passed", "failed", "skipped")
    }
    skipped: dict[str, int] = {}
    for line in by_outcome["skipped"]:
        skipped[line.get("why", "")] = skipped.get(line.get("why", ""), 0) + 1
    slowest = sorted(outcomes.values(), key=lambda line: -line["seconds"])[:10]
    return {
        "collected": collected,
        **{name: len(lines) for name, lines in by_outcome.items()},
        "not_run": collected - len(outcomes),
        "failures": {line["test"]: line.get("why", "") for line in by_outcome["failed"]},
        "skip_reasons": skipped,
        "unfinished": unfinished,
        "slowest": {line["test"]: round(line["seconds"], 2) for line in slowest},
    }


def sanitizers(check: Check) -> dict[str, Any]:
    """Run the kernel tests against the CPU and under each compute-sanitizer tool, in parallel."""
    limit = check.left("sanitizers")
    environment = check.environment()
    program = PROGRAMS / "device_test"
    commands: dict[str, list[str | Path]] = {"device_test": [program]}
    for tool in SANITIZERS:
        commands[tool] = [
            "compute-sanitizer", "--tool", tool, "--error-exitcode", "1", program, *KERNEL_TESTS,
        ]  # fmt: skip
    with ThreadPoolExecutor(len(commands)) as pool:
        ended = dict(
            zip(
                commands,
                pool.map(
                    lambda command: run(command, limit=limit, environment=environment),
                    commands.values(),
                ),
                strict=True,
            )
        )
    write_log(check.log("sanitizers"), list(ended.values()))
    problems = [f"{name}: {done.problem}" for name, done in ended.items() if not done.ok]
    return {
        "status": "failed" if problems else "ok",
        "reason": "; ".join(problems),
        "tools": {
            name: {
                "status": "ok" if done.ok else done.problem,
                "seconds": round(done.seconds, 1),
                "tail": "" if done.ok else tail(done),
            }
            for name, done in ended.items()
        },
    }


PARTS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "build": build,
    "bandwidth": bandwidth,
    "loop": loop,
    "recovery": recovery,
    "tests": tests,
    "sanitizers": sanitizers,
}
# Nothing is timed in these parts, so they run in parallel.
TOGETHER = ("tests", "sanitizers")


# ------------------------------------------------------------------------------------- the report


def outcome(done: Done, complete: bool) -> dict[str, Any]:
    """Return the outcome of a part that is a single command."""
    problem = done.problem or ("" if complete else "it printed no result")
    last = done.stderr.strip().rpartition("\n")[2][-200:]
    return {
        "status": "failed" if problem else "ok",
        "reason": f"{problem}: {last}" if problem and last else problem,
        "tail": tail(done) if problem else "",
    }


def tail(done: Done) -> str:
    return (done.stdout[-TAIL:] + "\n" + done.stderr[-TAIL:]).strip()


def write_log(path: Path, ended: Sequence[Done]) -> None:
    path.write_text("\n".join(
        f"==== {done.problem or 'ok'} after {done.seconds:.1f} s\n{done.stdout}\n{done.stderr}"
        for done in ended
    ))  # fmt: skip


def json_lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects among the lines; the last line may be incomplete."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def attempt(part: str, check: Check) -> dict[str, Any]:
    """Run a part; an exception becomes its result."""
    started = time.monotonic()
    try:
        result = PARTS[part](check)
    except Exception as error:
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {**result, "seconds": time.monotonic() - started}


def lines_of(part: str, result: dict[str, Any]) -> list[str]:
    """Return a part's lines in the table."""
    head = f"{part:<11} {result['status']:<8} {result.get('seconds', 0.0):6.1f} s"
    more = []
    if part == "build" and result.get("built"):
        more.append("{torchscript}, ONNX Runtime {onnx}; GPUs: {gpus}".format(**result["built"]))
    if part == "bandwidth" and "copy_gb_per_second" in result:
        more.append(
            f"step at {min(result['step_gb_per_second'].values()):.0f} GB/s or more, at least "
            f"{result['least_share_of_copy']:.0%} of a copy's {result['copy_gb_per_second']:.0f}"
        )
    if part == "loop" and result.get("report"):
        for row in result["report"]["results"]:
            own = row["image_steps_per_second"]["pyinv"]
            more.append(
                f"batch {row['batch']}: {own:.0f} image-steps/s, {row['ratio_median']:.2f} times "
                f"{row['peer']}, {row['ratio_to_eager']:.2f} times eager"
            )
    if part == "recovery":
        more += [
            f"{one['done']} of {one['count']}, batch size {one['batch_size']}: "
            f"{one['latents_per_second']:.1f} latents/s; "
            + ", ".join(f"{share:.1%} below {limit}" for limit, share in one["recovered"].items())
            for one in result.get("runs", [])
        ]
    if part == "tests" and "passed" in result:
        more.append("{passed} passed, {failed} failed, {skipped} skipped".format(**result))
        more += [f"  skipped {number}: {why}" for why, number in result["skip_reasons"].items()]
        more += [f"  failed {number}: {why}" for why, number in grouped(result["failures"])[:8]]
        more += [f"  FAILED {name}" for name in list(result["failures"])[:10]]
        more += [f"  unfinished {name}" for name in result["unfinished"]]
    if part == "sanitizers" and "tools" in result:
        more.append(", ".join(f"{name} {one['status']} ({one['seconds']} s)"
                              for name, one in result["tools"].items()))  # fmt: skip
    reason = f"  {result['reason']}" if result.get("reason") else ""
    return [head + reason, *(f"            {line}" for line in more)]


def grouped(failures: dict[str, str]) -> list[tuple[str, int]]:
    """Return the messages of failing tests with their counts, most frequent first."""
    said = Counter(
        next((line for line in why.splitlines() if line.startswith("E ")), why[-200:])
        for why in failures.values()
    )
    return [(why.removeprefix("E ").strip()[:200], number) for why, number in said.most_common()]


def write_report(check: Check, results: dict[str, dict[str, Any]]) -> None:
    report = {
        "benchmark": "gpu-check",
        "gpu": check.gpu,
        "cores": check.cores,
        "python": platform.python_version(),
        "seconds": time.monotonic() - check.started,
        "parts": results,
    }
    check.output.write_text(json.dumps(report, indent=1) + "\n")


def parse_parts(text: str) -> list[str]:
    """Return the requested parts, in the order they run in."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if not wanted or (unknown := set(wanted) - set(PARTS)):
        named = ", ".join(sorted(unknown)) if wanted else "none"
        raise argparse.ArgumentTypeError(f"got {named}; give any of {', '.join(PARTS)}")
    return [part for part in PARTS if part in wanted]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--data", type=Path, help="folder with face_generator/generator.pt")
    parser.add_argument("--parts", type=parse_parts, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="limit of the whole [%(default)s]"
    )
    options = parser.parse_args(arguments)
    gpu = find_gpu()
    if gpu is None:
        for part in options.parts:
            print(f"{part:<11} skipped: no GPU (nvidia-smi finds none)")
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    check = Check(
        output=options.output.resolve(),
        data=options.data and options.data.resolve(),
        seconds=options.seconds,
        cores=len(os.sched_getaffinity(0)),
        gpu=gpu,
    )
    results: dict[str, dict[str, Any]] = {}
    write_report(check, results)

    def finish(part: str, result: dict[str, Any]) -> None:
        results[part] = result
        write_report(check, results)
        print("\n".join(lines_of(part, result)), file=sys.stderr, flush=True)

    for part in options.parts:
        if part not in TOGETHER:
            finish(part, attempt(part, check))
    together = [part for part in options.parts if part in TOGETHER]
    with ThreadPoolExecutor(max(1, len(together))) as pool:
        running = {part: pool.submit(attempt, part, check) for part in together}
        for part, future in running.items():
            finish(part, future.result())
    print(f"{gpu['name']}, driver {gpu['driver']}; {time.monotonic() - check.started:.0f} s")
    for part in options.parts:
        print("\n".join(lines_of(part, results[part])))
    return 1 if any(result["status"] == "failed" for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
