"""A TorchScript file from a stranger computes; it reads and writes no file and runs nothing else.

Each file here does what it should not if torch alone loads and runs it, which the test makes sure
of first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pyinv import runtimes
from pyinv.cli import main
from pyinv.errors import DependencyError, ExportError
from pyinv.inverter import Inverter

try:
    runtimes.load_torchscript()
except DependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

import torch

from pyinv import _core, _torch
from pyinv.export import export
from pyinv.export.capture.torchscript_reader import load_torchscript
from support.torchscript_files import SIZES, bundle, edited, rewrite, write

# A generator and its objective, with the same extra lines in both.
GOOD = """
def EXTRA_METHODS(self, latent: Tensor) -> Tensor:
    return latent

def forward(self, latent: Tensor) -> Tensor:
    x = torch.tanh(latent * 0.5)
    EXTRA
    return x.reshape([-1, 1, 1, 2])

def objective(
    self, latent: Tensor, image: Tensor, out: Optional[Tuple[Tensor, Tensor]] = None
) -> Tuple[Tensor, Tensor]:
    x = latent
    EXTRA
    difference = x - image.reshape([-1, 2])
    if out is not None:
        torch.sum(difference * difference, [1], out=out[0])
        torch.mul(difference, 2.0, out=out[1])
        return out
    return (difference * difference).sum([1]), difference * 2.0
"""
WRITES = 'torch.from_file("FILE", True, 2)'
METHOD = f"def other(self, latent: Tensor) -> Tensor:\n    return latent + {WRITES}\n"


def good(extra: str = "pass", methods: str = "") -> str:
    source = GOOD.replace("EXTRA_METHODS", "unused").replace("EXTRA", extra)
    return methods + source


@dataclass(frozen=True)
class Hostile:
    """How to write a file that would write FILE, and what is said of it."""

    source: str
    problem: str
    edit: Callable[[Path, str], object] = lambda path, file: None


def replaced(old: str, new: str) -> Callable[[Path, str], object]:
    return lambda path, file: edited(path, old, new.replace("FILE", file))


def setstate(path: Path, file: str) -> None:
    """Give an object with a state to the module, as torch.jit.script would."""

    class WithState(torch.nn.Module):
        def __init__(self, file: str) -> None:
            super().__init__()
            self.file = file

        @torch.jit.export
        def __getstate__(self):
            return self.file, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.file = state[0]
            self.training = bool(torch.from_file(state[0], True, 2).sum() == 1)

        def forward(self, latent):
            return latent.reshape([-1, 1, 1, 2])

    torch.jit.script(WithState(file)).save(str(path))


FROM_FILE = "it uses aten::from_file, which pyinv does not run from a file"
HOSTILE = {
    "run": Hostile(good(f"x = x + {WRITES}"), FROM_FILE),
    "run in a branch": Hostile(good(f"if x.size(0) > 0:\n        x = x + {WRITES}"), FROM_FILE),
    "run in a loop": Hostile(good(f"for i in range(x.dim()):\n        x = x + {WRITES}"), FROM_FILE),
    "run in a method that it calls": Hostile(good("x = self.other(x)", METHOD), FROM_FILE),
    "run by the name of an attribute": Hostile(
        good("x = x + torch.zeros([2])"),
        FROM_FILE,
        replaced("torch.zeros([2])", 'getattr(torch, "from_file")("FILE", True, 2)'),
    ),
    "run by an escaped name": Hostile(
        good("x = x + torch.zeros([2])"),
        "its code uses getattr with more than a plain name",
        replaced("torch.zeros([2])", 'getattr(torch, "from\\137file")("FILE", True, 2)'),
    ),
    "run by a name in parts": Hostile(
        good("x = x + torch.zeros([2])"),
        "its code uses getattr with more than a plain name",
        replaced("torch.zeros([2])", 'getattr(torch, ("from_" "file"))("FILE", True, 2)'),
    ),
    "run as a text's method": Hostile(
        good("x = x + torch.zeros([2])"),
        FROM_FILE,
        replaced("torch.zeros([2])", '"FILE".from_file(True, 2)'),
    ),
    "saved": Hostile(good('torch.save(x, "FILE")'), "it uses aten::save"),
    "loaded, in a default argument": Hostile(
        good(),
        FROM_FILE,
        replaced("latent: Tensor) -> Tensor", f"latent: Tensor, y: Tensor={WRITES}) -> Tensor"),
    ),
    "loaded, in a __setstate__": Hostile(
        good(), "it has a __setstate__, which would run while the file is read", setstate
    ),
    "loaded, in a default argument after a comment": Hostile(
        good(),
        "a comment in its code has quotes",
        replaced(
            "  def forward(",
            f'  # type: """\n  # """\n  def odd(self, y: Tensor={WRITES}) -> Tensor:\n'
            "    return y\n  def forward(",
        ),
    ),
}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "written"


def hostile(path: Path, target: Path, case: Hostile) -> Path:
    write(path, case.source.replace("FILE", str(target)))
    case.edit(path, str(target))
    return path


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
def test_nothing_of_a_hostile_file_runs(tmp_path, target, case):
    path = hostile(tmp_path / "functions.pt", target, case)
    with contextlib.suppress(RuntimeError):  # the comment's is no program
        torch.jit.load(str(path))(torch.zeros(1, 2))
        assert target.is_file()
    target.unlink(missing_ok=True)

    for opened in (_torch.TorchObjective, _torch.TorchFunction):
        with pytest.raises(RuntimeError) as refused:
            opened(str(path), "objective", threads=1)
        assert str(refused.value).startswith(f"{path}: {case.problem}")
        assert str(refused.value).endswith("; export it again with pyinv.export")
        assert "\n" not in str(refused.value)
    with pytest.raises(ExportError) as refused_export:
        load_torchscript(path)
    message = str(refused_export.value)
    assert message.startswith(f"{path} cannot be loaded: {case.problem}")
    assert "\n" not in message
    assert not target.exists()
