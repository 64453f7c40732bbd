"""The whitened loss, and normal equations: right for every architecture, and lean."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
onnx = pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

import onnxruntime  # noqa: E402
from torch import Tensor, fx, nn  # noqa: E402

from pyinv.bundle import Bundle, Function  # noqa: E402
from pyinv.errors import ExportError  # noqa: E402
from pyinv.export import export, whitened, writer  # noqa: E402
from pyinv.export.passes.peak_memory import bytes_per_target  # noqa: E402
from pyinv.export.runtimes.onnx import _LARGEST_FOLDED as LARGEST_FOLDED  # noqa: E402
from pyinv.priors import Normal  # noqa: E402
from support.generators import (  # noqa: E402
    BatchNormGenerator,
    ConditionalGenerator,
    Dcgan,
    PixelShuffleGenerator,
    UpsampleGenerator,
    VaeDecoder,
    seeded,
)

TOLERANCE = 1e-5
BATCHES = (1, 3, 7)
BOTH = ("onnx", "torchscript")
SMOOTH = (0.0, 1.0)


class Scaled(nn.Module):
    """A perceptron with tanh throughout, whose images are scaled to [0, 1] and then reshaped."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 75), nn.Tanh())

    def forward(self, latent: Tensor) -> Tensor:
        return ((self.layers(latent) + 1) / 2).view(-1, 3, 5, 5)


class Open(nn.Module):
    """No activation at the end; and a latent that is an image, convolved before the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.first(latent)
        # Two paths, and a product of what depends on the latent twice.
        return self.last(torch.relu(x) + 0.5 * x * torch.sigmoid(x.mean((2, 3), keepdim=True)))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    latent_shape: tuple[int, ...]
    value_range: tuple[float, float] = (-1.0, 1.0)
    runtimes: tuple[str, ...] = ("onnx",)
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "dcgan": Case(lambda: Dcgan(latent=10, width=2), (10,), runtimes=BOTH),
    "pixel_shuffle": Case(lambda: PixelShuffleGenerator(latent=14, width=6), (14,)),
    "upsample": Case(lambda: UpsampleGenerator(latent=12, width=4), (12,)),
    "vae": Case(lambda: VaeDecoder(width=4), (16,), SMOOTH, BOTH),
    "batch_norm": Case(BatchNormGenerator, (12, 1, 1)),
    "conditional": Case(
        ConditionalGenerator, (10,), runtimes=BOTH, options={"condition_shape": 4}
    ),
    "scaled": Case(Scaled, (6,), SMOOTH, options={"losses": {
        "mse": "mse", "whitened": "whitened", "l1": "l1", "other": whitened(0.5, 0.2)}}),
    "open": Case(Open, (2, 4, 4), runtimes=BOTH),
}  # fmt: skip
PARAMETERS = {"whitened": (0.25, 1e-4), "other": (0.5, 0.2)}
SOLVED = [
    (name, loss)
    for name in CASES
    for loss in ("mse", "whitened", "other")
    if (loss != "whitened" or name != "open") and (loss != "other" or name == "scaled")
]


class Exported:
    """A bundle with the generator it was made from."""

    def __init__(self, case: Case, path: Path) -> None:
        self.case = case
        self.path = path
        self.generator = seeded(case.make())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # The one without a bound has no value range that its images keep to.
            warnings.filterwarnings("ignore", message="the generator('s values lie| ends) in")
            export(
                self.generator,
                path,
                latent_shape=case.latent_shape,
                prior=Normal(),
                value_range=case.value_range,
                runtimes=case.runtimes,
                **case.options,
            )
        self.bundle = Bundle.open(path)
        self.functions: dict[Function, Any] = {}

    def draw(self, batch: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(batch)
        low, high = self.case.value_range
        shape = self.bundle.manifest.image_shape
        drawn = {
            "latent": torch.randn(batch, math.prod(self.case.latent_shape), generator=random),
            "image": low + (high - low) * torch.rand(batch, *shape, generator=random),
        }
        if "condition_shape" in self.case.options:
            drawn["condition"] = torch.rand(batch, 4, generator=random)
        return drawn

    def run(self, function: Function, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        if function not in self.functions:
            file = str(self.bundle.file(function))
            if function.method is None:
                self.functions[function] = onnxruntime.InferenceSession(
                    file, providers=["CPUExecutionProvider"]
                )
            else:
                self.functions[function] = getattr(torch.jit.load(file), function.method)
        made = self.functions[function]
        if function.method is None:
            names = [value.name for value in made.get_outputs()]
            results = made.run(names, {name: x.numpy() for name, x in inputs.items()})
            return dict(zip(names, results, strict=True))
        with torch.no_grad(), torch.jit.optimized_execution(False):
            results = [x.numpy() for x in made(*inputs.values())]
        return dict(zip(("loss", "gradient", "gram"), results, strict=False))

    def solve(self, loss: str, inputs: dict[str, Tensor], runtime: str = "onnx") -> Any:
        return self.run(self.bundle.manifest.normal_equations(loss, runtime), inputs)

    def expected(self, loss: str, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """The same from PyTorch's Jacobian of the residual in float64, target by target."""
        generator = copy.deepcopy(self.generator).double()
        low, high = self.case.value_range
        rows = []
        for each in zip(*(x.double() for x in inputs.values()), strict=True):
            latent, image, *condition = (x[None] for x in each)

            def residual(z: Tensor, image: Tensor = image, condition: Any = condition) -> Tensor:
                made = generator(z.view(1, *self.case.latent_shape), *condition)
                if loss == "mse":
                    return (made - image).flatten()
                exponent, saturation = PARAMETERS[loss]
                made, wanted = (2 * (x - low) / (high - low) - 1 for x in (made, image))
                near = wanted.clamp(saturation - 1, 1 - saturation)
                residual = (1 - near.square()) ** exponent * (made.atanh() - near.atanh())
                # Of a saturated pixel one side is as good as another.
                beyond = (near != wanted) & (residual * wanted > 0)
                return torch.where(beyond, 0.0, residual).flatten()

            r = residual(latent[0]).detach()
            jacobian = torch.func.jacfwd(residual)(latent[0]).detach()
            factor = 2 / len(r)
            row = (r.square().mean(), factor * jacobian.T @ r, factor * jacobian.T @ jacobian)
            rows.append([x.numpy() for x in row])
        columns = (np.stack(column) for column in zip(*rows, strict=True))
        return dict(zip(("loss", "gradient", "gram"), columns, strict=True))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Exports each case once."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            made[name] = Exported(CASES[name], tmp_path_factory.mktemp("solved") / name)
        return made[name]

    return get


