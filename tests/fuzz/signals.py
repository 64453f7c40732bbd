"""Send signals to commands at random moments, and look at what they leave.

    python tests/fuzz/signals.py [MOMENTS]      200 by default

A moment is a command and what it is sent: SIGINT, SIGINT twice, SIGTERM, SIGHUP or SIGKILL. Then:
outputs are whole or absent; the exit code is that of the signal, and the message is true; nothing
that was finished is lost, but by SIGKILL; and the next run removes what a killed one has left.

Most commands run in forks of this process, which has imported everything, so that moments are of
the work. Every seventh is a new process, from its start to its end.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import pyinv
from pyinv.bundle import Bundle
from pyinv.cli import main
from pyinv.demo import BUNDLE, DIGITS

GENERATOR = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))
    return nn.Sequential(*layers).eval()
"""
TARGETS = 400
ITERATIONS = 20
SENT = {
    "INT": [signal.SIGINT],
    "INT twice": [signal.SIGINT, signal.SIGINT],
    "TERM": [signal.SIGTERM],
    "HUP": [signal.SIGHUP],
    "KILL": [signal.SIGKILL],
}
COMMANDS = {
    "invert": f"{BUNDLE} {{inputs}}/targets.npy -o out.npz --threads 1",
    "export": "{inputs}/generator.py:make -o out.bundle --latent-shape 8 --prior normal",
    "train": f"gan --data {{inputs}}/digits.npy -o out --config lipton-32 --iterations {ITERATIONS}"
    " --channels 1 --width 4 --batch-size 16 --threads 1",
    "reproduce": f"lipton --generator {BUNDLE} --targets 4 --max-steps 60 -o out --threads 1",
}


@dataclass(frozen=True)
class Ended:
    """How a command ended, and the processor time that it took."""

    code: int
    said: str
    seconds: float


def run(
    command: str, folder: Path, sent: list[signal.Signals], after: float, *, new: bool = False
) -> Ended:
    """Run a command in ``folder``, and send it signals after so many seconds of processor time."""
    arguments = COMMANDS[command].format(inputs=inputs()).split()
    process = os.fork()
    if not process:
        _become([command, *arguments], folder, new)
    while sent and _spent(process) < after:
        time.sleep(0.002)
    for number in sent:
        os.kill(process, number)  # it is a zombie if it has ended
        time.sleep(0.005)
    _, status, used = os.wait4(process, 0)
    text = (folder / "said").read_text()
    (folder / "said").unlink()
    return Ended(os.waitstatus_to_exitcode(status), text, used.ru_utime + used.ru_stime)


