"""The engine's convolution operators against PyTorch in double precision.

Every case runs twice: with the engine's own kernel, and as the standard operators that the file
defines for runtimes without that kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
_core = pytest.importorskip("pyinv._core")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch.nn import functional  # noqa: E402

from pyinv import runtimes  # noqa: E402
from pyinv.export.runtimes.onnx_fusion import DOMAIN, operator_function  # noqa: E402

# Of the largest value in the output. Sums of up to 25 * 128 products in float32, in another order.
TOLERANCE = 2e-6


@dataclass(frozen=True)
class Case:
    transposed: bool
    channels: tuple[int, int]
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    output_padding: int = 0
    batch: int = 2
    after: str = ""
    slope: float = 0.2
    bias: bool = True
    input_first: bool = False
    output_first: bool = False
    sharing: int = 1

    def __str__(self) -> str:
        name = "transposed" if self.transposed else "plain"
        parts = [name, *self.channels, *self.size, *self.kernel, self.stride, *self.pads]
        after = [self.output_padding, self.batch, self.after, *[self.sharing][: self.sharing > 1]]
        return "-".join(map(str, [*parts, *after]))


CONV = Case(False, (16, 24), (9, 7), (3, 3), pads=(1, 1, 1, 1))
TRANSPOSED = Case(True, (24, 16), (5, 6), (4, 4), stride=2, pads=(1, 1, 1, 1), batch=3)
WITH_OPERAND = {"LeakyReluGradient": "A", "Scaled": "F"}
PADS = [(0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (0, 1, 1, 0)]

CASES = [
    # Every kernel and stride, where one algorithm or another must take it.
    *[
        Case(transposed, channels, (8, 7), (kernel, kernel), stride=stride, pads=pads)
        for transposed in (False, True)
        for kernel, stride, pads in [
            (1, 1, PADS[0]), (2, 2, PADS[0]), (3, 1, PADS[0]), (3, 1, PADS[1]), (3, 1, PADS[2]),
            (3, 2, PADS[1]), (4, 2, PADS[0]), (4, 2, PADS[1]), (4, 2, PADS[2]), (4, 2, PADS[3]),
            (4, 1, PADS[0]), (5, 1, PADS[2]), (5, 2, PADS[2]), (3, 3, PADS[0]),
        ]
        for channels in [(16, 8), (5, 3), (3, 17), (70, 9), (1, 1)]
    ],
    # Batches and sizes around the blocks and tiles.
    *[replace(CONV, batch=batch, channels=(32, 64)) for batch in (1, 3, 17)],
    *[replace(TRANSPOSED, batch=batch) for batch in (1, 3, 17)],
    *[replace(TRANSPOSED, transposed=False, size=(12, 14), batch=batch) for batch in (1, 3, 17)],
    *[replace(TRANSPOSED, size=(n, n), batch=5) for n in (1, 2, 3, 4, 9)],
    *[replace(CONV, size=(n, n), batch=9) for n in (1, 2, 3, 4)],
    *[
        replace(CONV, kernel=(5, 5), stride=2, pads=pads, size=(n, n + 1), batch=9, channels=both)
        for n in (5, 6, 7, 12) for pads in PADS for both in [(16, 8), (32, 40)]
    ],
    replace(CONV, channels=(128, 128), batch=4),
    replace(TRANSPOSED, channels=(128, 200), batch=4),
    replace(TRANSPOSED, channels=(300, 8), batch=1),
    # One channel: rows shorter and longer than a register, more rows than a block.
    *[
        replace(CONV, channels=(1, 1), size=size, kernel=kernel, pads=pads)
        for size in [(1, 1), (3, 70), (67, 5), (64, 33)]
        for kernel, pads in [((4, 4), (3, 3, 3, 3)), ((1, 5), (0, 6, 1, 0)), ((3, 1), (4, 0, 2, 1))]
    ],
    # Output padding; kernels and pads that differ by direction.
    *[
        replace(TRANSPOSED, kernel=(k, k), pads=(p, p, p, p), output_padding=1, channels=channels)
        for k, p in [(3, 1), (4, 1), (5, 2)]
        for channels in [(24, 16), (24, 3), (3, 24)]
    ],
    replace(CONV, kernel=(5, 2), pads=(0, 1, 2, 0)),
    replace(CONV, kernel=(2, 5), pads=(0, 3, 1, 2), channels=(16, 3)),
    replace(TRANSPOSED, kernel=(3, 4), pads=(1, 0, 0, 2)),
    replace(CONV, channels=(3, 16), pads=(4, 4, 4, 4)),
    replace(CONV, channels=(16, 3), pads=(4, 4, 4, 4)),
    # What follows the convolution, in each algorithm.
    *[
        replace(case, after=after, slope=slope, bias=bias)
        for case in [
            CONV, TRANSPOSED, replace(CONV, kernel=(5, 5)),
            replace(CONV, channels=(16, 3)), replace(TRANSPOSED, channels=(16, 3)),
            replace(CONV, channels=(3, 16)), replace(CONV, channels=(1, 1)),
        ]
        for after, slope in [
            ("LeakyRelu", 0.0), ("LeakyRelu", 0.2),
            ("LeakyReluGradient", 0.0), ("LeakyReluGradient", 0.1), ("Scaled", 0.0),
        ]
        for bias in ([False] if after in WITH_OPERAND else [False, True])
    ],
    # A factor for several images, in each algorithm.
    *[
        replace(case, after="Scaled", sharing=sharing, batch=batch, output_first=output_first)
        for case in [
            CONV, TRANSPOSED, replace(CONV, kernel=(5, 5)),
            replace(CONV, channels=(16, 3)), replace(TRANSPOSED, channels=(16, 3)),
            replace(CONV, channels=(3, 16)), replace(CONV, channels=(9, 11)),
            replace(CONV, channels=(1, 1)),
        ]
        for sharing, batch in [(6, 12), (7, 7), (50, 100)]
        for output_first in [False, True]
    ],
    # Channels first, in any algorithm.
    *[
        replace(case, input_first=input_first, output_first=output_first, after=after)
        for case in [CONV, TRANSPOSED]
        for channels in [(16, 24), (3, 24), (24, 3)]
        for case in [replace(case, channels=channels)]
        for input_first, output_first in [(True, False), (False, True), (True, True)]
        for after in ["LeakyRelu", "LeakyReluGradient", "Scaled"]
    ],
]  # fmt: skip


def name_of(case: Case) -> str:
    return ("ConvTranspose2d" if case.transposed else "Conv2d") + case.after


def arrays_of(case: Case) -> dict[str, np.ndarray]:
    """Image, weights, and bias, activation or factor, with channels first."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    inputs, outputs = case.channels
    made = {
        "X": normal(case.batch, inputs, *case.size),
        "W": normal(*((inputs, outputs) if case.transposed else (outputs, inputs)), *case.kernel),
    }
    operand = WITH_OPERAND.get(case.after)
    if operand is not None:
        images, *rest = convolved(case, made).shape
        made[operand] = normal(images // case.sharing, *rest)
        made[operand][::2, :, ::2] = 0.0
    elif case.bias:
        made["B"] = normal(outputs)
    return made


def convolved(case: Case, arrays: dict[str, np.ndarray]) -> torch.Tensor:
    x, w = (torch.from_numpy(arrays[name]).double() for name in "XW")
    b = torch.from_numpy(arrays["B"]).double() if "B" in arrays else None
    top, left, bottom, right = case.pads
    if not case.transposed:
        return functional.conv2d(functional.pad(x, (left, right, top, bottom)), w, b, case.stride)
    # PyTorch pads both sides alike: cut the full result instead.
    full = functional.conv_transpose2d(x, w, b, case.stride, output_padding=case.output_padding)
    return full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right]


