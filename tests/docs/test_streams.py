"""The page about streams: its examples run as they stand, in their order."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

import pyinv
from pyinv.images import save_images
from support.docs import run_examples
from support.paths import REPOSITORY

DEMO = REPOSITORY / "pyinv" / "data" / "digits.bundle"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the examples define, and the folder that they ran in."""
    folder = tmp_path_factory.mktemp("streams")
    shutil.copytree(DEMO, folder / "faces.bundle")
    inverter = pyinv.Inverter(DEMO, threads=1)
    (folder / "photos").mkdir()
    save_images(inverter.generate(inverter.sample(3, seed=1)), folder / "photos", (-1, 1))
    names: dict = {"__name__": "streams"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_examples("streams.md", names)
        yield names


def test_what_is_printed(page, capsys):
    run_examples("streams.md", {"__name__": "again"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in sorted(lines[:3])] == [f"photos/{i}.png" for i in range(3)]
    assert lines[3:] == ["missing.png missing.png: no such file or folder"]


def test_latents_in_a_data_loader(page):
    data = pytest.importorskip("torch.utils.data")
    if sys.platform != "linux":
        pytest.skip("workers pickle the data set there, which this page's cannot be")
    images, expected = page["images"], page["inverter"].invert(page["images"])
    found = page["Latents"]("faces.bundle", images)
    loader = data.DataLoader(found, batch_size=None, num_workers=1)
    latents = np.stack([np.asarray(latent) for latent in loader])
    np.testing.assert_allclose(latents, expected.latents, atol=1e-3)
    assert found.inverter is None
