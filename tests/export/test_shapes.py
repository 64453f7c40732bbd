"""Outputs of any shape, and generators that return several: exported, inverted, refused."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from torch import Tensor, nn  # noqa: E402

import pyinv  # noqa: E402
from pyinv.bundle import Bundle  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import ExportError  # noqa: E402
from pyinv.export import add_encoder, export, perceptual, read_generator  # noqa: E402
from pyinv.priors import Normal  # noqa: E402
from support.backends import BACKENDS, Backend  # noqa: E402
from support.shaped import LATENT, SHAPES, shaped  # noqa: E402

COUNT = 5


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle for each shape and both runtimes, exported on first use."""
    folder = tmp_path_factory.mktemp("shapes")

    def bundle(name: str) -> Path:
        path = folder / f"{name}.bundle"
        if not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                export(
                    shaped(name),
                    path,
                    latent_shape=LATENT,
                    prior=Normal(),
                    losses=("mse", "whitened", "l1", "bce"),
                    normal_equations=True,
                    runtimes=("onnx", "torchscript"),
                )
        return path

    return bundle


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_generators_outputs_are_inverted_exactly(
    bundles: Callable[[str], Path], name: str, backend: Backend
) -> None:
    backend.require()
    inverter = pyinv.Inverter(
        bundles(name), runtime=backend.runtime, device=backend.device, threads=1
    )
    assert inverter.manifest.image_shape == SHAPES[name]
    truth = inverter.sample(COUNT, seed=1)
    targets = inverter.generate(truth)
    assert targets.shape == (COUNT, *SHAPES[name])
    with torch.no_grad():
        expected = shaped(name)(torch.from_numpy(truth)).numpy()
    np.testing.assert_allclose(targets, expected, atol=1e-5)
    inversion = inverter.invert(targets, recipe="precise")
    assert inversion.counts()["converged_tolerance"] == COUNT
    np.testing.assert_allclose(inversion.latents, truth, atol=2e-3)
    assert inversion.images.shape == targets.shape

    loss, gradient = inverter.evaluate(truth, 0.5 * targets)
    np.testing.assert_allclose(loss, ((0.5 * targets) ** 2).reshape(COUNT, -1).mean(1), rtol=1e-4)
    assert gradient.shape == (COUNT, LATENT)
    _, _, gram = inverter.normal_equations(truth, targets)
    assert gram.shape == (COUNT, LATENT, LATENT)

    uncertainty = inverter.uncertainty(inversion, targets, n_hops=0)
    assert uncertainty.standard_error.shape == (COUNT, LATENT)
    assert uncertainty.identifiable.all()


def test_first_order_recipes_and_noise(bundles: Callable[[str], Path]) -> None:
    inverter = pyinv.Inverter(bundles("audio"), threads=1)
    targets = inverter.generate(inverter.sample(3))
    inversion = inverter.invert(targets, recipe="default", restarts=0)
    assert float(inversion.loss.max()) < 1e-2
    noisy = targets + 0.02 * np.random.default_rng(0).standard_normal(targets.shape)
    inversion = inverter.invert(noisy.clip(-1, 1), recipe="reconstruct", noise=0.02)
    uncertainty = inverter.uncertainty(inversion, noisy.clip(-1, 1), n_hops=1)
    assert 0.01 < float(np.median(uncertainty.noise)) < 0.04


def test_the_manifest_has_the_shape_and_says_whether_it_is_a_picture(
    bundles: Callable[[str], Path],
) -> None:
    for name, shape in SHAPES.items():
        manifest = Bundle.open(bundles(name)).manifest
        assert manifest.describe()["image_shape"] == list(shape)
        assert manifest.image_size == np.prod(shape)
        assert not manifest.is_picture


@pytest.mark.parametrize("name", SHAPES)
def test_an_encoder(bundles: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    size = int(np.prod(SHAPES[name]))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, LATENT))
    path = add_encoder(bundles(name), encoder, tmp_path / "b")
    targets = np.zeros((2, *SHAPES[name]), np.float32)
    for runtime in ("onnx", "torchscript"):
        found = pyinv.Inverter(path, runtime=runtime, threads=1).encode(targets)
        np.testing.assert_allclose(found, encoder[1].bias.detach().expand(2, -1), atol=1e-6)


