"""Jobs on digits of the demo's generator: killed at random, their memory, and their speed.

    python benchmarks/jobs.py kills  --targets 20000 --kills 50
    python benchmarks/jobs.py memory --targets 200000
    python benchmarks/jobs.py speed  --targets 2000 --repeats 5

``kills`` kills a job at random moments (SIGKILL), starts it again each time, and compares all of
its rows, bit by bit, with those of a job that was left alone. ``memory`` runs a job of PNG files,
and one of a Parquet file with the same images, and shows resident memory against progress.
``speed`` compares jobs with ``Inverter.invert`` on the same images in an array, in turn.

All take ``--recipe`` and ``--steps``, the recipe and its number of steps; fewer steps leave more to
what is around the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

import pyinv
from pyinv.demo import BUNDLE
from pyinv.images import save_images

PER_FOLDER = 1000
MEBIBYTE = 2**20
CHECKPOINTS = (1, 2, 5, 10, 25, 50, 75, 100)  # percent
WAIT = 120.0  # seconds for a job to start
EARLY = 0.2  # the share of kills before the job has started its work


def main() -> int:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "memory", "speed"))
    parser.add_argument("--targets", type=int, default=20000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=200)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="to work in; on the file system to test")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run = {"kills": kills, "memory": memory, "speed": speed}[arguments.what]
        return run(arguments, Path(folder))


def digits(count: int) -> NDArray[np.float32]:
    """Return generated digits."""
    inverter = pyinv.Inverter(BUNDLE, threads=1)
    return inverter.generate(inverter.sample(count, seed=1))


def command(arguments: argparse.Namespace, source: Path, out: Path) -> list[str]:
    """Return the command that runs or resumes a job."""
    steps = [] if arguments.steps is None else ["--max-steps", str(arguments.steps)]
    given = [BUNDLE, source, "-o", f"{out}/", "--recipe", arguments.recipe, *steps, "--json"]
    given += ["--threads", arguments.threads, "--shard-size", arguments.shard_size, "--quiet"]
    return [sys.executable, "-m", "pyinv", "invert", *map(str, given)]


# Kills ------------------------------------------------------------------------------------------


def kills(arguments: argparse.Namespace, folder: Path) -> int:
    """Kill a job until it was killed often enough; return whether anything was wrong."""
    source = folder / "digits.npy"
    np.save(source, digits(arguments.targets))
    began = time.monotonic()
    subprocess.run(command(arguments, source, folder / "alone"), check=True, stdout=subprocess.PIPE)
    seconds = time.monotonic() - began
    expected = pyinv.read_job(folder / "alone").to_table()
    print(f"alone: {len(expected)} rows in {seconds:.1f} s", flush=True)
    moments = random.Random(arguments.seed)
    killed = jobs = 0
    out = folder / "out"
    while killed < arguments.kills:
        # Short enough, on average, that the job lasts for all kills.
        delay = moments.uniform(0, 2 * seconds / arguments.kills)
        if not killed_after(command(arguments, source, out), delay, moments.random() < EARLY):
            jobs += 1
            compare(out, expected)
            shutil.rmtree(out)
            continue
        killed += 1
        kept = check_folder(out, arguments.shard_size)
        print(f"{killed:3d}: killed after {delay:5.2f} s, {kept} rows kept", flush=True)
    subprocess.run(command(arguments, source, out), check=True, stdout=subprocess.PIPE)
    compare(out, expected)
    left = [path.name for path in out.iterdir() if path.name.endswith(".part")]
    assert not left, left
    print(f"{killed} kills in {jobs + 1} job(s): every id once, all rows equal bit by bit")
    return 0


def killed_after(arguments: list[str], delay: float, early: bool) -> bool:
    """Run a job and kill it a while after it starts to work, or early, after it was started.

    Returns:
        whether it was killed; otherwise it was done before.
    """
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        if not early:
            line = process.stdout.readline()
            assert line, "the job failed to start"
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.read()
    code = process.wait()
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def check_folder(out: Path, shard_size: int) -> int:
    """Check that what has a final name is whole; return the number of rows."""
    rows = 0
    if (out / "job.json").exists():
        json.loads((out / "job.json").read_text())
    for path in out.glob("part-*.parquet") if out.exists() else ():
        count = len(parquet.read_table(path))
        assert 0 < count <= shard_size, (path, count)
        rows += count
    return rows


def compare(out: Path, expected: pa.Table) -> None:
    """Check that a job's rows equal the expected ones, in bits."""
    found = pyinv.read_job(out).to_table()
    ids = found.column("id").to_pylist()
    assert len(set(ids)) == len(ids) == len(expected)
    for name in expected.column_names:
        mine, other = (table.column(name).combine_chunks() for table in (found, expected))
        assert mine.equals(other), name


