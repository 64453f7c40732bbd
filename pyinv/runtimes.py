"""Finds the ONNX Runtime that pip installed and loads it into the engine.

The engine opens the wheel's shared library itself, so Python's ``onnxruntime`` module is never
imported. Should the program import it too, that is a second runtime with threads of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pyinv.errors import DependencyError

__all__ = ["OnnxRuntimeInfo", "find_onnxruntime", "load_onnxruntime"]

OVERRIDE = "PYINV_ONNXRUNTIME"

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

    def __str__(self) -> str:
        return f"{self.version or 'version unknown'} ({self.distribution or self.path})"


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
        DependencyError: As :func:`find_onnxruntime`, or the library cannot be loaded or is too old.
    """
    from pyinv import _core

    found = find_onnxruntime()
    try:
        version = _core.load_onnxruntime(str(found.path))
    except RuntimeError as error:
        raise DependencyError(str(error)) from None
    return replace(found, version=version)


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
