"""Outputs that cannot be written: nothing is torn, and what was computed is kept elsewhere."""

from __future__ import annotations

import errno
import os
import re
import tempfile

import numpy as np
import pytest

import pyinv
from pyinv.cli import main
from pyinv.inverter import Inverter


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_results_are_kept_where_there_is_room(bundle_path, tmp_path, monkeypatch, capsys, call):
    inverter = Inverter(bundle_path, threads=1)
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "images.npy", inverter.generate(inverter.sample(3)))
    out = tmp_path / "out.npz"
    out.write_bytes(b"before")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(os, call, full)
    code = main(["invert", str(bundle_path), str(tmp_path / "images.npy"), "-o", str(out)])
    monkeypatch.undo()
    assert code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    found = re.fullmatch(
        rf"pyinv: error: {out}: cannot be written \(No space left on device\); "
        r"it was written to (.*/out\.npz) instead",
        line,
    )
    assert found, line
    assert len(pyinv.Inversion.load(found[1])) == 3
    assert out.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "images.npy", "out.npz"]
