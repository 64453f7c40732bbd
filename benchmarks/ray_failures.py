"""Does a Ray cluster that fails give the rows of one that does not?

    python benchmarks/ray_failures.py                        # 20,000 digits; about five minutes
    python benchmarks/ray_failures.py --targets 2000 --keep /tmp/failures

On two simulated nodes of this machine, a Parquet data set of PNG images that the digits' generator
made is inverted by ``pyinv.ray``:

- "failures": an actor is killed, then a node is removed, then a node is added;
- "resume": the driver is killed and started again, with Ray Data's checkpoints.

Each time every id must be there once, with the latent that ``Inverter.invert`` finds. Needs
`pip install '.[cpu,ray]'`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from ray.cluster_utils import Cluster
from ray.data import DataContext
from ray.data.checkpoint import CheckpointConfig

import pyinv
from pyinv.demo import BUNDLE
from pyinv.images import to_uint8
from pyinv.ray import build_processor
from pyinv.recipes import Recipe
from pyinv.solvers import Adam

# Short, with targets that end at different times, and with draws.
RECIPE = Recipe("short", pyinv.Stage(Adam(0.1), max_steps=20, loss_tolerance=0.02), restarts=1)
ROWS = 250  # of a block: what is lost with a node, and what becomes a file
NODE = {"num_cpus": 2, "object_store_memory": 150 * 2**20}
TOLERANCE = 1e-4


def make_images(folder: Path, count: int) -> NDArray[np.float32]:
    """Write the data set; return its images, read as ``invert`` takes them."""
    inverter = pyinv.Inverter(BUNDLE)
    pixels = to_uint8(
        inverter.generate(inverter.sample(count, seed=1)), inverter.manifest.value_range
    )
    folder.mkdir(parents=True)
    files = []
    for image in pixels[..., 0]:
        files.append(io.BytesIO())
        Image.fromarray(image).save(files[-1], format="PNG")
    for part in np.array_split(np.arange(count), 8):
        encoded = [files[row].getvalue() for row in part]
        table = pa.table({"id": part, "image": encoded, "tenth": part % 10})
        parquet.write_table(table, folder / f"{part[0]:06d}.parquet")
    return pyinv.load_images(files, inverter.manifest)


def drive(images: Path, latents: Path, checkpoints: Path | None) -> None:
    """Invert the data set on the running cluster: what a user's script does."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    if checkpoints is not None:
        context.checkpoint_config = CheckpointConfig(
            id_column="id", checkpoint_path=str(checkpoints), delete_checkpoint_on_success=False
        )
    processor = build_processor(BUNDLE, recipe=RECIPE, batch_size=128, concurrency=(1, 2))
    dataset = ray.data.read_parquet(str(images)).repartition(target_num_rows_per_block=ROWS)
    processor(dataset).write_parquet(str(latents))


def rows_in(folder: Path) -> int:
    """Count the rows of the finished files in a folder that is being written."""

    def rows(file: Path) -> int:
        try:
            return int(parquet.read_metadata(file).num_rows)
        except (OSError, pa.ArrowException):  # not finished
            return 0

    return sum(map(rows, folder.glob("*.parquet")))


def kill_actor() -> str:
    """Kill one of the processes that invert, all of which descend from this one."""
    found = [pid for pid, name in descendants(os.getpid()) if "InvertBatches" in name]
    if not found:
        raise SystemExit("no actor to kill")
    os.kill(found[0], signal.SIGKILL)
    return f"killed one of {len(found)} actors"


