"""Finds and loads what runs a bundle's functions: ONNX Runtime, or torch's TorchScript.

The engine opens the shared library in ONNX Runtime's wheel itself, so Python's ``onnxruntime``
module is never imported. Should the program import it too, that is a second runtime with threads of
its own. TorchScript runs in the torch of this process, through the extension ``_torch``, which is
built where torch is installed and tied to that version.
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

# What ONNX Runtime's part for NVIDIA GPUs is linked to, each after what it needs itself.
_CUDA_LIBRARIES = (
    "cudart",
    "nvrtc",
    "cublasLt",
    "cublas",
    "cufft",
    "curand",
    "cudnn",
    "cudnn_*",  # the parts that it opens by name when it needs them
)

_OLDEST_WHEEL = "1.19"  # the first whose wheel carries the shared library


@dataclass(frozen=True)
class OnnxRuntimeInfo:
    """The ONNX Runtime in use.

    Attributes:
        path: The shared library.
        distribution: The pip distribution it comes from; None if ``PYINV_ONNXRUNTIME`` names it or
            it was not installed by pip.
        version: The distribution's version, or, once loaded, what the library says of itself; None
            if not known yet.
    """

    path: Path
    distribution: str | None
    version: str | None

    @property
    def has_cuda(self) -> bool:
        """Whether the library's part for NVIDIA GPUs lies beside it."""
        return any(self.path.parent.glob("*onnxruntime_providers_cuda.*"))

    def __str__(self) -> str:
        return f"{self.version or 'version unknown'} ({self.distribution or self.path})"


@dataclass(frozen=True)
class TorchScriptInfo:
    """The torch in use.

    Attributes:
        version: torch's, such as "2.13.0+cpu".
        cuda: The version of CUDA that it was built with, or None.
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
    """Loads the runtime "onnx" or "torchscript", once per process, and says which it is.

    Raises:
        DependencyError: It is missing or does not fit; the message has the command that fixes it.
    """
    return load_onnxruntime() if runtime == "onnx" else load_torchscript()


def find_onnxruntime() -> OnnxRuntimeInfo:
    """Finds the ONNX Runtime library without loading it.

    ``PYINV_ONNXRUNTIME``, the path of a shared library, comes before the installed wheel.

    Raises:
        DependencyError: There is none, two distributions overwrote each other, or the wheel is too
            old to carry the library.
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
        kept = "onnxruntime-gpu" if "onnxruntime-gpu" in names else names[0]
        raise DependencyError(
            f"{' and '.join(names)} are installed together and overwrote each other's files in "
            f"{package}; keep one: 'pip uninstall -y {' '.join(names)} && pip install {kept}'"
        )
    name, version = next(iter(distributions.items()), (None, None))
    libraries = _libraries_in(package / "capi")
    if not libraries:
        raise DependencyError(
            f"{name or 'onnxruntime'} {version or ''} in {package} carries no shared library, "
            f"{_OLDEST_WHEEL} or newer does; 'pip install --upgrade {name or 'onnxruntime'}'"
        )
    # An upgrade that went wrong can leave the library of another version behind.
    path = next((path for path in libraries if version and version in path.name), libraries[-1])
    return OnnxRuntimeInfo(path=path.resolve(), distribution=name, version=version)


@cache
def load_onnxruntime() -> OnnxRuntimeInfo:
    """Loads ONNX Runtime into the engine, once per process, and says which it is.

    Raises:
        DependencyError: As ``find_onnxruntime``, or the library cannot be loaded or is too old.
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
    """Imports torch and the extension that runs TorchScript in it, once per process.

    Raises:
        DependencyError: There is no torch, no such extension, or it was built with another torch.
    """
    built_with = _torch_of_the_build()
    if importlib.util.find_spec("torch") is None:
        raise DependencyError(
            f"TorchScript needs PyTorch, which is not installed for {sys.executable}; "
            + (f"'pip install torch=={built_with}'" if built_with else _mend("pip install torch"))
        )
    if built_with is None:
        raise DependencyError(
            f"pyinv was built without torch and has no TorchScript runtime; {_mend()}"
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
        # What follows the + names a flavour, such as its CUDA; C++ code sees no difference.
        if str(torch.__version__).partition("+")[0] != built_with:
            raise DependencyError(
                f"pyinv's TorchScript runtime was built with torch {built_with} and runs with that "
                f"alone, but torch {torch.__version__} is installed; {_mend()}"
            )
        try:
            importlib.import_module("pyinv._torch")
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise DependencyError(
                f"pyinv's TorchScript runtime cannot be loaded ({reason}); {_mend()}"
            ) from None
    return TorchScriptInfo(version=str(torch.__version__), cuda=torch.version.cuda)


@cache
def preload_cuda() -> None:
    """Loads the CUDA libraries that pip installed, once per process, for ONNX Runtime to find.

    ``onnxruntime-gpu[cuda,cudnn]`` brings them in folders where the dynamic linker does not look.
    One that is loaded already is found by its name, in whatever scope. What is missing or does not
    load is passed over: it may be elsewhere, and if not, ONNX Runtime's own error names it.
    """
    folders = _nvidia_folders()
    for name in _CUDA_LIBRARIES:
        for path in (path for folder in folders for path in _cuda_libraries_in(folder, name)):
            with contextlib.suppress(OSError):
                # Not RTLD_GLOBAL: there may be two versions of CUDA, the other one torch's.
                ctypes.CDLL(str(path))


def _nvidia_folders() -> list[Path]:
    """Folders of the CUDA wheels: nvidia/cublas/lib, … (CUDA 12); nvidia/cu13/lib, and cudnn's."""
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


def _torch_of_the_build() -> str | None:
    """Returns the version of torch that the extension was built with; None if it was not built."""
    try:
        return str(importlib.import_module("pyinv._torch_build").VERSION)
    except ImportError:
        return None


def _mend(first: str = "") -> str:
    """Returns the command, after ``first``, that builds pyinv again with the torch installed."""
    command = "pip install --no-build-isolation --force-reinstall --no-deps "
    folder = _installed_from()
    if folder is not None:
        command += shlex.quote(str(folder))
    else:  # neither a wheel that was built elsewhere nor one that pip kept
        command += "--no-cache-dir --no-binary pyinv pyinv"
    tools = "pip install scikit-build-core pybind11 cmake ninja"
    return f"'{' && '.join(step for step in (first, tools, command) if step)}'"


def _installed_from() -> Path | None:
    """Returns the folder that pip installed pyinv from; None if it was not a folder."""
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
            f"ONNX Runtime is not installed for {sys.executable}; 'pip install onnxruntime-gpu' "
            f"(with CUDA) or 'pip install onnxruntime' (without)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _distributions_in(package: Path) -> dict[str, str]:
    """Name and version of every distribution that claims to have installed this package."""
    found = {}
    for distribution in importlib.metadata.distributions(path=[str(package.parent)]):
        name = distribution.metadata["Name"].lower().replace("_", "-")
        # Not by a list of names: there are onnxruntime-directml, -openvino, ort-nightly and others,
        # while onnxruntime-genai and -extensions have packages of their own.
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
