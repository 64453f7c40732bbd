"""Ctrl-C, SIGTERM and SIGHUP on the command line: what is finished is kept, and the code tells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import pyinv
from pyinv import interrupts
from pyinv.inverter import Inverter
from support.paths import REPOSITORY

DEMO = REPOSITORY / "pyinv" / "data" / "digits.bundle"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """More digits than a test has time for."""
    inverter = Inverter(DEMO, threads=1)
    path = tmp_path_factory.mktemp("digits") / "digits.npy"
    np.save(path, np.tile(inverter.generate(inverter.sample(500)), (40, 1, 1, 1)))
    return path


def start(*arguments):
    """Start the command, and return once it inverts; handlers are those of a terminal's."""
    done = [sys.executable, "-m", "pyinv", "invert", DEMO, *arguments, "--threads", "1"]
    # Short attempts, so that some targets are done soon on the slowest machine, and not all.
    done += ["--recipe", "adam", "--max-steps", "30"]
    program = subprocess.Popen(
        [str(part) for part in done],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert program.stderr
    line = program.stderr.readline()
    assert line.startswith("inverting"), line
    time.sleep(0.5)
    return program


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_finished_targets_are_written(digits, tmp_path, number, again):
    program = start(digits, "-o", tmp_path / "out.npz", "--json")
    program.send_signal(number)
    if again:
        time.sleep(0.005)
        program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    # Of signals that come at once, Python handles the one with the lower number first.
    assert program.returncode in ({CODES[number], 130} if again else {CODES[number]})
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["out.npz"]
    inversion = pyinv.Inversion.load(tmp_path / "out.npz")
    finished = inversion.status != pyinv.Status.CANCELLED
    assert 0 < finished.sum() < len(inversion)
    assert json.loads(out)["cancelled"]
    assert f"{finished.sum()} of {len(inversion)} targets are done" in err


def test_a_signal_while_results_are_written(bundle_path, tmp_path, monkeypatch, capsys):
    """It is held back until they are, and the code still says that it came."""
    from pyinv.cli import main

    inverter = Inverter(bundle_path, threads=1)
    np.save(tmp_path / "images.npy", inverter.generate(inverter.sample(3)))
    save = pyinv.Inversion.save

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        save(*args, **options)

    monkeypatch.setattr(pyinv.Inversion, "save", interrupted)
    out = tmp_path / "out.npz"
    assert main(["invert", str(bundle_path), str(tmp_path / "images.npy"), "-o", str(out)]) == 143
    assert len(pyinv.Inversion.load(out)) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_before_the_work(bundle_path, tmp_path, monkeypatch, capsys):
    from pyinv.cli import invert, main

    inverter = Inverter(bundle_path, threads=1)
    np.save(tmp_path / "images.npy", inverter.generate(inverter.sample(3)))
    monkeypatch.setattr(
        invert, "load_named_images", lambda *_, **__: os.kill(os.getpid(), signal.SIGHUP)
    )
    out = tmp_path / "out.npz"
    assert main(["invert", str(bundle_path), str(tmp_path / "images.npy"), "-o", str(out)]) == 129
    assert capsys.readouterr().err.endswith("interrupted; nothing was written\n")
    assert os.listdir(tmp_path) == ["images.npy"]


@pytest.mark.parametrize("moment", ["early", "late"])
def test_an_interrupt_of_a_program(bundle_path, monkeypatch, moment):
    """Ctrl-C at any moment of ``invert`` returns what is done."""
    inverter = Inverter(bundle_path, threads=1)
    images = inverter.generate(inverter.sample(3))
    expected = inverter.invert(images)
    run = pyinv._core.invert

    def invert(**arguments):
        if moment == "early":
            os.kill(os.getpid(), signal.SIGINT)
        found = run(**arguments)
        if moment == "late":
            os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr("pyinv.session._core.invert", invert)
    inversion = inverter.invert(images)
    assert inversion.cancelled
    if moment == "late":
        np.testing.assert_array_equal(inversion.latents, expected.latents)
        np.testing.assert_array_equal(inversion.status, expected.status)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_the_program_are_left_alone():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        with interrupts.ends_like_ctrl_c(), interrupts.deferred() as received:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            with interrupts.deferred() as inner:
                assert inner()
        assert (calls, received()) == ([signal.SIGTERM], True)
    finally:
        signal.signal(signal.SIGTERM, before)
