"""Make the n-th call that opens, writes, flushes or renames a file fail, and look at what is left.

``python -m support.faults CASE FOLDER STRIDE``, with ``faults.c`` preloaded, tries every STRIDE-th
call of a case: once for that call alone, and once for all from that call on, as on a full disk. It
prints a line per fault that was not borne well.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

import pyinv
from pyinv.bundle import Bundle
from pyinv.cli import main
from pyinv.demo import BUNDLE, DIGITS

TARGETS = 3
FOREVER = 1 << 30


@dataclass(frozen=True)
class Case:
    """A command that writes into a folder.

    Args:
        arguments: the command; {out} is the folder, {inputs} one with files to read.
        whole: checks what is there, and returns whether the command's outputs are.
        hidden: names that may be left in the folder and start with a dot.
    """

    arguments: str
    whole: Callable[[Path], bool]
    hidden: tuple[str, ...] = ()


def _npz(out: Path) -> bool:
    return (out / "out.npz").exists() and len(pyinv.Inversion.load(out / "out.npz")) == TARGETS


def _pictures(out: Path) -> bool:
    from PIL import Image

    found = list(out.rglob("*.png"))
    for path in found:
        with Image.open(path) as picture:
            picture.load()
    return len(found) == TARGETS


def _job(out: Path) -> bool:
    from pyarrow import parquet

    folder = out / "job"
    rows = sum(parquet.read_table(path).num_rows for path in folder.glob("part-*"))
    if (folder / "job.json").exists():
        json.loads((folder / "job.json").read_text())
    return rows == TARGETS


def _merged(out: Path) -> bool:
    from pyarrow import parquet

    path = out / "all.parquet"
    return path.exists() and parquet.read_table(path).num_rows == TARGETS


def _bundle(out: Path) -> bool:
    return (out / "made.bundle").exists() and bool(Bundle.open(out / "made.bundle").manifest)


def _training(out: Path) -> bool:
    import torch

    for path in out.rglob("*.pt"):
        torch.load(path, weights_only=True)
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    made = out / "run" / "generator.bundle"
    return made.exists() and bool(Bundle.open(made).manifest)


def _report(out: Path) -> bool:
    for path in [*out.glob("report/runs/*.npz"), *out.glob("report/runs/*.npz.part")]:
        with np.load(path) as arrays:
            _ = [arrays[name] for name in arrays]
    page = out / "report" / "report.html"
    return page.exists() and page.read_text().rstrip().endswith("</html>")


def _download(out: Path) -> bool:
    for folder in out.glob("bundles/*"):
        Bundle.open(folder)
    return any(out.glob("bundles/*"))


CASES = {
    "invert": Case(
        f"invert {BUNDLE} {{inputs}}/images.npy -o {{out}}/out.npz --threads 1 --overwrite", _npz
    ),
    "pictures": Case(
        f"generate {BUNDLE} -n {TARGETS} -o {{out}}/pictures/ --threads 1 --overwrite", _pictures
    ),
    "job": Case(
        f"invert {BUNDLE} {{inputs}}/images.npy -o {{out}}/job/ --shard-size 2 --threads 1",
        _job,
        (".lock",),
    ),
    "merge": Case("merge {inputs}/job -o {out}/all.parquet --overwrite", _merged),
    "download": Case("info file://{inputs}/some.bundle", _download),
    "export": Case(
        "export {inputs}/generator.py:make -o {out}/made.bundle --latent-shape 8 --prior normal "
        "--overwrite",
        _bundle,
    ),
    "train": Case(
        "train gan --data {inputs}/digits.npy -o {out}/run --config lipton-32 --channels 1 "
        "--width 4 --batch-size 16 --iterations 2 --threads 1",
        _training,
        (".lock",),
    ),
    "reproduce": Case(
        f"reproduce lipton --generator {BUNDLE} --targets 4 --max-steps 10 -o {{out}}/report "
        "--threads 1",
        _report,
    ),
}

GENERATOR = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))
    return nn.Sequential(*layers).eval()
"""


def write_inputs(folder: Path) -> None:
    """Write what the cases read."""
    (folder / "generator.py").write_text(GENERATOR)
    shutil.copytree(BUNDLE, folder / "some.bundle")
    inverter = pyinv.Inverter(BUNDLE, threads=1)
    np.save(folder / "images.npy", inverter.generate(inverter.sample(TARGETS)))
    with np.load(DIGITS) as file:
        np.save(folder / "digits.npy", np.rint((file["images"][:, 0] + 1) / 2 * 255).astype("u1"))
    with contextlib.suppress(ImportError):  # pyarrow
        pyinv.run_job(inverter, folder / "images.npy", folder / "job", shard_size=2)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int]
    library.faults_calls.restype = ctypes.c_long
    return library


def problems(name: str, folder: Path, stride: int) -> Iterator[str]:
    """Yield what is wrong with a case; prints how many calls it has."""
    case, library = CASES[name], _library()
    out = folder / "out"
    arguments = case.arguments.format(inputs=folder / "inputs", out=out).split()

    def run(first: int, last: int) -> tuple[int, str]:
        library.faults_arm(str(out).encode(), first, last, errno.ENOSPC)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                said = io.StringIO()
                with contextlib.redirect_stderr(said):
                    code = main(arguments)
        finally:
            calls.append(library.faults_calls())
            library.faults_arm(b"", 0, 0, 0)
        return code, said.getvalue()

    def look() -> Iterator[str]:
        try:
            whole.append(case.whole(out))
        except Exception as error:
            yield f"torn: {error!r}"
        for path in out.rglob(".*"):
            if not path.name.startswith(case.hidden or "/"):
                yield f"litter: {path.relative_to(out)}"

    calls: list[int] = []
    whole: list[bool] = []
    number = 1
    while True:
        for last in (number, FOREVER):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            code, said = run(number, last)
            if calls[-1] < number:
                print(f"{name}: {number - 1} calls", flush=True)
                return
            about = f"{name}: call {number}{' and all after it' if last > number else ''}: "
            yield from (about + problem for problem in look())
            line = said.strip().rpartition("\n")[2]
            if code == 0 and not whole[-1]:
                yield f"{about}exit code 0, but not all is written"
            if code and not line.startswith("pyinv: error: "):
                yield f"{about}exit code {code}, said {said!r}"
            elif code and (str(out) not in line or "within pyinv" in line):
                yield f"{about}said {line!r}"
            if code and last == number:
                code, said = run(0, 0)
                yield from (f"{about}next run: {problem}" for problem in look())
                if code or not whole[-1]:
                    yield f"{about}next run: exit code {code}, said {said!r}"
        number += stride


if __name__ == "__main__":
    for problem in problems(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])):
        print(problem, flush=True)
