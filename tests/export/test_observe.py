"""Targets that are observations of images: what is computed, in every runtime, and what refused."""

from __future__ import annotations

import json
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
from pyinv.bundle import Bundle, Manifest  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import BundleError, ExportError, InputError  # noqa: E402
from pyinv.export import add_encoder, export, read_generator  # noqa: E402
from pyinv.priors import Normal  # noqa: E402
from support.backends import BACKENDS, Backend  # noqa: E402

LATENT, SHAPE, COUNT = 5, (3, 8, 8), 4


def generator() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(LATENT, 32), nn.LeakyReLU(0.2), nn.Linear(32, 192), nn.Unflatten(1, SHAPE)
    return nn.Sequential(*layers, nn.Tanh())


class Blur(nn.Module):
    """A box filter of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((3, 1, 3, 3), 1 / 9))

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.conv2d(image, self.kernel, padding=1, groups=3)


class Physics(nn.Module):
    """What deepinv's operators look like: noise is added where they are called, not in A."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.matrix = nn.Parameter(torch.randn(40, 192, generator=generator) / 40**0.5)

    def A(self, x: Tensor, **options: Any) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def forward(self, x: Tensor) -> Tensor:
        return self.A(x) + torch.randn(len(x), 40)


class Projection(nn.Module):
    """Sums along rows and columns, which are two of the angles of tomography."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([image.sum(2), image.sum(3)], dim=1)


def striped(image: Tensor) -> Tensor:
    """Every other row of the first channel is missing: written into a copy, through a view."""
    copy = image.clone()
    copy[:, 0][:, ::2] = 0
    copy[:, 1:, 2:4] = 0
    return copy


KEPT = torch.arange(64).reshape(8, 8) % 3 == 0
OPERATORS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "blur": (Blur, SHAPE),
    "downsampled": (lambda: lambda image: nn.functional.avg_pool2d(image, 2), (3, 4, 4)),
    "measured": (Physics, (40,)),
    "method": (lambda: Physics().A, (40,)),
    "projected": (Projection, (2, 3, 8)),
    "gray": (lambda: lambda image: image.mean(1, keepdim=True) * 10 + 4, (1, 8, 8)),
    "written": (lambda: striped, SHAPE),
    "selected": (
        lambda: lambda image: image.flatten(2)[:, :, KEPT.flatten().nonzero()[:, 0]],
        (3, 22),
    ),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle for each operator, exported on first use."""
    folder = tmp_path_factory.mktemp("observe")

    def bundle(name: str) -> Path:
        path = folder / f"{name}.bundle"
        if not path.exists():
            export(
                generator(),
                path,
                latent_shape=LATENT,
                prior=Normal(),
                normal_equations=True,
                runtimes=("onnx", "torchscript"),
                observe=OPERATORS[name][0](),
            )
        return path

    return bundle


def observed(name: str, image: Tensor) -> Tensor:
    operator = OPERATORS[name][0]()
    return operator.A(image) if isinstance(operator, Physics) else operator(image)


