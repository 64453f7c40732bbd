"""Changed TorchScript files: each runs, or is refused in one line, by the runtime and the exporter.

Half of the files have records changed as text and bytes and are packed again, so that they get past
the zip file's checksums; the others have bytes of the zip file changed.
"""

from __future__ import annotations

import functools
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pyinv import _torch, runtimes
from pyinv.errors import ExportError
from pyinv.export import export
from pyinv.export.capture.torchscript_reader import Scripted, load_torchscript
from pyinv.priors import Uniform

LATENT, IMAGE = 4, (1, 4, 4)
# Written into source and pickles: names, numbers and ends of lines and brackets.
TEXTS = (
    b"torch.from_file", b"torch.save", b"ops.prim", b"ops._test.leaky_relu", b"getattr(torch, ",
    b"__torch__.torch.classes.quantized.LinearPackedParamsBase", b"__setstate__", b"CONSTANTS.c9",
    b"self.weight_99", b"-1", b"0", b"9223372036854775807", b"1e999", b"[", b"(", b")", b"]", b'"',
    b"'''", b"\n", b"#", b"# type: ", b"\\", b"\x00", b"\xff", b".", b", ", b"None", b"return ",
    b"if ", b"while True:\n", b"inf", b"Q", b"R", b"b", b"q\x00", b"h\x00", b"h\xff", b"(", b"t",
)  # fmt: skip
INTEGERS = (0, 1, 2, 3, 127, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(LATENT, 8)
        self.up = nn.ConvTranspose2d(2, 1, 2, stride=2)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.dense(latent)).reshape(-1, 2, 2, 2)
        return torch.tanh(self.up(hidden))


def prepare() -> None:
    runtimes.load_torchscript()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = Generator().eval()
    export(
        generator,
        Path("bundle"),
        latent_shape=LATENT,
        prior=Uniform(),
        losses="mse",
        runtimes=("torchscript",),
    )
    torch.jit.script(generator).save("scripted.pt")
    torch.jit.trace(generator, torch.zeros(2, LATENT)).save("traced.pt")
    files()


@functools.cache
def files() -> list[bytes]:
    paths = ("bundle/functions.pt", "scripted.pt", "traced.pt")
    return [Path(path).read_bytes() for path in paths]


def some(random: np.random.Generator, choices: tuple[object, ...]) -> object:
    return choices[int(random.integers(len(choices)))]


def changed(random: np.random.Generator, content: bytes) -> bytes:
    """Change, remove or insert bytes, numbers or texts at a few places."""
    made = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        at = int(random.integers(len(made) + 1))
        what = random.random()
        if what < 0.3:
            made[at : at + 1] = random.bytes(1)
        elif what < 0.45:
            del made[at : at + int(random.integers(1, 30))]
        elif what < 0.6:
            number = int(some(random, INTEGERS))  # type: ignore[call-overload]
            made[at : at + 4] = number.to_bytes(4, "little")
        elif what < 0.75:
            start = int(random.integers(len(made) + 1))
            made[at:at] = made[start : start + int(random.integers(1, 60))]
        else:
            made[at:at] = bytes(some(random, TEXTS))  # type: ignore[call-overload]
    return bytes(made)


def words_changed(random: np.random.Generator, source: bytes) -> bytes:
    """Replace a name or number of a source by another of its own, or by a text."""
    words = list(re.finditer(rb"[\w.]+", source))
    for _ in range(int(random.integers(1, 4))):
        word = words[int(random.integers(len(words)))]
        other = words[int(random.integers(len(words)))][0]
        if random.random() < 0.5:
            other = bytes(some(random, TEXTS))  # type: ignore[call-overload]
        source = source[: word.start()] + other + source[word.end() :]
        words = list(re.finditer(rb"[\w.]+", source))
    return source


def repacked(random: np.random.Generator, content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    names = [name for name in records if not name.endswith(".debug_pkl")]
    likely = [name for name in names if name.endswith((".py", ".pkl"))]
    for _ in range(int(random.integers(1, 3))):
        name = str(some(random, tuple(likely if random.random() < 0.8 else names)))
        if name not in records:
            continue
        what = random.random()
        if what < 0.05:
            del records[name]
        elif what < 0.1:
            records[name.replace("data", "DATA").replace("code", "Code")] = records[name]
        elif name.endswith(".py") and what < 0.6:
            records[name] = words_changed(random, records[name])
        else:
            records[name] = changed(random, records[name])
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, record in records.items():
            kind = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), record, compress_type=kind)
    return made.getvalue()


def check(number: int) -> None:
    random = np.random.default_rng(number)
    kind = max(0, number % 4 - 1)  # half of them a bundle's
    content = files()[kind]
    make = repacked if random.random() < 0.7 else changed
    file = Path("changed.pt")
    file.write_bytes(make(random, content))
    rows = int(random.integers(0, 4))
    latent = random.random((rows, LATENT), dtype=np.float32)
    image = random.random((rows, *IMAGE), dtype=np.float32)
    said = []
    try:
        if kind:
            _torch.TorchFunction(str(file), "forward", threads=1)
        else:
            _torch.TorchObjective(str(file), "objective_mse", threads=1)
            function = _torch.TorchFunction(str(file), "objective_mse", threads=1)
            function.run({"latent": latent, "image": image})
    except (RuntimeError, ValueError) as error:
        said.append(str(error))
    try:
        module = load_torchscript(file)
        if kind:
            Scripted(module)
    except ExportError as error:
        said.append(str(error))
    for line in said:
        assert line.isprintable(), ascii(line)
        assert len(line) < 1000, line
