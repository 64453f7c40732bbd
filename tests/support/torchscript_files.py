"""TorchScript files written in tests: from source, and with parts replaced afterwards."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pyinv.bundle import FileRecord, Function, Manifest
from pyinv.priors import Uniform

SIZES: dict[str, Any] = {"latent_size": 2, "image_shape": [1, 1, 2], "condition_size": 0}

# A generator and its objective, with the same extra lines in both.
_FUNCTIONS = """
def unused(self, latent: Tensor) -> Tensor:
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


def functions(extra: str = "pass", methods: str = "") -> str:
    """Return the source of a generator and its objective.

    ``extra`` is a statement of both, which may change their latents ``x``.
    """
    return methods + _FUNCTIONS.replace("EXTRA", extra)


def write(path: Path, source: str, attributes: Mapping[str, Any] = SIZES) -> Path:
    """Save a module with these attributes and the methods of the source."""

    class Functions(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            for name, value in attributes.items():
                setattr(self, name, value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Functions()
        module.define(source)
        torch.jit.save(module, str(path))
    return path


def rewrite(path: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    """Replace the file's records by ``edit(name, content)``; the name is without the first folder.

    Tensors stay where torch aligns them.
    """
    with zipfile.ZipFile(path) as archive:
        records = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name), edit(name.partition("/")[2], content))
    return path


def edited(path: Path, old: str, new: str) -> Path:
    """Replace a text in the file's source, which torch would not write itself."""

    def edit(name: str, content: bytes) -> bytes:
        return content.replace(old.encode(), new.encode()) if name.endswith(".py") else content

    return rewrite(path, edit)


def bundle(file: Path) -> Path:
    """Write the manifest of a bundle whose only file has `forward` and `objective`."""
    Manifest(
        latent_shape=(2,),
        image_shape=(1, 1, 2),
        value_range=(-1.0, 1.0),
        prior=Uniform(),
        functions=(
            Function("forward", "torchscript", file.name, method="forward"),
            Function("objective", "torchscript", file.name, loss="mse", method="objective"),
        ),
        files={file.name: FileRecord.of(file)},
    ).write(file.parent)
    return file.parent
