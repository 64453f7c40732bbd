"""Training an autoencoder: its iteration, resuming, and the bundle that comes of it."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyinv.cli import main
from pyinv.errors import InputError
from pyinv.inverter import Inverter
from pyinv.priors import Normal
from pyinv.training import (
    AUTOENCODER_CONFIGURATIONS,
    AutoencoderConfiguration,
    get_autoencoder_configuration,
)

torch = pytest.importorskip("torch")

from pyinv import export  # noqa: E402
from pyinv.models.autoencoder import Autoencoder, LatentDecoder, LatentEncoder  # noqa: E402
from pyinv.training import autoencoder, train_autoencoder  # noqa: E402
from pyinv.training.autoencoder import AutoencoderTraining  # noqa: E402
from pyinv.training.draws import Purpose, draw_batch, random  # noqa: E402

SMALL = AutoencoderConfiguration(
    "small",
    (3, 8, 4),
    latent_channels=2,
    factor=2,  # tracing takes time for each level
    width=4,
    batch_size=4,
    iterations=4,
    averaging=0.9,
)


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """20 smooth images, uint8 [20, 3, 8, 4]."""
    coarse = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 2), dtype=np.uint8)
    return coarse.repeat(2, axis=2).repeat(2, axis=3)


def train(folder: Path, photos: np.ndarray, configuration=SMALL, **options: Any):
    options = {"data_name": "photos", "threads": 1, **options}
    return train_autoencoder(configuration, photos, folder, **options)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A training that was stopped after two iterations, and resumed."""

    def stop(now: dict[str, Any]) -> None:
        if now["iteration"] == 2:
            raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    with pytest.raises(KeyboardInterrupt):
        train(folder, photos, progress=stop)
    torch.manual_seed(99)  # the caller's random numbers have no influence
    with pytest.MonkeyPatch.context() as patch:
        # Tracing and writing them takes longer than all of these tests.
        patch.setattr(export, "export", partial(export.export, normal_equations=False))
        return train(folder, photos)


def images_of(photos: np.ndarray, chosen: Any) -> Any:
    return torch.from_numpy(photos[chosen]).float() / 127.5 - 1


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_shapes(factor):
    network = Autoencoder(1, 3, factor, width=4)
    latent, log_variance = network.encode(torch.zeros(2, 1, 32, 48))
    assert latent.shape == log_variance.shape == (2, 3, 32 // factor, 48 // factor)
    assert network.decode(latent).shape == (2, 1, 32, 48)


def test_a_latent_is_normalized_by_the_encoder_and_back_by_the_decoder():
    torch.manual_seed(0)
    network = Autoencoder(3, 2, 4, width=4)
    image = torch.rand(2, 3, 16, 8)
    plain = network.encode(image)[0]
    network.mean.copy_(torch.tensor([1.0, -2.0]))
    network.std.copy_(torch.tensor([0.5, 3.0]))
    latent = LatentEncoder(network)(image)
    torch.testing.assert_close(latent[:, 0], (plain[:, 0] - 1) / 0.5)
    torch.testing.assert_close(latent[:, 1], (plain[:, 1] + 2) / 3)
    torch.testing.assert_close(LatentDecoder(network)(latent), network.decode(plain).clamp(-1, 1))


def test_iterations_are_those_of_the_equation(photos):
    configuration = SMALL.replace(divergence_weight=0.1)
    training = AutoencoderTraining(configuration, photos, torch.device("cpu"))
    network = copy.deepcopy(training.network)
    mean = [parameter.detach().clone() for parameter in network.parameters()]
    solver = torch.optim.Adam(network.parameters(), configuration.learning_rate, foreach=False)
    order = torch.randperm(20, generator=random(0, Purpose.ORDER, 0)).numpy()
    for t in range(2):
        x = images_of(photos, order[4 * t : 4 * t + 4])
        q = torch.distributions.Normal(*_moments(network, x))
        noise = torch.randn(4, 2, 4, 2, generator=random(0, Purpose.LATENTS, t))
        reconstruction = (network.decode(q.mean + q.stddev * noise) - x).abs().mean()
        divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0, 1)).sum()
        divergence = divergence / x.numel()
        solver.zero_grad()
        (reconstruction + 0.1 * divergence).backward()
        solver.step()
        decay = min(0.9, (1 + t) / (10 + t))
        for average, now in zip(mean, network.parameters(), strict=True):
            average.copy_(decay * average + (1 - decay) * now.detach())
        found = training.step()
        assert found == pytest.approx((reconstruction.item(), divergence.item()), rel=1e-4)
    for found, wanted in zip(training.averaged.parameters(), mean, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.2 * configuration.learning_rate)


def _moments(network: Any, x: Any) -> tuple[Any, Any]:
    mean, log_variance = network.encode(x)
    return mean, torch.exp(log_variance / 2)


