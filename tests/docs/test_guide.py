"""The user's guide: its examples run as they stand, in their order, and its numbers are right."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import pyinv
from pyinv import demo
from support.docs import run_examples

pytest.importorskip("torch", reason="the guide exports generators")
pytest.importorskip("onnxscript", reason="the guide exports generators")

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """What the guide's examples define, after all of them ran in one folder."""
    import torch

    names: dict = {"__name__": "guide"}
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.chdir(tmp_path_factory.mktemp("guide"))
        run_examples("guide.md", names)
        names["files"] = sorted(path.name for path in Path.cwd().iterdir())
    return names


def test_every_example_did_what_the_text_says(guide):
    own, real, chance = (
        np.median(psnr) for psnr in (guide["own"].psnr, guide["real"].psnr, guide["random_psnr"])
    )
    assert own > 90 > 30 > real > chance + 5
    mse = np.square(guide["real"].images - guide["digits"]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(guide["grey_levels"], 127.5 * np.sqrt(mse), rtol=1e-3)
    assert "worst.png" in guide["files"]
    assert guide["photos"].shape == (2, 1, 16, 16)
    np.testing.assert_allclose(guide["photos"], guide["digits"][:2], atol=1 / 255 + 1e-6)
    assert guide["better"].loss.mean() <= guide["quick"].loss.mean()


def test_labels_are_found_by_their_loss(guide):
    assert guide["found"].loss.max() < 1e-8
    np.testing.assert_array_equal(guide["guesses"], guide["labels"])


def test_the_loss_that_was_named_is_minimised(guide):
    import torch

    losses = guide["inverter_with_losses"].manifest.losses
    assert losses == ("mse", "features", "charbonnier")
    found = guide["perceptual"]
    with torch.no_grad():
        right = guide["perceptual_loss"](
            torch.from_numpy(found.images), torch.from_numpy(guide["images"])
        )
    np.testing.assert_allclose(found.loss, right.numpy(), rtol=1e-3, atol=1e-7)


def test_a_generator_with_its_embedding_is_one_with_labels(guide):
    import torch

    generator = guide["generator"]

    def of_embedding(z, embedded):
        return generator.layers(torch.cat([z, embedded], dim=1)).reshape(-1, 1, 16, 16)

    z, label = torch.randn(3, 16), torch.tensor([4, 0, 9])
    wrapped = guide["WithLabels"](of_embedding, generator.embedding)
    torch.testing.assert_close(wrapped(z, label), generator(z, label))


def test_two_threads_get_what_one_gets(guide):
    inverter = pyinv.Inverter(demo.BUNDLE, batch_size=64, threads=2)
    for half, images in zip(guide["halves"], np.split(guide["digits"], 2), strict=True):
        np.testing.assert_array_equal(half.latents, inverter.invert(images).latents)


def test_the_table_of_losses_is_right():
    rows = re.findall(r"^\| (0\.\d+) \| (\d+)[^|]*\| (\d+) dB \|", GUIDE.read_text("utf-8"), re.M)
    assert len(rows) == 5
    for mse, grey_levels, psnr in (map(float, row) for row in rows):
        assert round(127.5 * mse**0.5) == pytest.approx(grey_levels, abs=1)
        assert round(10 * np.log10(4 / mse)) == psnr
