"""The matrix that L-BFGS starts from: written by the exporter, read with the bundle."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnx", reason="export needs onnx")

from torch import Tensor, nn  # noqa: E402

import pyinv  # noqa: E402
from pyinv.bundle import MAX_PRECONDITIONED, Bundle  # noqa: E402
from pyinv.export import Label, export  # noqa: E402
from pyinv.priors import Normal  # noqa: E402
from pyinv.solvers import LBFGS  # noqa: E402

SCALES = np.geomspace(1, 100, 6)


class Uneven(nn.Module):
    """A linear generator of 6 components with very different effects."""

    def __init__(self) -> None:
        super().__init__()
        basis = torch.linalg.qr(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))[0]
        self.matrix = nn.Parameter(basis * torch.tensor(SCALES, dtype=torch.float32))

    def forward(self, latent: Tensor) -> Tensor:
        return (latent @ self.matrix.T).unflatten(1, (1, 8, 8))


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Uneven()
        scales = torch.tensor([[-1.0], [-0.5], [0.0]])
        self.scale = nn.Embedding.from_pretrained(scales, freeze=False)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        return self.body(latent) * self.scale(label).exp()[:, None, None]


def exported(path: Path, generator: nn.Module | None = None, **options: Any) -> Bundle:
    options = {"normal_equations": False, "losses": "mse", "value_range": (-300, 300), **options}
    module = Uneven() if generator is None else generator
    return Bundle.open(export(module, path, latent_shape=6, prior=Normal(), **options))


def test_it_is_the_inverse_of_the_mean_curvature_and_a_floor(tmp_path: Path) -> None:
    matrix = exported(tmp_path / "b").preconditioner()
    assert matrix is not None
    np.testing.assert_array_equal(matrix, matrix.T)
    # The columns are orthogonal, so J^T J is the diagonal of the squared scales.
    curvature = SCALES**2 / np.mean(SCALES**2)
    expected = 1 / (curvature + 0.3)
    # 512 draws of noise estimate a variance to a sixteenth.
    np.testing.assert_allclose(np.diag(matrix), expected, rtol=0.2)
    off = matrix - np.diag(np.diag(matrix))
    assert np.abs(off).max() < 0.5


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_it_saves_steps(tmp_path: Path, runtime: str) -> None:
    inverter = pyinv.Inverter(exported(tmp_path / "b", runtimes=runtime).path)
    images = inverter.generate(inverter.sample(16))
    steps = {}
    for used in (True, False):
        stage = pyinv.Stage(LBFGS(preconditioned=used), loss_tolerance=1e-4)
        found = inverter.invert(images, recipe=pyinv.Recipe("test", (stage,)))
        assert found.loss.max() <= 1e-4
        steps[used] = found.steps.mean()
    assert steps[True] < 0.9 * steps[False]


def test_the_same_generator_gives_the_same_matrix(tmp_path: Path) -> None:
    one, other = (exported(tmp_path / name).preconditioner() for name in "ab")
    np.testing.assert_array_equal(one, other)


def test_conditions_weights_and_observations(tmp_path: Path) -> None:
    labelled = exported(tmp_path / "l", Labelled(), inputs={"label": Label(3)})
    assert labelled.preconditioner() is not None
    weighted = exported(tmp_path / "w", weights=True).preconditioner()
    np.testing.assert_array_equal(weighted, exported(tmp_path / "b").preconditioner())

    class FirstComponent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.column = nn.Parameter(Uneven().matrix[:, :1].detach())

        def forward(self, image: Tensor) -> Tensor:
            return image.flatten(1) @ self.column

    observed = exported(tmp_path / "o", observe=FirstComponent()).preconditioner()
    assert observed is not None
    # Only the first component is observed.
    assert np.argmin(np.diag(observed)) == 0
    np.testing.assert_allclose(np.diag(observed)[1:], 1 / 0.3, rtol=1e-4)


@pytest.mark.parametrize("case", ["long latent", "batch norm", "constant"])
def test_none(tmp_path: Path, case: str) -> None:
    generator: nn.Module = nn.Sequential(nn.Linear(6, 64), nn.Unflatten(1, (1, 8, 8)))
    options: dict[str, Any] = {"value_range": (-5, 5), "losses": "mse", "normal_equations": False}
    size = 6
    if case == "long latent":
        size = MAX_PRECONDITIONED + 1
        generator = nn.Sequential(nn.Linear(size, 64), nn.Unflatten(1, (1, 8, 8)))
    elif case == "batch norm":
        generator = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Unflatten(1, (1, 8, 8)))
        options["batch_norm"] = "batch"
    else:
        with torch.no_grad():
            generator[0].weight.zero_()  # type: ignore[operator]
    with pytest.warns(match="the gradient") if case == "constant" else nullcontext():
        path = export(generator, tmp_path / "b", latent_shape=size, prior=Normal(), **options)
    bundle = Bundle.open(path)
    assert bundle.manifest.preconditioner is None
    assert bundle.preconditioner() is None
    assert "preconditioner" not in json.loads((bundle.path / "manifest.json").read_text())
