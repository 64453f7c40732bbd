"""A run that fails in the middle says why, and keeps the targets that were done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pyinv import _core
from pyinv.bundle import FileRecord, Function, Manifest
from pyinv.cli import main
from pyinv.errors import RunError
from pyinv.inverter import Inverter
from pyinv.priors import Uniform
from pyinv.recipes import Recipe, Stage
from pyinv.result import Inversion
from pyinv.runtimes import load_onnxruntime
from pyinv.solvers import GradientDescent
from support.onnx_operators import operators_of
from support.reference import CANCELLED, CONVERGED


def picky_objective(path: Path) -> _core.OnnxObjective:
    """The squared distance of a latent from an image of one pixel, which must not reach 2."""
    node = helper.make_node
    nodes = [
        node("Constant", [], ["pair"], value_floats=[0.0, 0.0]),
        node("Constant", [], ["rows"], value_ints=[-1, 1]),
        node("Constant", [], ["axis"], value_ints=[1]),
        node("Reshape", ["image", "rows"], ["target"]),
        node("Cast", ["target"], ["index"], to=TensorProto.INT64),
        node("Gather", ["pair", "index"], ["zero"]),  # fails beyond the pair
        node("Sub", ["latent", "target"], ["difference"]),
        node("Add", ["difference", "zero"], ["gradient"]),
        node("ReduceSumSquare", ["gradient", "axis"], ["loss"], keepdims=0),
    ]
    inputs = {"latent": ["B", 1], "image": ["B", 1, 1, 1]}
    outputs = {"loss": ["B"], "gradient": ["B", 1]}
    values = [
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in of.items()
        ]
        for of in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "picky", *values)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    load_onnxruntime()
    return _core.OnnxObjective(str(path), threads=1)


def picky_bundle(path: Path) -> Path:
    """A bundle with that objective."""
    path.mkdir()
    picky_objective(path / "objective_mse.onnx")
    operators = operators_of(onnx.load(path / "objective_mse.onnx"))
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[-1, 1, 1, 1])
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *sizes])
        for name, sizes in {"latent": [1], "image": [1, 1, 1]}.items()
    ]
    reshape = helper.make_node("Reshape", ["latent", "shape"], ["image"])
    graph = helper.make_graph([shape, reshape], "forward", values[:1], values[1:])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path / "forward.onnx")
    functions = (
        Function("forward", "onnx", "forward.onnx"),
        Function("objective", "onnx", "objective_mse.onnx", "mse", **operators),
    )
    Manifest(
        latent_shape=(1,),
        image_shape=(1, 1, 1),
        value_range=(-10.0, 10.0),
        prior=Uniform(),
        functions=functions,
        files={function.file: FileRecord.of(path / function.file) for function in functions},
    ).write(path)
    return path


def invert(objective, images, *, initial=None, progress=None):
    stage = Stage(GradientDescent(0.5), max_steps=100, loss_tolerance=1e-10)
    return _core.invert(
        objectives=[objective],
        recipe=json.dumps(Recipe("r", (stage,)).describe()),
        prior=json.dumps(Uniform().describe()),
        images=np.array(images, np.float32)[:, None],
        initial=initial,
        true_latents=np.array(images, np.float32)[:, None],
        target_ids=np.arange(len(images), dtype=np.uint64),
        seed=3,
        lanes=1,
        trace_every=10,
        progress=progress,
    )


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_a_failing_runtime_loses_no_finished_target(tmp_path: Path, given: bool) -> None:
    objective = picky_objective(tmp_path / "picky.onnx")
    initial = np.full((4, 1), 0.25, np.float32) if given else None
    with pytest.raises(RuntimeError, match=r"picky\.onnx: ONNX Runtime: .*Gather") as error:
        invert(objective, [0.5, 1.0, 7.0, 0.5], initial=initial)
    partial = error.value.partial
    assert partial["cancelled"]
    np.testing.assert_array_equal(partial["status"], [CONVERGED] * 2 + [CANCELLED] * 2)
    np.testing.assert_allclose(partial["latents"][:2, 0], [0.5, 1.0], atol=2e-5)
    assert (partial["steps"][:2] > 0).all()
    # The others: as if cancelled before they began.
    np.testing.assert_array_equal(partial["attempts"], [1, 1, 0, 0])
    assert np.isnan(partial["loss"][2:]).all()
    assert (partial["min_latent_error"][:2] < 1e-9).all()
    assert np.isnan(partial["min_latent_error"][2:]).all()
    prior = json.dumps(Uniform().describe())
    drawn = _core.draw_initial(prior, 3, np.arange(4, dtype=np.uint64), 0, 1)
    np.testing.assert_array_equal(partial["latents"][2:], (initial if given else drawn)[2:])


def test_the_inverter_hands_on_what_was_done(tmp_path: Path) -> None:
    inverter = Inverter(picky_bundle(tmp_path / "picky"), batch_size=1, threads=1)
    stage = Stage(GradientDescent(0.5), max_steps=100, loss_tolerance=1e-10)
    images = np.array([0.5, 1.0, 7.0, 0.5], np.float32).reshape(4, 1, 1, 1)
    with pytest.raises(RunError, match=r"Gather.*; 2 of 4 targets were done") as error:
        inverter.invert(images, recipe=Recipe("r", (stage,)), true_latents=images.reshape(4, 1))
    inversion = error.value.inversion
    assert inversion.cancelled
    np.testing.assert_array_equal(inversion.status, [CONVERGED] * 2 + [CANCELLED] * 2)
    np.testing.assert_allclose(inversion.images[:2, 0, 0, 0], [0.5, 1.0], atol=2e-5)
    np.testing.assert_array_equal(np.isnan(inversion.min_latent_error), [False, False, True, True])

    def progress(report):
        if report["finished"]:
            raise LookupError("from the callback")

    with pytest.raises(LookupError) as raised:
        inverter.invert(np.repeat(images[:2], 50_000, axis=0), progress=progress)
    assert raised.value.inversion.counts()["cancelled"] > 0


def test_an_error_of_the_progress_function_stays_what_it_is(tmp_path: Path) -> None:
    inverter = Inverter(picky_bundle(tmp_path / "picky"), batch_size=1, threads=1)
    images = np.tile(np.array([0.5, 1.0], np.float32), 50_000).reshape(-1, 1, 1, 1)

    def progress(report):
        if report["finished"]:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$") as error:
        inverter.invert(images, progress=progress)
    assert not isinstance(error.value, RunError)
    counts = error.value.inversion.counts()
    assert 0 < counts["cancelled"] < len(images)


def test_the_command_line_writes_what_was_done(tmp_path: Path, capsys) -> None:
    bundle = picky_bundle(tmp_path / "picky")
    np.save(tmp_path / "images.npy", np.array([0.5, 7.0], np.float32).reshape(2, 1, 1, 1))
    output = tmp_path / "latents.npz"
    code = main(
        [
            "invert",
            str(bundle),
            str(tmp_path / "images.npy"),
            "-o",
            str(output),
            "--batch-size",
            "1",
        ]
    )
    assert code == 1
    assert "Gather" in capsys.readouterr().err
    first, second = Inversion.load(output).status
    assert second == CANCELLED
    assert first != CANCELLED


def test_a_failing_progress_function_loses_no_finished_target(tmp_path: Path) -> None:
    objective = picky_objective(tmp_path / "picky.onnx")

    def progress(report):
        if report["finished"] >= 2:
            raise LookupError("from the callback")

    # Far more than are done by the time that progress is asked.
    with pytest.raises(LookupError, match="from the callback") as error:
        invert(objective, [0.5, 1.0] * 50_000, progress=progress)
    partial = error.value.partial
    status = partial["status"]
    np.testing.assert_array_equal(status[:2], CONVERGED)
    assert (partial["min_latent_error"][status == CONVERGED] < 1e-9).all()
    assert np.isnan(partial["min_latent_error"][-1])
    assert status[-1] == CANCELLED


def test_devices() -> None:
    device = _core.cpu_device()
    assert (device.kind, device.index) == ("cpu", 0)
    assert issubclass(_core.DeviceError, RuntimeError)
    assert issubclass(_core.OutOfMemory, RuntimeError)
    assert _core.cuda_device_count() >= 0
    if _core.cuda_device_count() == 0:
        with pytest.raises(_core.DeviceError) as error:
            _core.cuda_device(0)
        assert "\n" not in str(error.value)
    elif _core.built_with_cuda():
        assert _core.cuda_device(0).kind == "cuda"


def test_an_objective_knows_its_device(tmp_path: Path) -> None:
    objective = picky_objective(tmp_path / "picky.onnx")
    assert objective.device.kind == "cpu"
    again = _core.OnnxObjective(
        str(tmp_path / "picky.onnx"), threads=1, device=_core.cpu_device(), tf32=False
    )
    assert again.device.kind == "cpu"
