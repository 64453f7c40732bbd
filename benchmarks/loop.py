"""Compare the speed of an inversion step in the engine and in typical PyTorch loops.

    python benchmarks/loop.py            # a table
    python benchmarks/loop.py --json     # one JSON object on standard output
    python benchmarks/loop.py --batches 1 64 --repeats 3 --threads 2 --peers eager channels_last
    python benchmarks/loop.py --device cuda [--runtime torchscript]

A 64x64 DCGAN, `batch` targets, Adam, clipping, mean squared error, no stopping rule. benchmarks/
README.md explains what is compared and why it is fair. Needs `pip install '.[export,cpu]'`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import pyinv
from pyinv import _core, cores, export

PEERS = {
    "cpu": ("eager", "eager_folded", "channels_last", "compile"),
    "cuda": ("eager", "eager_folded", "channels_last", "compile", "graph"),
}
BATCHES = {"cpu": (1, 16, 64, 256), "cuda": (1, 64, 1024, 8192)}
LEARNING_RATE = 0.05
# Pause after each measurement: thread pools spin for some milliseconds after their last work, and
# would take cores from the next contender.
PAUSE_SECONDS = 0.1
SHORT_RUN = 1


class Dcgan(nn.Module):
    """The generator of Radford et al. 2015 at 64x64: latents [B, 100] to images [B, 3, 64, 64]."""

    def __init__(self, latent_size: int = 100, width: int = 64) -> None:
        super().__init__()
        channels = [latent_size, 8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise(channels)):
            stride, padding = (1, 0) if index == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        layers += [nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh()]
        self.latent_size = latent_size
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent.reshape(-1, self.latent_size, 1, 1))


def make_generator(seed: int) -> Dcgan:
    """Return a DCGAN with the paper's initial weights and batch-norm statistics of its images."""
    torch.manual_seed(seed)
    generator = Dcgan()
    for module in generator.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.momentum = None
    with torch.no_grad():
        for _ in range(4):
            generator(torch.rand(64, generator.latent_size) * 2 - 1)
    return generator.eval().requires_grad_(False)


def fold(generator: Dcgan) -> Dcgan:
    """Return the generator with batch norm folded into the weights of the layer before it."""
    folded = copy.deepcopy(generator)
    layers: list[nn.Module] = []
    for layer in folded.layers:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer, transpose=True)
        else:
            layers.append(layer)
    folded.layers = nn.Sequential(*layers)
    return folded.requires_grad_(False)


def flops_per_image(generator: Dcgan) -> int:
    """Return the objective's operations per image: two per multiply-add of the layers as direct
    convolutions, once forward and once for the gradient."""
    side, total = 1, 0
    for layer in generator.layers:
        if isinstance(layer, nn.ConvTranspose2d):
            kernel, stride = layer.kernel_size[0], layer.stride[0]
            total += 2 * side**2 * kernel**2 * layer.in_channels * layer.out_channels
            side = (side - 1) * stride - 2 * layer.padding[0] + kernel
    return 2 * total


# A contender is a function that returns `run(steps)`, which makes that many steps on a batch.
Run = Callable[[int], None]


def torch_run(
    generator: nn.Module,
    targets: Tensor,
    latents: Tensor,
    *,
    compiled: bool = False,
    graph: bool = False,
) -> Run:
    """The usual loop: autograd to the latent, Adam, clip."""
    on_gpu = latents.is_cuda
    latent = latents.clone().requires_grad_(True)
    solver = torch.optim.Adam([latent], lr=LEARNING_RATE, capturable=graph)

    def total_loss(latent: Tensor, targets: Tensor) -> Tensor:
        return ((generator(latent) - targets) ** 2).mean(dim=(1, 2, 3)).sum()

    # On a GPU, launches dominate a small batch. This mode puts them into CUDA graphs.
    mode = "reduce-overhead" if on_gpu else None
    objective = torch.compile(total_loss, dynamic=False, mode=mode) if compiled else total_loss

    def step() -> None:
        solver.zero_grad(set_to_none=True)
        objective(latent, targets).backward()
        solver.step()
        with torch.no_grad():
            latent.clamp_(-1.0, 1.0)

    advance = cuda_graph_of(step) if graph else step

    def run(steps: int) -> None:
        for _ in range(steps):
            advance()
        if on_gpu:
            torch.cuda.synchronize()

    return run