def error(got: np.ndarray, right: np.ndarray) -> float:
    assert got.shape == right.shape
    assert got.dtype == np.float32
    return float(np.abs(got - right).max() / np.abs(right).max())


# ------------------------------------------------------------------ what the functions compute


@pytest.mark.parametrize(("name", "loss"), SOLVED)
def test_normal_equations_are_those_of_autograds_jacobian(
    exported: Callable[[str], Exported], name: str, loss: str
) -> None:
    case = exported(name)
    for batch in BATCHES:
        inputs = case.draw(batch)
        right = case.expected(loss, inputs)
        for runtime in case.case.runtimes:
            got = case.solve(loss, inputs, runtime)
            assert list(got) == ["loss", "gradient", "gram"]
            worst = {output: error(value, right[output]) for output, value in got.items()}
            assert max(worst.values()) <= TOLERANCE, (batch, runtime, worst)
            transposed = got["gram"].transpose(0, 2, 1)
            assert error(got["gram"], transposed) <= 1e-6


@pytest.mark.parametrize(("name", "loss"), SOLVED)
def test_the_objective_gives_the_same_loss_and_gradient(
    exported: Callable[[str], Exported], name: str, loss: str
) -> None:
    case = exported(name)
    inputs = case.draw(3)
    for runtime in case.case.runtimes:
        objective = case.run(case.bundle.manifest.objective(loss, runtime), inputs)
        solved = case.solve(loss, inputs, runtime)
        for output, value in objective.items():
            assert error(solved[output], value) <= TOLERANCE, output


