"""Load a generator named on a command line: by a factory function, or from a file."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from pyinv.errors import ExportError

from ..diagnostics import first_line
from .onnx_file import load_onnx
from .torchscript_reader import load_torchscript

__all__ = ["load_factory", "load_generator"]

_FILE_SUFFIXES = (".pt", ".pth", ".jit", ".ts", ".torchscript")


def load_generator(target: str, *, what: str = "generator") -> nn.Module:
    """Load a generator from a factory (see ``load_factory``), or a TorchScript or ONNX file.

    A file whose name ends in .onnx is an ONNX file (see ``load_onnx``); others are TorchScript.

    ``what`` names the expected object in error messages.

    Raises:
        ExportError: ``target`` does not exist or is not a generator.
    """
    if target.endswith(".onnx"):
        return load_onnx(target, what=what)
    is_file = Path(target).is_file() and not target.endswith(".py")
    if is_file or target.endswith(_FILE_SUFFIXES):
        return load_torchscript(target, what=what)
    return load_factory(target, what=what)


def load_factory(target: str, *, what: str = "generator") -> nn.Module:
    """Call ``package.module:factory`` or ``path/to/file.py:factory`` and return its generator.

    The factory takes no arguments and returns a torch.nn.Module. The name may also refer to a
    module instance, or to a Module class whose constructor needs no arguments. Modules are looked
    up in the current folder first, then on Python's search path.

    Raises:
        ExportError: no such file, module or name, or the result is not a torch.nn.Module.
    """
    source, colon, name = target.rpartition(":")
    if not colon or not source or not name:
        raise ExportError(
            f"{what} {target!r} must be 'package.module:factory' or 'path/to/file.py:factory', "
            "or a TorchScript or ONNX file"
        )
    module = _load_file(source) if source.endswith(".py") else _load_module(source)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
            raise ExportError(f"{source} has no {name!r}; it has: {public or 'nothing callable'}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ExportError(f"{target} is a {type(found).__name__}, not a function or module")
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise ExportError(f"{target}() failed with {_cause(error)}") from error
    if not isinstance(found, nn.Module):
        raise ExportError(
            f"{target}() must return a torch.nn.Module, it returned {type(found).__name__}"
        )
    return found


def _load_file(source: str) -> ModuleType:
    path = Path(source)
    if not path.is_file():
        raise ExportError(f"no file {source}: give 'path/to/file.py:factory'")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        with _search_path(str(path.resolve().parent)):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ExportError(f"{source} cannot be run: {_cause(error)}") from error
    finally:
        if previous is not None:
            sys.modules[path.stem] = previous
    return module


def _load_module(source: str) -> ModuleType:
    try:
        with _search_path(os.getcwd()):
            return importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise ExportError(f"cannot import {source}: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            f"SystemExit: {error}; perhaps it reads a command line: put that under "
            'if __name__ == "__main__":'
        )
    return f"{type(error).__name__}: {first_line(error)}"


class _search_path:
    """Add a folder to the module search path during an import."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        sys.path.insert(0, self.folder)

    def __exit__(self, *_: object) -> None:
        sys.path.remove(self.folder)