def cuda_graph_of(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step as in PyTorch's documentation, after a warm-up on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def peer_run(name: str, generator: Dcgan, targets: Tensor, latents: Tensor, device: str) -> Run:
    targets, latents = targets.to(device), latents.to(device)
    generator = copy.deepcopy(generator).to(device)
    if name == "eager":
        return torch_run(generator, targets, latents)
    folded = fold(generator)
    if name == "channels_last":
        return torch_run(
            folded.to(memory_format=torch.channels_last),
            targets.to(memory_format=torch.channels_last),
            latents,
        )
    return torch_run(folded, targets, latents, compiled=name == "compile", graph=name == "graph")


def recipe_of(steps: int) -> pyinv.Recipe:
    stage = pyinv.Stage(
        pyinv.Adam(LEARNING_RATE), constraint=pyinv.Clip(-1.0, 1.0), max_steps=steps
    )
    return pyinv.Recipe("benchmark", (stage,))


def engine_run(inverter: pyinv.Inverter, targets: np.ndarray, latents: np.ndarray) -> Run:
    def run(steps: int) -> None:
        inverter.invert(targets, recipe=recipe_of(steps), init=latents)

    return run


def seconds_per_step(run: Run, steps: int) -> float:
    """Subtract a short run from a long one, so that the cost per call does not count."""
    run(SHORT_RUN)
    started = time.perf_counter()
    run(SHORT_RUN)
    middle = time.perf_counter()
    run(SHORT_RUN + steps)
    ended = time.perf_counter()
    time.sleep(PAUSE_SECONDS)
    return ((ended - middle) - (middle - started)) / steps


def steps_for(run: Run, seconds: float) -> int:
    """Return the number of steps that take about this long, at least 3."""
    run(2)
    return max(3, round(seconds / max(seconds_per_step(run, 3), 1e-6)))


def measure_peak(threads: int) -> float:
    """Measure this machine's peak in float32 GFLOP/s."""
    folder = Path(__file__).resolve().parent
    program = folder.parent / "build" / "fma_peak"
    program.parent.mkdir(exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    flags = ["-std=c++20", "-O3", "-ffp-contract=fast", "-pthread"]
    subprocess.run([compiler, *flags, folder / "fma_peak.cpp", "-o", program], check=True)
    done = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True)
    peak = float(done.stdout)
    time.sleep(PAUSE_SECONDS)
    return peak


def outside_objective(
    bundle: Path, targets: np.ndarray, latents: np.ndarray, *, steps: int, threads: int
) -> float:
    """Return the share of a run's time that the engine spends outside the objective, on the CPU."""
    batch = len(targets)
    recipe = recipe_of(steps).fit(pyinv.Uniform(-1.0, 1.0)).describe()
    for stage in recipe["stages"]:
        stage["objective"] = 0
    found = _core.invert(
        objectives=[_core.OnnxObjective(str(bundle / "objective_mse.onnx"), threads=threads)],
        recipe=json.dumps(recipe),
        prior=json.dumps(pyinv.Uniform(-1.0, 1.0).describe()),
        images=targets.reshape(batch, -1),
        initial=latents,
        condition=None,
        target_ids=np.arange(batch, dtype=np.uint64),
        seed=0,
        lanes=batch,
        coupled=False,
        trace_every=0,
        progress=None,
    )
    return 1.0 - float(found["objective_seconds"]) / float(found["total_seconds"])


def measure_batch(
    batch: int,
    *,
    generator: Dcgan,
    bundle: Path,
    device: str,
    runtime: str,
    peers: list[str],
    repeats: int,
    threads: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, object]:
    torch.manual_seed(batch)
    latents = torch.rand(batch, generator.latent_size) * 2 - 1
    with torch.no_grad():
        targets = generator(torch.rand(batch, generator.latent_size) * 2 - 1)
    inverter = pyinv.Inverter(
        bundle, device=device, runtime=runtime, batch_size=batch, threads=threads
    )
    runs = {"pyinv": engine_run(inverter, targets.numpy(), latents.numpy())}
    failed: dict[str, str] = {}
    steps: dict[str, int] = {}
    for name in ["pyinv", *peers]:
        say(f"batch {batch}: warming up {name}")
        try:
            run = runs.get(name) or peer_run(name, generator, targets, latents, device)
            steps[name] = steps_for(run, seconds)
            runs[name] = run
        except Exception as error:  # torch.compile fails in many ways; the others still count
            if name == "pyinv":
                raise
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    rates: dict[str, list[float]] = {name: [] for name in runs}
    peaks: list[float] = []
    order = list(runs)
    for repeat in range(repeats):
        say(f"batch {batch}: round {repeat + 1} of {repeats}")
        if device == "cpu":
            peaks.append(measure_peak(threads))
        # The order changes each round, because a machine slows down as it warms up.
        for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
            rates[name].append(batch / seconds_per_step(runs[name], steps[name]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    # In case the program is stopped before its report.
    say(f"batch {batch}: image-steps/s " + json.dumps(medians))
    peer = max((name for name in medians if name != "pyinv"), key=medians.__getitem__)
    ratios = [own / other for own, other in zip(rates["pyinv"], rates[peer], strict=True)]
    result: dict[str, object] = {
        "batch": batch,
        "peer": peer,
        "ratio_min": min(ratios),
        "ratio_median": statistics.median(ratios),
        "ratio_max": max(ratios),
        "ratio_to_eager": medians["pyinv"] / medians["eager"] if "eager" in medians else None,
        "gflops": medians["pyinv"] * flops_per_image(generator) / 1e9,
        "image_steps_per_second": medians,
        "failed_peers": failed,
    }
    if device == "cpu":
        result["peak_gflops"] = max(peaks)
        result["peak_fraction"] = float(result["gflops"]) / max(peaks)  # type: ignore[arg-type]
        if runtime == "onnx":
            result["outside_objective"] = outside_objective(
                bundle, targets.numpy(), latents.numpy(), steps=steps["pyinv"], threads=threads
            )
    return result


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def print_table(report: dict) -> None:
    print(
        f"{report['processor']}, {report['runtime']}, {report['threads']} threads; "
        f"torch {report['torch']}, onnxruntime {report['onnxruntime']}, pyinv {report['pyinv']}\n"
        f"64x64 DCGAN, {report['gflop_per_image_step']:.3f} GFLOP per image and step; median of "
        f"{report['repeats']} interleaved rounds\n"
    )
    for result in report["results"]:
        print(f"batch {result['batch']}")
        print("                  image-steps/s   ms/step")
        for name, rate in sorted(
            result["image_steps_per_second"].items(), key=lambda item: -item[1]
        ):
            print(f"  {name:<15} {rate:>13.1f} {1e3 * result['batch'] / rate:>9.2f}")
        for name, reason in result["failed_peers"].items():
            print(f"  {name:<15} failed: {reason}")
        line = (
            f"  pyinv over {result['peer']}: {result['ratio_median']:.2f}x "
            f"({result['ratio_min']:.2f} to {result['ratio_max']:.2f})"
        )
        if result["ratio_to_eager"]:
            line += f", over eager {result['ratio_to_eager']:.2f}x"
        line += f"; {result['gflops']:.0f} GFLOP/s"
        if "peak_fraction" in result:
            line += (
                f", {100 * result['peak_fraction']:.0f} % of the measured peak of "
                f"{result['peak_gflops']:.0f}"
            )
        if "outside_objective" in result:
            line += f"; {100 * result['outside_objective']:.2f} % of a step outside the objective"
        print(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=tuple(PEERS), default="cpu")
    parser.add_argument("--runtime", choices=("onnx", "torchscript"), default="onnx")
    parser.add_argument("--batches", type=int, nargs="+", metavar="B")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds [%(default)s]")
    parser.add_argument("--threads", type=int, help="threads of all contenders [all cores]")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help=", ".join(PEERS["cuda"]))
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="length of one measurement [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    device = arguments.device
    batches = arguments.batches or BATCHES[device]
    peers = arguments.peers or PEERS[device]
    if unknown := set(peers) - set(PEERS[device]):
        parser.error(f"no such peer on {device}: {', '.join(unknown)}")
    if min([arguments.repeats, *batches]) < 1:
        parser.error("--batches and --repeats must be 1 or more")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    threads = arguments.threads or cores.usable_cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        say(f"other programs were running just now (load {load:.1f}): expect noise")
    torch.set_num_threads(threads)
    # All contenders compute in float32. By default, PyTorch's convolutions use TF32 on a GPU.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    generator = make_generator(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "dcgan64.bundle"
        say("exporting the generator")
        export.export(
            generator,
            bundle,
            latent_shape=(generator.latent_size,),
            prior=pyinv.Uniform(-1.0, 1.0),
            losses=("mse",),
            normal_equations=False,
            value_range=(-1.0, 1.0),
            runtimes=(arguments.runtime,),
        )
        report = {
            "benchmark": "64x64 DCGAN, Adam, clip, mean squared error",
            "processor": processor() if device == "cpu" else torch.cuda.get_device_name(),
            "runtime": arguments.runtime,
            "cpus": os.cpu_count(),
            "threads": threads,
            "instructions": _core.cpu_isa() if device == "cpu" else None,
            "load_before": load,
            "repeats": arguments.repeats,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "pyinv": pyinv.__version__,
            "gflop_per_image_step": flops_per_image(generator) / 1e9,
            "results": [
                measure_batch(
                    batch,
                    generator=generator,
                    bundle=bundle,
                    device=device,
                    runtime=arguments.runtime,
                    peers=list(peers),
                    repeats=arguments.repeats,
                    threads=threads,
                    seconds=arguments.seconds,
                    say=say,
                )
                for batch in batches
            ],
        }
    if arguments.json:
        print(json.dumps(report))
    else:
        print_table(report)


if __name__ == "__main__":
    main()