def descendants(of: int) -> Iterator[tuple[int, str]]:
    """Yield the processes that descend from one, with their command lines."""
    for children in Path(f"/proc/{of}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            with suppress(OSError):
                yield pid, Path(f"/proc/{pid}/cmdline").read_text()
                yield from descendants(pid)


def compare(folder: Path, expected: pyinv.Inversion) -> dict[str, Any]:
    """Compare what was written with ``invert``; ends the program if it differs."""
    table = parquet.read_table(folder).sort_by("id")
    count = len(expected.loss)
    ids = table["id"].to_numpy()
    if not np.array_equal(ids, np.arange(count)):
        raise SystemExit(f"{len(ids)} rows, {len(np.unique(ids))} different ids, not {count}")
    if not np.array_equal(table["tenth"].to_numpy(), ids % 10):
        raise SystemExit("a carried column belongs to other rows")
    latents = np.stack(table["latent"].to_numpy(zero_copy_only=False))
    difference = np.abs(latents - expected.latents).max(axis=1)
    steps = table["steps"].to_numpy() == expected.steps
    if difference.max() > TOLERANCE or not steps.all():
        raise SystemExit(f"latents differ by up to {difference.max():.2g}")
    return {"rows": count, "equal": int((difference == 0).sum()), "most": float(difference.max())}


def failures(cluster: Cluster, work: Path, count: int, say: Callable[[str], None]) -> None:
    """Run once while an actor is killed, a node removed, and a node added."""
    latents = work / "failures"
    node = cluster.add_node(**NODE)
    events = [
        (0.15, kill_actor),
        (0.35, lambda: cluster.remove_node(node, allow_graceful=False) or "removed a node"),
        (0.55, lambda: cluster.add_node(**NODE) and "added a node"),
    ]
    with ThreadPoolExecutor(1) as pool:  # Ray adds nodes in the main thread only
        run = pool.submit(drive, work / "images", latents, None)
        for share, event in events:
            while (done := rows_in(latents)) < share * count and not run.done():
                time.sleep(0.2)
            if run.done():
                run.result()
                raise SystemExit(f"ended before {share:.0%} of the rows were seen")
            say(f"at {done:,} rows: {event()}")
        run.result()


def resume(cluster: Cluster, work: Path, count: int, say: Callable[[str], None]) -> None:
    """Kill the driver, and start it again, with checkpoints."""
    latents = work / "resumed"
    command = [sys.executable, __file__, "--drive", str(work), "--address", cluster.address]
    driver = subprocess.Popen(command, start_new_session=True)
    while rows_in(latents) < 0.4 * count:
        if driver.poll() is not None:
            raise SystemExit("the driver ended by itself")
        time.sleep(0.2)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(5)  # until its actors have noticed
    before = {file.name: file.stat().st_mtime_ns for file in latents.glob("*.parquet")}
    say(f"killed the driver at {rows_in(latents):,} rows")
    subprocess.run(command, check=True)
    after = {file.name: file.stat().st_mtime_ns for file in latents.glob("*.parquet")}
    kept = sum(after.get(name) == written for name, written in before.items())
    say(f"resumed: {kept} of {len(before)} files were kept, {len(after) - kept} written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, default=20_000)
    parser.add_argument(
        "--keep", type=Path, help="a new folder for the data, instead of a temporary one"
    )
    parser.add_argument("--parts", nargs="+", default=["failures", "resume"])
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive is not None:
        ray.init(options.address, logging_level="warning", log_to_driver=False)
        work = options.drive
        drive(work / "images", work / "resumed", work / "checkpoints")
        return
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary)
        images = make_images(work / "images", options.targets)
        say(f"pyinv {pyinv.__version__}, ray {ray.__version__}: made {len(images):,} images")
        expected = pyinv.Inverter(BUNDLE).invert(images, recipe=RECIPE)
        say("inverted them with invert")
        report = {}
        for part in options.parts:
            cluster = Cluster(initialize_head=True, head_node_args=NODE)
            if part == "failures":
                ray.init(cluster.address, logging_level="warning", log_to_driver=False)
                failures(cluster, work, options.targets, say)
                written = work / "failures"
            else:
                cluster.add_node(**NODE)
                resume(cluster, work, options.targets, say)
                written = work / "resumed"
            report[part] = compare(written, expected)
            say(f"{part}: equal to invert, {json.dumps(report[part])}")
            ray.shutdown()
            cluster.shutdown()


if __name__ == "__main__":
    main()