def test_a_gauss_newton_step_solves_a_linear_generator(tmp_path: Path) -> None:
    """What gram and gradient are for: gram delta = -gradient ends at the target at once."""
    generator = seeded(nn.Sequential(nn.Linear(5, 16), nn.Unflatten(1, (1, 4, 4))))
    path = export(generator, tmp_path / "b", latent_shape=5, prior=Normal(), value_range=(-9, 9))
    session = onnxruntime.InferenceSession(str(path / "normal_equations_mse.onnx"))
    truth, start = torch.randn(3, 5), torch.randn(3, 5)
    with torch.no_grad():
        image = generator(truth)
    _, gradient, gram = session.run(None, {"latent": start.numpy(), "image": image.numpy()})
    step = np.linalg.solve(gram.astype(np.float64), -gradient.astype(np.float64)[..., None])
    np.testing.assert_allclose(start.numpy() + step[..., 0], truth.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "loss", "saturation"),
    [("dcgan", "whitened", 1e-4), ("vae", "whitened", 1e-4), ("scaled", "other", 0.2)],
)
def test_of_saturated_pixels_one_side_counts(
    exported: Callable[[str], Exported], name: str, loss: str, saturation: float
) -> None:
    case = exported(name)
    low, high = case.case.value_range
    inputs = case.draw(3)
    unit = (high - low) / 2
    pixels = inputs["image"].view(3, -1)
    ends = [low, high, low - 0.3 * unit, high + 1e-6, high - 0.9 * saturation * unit, high + 9]
    for position, value in enumerate(ends):
        pixels[:, position] = value
    right = case.expected(loss, inputs)
    functions = [case.bundle.manifest.objective(loss, r) for r in case.case.runtimes]
    functions += [case.bundle.manifest.normal_equations(loss, r) for r in case.case.runtimes]
    for function in functions:
        got = case.run(function, inputs)
        assert all(error(value, right[output]) <= TOLERANCE for output, value in got.items())
    # An image that is saturated everywhere is no image that any latent makes.
    whole = {**inputs, "image": torch.full_like(inputs["image"], high)}
    assert (case.solve(loss, whole)["loss"] > 0.01).all()


def test_the_whitened_loss_of_a_saturated_pixel() -> None:
    from pyinv.export.derivatives.losses import resolve_losses

    (loss,) = resolve_losses(whitened(0.5, 0.1), value_range=(-1.0, 1.0))
    end = torch.tensor([2.0, 1.5, 1.4, 0.0, -2.0, -1.0])
    image = torch.tensor([1.0, 0.95, 0.95, 3.0, -0.91, -1.0])
    limit = math.atanh(0.9)
    short = torch.tensor([0.0, 0.0, 1.4 - limit, -limit, 0.0, limit - 1.0])
    found = [
        loss.mean(loss.value_before_activation["tanh"](*(x.view(1, 1, 1, 1) for x in pair)))
        for pair in zip(end, image, strict=True)
    ]
    torch.testing.assert_close(torch.cat(found), (1 - 0.81) * short**2)


def test_the_whitened_loss_of_a_sigmoid_is_that_of_its_tanh() -> None:
    """sigmoid(u) in [0, 1] and tanh(u / 2) in [-1, 1] are the same images, and the same loss."""
    from pyinv.export.derivatives.losses import resolve_losses

    u, image = torch.randn(4, 3, 5, 5), torch.rand(4, 3, 5, 5)
    (as_sigmoid,) = resolve_losses("whitened", value_range=(0.0, 1.0))
    (as_tanh,) = resolve_losses("whitened", value_range=(-1.0, 1.0))
    one = as_sigmoid.mean(as_sigmoid.value_before_activation["sigmoid"](u, image))
    other = as_tanh.mean(as_tanh.value_before_activation["tanh"](u / 2, 2 * image - 1))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=0)


def test_whitened_keeps_the_bits_of_nearly_saturated_pixels() -> None:
    """1 - x^2, computed as it is written, loses three digits there."""
    from pyinv.export.derivatives.losses import resolve_losses

    (loss,) = resolve_losses(whitened(1.0, 1e-6), value_range=(-1.0, 1.0))
    x = torch.tensor([1 - 2e-6, 1e-5 - 1, 0.5]).view(1, 1, 1, 3)
    residual, weight, factor = loss.residual_before_activation["tanh"](torch.zeros(1, 1, 1, 3), x)
    exact = x.double()
    s = (1 - exact) * (1 + exact)
    torch.testing.assert_close(weight.double(), s, rtol=3e-6, atol=0)
    torch.testing.assert_close(residual.double(), -s * exact.atanh(), rtol=3e-6, atol=0)
    assert factor == 1.0


