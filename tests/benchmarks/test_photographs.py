"""benchmarks/photographs.py measures what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import pyinv  # noqa: E402
from pyinv.export import export  # noqa: E402
from support.generators import Mlp, seeded  # noqa: E402

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def photographs():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import photographs
    finally:
        sys.path.remove(str(BENCHMARKS))
    return photographs


def test_every_method_has_a_row_of_what_it_found(photographs, tmp_path):
    generator = seeded(Mlp(latent=6, width=24))
    prior = pyinv.Normal()
    path = export(generator, tmp_path / "b", latent_shape=6, prior=prior, value_range=(0, 1))
    inverter = pyinv.Inverter(path, threads=1)
    own = inverter.generate(inverter.sample(3, seed=5))
    images = own + np.float32(0.05) * (np.float32(0.5) - own)
    subject = photographs.Subject(generator, inverter, images)
    rows = {row["method"]: row for row in photographs.measure(subject, peers=True)}
    assert len(rows) == 9
    found = inverter.invert(images, effort="best")
    assert rows["default, effort best"]["mse"] == pytest.approx(found.loss.mean(), rel=1e-3)
    assert rows["default, effort best"]["psnr"] == pytest.approx(
        -10 * np.log10(found.loss.mean()), abs=0.01
    )
    # Adam in PyTorch finds about the same, at a cost of two passes for each step.
    peer = rows["PyTorch Adam, 2,000 steps, best of 4"]
    assert peer["mse"] == pytest.approx(found.loss.mean(), rel=0.1)
    assert peer["forward_equivalents"] == 16_000
    assert len(photographs.table(list(rows.values())).splitlines()) == 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--targets", "0"], "--targets must be at least 1, got 0"),
        (["--targets", "-1"], "--targets must be at least 1, got -1"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["face"], "generators are vae, conditional, mnist, .*; got face"),
    ],
)
def test_bad_options_are_refused_before_any_work(photographs, monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["photographs.py", *words])
    with pytest.raises(SystemExit) as error:
        photographs.main()
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
