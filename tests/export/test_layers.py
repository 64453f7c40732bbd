"""Generators in parts: where they are cut, what is exported of them, and what is read back."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from pyinv import Inverter, Normal, Uniform  # noqa: E402
from pyinv.bundle import Bundle  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import ExportError, InputError  # noqa: E402
from pyinv.export import (  # noqa: E402
    Layers,
    TailScale,
    export,
    first_layers,
    read_generator,
    split,
)
from pyinv.models.progan import ProGanGenerator  # noqa: E402
from pyinv.penalties import PriorPenalty  # noqa: E402
from pyinv.recipes import Recipe, Stage  # noqa: E402
from pyinv.solvers import Adam, GradientDescent  # noqa: E402
from support.generators import (  # noqa: E402
    ConditionalGenerator,
    Dcgan,
    Mlp,
    PixelShuffleGenerator,
    UpsampleGenerator,
    VaeDecoder,
    seeded,
)

LATENT = 12
# Normal equations take most of an export's time.
FIRST_ORDER = {"losses": "mse", "normal_equations": False}


class Plain(nn.Module):
    """Functions between submodules, one of them in place, and the batch's size asked of z."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(LATENT, 32)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 8).view(8, 1, 1))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU(inplace=True))
        self.last = nn.ConvTranspose2d(8, 1, 4, 2, 1)

    def forward(self, latent: Tensor) -> Tensor:
        x = functional.relu(self.dense(latent), inplace=True)
        x = x.view(latent.shape[0], 8, 2, 2) + self.shift
        return torch.tanh(self.last(self.up(x)).reshape(latent.size(0), 1, 8, 8))


