"""Calls that end early: by a timeout, by another thread, or by Ctrl-C, within an evaluation."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import asdict

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pyinv
from pyinv.bundle import FileRecord
from pyinv.cli import main
from pyinv.inverter import Inverter
from support.tiny_bundle import write_tiny_bundle

FOREVER = 1 << 40  # turns of a loop


def keep_busy(path, file: str) -> None:
    """Let a graph of a bundle turn in a loop before it does anything."""
    model = onnx.load(path / file, load_external_data=False)
    graph = model.graph
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["goes_on"], ["goes_on_still"]),
            helper.make_node("Neg", ["total"], ["next_total"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            total,
        ],
        [
            helper.make_tensor_value_info("goes_on_still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_total", TensorProto.FLOAT, []),
        ],
    )
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [FOREVER])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    graph.initializer.extend([turns, yes])
    for node in graph.node:
        node.input[:] = ["busy_latent" if name == "latent" else name for name in node.input]
    nodes = [
        helper.make_node("ReduceSum", ["latent"], ["sum"], keepdims=0),
        helper.make_node("Loop", ["turns", "yes", "sum"], ["turned"], body=body),
        helper.make_node("Add", ["latent", "turned"], ["busy_latent"]),
    ]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    (path / file).write_bytes(model.SerializeToString())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][file] = asdict(FileRecord.of(path / file))
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "tiny.bundle"
    write_tiny_bundle(path)
    inverter = Inverter(path, threads=1)
    return inverter.generate(inverter.sample(3))


@pytest.fixture(scope="module")
def busy_path(tmp_path_factory):
    """A bundle whose objective never ends."""
    path = tmp_path_factory.mktemp("busy") / "tiny.bundle"
    write_tiny_bundle(path)
    keep_busy(path, "objective_mse.onnx")
    return path


@pytest.fixture(scope="module")
def busy_forward(tmp_path_factory):
    """An Inverter whose forward never ends."""
    path = tmp_path_factory.mktemp("busy") / "tiny.bundle"
    write_tiny_bundle(path)
    keep_busy(path, "forward.onnx")
    return Inverter(path, threads=1)


def ctrl_c() -> threading.Timer:
    """Send SIGINT soon."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def set_soon() -> threading.Event:
    event = threading.Event()
    threading.Timer(0.3, event.set).start()
    return event


@pytest.mark.parametrize("how", ["timeout", "cancel", "ctrl-c"])
def test_invert_returns_the_results_so_far(busy_path, images, how):
    inverter = Inverter(busy_path, threads=1)
    if how == "ctrl-c":
        ctrl_c()
        found = inverter.invert(images)
    elif how == "cancel":
        found = inverter.invert(images, cancel=set_soon())
    else:
        found = inverter.invert(images, timeout=0.3)
    assert found.cancelled
    assert (found.status == pyinv.Status.CANCELLED).all()
    assert np.isfinite(found.latents).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_invert_in_another_thread_is_cancelled(busy_path, images):
    inverter, event, found = Inverter(busy_path, threads=1), threading.Event(), []
    thread = threading.Thread(target=lambda: found.append(inverter.invert(images, cancel=event)))
    thread.start()
    event.set()
    thread.join()
    assert found[0].cancelled


def test_generate_ends(busy_forward):
    latents = busy_forward.sample(2)
    with pytest.raises(pyinv.CancelledError, match="ended by its timeout or by cancel"):
        busy_forward.generate(latents, timeout=0.3)
    with pytest.raises(pyinv.CancelledError):
        busy_forward.generate(latents, cancel=set_soon())
    ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        busy_forward.generate(latents)


def test_a_stream_ends(busy_path, images):
    inverter = Inverter(busy_path, threads=1)
    ctrl_c()
    found = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(inverter.stream(images))
    assert all(one.status == pyinv.Status.CANCELLED for one in found)


def test_a_limit_that_is_not_reached_changes_nothing(inverter, images):
    expected = inverter.invert(images)
    found = inverter.invert(images, timeout=1000, cancel=threading.Event())
    np.testing.assert_array_equal(found.latents, expected.latents)
    assert not found.cancelled
    np.testing.assert_array_equal(
        inverter.generate(found.latents, timeout=1000), inverter.generate(found.latents)
    )


def test_an_event_that_was_set_before(inverter, images):
    event = threading.Event()
    event.set()
    with pytest.raises(pyinv.CancelledError):
        inverter.generate(inverter.sample(1), cancel=event)
    assert not inverter.invert(images).cancelled


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "1", True])
def test_a_timeout_is_a_number_above_0(inverter, images, timeout):
    with pytest.raises(pyinv.InputError, match="timeout must be a number of seconds above 0, got"):
        inverter.invert(images, timeout=timeout)


def test_cancel_is_an_event(inverter, images):
    with pytest.raises(pyinv.InputError, match=r"cancel must be a threading\.Event, got int"):
        inverter.invert(images, cancel=1)


def test_the_command_line_writes_the_results_so_far(
    busy_path, busy_forward, images, tmp_path, capsys
):
    np.save(tmp_path / "images.npy", images)
    out = tmp_path / "out.npz"
    command = ["invert", str(busy_path), str(tmp_path / "images.npy"), "-o", str(out)]
    assert main([*command, "--timeout", "0.5"]) == 124
    assert "ended early; 0 of 3 targets are done" in capsys.readouterr().err
    assert pyinv.Inversion.load(out).cancelled
    out = tmp_path / "out.npy"
    command = ["generate", str(busy_forward.bundle.path), "-n", "1", "-o", str(out)]
    assert main([*command, "--timeout", "0.5"]) == 124
    line = "pyinv: error: --timeout came before there was a result; nothing was written\n"
    assert capsys.readouterr().err == line
    assert not out.exists()