def expected(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    y = convolved(case, arrays)
    if case.after == "LeakyRelu":
        y = functional.leaky_relu(y, case.slope)
    elif case.after == "LeakyReluGradient":
        y = torch.where(torch.from_numpy(arrays["A"]) > 0, y, case.slope * y)
    elif case.after == "Scaled":
        y = y * torch.from_numpy(arrays["F"]).repeat_interleave(case.sharing, 0)
    return y.numpy()


def model_of(case: Case, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A graph of the one operator, from and to channels first or last as the case says."""
    settings = {
        "strides": [case.stride] * 2,
        "pads": list(case.pads),
        "input_perm": [0, 1, 2, 3] if case.input_first else [0, 3, 1, 2],
        "output_perm": [0, 1, 2, 3] if case.output_first else [0, 2, 3, 1],
    }
    if case.transposed:
        settings["output_padding"] = [case.output_padding] * 2
    if case.after == "Scaled":
        _, *sizes = convolved(case, arrays).shape
        sizes = sizes if case.output_first else [*sizes[1:], sizes[0]]
        settings["split"], settings["joined"] = [-1, case.sharing, *sizes], [-1, *sizes]
    elif case.after:
        settings["slope"] = case.slope
    third = next((name for name in "ABF" if name in arrays), "")
    node = helper.make_node(name_of(case), ["X", "W", third], ["Y"], domain=DOMAIN, **settings)
    images = [name for name in "XAF" if name in arrays]
    graph = helper.make_graph(
        [node],
        "case",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in images],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(arrays[name], name) for name in "WB" if name in arrays],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.functions.append(operator_function(name_of(case), model.opset_import))
    onnx.checker.check_model(model)
    return model


def run_kernel(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    runtimes.load_onnxruntime()
    return _core.OnnxFunction(str(path), threads=2).run(feeds)["Y"]


def run_function(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["Y"], feeds)[0]


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("run", [run_kernel, run_function])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_gives_what_torch_gives(case: Case, run, tmp_path: Path) -> None:
    arrays = arrays_of(case)
    path = tmp_path / "case.onnx"
    onnx.save(model_of(case, arrays), path)
    feeds = {
        name: arrays[name] if first else np.ascontiguousarray(arrays[name].transpose(0, 2, 3, 1))
        for name, first in [(name, case.output_first) for name in "AF"] + [("X", case.input_first)]
        if name in arrays
    }
    actual = run(path, feeds)
    right = expected(case, arrays)
    if not case.output_first:
        actual = actual.transpose(0, 3, 1, 2)
    assert actual.shape == right.shape
    assert np.abs(actual - right).max() <= TOLERANCE * np.abs(right).max()


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", [(3, 1), (4, 2), (5, 2)])
@pytest.mark.parametrize("size", [(2, 2), (4, 4), (6, 5), (16, 16)])
@pytest.mark.parametrize("channels", [(16, 24), (70, 9), (24, 3), (3, 24), (1, 1)])
def test_an_images_result_does_not_depend_on_its_batch(
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    transposed: bool,
    tmp_path: Path,
) -> None:
    """To the last bit, so that targets can be split over batches and machines."""
    case = Case(transposed, channels, size, (kernel[0],) * 2, kernel[1], (1,) * 4, batch=20)
    case = replace(case, pads=(2,) * 4) if kernel[0] == 5 else case
    arrays = arrays_of(case)
    path = tmp_path / "case.onnx"
    onnx.save(model_of(case, arrays), path)
    x = np.ascontiguousarray(arrays["X"].transpose(0, 2, 3, 1))
    whole = run_kernel(path, {"X": x})
    for first, count in [(0, 1), (1, 2), (3, 3), (6, 7), (19, 1)]:
        part = run_kernel(path, {"X": x[first : first + count]})
        np.testing.assert_array_equal(part, whole[first : first + count])


@pytest.mark.parametrize("after", ["LeakyRelu", ""])
@pytest.mark.parametrize("channels", [(16, 24), (16, 3), (3, 16), (9, 11)])
def test_nan_stays_nan(channels: tuple[int, int], after: str, tmp_path: Path) -> None:
    case = replace(CONV, channels=channels, after=after, slope=0.0, batch=4)
    arrays = arrays_of(case)
    arrays["X"][1, :, 4, 4] = np.nan
    path = tmp_path / "case.onnx"
    onnx.save(model_of(case, arrays), path)
    actual = run_kernel(path, {"X": np.ascontiguousarray(arrays["X"].transpose(0, 2, 3, 1))})
    assert np.isnan(actual[1, 3:6, 3:6]).all()
    assert np.isfinite(actual[[0, 2, 3]]).all()


def test_wrong_number_of_channels_is_named(tmp_path: Path) -> None:
    path = tmp_path / "case.onnx"
    onnx.save(model_of(CONV, arrays_of(CONV)), path)
    with pytest.raises(RuntimeError, match="should have 16 channels, has 5"):
        run_kernel(path, {"X": np.zeros((1, 9, 7, 5), np.float32)})


BY_ATTRIBUTE = [
    (replace(CONV, stride=0), "'strides' should be from 1 to 65536, is 0"),
    (replace(CONV, stride=2**62), "'strides' should be from 1 to 65536, is 4611686018427387904"),
    (replace(TRANSPOSED, stride=2**9), "the product of the strides should be at most 65536"),
    (replace(CONV, pads=(0, 0, 2**63 - 1, 2)), "'pads' should be from -65536 to 65536, is 9223"),
    (replace(CONV, pads=(-(2**63), 0, 0, 0)), "'pads' should be from -65536 to 65536, is -922"),
    (replace(TRANSPOSED, output_padding=-1), "'output_padding' should be from 0 to 65536, is -1"),
    (replace(CONV, kernel=(0, 3)), "the weights should have no axis of size 0"),
    (replace(CONV, channels=(0, 16)), "the weights should have no axis of size 0"),
    (replace(TRANSPOSED, channels=(16, 0)), "the weights should have no axis of size 0"),
]
BY_SIZE = [
    *[
        (replace(case, channels=channels, size=size), "an image should have no axis of size 0")
        for case in [CONV, TRANSPOSED]
        for channels in [(16, 24), (24, 3), (3, 24), (1, 1)]  # each algorithm
        for size in [(0, 7), (9, 0)]
    ],
    (replace(CONV, size=(2, 9), pads=(0, 0, 0, 0)), "the output should have no axis of size 0"),
    (replace(TRANSPOSED, size=(1, 9), pads=(2, 0, 2, 0)), "the output should have no axis of size"),
]


@pytest.mark.parametrize(("case", "message"), [*BY_ATTRIBUTE, *BY_SIZE])
def test_what_cannot_be_computed_is_refused(case: Case, message: str, tmp_path: Path) -> None:
    arrays = arrays_of(case)
    path = tmp_path / "case.onnx"
    path.write_bytes(model_of(case, arrays).SerializeToString())
    with pytest.raises(RuntimeError, match=message) as error:
        run_kernel(path, {"X": np.ascontiguousarray(arrays["X"].transpose(0, 2, 3, 1))})
    assert "\n" not in str(error.value)


def test_a_bias_that_is_an_input_is_refused(tmp_path: Path) -> None:
    arrays = arrays_of(CONV)
    model = model_of(CONV, arrays)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "B")
    model.graph.initializer.remove(bias)
    model.graph.input.append(helper.make_tensor_value_info("B", TensorProto.FLOAT, bias.dims))
    path = tmp_path / "case.onnx"
    onnx.save(model, path)
    x = np.ascontiguousarray(arrays["X"].transpose(0, 2, 3, 1))
    with pytest.raises(RuntimeError, match="the bias should be an initializer"):
        run_kernel(path, {"X": x, "B": arrays["B"]})


def test_a_factor_for_a_part_of_the_images_is_refused(tmp_path: Path) -> None:
    case = replace(CONV, after="Scaled", sharing=6, batch=12)
    arrays = arrays_of(case)
    path = tmp_path / "case.onnx"
    onnx.save(model_of(case, arrays), path)
    feeds = {name: np.ascontiguousarray(arrays[name].transpose(0, 2, 3, 1)) for name in "XF"}
    for images, factors in ((11, 2), (12, 1), (6, 2)):
        with pytest.raises(RuntimeError, match="with an image for every 6"):
            run_kernel(path, {"X": feeds["X"][:images], "F": feeds["F"][:factors]})