class Nested(nn.Module):
    """A skip connection around layers whose output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(LATENT, 64)
        self.middle = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.last = nn.Linear(64, 64)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.dense(latent)
        return self.last(x + self.middle(x)).view(-1, 1, 8, 8)


def progan(latent: int = 8, size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return ProGanGenerator(latent, size, 1, 4).eval()


CUTS = {
    "dcgan": (lambda: seeded(Dcgan(width=4)), 100, ["layers.2", "layers.5", "layers.8"]),
    "one by one": (lambda: seeded(Dcgan(width=4)), 100, ["layers.0", "layers.1", "layers.2"]),
    "nested": (lambda: seeded(Plain()), LATENT, ["dense", "up.0", "up"]),
    "mlp": (lambda: seeded(Mlp()), 20, ["layers.1", "layers.4"]),
    "around a skip": (lambda: seeded(UpsampleGenerator()), 48, ["dense", "first"]),
    "pixel norm": (progan, 8, ["layer1", "layer2", "layer3", "layer4"]),
}


@pytest.mark.parametrize("case", CUTS)
def test_parts_compute_what_the_whole_does(case: str) -> None:
    make, size, names = CUTS[case]
    generator = make()
    latents = torch.randn(5, size, generator=torch.Generator().manual_seed(1))
    expected = generator(latents)
    before = copy.deepcopy(generator.state_dict())
    layers = split(generator, names)
    given = latents.clone()
    activations = layers.activations(given)
    kept = [activation.clone() for activation in activations]
    assert len(layers.layers) == len(names)
    assert torch.equal(layers.tail(activations[-1]), expected)
    by_hand = latents
    for layer in layers.layers:
        by_hand = layer(by_hand)
    assert torch.equal(layers.tail(by_hand), expected)
    # Nothing was changed in place: not the input, not what was returned, not the generator.
    assert torch.equal(given, latents)
    for found, copied in zip(activations, kept, strict=True):
        assert torch.equal(found, copied)
    assert all(torch.equal(generator.state_dict()[name], before[name]) for name in before)
    assert [tuple(a.shape[1:]) for a in activations] == layers.shapes(size)


def test_split_is_in_eval_mode_and_leaves_the_generator_training() -> None:
    generator = seeded(Dcgan(width=4)).train()
    layers = split(generator, ["layers.2"])
    assert generator.training
    latents = torch.randn(4, 100)
    generator.eval()
    assert torch.equal(layers.tail(layers.activations(latents)[0]), generator(latents))


@pytest.mark.parametrize(
    ("make", "names", "message"),
    [
        (Nested, ["dence"], "no layer 'dence': it has dense, middle, middle.0, middle.1, last"),
        (Nested, ["middle"], "'middle'.*value of dense passes as well.*cut after dense, last$"),
        (Nested, ["middle.0"], "'middle.0'.*value of dense passes as well"),
        (Dcgan, ["layers"], "'layers', where nothing comes after it"),
        (Plain, ["up", "dense"], "'dense' does not come after 'up'"),
        (Plain, ["up.1", "up"], "'up.1' and 'up' end at the same place"),
        (Plain, ["dense", "dense"], "'dense' is named twice"),
        (Plain, [], "one name of a submodule or more"),
        (ConditionalGenerator, ["layers.0"], "the latent alone, it takes 2 inputs"),
    ],
)
def test_cuts_that_cannot_be(make: type[nn.Module], names: list[str], message: str) -> None:
    with pytest.raises(ExportError, match=message) as refused:
        split(make(), names)
    assert "\n" not in str(refused.value)


def test_torchscript_is_refused_with_a_way_out() -> None:
    scripted = torch.jit.trace(seeded(Plain()), torch.randn(2, LATENT))
    with pytest.raises(ExportError, match="read_generator"):
        split(scripted, ["dense"])


def test_first_layers() -> None:
    assert first_layers(progan()) == ("layer1", "layer2", "layer3", "layer4")
    assert first_layers(Dcgan(width=4), 2) == ("layers.2", "layers.5")
    assert first_layers(Mlp()) == ("layers.1", "layers.4")
    with pytest.raises(ExportError, match="no activation modules"):
        first_layers(nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (1, 2, 2))))


# -- The tail ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    """16 components to 1 x 16 x 16; activations of 8 x 4 x 4, 6 x 8 x 8 and 4 x 16 x 16."""
    widths = (16, 8, 6, 4)
    inner = [
        [nn.ConvTranspose2d(a, b, 4, *how), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        for a, b, how in zip(widths, widths[1:], ((1, 0), (2, 1), (2, 1)), strict=False)
    ]
    return seeded(
        nn.Sequential(
            nn.Unflatten(1, (16, 1, 1)),
            *(module for part in inner for module in part),
            nn.ConvTranspose2d(4, 1, 3, 1, 1),
            nn.Tanh(),
        )
    )


@pytest.fixture(scope="module")
def layers(whole: nn.Module) -> Layers:
    return split(whole, ["3", "6", "9"])


@pytest.fixture(scope="module")
def tail(layers: Layers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layers.export_tail(
        tmp_path_factory.mktemp("tail") / "tail.bundle",
        latent_shape=16,
        prior=Normal(),
        samples=300,
        losses=("mse", "l1"),
        origin={"data": "none"},
    )


def test_a_tail_takes_standardised_activations(
    whole: nn.Module, layers: Layers, tail: Path
) -> None:
    inverter = Inverter(tail)
    manifest = inverter.manifest
    assert manifest.latent_shape == (4, 16, 16)
    assert manifest.prior == Normal()
    assert manifest.origin["data"] == "none"
    assert manifest.origin["layers"]["after"] == ["3", "6", "9"]
    assert not manifest.has_normal_equations("mse")  # 1024 components
    latents = torch.randn(2000, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        activations = layers.activations(latents)[-1]
        images = whole(latents[:4]).numpy()
    scale = TailScale.of(tail)
    u = scale.latent_of(activations)
    # Other samples than the constants come from.
    assert torch.allclose(u.mean((0, 2, 3)), torch.zeros(4), atol=0.1)
    assert torch.allclose(u.std((0, 2, 3)), torch.ones(4), atol=0.1)
    assert np.allclose(inverter.generate(u[:4].numpy()), images, atol=1e-5)
    back = scale.activation_of(u[:4].numpy())
    assert isinstance(back, np.ndarray)
    assert np.allclose(back, activations[:4].numpy(), atol=1e-5)


def test_a_tail_can_be_inverted(whole: nn.Module, tail: Path) -> None:
    with torch.no_grad():
        images = whole(torch.randn(3, 16, generator=torch.Generator().manual_seed(6))).numpy()
    recipe = Recipe("adam", (Stage(Adam(0.05), max_steps=150),))
    inversion = Inverter(tail).invert(images, recipe=recipe)
    assert inversion.latents.shape == (3, 4, 16, 16)
    assert (inversion.loss < 0.02 * images.var()).all()


def test_a_tail_of_another_bundle(tmp_path: Path, layers: Layers) -> None:
    path = layers.export_residual(tmp_path / "residual.bundle", latent_shape=16, **FIRST_ORDER)
    with pytest.raises(InputError, match="is not a generator's tail"):
        TailScale.of(path)


def test_a_channel_that_never_varies_gets_the_others_deviation() -> None:
    dead = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4), nn.Unflatten(1, (1, 2, 2)))
    with torch.no_grad():
        dead[0].bias.copy_(torch.tensor([5.0, 5.0, -50.0]))
    found = split(dead, ["1"]).standardised_tail(4, Normal()).scale
    assert found.mean[2] == 0
    assert found.std[2] == pytest.approx(np.sqrt(np.mean(np.square(found.std[:2]))))
    with torch.no_grad():
        dead[0].bias.fill_(-50.0)
    with pytest.raises(ExportError, match="the same for all latents"):
        split(dead, ["1"]).standardised_tail(4, Normal())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_shape": 17}, "does not take a latent of shape"),
        ({"samples": 1}, "samples must be a number >= 2"),
        ({"prior": "normal"}, "prior must be"),
        ({"batch_norm": "batch"}, "batch_norm follows from the layers"),
        ({"origin": {"a": object()}}, "origin must be"),
    ],
)
def test_tails_that_cannot_be(
    layers: Layers, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        layers.export_tail(
            tmp_path / "x.bundle",
            **{"latent_shape": 16, "prior": Normal(), **options},  # type: ignore[arg-type]
        )
    assert not (tmp_path / "x.bundle").exists()


# -- Residuals -----------------------------------------------------------------------------------


def test_residuals_are_added_between_layers(layers: Layers, tmp_path: Path) -> None:
    weights = (0.5, 3.0)
    generator = layers.residual_generator(16, weights=weights)
    random = torch.Generator().manual_seed(2)
    z_0 = torch.randn(4, 16, generator=random)
    latent = torch.randn(4, generator.latent_size, generator=random)
    delta_1, delta_2 = generator.residuals_of(latent)
    assert generator.shapes == layers.shapes(16)[:2]
    g_1, g_2, g_3 = layers.layers
    with torch.no_grad():
        r_3 = g_3(delta_2 + g_2(delta_1 + g_1(z_0)))
        assert torch.equal(generator.activation_of(latent, z_0), r_3)
        expected = layers.tail(r_3)
    as_numpy = generator.activation_of(latent.numpy(), z_0.numpy())
    assert np.array_equal(as_numpy, r_3.numpy())
    assert torch.allclose(generator.latent_of([delta_1, delta_2]), latent, atol=1e-6)
    path = layers.export_residual(
        tmp_path / "residual.bundle",
        latent_shape=16,
        weights=weights,
        runtimes=("onnx", "torchscript"),
        losses="l1",
    )
    for runtime in ("onnx", "torchscript"):
        inverter = Inverter(path, runtime=runtime)
        found = inverter.generate(latent.numpy(), conditions=z_0.numpy())
        assert np.allclose(found, expected.numpy(), atol=1e-5)


def test_large_residuals_draw_no_warning_about_the_range(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Their prior is there for the penalty, and no generator makes the images that it gives."""
    small = seeded(
        nn.Sequential(
            *(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()),
            *(nn.Linear(6, 16), nn.Unflatten(1, (1, 4, 4))),
        )
    )
    path = split(small, ["1", "3"]).export_residual(
        tmp_path / "residual.bundle",
        latent_shape=4,
        weights=1e-4,
        value_range=(-1, 1),
        **FIRST_ORDER,
    )
    assert [warning for warning in recwarn if "value_range" in str(warning.message)] == []
    assert not Bundle.open(path).manifest.bounded


