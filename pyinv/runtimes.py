"""Find and load the runtimes: ONNX Runtime and torch's TorchScript.

The engine opens the shared library from ONNX Runtime's wheel directly and never imports Python's
``onnxruntime`` module. A program that imports that module as well has a second runtime with its own
threads. TorchScript runs in this process's torch, through the extension ``_torch``, which is built
only if torch is installed and works only with that version.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import sys
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pyinv.errors import DependencyError

__all__ = [
    "OnnxRuntimeInfo",
    "TorchScriptInfo",
    "find_onnxruntime",
    "load",
    "load_onnxruntime",
    "load_torchscript",
    "preload_cuda",
]

OVERRIDE = "PYINV_ONNXRUNTIME"

# The libraries that ONNX Runtime's CUDA provider links to, each after its own dependencies.
_CUDA_LIBRARIES = (
    "cudart",
    "nvrtc",
    "cublasLt",
    "cublas",
    "cufft",
    "curand",
    "cudnn",
    "cudnn_*",  # parts that cudnn opens by name on demand
)

_INSTALL_TORCH = "pip install torch"
_OLDEST_WHEEL = "1.19"  # the first whose wheel contains the shared library


@dataclass(frozen=True)
class OnnxRuntimeInfo:
    """The ONNX Runtime in use.

    Attributes:
        path: The shared library.
        distribution: The pip distribution it comes from; None if ``PYINV_ONNXRUNTIME`` names it or
            it was not installed by pip.
        version: The version that the library reports once loaded, until then the distribution's;
            None if not known yet.
    """

    path: Path
    distribution: str | None
    version: str | None

    @property
    def has_cuda(self) -> bool:
        """Whether the CUDA provider is in the same directory."""
        return any(self.path.parent.glob("*onnxruntime_providers_cuda.*"))

    def __str__(self) -> str:
        return f"{self.version or 'version unknown'} ({self.distribution or self.path})"


@dataclass(frozen=True)
class TorchScriptInfo:
    """The torch in use.

    Attributes:
        version: torch's, such as "2.13.0+cpu".
        cuda: The version of CUDA that torch was built with, or None.
    """

    version: str
    cuda: str | None

    @property
    def has_cuda(self) -> bool:
        """Whether this torch can use NVIDIA GPUs."""
        return self.cuda is not None

    def __str__(self) -> str:
        return f"torch {self.version}"


def load(runtime: str) -> OnnxRuntimeInfo | TorchScriptInfo:
    """Load the runtime "onnx" or "torchscript", once per process.

    Raises:
        DependencyError: It is missing or incompatible; the message includes the command that fixes
            it.
    """
    return load_onnxruntime() if runtime == "onnx" else load_torchscript()


def find_onnxruntime() -> OnnxRuntimeInfo:
    """Find the ONNX Runtime library without loading it.

    ``PYINV_ONNXRUNTIME``, the path of a shared library, takes precedence over the installed wheel.

    Raises:
        DependencyError: No library was found, two distributions overwrote each other, or the wheel
            is too old to contain the library.
    """
    named = os.environ.get(OVERRIDE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise DependencyError(
                f"{OVERRIDE} should be the path of an ONNX Runtime shared library, "
                f"there is no file {path}; correct or unset it"
            )
        return OnnxRuntimeInfo(path=path.resolve(), distribution=None, version=None)

    package = _package_directory()
    distributions = _distributions_in(package)
    if len(distributions) > 1:
        names = sorted(distributions)
        choice = "onnxruntime-gpu" if "onnxruntime-gpu" in names else names[0]
        raise DependencyError(
            f"{' and '.join(names)} are installed together and overwrote each other's files in "
            f"{package}; keep one: 'pip uninstall -y {' '.join(names)} && pip install {choice}'"
        )
    name, version = next(iter(distributions.items()), (None, None))
    libraries = _libraries_in(package / "capi")
    if not libraries:
        raise DependencyError(
            f"{name or 'onnxruntime'} {version or ''} in {package} contains no shared library, "
            f"{_OLDEST_WHEEL} or newer does; 'pip install --upgrade {name or 'onnxruntime'}'"
        )
    # An upgrade that went wrong can leave the library of another version behind.
    path = next((path for path in libraries if version and version in path.name), libraries[-1])
    return OnnxRuntimeInfo(path=path.resolve(), distribution=name, version=version)


@cache
def load_onnxruntime() -> OnnxRuntimeInfo:
    """Load ONNX Runtime into the engine, once per process.

    Raises:
        DependencyError: As for ``find_onnxruntime``, or the library cannot be loaded or is too old.
    """
    from pyinv import _core

    found = find_onnxruntime()
    try:
        version = _core.load_onnxruntime(str(found.path))
    except RuntimeError as error:
        raise DependencyError(str(error)) from None
    return replace(found, version=version)


@cache
def load_torchscript() -> TorchScriptInfo:
    """Import torch and pyinv's TorchScript extension, once per process.

    Raises:
        DependencyError: torch or the extension is missing, or the extension was built with another
            version of torch.
    """
    built_with = _build_torch_version()
    if importlib.util.find_spec("torch") is None:
        raise DependencyError(
            f"TorchScript needs PyTorch, which is not installed for {sys.executable}; "
            + (f"'pip install torch=={built_with}'" if built_with else _rebuild(_INSTALL_TORCH))
        )
    if built_with is None:
        raise DependencyError(
            f"pyinv was built without torch and has no TorchScript runtime; {_rebuild()}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torch
        except (ImportError, OSError) as error:
            reason = " ".join(str(error).split())
            raise DependencyError(
                f"TorchScript needs PyTorch, which cannot be imported ({reason}); "
                "'pip install --force-reinstall torch'"
            ) from None
        # The part after the + is a build variant, such as the CUDA version, with the same C++ ABI.
        if str(torch.__version__).partition("+")[0] != built_with:
            raise DependencyError(
                f"pyinv's TorchScript runtime was built with torch {built_with} and runs with that "
                f"alone, but torch {torch.__version__} is installed; {_rebuild()}"
            )
        try:
            importlib.import_module("pyinv._torch")
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise DependencyError(
                f"pyinv's TorchScript runtime cannot be loaded ({reason}); {_rebuild()}"
            ) from None
    return TorchScriptInfo(version=str(torch.__version__), cuda=torch.version.cuda)


@cache
def preload_cuda() -> None:
    """Load the CUDA libraries that pip installed, once per process, for ONNX Runtime to find.

    ``onnxruntime-gpu[cuda,cudnn]`` installs them in directories that the dynamic linker does not
    search. Once loaded, a library is found by its name in any scope. Libraries that are missing or
    fail to load are skipped: they may be elsewhere, and if not, ONNX Runtime's own error names
    them.
    """
    folders = _nvidia_folders()
    for name in _CUDA_LIBRARIES:
        for path in (path for folder in folders for path in _cuda_libraries_in(folder, name)):
            with contextlib.suppress(OSError):
                # Not RTLD_GLOBAL: torch may have loaded another version of CUDA.
                ctypes.CDLL(str(path))


def _nvidia_folders() -> list[Path]:
    """Return the CUDA wheels' directories: nvidia/cublas/lib, … (CUDA 12); nvidia/cu13/lib."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    part = "bin" if sys.platform == "win32" else "lib"
    packages = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    return [folder for package in packages for folder in sorted(package.glob(f"*/{part}"))]