def opened(path: Path, backend: Backend) -> pyinv.Inverter:
    return pyinv.Inverter(path, runtime=backend.runtime, device=backend.device, threads=1)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_latents_are_found_from_observations(
    bundles: Callable[[str], Path], name: str, backend: Backend
) -> None:
    backend.require()
    inverter = opened(bundles(name), backend)
    manifest = inverter.manifest
    assert (manifest.image_shape, manifest.target_shape) == (SHAPE, OPERATORS[name][1])
    truth = inverter.sample(COUNT, seed=1)
    images = inverter.generate(truth)
    targets = inverter.observe(images)
    assert images.shape == (COUNT, *SHAPE)
    with torch.no_grad():
        made = generator()(torch.from_numpy(truth))
        np.testing.assert_allclose(images, made, atol=1e-5)
        np.testing.assert_allclose(targets, observed(name, made), rtol=1e-4, atol=1e-5)
    inversion = inverter.invert(targets, recipe="precise")
    assert inversion.counts()["converged_tolerance"] == COUNT
    np.testing.assert_allclose(inversion.latents, truth, atol=5e-3)
    np.testing.assert_allclose(inversion.images, images, atol=5e-3)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_objective_and_the_normal_equations(
    bundles: Callable[[str], Path], name: str, backend: Backend
) -> None:
    inverter = opened(bundles(name), backend)
    latent = torch.from_numpy(inverter.sample(2)).requires_grad_()
    target = torch.from_numpy(inverter.observe(inverter.generate(inverter.sample(2, seed=1))))
    loss, gradient, gram = inverter.normal_equations(latent, target)
    residual = observed(name, generator()(latent)) - target
    expected = (residual**2).flatten(1).mean(1)
    (slope,) = torch.autograd.grad(expected.sum(), latent)
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-4)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-5)
    for each in inverter.evaluate(latent, target)[1:]:
        np.testing.assert_allclose(each, slope, rtol=1e-3, atol=1e-5)
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda z: observed(name, generator()(z)), latent[row : row + 1].detach()
        ).reshape(-1, LATENT)
        expected = 2 / len(jacobian) * jacobian.T @ jacobian
        np.testing.assert_allclose(gram[row], expected, rtol=1e-3, atol=1e-4)


def test_manifest(bundles: Callable[[str], Path]) -> None:
    described = Bundle.open(bundles("measured")).manifest.describe()
    assert described["image_shape"] == list(SHAPE)
    assert described["observation_shape"] == [40]
    assert [function["name"] for function in described["functions"]].count("observe") == 2
    del described["observation_shape"]
    with pytest.raises(
        BundleError, match=r"both the function .observe. and an observation_shape, or neither"
    ):
        Manifest.from_description(described)


def test_targets_may_have_any_finite_values(bundles: Callable[[str], Path]) -> None:
    inverter = pyinv.Inverter(bundles("gray"), threads=1)
    truth = inverter.sample(COUNT)
    targets = inverter.observe(inverter.generate(truth))
    assert targets.max() > 5
    found = inverter.invert(1e3 * targets, recipe="default", restarts=0)
    assert np.isfinite(found.loss).all()
    for wrong, message in (
        (np.full_like(targets, np.nan), "images must be finite"),
        (inverter.generate(truth), r"images must be float32 \[N, 1, 8, 8\], got \[4, 3, 8, 8\]"),
        (np.zeros((1, 1, 8, 8), np.uint8), "got uint8; convert them to floats"),
    ):
        with pytest.raises(InputError, match=message):
            inverter.invert(wrong)
    with pytest.raises(InputError, match=r"images must be float32 \[N, 3, 8, 8\]"):
        inverter.observe(targets)


