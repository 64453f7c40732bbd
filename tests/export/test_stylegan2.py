"""StyleGAN2: modulated convolutions, noise and skip connections, from z and from whitened W+."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.paths import REPOSITORY

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

import pyinv  # noqa: E402
from pyinv.errors import ExportError  # noqa: E402
from pyinv.export import Whitening, export  # noqa: E402


@pytest.fixture(scope="module")
def stylegan2() -> Any:
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import stylegan2
    finally:
        sys.path.pop(0)
    return stylegan2


@pytest.mark.parametrize("latents", ["z", "w+"])
def test_a_generator_is_exported_and_inverted(tmp_path: Path, stylegan2, latents: str) -> None:
    generator, shape = stylegan2.make_generator(latents, size=16, channels=8, style=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = export(
            generator,
            tmp_path / "bundle",
            latent_shape=shape,
            prior=pyinv.Normal(),
            value_range=(-1, 1),
            runtimes=("onnx", "torchscript"),
        )
    for runtime in ("onnx", "torchscript"):
        inverter = pyinv.Inverter(path, runtime=runtime, threads=1)
        assert inverter.manifest.has_normal_equations("mse")
        true = inverter.sample(8, seed=1)
        images = inverter.generate(true)
        with torch.no_grad():
            expected = generator(torch.from_numpy(true).view(-1, *shape)).numpy()
        np.testing.assert_allclose(images, expected, atol=2e-5)
        inversion = inverter.invert(images, recipe="precise")
        # Latents are not unique: the length of z, for example, does not count.
        errors = np.square(inversion.images - images).reshape(8, -1).mean(axis=1)
        assert (errors < 1e-8).sum() >= 7


def test_whitened_latents_have_mean_0_and_covariance_1() -> None:
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=random)
    samples = 3 + torch.randn(20_000, 5, generator=random) @ mixing
    whitening = Whitening(torch.nn.Identity(), samples)
    drawn = torch.randn(20_000, 5, generator=random)
    w = whitening(drawn)
    np.testing.assert_allclose(w.mean(0), samples.mean(0), atol=0.1)
    np.testing.assert_allclose(torch.cov(w.T), torch.cov(samples.T), atol=0.4)
    assert np.array_equal(whitening.latents(drawn.numpy()), w.numpy())
    assert Whitening(torch.nn.Identity(), samples[:, :1]).basis.shape == (1, 1)
    # W+ has a style per layer, and each is whitened by itself.
    stacked = torch.stack([drawn, -drawn], dim=1)
    np.testing.assert_allclose(whitening.latents(stacked)[:, 0], w, atol=1e-5)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.randn(5, 5), "more samples than components"),
        (torch.randn(50), r"\[N, k\]"),
        (torch.full((50, 5), float("nan")), "finite"),
        (torch.ones(50, 5), "must vary"),
        ("abc", "must be numbers"),
        (torch.randn(50, 2, dtype=torch.complex64), "real numbers"),
    ],
)
def test_samples_that_cannot_be_whitened(samples: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Whitening(torch.nn.Identity(), samples)