def test_the_prior_penalty_is_that_of_equation_12(layers: Layers, tmp_path: Path) -> None:
    weights = (0.5, 3.0)
    generator = layers.residual_generator(16, weights=weights)
    latent = torch.randn(3, generator.latent_size, generator=torch.Generator().manual_seed(3))
    latent.requires_grad_(True)
    residuals = generator.residuals_of(latent)
    penalty = sum(
        weight * residual.square().mean((1, 2, 3))
        for weight, residual in zip(weights, residuals, strict=True)
    )
    assert torch.allclose(penalty, latent.square().mean(1) / 2, rtol=1e-5)
    # And the engine's: one step of gradient descent with the penalty, less one without.
    (gradient,) = torch.autograd.grad(penalty.sum(), latent)
    path = layers.export_residual(
        tmp_path / "residual.bundle", latent_shape=16, weights=weights, **FIRST_ORDER
    )
    inverter = Inverter(path)
    start, z_0 = latent.detach().numpy(), np.ones((3, 16), np.float32)
    images = np.zeros((3, 1, 16, 16), np.float32)
    ends = []
    for penalties in ((), (PriorPenalty(1.0),)):
        stage = Stage(GradientDescent(1.0), penalties=penalties, max_steps=1)
        inversion = inverter.invert(
            images, recipe=Recipe("one step", (stage,), keep="last"), init=start, conditions=z_0
        )
        ends.append(inversion.latents)
    assert np.allclose(ends[0] - ends[1], gradient.numpy(), atol=1e-6)


