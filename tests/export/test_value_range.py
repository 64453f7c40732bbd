"""A bundle's value range: seen in the generator, given or measured; and what contradicts it."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import pyinv  # noqa: E402
from pyinv import PyinvWarning  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import ExportError  # noqa: E402
from pyinv.export import export, perceptual  # noqa: E402

OPTIONS = {
    "latent_shape": 16,
    "prior": pyinv.Normal(),
    "normal_equations": False,
    "runtimes": "torchscript",
}


class Scaled(nn.Module):
    """An activation with a scale and a shift."""

    def __init__(self, activation, scale, shift):
        super().__init__()
        self.activation, self.scale, self.shift = activation, scale, shift

    def forward(self, x):
        return self.activation(x) * self.scale + self.shift


def make(*ending):
    torch.manual_seed(0)
    linear = nn.Linear(16, 48)
    return nn.Sequential(linear, *ending, nn.Unflatten(1, (3, 4, 4))).eval()


def range_of(path):
    manifest = pyinv.Bundle.open(path).manifest
    return manifest.value_range, manifest.bounded


def test_a_final_tanh_says_the_range(tmp_path):
    path = export(make(nn.Tanh()), tmp_path / "b", strict=True, **OPTIONS)
    assert range_of(path) == ((-1.0, 1.0), True)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (nn.Sigmoid(), (0.0, 1.0)),
        (Scaled(nn.Tanh(), 0.5, 0.5), (0.0, 1.0)),
        (Scaled(nn.Sigmoid(), 255.0, 0.0), (0.0, 255.0)),
    ],
    ids=["sigmoid", "tanh to 0 and 1", "sigmoid to 255"],
)
def test_another_ending_says_its_range_and_that_it_is_used(tmp_path, ending, expected):
    low, high = expected
    with pytest.warns(PyinvWarning, match=rf"not given.*: using \({low:g}, {high:g}\)") as caught:
        path = export(make(ending), tmp_path / "b", **OPTIONS)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert range_of(path) == (expected, True)
    export(make(ending), tmp_path / "c", value_range=expected, strict=True, **OPTIONS)
    assert range_of(tmp_path / "c") == (expected, True)


def test_without_an_ending_the_range_is_measured(tmp_path):
    with pytest.warns(PyinvWarning, match="not given.*using that of 64 images") as caught:
        path = export(make(), tmp_path / "b", **OPTIONS)
    assert len(caught) == 1
    (low, high), bounded = range_of(path)
    assert not bounded
    inverter = pyinv.Inverter(path, threads=1)
    drawn = inverter.generate(inverter.sample(64))
    assert low < -1 < 1 < high
    np.testing.assert_allclose([low, high], [drawn.min(), drawn.max()], rtol=0.3)
    images = inverter.generate(1.3 * inverter.sample(64))
    assert images.max() > high
    assert np.isfinite(inverter.invert(images).psnr).all()
    with pytest.raises(ExportError, match="using that of 64 images"):
        export(make(), tmp_path / "c", strict=True, **OPTIONS)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("losses", ["bce", None])
def test_the_range_is_asked_for_where_it_cannot_be_measured(tmp_path, losses):
    generator = make()
    if losses is None:  # all values alike, but for a gradient
        generator = make(Scaled(nn.Identity(), 0.0, 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyinvWarning)
        with pytest.raises(ExportError, match="value_range must be given: the generator ends in"):
            export(generator, tmp_path / "b", losses=losses, **OPTIONS)


CONTRADICTIONS = {
    "sigmoid, -1 to 1": (nn.Sigmoid(), (-1, 1), "ends in sigmoid .*give value_range=.0, 1."),
    "tanh, 0 to 1": (nn.Tanh(), (0, 1), "ends in tanh .*give value_range=.-1, 1."),
    "tanh, -2 to 2": (nn.Tanh(), (-2, 2), "a wider one is for targets with noise outside of it"),
    "tanh, 0 to 255": (nn.Tanh(), (0, 255), "ends in tanh"),
    "none, outside": (nn.Identity(), (-1, 1), "outside value_range"),
    "none, in one half": (nn.Hardsigmoid(), (-1, 1), "one half of value_range"),
}


@pytest.mark.parametrize(
    ("ending", "value_range", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS
)
def test_a_range_that_the_generator_contradicts(tmp_path, ending, value_range, message):
    with pytest.warns(PyinvWarning, match=message) as caught:
        path = export(make(ending), tmp_path / "b", value_range=value_range, **OPTIONS)
    assert len(caught) == 1
    assert range_of(path)[0] == value_range
    with pytest.raises(ExportError, match=message):
        export(make(ending), tmp_path / "c", value_range=value_range, strict=True, **OPTIONS)


def test_behind_an_observation_the_generator_still_says_its_range(tmp_path):
    options = {**OPTIONS, "observe": lambda images: images.flatten(1)[:, :8]}
    path = export(make(nn.Tanh()), tmp_path / "b", strict=True, **options)
    assert range_of(path) == ((-1.0, 1.0), True)
    with pytest.raises(ExportError, match="one half of value_range"):
        export(make(nn.Sigmoid()), tmp_path / "c", value_range=(-1, 1), strict=True, **options)


def test_a_perceptual_loss_of_another_range(tmp_path):
    loss = perceptual(nn.Conv2d(3, 2, 3), mean=0.5, std=0.5)
    options = {**OPTIONS, "losses": ("mse", loss), "value_range": (0, 1)}
    with pytest.raises(ExportError, match=r"loss perceptual expects images in \(-1, 1\)"):
        export(make(nn.Sigmoid()), tmp_path / "b", strict=True, **options)
    loss = perceptual(nn.Conv2d(3, 2, 3), mean=0.5, std=0.5, value_range=(0, 1))
    options["losses"] = ("mse", loss)
    export(make(nn.Sigmoid()), tmp_path / "b", strict=True, **options)


def test_strict_is_a_bool(tmp_path):
    with pytest.raises(ExportError, match="strict must be True or False, got 1"):
        export(make(nn.Tanh()), tmp_path / "b", strict=1, **OPTIONS)


def test_on_the_command_line(tmp_path, capsys):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(4, 12), nn.Sigmoid(), nn.Unflatten(1, (3, 2, 2)))\n"
    )
    words = ["export", f"{tmp_path / 'nets.py'}:make", "--latent-shape", "4", "--prior", "normal"]
    words += ["--runtime", "torchscript", "-o", str(tmp_path / "b"), "--json"]
    assert main([*words, "--strict"]) == 1
    assert "pyinv: error: value_range is not given" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(words) == 0
    out, err = capsys.readouterr()
    assert "pyinv: warning: value_range is not given" in err
    assert json.loads(out)["value_range"] == [0.0, 1.0]
    assert main([*words, "--value-range", "0", "1", "--strict", "--overwrite"]) == 0