@pytest.mark.parametrize("name", ["vector", "plane"])
def test_the_generator_is_read_back(bundles: Callable[[str], Path], name: str) -> None:
    latent = torch.randn(3, LATENT)
    with torch.no_grad():
        found = read_generator(bundles(name))(latent)
        torch.testing.assert_close(found, shaped(name)(latent), atol=1e-5, rtol=1e-5)


def test_statistics_of_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.Linear(LATENT, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 20), nn.Tanh()
    )
    path = export(
        generator,
        tmp_path / "b",
        latent_shape=LATENT,
        prior=Normal(),
        batch_norm="batch",
        runtimes=("onnx", "torchscript"),
    )
    assert pyinv.Inverter(path, threads=1).generate(np.zeros((3, LATENT))).shape == (3, 20)


def test_a_loss_of_the_users(tmp_path: Path) -> None:
    def steep(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target) ** 4).mean(1)

    path = export(
        shaped("vector"), tmp_path / "b", latent_shape=LATENT, prior=Normal(), losses=steep
    )
    inverter = pyinv.Inverter(path, threads=1)
    loss, _ = inverter.evaluate(np.zeros((1, LATENT)), np.zeros((1, 40)), loss="steep")
    value = inverter.generate(np.zeros((1, LATENT)))
    np.testing.assert_allclose(loss, (value**4).mean(1), rtol=1e-4)


def test_perceptual_losses_are_for_images(tmp_path: Path) -> None:
    loss = perceptual(nn.Conv2d(1, 2, 3))
    with pytest.raises(
        ExportError, match=r"perceptual compares images \[B, C, H, W\], and these"
    ) as error:
        export(shaped("vector"), tmp_path / "b", latent_shape=LATENT, prior=Normal(), losses=loss)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "b").exists()


# ----------------------------------------------------------------------- one of several outputs


@dataclasses.dataclass
class Decoded:
    sample: Any
    scale: Any = None


class DecodedMapping(collections.OrderedDict):  # as the outputs of diffusers and transformers
    def __getattr__(self, name: str) -> Any:
        return self[name]


class Slots:
    __slots__ = ("sample",)

    def __init__(self, sample: Any) -> None:
        self.sample = sample


Pair = collections.namedtuple("Pair", "sample scale")