def test_residuals_find_an_image_that_the_generator_cannot_make(
    layers: Layers, whole: nn.Module, tmp_path: Path
) -> None:
    path = layers.export_residual(tmp_path / "residual.bundle", latent_shape=16, **FIRST_ORDER)
    random = torch.Generator().manual_seed(4)
    z_0 = torch.randn(2, 16, generator=random)
    with torch.no_grad():
        r = layers.activations(z_0)[-1]
        images = layers.tail(r + 0.3 * torch.randn(r.shape, generator=random)).numpy()
    inverter = Inverter(path)
    size = inverter.manifest.latent_size
    start = np.zeros((2, size), np.float32)
    with torch.no_grad():
        assert np.allclose(
            inverter.generate(start, conditions=z_0.numpy()), whole(z_0).numpy(), atol=1e-5
        )
    first = inverter.evaluate(start, images, conditions=z_0.numpy())[0]
    stage = Stage(Adam(0.05), penalties=(PriorPenalty(1e-4),), max_steps=100)
    inversion = inverter.invert(
        images, recipe=Recipe("adam", (stage,)), init=start, conditions=z_0.numpy()
    )
    assert (inversion.loss < first / 2).all()


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["3"], 1.0, "name two layers or more"),
        (["3", "6"], 0.0, "weights must be one number above 0"),
        (["3", "6"], (1.0, 2.0), "weights must be one number above 0"),
    ],
)
def test_residuals_that_cannot_be(
    whole: nn.Module, names: list[str], weights: object, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        split(whole, names).residual_generator(16, weights=weights)  # type: ignore[arg-type]


# -- Bundles read back ---------------------------------------------------------------------------

READ = {
    "dcgan": (lambda: seeded(Dcgan(latent=16, width=4)), 16),
    "pixel shuffle": (lambda: seeded(PixelShuffleGenerator()), 32),
    "skip": (lambda: seeded(UpsampleGenerator()), 48),
    "vae": (lambda: seeded(VaeDecoder()), 16),
    "pixel norm": (progan, 8),
}


@pytest.mark.parametrize("case", READ)
def test_a_bundle_is_read_back_as_a_module(case: str, tmp_path: Path) -> None:
    make, size = READ[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # untrained values outside the range
        path = export(
            make(),
            tmp_path / "x.bundle",
            latent_shape=size,
            prior=Normal(),
            losses="mse",
            normal_equations=False,
        )
    generator = read_generator(path)
    inverter = Inverter(path)
    latents = inverter.sample(4, seed=1)
    z = torch.from_numpy(latents).requires_grad_(True)
    images = generator(z)
    assert np.allclose(images.detach().numpy(), inverter.generate(latents), atol=1e-4)
    target = np.zeros(images.shape, np.float32)
    (gradient,) = torch.autograd.grad(images.square().mean((1, 2, 3)).sum(), z)
    _, expected = inverter.evaluate(latents, target, loss="mse")
    assert np.allclose(gradient.numpy(), expected, atol=1e-3 * np.abs(expected).max())
    if case != "skip":
        # Channels are first, wherever the file has them.
        layers = split(generator, first_layers(generator))
        own = split(make(), _activations_of(case))
        assert layers.shapes(size)[: len(own.names)] == own.shapes(size)
        assert torch.equal(layers.tail(layers.activations(z)[-1]), images)


def _activations_of(case: str) -> tuple[str, ...]:
    make, _ = READ[case]
    # The VAE's SiLU is a product in ONNX, which first_layers does not take for an activation.
    return ("layers.1",) if case == "vae" else first_layers(make())


def test_a_bundle_with_an_operator_that_is_not_known(tmp_path: Path) -> None:
    class Sines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(3, 4)

        def forward(self, latent: Tensor) -> Tensor:
            return torch.sin(self.dense(latent)).view(-1, 1, 2, 2)

    path = export(Sines(), tmp_path / "x.bundle", latent_shape=3, prior=Uniform(), losses="mse")
    with pytest.raises(ExportError, match="uses Sin, which cannot be read back"):
        read_generator(path)


# -- The command ---------------------------------------------------------------------------------

FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(),
        nn.Unflatten(1, (1, 4, 4)),
    )
"""


def test_the_command_exports_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "net.py"
    source.write_text(FACTORY)
    shared = ["export", f"{source}:make", "--latent-shape", "4", "--prior", "normal"]
    shared += ["--loss", "mse", "--no-normal-equations"]
    assert main([*shared, "-o", str(tmp_path / "tail"), "--tail-after", "3"]) == 0
    assert Inverter(tmp_path / "tail").manifest.latent_shape == (16,)
    assert main([*shared, "-o", str(tmp_path / "residuals"), "--residuals", "1,3"]) == 0
    manifest = Inverter(tmp_path / "residuals").manifest
    assert (manifest.latent_shape, manifest.condition_size) == ((8,), 4)
    capsys.readouterr()
    assert main([*shared, "-o", str(tmp_path / "no"), "--tail-after", "layer4"]) != 0
    assert "no layer 'layer4': it has 0, 1, 2, 3, 4, 5, 6" in capsys.readouterr().err
