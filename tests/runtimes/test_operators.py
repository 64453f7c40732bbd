"""The operators in an ONNX file, which say whether a GPU may record its run, are read right."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from pyinv import _core
from support.paths import REPOSITORY

DEMO = REPOSITORY / "pyinv" / "data" / "digits.bundle"


def operators_of(nodes) -> set[str]:
    found = set()
    for node in nodes:
        found.add(f"{node.domain}:{node.op_type}" if node.domain else node.op_type)
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                found |= operators_of(graph.node)
    return found


@pytest.mark.parametrize("file", sorted(DEMO.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_demos_functions(file: Path) -> None:
    model = onnx.load(file, load_external_data=False)
    expected = operators_of(model.graph.node)
    for function in model.functions:
        expected |= operators_of(function.node)
    expected -= {f"{function.domain}:{function.name}" for function in model.functions}
    assert _core.onnx_operators(str(file)) == expected
    assert {"Gemm", "ConvTranspose", "Transpose"} <= expected


def test_subgraphs_and_other_domains(tmp_path: Path) -> None:
    def value(name, kind=TensorProto.FLOAT, shape=("N",)):
        return helper.make_tensor_value_info(name, kind, shape)

    def branch(operator):
        node = helper.make_node(operator, ["x"], ["y"])
        return helper.make_graph([node], "branch", [], [value("y")])

    nodes = [
        helper.make_node("If", ["c"], ["z"], then_branch=branch("Exp"), else_branch=branch("Log")),
        helper.make_node("Gelu", ["z"], ["w"], domain="com.microsoft"),
        helper.make_node("Neg", ["w"], ["v"], domain="ai.onnx"),
    ]
    inputs = [value("x"), value("c", TensorProto.BOOL, ())]
    path = tmp_path / "model.onnx"
    path.write_bytes(
        helper.make_model(
            helper.make_graph(nodes, "graph", inputs, [value("v")])
        ).SerializeToString()
    )
    expected = {"If", "Exp", "Log", "com.microsoft:Gelu", "Neg"}
    assert _core.onnx_operators(str(path)) == expected


def graph_of(nodes, *outputs, name="graph", inputs=("latent", "image")):
    def values(names):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("N", 4)) for n in names]

    return helper.make_graph(nodes, name, values(inputs), values(outputs))


def call(operator, inputs, outputs, domain="", **attributes):
    return helper.make_node(operator, inputs, outputs, domain=domain, **attributes)


def function_of(name, inputs, outputs, nodes):
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, inputs, outputs, nodes, opsets)


BRANCH = graph_of([call("Atan", ["latent"], ["b"])], "b", name="branch", inputs=())
READERS = {
    "all have kernels": ([call("Sub", ["latent", "image"], ["a"])], [], set()),
    "first and second input": (
        [call("Asin", ["latent"], ["a"]), call("BitShift", ["a", "image"], ["b"])],
        [],
        {"Asin", "BitShift"},
    ),
    "not at first hand": (
        [call("Neg", ["latent"], ["a"]), call("Asin", ["a"], ["b"])],
        [],
        set(),
    ),
    "another domain": (
        [call("Gelu", ["latent"], ["a"], "com.microsoft")],
        [],
        {"com.microsoft:Gelu"},
    ),
    "through what is optimised away": (
        [
            call("Dropout", ["latent"], ["a", ""]),
            call("Identity", ["a"], ["b"]),
            call("Cast", ["b"], ["c"], to=1),
            call("Asin", ["c"], ["d"]),
            call("Acos", ["d", ""], ["e"]),
        ],
        [],
        {"Asin"},
    ),
    "transposed convolution": (
        [call("ConvTranspose", ["image", "w"], ["a"])],
        [],
        {"ConvTranspose"},
    ),
    "in a branch": (
        [call("If", ["c"], ["a"], then_branch=BRANCH, else_branch=BRANCH)],
        [],
        {"Atan"},
    ),
    "in a function": (
        [call("F", ["a", "latent"], ["b"], "own"), call("Sinh", ["b"], ["c"])],
        [
            function_of(
                "F", ["x", "y"], ["z"], [call("G", ["y"], ["u"], "own"), call("Cosh", ["x"], ["z"])]
            ),
            function_of("G", ["x"], ["z"], [call("Tan", ["x"], ["z"])]),
        ],
        {"Tan"},
    ),
    "through a function": (
        [call("F", ["latent"], ["b"], "own"), call("Sinh", ["b"], ["c"])],
        [function_of("F", ["x"], ["z"], [call("Identity", ["x"], ["z"])])],
        {"Sinh"},
    ),
    "a function that calls itself": (
        [call("F", ["latent"], ["b"], "own")],
        [function_of("F", ["x"], ["z"], [call("F", ["x"], ["z"], "own")])],
        set(),
    ),
}


@pytest.mark.parametrize(("nodes", "functions", "expected"), READERS.values(), ids=READERS)
def test_readers_of_the_inputs_without_cuda(tmp_path: Path, nodes, functions, expected) -> None:
    """ONNX Runtime would copy the inputs for those to the CPU once, and not in each step."""
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph_of(nodes), functions=functions)
    path.write_bytes(model.SerializeToString())
    assert _core.onnx_readers_without_cuda(str(path)) == expected


@pytest.mark.parametrize("file", sorted(DEMO.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_demo_can_run_on_a_gpu(file: Path) -> None:
    assert _core.onnx_readers_without_cuda(str(file)) == set()


@pytest.mark.parametrize(
    ("operator", "recordable"),
    [("Gemm", True), ("Reshape", True), ("MatMul", False), ("Slice", False), ("If", False)],
)
def test_what_a_gpu_may_record(tmp_path: Path, operator: str, recordable: bool) -> None:
    """Batched MatMul, for one, stages arrays in host memory that is gone at the run's end."""
    path = tmp_path / "model.onnx"
    nodes = [call("Neg", ["latent"], ["a"]), call(operator, ["a", "image"], ["b"])]
    path.write_bytes(helper.make_model(graph_of(nodes)).SerializeToString())
    assert _core.onnx_recordable(str(path)) is recordable


def nested(levels: int) -> bytes:
    """A model with so many graphs in graphs, made by hand: onnx itself would refuse to."""

    def field(number: int, value: bytes) -> bytes:
        length, size = len(value), b""
        while length > 127:
            size += bytes([length & 127 | 128])
            length >>= 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + value

    node = field(4, b"Neg")
    for _ in range(levels):
        node = field(4, b"If") + field(5, field(6, field(1, node)))
    return field(7, field(1, node))


def test_a_model_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(nested(20))
    assert _core.onnx_operators(str(path)) == {"If", "Neg"}
    for levels in (21, 5_000):
        path.write_bytes(nested(levels))
        with pytest.raises(RuntimeError, match="nested too deeply"):
            _core.onnx_operators(str(path))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    with pytest.raises(RuntimeError, match="cannot be read"):
        _core.onnx_operators(str(path))
    for bytes_ in (b"no graph" * 9, b"\xff" * 20, (DEMO / "forward.onnx").read_bytes()[:-5]):
        path.write_bytes(bytes_)
        with pytest.raises(RuntimeError, match="not an ONNX model"):
            _core.onnx_operators(str(path))
