"""Changed ONNX files of a bundle: each runs, or is refused in one line."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx

from pyinv import _core, runtimes
from support.paths import REPOSITORY
from support.tiny_bundle import write_tiny_bundle

DEMO = REPOSITORY / "pyinv" / "data" / "digits.bundle"
INTEGERS = (0, 1, -1, 2, 7, 127, 128, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))
TEXTS = ("", "x", "../weights.bin", "/etc/passwd", "a\x1b[2J", "weights.bin", "latent", "Conv")


def prepare() -> None:
    runtimes.load_onnxruntime()
    write_tiny_bundle(Path("tiny"), losses=("mse", "whitened"), normal_equations=("mse",))
    files()


@functools.cache
def files() -> list[tuple[Path, bytes]]:
    found = [*sorted(DEMO.glob("*.onnx")), *sorted(Path("tiny").glob("*.onnx"))]
    return [(path, path.read_bytes()) for path in found]


def changed(random: np.random.Generator, content: bytes) -> bytes:
    if random.random() < 0.5:
        changed = bytearray(content)
        for _ in range(int(random.integers(1, 8))):
            at = int(random.integers(len(changed)))
            what = random.random()
            if what < 0.6:
                changed[at] = int(random.integers(256))
            elif what < 0.8:
                del changed[at : at + int(random.integers(1, 9))]
            else:
                changed[at:at] = random.bytes(int(random.integers(1, 9)))
        return bytes(changed[: int(random.integers(len(changed)))] if what > 0.98 else changed)
    model = onnx.load_from_string(content)
    for _ in range(int(random.integers(1, 3))):
        change(random, model)
    return model.SerializeToString()


def change(random: np.random.Generator, model: onnx.ModelProto) -> None:
    """Change an attribute, the shape of a weight, or what a node reads."""
    number = int(random.choice(INTEGERS))
    text = str(random.choice(TEXTS))
    graph = model.graph
    nodes = [node for node in graph.node if node.attribute]
    what = random.random()
    if what < 0.5 and nodes:
        node = nodes[int(random.integers(len(nodes)))]
        attribute = node.attribute[int(random.integers(len(node.attribute)))]
        if attribute.ints:
            attribute.ints[int(random.integers(len(attribute.ints)))] = number
        elif attribute.type == onnx.AttributeProto.INT:
            attribute.i = number
        elif attribute.type == onnx.AttributeProto.FLOAT:
            attribute.f = float(random.choice([0.0, np.nan, np.inf, -1e30]))
        else:
            node.attribute.remove(attribute)
    elif what < 0.7:
        tensor = graph.initializer[int(random.integers(len(graph.initializer)))]
        if tensor.dims and random.random() < 0.5:
            tensor.dims[int(random.integers(len(tensor.dims)))] = number
        elif tensor.external_data:
            entry = tensor.external_data[int(random.integers(len(tensor.external_data)))]
            entry.value = text if random.random() < 0.5 else str(number)
    elif what < 0.85:
        node = graph.node[int(random.integers(len(graph.node)))]
        if node.input:
            names = [name for each in graph.node for name in each.input]
            node.input[int(random.integers(len(node.input)))] = str(random.choice([*names, text]))
    else:
        values = [*graph.input, *graph.output]
        shape = values[int(random.integers(len(values)))].type.tensor_type.shape
        if shape.dim:
            shape.dim[int(random.integers(len(shape.dim)))].dim_value = number


def check(number: int) -> None:
    random = np.random.default_rng(number)
    path, content = files()[number % len(files())]
    target = path.parent if path.parent != DEMO else Path("demo")
    if not target.exists():
        target.mkdir()
        (target / "weights.bin").symlink_to(DEMO / "weights.bin")
    file = target / "changed.onnx"
    file.write_bytes(changed(random, content))
    rows = int(random.integers(0, 4))
    refusal = ""
    try:
        if "forward" in path.name:
            function = _core.OnnxFunction(str(file), threads=1)
        else:
            _core.OnnxObjective(str(file), threads=1)
            function = _core.OnnxFunction(str(file), threads=1)
        sizes = {"latent": (6,) if target.name == "tiny" else (16,)}
        sizes["image"] = (1, 8, 8) if target.name == "tiny" else (1, 16, 16)
        wanted = ["latent"] if "forward" in path.name else ["latent", "image"]
        function.run({n: random.random((rows, *sizes[n]), dtype=np.float32) for n in wanted})
    except (RuntimeError, ValueError) as error:
        refusal = str(error)
    assert refusal.isprintable(), ascii(refusal)
