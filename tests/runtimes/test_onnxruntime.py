"""Finding ONNX Runtime, loading it, and what a graph must be to run in it."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyinv import cli, runtimes
from pyinv.bundle import FileRecord
from pyinv.errors import BundleError, DependencyError, PyinvError
from pyinv.inverter import Inverter
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import Adam

onnx = pytest.importorskip("onnx")
_core = pytest.importorskip("pyinv._core")

LIBRARY = {"win32": "onnxruntime.dll", "darwin": "libonnxruntime.{}.dylib"}.get(
    sys.platform, "libonnxruntime.so.{}"
)


# ---- finding -------------------------------------------------------------------------------------


class Site:
    """A made-up site-packages directory, first on the path."""

    def __init__(self, directory: Path) -> None:
        self.package = directory / "onnxruntime"
        self.directory = directory

    def add_package(self, *versions: str) -> None:
        (self.package / "capi").mkdir(parents=True)
        (self.package / "__init__.py").write_text("raise AssertionError('must not be imported')")
        for version in versions:
            (self.package / "capi" / LIBRARY.format(version)).touch()
        (self.package / "capi" / "libonnxruntime_providers_shared.so").touch()

    def add_distribution(self, name: str, version: str, owns: str = "onnxruntime") -> None:
        directory = self.directory / f"{name.replace('-', '_')}-{version}.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (directory / "RECORD").write_text(f"{owns}/__init__.py,,\n{owns}/capi/x.py,,\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.delenv(runtimes.OVERRIDE, raising=False)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Site(tmp_path)


def message_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_installed_wheel_is_found_and_not_imported(site: Site) -> None:
    site.add_package("1.20.1")
    site.add_distribution("onnxruntime-gpu", "1.20.1")
    site.add_distribution("onnxruntime-extensions", "0.13.0", owns="onnxruntime_extensions")
    found = runtimes.find_onnxruntime()
    assert found.path == (site.package / "capi" / LIBRARY.format("1.20.1")).resolve()
    assert (found.distribution, found.version) == ("onnxruntime-gpu", "1.20.1")
    assert "onnxruntime" not in sys.modules


@pytest.mark.skipif(sys.platform == "win32", reason="the DLL's name has no version there")
@pytest.mark.parametrize(
    ("installed", "chosen"), [("1.9.0", "1.9.0"), (None, "1.20.1")], ids=["recorded", "newest"]
)
def test_of_two_libraries_the_recorded_or_else_the_newest_is_taken(
    site: Site, installed: str | None, chosen: str
) -> None:
    site.add_package("1.9.0", "1.20.1")
    if installed:
        site.add_distribution("onnxruntime", installed)
    assert runtimes.find_onnxruntime().path.name == LIBRARY.format(chosen)


def test_the_environment_variable_comes_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add_package("1.20.1")
    other = site.directory / "mine.so"
    other.touch()
    monkeypatch.setenv(runtimes.OVERRIDE, str(other))
    assert runtimes.find_onnxruntime() == runtimes.OnnxRuntimeInfo(other.resolve(), None, None)
    other.unlink()
    with pytest.raises(DependencyError) as error:
        runtimes.find_onnxruntime()
    assert runtimes.OVERRIDE in message_of(error)
    assert str(other) in str(error.value)


def test_no_onnxruntime_names_the_command_that_installs_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(site.directory)])
    monkeypatch.setattr(sys, "meta_path", [m for m in sys.meta_path if not _is_editable(m)])
    with pytest.raises(PyinvError) as error:
        runtimes.find_onnxruntime()
    assert "pip install onnxruntime" in message_of(error)


def _is_editable(finder: object) -> bool:
    return "Editable" in type(finder).__name__ or "ScikitBuild" in type(finder).__name__


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("onnxruntime", "onnxruntime-gpu"), "onnxruntime-gpu"),
        (("onnxruntime-directml", "onnxruntime"), "onnxruntime"),
    ],
)
def test_two_distributions_in_one_directory_are_refused(
    site: Site, names: tuple[str, ...], kept: str
) -> None:
    site.add_package("1.20.1")
    for name in names:
        site.add_distribution(name, "1.20.1")
    with pytest.raises(DependencyError) as error:
        runtimes.find_onnxruntime()
    one, other = sorted(names)
    assert f"pip uninstall -y {one} {other} && pip install {kept}" in message_of(error)


def test_a_wheel_without_the_library_is_too_old(site: Site) -> None:
    site.add_package()
    site.add_distribution("onnxruntime", "1.17.0")
    with pytest.raises(DependencyError) as error:
        runtimes.find_onnxruntime()
    assert "onnxruntime 1.17.0" in message_of(error)
    assert "pip install --upgrade onnxruntime" in str(error.value)


def test_cuda_of_pip_is_loaded_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = "bin" if sys.platform == "win32" else "lib"
    name = "{}64_1.dll" if sys.platform == "win32" else "lib{}.so.1"
    for package, library in [
        ("cublas", "cublas"),
        ("cublas", "cublasLt"),
        ("cublas", "nvblas"),
        ("cuda_runtime", "cudart"),
        ("cu13", "cudart"),
        ("cudnn", "cudnn"),
    ]:
        path = tmp_path / "nvidia" / package / folder / name.format(library)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    opened = []

    class Library(ctypes.CDLL):
        def __init__(self, name: str, *arguments: object, **more: object) -> None:
            opened.append(Path(name).relative_to(tmp_path / "nvidia").parts)
            super().__init__(name, *arguments, **more)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    runtimes.preload_cuda.__wrapped__()
    expected = [("cu13", "cudart"), ("cuda_runtime", "cudart"), ("cublas", "cublasLt")]
    expected += [("cublas", "cublas"), ("cudnn", "cudnn")]
    assert opened == [(package, folder, name.format(library)) for package, library in expected]


def test_without_cuda_of_pip_there_is_nothing_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(ctypes, "CDLL", None)
    runtimes.preload_cuda.__wrapped__()


# ---- loading -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded() -> runtimes.OnnxRuntimeInfo:
    return runtimes.load_onnxruntime()


def test_loading_again_gives_the_same_library(loaded: runtimes.OnnxRuntimeInfo) -> None:
    assert _core.load_onnxruntime(str(loaded.path)) == loaded.version
    assert runtimes.load_onnxruntime() is loaded
    assert str(loaded.version) in str(loaded)


def test_a_second_library_is_refused(loaded: runtimes.OnnxRuntimeInfo, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="already uses") as error:
        _core.load_onnxruntime(str(tmp_path / "another.so"))
    assert str(loaded.path) in message_of(error)


def load_in_new_process(path: Path) -> str:
    """The error of loading `path` into a process that has loaded none."""
    program = (
        "import sys; from pyinv import _core\n"
        "try: _core.load_onnxruntime(sys.argv[1])\n"
        "except RuntimeError as error: print(error)"
    )
    run = [sys.executable, "-c", program, str(path)]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    assert result.stdout.count("\n") == 1, result
    return result.stdout


@pytest.fixture
def compile_library(tmp_path: Path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or sys.platform == "win32":
        pytest.skip("needs a C compiler")

    def compile_source(source: str) -> Path:
        path = tmp_path / "library.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)],
            input=source,
            text=True,
            check=True,
        )
        return path

    return compile_source


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    assert "no such file" in load_in_new_process(tmp_path / "missing.so")
    text = tmp_path / "text.so"
    text.write_text("hello")
    assert "cannot be loaded as a shared library" in load_in_new_process(text)


def test_a_library_that_is_no_onnxruntime_is_refused(compile_library) -> None:
    path = compile_library("int something(void) { return 1; }")
    assert "not an ONNX Runtime" in load_in_new_process(path)


def test_an_old_onnxruntime_is_refused_with_both_versions(compile_library) -> None:
    path = compile_library(
        "static const void* get_api(unsigned version) { return 0; }\n"
        'static const char* version(void) { return "1.4.0"; }\n'
        "struct { const void* (*a)(unsigned); const char* (*b)(void); } base = {get_api, version};"
        "const void* OrtGetApiBase(void) { return &base; }\n"
    )
    message = load_in_new_process(path)
    assert "this is ONNX Runtime 1.4.0" in message
    assert "1.18 or newer" in message


def test_using_a_graph_before_loading_says_what_to_call() -> None:
    program = (
        "import sys; from pyinv import _core\n"
        "try: _core.OnnxFunction(sys.argv[1], threads=1)\n"
        "except RuntimeError as error: print(error)"
    )
    run = [sys.executable, "-c", program, __file__]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "pyinv.runtimes.load_onnxruntime()" in result.stdout


# ---- TorchScript ---------------------------------------------------------------------------------


@pytest.fixture
def torch_found(monkeypatch: pytest.MonkeyPatch):
    """Pretend that pyinv was built with one torch and another one, or none, is installed."""

    def pretend(built_with: str | None, installed: str | None) -> None:
        torch = types.ModuleType("torch")
        torch.__spec__ = importlib.util.spec_from_loader("torch", None)
        torch.__version__ = installed
        torch.version = types.SimpleNamespace(cuda="13.0" if "+cu" in str(installed) else None)
        if installed is None:
            torch = None  # which makes Python say that it is not there
            found = importlib.util.find_spec
            monkeypatch.setattr(
                importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
            )
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setitem(sys.modules, "pyinv._torch", None)  # to load it is an error
        build = None
        if built_with is not None:
            build = types.ModuleType("pyinv._torch_build")
            build.VERSION = built_with
        monkeypatch.setitem(sys.modules, "pyinv._torch_build", build)

    return pretend


load_torchscript_again = runtimes.load_torchscript.__wrapped__


@pytest.mark.parametrize(
    ("built_with", "installed", "problem", "mend"),
    [
        (None, None, "PyTorch, which is not installed", "'pip install torch && pip install "),
        (None, "2.13.0+cpu", "pyinv was built without torch", "'pip install scikit-build-core"),
        ("2.13.0", None, "PyTorch, which is not installed", "'pip install torch==2.13.0'"),
        (
            "2.13.0",
            "2.12.1+cpu",
            "was built with torch 2.13.0 and runs with that alone, but torch 2.12.1+cpu is",
            "--no-build-isolation --force-reinstall --no-deps",
        ),
        ("2.13.0", "2.13.0+cpu", "runtime cannot be loaded", "--force-reinstall"),
    ],
)
def test_torchscript_that_cannot_run_names_the_command_that_mends_it(
    torch_found, built_with: str | None, installed: str | None, problem: str, mend: str
) -> None:
    torch_found(built_with, installed)
    with pytest.raises(DependencyError) as error:
        load_torchscript_again()
    message = message_of(error)
    assert problem in message
    assert mend in message
    assert message.endswith("'")


@pytest.mark.parametrize(("flavour", "cuda"), [("+cpu", None), ("+cu130", "13.0"), ("", None)])
def test_any_flavour_of_the_torch_of_the_build_will_do(
    torch_found, monkeypatch: pytest.MonkeyPatch, flavour: str, cuda: str | None
) -> None:
    torch_found("2.13.0", f"2.13.0{flavour}")
    monkeypatch.setitem(sys.modules, "pyinv._torch", types.ModuleType("pyinv._torch"))
    loaded = load_torchscript_again()
    assert loaded == runtimes.TorchScriptInfo(f"2.13.0{flavour}", cuda)
    assert loaded.has_cuda == (cuda is not None)
    assert str(loaded) == f"torch 2.13.0{flavour}"


@pytest.mark.parametrize("kept", [True, False])
def test_the_command_builds_from_where_pyinv_came_from(
    torch_found, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bool
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    if kept:
        (folder / "pyproject.toml").touch()
    recorded = f'{{"url": "{folder.as_uri()}", "dir_info": {{}}}}'
    distribution = types.SimpleNamespace(read_text=lambda name: recorded)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    torch_found(None, "2.13.0")
    with pytest.raises(DependencyError) as error:
        load_torchscript_again()
    assert (str(folder) if kept else "in a checkout of pyinv: 'pip install ") in message_of(error)


def test_info_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["onnxruntime"].startswith(str(runtimes.load_onnxruntime()))
    torchscript = "not usable: "
    with contextlib.suppress(DependencyError):
        torchscript = str(runtimes.load_torchscript())
    assert found["torchscript"].startswith(torchscript)
    assert found["cuda"].startswith("in this build") == _core.built_with_cuda()
    assert found["devices"].count("cuda:") == _core.cuda_device_count()


# ---- graphs --------------------------------------------------------------------------------------

FLOAT = onnx.TensorProto.FLOAT
DOUBLE = onnx.TensorProto.DOUBLE
STRING = onnx.TensorProto.STRING
INT64 = onnx.TensorProto.INT64


def write_graph(path: Path, inputs, outputs, nodes, initializers=()) -> Path:
    helper = onnx.helper
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "graph", *values, list(initializers))
    # An IR version that the oldest ONNX Runtime reads.
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        path,
        save_as_external_data=bool(initializers),
        location="weights.bin",
        size_threshold=0,
    )
    return path


INPUTS = {"latent": (FLOAT, ["B", 2]), "image": (FLOAT, ["B", 1, 1, 2])}
OUTPUTS = {"loss": (FLOAT, ["B"]), "gradient": (FLOAT, ["B", 2])}


def write_objective(path: Path, inputs=INPUTS, outputs=OUTPUTS, gram_shape=(0, 2, 2)) -> Path:
    """gradient = first input - second input, loss = sum of its squares, gram = 0."""
    node = onnx.helper.make_node
    latent, image, *_ = inputs
    nodes = [
        node("Constant", [], ["axis"], value_ints=[1]),
        node("Constant", [], ["rows"], value_ints=[0, -1]),
        node("Reshape", [image, "rows"], ["target"]),
        node("Sub", [latent, "target"], ["gradient"]),
        node("ReduceSumSquare", ["gradient", "axis"], ["loss"], keepdims=0),
    ]
    if "gram" in outputs:
        nodes += [
            node("Sub", ["target", "target"], ["nothing"]),
            node("Constant", [], ["counts"], value_ints=[1, int(np.prod(gram_shape[1:])) // 2]),
            node("Tile", ["nothing", "counts"], ["zeros"]),
            node("Constant", [], ["shape"], value_ints=list(gram_shape)),
            node("Reshape", ["zeros", "shape"], ["gram"]),
        ]
    return write_graph(path, inputs, outputs, nodes)


def test_an_objective_tells_its_sizes(loaded: runtimes.OnnxRuntimeInfo, tmp_path: Path) -> None:
    objective = _core.OnnxObjective(str(write_objective(tmp_path / "o.onnx")), threads=1)
    assert (objective.latent_size, objective.image_size, objective.condition_size) == (2, 2, 0)
    assert not objective.has_gram


@pytest.mark.parametrize("sizes", [[2, 2], ["d", "d"]], ids=str)
def test_normal_equations_have_a_gram(
    loaded: runtimes.OnnxRuntimeInfo, tmp_path: Path, sizes: list[Any]
) -> None:
    outputs = {**OUTPUTS, "gram": (FLOAT, ["B", *sizes])}
    path = write_objective(tmp_path / "o.onnx", outputs=outputs)
    assert _core.OnnxObjective(str(path), threads=1).has_gram


DOUBLES = {
    side: {name: (DOUBLE, shape) for name, (_, shape) in names.items()}
    for side, names in (("inputs", INPUTS), ("outputs", OUTPUTS))
}
FOREIGN = {
    "a missing input": (
        {"inputs": {"z": INPUTS["latent"], "image": INPUTS["image"]}},
        "input 'latent' (float32 [any, d]) is missing",
    ),
    "an input too many": (
        {"inputs": {**INPUTS, "noise": (FLOAT, ["B", 2])}},
        "input 'noise' is unknown",
    ),
    "an output too many": (
        {"outputs": {**OUTPUTS, "target": (FLOAT, ["B", 2])}},
        "output 'target' is unknown",
    ),
    "another type": (DOUBLES, "input 'latent' should be float32 [any, d], is float64 [any, 2]"),
    "another rank": (
        {"inputs": {**INPUTS, "image": (FLOAT, ["B"])}},
        "input 'image' should be float32 [any, ...], is float32 [any]",
    ),
    "a fixed batch": (
        {
            "inputs": {"latent": (FLOAT, [4, 2]), "image": (FLOAT, [4, 1, 1, 2])},
            "outputs": {"loss": (FLOAT, [4]), "gradient": (FLOAT, [4, 2])},
        },
        "input 'latent' should be float32 [any, d], is float32 [4, 2]",
    ),
    "a gram of another rank": (
        {"outputs": {**OUTPUTS, "gram": (FLOAT, ["B", 4])}, "gram_shape": (0, 4)},
        "output 'gram' should be float32 [any, d, d], is float32 [any, 4]",
    ),
    "a gram of another width": (
        {"outputs": {**OUTPUTS, "gram": (FLOAT, ["B", 2, 4])}, "gram_shape": (0, 2, 4)},
        "output 'gram' should be as wide and high as 'latent', 2, is float32 [any, 2, 4]",
    ),
    "an open image size": (
        {"inputs": {**INPUTS, "image": (FLOAT, ["B", 1, 1, "W"])}},
        "input 'image' should be dynamic in its first dimension only, is float32 [any, 1, 1, any]",
    ),
}


@pytest.mark.parametrize(("change", "problem"), FOREIGN.values(), ids=FOREIGN)
def test_a_graph_that_is_no_objective_is_refused(
    loaded: runtimes.OnnxRuntimeInfo, tmp_path: Path, change, problem: str
) -> None:
    path = write_objective(tmp_path / "foreign.onnx", **change)
    with pytest.raises(RuntimeError) as error:
        _core.OnnxObjective(str(path), threads=1)
    assert problem in message_of(error)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("make", [_core.OnnxFunction, _core.OnnxObjective])
def test_files_that_are_no_graphs_are_named(
    loaded: runtimes.OnnxRuntimeInfo, tmp_path: Path, make
) -> None:
    with pytest.raises(RuntimeError, match="no such file"):
        make(str(tmp_path / "missing.onnx"), threads=1)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph" * 9)
    with pytest.raises(RuntimeError, match=r"broken\.onnx: not an ONNX file, or damaged") as error:
        make(str(broken), threads=1)
    message_of(error)
    with pytest.raises(ValueError, match="threads should be at least 1, is 0"):
        make(str(write_objective(tmp_path / "o.onnx")), threads=0)


@pytest.fixture
def function(loaded: runtimes.OnnxRuntimeInfo, tmp_path: Path):
    """y = x * weights + k, and the shape of x; the weights lie in another file."""
    node = onnx.helper.make_node
    weights = onnx.numpy_helper.from_array(np.array([1, 2, 3], np.float32), "weights")
    path = write_graph(
        tmp_path / "function.onnx",
        {"x": (FLOAT, ["N", 3]), "k": (INT64, [])},
        {"y": (FLOAT, ["N", 3]), "shape": (INT64, [2])},
        [
            node("Cast", ["k"], ["offset"], to=FLOAT),
            node("Mul", ["x", "weights"], ["product"]),
            node("Add", ["product", "offset"], ["y"]),
            node("Shape", ["x"], ["shape"]),
        ],
        [weights],
    )
    assert (tmp_path / "weights.bin").is_file()
    return _core.OnnxFunction(str(path), threads=2)


@pytest.mark.parametrize("rows", [1, 4, 0])
def test_a_function_computes_what_its_graph_says(function, rows: int) -> None:
    x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
    result = function.run({"x": x, "k": np.array(5, np.int64)})
    assert sorted(result) == ["shape", "y"]
    assert result["y"].dtype == np.float32
    np.testing.assert_array_equal(result["y"], x * [1, 2, 3] + 5)
    np.testing.assert_array_equal(result["shape"], [rows, 3])


def test_results_outlive_the_function(loaded: runtimes.OnnxRuntimeInfo, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    path = write_graph(tmp_path / "f.onnx", {"x": (FLOAT, ["N"])}, {"y": (FLOAT, ["N"])}, [node])
    function = _core.OnnxFunction(str(path), threads=1)
    kept = [function.run({"x": np.full(1000, i, np.float32)})["y"] for i in range(4)]
    del function
    for i, array in enumerate(kept):
        np.testing.assert_array_equal(array, np.full(1000, -i, np.float32))


X = np.zeros((1, 3), np.float32)
K = np.array(5, np.int64)
WRONG_INPUTS = {
    "missing": ({"x": X}, "input 'k' is missing, expected int64"),
    "unknown": (
        {"x": X, "k": K, "q": K},
        "there is no input 'q', only x, k",
    ),
    "type": (
        {"x": X.astype(np.int64), "k": K},
        "input 'x' should be float32 [any, 3], is int64 [1, 3]",
    ),
    "shape": (
        {"x": X.reshape(3, 1), "k": K},
        "input 'x' should be float32 [any, 3], is float32 [3, 1]",
    ),
}


@pytest.mark.parametrize(("inputs", "problem"), WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_inputs_that_do_not_fit_are_named(function, inputs, problem: str) -> None:
    with pytest.raises(ValueError) as error:
        function.run(inputs)
    assert problem in message_of(error)


def test_only_tensors_of_numbers_can_be_passed(
    loaded: runtimes.OnnxRuntimeInfo, tmp_path: Path
) -> None:
    node = onnx.helper.make_node("Identity", ["s"], ["t"])
    path = write_graph(tmp_path / "f.onnx", {"s": (STRING, [1])}, {"t": (STRING, [1])}, [node])
    with pytest.raises(RuntimeError, match="'s' is not a tensor of numbers"):
        _core.OnnxFunction(str(path), threads=1)


# -- What a bundle's graphs read ---------------------------------------------------------------


def record(file: Path) -> None:
    """Make the manifest have the file as it is now."""
    manifest = file.parent / "manifest.json"
    described = json.loads(manifest.read_text())
    described["files"][file.name] = dataclasses.asdict(FileRecord.of(file))
    manifest.write_text(json.dumps(described))


def moved(file: Path, location: str) -> None:
    """Make the graph's weights be in the file at ``location``, and record the graph again."""
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    file.write_bytes(model.SerializeToString())
    record(file)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../other.bin", "reads a file that is not in its folder"),
        ("/etc/passwd", "reads a file that is not in its folder"),
        ("*/_ORT_MEM_ADDR_/*", "reads a file that is not in its folder"),
        ("other.bin", "reads a file that the manifest does not list"),
        ("a\x1bb", "the manifest does not list: .*u001b"),
    ],
)
def test_a_graph_reads_only_what_the_manifest_lists(
    changed_bundle: Path, location: str, message: str
) -> None:
    content = (changed_bundle / "weights.bin").read_bytes()
    (changed_bundle / "other.bin").write_bytes(content)
    (changed_bundle.parent / "other.bin").write_bytes(content)
    moved(changed_bundle / "forward.onnx", location)
    inverter = Inverter(changed_bundle, threads=1)
    with pytest.raises(BundleError, match=message) as error:
        inverter.generate(np.zeros((1, 6), np.float32))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("file", ["weights.bin", "forward.onnx"])