def _cuda_libraries_in(folder: Path, name: str) -> list[Path]:
    pattern = f"{name}64_*.dll" if sys.platform == "win32" else f"lib{name}.so*"
    return sorted(folder.glob(pattern))


def _build_torch_version() -> str | None:
    """Return the version of torch that the extension was built with; None if it was not built."""
    try:
        return str(importlib.import_module("pyinv._torch_build").VERSION)
    except ImportError:
        return None


def _rebuild(first: str = "") -> str:
    """Return ``first`` and the command that rebuilds pyinv with the installed torch."""
    command = "pip install --no-build-isolation --force-reinstall --no-deps "
    folder = _installed_from()
    command += "." if folder is None else shlex.quote(str(folder))
    tools = "pip install scikit-build-core pybind11 cmake ninja"
    steps = f"'{' && '.join(step for step in (first, tools, command) if step)}'"
    return steps if folder is not None else f"in a checkout of pyinv: {steps}"


def _installed_from() -> Path | None:
    """Return the directory that pip installed pyinv from; None if it was not a directory."""
    try:
        recorded = importlib.metadata.distribution("pyinv").read_text("direct_url.json")
        url = urlsplit(json.loads(recorded or "{}").get("url", ""))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    folder = Path(url2pathname(url.path))
    return folder if url.scheme == "file" and (folder / "pyproject.toml").is_file() else None


def _package_directory() -> Path:
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            f"ONNX Runtime is not installed for {sys.executable}; 'pip install onnxruntime' (for "
            "CPUs) or 'pip install onnxruntime-gpu' (for NVIDIA GPUs too)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _distributions_in(package: Path) -> dict[str, str]:
    """Return the name and version of every distribution that lists this package as its own."""
    found = {}
    for distribution in importlib.metadata.distributions(path=[str(package.parent)]):
        name = distribution.metadata["Name"].lower().replace("_", "-")
        # A fixed list of names would miss onnxruntime-directml, -openvino, ort-nightly and others.
        # onnxruntime-genai and -extensions match by name, but have packages of their own.
        if "onnxruntime" not in name and not name.startswith("ort-"):
            continue
        if any(file.as_posix() == "onnxruntime/__init__.py" for file in distribution.files or ()):
            found[name] = distribution.version
    return found


def _libraries_in(directory: Path) -> list[Path]:
    if sys.platform == "win32":
        pattern = "onnxruntime.dll"
    elif sys.platform == "darwin":
        pattern = "libonnxruntime.*dylib"
    else:
        pattern = "libonnxruntime.so*"
    return sorted(directory.glob(pattern), key=_version_key)


def _version_key(path: Path) -> list[int]:
    return [int(part) for part in path.name.split(".") if part.isdigit()]
