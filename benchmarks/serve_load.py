"""Measures `pyinv serve` under load, and checks each of its answers against ``Inverter.invert``.

    python benchmarks/serve_load.py                       # the demo's digits, about four minutes
    python benchmarks/serve_load.py --bundle faces.bundle --seconds 120 --clients 64

Three parts, each with the service in a process of its own and the clients in this one:

- latency: a lone image over HTTP and by ``invert``, in turns;
- throughput: a closed loop of clients, and ``invert`` of as many images on as many lanes, in turns;
- soak: clients of which half hang up at a random moment. No answer may be wrong or missing, no lane
  may stay occupied, and the memory may not grow.

It prints one JSON object and exits with 1 if an answer was wrong or something was left over.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

import pyinv
from pyinv.demo import BUNDLE
from pyinv.images import to_uint8

PYINV = [sys.executable, "-c", "import sys; from pyinv.cli import main; sys.exit(main())"]


@dataclass
class Targets:
    """PNG files, and what ``invert`` finds for them."""

    files: list[bytes]
    images: np.ndarray
    found: pyinv.Inversion


def targets_of(inverter: pyinv.Inverter, count: int) -> Targets:
    manifest = inverter.manifest
    images = inverter.generate(inverter.sample(count, seed=1))
    noise = np.random.default_rng(0).normal(0, 0.05, images.shape)
    images = np.clip(images + noise.astype(np.float32), *manifest.value_range)
    files = []
    for pixels in to_uint8(images, manifest.value_range):
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, format="PNG")
        files.append(file.getvalue())
    read = np.concatenate([pyinv.load_images(io.BytesIO(file), manifest) for file in files])
    return Targets(files, read, inverter.invert(read))


@dataclass
class Counts:
    answered: int = 0
    hung_up: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


class Connection:
    """A client's connection, kept open from request to request."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", answer)[1])
        return int(answer.split()[1]), await self._reader.readexactly(length)

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def check(counts: Counts, targets: Targets, row: int, status: int, body: bytes) -> None:
    if status == 503:
        counts.refused += 1
        return
    counts.answered += 1
    if status != 200:
        counts.wrong.append(f"target {row}: {status}, {body[:200]!r}")
        return
    (result,) = json.loads(body)["results"]
    expected = targets.found.loss[row]
    # Rounding may end a search on a plateau a little earlier or later.
    near = np.allclose(result["latent"], targets.found.latents[row].ravel(), atol=1e-3)
    if result["id"] != row or not (near or abs(result["loss"] - expected) <= 1e-3 * expected):
        counts.wrong.append(f"target {row}: loss {result['loss']} instead of {expected}")


async def measures(port: int) -> dict[str, float]:
    connection = Connection(port)
    _, body = await connection.ask("GET", "/metrics")
    connection.hang_up()
    lines = (line.rpartition(" ") for line in body.decode().splitlines() if line[:1] != "#")
    return {name: float(value) for name, _, value in lines}


async def latency(port: int, inverter: pyinv.Inverter, targets: Targets, rounds: int) -> dict:
    connection, counts = Connection(port), Counts()
    alone, served = [], []
    for number in range(rounds + 3):
        row = number % len(targets.files)
        start = time.perf_counter()
        inverter.invert(targets.images[row : row + 1], target_ids=[row])
        middle = time.perf_counter()
        status, body = await connection.ask("POST", f"/invert?id={row}", targets.files[row])
        end = time.perf_counter()
        check(counts, targets, row, status, body)
        if number >= 3:  # the first ones load
            alone.append(middle - start)
            served.append(end - middle)
    connection.hang_up()
    ratios = [b / a for a, b in zip(alone, served, strict=True)]
    return {
        "invert_ms": 1e3 * statistics.median(alone),
        "served_ms": 1e3 * statistics.median(served),
        "ratio": statistics.median(ratios),
        "wrong": counts.wrong,
    }


async def throughput(
    port: int, inverter: pyinv.Inverter, targets: Targets, clients: int, rounds: int
) -> dict:
    count = len(targets.files)
    counts = Counts()
    ratios, rates, served_rates = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        await asyncio.to_thread(inverter.invert, targets.images)
        alone = count / (time.perf_counter() - start)
        rows = iter(range(count))

        async def client(rows=rows) -> None:
            connection = Connection(port)
            for row in rows:
                status, body = await connection.ask("POST", f"/invert?id={row}", targets.files[row])
                check(counts, targets, row, status, body)
            connection.hang_up()

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        served = count / (time.perf_counter() - start)
        rates.append(alone)
        served_rates.append(served)
        ratios.append(served / alone)
    return {
        "invert_per_s": statistics.median(rates),
        "served_per_s": statistics.median(served_rates),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "refused": counts.refused,
        "wrong": counts.wrong,
    }


async def soak(port: int, targets: Targets, clients: int, seconds: float) -> dict:
    counts = Counts()
    end = time.monotonic() + seconds
    memory: list[float] = []

    async def client(number: int) -> None:
        chance = random.Random(number)
        connection = Connection(port)
        while time.monotonic() < end:
            row = chance.randrange(len(targets.files))
            request = connection.ask("POST", f"/invert?id={row}", targets.files[row])
            if number % 2 and chance.random() < 0.7:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(request, chance.uniform(0, 0.5))
                connection.hang_up()
                counts.hung_up += 1
                continue
            check(counts, targets, row, *await request)
        connection.hang_up()

    async def watch() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(seconds / 40)
            memory.append((await measures(port))["process_resident_memory_bytes"] / 2**20)

    await asyncio.gather(watch(), *(client(number) for number in range(clients)))
    await asyncio.sleep(2)
    left = await measures(port)
    names = ("pyinv_lanes_active", "pyinv_queue", "pyinv_requests_active", "pyinv_failures_total")
    return {
        "answered": counts.answered,
        "hung_up": counts.hung_up,
        "refused": counts.refused,
        "counted_as_hung_up": left.get('pyinv_requests_total{code="499",endpoint="invert"}', 0),
        "memory_mib": [round(memory[len(memory) // 10], 1), round(memory[-1], 1)],
        "left": {name: left[name] for name in names},
        "wrong": counts.wrong,
    }


async def measure(arguments: argparse.Namespace, port: int) -> dict:
    inverter = pyinv.Inverter(
        arguments.bundle, batch_size=arguments.lanes, threads=arguments.threads
    )
    targets = targets_of(inverter, arguments.targets)
    clients = arguments.clients
    result = {
        "latency": await latency(port, inverter, targets, arguments.rounds * 10),
        "throughput": await throughput(port, inverter, targets, clients, arguments.rounds),
        "soak": await soak(port, targets, clients, arguments.seconds),
    }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", default=str(BUNDLE))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--targets", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0)
    arguments = parser.parse_args()
    command = [*PYINV, "serve", arguments.bundle, "--json", "--port", "0"]
    # Longer than clients of a slow generator wait: a timeout would count as a wrong answer.
    command += ["--batch-size", str(arguments.lanes), "--timeout", "600"]
    if arguments.threads is not None:
        command += ["--threads", str(arguments.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            port = int(json.loads(service.stdout.readline())["url"].rpartition(":")[2])
            time.sleep(2)
            result = asyncio.run(measure(arguments, port))
        finally:
            service.terminate()
    result["exit_code"] = service.returncode
    print(json.dumps(result, indent=1))
    left = sum(result["soak"]["left"].values())
    wrong = sum(len(part["wrong"]) for part in result.values() if isinstance(part, dict))
    return 1 if wrong or left or service.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