def test_a_file_changed_before_it_is_loaded_is_refused(changed_bundle: Path, file: str) -> None:
    inverter = Inverter(changed_bundle, threads=1)
    content = bytearray((changed_bundle / file).read_bytes())
    content[-1] ^= 1
    (changed_bundle / file).write_bytes(content)
    with pytest.raises(BundleError, match=f"{file}: its SHA-256 is not the manifest's"):
        inverter.generate(np.zeros((1, 6), np.float32))


@pytest.mark.slow
def test_weights_that_are_too_large_for_memory_are_mapped(changed_bundle: Path) -> None:
    latents = np.ones((1, 6), np.float32)
    images = Inverter(changed_bundle, threads=1).generate(latents)
    weights = changed_bundle / "weights.bin"
    os.truncate(weights, 2**31 + 1)  # a sparse file
    record(weights)
    inverter = Inverter(changed_bundle, threads=1)
    before = peak_of_memory()
    np.testing.assert_array_equal(inverter.generate(latents), images)
    assert peak_of_memory() - before < 2**29

    inverter = Inverter(changed_bundle, threads=1)
    os.truncate(weights, 2**31 + 2)
    with pytest.raises(BundleError, match=r"weights\.bin: its SHA-256 is not the manifest's"):
        inverter.generate(latents)


def peak_of_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=20))


@pytest.mark.parametrize("change", ["cut", "overwrite"])
def test_a_file_changed_after_it_was_loaded_changes_nothing(
    changed_bundle: Path, change: str
) -> None:
    """Weights that were mapped would end the process, or change results."""
    inverter = Inverter(changed_bundle, threads=1)
    latents = np.ones((1, 6), np.float32)
    images = inverter.generate(latents)
    before = inverter.invert(images, recipe=QUICK, seed=1)
    with (changed_bundle / "weights.bin").open("r+b") as weights:
        if change == "cut":
            weights.truncate(0)
        else:
            weights.write(bytes(4800))
    np.testing.assert_array_equal(inverter.generate(latents), images)
    after = inverter.invert(images, recipe=QUICK, seed=1)
    np.testing.assert_array_equal(after.latents, before.latents)
