"""Check TorchScript files from anyone before torch loads them.

While torch loads a file, it runs the expressions of default arguments and every ``__setstate__``;
its operators can write files. ``csrc/torch/archive.cpp`` has the same checks for bundles.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from pyinv import _core
from pyinv.errors import ExportError

from ..diagnostics import first_line

__all__ = ["check_archive", "check_operator", "check_tensor"]

_LONGEST_NAME = 400  # torch's reader cuts longer ones, so that they could end in anything
_MOST_CODE = 64 << 20  # bytes of the only records that torch compresses
_INSTEAD = "export the torch.nn.Module that it was made from"


def check_archive(path: Path) -> None:
    """Check what torch would read, without running any of it.

    Raises:
        ExportError: The file calls an operator that is not on pyinv's list, runs code of its own
            while it is loaded, or unpacks to far more than it has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size + _MOST_CODE:
            raise RuntimeError("it unpacks to far more than its bytes")
        reader = torch._C.PyTorchFileReader(str(path))
        for name in reader.get_all_records():
            if len(name) > _LONGEST_NAME:
                raise RuntimeError("it has a record with a long name")
            # torch finds records whatever their case.
            if name.lower().startswith("code/") and not name.endswith(".debug_pkl"):
                _check_source(reader.get_record(name))
        for folder in ("constants", "data"):
            for record, size in _core.torchscript_storages(reader.get_record(f"{folder}.pkl")):
                if size > len(reader.get_record(f"{folder}/{record.decode()}")):
                    raise RuntimeError("it has a tensor that reaches beyond its memory")
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        reason = first_line(error)
        raise ExportError(f"{path} cannot be loaded: {reason}; {_INSTEAD}") from None


def _check_source(source: bytes) -> None:
    for name in _core.torchscript_unlisted(source):
        if torch._C._jit_get_schemas_for_operator(name):
            raise RuntimeError(f"it uses {name}, which pyinv does not run from a file")


def check_operator(kind: str) -> None:
    """Refuse a node of a graph, such as "aten::relu", whose operator is not listed."""
    if not _core.torchscript_allows(kind):
        raise ExportError(
            f"the TorchScript generator uses {kind}, which cannot be exported: {_INSTEAD}"
        )


def check_tensor(tensor: Tensor) -> None:
    """Refuse a tensor that is not dense, or whose strides reach beyond its memory."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise ExportError(
            f"the TorchScript module has a sparse, quantized or nested tensor: {_INSTEAD}"
        )
    if not tensor.numel():
        return
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    lowest = min(0, *tensor.shape, *tensor.stride(), tensor.storage_offset())
    if lowest < 0 or (last + 1) * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ExportError("the TorchScript module has a tensor that reaches beyond its memory")
