"""Weights per target and pixel: what they compute, in every runtime, and which are refused."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import pyinv  # noqa: E402
from pyinv.bundle import Bundle, Manifest  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import BundleError, ExportError, InputError  # noqa: E402
from pyinv.export import export, perceptual  # noqa: E402
from pyinv.priors import Normal  # noqa: E402
from support.backends import Backend  # noqa: E402

LATENT, SHAPE, COUNT = 6, (3, 4, 4), 9
LOSSES = ("mse", "l1", "bce", "whitened")


def generator() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(LATENT, 32), nn.LeakyReLU(0.2), nn.Linear(32, 48), nn.Unflatten(1, SHAPE)
    return nn.Sequential(*layers, nn.Tanh())


def exported(path: Path, **options: Any) -> Path:
    options = {"losses": LOSSES, "runtimes": ("onnx", "torchscript"), **options}
    return export(generator(), path, latent_shape=LATENT, prior=Normal(), **options)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("weights") / "weighted.bundle", weights=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("weights") / "plain.bundle")


def opened(path: Path, backend: Backend, **options: Any) -> pyinv.Inverter:
    return pyinv.Inverter(
        path, runtime=backend.runtime, device=backend.device, threads=1, **options
    )


def masks(count: int = COUNT) -> np.ndarray:
    """Half of the pixels of each image, others for each."""
    return np.random.default_rng(0).random((count, 1, 4, 4)) > 0.5


def by_pixel(name: str, latent: Tensor, target: Tensor) -> Tensor:
    """The losses as their definitions have them, of each pixel."""
    image = generator()(latent)
    if name == "mse":
        return (image - target) ** 2
    if name == "l1":
        return (image - target).abs()
    if name == "bce":
        unit = (image + 1) / 2, (target + 1) / 2
        return nn.functional.binary_cross_entropy(*unit, reduction="none")
    before = generator()[:-1](latent)
    return ((1 - target**2) ** 0.25 * (before - target.atanh())) ** 2


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_weighted_means(path: Path, backend: Backend, name: str) -> None:
    inverter = opened(path, backend)
    latent = torch.from_numpy(inverter.sample(COUNT)).requires_grad_()
    target = 0.9 * torch.from_numpy(inverter.generate(inverter.sample(COUNT, seed=1)))
    weights = 3 * torch.rand(COUNT, *SHAPE) * torch.from_numpy(masks())
    found = inverter.evaluate(latent, target, loss=name, weights=weights)
    expected = (weights * by_pixel(name, latent, target)).flatten(1).sum(1)
    expected = expected / weights.flatten(1).sum(1)
    (gradient,) = torch.autograd.grad(expected.sum(), latent)
    np.testing.assert_allclose(found[0], expected.detach(), rtol=1e-4)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-3, atol=1e-5)


def test_normal_equations_of_weights(path: Path, backend: Backend) -> None:
    inverter = opened(path, backend)
    latent = torch.from_numpy(inverter.sample(2))
    target = inverter.generate(inverter.sample(2, seed=1))
    weights = np.random.default_rng(1).random((2, *SHAPE)).astype(np.float32)
    loss, gradient, gram = inverter.normal_equations(latent, target, weights=weights)
    evaluated = inverter.evaluate(latent, target, weights=weights)
    np.testing.assert_allclose(loss, evaluated[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, evaluated[1], rtol=1e-4, atol=1e-6)
    for row in range(2):
        of_one = torch.autograd.functional.jacobian(generator(), latent[row : row + 1])
        jacobian = of_one.reshape(48, LATENT).double().numpy()
        w = weights[row].ravel().astype(np.float64)
        expected = 2 / w.sum() * jacobian.T @ (w[:, None] * jacobian)
        np.testing.assert_allclose(gram[row], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("recipe", ["precise", "default"])
def test_weights_of_one_change_nothing(
    path: Path, plain: Path, backend: Backend, recipe: str
) -> None:
    weighted, without = opened(path, backend), opened(plain, backend)
    images = without.generate(without.sample(COUNT, seed=1))
    method = pyinv.recipes.get(recipe, without.manifest).replace(max_steps=40, restarts=1)
    expected = without.invert(images, recipe=method)
    for weights in (None, np.ones(SHAPE), np.full((COUNT, 1, 1, 1), 2.0), True):
        found = weighted.invert(images, recipe=method, weights=weights)
        np.testing.assert_array_equal(found.status, expected.status)
        np.testing.assert_allclose(found.latents, expected.latents, atol=2e-4)
    for name in LOSSES:
        latents = without.sample(COUNT)
        one, other = (i.evaluate(latents, images, loss=name) for i in (weighted, without))
        np.testing.assert_allclose(one[0], other[0], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:the recipe precise did not:pyinv.PyinvWarning")
def test_weights_belong_to_their_target(path: Path, backend: Backend) -> None:
    """Also where lanes are refilled, swapped and shrunk."""
    recipe = pyinv.recipes.precise(Manifest.read(path)).replace(loss="mse")
    images = opened(path, backend).generate(opened(path, backend).sample(COUNT, seed=1))
    images += 0.1 * np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    options = {"recipe": recipe.replace(restarts=1, loss_tolerance=1e-9, max_steps=30)}
    images = images.clip(-1, 1)
    alone = opened(path, backend, batch_size=1).invert(images, weights=masks(), **options)
    assert len(set(alone.steps)) > 2, "targets must leave their lanes at different times"
    together = opened(path, backend, batch_size=4).invert(images, weights=masks(), **options)
    np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-3)
    swapped = opened(path, backend).invert(images, weights=masks()[::-1], **options)
    assert not np.allclose(swapped.loss, alone.loss, rtol=0.1)


def test_missing_pixels_are_filled_in(path: Path, backend: Backend) -> None:
    inverter = opened(path, backend)
    truth = inverter.sample(COUNT, seed=1)
    images = inverter.generate(truth)
    torn = np.where(masks(), images, np.float32(0.123))
    found = inverter.invert(torn, weights=masks(), recipe="precise")
    assert found.counts()["converged_tolerance"] == COUNT
    np.testing.assert_allclose(found.latents, truth, atol=1e-3)
    np.testing.assert_allclose(found.images, images, atol=1e-3)
    squares = np.square(found.images - torn).reshape(COUNT, -1)
    weights = np.broadcast_to(masks(), torn.shape).reshape(COUNT, -1)
    mse = np.average(squares, axis=1, weights=weights)
    np.testing.assert_allclose(found.psnr, 10 * np.log10(4 / mse), rtol=1e-3)
    with pytest.warns(pyinv.PyinvWarning, match="did not reproduce"):
        assert (inverter.invert(torn, recipe="precise", restarts=0).status != 0).all()


def test_reconstruct_weighs_the_prior_by_the_pixels_that_count(path: Path) -> None:
    inverter = pyinv.Inverter(path, threads=1)
    images = inverter.generate(inverter.sample(COUNT))
    half = np.arange(16).reshape(4, 4) % 2
    for noise, weights, values in ((None, 3 * half, 24), (0.1, 3 * half, 72), (0.1, None, 48)):
        found = inverter.invert(images, recipe="reconstruct", noise=noise, weights=weights)
        expected = 2 * LATENT / values * (1 if noise is None else noise**2)
        assert found.recipe["stages"][-1]["penalties"][0]["weight"] == pytest.approx(expected)


def test_uncertainty_sees_only_what_counts(path: Path) -> None:
    inverter = pyinv.Inverter(path, threads=1)
    truth = inverter.sample(200, seed=3)
    random = np.random.default_rng(0)
    # Two levels of noise, and pixels of which nothing is known.
    weights = random.choice([0.0, 1.0, 0.25], size=(200, *SHAPE), p=[0.3, 0.4, 0.3])
    deviation = 0.02 / np.sqrt(np.where(weights > 0, weights, 1))
    noisy = inverter.generate(truth) + deviation * random.standard_normal(weights.shape)
    images = np.where(weights > 0, noisy, 0).clip(-1, 1)
    start = {"recipe": "reconstruct", "noise": 0.02, "init": truth, "restarts": 0}
    found = inverter.invert(images, weights=weights, **start)
    known = inverter.uncertainty(found, images, weights=weights, noise=0.02, n_hops=0)
    pulls = (found.latents - truth) / known.standard_error
    assert 0.8 < np.sqrt((pulls**2).mean()) < 1.25
    scaled = inverter.uncertainty(found, images, weights=4 * weights, noise=0.04, n_hops=0)
    np.testing.assert_allclose(scaled.standard_error, known.standard_error, rtol=1e-3)
    estimated = inverter.uncertainty(found[:20], images[:20], weights=weights[:20], n_hops=1)
    assert 0.016 < np.median(estimated.noise) < 0.025
    shared = inverter.uncertainty(found[:2], images[:2], weights=np.ones(SHAPE), noise=0.02)
    alike = inverter.uncertainty(found[:2], images[:2], noise=0.02)
    np.testing.assert_allclose(shared.standard_error, alike.standard_error, rtol=1e-5)


GOOD = np.zeros((2, *SHAPE), np.float32)
BAD = [
    (np.ones((4, 5)), "must be numbers >= 0 that broadcast to [N, 3, 4, 4], got [4, 5]; give one"),
    (np.ones((2, 1, 3, 4, 4)), "got [2, 1, 3, 4, 4]"),
    (np.ones((3, 1, 4, 4)), "must have one row per target (2) or one for all, got 3"),
    (np.ones((0, 1, 4, 4)), "got no row; give one per target"),
    (
        np.ones(2),
        "got [2]; for one number per target give [N, 1, 1, 1], for a row of",
    ),
    (
        np.ones(4),
        "got [4]; for one number per target give [N, 1, 1, 1], for a row of",
    ),
    (np.full((4, 4), np.nan), "must be finite, but row 0 is not"),
    (np.full((4, 4), -1.0), "but row 0 has -1"),
    (np.stack([np.ones(SHAPE), np.zeros(SHAPE)]), "row 1 adds up to 0; a target of which nothing"),
    (np.full((4, 4), 3e38), "row 0 adds up to 1.44e+40; only their ratios matter"),
    ("mask", "must be numbers >= 0 that broadcast to [N, 3, 4, 4], got str"),
]


@pytest.mark.parametrize(("weights", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_weights_are_refused(path: Path, weights: Any, message: str) -> None:
    inverter = pyinv.Inverter(path, threads=1)
    latents = np.zeros((2, LATENT), np.float32)
    for call in (
        lambda: inverter.invert(GOOD, weights=weights),
        lambda: inverter.evaluate(latents, GOOD, weights=weights),
        lambda: inverter.normal_equations(latents, GOOD, weights=weights),
        lambda: inverter.uncertainty(latents, GOOD, weights=weights, noise=1.0),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value)
        assert str(error.value).startswith("weights must ")
        assert "\n" not in str(error.value)


def test_a_bundle_without_weights_refuses_them(plain: Path) -> None:
    assert not Bundle.open(plain).manifest.weights
    assert "weights" not in Bundle.open(plain).manifest.describe()
    with pytest.raises(InputError, match="takes no weights, got some; leave them out, or export"):
        pyinv.Inverter(plain, threads=1).invert(GOOD, weights=np.ones((4, 4)))


def test_noise_of_few_pixels_cannot_be_estimated(path: Path) -> None:
    few = np.arange(48).reshape(SHAPE) < LATENT
    with pytest.raises(InputError, match="6 values are too few to estimate it beside 6 latent"):
        pyinv.Inverter(path, threads=1).check_uncertainty(weights=few)


def huber(image: Tensor, target: Tensor) -> Tensor:
    return nn.functional.huber_loss(image, target, reduction="none").flatten(1).mean(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": huber}, "loss 'huber' is not a mean over pixels that weights=True could"),
        ({"losses": perceptual(nn.Conv2d(3, 2, 3))}, "loss 'perceptual' is not a mean over pixels"),
        ({"weights": np.ones(3)}, "weights must be True or False, got ndarray: the weights"),
    ],
)
def test_exports_that_are_refused(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ExportError) as error:
        exported(tmp_path / "b", **{"weights": True, **options})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "b").exists()


def test_a_manifest_that_is_wrong_about_weights(path: Path, plain: Path) -> None:
    for folder, wrong in ((path, False), (plain, True)):
        bundle = Bundle.open(folder)
        described = bundle.manifest.describe() | {"weights": wrong}
        manifest = Manifest.from_description(described)
        inverter = pyinv.Inverter(dataclasses.replace(bundle, manifest=manifest), threads=1)
        with pytest.raises(BundleError, match=r"takes (no )?weights, unlike the manifest says"):
            inverter.invert(GOOD)
    with pytest.raises(BundleError, match='weights must be true or false, got "yes"'):
        Manifest.from_description(described | {"weights": "yes"})


def test_the_command_line(
    path: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(generator(), tmp_path / "unused.pt")
    torch.jit.script(generator()).save(str(tmp_path / "g.pt"))
    bundle = str(tmp_path / "b")
    export_options = ["--latent-shape", "6", "--prior", "normal", "--loss", "mse", "--weights"]
    assert main(["export", str(tmp_path / "g.pt"), "-o", bundle, *export_options]) == 0
    assert main(["info", bundle]) == 0
    assert "weights" in capsys.readouterr().out
    inverter = pyinv.Inverter(bundle, threads=1)
    images, mask = inverter.generate(inverter.sample(3)), masks(1)[0, 0]
    np.save(tmp_path / "images.npy", np.where(mask, images, np.float32(0)))
    np.save(tmp_path / "mask.npy", mask)
    Image.fromarray(np.uint8(mask) * np.uint8(255)).save(tmp_path / "mask.png")
    command = ["invert", bundle, str(tmp_path / "images.npy"), "-o", str(tmp_path / "out.npz")]
    command += ["--recipe", "precise", "--threads", "1", "--json", "--overwrite"]
    for file in ("mask.npy", "mask.png"):
        assert main([*command, "--weights", str(tmp_path / file)]) == 0
        assert json.loads(capsys.readouterr().out)["counts"]["converged_tolerance"] == 3
    options = ["--recipe", "reconstruct", "--weights", str(tmp_path / "mask.npy")]
    assert main([*command, *options, "--uncertainty", "--max-steps", "3"]) == 0
    penalty = json.loads(capsys.readouterr().out)["recipe"]["stages"][-1]["penalties"][0]
    assert penalty["weight"] == pytest.approx(2 * LATENT / (3 * mask.sum()))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["converged_tolerance"] == 0
    assert report["warnings"] == [report["hint"]]
    for options, message in (
        (["--weights", str(tmp_path / "nowhere.png")], "nowhere.png: no such file"),
        (["--weights", str(tmp_path / "images.npy")], "weights must be numbers >= 0"),
    ):
        assert main([*command, *options]) == 1
        assert message in capsys.readouterr().err
    command[1] = str(plain)
    assert main([*command, "--weights", str(tmp_path / "mask.npy")]) == 1
    assert "takes no weights" in capsys.readouterr().err
