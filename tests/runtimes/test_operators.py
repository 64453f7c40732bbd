"""The operators that a manifest lists, and what a GPU can do with them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from pyinv import _core  # noqa: E402
from pyinv.bundle import Manifest  # noqa: E402
from pyinv.export.runtimes.onnx_operators import operators_in  # noqa: E402
from support.paths import REPOSITORY  # noqa: E402

DEMO = REPOSITORY / "pyinv" / "data" / "digits.bundle"


def operators_of(nodes) -> set[str]:
    found = set()
    for node in nodes:
        found.add(f"{node.domain}:{node.op_type}" if node.domain else node.op_type)
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                found |= operators_of(graph.node)
    return found


FUNCTIONS = [function for function in Manifest.read(DEMO).functions if function.loss is not None]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.file)
def test_the_demos_manifest_lists_its_operators(function) -> None:
    assert (function.operators, function.input_operators) == operators_in(DEMO / function.file)
    assert set(function.input_operators) < set(function.operators)


@pytest.mark.parametrize("file", sorted(DEMO.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_demos_functions(file: Path) -> None:
    model = onnx.load(file, load_external_data=False)
    expected = operators_of(model.graph.node)
    for function in model.functions:
        expected |= operators_of(function.node)
    expected -= {f"{function.domain}:{function.name}" for function in model.functions}
    operators, _ = operators_in(file)
    assert set(operators) == expected
    assert list(operators) == sorted(operators)
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
    operators, readers = operators_in(path)
    assert set(operators) == {"If", "Exp", "Log", "com.microsoft:Gelu", "Neg"}
    assert set(readers) == {"If", "Exp", "Log"}


def graph_of(nodes, *outputs, name="graph", inputs=("latent", "image")):
    def values(names):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("N", 4)) for n in names]

    return helper.make_graph(nodes, name, values(inputs), values(outputs))


def call(operator, inputs, outputs, domain="", **attributes):
    return helper.make_node(operator, inputs, outputs, domain=domain, **attributes)


OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]


def function_of(name, inputs, outputs, nodes):
    return helper.make_function("own", name, inputs, outputs, nodes, OPSETS)


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
}


@pytest.mark.parametrize(("nodes", "functions", "expected"), READERS.values(), ids=READERS)
def test_readers_of_the_inputs_without_cuda(tmp_path: Path, nodes, functions, expected) -> None:
    """ONNX Runtime would copy the inputs for those to the CPU once, and not in each step."""
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph_of(nodes), functions=functions, opset_imports=OPSETS)
    path.write_bytes(model.SerializeToString())
    _, readers = operators_in(path)
    assert set(_core.onnx_without_cuda(readers)) == expected


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.file)
def test_the_demo_can_run_on_a_gpu(function) -> None:
    assert _core.onnx_without_cuda(function.input_operators) == []


@pytest.mark.parametrize(
    ("operator", "recordable"),
    [("Gemm", True), ("Reshape", True), ("MatMul", False), ("Slice", False), ("If", False)],
)
def test_what_a_gpu_may_record(operator: str, recordable: bool) -> None:
    """Batched MatMul, for one, stages arrays in host memory that is gone at the run's end."""
    assert _core.onnx_recordable(["Neg", operator]) is recordable