# ------------------------------------------------------------------------ what the files hold


def operators(case: Exported, file: str) -> Counter[str]:
    return Counter(
        node.op_type for node in onnx.load(case.path / file, load_external_data=False).graph.node
    )


def test_inputs_and_outputs_have_the_contracts_names(exported: Callable[[str], Exported]) -> None:
    def described(values: Any) -> dict[str, list[Any]]:
        return {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in values
        }

    case = exported("conditional")
    graph = onnx.load(case.path / "normal_equations_mse.onnx", load_external_data=False).graph
    latent, condition, image = ["batch", 10], ["batch", 4], ["batch", 1, 8, 8]
    assert described(graph.input) == {"latent": latent, "image": image, "condition": condition}
    assert described(graph.output) == {
        "loss": ["batch"], "gradient": latent, "gram": ["batch", 10, 10]
    }  # fmt: skip
    scripted = torch.jit.load(str(case.path / "functions.pt")).normal_equations_whitened
    signature = str(scripted.schema).partition("self, ")[2]
    results = "(Tensor, Tensor, Tensor)"
    inputs = "Tensor latent, Tensor image, Tensor condition"
    assert signature == f"{inputs}, {results}? out=None) -> ({results})"


def test_each_layer_is_computed_once_for_images_and_once_for_tangents(
    exported: Callable[[str], Exported],
) -> None:
    noise = {"Identity", "Cast", "CastLike", "Shape", "Expand", "Constant", "Pow", "Concat", "Tile"}
    for name in ("dcgan", "pixel_shuffle", "vae", "scaled"):
        case = exported(name)
        forward = operators(case, "forward.onnx")
        convolutions = sum(n for kind, n in forward.items() if kind.startswith("Conv"))
        for loss in ("mse", "whitened"):
            found = operators(case, f"normal_equations_{loss}.onnx")
            assert not noise & set(found), (name, loss)
            twice = sum(n for kind, n in found.items() if kind.startswith("Conv"))
            assert twice == 2 * convolutions, (name, loss)
            # A first dense layer's tangents are its weights.
            assert found["Gemm"] == forward["Gemm"] + (forward["Gemm"] - 1), (name, loss)
            assert found["MatMul"] == 2, (name, loss)


