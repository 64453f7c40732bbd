"""Bundles are replaced in one step, whenever the process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from pyinv.export import staging
from pyinv.export.staging import staged

FILES = [f"file-{number}" for number in range(20)]

# Replaces the bundle, and kills itself at the given call of os or shutil. With "plain", as on a
# system that cannot exchange folders.
PROGRAM = """
import importlib.util, os, pathlib, shutil, signal, sys
spec = importlib.util.spec_from_file_location("staging", sys.argv[4])  # without PyTorch
staging = importlib.util.module_from_spec(spec)
spec.loader.exec_module(staging)
at, plain = int(sys.argv[2]), sys.argv[3] == "plain"
calls = 0
def counted(call):
    def wrapped(*arguments, **named):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return wrapped
exchange = (lambda *folders: False) if plain else staging._exchange
staging._exchange = counted(exchange)
pathlib.Path.rename = counted(pathlib.Path.rename)
os.unlink, os.rmdir, os.fsync = counted(os.unlink), counted(os.rmdir), counted(os.fsync)
target = pathlib.Path(sys.argv[1])
with staging.staged(target) as folder:
    for name in (f"file-{number}" for number in range(20)):
        (folder / name).write_text("new")
print(calls)
"""


def write_old(target: Path) -> None:
    target.mkdir()
    for name in FILES:
        (target / name).write_text("old")


def content(folder: Path) -> set[str]:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    return {path.read_text() for path in folder.iterdir()}


def run(target: Path, at: int, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(target), str(at), how, staging.__file__]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("how", ["exchange", "plain"])
def test_a_killed_replacement_leaves_the_old_or_the_new_bundle(tmp_path, how):
    write_old(tmp_path / "count")
    calls = int(run(tmp_path / "count", 0, how).stdout)
    assert content(tmp_path / "count") == {"new"}
    seen = set()
    # The renames, what is next to them, and both ends.
    for at in sorted({1, 22, 23, 24, calls}):
        target = tmp_path / f"bundle-{at}"
        write_old(target)
        assert run(target, at, how).returncode == -signal.SIGKILL
        if how == "plain" and not target.exists():
            staging._remove_left(target)
        found = content(target)
        assert found in ({"old"}, {"new"})
        seen |= found
        with staged(target) as folder:
            (folder / "next").touch()
        assert [path.name for path in target.iterdir()] == ["next"]
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert seen == {"old", "new"}


def test_folders_of_living_processes_and_of_others_stay(tmp_path):
    target = tmp_path / "bundle"
    other = tmp_path / ".bundle-backup"
    other.mkdir()
    with staged(target) as first:
        with staged(target) as second:
            assert first.is_dir()
            (second / "file").touch()
        assert first.is_dir()
    assert other.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle-backup", "bundle"]


def test_an_error_of_the_exchange_keeps_the_old_bundle(monkeypatch, tmp_path):
    write_old(tmp_path / "bundle")

    def full(*folders: Path) -> bool:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(staging, "_exchange", full)
    with pytest.raises(staging.OutputError, match="No space left"), staged(tmp_path / "bundle"):
        pass
    assert content(tmp_path / "bundle") == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
