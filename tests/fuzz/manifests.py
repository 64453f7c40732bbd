"""Changed manifests: Python reads what the engine's reader accepts, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from pyinv import _core
from pyinv.bundle import FileRecord, Function, Manifest, parse_manifest
from pyinv.conditions import Condition, Label, OneHot
from pyinv.errors import BundleError, printable
from pyinv.priors import Normal, Uniform

OPERATORS: dict[str, Any] = {"operators": ("Gemm", "Sub"), "input_operators": ("Gemm",)}


def seed(*runtimes: str, **settings: Any) -> dict[str, Any]:
    """Return the description of a manifest with functions for these runtimes."""
    functions = []
    for runtime in runtimes:
        onnx = runtime == "onnx"

        def function(
            name: str,
            loss: str | None = None,
            size: int | None = None,
            onnx: bool = onnx,
            runtime: str = runtime,
        ) -> Function:
            method = name if loss is None else f"{name}_{loss}"
            return Function(
                name,
                runtime,
                f"{method}.onnx" if onnx else "functions.pt",
                loss,
                None if onnx else method,
                size,
                **(OPERATORS if onnx and loss else {}),
            )

        functions += [function("forward"), function("objective", "mse")]
        functions += [function("objective", "l1"), function("normal_equations", "mse", 4096)]
        functions += [function("encode"), function("observe")]
    if "observation_shape" not in settings:
        functions = [function for function in functions if function.name != "observe"]
    files = [*(function.file for function in functions), "weights.bin", "metric.f32"]
    records = {file: FileRecord(144 if file == "metric.f32" else 7, "0a" * 32) for file in files}
    values = {"latent_shape": (6,), "image_shape": (3, 4, 4), "value_range": (-1.0, 1.0)}
    values |= {"prior": Uniform(), "functions": tuple(functions), "files": records}
    return Manifest(**{**values, **settings}).describe()


SEEDS = [
    seed("onnx"),
    seed(
        "onnx",
        "torchscript",
        prior=Normal(1, 2),
        observation_shape=(5,),
        preconditioner="metric.f32",
        conditions={"label": Label(10), "hot": OneHot(3), "text": Condition((2, 4))},
        weights=True,
        name="Bär",
    ),
    seed("torchscript", bounded=False, exporter={"torch": "2.13"}, origin={"seed": 2**64 - 1}),
]

ODD = [
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, 1.0, -0.0, 1e308, 1e-300, 2**31, 2**53, 2**63),
    *(
        2**64,
        -(2**63),
        10**30,
        "",
        "x",
        "\x1b[2J",
        "\x00",
        "\x7f",
        "\x9b31m",
        "a\nb",
        "../x",
        "a/b",
    ),
    *(".", "manifest.json", "\u202e", "é", "onnx", "torchscript", "objective", "mse", "uniform"),
    *([], {}, [1], [[]], [0, 1], [1, 0], [2**31], [2**16, 2**16], {"kind": "normal", "std": 0}),
    *({"kind": "uniform", "low": None}, {"bytes": 1, "sha256": "0"}, 16777216, 16777217),
]
# What JSON text can say and json.dumps does not.
RAW = [
    *("1e999", "-1e999", "1" * 400, "1" * 5000, "1e-400", "NaN", "Infinity", "-Infinity", "01"),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\u001b[31m"', '"\\ud83d\\ude00"', "nul"),
    *("[" * 100_000, "[" * 63 + "]" * 63, '{"a":' * 70 + "1" + "}" * 70, '{"a":1,"a":2}', "1.0"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a document."""
    found = [path]
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in entries:
            found += places(each, (*path, key))
    return found


def changed(number: int) -> bytes:
    """Return the manifest of this number."""
    random = np.random.default_rng(number)
    described = json.loads(json.dumps(SEEDS[number % len(SEEDS)]))
    raw: list[str] = []
    for _ in range(int(random.integers(1, 3))):
        paths = places(described)
        path = paths[int(random.integers(len(paths)))]
        if not path:
            continue
        at = described
        for key in path[:-1]:
            at = at[key]
        what = random.random()
        if what < 0.15:
            del at[path[-1]]
        elif what < 0.3:
            raw.append(RAW[int(random.integers(len(RAW)))])
            at[path[-1]] = f"raw-{len(raw) - 1}"
        elif what < 0.4 and isinstance(at, dict):
            at[str(ODD[int(random.integers(len(ODD)))])] = at.pop(path[-1])
        elif what < 0.5:
            other: Any = described
            for key in paths[int(random.integers(len(paths)))]:
                other = other[key]
            at[path[-1]] = json.loads(json.dumps(other))
        else:
            at[path[-1]] = ODD[int(random.integers(len(ODD)))]
    text = json.dumps(described, ensure_ascii=bool(random.random() < 0.5))
    for index, value in enumerate(raw):
        text = text.replace(f'"raw-{index}"', value)
    what = random.random()
    if what < 0.1:  # a key twice
        keys = [key for key in ('"format_version": 1', '"batch_norm": "eval"') if key in text]
        text = text.replace(keys[0], f"{keys[0]}, {keys[0]}") if keys else text
    content = bytearray(text.encode())
    if what > 0.8:
        for _ in range(int(random.integers(1, 4))):
            at = int(random.integers(len(content)))
            content[at : at + int(random.integers(2))] = random.bytes(int(random.integers(2)))
    if what > 0.97:
        content = content[: int(random.integers(len(content)))]
    return bytes(content)


def refusal(read: Callable[[bytes], object], content: bytes) -> str:
    try:
        read(content)
    except (BundleError, RuntimeError) as error:
        return str(error)
    return ""


def check(number: int) -> None:
    content = changed(number)
    verdict = refusal(_core.check_manifest, content)
    shown = refusal(lambda content: parse_manifest(content, "B"), content)
    assert shown == (verdict and printable(f"B: {verdict}"))
    assert shown.isprintable(), ascii(shown)
    if not verdict:
        manifest, _ = parse_manifest(content, "B")
        assert Manifest.from_description(manifest.describe()) == manifest
        assert "\x1b" not in manifest.name
