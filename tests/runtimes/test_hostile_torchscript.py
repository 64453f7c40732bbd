"""A TorchScript file from a stranger computes; it reads and writes no file and runs nothing else.

Each file here does what it should not if torch alone loads and runs it, which the test makes sure
of first.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pyinv import runtimes
from pyinv.cli import main
from pyinv.errors import BundleError, DependencyError, ExportError
from pyinv.inverter import Inverter

try:
    runtimes.load_torchscript()
except DependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

import torch

from pyinv import _core, _torch
from pyinv.export import export
from pyinv.export.capture.torchscript_reader import load_torchscript
from pyinv.priors import Uniform
from support.torchscript_files import SIZES, bundle, edited, functions, rewrite, write

WRITES = 'torch.from_file("FILE", True, 2)'
METHOD = f"def other(self, latent: Tensor) -> Tensor:\n    return latent + {WRITES}\n"


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
    "run": Hostile(functions(f"x = x + {WRITES}"), FROM_FILE),
    "run in a branch": Hostile(
        functions(f"if x.size(0) > 0:\n        x = x + {WRITES}"), FROM_FILE
    ),
    "run in a loop": Hostile(
        functions(f"for i in range(x.dim()):\n        x = x + {WRITES}"), FROM_FILE
    ),
    "run in a method that it calls": Hostile(functions("x = self.other(x)", METHOD), FROM_FILE),
    "run by the name of an attribute": Hostile(
        functions("x = x + torch.zeros([2])"),
        FROM_FILE,
        replaced("torch.zeros([2])", 'getattr(torch, "from_file")("FILE", True, 2)'),
    ),
    "run by an escaped name": Hostile(
        functions("x = x + torch.zeros([2])"),
        "its code uses getattr with more than a plain name",
        replaced("torch.zeros([2])", 'getattr(torch, "from\\137file")("FILE", True, 2)'),
    ),
    "run by a name in parts": Hostile(
        functions("x = x + torch.zeros([2])"),
        "its code uses getattr with more than a plain name",
        replaced("torch.zeros([2])", 'getattr(torch, ("from_" "file"))("FILE", True, 2)'),
    ),
    "run as a text's method": Hostile(
        functions("x = x + torch.zeros([2])"),
        FROM_FILE,
        replaced("torch.zeros([2])", '"FILE".from_file(True, 2)'),
    ),
    "saved": Hostile(functions('torch.save(x, "FILE")'), "it uses aten::save"),
    "loaded, in a default argument": Hostile(
        functions(),
        FROM_FILE,
        replaced("latent: Tensor) -> Tensor", f"latent: Tensor, y: Tensor={WRITES}) -> Tensor"),
    ),
    "loaded, in a __setstate__": Hostile(
        functions(), "it has a __setstate__, which would run while the file is read", setstate
    ),
    "loaded, in a default argument after a comment": Hostile(
        functions(),
        "its code has a comment",
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


def test_every_way_to_open_a_bundle_refuses_it(tmp_path, target, capsys):
    case = HOSTILE["run in a method that it calls"]
    path = bundle(hostile(tmp_path / "functions.pt", target, case))
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((2, 1, 1, 2), np.float32))
    with pytest.raises(BundleError, match="it uses aten::from_file"):
        Inverter(path).invert(np.load(images))
    for command in (
        ["invert", str(path), str(images), "-o", str(tmp_path / "found.npz")],
        ["generate", str(path), "-n", "1", "-o", str(tmp_path / "made.npz")],
        [
            *("export", str(path / "functions.pt"), "-o", str(tmp_path / "b")),
            *("--latent-shape", "2", "--prior", "normal"),
        ],
    ):
        assert main(command) == 1, command
        *progress, message = capsys.readouterr().err.splitlines()
        assert message.startswith(f"pyinv: error: {path / 'functions.pt'}")
        assert "it uses aten::from_file" in message
        assert len(progress) <= 1  # "inverting 2 images"
    assert not target.exists()


# ---- while it is read ----------------------------------------------------------------------------


def test_a_module_that_is_loaded_already_is_checked_by_its_graph(tmp_path, target):
    case = HOSTILE["run"]
    module = torch.jit.load(str(hostile(tmp_path / "f.pt", target, case)))
    with pytest.raises(ExportError, match="uses aten::from_file, which cannot be exported"):
        export(module, tmp_path / "b", latent_shape=2, prior=Uniform())
    assert not target.exists()


def refused(path: Path) -> str:
    """What both readers say of a file, without what to do about it."""
    with pytest.raises(RuntimeError) as error:
        _torch.TorchFunction(str(path), "objective", threads=1)
    with pytest.raises(ExportError) as export_error:
        load_torchscript(path)
    said = str(error.value).removeprefix(f"{path}: ").partition(";")[0]
    assert str(export_error.value).startswith(f"{path} cannot be loaded: {said}")
    return said


def test_objects_of_classes_in_cpp_are_refused(tmp_path):
    path = write(tmp_path / "f.pt", functions())

    def edit(name: str, content: bytes) -> bytes:
        if name != "data.pkl":
            return content
        object_ = b"c__torch__.torch.classes.quantized\nLinearPackedParamsBase\n)\x81Nb"
        return content.replace(b"\x88", object_, 1)

    assert refused(rewrite(path, edit)) == "it has objects of torch.classes"


def test_other_libraries_operators_are_refused(tmp_path):
    path = write(tmp_path / "f.pt", functions("x = torch.ops._test.leaky_relu(x, 0.1)"))
    assert refused(path).startswith("it uses _test::leaky_relu")


WIDE = {**SIZES, "weight": torch.ones(2)}


@pytest.mark.parametrize(
    ("count", "problem"),
    [
        (b"J\x00\xe1\xf5\x05", "it has a tensor that reaches beyond its memory"),
        (b"J\xff\xff\xff\xff", "it has a pickle that torch does not write"),
    ],
    ids=["more than the record has", "a negative number"],
)
def test_tensors_keep_to_their_memory(tmp_path, count, problem):
    path = write(tmp_path / "f.pt", functions("x = x + self.weight"), WIDE)

    def edit(name: str, content: bytes) -> bytes:
        if name != "data.pkl":
            return content
        changed, changes = re.subn(rb"(cpuq.)K\x02", lambda found: found[1] + count, content)
        assert changes == 1
        return changed

    assert refused(rewrite(path, edit)) == problem


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("(" * 5000 + "latent" + ")" * 5000, "its code is nested too deeply"),
        ("latent" + ".t()" * 30_000, "an expression in its code is too long"),
        ("latent" + " + latent" * 30_000, "an expression in its code is too long"),
        ("-" * 30_000 + "latent", "an expression in its code is too long"),
        ("latent # comment", "its code has a comment"),
        ("latent + \\\n latent", "its code has a backslash"),
        ("latent)", "a bracket in its code has no beginning"),
        ('"' + "a", "a string in its code has no end"),
        ("ops", "its code uses ops without an operator"),
        ("getattr", "its code uses getattr without a call"),
        ("__torch__.torch.classes._nnapi.Compilation()", "it uses objects of torch.classes"),
    ],
)
def test_source_that_torch_would_not_write(tmp_path, expression, problem):
    path = write(tmp_path / "f.pt", functions())
    edited(path, "return latent", f"a = {expression}\n    return latent")
    assert refused(path) == problem


# ---- what a file may do --------------------------------------------------------------------------


def test_what_a_source_names():
    """Not those in strings and of arguments; those of attributes, which are no operators."""
    source = b'x = torch.eye(self.weight_0, "from_file \\"", wait=1)\nops.prim.NumToTensor(x == 1)'
    unlisted = _core.torchscript_unlisted(source + b"\nops.mylib.run(getattr(x, 'save'))\n")
    assert set(unlisted) >= {"aten::save", "mylib::run", "aten::weight_0"}
    assert not set(unlisted) & {"aten::from_file", "aten::wait", "aten::eye", "prim::NumToTensor"}


@pytest.mark.parametrize(
    ("operator", "allowed"),
    [
        ("aten::add", True),
        ("aten::add_", True),
        ("aten::convolution", True),
        ("aten::_fft_r2c", True),
        ("prim::If", True),
        ("aten::from_file", False),
        ("aten::save", False),
        ("aten::set_", False),
        ("aten::_reshape_alias", False),
        ("aten::manual_seed", False),
        ("prim::PythonOp", False),
        ("prim::rpc_async", False),
        ("mylib::add", False),
        ("add", False),
    ],
)
def test_what_is_listed(operator, allowed):
    assert _core.torchscript_allows(operator) is allowed


def test_an_operator_of_another_library_is_not_exported_to_torchscript(tmp_path):
    """What the runtime would refuse is refused at once."""

    @torch.library.custom_op("pyinv_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @twice.register_fake
    def _(x):
        return torch.empty_like(x)

    twice.register_autograd(lambda context, gradient: gradient * 2)

    class Odd(torch.nn.Module):
        def forward(self, latent):
            return twice(latent).reshape(-1, 1, 1, 2)

    with pytest.raises(ExportError) as error:
        export(Odd(), tmp_path / "b", latent_shape=2, prior=Uniform(), runtimes=("torchscript",))
    assert "uses pyinv_tests::twice, which the TorchScript" in str(error.value)
