"""Generators with several inputs: labels, one-hot vectors, floats, and values that are fixed."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import pyinv  # noqa: E402
from pyinv.bundle import Bundle, Manifest  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import BundleError, ExportError, InputError, RuleError  # noqa: E402
from pyinv.export import Condition, Label, OneHot, export, load_onnx  # noqa: E402
from pyinv.export.capture.inputs import draw_conditions, with_inputs  # noqa: E402
from pyinv.tables import read_column  # noqa: E402
from support.backends import BACKENDS, Backend  # noqa: E402

LATENT = 6
CLASSES = 5
COUNT = 7


class Net(nn.Module):
    """Images [B, 1, 4, 4] of a latent and features, both [B, 6]."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(classes, LATENT)
        self.project = nn.Linear(classes, LATENT)
        self.layers = nn.Sequential(
            nn.Linear(2 * LATENT, 24), nn.LeakyReLU(), nn.Linear(24, 16), nn.Tanh()
        )

    def image(self, z: Tensor, features: Tensor) -> Tensor:
        return self.layers(torch.cat([z, features], 1)).view(-1, 1, 4, 4)


class ByLabel(Net):
    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.image(z, self.table(label))


class LabelFirst(Net):
    def forward(self, label: Tensor, z: Tensor) -> Tensor:
        return self.image(z, self.table(label))


class ByOneHot(Net):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.image(z, self.project(y))


class BigGAN(Net):
    def forward(self, z: Tensor, class_label: Tensor, truncation: float | Tensor) -> Tensor:
        return self.image(z * truncation, self.project(class_label))


class Keywords(Net):
    def forward(self, *, label: Tensor, z: Tensor) -> Tensor:
        return self.image(z, self.table(label))


class Wrapped(Net):
    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        return self.image(*tensors, self.table(named["label"]))


class Mixed(Net):
    """All kinds, and an option between them that keeps its default."""

    def forward(
        self,
        angle: Tensor,
        z: Tensor,
        label: Tensor,
        unused: None = None,
        *,
        y: Tensor,
        text: Tensor,
    ) -> Tensor:
        features = self.table(label) * torch.cos(angle)[:, None] + self.project(y)
        return self.image(z, features + text.flatten(1))


class Options(Net):
    def forward(
        self,
        z: Tensor,
        label: Tensor | None = None,
        psi: float = 1.0,
        mode: str = "plain",
        flip: bool = False,
        mean: Tensor | None = None,
    ) -> Tensor:
        if mode == "truncated":
            assert mean is not None
            z = mean + psi * (z - mean)
        image = self.image(z, z if label is None else self.table(label))
        return image.flip(3) if flip else image


MEAN = torch.linspace(-1, 1, LATENT)
FIXED = {"psi": 0.7, "mode": "truncated", "flip": True, "mean": MEAN}


@dataclass(frozen=True)
class Case:
    """A generator, what its inputs are, and how PyTorch calls it with a target's conditions."""

    make: Callable[[], nn.Module]
    inputs: dict[str, Any]
    given: Callable[[np.random.Generator], dict[str, Any]]
    call: Callable[..., Tensor] = field(default=lambda g, z, **given: g(z=z, **given))


def labels(random: np.random.Generator) -> np.ndarray:
    """Labels of all classes."""
    return random.permutation(np.arange(COUNT) % CLASSES)


def one_hot(label: Tensor) -> Tensor:
    return functional.one_hot(label, CLASSES).float()


def mixed(random: np.random.Generator) -> dict[str, Any]:
    return {
        "label": labels(random),
        "y": labels(random),
        "text": random.normal(size=(COUNT, 2, 3)).astype(np.float32),
        "angle": random.uniform(0, 6, COUNT).astype(np.float32),
    }


