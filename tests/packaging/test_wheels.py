"""What wheels and the source distribution hold, and that a wheel works where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pyinv
from support.paths import REPOSITORY

VERSION = pyinv.__version__

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or not importlib.util.find_spec("scikit_build_core"),
        reason="needs scikit-build-core, on Linux",
    ),
]

VARIANTS = {
    "plain": {"PYINV_CUDA": "OFF", "PYINV_TORCH": "OFF"},
    "torch": {"PYINV_CUDA": "OFF", "PYINV_TORCH": "ON"},
    "torch and cuda": {"PYINV_CUDA": "ON", "PYINV_TORCH": "ON", "CMAKE_CUDA_ARCHITECTURES": "90"},
    # One architecture will do for a list of files.
    "cuda": {"PYINV_CUDA": "ON", "PYINV_TORCH": "OFF", "CMAKE_CUDA_ARCHITECTURES": "90"},
}


def run(*command: object, **options) -> str:
    launcher = shutil.which("ccache")
    found = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
    if launcher:
        found |= {f"CMAKE_{language}_COMPILER_LAUNCHER": launcher for language in ("CXX", "CUDA")}
    done = subprocess.run(
        [str(part) for part in command], env=found, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


# One for all variants, which share most of what is compiled, and kept for the next run.
BUILD = REPOSITORY / "build" / "wheels"


@pytest.fixture(scope="module", params=VARIANTS)
def wheel(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The variant's name and its wheel."""
    variant = request.param
    if "torch" in variant and not importlib.util.find_spec("torch"):
        pytest.skip("needs torch")
    if "cuda" in variant and not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    folder = tmp_path_factory.mktemp(variant.replace(" ", "-"))
    settings = [f"-Ccmake.define.{name}={value}" for name, value in VARIANTS[variant].items()]
    build = f"-Cbuild-dir={BUILD}/{{wheel_tag}}"
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps")
    run(*pip, build, *settings, "-w", folder / "wheels", REPOSITORY)
    (path,) = (folder / "wheels").glob("*.whl")
    return variant, path


def sources(folder: str, under: str) -> list[str]:
    """The files of a source folder, as patterns of where a wheel has them."""
    paths = [path for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    kept = [path for path in paths if "__pycache__" not in path.parts and path.suffix != ".so"]
    return [
        re.escape(f"{under}/{path.relative_to(REPOSITORY / folder).as_posix()}") for path in kept
    ]


def expected_in(variant: str) -> list[str]:
    """Patterns; each file of the wheel matches one, and each of them matches one file."""
    module = r"\.cpython-\d+[\w-]*\.so"
    headers = sources("csrc/include/pyinv", "pyinv/include/pyinv")
    if "torch" not in variant:
        headers = [header for header in headers if "torchscript" not in header]
    info = rf"pyinv-{re.escape(VERSION)}\.dist-info"
    patterns = [
        *sources("pyinv", "pyinv"),
        *sources("export", "pyinv/export"),
        *headers,
        rf"pyinv/_core{module}",
        r"pyinv/lib/libpyinv\.so\.\d+\.\d+",
        *(
            rf"pyinv/lib/cmake/pyinv/pyinv{part}\.cmake"
            for part in ("Config", "ConfigVersion", "Targets", "Targets-release")
        ),
        *(rf"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", r"entry_points\.txt")),
        rf"{info}/licenses/LICENSE",
    ]
    if "torch" in variant:
        patterns += [
            rf"pyinv/_torch{module}",
            r"pyinv/_torch_build\.py",
            r"pyinv/lib/libpyinv_torch\.so",
            r"pyinv/lib/cmake/pyinv/pyinvTorchTargets\.cmake",
            r"pyinv/lib/cmake/pyinv/pyinvTorchTargets-release\.cmake",
        ]
    return patterns


def test_a_wheel_holds_what_it_should(wheel) -> None:
    variant, path = wheel
    with zipfile.ZipFile(path) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
        contents = {name: archive.read(name) for name in files if ".so" in name or "cmake" in name}
    surplus = set(files)
    for pattern in expected_in(variant):
        matches = {name for name in files if re.fullmatch(pattern, name)}
        assert len(matches) == 1, f"{pattern}: {sorted(matches)}"
        surplus -= matches
    assert not surplus
    # It works wherever it is put: no path of this machine is in it.
    for name, content in contents.items():
        assert str(REPOSITORY).encode() not in content, f"{name} holds {REPOSITORY}"


def test_a_wheel_works_where_it_is_installed(wheel, tmp_path: Path) -> None:
    variant, path = wheel
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", path)
    # Its dependencies are those that these tests run with; the fresh pyinv comes before theirs.
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))

    def ask(expression: str) -> str:
        program = f"import pyinv; from pyinv import _core; print({expression})"
        return run(python, "-c", program, cwd=tmp_path).strip()

    assert ask("_core.__file__").startswith(str(site))
    assert ask("_core.__version__") == VERSION
    assert ask("_core.built_with_cuda()") == str("cuda" in variant)
    assert (Path(ask("pyinv.cmake_dir()")) / "pyinvConfig.cmake").is_file()
    info = json.loads(run(tmp_path / "venv" / "bin" / "pyinv", "info", "--json", cwd=tmp_path))
    assert info["pyinv"] == VERSION
    assert "not usable" not in info["onnxruntime"]
    assert info["torchscript"].startswith("torch ") == ("torch" in variant), info["torchscript"]
    assert info["cuda"].startswith("not in this build") == ("cuda" not in variant), info["cuda"]
    assert ("cuda" in str(info["devices"])) == (ask("_core.cuda_device_count()") != "0")


def test_the_source_distribution_holds_what_a_build_needs(tmp_path: Path) -> None:
    program = (
        "import os, sys; from scikit_build_core.build import build_sdist; "
        "os.chdir(sys.argv[1]); build_sdist(sys.argv[2])"
    )
    run(sys.executable, "-c", program, REPOSITORY, tmp_path)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "-C", REPOSITORY, "ls-files") if (REPOSITORY / ".git").exists() else ""
    wanted = [name for name in tracked.splitlines() if not name.startswith(".ci/")]
    for folder in ("csrc", "cmake", "pyinv", "export"):
        wanted += [path for path in sources(folder, folder) if "\\" not in path]
    missing = [name for name in wanted if name not in files]
    assert not missing
    assert not [name for name in files if name.endswith(".so") or "__pycache__" in name]
    assert not [name for name in files if name.startswith(("build/", ".venv/", "shared/"))]