def test_a_stopped_training_ends_with_the_same_bits(trained, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "_export", lambda *arguments: None)
    train(tmp_path / "straight", photos)
    found, wanted = (
        torch.load(folder / "checkpoint.pt", weights_only=True)
        for folder in (trained.folder, tmp_path / "straight")
    )
    for part in ("network", "averaged"):
        for name, tensor in wanted[part].items():
            assert torch.equal(found[part][name], tensor)
    assert torch.equal(found["losses"], wanted["losses"])
    table = (trained.folder / "losses.csv").read_text().splitlines()
    assert table[0] == "iteration,reconstruction,divergence"
    assert len(table) == 5


def test_the_bundle_is_the_decoder_with_its_encoder(trained, photos):
    network = Autoencoder(3, 2, 2, width=4).eval()
    network.load_state_dict(torch.load(trained.weights, weights_only=True))
    inverter = Inverter(trained.bundle, threads=1)
    manifest = inverter.manifest
    assert (manifest.latent_shape, manifest.image_shape) == ((2, 4, 2), (3, 8, 4))
    assert manifest.prior == Normal()
    x = images_of(photos, slice(0, 6))
    with torch.no_grad():
        latents = LatentEncoder(network)(x)
        made = LatentDecoder(network)(latents)
    np.testing.assert_allclose(inverter.encode(x.numpy()), latents.numpy(), atol=1e-4)
    np.testing.assert_allclose(inverter.generate(latents.numpy()), made.numpy(), atol=1e-4)


@pytest.mark.parametrize("bits", [None, 8])
def test_decoder_improves_on_the_encoder(trained, photos, bits):
    """On images that the decoder made from the encoder's latents, as floats and as 8-bit files."""
    inverter = Inverter(trained.bundle, threads=1)
    latents = inverter.encode(images_of(photos, slice(0, 4)).numpy())
    images = inverter.generate(latents)
    if bits:
        images = np.rint((images + 1) * 127.5) / 127.5 - 1
    begins, _ = inverter.evaluate(inverter.encode(images), images, loss="mse")
    found = inverter.invert(images, recipe="decoder")
    assert found.attempts.tolist() == [1] * 4
    if bits:
        assert found.loss.max() < (2 / 255) ** 2 / 12
        assert found.loss.max() < 0.1 * begins.max()
    else:
        assert found.loss.max() < 1e-3 * begins.min()


def test_latents_of_training_images_have_mean_0_and_variance_1(trained, photos):
    network = Autoencoder(3, 2, 2, width=4).eval()
    network.load_state_dict(torch.load(trained.weights, weights_only=True))
    chosen = np.concatenate([draw_batch(0, number, 4, 20) for number in range(32)])
    with torch.no_grad():
        latents = LatentEncoder(network)(images_of(photos, chosen))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(2), rtol=0, atol=1e-3)


def test_a_finished_training_is_returned_and_another_refused(trained, photos):
    before = trained.weights.read_bytes()
    assert train(trained.folder, photos) == trained
    assert trained.weights.read_bytes() == before
    with pytest.raises(InputError, match="whose width is 4 and not 8"):
        train(trained.folder, photos, SMALL.replace(width=8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 3}, "factor must be a power of two such as 4 or 8, got 3"),
        ({"image_shape": (3, 31, 32)}, r"height and width multiples of 2, got \(3, 31, 32\)"),
        ({"image_shape": 32}, "image_shape must be"),
        ({"width": 6}, "width must be a multiple of 4, got 6"),
        ({"divergence_weight": 0}, "divergence_weight must be a number > 0"),
    ],
)
def test_invalid_configurations(changes, message):
    with pytest.raises(InputError, match=message):
        SMALL.replace(**changes)


def test_a_configuration_is_read_back():
    for configuration in AUTOENCODER_CONFIGURATIONS.values():
        described = json.loads(json.dumps(configuration.describe()))
        assert AutoencoderConfiguration.from_description(described) == configuration
    with pytest.raises(InputError, match="configuration must be one of kl-f4-32; got 'kl'"):
        get_autoencoder_configuration("kl")


def test_the_command_line_changes_settings(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(autoencoder, "_export", lambda *arguments: None)
    np.save(tmp_path / "photos.npy", photos[:, :1].repeat(2, axis=3))
    settings = {"image-size": 8, "channels": 1, "latent-channels": 1, "factor": 2, "width": 4}
    settings |= {"iterations": 1, "batch-size": 2, "seed": 3, "threads": 1}
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    data, out = tmp_path / "photos.npy", tmp_path / "out"
    code = main(["train", "autoencoder", "--data", str(data), "-o", str(out), "--json", *options])
    assert code == 0
    made = json.loads(capsys.readouterr().out)
    configuration = made["configuration"]
    assert configuration["image_shape"] == [1, 8, 8]
    assert configuration["latent_channels"] == 1
    assert (configuration["factor"], configuration["seed"]) == (2, 3)
    assert "changed: latent_channels, factor, width" in configuration["source"]