CASES = {
    "embedding": Case(ByLabel, {"label": Label(CLASSES)}, lambda r: {"label": labels(r)}),
    "BigGAN": Case(
        BigGAN,
        {"class_label": OneHot(CLASSES), "truncation": Condition(1, 0, 1)},
        lambda r: {
            "class_label": labels(r),
            "truncation": r.uniform(0.5, 1, COUNT).astype(np.float32),
        },
        lambda g, z, class_label, truncation: g(z, one_hot(class_label), truncation[:, None]),
    ),
    "BigGAN, fixed truncation": Case(
        BigGAN,
        {"class_label": OneHot(CLASSES), "truncation": 0.5},
        lambda r: {"class_label": labels(r)},
        lambda g, z, class_label: g(z, one_hot(class_label), 0.5),
    ),
    "mixed": Case(
        Mixed,
        # In another order than forward's.
        {
            "y": OneHot(CLASSES),
            "text": Condition((2, 3)),
            "label": Label(CLASSES),
            "angle": Condition((), 0, 6),
        },
        mixed,
        lambda g, z, y, **given: g(z=z, y=one_hot(y), **given),
    ),
    "fixed": Case(Options, FIXED, lambda r: {}, lambda g, z: g(z, **FIXED)),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle for each case and both runtimes, exported on first use."""
    folder = tmp_path_factory.mktemp("inputs")

    def bundle(name: str) -> Path:
        path = folder / f"{name}.bundle"
        if not path.exists():
            case = CASES[name]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                export(
                    case.make(),
                    path,
                    latent_shape=LATENT,
                    prior=pyinv.Normal(),
                    value_range=(-1, 1),
                    inputs=case.inputs,
                    runtimes=("onnx", "torchscript"),
                )
        return path

    return bundle


def open_on(backend: Backend, path: Path) -> pyinv.Inverter:
    backend.require()
    return pyinv.Inverter(path, runtime=backend.runtime, device=backend.device)


def drawn(name: str) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """Conditions of COUNT targets, and what PyTorch makes of latents with them."""
    case = CASES[name]
    given = case.given(np.random.default_rng(1))
    generator = case.make().eval()
    tensors = {key: torch.as_tensor(value) for key, value in given.items()}
    return given, lambda z: case.call(generator, z, **tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_images_and_gradients_are_pytorchs(
    bundles: Callable[[str], Path], name: str, backend: Backend
) -> None:
    inverter = open_on(backend, bundles(name))
    given, generate = drawn(name)
    z = inverter.sample(COUNT)
    conditions = given or None
    latent = torch.tensor(z, requires_grad=True)
    images = generate(latent)
    np.testing.assert_allclose(
        inverter.generate(z, conditions=conditions), images.detach(), rtol=1e-4, atol=1e-5
    )
    targets = generate(torch.from_numpy(inverter.sample(COUNT, seed=1))).detach()
    value = (images - targets).square().flatten(1).mean(1)
    (gradient,) = torch.autograd.grad(value.sum(), latent)
    found = inverter.normal_equations(z, targets, conditions=conditions)
    np.testing.assert_allclose(found[0], value.detach(), rtol=1e-4, atol=1e-6)
    for of in (found, inverter.evaluate(z, targets, conditions=conditions)):
        np.testing.assert_allclose(of[1], gradient, rtol=1e-3, atol=1e-6)
    for row in range(COUNT):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, row=row: generate(torch.cat([latent[:row], one, latent[row + 1 :]]))[row],
            latent[row : row + 1].detach(),
        ).reshape(16, LATENT)
        gram = 2 / 16 * jacobian.T @ jacobian
        np.testing.assert_allclose(found[2][row], gram.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["embedding", "BigGAN", "mixed", "fixed"])
def test_latents_are_recovered_and_their_uncertainty_known(
    bundles: Callable[[str], Path], name: str, backend: Backend
) -> None:
    inverter = open_on(backend, bundles(name))
    given, generate = drawn(name)
    z = inverter.sample(COUNT)
    images = generate(torch.from_numpy(z)).detach().numpy()
    conditions = given or None
    found = inverter.invert(images, recipe="precise", conditions=conditions)
    assert found.counts()["converged_tolerance"] == COUNT
    np.testing.assert_allclose(found.latents, z, atol=1e-3)
    known = inverter.uncertainty(found, images, conditions=conditions)
    assert known.identifiable.all()
    assert known.noise.max() < 1e-4
    assert np.all(np.abs(found.latents - z) <= 6 * known.standard_error + 1e-4)


def test_another_label_explains_the_images_worse(bundles: Callable[[str], Path]) -> None:
    inverter = pyinv.Inverter(bundles("embedding"))
    given, generate = drawn("embedding")
    z = inverter.sample(COUNT)
    images = generate(torch.from_numpy(z)).detach().numpy()
    others = {"label": (given["label"] + 1) % CLASSES}
    with pytest.warns(pyinv.PyinvWarning, match="did not reproduce"):
        found = inverter.invert(images, recipe="precise", conditions=others)
    assert found.loss.min() > 1e-6
    known = inverter.uncertainty(z, images, conditions=given, n_hops=0)
    mistaken = inverter.uncertainty(z, images, conditions=others, n_hops=0)
    assert known.noise.max() < 1e-4 < mistaken.noise.min()


def test_conditions_are_given_in_several_ways(bundles: Callable[[str], Path]) -> None:
    inverter = pyinv.Inverter(bundles("BigGAN"))
    z = inverter.sample(COUNT)
    wanted = inverter.generate(
        z, conditions={"class_label": [3] * COUNT, "truncation": [[0.5]] * COUNT}
    )
    hot = np.eye(CLASSES)[[3] * COUNT]
    for label, truncation in (
        (3, 0.5),
        (np.full((COUNT, 1), 3.0), np.full(COUNT, 0.5)),
        (hot, torch.full((COUNT, 1), 0.5)),
        (torch.full((COUNT,), 3), np.float64(0.5)),
    ):
        given = {"truncation": truncation, "class_label": label}
        np.testing.assert_array_equal(inverter.generate(z, conditions=given), wanted)
    one = pyinv.Inverter(bundles("embedding"))
    np.testing.assert_array_equal(
        one.generate(z, conditions=[2] * COUNT), one.generate(z, conditions={"label": 2})
    )


BAD_CONDITIONS = {
    "none": (None, "needs conditions, got none; give class_label (one-hot label, 5 classes), tru"),
    "one array": (np.zeros(2), "conditions must be a dictionary with class_label (one-hot"),
    "unknown": ({"label": 1}, "this bundle has no condition 'label'; it has class_label (one-hot"),
    "missing": ({"class_label": 1}, "'truncation' is missing"),
    "too high": (
        {"class_label": [0, 5], "truncation": 1},
        "must be whole numbers from 0 to 4, got 5 for target 1",
    ),
    "negative": (
        {"class_label": [-1, 0], "truncation": 1},
        "whole numbers from 0 to 4, got -1 for target 0",
    ),
    "fraction": (
        {"class_label": 0.5, "truncation": 1},
        "whole numbers from 0 to 4, got 0.5 for target 0",
    ),
    "NaN": (
        {"class_label": [0, np.nan], "truncation": 1},
        "whole numbers from 0 to 4, got nan for target 1",
    ),
    "text": (
        {"class_label": "cat", "truncation": 1},
        "'class_label' must be whole numbers from 0 to 4, one for",
    ),
    "too few": (
        {"class_label": [1], "truncation": 1},
        "one for each target [2] or one for all, got [1]",
    ),
    "booleans": (
        {"class_label": [True, False], "truncation": 1},
        "whole numbers from 0 to 4, got booleans; convert them to integers",
    ),
    "soft": (
        {"class_label": np.full((2, 5), 0.2), "truncation": 1},
        "export the generator with Condition(5)",
    ),
    "two numbers": (
        {"class_label": 1, "truncation": np.zeros((2, 2))},
        "condition 'truncation' must be float32 [2, 1], got [2, 2]",
    ),
    "not finite": (
        {"class_label": 1, "truncation": [0, np.inf]},
        "condition 'truncation' must be finite, but row 1 is not",
    ),
}


@pytest.mark.parametrize("case", BAD_CONDITIONS)
def test_bad_conditions_are_refused(bundles: Callable[[str], Path], case: str) -> None:
    given, message = BAD_CONDITIONS[case]
    inverter = pyinv.Inverter(bundles("BigGAN"))
    z, images = inverter.sample(2), np.zeros((2, 1, 4, 4))
    for call in (
        lambda: inverter.invert(images, conditions=given),
        lambda: inverter.generate(z, conditions=given),
        lambda: inverter.evaluate(z, images, conditions=given),
        lambda: inverter.uncertainty(z, images, conditions=given),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_fixed_inputs_need_no_conditions(bundles: Callable[[str], Path]) -> None:
    inverter = pyinv.Inverter(bundles("fixed"))
    assert inverter.manifest.conditions == {}
    with pytest.raises(InputError, match="takes no conditions, got some; leave them out"):
        inverter.generate(inverter.sample(1), conditions={"psi": 0.5})


# -- Export -----------------------------------------------------------------------------------

QUICK = {
    "value_range": (-1, 1),
    "latent_shape": LATENT,
    "prior": pyinv.Normal(),
    "losses": "mse",
    "normal_equations": False,
    "runtimes": "torchscript",
}


@pytest.mark.parametrize(
    ("make", "inputs", "call"),
    [
        (ByLabel, {"label": Label(5)}, lambda g, z, label: g(z, label)),
        (LabelFirst, {"label": Label(5)}, lambda g, z, label: g(label, z)),
        (Keywords, {"label": Label(5)}, lambda g, z, label: g(z=z, label=label)),
        (Wrapped, {"label": Label(5)}, lambda g, z, label: g(z, label=label)),
        (ByOneHot, {"y": OneHot(5)}, lambda g, z, label: g(z, one_hot(label))),
        (Options, {"label": Label(5)}, lambda g, z, label: g(z, label)),
        (Options, {"label": Label(5), **FIXED}, lambda g, z, label: g(z, label, **FIXED)),
    ],
)
def test_forward_gets_its_own_arguments(
    make: Callable[[], nn.Module], inputs: dict[str, Any], call: Callable[..., Tensor]
) -> None:
    generator = make().eval()
    z, label = torch.randn(5, LATENT), torch.arange(5)
    with torch.no_grad():
        found = with_inputs(generator, inputs, None, (LATENT,))(z, label.float()[:, None])
        torch.testing.assert_close(found, call(generator, z, label))


def refused(make: Callable[[], nn.Module], path: Path, **options: Any) -> str:
    """The line with which an export is refused."""
    with pytest.raises(ExportError) as error:
        export(make(), path, **QUICK, **options)
    assert not path.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


BAD_INPUTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "a list": (ByLabel, {"inputs": ["label"]}, 'a dictionary such as {"label": Label(10)}, got ['),
    "a class": (ByLabel, {"inputs": {"label": Label}}, "inputs['label'] must be Label(classes), "),
    "an array": (ByLabel, {"inputs": {"label": np.zeros(3)}}, "or tensor for a fixed value, got"),
    "unknown": (
        ByLabel,
        {"inputs": {"lable": Label(5)}},
        "inputs has 'lable', and the generator takes z, label: use its names",
    ),
    "the latent too": (
        ByLabel,
        {"inputs": {"z": Condition(6), "label": Label(5)}},
        "inputs names all that the generator takes (z, label): leave out the latent",
    ),
    "not all": (
        BigGAN,
        {"inputs": {"truncation": 0.5}},
        "the generator takes z, class_label, truncation, and its latent is z: say what class_label "
        "is, such as inputs={'class_label': Label(classes)}, or Condition(shape), or a number",
    ),
    "none": (ByLabel, {}, "its latent is z: say what label is, such as inputs={'label': Label(cla"),
    "none, in the shell": (ByLabel, {}, "in the shell, --input label=label:10 or --input label=co"),
    "both": (
        ByLabel,
        {"inputs": {"label": Label(5)}, "condition_shape": 1},
        "leave out condition_shape",
    ),
    "too many classes": (
        ByLabel,
        {"inputs": {"label": Label(6)}},
        "does not take a latent of shape [B, 6] and label (label, 6 classes): index out of range",
    ),
    "float for an index": (
        ByLabel,
        {"inputs": {"label": Condition(1)}},
        "uses 'label' as an index of 5 classes: give inputs={'label': Label(5)}",
    ),
    "one-hot for an index": (
        ByLabel,
        {"inputs": {"label": OneHot(5)}},
        "does not take a latent of shape [B, 6] and label (one-hot label, 5 classes): ",
    ),
    "a text": (
        BigGAN,
        {"inputs": {"class_label": OneHot(5), "truncation": "half"}},
        "does not take a latent of shape [B, 6] and class_label (one-hot label, 5 classes): ",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_refused(tmp_path: Path, case: str) -> None:
    make, options, message = BAD_INPUTS[case]
    assert message in refused(make, tmp_path / "b", **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Label(0), "Label: classes must be a whole number >= 1"),
        (lambda: OneHot(2.5), "OneHot: classes must be a whole number >= 1"),
        (lambda: Label(2**24 + 1), "and <= 16777216, got 16777217"),
        (
            lambda: Condition((2, 0)),
            r"Condition: shape must be a number or a tuple of numbers >= 1",
        ),
        (lambda: Condition("3"), r"Condition: shape must be a number or a tuple of numbers >= 1"),
        (lambda: Condition(1, 1, 0), "Condition: low must be below high"),
    ],
)
def test_wrong_kinds_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        make()


def test_checks_draw_every_class_and_the_whole_range() -> None:
    conditions = {"a": Label(9), "b": Condition(2, -3, 5), "c": OneHot(1000)}
    rows = draw_conditions(conditions, 200, random=torch.Generator().manual_seed(0))
    assert rows.shape == (200, 4)
    assert set(rows[:, 0].tolist()) == set(range(9))
    assert -3 <= rows[:, 1:3].min() < -2.9 < 4.9 < rows[:, 1:3].max() <= 5
    assert (rows[:, 3].min(), rows[:, 3].max()) == (0, 999)
    assert rows[:, 3].frac().eq(0).all()
    assert len(set(rows[:, 3].tolist())) > 150


class FromFloats(Net):
    """Uses a float [B, 1] as an index."""

    def __init__(self, index: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.index = index

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        features = self.index(label)
        if features.ndim < 2:
            features = self.table(features)
        return self.image(z, features.view(z.shape[0], -1))


@pytest.mark.parametrize(
    "make",
    [ByLabel, lambda: FromFloats(lambda c: functional.one_hot(c, 6).float())],
    ids=["embedding", "one_hot"],
)
def test_an_index_becomes_a_label(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    classes = 5 if make is ByLabel else 6
    with pytest.warns(UserWarning, match=rf"Label\({classes}\)}} instead of condition_shape"):
        export(make(), tmp_path / "b", **QUICK, condition_shape=1)
    inverter = pyinv.Inverter(tmp_path / "b")
    assert inverter.manifest.conditions == {"label": Label(classes)}
    z, label = inverter.sample(5), np.arange(5)
    with torch.no_grad():
        wanted = make().eval()(torch.from_numpy(z), torch.from_numpy(label))
    np.testing.assert_allclose(inverter.generate(z, conditions=label), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("cast", "named"),
    [
        (lambda c: c[:, 0].long(), "Label(5)"),
        (lambda c: c[:, 0].round().to(torch.int64), "Label(5)"),
        (lambda c: (c.int() % 7).expand(-1, 6).float(), "Label(classes)"),
    ],
)
def test_a_float_that_is_cast_to_integers_is_warned_about(
    tmp_path: Path, cast: Callable[[Tensor], Tensor], named: str
) -> None:
    options = {**QUICK, "overwrite": True}
    message = re.escape(f"give inputs={{'label': {named}}}, or Condition(")
    with pytest.warns(UserWarning, match=message):
        export(FromFloats(cast), tmp_path / "b", inputs={"label": Condition(1, 0, 1)}, **options)
    # With its range, it is fine: all classes are drawn.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(FromFloats(cast), tmp_path / "b", inputs={"label": Condition(1, 0, 4.4)}, **options)


def test_the_arguments_of_a_torchscript_generator_have_names(tmp_path: Path) -> None:
    generator = torch.jit.trace(
        LabelFirst().eval(), (torch.arange(3), torch.zeros(3, LATENT)), check_trace=False
    )
    export(generator, tmp_path / "b", **QUICK, inputs={"label": Label(CLASSES)})
    inverter = pyinv.Inverter(tmp_path / "b")
    z, label = inverter.sample(5), np.arange(5)
    with torch.no_grad():
        wanted = LabelFirst().eval()(torch.from_numpy(label), torch.from_numpy(z))
    np.testing.assert_allclose(inverter.generate(z, conditions=label), wanted, atol=1e-5)


def onnx_file(generator: nn.Module, path: Path, given: Any, names: list[str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {name: {0: "batch"} for name in names}
        torch.onnx.export(
            generator.eval(), given, path, input_names=names, dynamic_axes=axes, dynamo=False
        )
    return load_onnx(path)


@pytest.mark.parametrize("integers", [torch.int64, torch.int32])
def test_an_onnx_file_may_take_labels(tmp_path: Path, integers: torch.dtype) -> None:
    z, label = torch.randn(5, LATENT), torch.arange(5)
    file = onnx_file(LabelFirst(), tmp_path / "a.onnx", (label.to(integers), z), ["y", "latent"])
    path = export(file, tmp_path / "b", **QUICK, inputs={"y": Label(CLASSES)})
    with torch.no_grad():
        wanted = LabelFirst().eval()(label, z)
    found = pyinv.Inverter(path).generate(z, conditions=label)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    refusal = refused(lambda: file, tmp_path / "c", inputs={"y": Condition(())})
    assert "and float32 would be given: the latent is float32; describe another inp" in refusal


def test_an_onnx_file_may_take_three_inputs(tmp_path: Path) -> None:
    z, label, scale = torch.randn(5, LATENT), torch.arange(5), torch.rand(5, 1)
    given = (z, one_hot(label), scale)
    file = onnx_file(BigGAN(), tmp_path / "a.onnx", given, ["z", "y", "scale"])
    inputs = {"scale": Condition(1, 0, 1), "y": OneHot(CLASSES)}
    path = export(file, tmp_path / "b", **QUICK, inputs=inputs)
    with torch.no_grad():
        wanted = BigGAN().eval()(*given)
    found = pyinv.Inverter(path).generate(z, conditions={"y": label, "scale": scale})
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for wrong, message in (
        ({"y": OneHot(CLASSES)}, "its latent is z: say what scale is"),
        (
            {**inputs, "y": Condition(4)},
            "takes y [B, 5], got [B, 4]: check latent_shape and inputs",
        ),
        ({**inputs, "y": Label(5)}, "its input y [B, 5] is float32, and a label would be given"),
        ({**inputs, "label": Label(5)}, "inputs has 'label', and the generator takes z, y, scale"),
    ):
        assert message in refused(lambda: file, tmp_path / "c", inputs=wrong)


class Noisy(Net):
    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.image(z, self.table(label)) * torch.randn(z.shape[0], 1, 4, 4).sigmoid()


class Encoder(nn.Module):
    """Latents of images, a label and a one-hot vector, in the manifest's order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.dense = nn.Embedding(CLASSES, 4), nn.Linear(16 + 4 + CLASSES, LATENT)

    def forward(self, image: Tensor, label: Tensor, y: Tensor) -> Tensor:
        return self.dense(torch.cat([image.flatten(1), self.table(label), y], 1))


class TwoLabels(Net):
    def forward(self, z: Tensor, label: Tensor, y: Tensor) -> Tensor:
        return self.image(z, self.table(label) + self.project(y))


def test_noise_and_encoders_go_with_labels(tmp_path: Path) -> None:
    options = {**QUICK, "runtimes": ("onnx", "torchscript")}
    export(Noisy(), tmp_path / "n", inputs={"label": Label(CLASSES)}, noise="latent", **options)
    assert pyinv.Inverter(tmp_path / "n").manifest.latent_shape == (LATENT + 16,)
    path = export(
        TwoLabels(),
        tmp_path / "e",
        inputs={"label": Label(CLASSES), "y": OneHot(CLASSES)},
        encoder=Encoder(),
        **options,
    )
    images = np.random.default_rng(0).uniform(-1, 1, (5, 1, 4, 4)).astype(np.float32)
    label = torch.arange(5)
    with torch.no_grad():
        wanted = Encoder()(torch.from_numpy(images), label, one_hot(label.flip(0)))
    for runtime in ("onnx", "torchscript"):
        found = pyinv.Inverter(path, runtime=runtime).encode(
            images, conditions={"label": np.arange(5), "y": np.arange(5)[::-1]}
        )
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_labels_go_with_observations_and_weights(tmp_path: Path) -> None:
    path = export(
        ByLabel(),
        tmp_path / "b",
        inputs={"label": Label(CLASSES)},
        observe=lambda image: image.flatten(1)[:, :12],
        weights=True,
        **{**QUICK, "normal_equations": True, "runtimes": ("onnx", "torchscript")},
    )
    step = pyinv.Stage(pyinv.LevenbergMarquardt(), loss="mse", max_steps=40)
    recipe = pyinv.Recipe("solve", (step,))
    for runtime in ("onnx", "torchscript"):
        inverter = pyinv.Inverter(path, runtime=runtime)
        z, label = inverter.sample(5), np.arange(5)
        targets = inverter.observe(inverter.generate(z, conditions=label))
        weights = np.ones_like(targets)
        targets[:, 0], weights[:, 0] = 0.3, 0
        given = {"conditions": label, "weights": weights}
        found = inverter.invert(targets, init=z - 0.05, recipe=recipe, **given)
        np.testing.assert_allclose(found.latents, z, atol=1e-3)
        known = inverter.uncertainty(found, targets, n_hops=0, **given)
        assert known.identifiable.all()
        wrong = inverter.invert(
            targets, init=z, recipe=recipe, weights=weights, conditions=(label + 1) % CLASSES
        )
        assert wrong.loss.min() > 1e-6


# -- Manifest ---------------------------------------------------------------------------------


def test_conditions_come_back_from_the_manifest(bundles: Callable[[str], Path]) -> None:
    manifest = Bundle.open(bundles("mixed")).manifest
    assert manifest.conditions == CASES["mixed"].inputs
    assert manifest.condition_size == 1 + 6 + 1 + 1
    assert manifest.describe()["conditions"][1:3] == [
        {"name": "text", "kind": "condition", "shape": [2, 3], "low": -1.0, "high": 1.0},
        {"name": "label", "kind": "label", "classes": 5},
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"kind": "label", "classes": 3}], 'conditions\\[0\\] has no "name"'),
        ([{"name": "a", "kind": "labels"}], 'must be label, one_hot or condition, got "labels"'),
        (
            [{"name": "a", "kind": "label", "classes": 0}],
            "classes must be a whole number from 1 to 16777216",
        ),
        (
            [{"name": "a", "kind": "condition", "shape": [2**31]}],
            "shape must hold at most 2147483647 values",
        ),
        ([{"name": "a", "kind": "label", "classes": 2}] * 2, "is that of another condition"),
        ("label", "conditions must be an array"),
    ],
)
def test_a_manifest_with_wrong_conditions_is_refused(
    bundles: Callable[[str], Path], entries: Any, message: str
) -> None:
    described = json.loads((bundles("embedding") / "manifest.json").read_text())
    with pytest.raises(BundleError, match=message):
        Manifest.from_description({**described, "conditions": entries})