class Several(nn.Module):
    """Returns what ``pack`` makes of an image and another tensor."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.dense = nn.Linear(LATENT, 16)
        self.pack = pack

    def forward(self, latent: Tensor) -> Any:
        x = torch.tanh(self.dense(latent))
        return self.pack(x.view(-1, 1, 4, 4), x.mean(1))


PACKS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str | int]] = {
    "a dictionary": (lambda x, y: {"sample": x, "scale": y}, "sample"),
    "numbers as keys": (lambda x, y: {7: x, 9: y}, 7),
    "a mapping": (lambda x, y: DecodedMapping(sample=x, scale=y), "sample"),
    "a dataclass": (lambda x, y: Decoded(x, y), "sample"),
    "a named tuple": (lambda x, y: Pair(x, y), "sample"),
    "an index of a named tuple": (lambda x, y: Pair(x, y), 0),
    "a tuple": (lambda x, y: (y, x), 1),
    "an index from the end": (lambda x, y: (y, x), -1),
    "a list": (lambda x, y: [x, y], 0),
    "an object": (lambda x, y: Slots(x), "sample"),
}


@pytest.mark.parametrize("name", PACKS)
def test_output_picks_the_tensor(tmp_path: Path, name: str) -> None:
    pack, output = PACKS[name]
    torch.manual_seed(0)
    generator = Several(pack).eval()
    path = export(
        generator,
        tmp_path / "b",
        latent_shape=LATENT,
        prior=Normal(),
        normal_equations=False,
        output=output,
    )
    manifest = Bundle.open(path).manifest
    assert manifest.name == "Several"
    assert manifest.is_picture
    assert "whitened" in manifest.losses
    latent = torch.randn(3, LATENT)
    with torch.no_grad():
        expected = torch.tanh(generator.dense(latent)).view(-1, 1, 4, 4).numpy()
    found = pyinv.Inverter(path, threads=1).generate(latent)
    np.testing.assert_allclose(found, expected, atol=1e-6)


class ScriptedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(LATENT, 16)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.dense(latent))
        return x.mean(1), x


class ScriptedDictionary(ScriptedPair):
    def forward(self, latent: Tensor) -> dict[str, Tensor]:
        named = {"sample": torch.tanh(self.dense(latent))}
        return {"sample": named["sample"], "mean": named["sample"].mean(1)}


@pytest.mark.parametrize(("make", "output"), [(ScriptedPair, 1), (ScriptedDictionary, "sample")])
def test_output_of_a_torchscript_file(
    tmp_path: Path, make: type[nn.Module], output: str | int
) -> None:
    torch.manual_seed(0)
    generator = make().eval()
    torch.jit.save(torch.jit.script(generator), tmp_path / "g.pt")
    options = ("--latent-shape", str(LATENT), "--prior", "normal", "--no-normal-equations")
    command = ["export", str(tmp_path / "g.pt"), "-o", str(tmp_path / "b"), *options]
    assert main([*command, "--output-item", str(output)]) == 0
    latent = torch.randn(3, LATENT)
    with torch.no_grad():
        expected = generator.dense(latent).tanh().numpy()
    found = pyinv.Inverter(tmp_path / "b", threads=1).generate(latent)
    np.testing.assert_allclose(found, expected, atol=1e-6)


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any, str]] = {
    "a dictionary": (
        lambda x, y: {"sample": x, "scale": y},
        None,
        "returns a dict, and a bundle has one tensor: give output='sample' or 'scale'",
    ),
    "a dataclass": (
        lambda x, y: Decoded(x, y),
        None,
        "returns a Decoded, and a bundle has one tensor: give output='sample' or 'scale'",
    ),
    "a tuple": (
        lambda x, y: (x, y),
        None,
        "returns a tuple of 2 items, and a bundle has one tensor: give output=0 or 1",
    ),
    "a list of one": (
        lambda x, y: [x],
        None,
        "returns a list of 1 item, and a bundle has one tensor: give output=0",
    ),
    "nothing": (lambda x, y: None, None, "returns a NoneType: wrap it in a module that returns"),
    "another key": (
        lambda x, y: {"sample": x},
        "image",
        "returns a dict, and has no output 'image': give output='sample'",
    ),
    "an index of a dictionary": (
        lambda x, y: {"sample": x},
        0,
        "returns a dict, and has no output 0: give output='sample'",
    ),
    "an index too large": (
        lambda x, y: (x, y),
        2,
        "returns a tuple of 2 items, and has no output 2: give output=0 or 1",
    ),
    "a key of a tuple": (lambda x, y: (x, y), "sample", "has no output 'sample': give output=0"),
    "a name of nothing": (lambda x, y: None, "sample", "returns a NoneType, and has no output"),
    "no tensor": (
        lambda x, y: {"sample": [x, y]},
        "sample",
        "the generator's output 'sample' is a list, and must be a tensor: pick another",
    ),
    "not needed": (
        lambda x, y: x,
        0,
        "returns one tensor, and output=0 picks one of several: leave output out",
    ),
    "a flag": (lambda x, y: (x, y), True, "output must be a key, the name of an attribute, or"),
    "a float": (lambda x, y: (x, y), 1.0, "output must be a key, the name of an attribute, or"),
    "of another batch": (lambda x, y: (x[0], y), 0, "must return one output per latent"),
    "without an axis": (lambda x, y: (x, y), 1, "it returned [64] for 64 latents"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_outputs_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    pack, output, message = REFUSED[name]
    with pytest.raises(ExportError) as error:
        export(Several(pack), tmp_path / "b", latent_shape=LATENT, prior=Normal(), output=output)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "b").exists()
