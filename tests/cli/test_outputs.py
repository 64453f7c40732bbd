"""Outputs that cannot be written: nothing is torn, and what was computed is kept elsewhere."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
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
    arguments = [str(bundle_path), str(tmp_path / "images.npy"), "-o", str(out), "--overwrite"]
    code = main(["invert", *arguments])
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


WRITER = """
import pathlib, sys
from pyinv.drafts import Draft
draft = Draft(pathlib.Path(sys.argv[1]))
draft.file.write(b"half")
draft.file.flush()
print("written", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_drafts_of_dead_processes_are_removed(bundle_path, tmp_path):
    out = tmp_path / "out.npy"
    (tmp_path / ".out.npy.part").touch()  # a stranger's
    command = [sys.executable, "-c", WRITER]
    writers = [
        subprocess.Popen(
            [*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for path in (out, tmp_path / "other.npy", out)
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "written\n"
    for writer in writers[:2]:
        writer.kill()
        writer.communicate()
    assert main(["generate", str(bundle_path), "-n", "1", "-o", str(out)]) == 0
    left = [name.partition(".npy")[0] for name in sorted(os.listdir(tmp_path))]
    assert left == [".other", ".out", ".out", "out"]
    assert np.load(out).shape[0] == 1
    writers[2].kill()
    writers[2].communicate()
    # A folder's are removed whatever they were to become.
    assert main(["generate", str(bundle_path), "-n", "1", "-o", f"{tmp_path}/"]) == 0
    assert sorted(os.listdir(tmp_path)) == [".out.npy.part", "0.png", "out.npy"]
