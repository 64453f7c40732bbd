"""Names in files of others do not control the terminal, and bytes that are no text are shown."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from pyinv import _core, runtimes
from pyinv.caution import warn
from pyinv.cli import main
from pyinv.errors import InputError, PyinvWarning, RunError, one_line, printable

ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def shown(capsys, *arguments: object) -> str:
    main([str(argument) for argument in arguments])
    return "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, 日本　語, é", "plain, 日本　語, é"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("two\nlines\r", "two\nlines" + r"\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
    ],
)
def test_control_characters_are_shown(text, expected):
    assert printable(text) == expected
    assert str(InputError(text)) == str(RunError(text)) == expected
    assert one_line(ValueError(text)) == " ".join(expected.split()).removesuffix(r"\r")


def test_warnings_are_printable():
    with pytest.warns(PyinvWarning) as warned:
        warn(ESCAPE)
    assert str(warned[0].message).isprintable()


def test_a_bundle_does_not_control_the_terminal(capsys, bundle_path, tmp_path):
    bundle = tmp_path / f"b{ESCAPE.replace('/', '')}"
    bundle.mkdir()
    for file in bundle_path.iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["name"] = ESCAPE
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    image = tmp_path / f"{ESCAPE}.png"
    Image.new("L", (8, 8)).save(image)
    out = tmp_path / f"{ESCAPE}.npz"
    np.savez(tmp_path / "two.npz", **{ESCAPE: np.zeros(2), "b": np.zeros(2)})
    commands = [
        ("info", bundle),
        ("invert", bundle, image, "-o", out, "--max-steps", 1),
        ("invert", bundle, image, "-o", out),  # it exists
        ("invert", bundle, tmp_path / "two.npz", "-o", tmp_path / "a.npz"),
        ("generate", bundle, "-o", tmp_path / f"{ESCAPE}.npy"),
        (ESCAPE,),
        ("invert", bundle, image, ESCAPE, f"--{ESCAPE}"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for command in commands:
            text = shown(capsys, *command)
            assert text
            assert all(line.isprintable() for line in text.splitlines()), (command, text)


def test_bytes_that_a_runtime_quotes_are_shown(tmp_path):
    onnx = pytest.importorskip("onnx")
    value = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("x", "y")]
    node = onnx.helper.make_node("Nonsense", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString().replace(b"Nonsense", b"\xff\xfensense"))
    runtimes.load_onnxruntime()
    with pytest.raises(RuntimeError, match=r"\\xff\\xfensense"):
        _core.OnnxFunction(str(path), threads=1)