def _spent(process: int) -> float:
    """Return the processor time of a process in seconds; infinite once it has ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        return math.inf
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _become(arguments: list[str], folder: Path, new: bool) -> NoReturn:
    """Run a command in this process, and end it."""
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if new:
            os.execv(sys.executable, [sys.executable, "-m", "pyinv", *arguments])
        code = main(arguments)
    except KeyboardInterrupt:
        code = -signal.SIGINT  # as the interpreter ends, before or after the command
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


@cache
def inputs() -> Path:
    """Write what the commands read, once."""
    keep.append(tempfile.TemporaryDirectory())
    folder = Path(keep[-1].name)
    (folder / "generator.py").write_text(GENERATOR)
    with np.load(DIGITS) as file:
        np.save(folder / "digits.npy", np.rint((file["images"][:, 0] + 1) / 2 * 255).astype("u1"))
    # Not in this process: an Inverter is not for forks.
    made = f"{BUNDLE} -n {TARGETS} -o {folder}/targets.npy --threads 1 --quiet"
    subprocess.run([sys.executable, "-m", "pyinv", "generate", *made.split()], check=True)
    return folder


keep: list[Any] = []


@cache
def whole(command: str) -> float:
    """Return the seconds of processor time that a command takes."""
    if command in ("export", "train"):
        import pyinv.export  # before the fork
        import pyinv.training.gan
    if command == "reproduce":
        import pyinv.papers  # noqa: F401
    with tempfile.TemporaryDirectory() as name:
        ended = run(command, Path(name), [], 0)
        assert ended.code == 0, ended.said
        found = state(command, Path(name))
        assert (found["complete"], found["litter"]) == (True, []), found
        return ended.seconds


def state(command: str, folder: Path) -> dict[str, Any]:
    """Return what a command has left in its folder; raises if anything is torn."""
    litter = [
        str(path.relative_to(folder))
        for path in folder.rglob(".*")
        if path.name != ".lock" and path.parent.name != "__pycache__"
    ]
    found: dict[str, Any] = {"litter": litter, "complete": False, "done": None}
    if command == "invert":
        if (folder / "out.npz").exists():
            inversion = pyinv.Inversion.load(folder / "out.npz")
            found["done"] = int((inversion.status != pyinv.Status.CANCELLED).sum())
            found["complete"] = found["done"] == TARGETS
        return found
    out = folder / ("out.bundle" if command == "export" else "out")
    for manifest in folder.rglob("manifest.json"):
        if not any(part.startswith(".") for part in manifest.relative_to(folder).parts):
            Bundle.open(manifest.parent)  # checks every file's hash
            found["complete"] = command in ("export", "train")
    if command == "export":
        assert found["complete"] or not out.exists(), sorted(out.rglob("*"))
    if command == "train":
        import torch

        found["done"] = 0
        for path in out.rglob("*.pt"):
            saved = torch.load(path, weights_only=True)
            if path.name == "checkpoint.pt":
                found["done"] = saved["iteration"]
        for path in out.glob("*.json"):
            json.loads(path.read_text())
    if command == "reproduce":
        runs = list(out.glob("runs/*.npz"))
        for path in [*runs, *out.glob("runs/*.npz.part")]:
            with np.load(path) as arrays:
                _ = [arrays[name] for name in arrays]
        found["done"] = len(runs)
        if (out / "numbers.json").exists():
            json.loads((out / "numbers.json").read_text())
        if (out / "report.html").exists():
            assert (out / "report.html").read_text().rstrip().endswith("</html>")
            found["complete"] = True
    return found


def check(number: int) -> str:
    """Check one moment, and return a line about it; raises AssertionError."""
    chance = random.Random(number)
    command = list(COMMANDS)[number % len(COMMANDS)]
    name = list(SENT)[number // len(COMMANDS) % len(SENT)]
    new = number % 7 == 0
    after = chance.uniform(0, 1.02) * whole(command)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        ended = run(command, folder, SENT[name], after, new=new)
        line = f"{number}: {command}, {name} after {after:.2f} s: exit code {ended.code}"
        found = state(command, folder)
        line += f", {found['done'] if found['done'] is not None else found['complete']}"
        _check_end(command, SENT[name][0], ended, found)
        if name == "KILL":
            again = run(command, folder, [], 0)
            found = state(command, folder)
            assert again.code == 0, again.said
            assert (found["complete"], found["litter"]) == (True, []), found
    return line


def _check_end(command: str, sent: signal.Signals, ended: Ended, found: dict[str, Any]) -> None:
    about = f"exit code {ended.code}; {found}; said: {ended.said}"
    last = ended.said.strip().rpartition("\n")[2]
    if sent == signal.SIGKILL:
        assert ended.code in (0, -sent), about
        return
    assert not found["litter"], about
    if ended.code == -sent:
        # Before the command's handlers are there, or after they are gone.
        assert found["complete"] or not ended.said or "in <module>" in ended.said, about
        return
    assert ended.code in (0, 128 + sent), about
    assert "Traceback" not in ended.said, about
    if ended.code == 0:
        assert found["complete"], about
    if "nothing was written" in ended.said:
        assert not found["complete"], about
        assert not found["done"], about
    if command == "invert" and "inverting" in ended.said:
        assert found["done"] is not None, about
        if ended.code:
            claimed = re.search(r"(\d+) of 400 targets are done", ended.said)
            assert found["done"] == (int(claimed[1]) if claimed else TARGETS), about
    if command == "train":
        claimed = re.search(rf"the checkpoint holds (\d+) of {ITERATIONS}", ended.said)
        if claimed:
            assert found["done"] == int(claimed[1]), about
        reached = [int(one) for one in re.findall(r"^iteration (\d+) of", ended.said, re.M)]
        assert found["done"] >= max(reached, default=0), about
    if command == "reproduce":
        claimed = re.search(r"(\d+) of 13 runs are done", last)
        if claimed:
            assert found["done"] == int(claimed[1]), about
        begun = [int(one) for one in re.findall(r"^run (\d+) of 13", ended.said, re.M)]
        assert found["done"] >= max(begun, default=1) - 1, about


def check_all(moments: int) -> int:
    """Check so many moments; return how many failed."""
    failed = 0
    for moment in range(moments):
        try:
            line = check(moment)
        except AssertionError as error:
            failed += 1
            line = f"{moment}: FAILED: {error}"
        print(line, flush=True)
    print(f"{moments} moments, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(check_all(int(sys.argv[1]) if len(sys.argv) > 1 else 200) > 0)