# Memory -----------------------------------------------------------------------------------------


def write_sources(folder: Path, count: int) -> dict[str, Path]:
    """Write generated digits as PNG files in folders, and as a Parquet file of them."""
    pictures, table = folder / "png", folder / "digits.parquet"
    pictures.mkdir()
    images = digits(count)
    manifest = pyinv.Bundle.open(BUNDLE).manifest
    names = [f"{row:07d}" for row in range(count)]
    schema = pa.schema([("image", pa.binary()), ("key", pa.string()), ("row", pa.int64())])
    with parquet.ParquetWriter(table, schema) as writer:
        for start in range(0, count, PER_FOLDER):
            place = pictures / f"{start // PER_FOLDER:04d}"
            place.mkdir()
            rows = slice(start, min(start + PER_FOLDER, count))
            saved = save_images(images[rows], place, manifest.value_range, names=names[rows])
            encoded = [path.read_bytes() for path in saved]
            columns = [encoded, names[rows], list(range(start, start + len(saved)))]
            writer.write_table(pa.table(columns, schema=schema))
    return {"png": pictures, "parquet": table}


def memory(arguments: argparse.Namespace, folder: Path) -> int:
    """Show resident memory against progress."""
    for kind, source in write_sources(folder, arguments.targets).items():
        with subprocess.Popen(
            command(arguments, source, folder / f"out-{kind}"), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            samples: dict[int, float] = {}
            last: dict[str, Any] = {}
            for line in process.stdout:
                last = json.loads(line)
                if last["event"] == "progress":
                    done = 100 * last["finished"] / last["targets"]
                    due = [mark for mark in CHECKPOINTS if mark <= done and mark not in samples]
                    samples.update(dict.fromkeys(due, resident(process.pid)))
        assert process.returncode == 0
        shown = ", ".join(f"{mark} %: {size:.0f}" for mark, size in samples.items())
        spread = max(samples.values()) / min(samples.values())
        print(
            f"{kind}: {last['targets']} images, {last['images_per_second']:.0f}/s; resident MiB at "
            f"{shown}; largest / smallest {spread:.3f}",
            flush=True,
        )
    return 0


def resident(process: int) -> float:
    """Return a process's resident memory in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


# Speed ------------------------------------------------------------------------------------------


def speed(arguments: argparse.Namespace, folder: Path) -> int:
    """Compare jobs with ``invert``, in turn."""
    sources = write_sources(folder, arguments.targets)
    inverter = pyinv.Inverter(BUNDLE, threads=arguments.threads)
    images = pyinv.load_images(sources["png"], inverter.manifest)
    np.save(folder / "digits.npy", images)
    method = {"recipe": arguments.recipe, "max_steps": arguments.steps}

    def job(source: Path) -> None:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        pyinv.run_job(inverter, source, out, shard_size=arguments.shard_size, **method)

    contenders: dict[str, Callable[[], Any]] = {
        "invert": lambda: inverter.invert(images, **method),
        "job of an array": lambda: job(folder / "digits.npy"),
        "job of PNG files": lambda: job(sources["png"]),
        "job of Parquet": lambda: job(sources["parquet"]),
    }
    walls: dict[str, list[float]] = {name: [] for name in contenders}
    cpus: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.repeats):
        for name, run in contenders.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    for name, seconds in walls.items():
        rate = arguments.targets / statistics.median(seconds)
        ratio = statistics.median(a / b for a, b in zip(walls["invert"], seconds, strict=True))
        work = statistics.median(a / b for a, b in zip(cpus["invert"], cpus[name], strict=True))
        print(f"{name}: {rate:.0f} images/s, {ratio:.3f} of invert; by CPU time {work:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