# -- Command line -----------------------------------------------------------------------------


FACTORY = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_inputs import BigGAN as make
"""


def test_the_command_line_takes_inputs_and_conditions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models.py").write_text(FACTORY)
    bundle = str(tmp_path / "b")
    arguments = ["export", str(tmp_path / "models.py:make"), "-o", bundle, "--prior", "normal"]
    arguments += ["--latent-shape", str(LATENT), "--input", "class_label=one_hot:5"]
    assert main([*arguments, "--input", "truncation=condition:1:0,1"]) == 0
    assert main(["info", bundle]) == 0
    out = capsys.readouterr().out
    assert "class_label: one-hot label, 5 classes, truncation: float32 [B, 1]" in out

    rows = {"class_label": np.arange(4), "truncation": np.linspace(0.5, 1, 4)}
    np.save(tmp_path / "label.npy", rows["class_label"])
    np.savez(tmp_path / "all.npz", **rows)
    inverter = pyinv.Inverter(bundle)
    z = inverter.sample(4)
    np.save(tmp_path / "z.npy", z)
    wanted = inverter.generate(z, conditions=rows)
    options = ["--overwrite", "--condition", f"class_label={tmp_path / 'label.npy'}"]
    options += ["--condition", f"truncation={tmp_path / 'all.npz'}"]
    images = str(tmp_path / "x.npy")
    latents = ["--latents", str(tmp_path / "z.npy")]
    assert main(["generate", bundle, "-o", images, *latents, *options]) == 0
    np.testing.assert_allclose(np.load(images), wanted, atol=1e-6)
    found = str(tmp_path / "found.npz")
    assert main(["invert", bundle, images, "-o", found, "--recipe", "precise", *options]) == 0
    np.testing.assert_allclose(np.load(found)["latents"], z, atol=1e-2)

    capsys.readouterr()
    for given, message in (
        (["class_label=7", "truncation=1"], "from 0 to 4, got 7 for target 0"),
        (["3"], "--condition must be NAME=VALUE, got '3'; the bundle takes class_label, trunc"),
        (["class_label=1", "class_label=2"], "--condition gives 'class_label' twice"),
        (["label=1"], "this bundle has no condition 'label'; it has class_label (one-hot"),
        (
            ["class_label=nowhere.npy"],
            "--condition class_label must be a number or a .npy, .npz or .parquet file, and there "
            "is no file nowhere.npy",
        ),
        (["class_label=1", "truncation="], "--condition truncation= needs a number or a .npy, "),
    ):
        options = ["--overwrite", *(part for text in given for part in ("--condition", text))]
        assert main(["generate", bundle, "-o", images, *latents, *options]) == 1
        assert message in capsys.readouterr().err


def test_a_condition_may_be_a_column_of_a_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet files need pyarrow")
    from pyarrow import table

    path = tmp_path / "a.parquet"
    rows = {"file": ["a", "b", "c"], "label": [2, 0, 1], "psi": [0.5, None, 1.0]}
    parquet.write_table(table(rows), path)
    np.testing.assert_array_equal(read_column(path, "label"), [2, 0, 1])
    np.testing.assert_array_equal(read_column(path, "psi"), [0.5, np.nan, 1])
    with pytest.raises(InputError, match="expected a column of numbers 'file', found label, psi"):
        read_column(path, "file")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_column(tmp_path / "b.parquet", "label")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("label", "expected NAME=WHAT such as label=label:10 or psi=0.7, got 'label'"),
        ("label=label:0", "Label: classes must be a whole number >= 1"),
        ("label=label:", "label: takes a number of classes, as in label:10, got 'label=label:'"),
        ("label=one_hot:ten", "one_hot: takes a number of classes, as in one_hot:10"),
        ("label=lable:10", "expected label:, one_hot: or condition:, or a quoted text"),
        ("c=condition:0", "expected a shape such as 100 or 100,1,1, got '0'"),
        ("c=condition:1:1", "a range is LOW,HIGH, as in condition:1:0,1, got 'c=condition:1:1'"),
        ("c=condition:1:0,1,2", "a range is LOW,HIGH"),
        ("c=condition:2:1,0", "Condition: low must be below high"),
    ],
)
def test_bad_input_options_are_refused(
    capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    assert main(["export", "a.py:make", "-o", "b", "--latent-shape", "6", "--input", given]) == 2
    assert message in capsys.readouterr().err


def test_values_on_the_command_line_are_pythons() -> None:
    from pyinv.cli.export import parse_input

    for text, value in (
        ("psi=0.7", 0.7),
        ("psi=3", 3),
        ("flip=True", True),
        ("mean=None", None),
        ("mode=truncated", "truncated"),
        ("mode='a:b'", "a:b"),
        ("mode='1'", "1"),
    ):
        found = parse_input(text)[1]
        assert found == value
        assert type(found) is type(value)
