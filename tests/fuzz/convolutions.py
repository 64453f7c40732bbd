"""Convolutions of any shape and attributes give PyTorch's result, or are refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from pyinv import _core, runtimes

MOST = 2**16  # a stride or a padding
LARGE = 2**22  # values of an output that a test computes
ODD = (0, -1, 17, MOST, MOST + 1, 2**31, 2**62, 2**63 - 1, -MOST, -(2**63))
TOLERANCE = 2e-6
PERMUTATIONS = {True: [0, 1, 2, 3], False: [0, 3, 1, 2]}
KINDS = ("", "LeakyRelu", "LeakyReluGradient", "Scaled", "ByTarget", "WeightGradient")


def prepare() -> None:
    runtimes.load_onnxruntime()
    torch.set_num_threads(1)


def check(number: int) -> None:
    case = Case(np.random.default_rng(number))
    if case.is_large:
        return
    refusal = ""
    try:
        actual = case.run()
    except RuntimeError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert case.is_valid == (not refusal), f"{vars(case)}: {refusal or 'accepted'}"
    if refusal:
        return
    expected = case.expected()
    assert actual.shape == expected.shape, (vars(case), actual.shape, expected.shape)
    largest = np.abs(expected).max(initial=1e-30)
    assert np.abs(actual - expected).max(initial=0) <= TOLERANCE * largest, vars(case)


class Case:
    """An operator, its attributes and the shapes of its inputs."""

    def __init__(self, random: np.random.Generator) -> None:
        def size(most: int) -> int:
            return 0 if random.random() < 0.02 else int(random.integers(1, most + 1))

        def setting(low: int, high: int) -> int:
            odd = random.random() < 0.02
            return int(random.choice(ODD) if odd else random.integers(low, high + 1))

        self.seed = int(random.integers(2**31))
        self.kind = str(random.choice(KINDS))
        self.transposed = bool(random.random() < 0.5) and self.kind != "WeightGradient"
        self.batch = size(3) if random.random() < 0.9 else 0
        most = int(random.choice([1, 4, 20, 40]))
        self.inputs, self.outputs = size(most), size(most)
        self.size = (size(12), size(12))
        self.kernel = (size(5), size(5))
        if random.random() < 0.5:
            self.kernel = (self.kernel[0],) * 2
        self.strides = [setting(1, 3), setting(1, 3)]
        if random.random() < 0.5:
            self.strides = [self.strides[0]] * 2
        self.pads = [setting(-2, 4) for _ in range(4)]
        if random.random() < 0.5:
            self.pads = [self.pads[0]] * 4
        self.output_padding = [setting(0, 2), setting(0, 2)]
        self.sharing = setting(1, 3) if self.kind == "Scaled" else 1
        self.first = (bool(random.random() < 0.5), bool(random.random() < 0.5))
        self.third = str(random.choice(["none", "initializer", "input"]))

    @property
    def out(self) -> list[int]:
        sizes = []
        for axis in range(2):
            n, k, s = self.size[axis], self.kernel[axis], self.strides[axis]
            pads = self.pads[axis] + self.pads[axis + 2]
            if self.transposed:
                sizes.append((n - 1) * s + k - pads + self.output_padding[axis])
            else:
                sizes.append((n + pads - k) // max(s, 1) + 1)
        return sizes

    @property
    def is_large(self) -> bool:
        """Whether the result is too large to compare, though an engine with the memory may run."""
        return self.settings_are_valid and self.outputs * max(self.out) * min(self.out) > LARGE

    @property
    def settings_are_valid(self) -> bool:
        return (
            all(1 <= s <= MOST for s in self.strides)
            and all(-MOST <= p <= MOST for p in self.pads)
            and (not self.transposed or self.strides[0] * self.strides[1] <= MOST)
            and (not self.transposed or all(0 <= p <= MOST for p in self.output_padding))
        )

    @property
    def is_valid(self) -> bool:
        sizes = (*self.size, *self.kernel, self.inputs, self.outputs)
        return (
            self.settings_are_valid
            and min(sizes) > 0
            and min(self.out) > 0
            and self.sharing > 0
            and self.batch % self.sharing == 0
            and not (self.kind in ("", "LeakyRelu") and self.third == "input")
        )

    def arrays(self) -> dict[str, Any]:
        """Return X, W and what the kind takes beside, channels first."""
        random = np.random.default_rng(self.seed)
        pair = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        own = (self.batch,) if self.kind == "ByTarget" else ()
        ok = self.is_valid
        out = [size if ok else 3 for size in self.out]
        shapes: dict[str, tuple[int, ...]] = {"X": (self.batch, self.inputs, *self.size)}
        if self.kind == "WeightGradient":
            shapes["G"] = (self.batch, self.outputs, *out)
        else:
            shapes["W"] = (*own, *pair, *self.kernel)
        if self.kind in ("LeakyReluGradient", "Scaled"):
            shapes["A"] = (self.batch // max(self.sharing, 1), self.outputs, *out)
        elif self.kind in ("", "LeakyRelu") and self.third != "none":
            shapes["B"] = (self.outputs,)
        made = {k: random.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
        if self.kind in ("ByTarget", "WeightGradient"):
            taps = self.kernel[0] * self.kernel[1]
            made["E"] = np.eye(taps, dtype=np.float32).reshape(taps, 1, *self.kernel)
        return made

    def run(self) -> Any:
        arrays = self.arrays()
        settings: dict[str, Any] = {
            "strides": self.strides,
            "pads": self.pads,
            "input_perm": PERMUTATIONS[self.first[0]],
            "output_perm": PERMUTATIONS[self.first[1]],
        }
        if not self.first[1] and self.kind != "WeightGradient":
            settings["output_perm"] = [0, 2, 3, 1]
        if self.transposed:
            settings["output_padding"] = self.output_padding
        if self.kind == "Scaled":
            settings["split"] = [-1, self.sharing, 1, 1, 1]
        elif self.kind.startswith("Leaky"):
            settings["slope"] = 0.2
        name = ("ConvTranspose2d" if self.transposed else "Conv2d") + self.kind
        node = helper.make_node(name, list(arrays), ["Y"], domain="pyinv", **settings)
        feeds = {
            key: value
            for key, value in arrays.items()
            if key in "XAG"
            or (key == "W" and self.kind == "ByTarget")
            or (key == "B" and self.third == "input")
        }
        rank = 3 if self.kind == "WeightGradient" else 4
        graph = helper.make_graph(
            [node],
            "case",
            [
                helper.make_tensor_value_info(key, TensorProto.FLOAT, [None] * value.ndim)
                for key, value in feeds.items()
            ],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * rank)],
            [numpy_helper.from_array(v, k) for k, v in arrays.items() if k not in feeds],
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("pyinv", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        with open("case.onnx", "wb") as file:
            file.write(model.SerializeToString())
        for key, first in {"X": self.first[0], "A": self.first[1], "G": self.first[1]}.items():
            if key in feeds and not first:
                feeds[key] = np.ascontiguousarray(feeds[key].transpose(0, 2, 3, 1))
        made = _core.OnnxFunction("case.onnx", threads=1).run(feeds)["Y"]
        return made if self.first[1] or rank == 3 else made.transpose(0, 3, 1, 2)

    def expected(self) -> Any:
        arrays = {key: torch.from_numpy(a).double() for key, a in self.arrays().items()}
        if self.kind == "WeightGradient":
            pair = (self.outputs, self.inputs)
            weights = torch.zeros(self.batch, *pair, *self.kernel, dtype=torch.double)
            weights.requires_grad_(True)
            if self.batch:
                self.convolved(arrays["X"], weights).backward(arrays["G"])
            gradient = torch.zeros_like(weights) if weights.grad is None else weights.grad
            return gradient.flatten(2).numpy()
        y = self.convolved(arrays["X"], arrays["W"])
        if "B" in arrays:
            y = y + arrays["B"][:, None, None]
        if self.kind == "LeakyRelu":
            y = functional.leaky_relu(y, 0.2)
        elif self.kind == "LeakyReluGradient":
            y = torch.where(arrays["A"] > 0, y, 0.2 * y)
        elif self.kind == "Scaled":
            y = y * arrays["A"].repeat_interleave(self.sharing, 0)
        return y.numpy()

    def convolved(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if self.batch == 0:
            return torch.zeros(0, self.outputs, *self.out, dtype=torch.double)
        if w.ndim == 5:
            pairs = zip(x, w, strict=True)
            return torch.cat([self.convolved_alike(own[None], weights) for own, weights in pairs])
        return self.convolved_alike(x, w)

    def convolved_alike(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        top, left, bottom, right = self.pads
        strides = tuple(self.strides)
        if not self.transposed:
            return functional.conv2d(_padded(x, left, right, top, bottom), w, None, strides)
        full = functional.conv_transpose2d(x, w, None, strides)
        down, across = self.output_padding
        return _padded(full, -left, across - right, -top, down - bottom)


def _padded(x: torch.Tensor, *pads: int) -> torch.Tensor:
    """Pad or crop, also by more than the image's size if the other side is padded."""
    larger = functional.pad(x, [max(pad, 0) for pad in pads])
    return functional.pad(larger, [min(pad, 0) for pad in pads])