def test_weights_see_what_a_selection_sees(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    """Half of the pixels, by weights of 0 and by an operator, with uncertainty."""
    options = {"latent_shape": LATENT, "prior": Normal(), "losses": "mse"}
    weighted = pyinv.Inverter(export(generator(), tmp_path / "w", weights=True, **options))
    selected = pyinv.Inverter(bundles("selected"), threads=1)
    truth = selected.sample(COUNT, seed=1)
    noise = 0.1 * np.random.default_rng(0).standard_normal((COUNT, *SHAPE)).astype(np.float32)
    images = 0.8 * selected.generate(truth) + 0.1 * noise
    kept, targets = KEPT.numpy(), selected.observe(images)
    latents = selected.sample(COUNT)
    one = weighted.normal_equations(latents, images, weights=kept)
    other = selected.normal_equations(latents, targets)
    for these, those in zip(one, other, strict=True):
        np.testing.assert_allclose(these, those, rtol=1e-3, atol=1e-5)
    for noise_level in (0.02, None):
        start = {"recipe": "reconstruct", "noise": noise_level, "restarts": 0}
        found = selected.invert(targets, **start)
        same = weighted.invert(images, weights=kept, **start)
        np.testing.assert_allclose(same.latents, found.latents, atol=1e-2)
        known = [
            weighted.uncertainty(found, images, weights=kept, noise=noise_level, n_hops=1),
            selected.uncertainty(found, targets, noise=noise_level, n_hops=1),
        ]
        np.testing.assert_allclose(known[0].noise, known[1].noise, rtol=1e-2)
        np.testing.assert_allclose(known[0].standard_error, known[1].standard_error, rtol=5e-2)


def test_weights_of_observations(tmp_path: Path, backend: Backend) -> None:
    path = export(
        generator(),
        tmp_path / "b",
        latent_shape=LATENT,
        prior=Normal(),
        runtimes=(backend.runtime,),
        observe=Physics(),
        weights=True,
    )
    inverter = opened(path, backend)
    truth = inverter.sample(COUNT, seed=1)
    targets = inverter.observe(inverter.generate(truth))
    targets[:, ::4] = 100
    found = inverter.invert(targets, recipe="precise", weights=np.arange(40) % 4 > 0)
    np.testing.assert_allclose(found.latents, truth, atol=5e-3)


def test_a_reshape_keeps_the_whitened_loss(tmp_path: Path) -> None:
    options = {"latent_shape": LATENT, "prior": Normal()}
    path = export(generator(), tmp_path / "b", observe=nn.Flatten(), **options)
    inverter = pyinv.Inverter(path, threads=1)
    assert inverter.manifest.losses == ("mse", "whitened")
    truth = inverter.sample(COUNT)
    targets = inverter.observe(inverter.generate(truth))
    assert targets.shape == (COUNT, 192)
    found = inverter.invert(targets, recipe="precise")
    np.testing.assert_allclose(found.latents, truth, atol=1e-3)


def test_encoders_take_targets(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    encoder = nn.Linear(40, LATENT)
    path = add_encoder(bundles("measured"), encoder, tmp_path / "b")
    for runtime in ("onnx", "torchscript"):
        inverter = pyinv.Inverter(path, runtime=runtime, threads=1)
        targets = inverter.observe(inverter.generate(inverter.sample(COUNT)))
        with torch.no_grad():
            np.testing.assert_allclose(
                inverter.encode(targets), encoder(torch.from_numpy(targets)), atol=1e-4
            )
        assert len(inverter.invert(targets, init="encoder", recipe="default", restarts=0)) == COUNT


def test_the_generator_is_read_back(bundles: Callable[[str], Path]) -> None:
    latent = torch.randn(3, LATENT)
    with torch.no_grad():
        found = read_generator(bundles("measured"))(latent)
        torch.testing.assert_close(found, generator()(latent), atol=1e-5, rtol=1e-5)


def test_bundles_of_images_have_no_observation(tmp_path: Path) -> None:
    path = export(generator(), tmp_path / "b", latent_shape=LATENT, prior=Normal(), losses="mse")
    assert "observation_shape" not in Bundle.open(path).manifest.describe()
    with pytest.raises(BundleError, match="targets are its images; export it again with observe"):
        pyinv.Inverter(path, threads=1).observe(np.zeros((1, *SHAPE), np.float32))


class Rounded(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.round()


BAD: list[tuple[Any, str]] = [
    (3, "observe must be a torch.nn.Module or a function of images, got int"),
    (np.zeros((4, 192)), "observe must be a torch.nn.Module or a function of images, got ndarray"),
    (nn.Linear(7, 2), "observe does not take the generator's images [B, 3, 8, 8]: "),
    (lambda image: [image], "observe must return one tensor, it returned list"),
    (lambda image: image.mean(), "observe must return one observation [...] per image, that is"),
    (lambda image: image.flatten(1).mean(1), "observe must return one observation [...] per image"),
    (
        lambda image: torch.fft.fft2(image),
        "observe must return floats, it returned torch.complex64",
    ),
    (lambda image: image / 0, "observe returned NaN or infinity for images of the generator"),
    (nn.Dropout(), ""),
    (
        lambda image: image + torch.rand_like(image),
        "observe returned different values for the same",
    ),
    (Rounded(), "observe has no gradient with respect to the images"),
    (lambda image: image.detach(), "observe has no gradient with respect to the images"),
    (lambda image: image - image.mean(0), "observe returned another observation for an image in"),
]


@pytest.mark.parametrize(("operator", "message"), BAD)
def test_operators_that_are_refused(tmp_path: Path, operator: Any, message: str) -> None:
    options = {"latent_shape": LATENT, "prior": Normal(), "losses": "mse", "observe": operator}
    if not message:  # eval mode
        assert export(generator(), tmp_path / "b", **options).is_dir()
        return
    with pytest.raises(ExportError) as error:
        export(generator(), tmp_path / "b", **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "b").exists()


def test_losses_that_are_refused(tmp_path: Path) -> None:
    options = {"latent_shape": LATENT, "prior": Normal()}
    for loss, operator, message in (
        ("bce", lambda image: 10 * image, "outside value_range (-1, 1), where bce has no value"),
        ("whitened", Blur(), "loss 'whitened' needs a generator that ends in tanh or sigmoid"),
    ):
        with pytest.raises(ExportError) as error:
            export(generator(), tmp_path / "b", losses=loss, observe=operator, **options)
        assert message in str(error.value)
    path = export(generator(), tmp_path / "b", losses=("l1", "bce"), observe=Blur(), **options)
    inverter = pyinv.Inverter(path, threads=1)
    latents = inverter.sample(2)
    assert (
        inverter.evaluate(latents, inverter.observe(inverter.generate(latents)), loss="l1")[0].max()
        < 1e-5
    )


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.script(generator()).save(str(tmp_path / "g.pt"))
    (tmp_path / "operators.py").write_text(
        "import torch\n"
        "def measured():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 20))\n"
    )
    bundle = str(tmp_path / "b")
    command = ["export", str(tmp_path / "g.pt"), "-o", bundle, "--latent-shape", str(LATENT)]
    command += ["--prior", "normal", "--observe"]
    assert main([*command, f"{tmp_path / 'operators.py'}:blur"]) == 1
    assert "blur" in capsys.readouterr().err
    assert main([*command, f"{tmp_path / 'operators.py'}:measured"]) == 0
    assert "image [3, 8, 8], observed as [20]" in capsys.readouterr().err
    assert main(["info", bundle]) == 0
    assert "[20], observations of images" in capsys.readouterr().out
    inverter = pyinv.Inverter(bundle, threads=1)
    images = inverter.generate(inverter.sample(3))
    np.save(tmp_path / "y.npy", 5 * inverter.observe(images) / 5)
    command = ["invert", bundle, str(tmp_path / "y.npy"), "-o", str(tmp_path / "out.npz")]
    command += ["--recipe", "precise", "--threads", "1", "--json", "--overwrite"]
    command += ["--save-images", str(tmp_path / "seen")]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["converged_tolerance"] == 3
    pictures = pyinv.load_images(tmp_path / "seen", replaced(inverter.manifest))
    np.testing.assert_allclose(pictures, images, atol=0.01)
    np.save(tmp_path / "y.npy", images)
    assert main(command) == 1
    assert "expected floats [N, 20]" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(b"")
    command[2] = str(tmp_path / "a.png")
    assert main(command) == 1
    assert "targets are not pictures (shape [20])" in capsys.readouterr().err


def replaced(manifest: Manifest) -> Manifest:
    """The manifest of the same generator without an observation."""
    described = manifest.describe()
    described["functions"] = [f for f in described["functions"] if f["name"] != "observe"]
    del described["observation_shape"]
    return Manifest.from_description(described)