def test_weights_are_stored_once(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    for name in ("pixel_shuffle", "vae"):
        case = exported(name)
        plain = export(
            case.generator,
            tmp_path / name,
            latent_shape=case.case.latent_shape,
            prior=Normal(),
            value_range=case.case.value_range,
            runtimes=case.case.runtimes,
            normal_equations=False,
        )
        stored, needed = ((p / "weights.bin").stat().st_size for p in (case.path, plain))
        # The tangents of a small first layer are computed at export.
        assert stored - needed <= 4 * LARGEST_FOLDED, name
    weights = [
        sum(x.untyped_storage().nbytes() for x in {x.data_ptr(): x for x in buffers}.values())
        for buffers in (list(torch.jit.load(str(p / "functions.pt")).buffers()) for p in (
            case.path, plain))
    ]  # fmt: skip
    assert weights[0] <= 1.01 * weights[1]


def test_the_manifest_says_what_a_target_takes(exported: Callable[[str], Exported]) -> None:
    for name in CASES:
        case = exported(name)
        manifest = case.bundle.manifest
        for runtime in case.case.runtimes:
            function = manifest.normal_equations("mse", runtime)
            # At least the Jacobian, and a few times what every layer's tangents take.
            jacobian = 4 * manifest.latent_size * manifest.image_size
            assert jacobian <= function.bytes_per_target <= 40 * jacobian, name


def test_a_chunk_of_directions_at_a_time(
    exported: Callable[[str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exported("upsample")
    monkeypatch.setattr(writer, "_MOST_BYTES_PER_TARGET", 300_000)
    parts = Exported(CASES["upsample"], tmp_path / "b")
    inputs = whole.draw(3)
    for loss in ("mse", "whitened"):
        files = [f"normal_equations_{loss}.onnx"] * 2
        few, many = (
            sum(n for kind, n in operators(*each).items() if kind.startswith("Conv"))
            for each in zip((whole, parts), files, strict=True)
        )
        assert many >= few + 3
        less, more = (
            case.bundle.manifest.normal_equations(loss).bytes_per_target for case in (parts, whole)
        )
        # The Jacobian, and its chunks before they are one, are there in any case.
        assert less < 0.9 * more
        for output, value in whole.solve(loss, inputs).items():
            assert error(parts.solve(loss, inputs)[output], value) <= 3e-6


def test_a_graphs_memory_is_that_of_what_lives_together() -> None:
    from pyinv.export.capture.trace import Shapes, trace_generator

    class Chain(nn.Module):
        def forward(self, latent: Tensor) -> Tensor:
            wide = torch.cat([latent] * 8, dim=1)  # 32 floats
            other = wide.sin()  # 32 more, and both are there
            narrow = (wide * other)[:, :4]  # all three, then these 4 and the 32 they come from
            return (narrow + latent).view(-1, 1, 2, 2)

    shapes = Shapes((4,), (1, 2, 2))
    traced = trace_generator(Chain(), shapes, batch_norm="eval")
    assert bytes_per_target(traced.module) == 4 * 3 * 32
    graph = fx.Graph()
    graph.output([graph.placeholder("latent")])
    assert bytes_per_target(fx.GraphModule({}, graph)) == 0


# --------------------------------------------------------------------- what is written by default


class Tiny(nn.Module):
    """A linear map of 4 latents to a 1x4x4 image, then whatever a test adds."""

    def __init__(self, then: Callable[[Tensor], Tensor] = torch.tanh, latent: int = 4) -> None:
        super().__init__()
        self.dense = nn.Linear(latent, 16)
        self.then = then

    def forward(self, latent: Tensor) -> Tensor:
        return self.then(self.dense(latent).view(-1, 1, 4, 4))


def export_tiny(path: Path, generator: nn.Module | None = None, **options: Any) -> Any:
    """The manifest of a bundle."""
    given = {"latent_shape": 4, "prior": Normal(), "value_range": (-1, 1), **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the generator('s values lie| ends) in")
        return Bundle.open(export(generator or seeded(Tiny()), path, **given)).manifest


@pytest.mark.parametrize(
    ("then", "options", "losses", "solved"),
    [
        (torch.tanh, {}, ("mse", "whitened"), ("mse", "whitened")),
        (lambda x: x.sigmoid(), {"value_range": (0, 1)}, ("mse", "whitened"), ("mse", "whitened")),
        # Half of what the value range says.
        (torch.sigmoid, {}, ("mse",), ("mse",)),
        (lambda x: -x.tanh(), {}, ("mse",), ("mse",)),
        (lambda x: x.clamp(-1, 1), {}, ("mse",), ("mse",)),
        (torch.tanh, {"normal_equations": False}, ("mse", "whitened"), ()),
        (torch.tanh, {"losses": ("l1", "bce")}, ("l1", "bce"), ()),
        (torch.tanh, {"losses": ("l1", "whitened")}, ("l1", "whitened"), ("whitened",)),
        (torch.tanh, {"losses": {"own": "mse"}}, ("own",), ("own",)),
    ],
)
@pytest.mark.filterwarnings("ignore:the generator ends in")
def test_losses_and_normal_equations(
    tmp_path: Path, then: Any, options: dict[str, Any], losses: Any, solved: Any
) -> None:
    manifest = export_tiny(tmp_path / "b", seeded(Tiny(then)), **options)
    assert manifest.losses == losses
    assert tuple(filter(manifest.has_normal_equations, losses)) == solved


def test_a_long_latent_gets_no_normal_equations(tmp_path: Path) -> None:
    manifest = export_tiny(tmp_path / "b", Tiny(latent=513), latent_shape=513, losses="mse")
    assert not manifest.has_normal_equations("mse")


def test_a_coupled_batch_gets_no_normal_equations(tmp_path: Path) -> None:
    manifest = export_tiny(
        tmp_path / "b", seeded(BatchNormGenerator()), latent_shape=(12, 1, 1), batch_norm="batch"
    )
    assert manifest.losses == ("mse", "whitened")
    assert not manifest.has_normal_equations("mse")


def centred(x: Tensor) -> Tensor:
    """Of a batch, which no normal equations know of."""
    # A mean that does not count: an image that depends on others is refused altogether.
    return (x - 0.0 * x.mean(0, keepdim=True)).tanh()


def test_a_generator_that_mixes_targets_gets_no_normal_equations(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"gets no normal equations: aten::mean mixes the targets"):
        manifest = export_tiny(tmp_path / "b", Tiny(centred), losses="mse")
    assert not manifest.has_normal_equations("mse")


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "mixed targets": (Tiny(centred), {}, "aten::mean mixes the targets of a batch"),
    "long latent": (
        Tiny(latent=513),
        {"latent_shape": 513},
        "at most 512 components, and this one has 513: leave them out, and use a recipe that "
        "needs gradients only",
    ),
    "coupled batch": (
        BatchNormGenerator(),
        {"latent_shape": (12, 1, 1), "batch_norm": "batch"},
        "do not depend on one another: export with batch_norm='eval'",
    ),
    "no mean of squares": (Tiny(), {"losses": "l1"}, "add 'mse' or 'whitened' to losses"),
    "neither yes nor no": (Tiny(), {"normal_equations": "mse"}, "True, False or None, got 'mse'"),
    "whitened without activation": (
        Tiny(lambda x: x.clamp(-1, 1)),
        {"losses": ("mse", "whitened")},
        "loss 'whitened' needs a generator that ends in tanh or sigmoid with values in value_range "
        "[-1, 1], this one ends in clamp: use another loss",
    ),
    "whitened of half a range": (
        Tiny(torch.sigmoid),
        {"losses": {"w": whitened(0.5)}},
        "loss 'w' needs a generator that ends in tanh or sigmoid with values in value_range "
        "[-1, 1], this one ends in sigmoid with values in [0, 1]",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(tmp_path: Path, what: str) -> None:
    generator, options, message = REFUSED[what]
    with pytest.raises(ExportError) as caught:
        export_tiny(tmp_path / "b", generator, **{"normal_equations": True, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((-0.1,), "exponent must be at least 0, got -0.1"),
        ((math.nan,), "exponent must be at least 0, got nan"),
        ((0.25, 0.0), "saturation must lie between 0 and 1, got 0.0"),
        ((0.25, 1.0), "saturation must lie between 0 and 1, got 1.0"),
    ],
)
def test_parameters_of_whitened_are_checked(parameters: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        whitened(*parameters)


def test_a_wrong_matrix_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyinv.export.derivatives import functions

    right = functions.normal_equations

    def wrong(*arguments: Any) -> Any:
        return [part * 1.01 if part.ndim == 3 else part for part in right(*arguments)]

    monkeypatch.setattr(functions, "normal_equations", wrong)
    with pytest.raises(ExportError, match=r"normal_equations_mse.onnx .* gram is off by 1\.0e-02"):
        export_tiny(tmp_path / "b", losses="mse", normal_equations=True)
    assert list(tmp_path.iterdir()) == []
    # Where nobody asked for it, the rest of the bundle is what it would be without.
    with pytest.warns(UserWarning, match=r"gets no normal equations: .* gram is off by") as caught:
        manifest = export_tiny(tmp_path / "b")
    assert caught[0].filename == __file__
    assert manifest.losses == ("mse", "whitened")
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        "manifest.json", "preconditioner.f32", "weights.bin", "forward.onnx", "objective_mse.onnx",
        "objective_whitened.onnx",
    }  # fmt: skip


def test_a_range_that_the_tanh_contradicts_is_a_warning_at_the_callers_line(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"ends in tanh .*value_range is \(0, 1\): give") as caught:
        export(seeded(Tiny()), tmp_path / "b", latent_shape=4, prior=Normal(), value_range=(0, 1))
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_callers_may_have_switched_gradients_off(tmp_path: Path, without: Any) -> None:
    generator = seeded(Tiny())
    with without():
        manifest = export_tiny(tmp_path / "b", generator)
    assert manifest.has_normal_equations("whitened")
