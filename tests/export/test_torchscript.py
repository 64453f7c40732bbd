"""TorchScript at both ends of export: bundles that it runs, and generators that come as it."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

import onnxruntime  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from pyinv.bundle import Bundle  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import ExportError  # noqa: E402
from pyinv.export import export, load_generator  # noqa: E402
from pyinv.priors import Normal  # noqa: E402
from support.generators import (  # noqa: E402
    BatchNormGenerator,
    ConditionalGenerator,
    Dcgan,
    Mlp,
    PixelShuffleGenerator,
    UpsampleGenerator,
    VaeDecoder,
    seeded,
)

TOLERANCE = 1e-5
BATCHES = (1, 3, 17)


def charbonnier(image: Tensor, target: Tensor) -> Tensor:
    return ((image - target).square() + 1e-3).sqrt().mean((1, 2, 3))


def root_mean_square(image: Tensor, target: Tensor) -> Tensor:
    """A loss whose gradient is made from the loss itself."""
    return ((image - target).square().mean((1, 2, 3)) + 1e-6).sqrt()


LOSSES: dict[str, Any] = {
    "mse": "mse",
    "bce": "bce",
    "l1": "l1",
    "charbonnier": charbonnier,
    "rms-error": root_mean_square,
    "rms.error": root_mean_square,
}
METHODS = {
    **{name: f"objective_{name}" for name in ("mse", "bce", "l1", "charbonnier")},
    "rms-error": "objective_rms_error",
    "rms.error": "objective_rms_error_2",
}


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]
    value_range: tuple[float, float] = (-1.0, 1.0)
    options: dict[str, Any] = field(default_factory=dict)
    losses: tuple[str, ...] = ("mse", "bce")
    runtimes: tuple[str, ...] = ("torchscript",)


BOTH = ("torchscript", "onnx")
CASES = {
    "dcgan": Case(lambda: Dcgan(latent=10, width=2), (10,), (3, 64, 64), runtimes=BOTH),
    "pixel_shuffle": Case(lambda: PixelShuffleGenerator(width=6), (32,), (3, 16, 16)),
    "upsample": Case(lambda: UpsampleGenerator(latent=12, width=4), (12,), (3, 32, 32)),
    "mlp": Case(lambda: Mlp(width=16), (20,), (1, 28, 28), (0.0, 1.0)),
    "vae": Case(lambda: VaeDecoder(width=4), (16,), (1, 28, 28), (0.0, 1.0)),
    "batch_norm": Case(
        BatchNormGenerator, (12, 1, 1), (1, 8, 8), losses=tuple(LOSSES), runtimes=BOTH
    ),
    "conditional": Case(
        ConditionalGenerator, (10,), (1, 8, 8), options={"condition_shape": 4}, runtimes=BOTH
    ),
    "coupled": Case(BatchNormGenerator, (12, 1, 1), (1, 8, 8), options={"batch_norm": "batch"}),
}


def load(path: Path, **options: Any) -> Any:
    return torch.jit.load(str(path / "functions.pt"), **options)


def code(path: Path) -> str:
    with zipfile.ZipFile(path / "functions.pt") as archive:
        return "".join(archive.read(n).decode() for n in archive.namelist() if n.endswith(".py"))


class Exported:
    """A bundle for both runtimes, with the generator it was made from."""

    def __init__(self, case: Case, path: Path) -> None:
        self.case = case
        self.path = path
        self.generator = seeded(case.make())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            export(
                self.generator,
                path,
                latent_shape=case.latent_shape,
                prior=Normal(),
                losses={name: LOSSES[name] for name in case.losses},
                normal_equations=False,
                value_range=case.value_range,
                runtimes=case.runtimes,
                **case.options,
            )
        self.bundle = Bundle.open(path)
        self.scripted = load(path)

    def draw(self, batch: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(batch)
        low, high = self.case.value_range
        size = int(np.prod(self.case.latent_shape))
        image = torch.rand(batch, *self.case.image_shape, generator=random)
        drawn = {
            "latent": torch.randn(batch, size, generator=random).clamp(-1, 1),
            "image": low + (high - low) * image,
        }
        if "condition_shape" in self.case.options:
            drawn["condition"] = torch.rand(batch, 4, generator=random)
        return drawn

    def run(self, loss: str | None, inputs: dict[str, Tensor], *out: Any) -> Any:
        manifest = self.bundle.manifest
        if loss is None:
            function = manifest.forward("torchscript")
            inputs = {name: x for name, x in inputs.items() if name != "image"}
        else:
            function = manifest.objective(loss, "torchscript")
        with torch.no_grad(), torch.jit.optimized_execution(False):
            return getattr(self.scripted, function.method)(*inputs.values(), *out)

    def run_onnx(self, loss: str | None, inputs: dict[str, Tensor]) -> list[Tensor]:
        manifest = self.bundle.manifest
        function = manifest.forward("onnx") if loss is None else manifest.objective(loss, "onnx")
        session = onnxruntime.InferenceSession(
            str(self.bundle.file(function)), providers=["CPUExecutionProvider"]
        )
        feed = {value.name: inputs[value.name].numpy() for value in session.get_inputs()}
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    def image(self, inputs: dict[str, Tensor]) -> Tensor:
        generator = copy.deepcopy(self.generator)
        if self.case.options.get("batch_norm") == "batch":
            generator.train()
        condition = [inputs["condition"]] if "condition" in inputs else []
        return generator(inputs["latent"].reshape(-1, *self.case.latent_shape), *condition)

    def objective(self, loss: str, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        latent = inputs["latent"].clone().requires_grad_(True)
        image, target = self.image({**inputs, "latent": latent}), inputs["image"]
        low, high = self.case.value_range
        if callable(LOSSES[loss]):
            value = LOSSES[loss](image, target)
        elif loss == "bce":
            value = functional.binary_cross_entropy(
                (image - low) / (high - low), (target - low) / (high - low), reduction="none"
            ).mean((1, 2, 3))
        else:
            each = {"mse": functional.mse_loss, "l1": functional.l1_loss}[loss]
            value = each(image, target, reduction="none").mean((1, 2, 3))
        (gradient,) = torch.autograd.grad(value.sum(), latent)
        return value.detach(), gradient


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Exports each case once."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            made[name] = Exported(CASES[name], tmp_path_factory.mktemp("scripted") / name)
        return made[name]

    return get


def relative_error(got: Tensor, right: Tensor) -> float:
    assert got.shape == right.shape
    assert got.dtype == torch.float32
    return float((got - right).abs().max() / right.abs().max())


class Small(nn.Module):
    """A linear map of 12 latents to a 1x8x8 image in [-1, 1], then whatever a test adds."""

    def __init__(self, then: Any = None) -> None:
        super().__init__()
        self.dense = nn.Linear(12, 64)
        self.then = then or nn.Identity()

    def forward(self, latent: Tensor) -> Tensor:
        return self.then(torch.tanh(self.dense(latent)).view(-1, 1, 8, 8))


def export_small(generator: nn.Module, path: Path, **options: Any) -> Path:
    defaults = {
        "latent_shape": 12,
        "prior": Normal(),
        "losses": "mse",
        "normal_equations": False,
        "runtimes": "torchscript",
    }
    return export(generator, path, **{**defaults, **options})


# ------------------------------------------------------------------ what the functions compute


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CASES)
def test_functions_equal_pytorchs(
    exported: Callable[[str], Exported], name: str, batch: int
) -> None:
    case = exported(name)
    inputs = case.draw(batch)
    image = case.run(None, inputs)
    assert image.is_contiguous()
    with torch.no_grad():
        assert relative_error(image, case.image(inputs)) <= TOLERANCE
    for loss in case.case.losses:
        for mine, right in zip(case.run(loss, inputs), case.objective(loss, inputs), strict=True):
            assert relative_error(mine, right) <= TOLERANCE, loss


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.runtimes == BOTH])
def test_both_runtimes_agree(exported: Callable[[str], Exported], name: str) -> None:
    case = exported(name)
    inputs = case.draw(3)
    assert relative_error(case.run(None, inputs), *case.run_onnx(None, inputs)) <= TOLERANCE
    for loss in case.case.losses:
        for mine, right in zip(case.run(loss, inputs), case.run_onnx(loss, inputs), strict=True):
            assert relative_error(mine, right) <= TOLERANCE, loss


@pytest.mark.parametrize("name", CASES)
def test_results_go_where_they_are_wanted(exported: Callable[[str], Exported], name: str) -> None:
    case = exported(name)
    inputs = case.draw(3)
    before = {key: x.clone() for key, x in inputs.items()}
    for loss in case.case.losses:
        right = case.run(loss, inputs)
        out = tuple(torch.full_like(x, torch.nan) for x in right)
        places = [x.data_ptr() for x in out]
        got = case.run(loss, inputs, out)
        assert [x.data_ptr() for x in got] == [x.data_ptr() for x in out] == places
        for mine, expected in zip(out, right, strict=True):
            assert relative_error(mine, expected) <= 1e-6, loss
    assert all(torch.equal(before[key], x) for key, x in inputs.items())


def test_the_last_operations_write_the_results(exported: Callable[[str], Exported]) -> None:
    for name, case in CASES.items():
        for loss in set(case.losses) - {"rms-error", "rms.error"}:
            source = getattr(exported(name).scripted, METHODS[loss]).code
            assert len(re.findall(r"out=\(out\w*\)\[[01]\]", source)) == 2, (name, loss)
            assert "copy_" not in source, (name, loss)
    # The gradient takes the loss, which therefore is there before the end.
    source = exported("batch_norm").scripted.objective_rms_error.code
    assert source.count("copy_") == 1


def test_rectifiers_and_activations_take_one_operation(
    exported: Callable[[str], Exported],
) -> None:
    for name, backward in (
        ("dcgan", ("threshold_backward", "tanh_backward")),
        ("pixel_shuffle", ("leaky_relu_backward", "tanh_backward")),
        ("mlp", ("leaky_relu_backward", "sigmoid_backward")),
    ):
        source = exported(name).scripted.objective_mse.code
        assert all(operator in source for operator in backward)
        assert "torch.where" not in source


# ------------------------------------------------------------------------ what the file holds


def test_the_manifest_names_the_methods(exported: Callable[[str], Exported]) -> None:
    manifest = exported("batch_norm").bundle.manifest
    assert manifest.runtimes == ("torchscript", "onnx")
    assert manifest.forward().file == "functions.pt"
    assert manifest.forward().method == "forward"
    assert {loss: manifest.objective(loss).method for loss in LOSSES} == METHODS
    assert "onnx_opset" in manifest.exporter


def test_signatures_are_the_contracts(exported: Callable[[str], Exported]) -> None:
    scripted = exported("conditional").scripted
    assert str(scripted.forward.schema).partition("self, ")[2] == (
        "Tensor latent, Tensor condition) -> Tensor"
    )
    objective = str(scripted.objective_mse.schema).partition("self, ")[2]
    inputs = "Tensor latent, Tensor image, Tensor condition"
    assert objective == f"{inputs}, (Tensor, Tensor)? out=None) -> ((Tensor, Tensor))"


def test_each_weight_is_stored_once(exported: Callable[[str], Exported]) -> None:
    for name in CASES:
        case = exported(name)
        assert not case.scripted.training
        assert all(not buffer.requires_grad for buffer in case.scripted.buffers())
        assert {buffer.dtype for buffer in case.scripted.buffers()} == {torch.float32}
        with zipfile.ZipFile(case.path / "functions.pt") as archive:
            names = [n for n in archive.namelist() if n.startswith("functions/data/")]
            stored = [archive.read(n) for n in names]
        assert len(set(stored)) == len(stored), name
    # Forward and backward pass share them, but for convolutions that are flipped.
    weights = sum(p.numel() * 4 for p in exported("mlp").generator.parameters() if p.ndim > 1)
    assert weights <= (exported("mlp").path / "functions.pt").stat().st_size < weights + 32768


class OnesAndPositions(nn.Module):
    """Tensors that the generator makes, of sizes that depend on the batch."""

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], 1, 8, 8)
        places = torch.arange(8, dtype=torch.float32).expand(x.shape[0], 1, 8, 8) / 8
        zeros = torch.zeros_like(x)
        return torch.cat([x, ones, places, zeros], 1).mean(1, keepdim=True)


@pytest.mark.parametrize("name", [*CASES, "made tensors"])
def test_no_device_is_burnt_in(
    exported: Callable[[str], Exported], tmp_path: Path, name: str
) -> None:
    """The meta device stands for every other: it refuses to meet a tensor of the CPU."""
    if name == "made tensors":
        path = export_small(Small(OnesAndPositions()), tmp_path / "b")
        inputs = {"latent": torch.zeros(3, 12), "image": torch.zeros(3, 1, 8, 8)}
        assert "device=ops.prim.device(latent)" in code(path)
    else:
        path, inputs = exported(name).path, exported(name).draw(3)
    assert "torch.device(" not in code(path)
    scripted = load(path, map_location="meta")
    moved = {key: x.to("meta") for key, x in inputs.items()}
    out = (torch.empty(3, device="meta"), torch.empty_like(moved["latent"]))
    loss, gradient = scripted.objective_mse(*moved.values())
    written = scripted.objective_mse(*moved.values(), out)
    assert {x.device.type for x in (loss, gradient, *written)} == {"meta"}
    moved.pop("image")
    assert scripted.forward(*moved.values()).device.type == "meta"


def test_methods_freeze(exported: Callable[[str], Exported]) -> None:
    case = exported("dcgan")
    inputs = case.draw(3)
    frozen = torch.jit.freeze(load(case.path), preserved_attrs=["objective_mse"])
    assert "GetAttr" not in str(frozen.objective_mse.graph)
    with torch.no_grad():
        for _ in range(3):
            loss, gradient = frozen.objective_mse(*inputs.values())
    right = case.run("mse", inputs)
    assert relative_error(loss, right[0]) <= TOLERANCE
    assert relative_error(gradient, right[1]) <= TOLERANCE


def test_the_same_generator_gives_the_same_file(tmp_path: Path) -> None:
    generator = seeded(BatchNormGenerator())
    for name in "ab":
        export_small(generator, tmp_path / name, latent_shape=(12, 1, 1))
    first, second = ((tmp_path / name / "functions.pt").read_bytes() for name in "ab")
    assert first == second
    with zipfile.ZipFile(tmp_path / "a" / "functions.pt") as archive:
        assert not [name for name in archive.namelist() if "debug" in name or "mangle" in name]


def test_generators_without_onnx(tmp_path: Path) -> None:
    """Singular values have no ONNX operator."""

    def singular_values(x: Tensor) -> Tensor:
        return (x + torch.linalg.svdvals(x)[..., None]).tanh()

    path = export_small(seeded(Small(singular_values)), tmp_path / "b")
    assert sorted(os.listdir(path)) == ["functions.pt", "manifest.json", "preconditioner.f32"]
    manifest = Bundle.open(path).manifest
    assert manifest.runtimes == ("torchscript",)
    assert "onnx_opset" not in manifest.exporter
    with pytest.raises(
        ExportError,
        match=r"aten::_linalg_svd \(at test_torchscript\.py:\d+\), which cannot be exported",
    ):
        export_small(seeded(Small(singular_values)), tmp_path / "c", runtimes="onnx")


def test_a_wrong_graph_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyinv.export.runtimes import torchscript_writer

    right = torchscript_writer._scaled_product

    def wrong(module: Any, node: Any) -> Any:
        by = right(module, node)
        if by is not None:
            by.kwargs = {**by.kwargs, "alpha": 1.01 * by.kwargs["alpha"]}
        return by

    monkeypatch.setattr(torchscript_writer, "_scaled_product", wrong)
    with pytest.raises(ExportError, match=r"functions.pt: objective_mse .* is off by 1\.0e-02"):
        export_small(seeded(Small()), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_result_in_out_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyinv.export.runtimes import torchscript_writer

    right = torchscript_writer._Source.text

    def wrong(self: Any) -> str:
        return right(self).replace("    return out", "    out[1].mul_(2.0)\n        return out")

    monkeypatch.setattr(torchscript_writer._Source, "text", wrong)
    with pytest.raises(
        ExportError, match="objective_mse returns different results with and without out"
    ):
        export_small(seeded(Small()), tmp_path / "b")


# -------------------------------------------------------- generators that come as TorchScript


def saved(generator: nn.Module, path: Path, how: str, case: Case) -> Path:
    """Save a generator as somebody else would."""
    if how == "traced":
        inputs = [torch.randn(2, *case.latent_shape)]
        if "condition_shape" in case.options:
            inputs.append(torch.rand(2, 4))
        with warnings.catch_warnings():
            # Tracing warns of branches on sizes.
            warnings.simplefilter("ignore")
            made = torch.jit.trace(generator, tuple(inputs))
    else:
        made = torch.jit.script(generator)
    torch.jit.save(made, str(path))
    return path


FILES = [(name, "traced") for name in CASES] + [
    (name, "scripted") for name in ("vae", "conditional", "coupled")
]


@pytest.mark.parametrize(("name", "how"), FILES)
def test_a_file_gives_what_its_module_gives(
    exported: Callable[[str], Exported], tmp_path: Path, name: str, how: str
) -> None:
    case = exported(name)
    file = saved(case.generator, tmp_path / "generator.pt", how, case.case)
    path = export(
        load_generator(str(file)),
        tmp_path / "b",
        latent_shape=case.case.latent_shape,
        prior=Normal(),
        losses="mse",
        normal_equations=False,
        value_range=case.case.value_range,
        runtimes="torchscript",
        **case.case.options,
    )
    assert Bundle.open(path).manifest.name == type(case.generator).__name__
    inputs = case.draw(5)
    with torch.no_grad():
        got = load(path).objective_mse(*inputs.values())
    for mine, right in zip(got, case.run("mse", inputs), strict=True):
        assert relative_error(mine, right) <= TOLERANCE


@pytest.mark.parametrize(("name", "how"), [("dcgan", "scripted"), ("conditional", "traced")])
def test_the_command_line_takes_a_file_without_its_source(
    exported: Callable[[str], Exported], tmp_path: Path, name: str, how: str
) -> None:
    case = exported(name)
    file = saved(case.generator, tmp_path / "generator.pt", how, case.case)
    arguments = ["--condition-shape", "4"] if name == "conditional" else []
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "pyinv", "export", str(file)),
            *("-o", "b", "--latent-shape", "10", "--prior", "normal"),
            *("--runtime", "torchscript", *arguments),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "for torchscript" in done.stderr
    assert "deprecated" not in done.stderr
    made = Bundle.open(tmp_path / "b").manifest
    assert made.runtimes == ("torchscript",)
    inputs = case.draw(3)
    with torch.no_grad():
        got = load(tmp_path / "b").objective_mse(*inputs.values())
    for mine, right in zip(got, case.run("mse", inputs), strict=True):
        assert relative_error(mine, right) <= TOLERANCE


class Busy(nn.Module):
    """What files hold besides layers: loops, branches, defaults, sizes, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(12, 64)
        self.layers = nn.ModuleList([nn.Conv2d(1, 1, 3, padding=1) for _ in range(2)])
        self.dropout = nn.Dropout(0.5)
        self.steps = 3
        self.register_buffer("scale", torch.tensor(0.7))

    def forward(self, latent: Tensor, noise: Tensor | None = None, strength: float = 0.5) -> Tensor:
        if latent.dim() != 2:
            raise ValueError(f"expected [B, 12], got {latent.dim()} axes")
        batch, edge = latent.size(0), int(64**0.5)
        x = self.dropout(torch.tanh(self.dense(latent))).view(batch, latent.size(1) // 12, edge, -1)
        for layer in self.layers:
            x = functional.leaky_relu_(layer(x), 0.2)
        for i in range(self.steps):
            x = x + torch.zeros(batch, 1, 8, 8, dtype=x.dtype, device=x.device) * i
            x *= self.scale
        x = x @ torch.eye(edge, dtype=x.dtype, device=x.device)
        if noise is not None:
            x = x + strength * noise
        elif self.training:
            x = x * 0.0
        height, width = x.shape[2:]
        x = functional.interpolate(x, size=[2 * height, 2 * width], mode="nearest")
        x = functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        return torch.tanh(x) * strength


def test_a_file_from_a_gpu_in_half_precision(tmp_path: Path) -> None:
    """A file whose tensors and code are on a GPU, as tracing there leaves them."""
    half = seeded(Busy()).half()
    on_cpu, file = tmp_path / "cpu.pt", tmp_path / "cuda.pt"
    torch.jit.save(torch.jit.trace(half, torch.randn(2, 12).half()), str(on_cpu))
    replaced = 0
    with zipfile.ZipFile(on_cpu) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            for cpu, cuda in (
                (b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"),
                (b'torch.device("cpu")', b'torch.device("cuda:0")'),
            ):
                if cpu in data:
                    replaced += 1
                    data = data.replace(cpu, cuda)
            new.writestr(entry.filename, data)
    assert replaced >= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*the generator ends in")
        path = export_small(load_generator(str(file)), tmp_path / "b")
    latent = torch.randn(5, 12)
    with torch.no_grad():
        expected = copy.deepcopy(half).float()(latent)
        assert relative_error(load(path).forward(latent), expected) <= TOLERANCE


@pytest.mark.parametrize("how", ["traced", "scripted"])
@pytest.mark.filterwarnings("ignore:the generator ends in")
def test_files_hold_more_than_layers(tmp_path: Path, how: str) -> None:
    generator = seeded(Busy())
    case = Case(Busy, (12,), (1, 8, 8))
    file = saved(generator, tmp_path / "generator.pt", how, case)
    path = export_small(load_generator(str(file)), tmp_path / "b")
    latent = torch.randn(5, 12)
    with torch.no_grad():
        assert relative_error(load(path).forward(latent), generator(latent)) <= TOLERANCE


def test_a_script_module_is_left_alone(tmp_path: Path) -> None:
    scripted = torch.jit.script(seeded(BatchNormGenerator()).train())
    before = copy.deepcopy(scripted.state_dict())
    export_small(scripted, tmp_path / "b", latent_shape=(12, 1, 1))
    assert scripted.training
    assert all(torch.equal(before[key], value) for key, value in scripted.state_dict().items())
    assert all(parameter.requires_grad for parameter in scripted.parameters())


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.mean())


class Sparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to_dense() if x.is_sparse else x


class NoForward(nn.Module):
    @torch.jit.export
    def generate(self, latent: Tensor) -> Tensor:
        return latent


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Small(Numbers()), "aten::_local_scalar_dense"),
        (lambda: Small(Sparse()), "uses prim::is_sparse, which cannot be exported"),
        (NoForward, "has no forward method"),
        (Dcgan, "does not take a latent of shape [B, 12]"),
    ],
)
def test_what_a_file_cannot_hold(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        export_small(torch.jit.script(seeded(make())), tmp_path / "b")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_reads_otherwise_than_it_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyinv.export.capture import torchscript_reader

    right = torchscript_reader.Scripted._call

    def wrong(self: Any, step: Any, arguments: list[Any]) -> Any:
        result = right(self, step, arguments)
        return 0.9 * result if step.kind == "aten::tanh" else result

    monkeypatch.setattr(torchscript_reader.Scripted, "_call", wrong)
    with pytest.raises(ExportError, match="computes other images than its graph says"):
        export_small(torch.jit.script(seeded(Small())), tmp_path / "b")


def write_state_dict(path: Path) -> None:
    torch.save(Small().state_dict(), path)


def write_old_state_dict(path: Path) -> None:
    torch.save(Small().state_dict(), path, _use_new_zipfile_serialization=False)


def write_text(path: Path) -> None:
    path.write_text("not a model")


@pytest.mark.parametrize("write", [write_state_dict, write_old_state_dict, write_text])
def test_a_file_that_is_not_torchscript(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], None]
) -> None:
    write(tmp_path / "generator.pt")
    arguments = ["export", str(tmp_path / "generator.pt"), "-o", str(tmp_path / "b")]
    assert main([*arguments, "--latent-shape", "12", "--prior", "normal"]) != 0
    error = capsys.readouterr().err
    assert "is not a TorchScript file: what torch.save writes (a state dict, a pickled" in error
    assert "torch.jit.save" in error
    assert "Traceback" not in error


def test_a_path_that_holds_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no file .*absent\.pt: give a TorchScript file or"):
        load_generator(str(tmp_path / "absent.pt"))
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ExportError, match="is a folder; expected a TorchScript file"):
        load_generator(str(tmp_path / "folder.pt"))
    damaged = saved(seeded(Small()), tmp_path / "whole.pt", "scripted", CASES["mlp"])
    with zipfile.ZipFile(damaged) as old, zipfile.ZipFile(tmp_path / "damaged.pt", "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith("data/0"):
                new.writestr(entry.filename, old.read(entry))
    with pytest.raises(ExportError, match=r"damaged\.pt cannot be loaded: "):
        load_generator(str(tmp_path / "damaged.pt"))
