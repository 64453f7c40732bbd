"""Progressive GAN: its layers, how it grows, and what becomes of it in a bundle."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import pyinv
from pyinv.errors import InputError
from pyinv.models import get_model
from pyinv.training import CONFIGURATIONS, GanConfiguration

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from pyinv.export import export  # noqa: E402
from pyinv.models.progan import (  # noqa: E402
    EqualizedConv2d,
    EqualizedConvTranspose2d,
    GrowingDiscriminator,
    GrowingGenerator,
    ProGanDiscriminator,
    ProGanGenerator,
    growing,
    pixel_norm,
    shrunk,
)
from pyinv.training import gan, train_gan  # noqa: E402
from pyinv.training.adversaries import Adversaries  # noqa: E402
from pyinv.training.draws import Purpose, random  # noqa: E402

# 4x4 in iterations 0 and 1, 8x8 from 2 on, 16x16 from 6, 32x32 from 10, all of it from 12.
SMALL = GanConfiguration(
    "small",
    "progan",
    (3, 32, 32),
    prior=pyinv.Normal(),
    latent_size=6,
    width=2,
    batch_size=4,
    iterations=13,
    learning_rate=2e-3,
    beta1=0.0,
    beta2=0.99,
    averaging=0.9,
    growth=2,
    gradient_penalty=1.0,
    penalty_every=3,
    losses=("mse",),
)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def generator() -> ProGanGenerator:
    torch.manual_seed(0)
    return ProGanGenerator(6, 32, 3, 2)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Layers


def test_pixel_norm_makes_the_mean_square_1_and_keeps_zeros():
    x = normal(3, 5, 2, 2) * 7
    torch.testing.assert_close(pixel_norm(x).square().mean(1), torch.ones(3, 2, 2))
    torch.testing.assert_close(pixel_norm(x) * x.square().mean(1, keepdim=True).sqrt(), x)
    zeros = torch.zeros(2, 5, requires_grad=True)
    pixel_norm(zeros).sum().backward()
    assert pixel_norm(zeros).abs().max() == 0
    assert torch.isfinite(zeros.grad).all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_an_equalized_convolution_keeps_the_scale_and_scales_the_rate(kernel):
    torch.manual_seed(0)
    layer = EqualizedConv2d(64, 256, kernel, gain=1.0)
    assert layer.weight.std().item() == pytest.approx(1.0, rel=0.02)
    assert layer(normal(2, 64, 8, 8)).std().item() == pytest.approx(1.0, rel=0.1)
    # The gradient of a stored weight is that of the used one, times the scale.
    used = (layer.weight / math.sqrt(64 * kernel**2)).detach().requires_grad_(True)
    x = normal(2, 64, 8, 8)
    functional.conv2d(x, used, layer.bias).square().sum().backward()
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, used.grad / math.sqrt(64 * kernel**2))


def test_the_first_convolution_keeps_the_scale():
    torch.manual_seed(0)
    image = EqualizedConvTranspose2d(64, 256, 4)(normal(8, 64, 1, 1))
    assert image.shape == (8, 256, 4, 4)
    assert image.std().item() == pytest.approx(math.sqrt(2), rel=0.1)


def test_weights_of_a_training_begin_with_unit_variance(pixels):
    networks = Adversaries(SMALL.replace(width=8), pixels, torch.device("cpu")).networks
    for network in networks.values():
        weights = torch.cat([p.flatten() for n, p in network.named_parameters() if "weight" in n])
        assert weights.std().item() == pytest.approx(1.0, rel=0.02)
        assert all(p.abs().max() == 0 for n, p in network.named_parameters() if "bias" in n)


def test_the_generator_is_a_chain_of_named_layers(generator):
    assert [name for name, _ in generator.named_children()] == [
        *(f"layer{number}" for number in range(1, 9)),
        "output",
    ]
    x = latent = normal(3, 6)
    shapes = []
    for layer in generator.children():
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert torch.equal(x, generator(latent))
    sizes = [4, 4, 8, 8, 16, 16, 32, 32]
    widths = [8, 8, 8, 8, 4, 4, 2, 2]
    assert shapes == [*((w, s, s) for w, s in zip(widths, sizes, strict=True)), (3, 32, 32)]


def test_an_image_does_not_depend_on_the_length_of_its_latent(generator):
    assert ProGanGenerator.normalizes_latent
    latent = normal(3, 6)
    torch.testing.assert_close(generator(latent), generator(3 * latent), rtol=0, atol=1e-3)
    assert (generator(latent) - generator(-latent)).abs().max() > 0.1


def test_a_logit_sees_how_much_the_images_of_a_batch_differ():
    torch.manual_seed(0)
    discriminator = ProGanDiscriminator(32, 3, 2)
    image = normal(1, 3, 32, 32)
    alike = discriminator(image.repeat(4, 1, 1, 1))
    varied = discriminator(torch.cat([image, normal(3, 3, 32, 32, seed=2)]))
    torch.testing.assert_close(alike, discriminator(image).repeat(4))
    assert abs(varied[0] - alike[0]) > 1e-4


def test_256_pixels_have_the_papers_15_convolutions():
    configuration = CONFIGURATIONS["progan-256"]
    with torch.device("meta"):
        model = get_model("progan")
        generator = model.generator(
            configuration.latent_size, configuration.image_shape, **configuration.options
        )
        discriminator = model.discriminator(configuration.image_shape)
        assert generator(torch.empty(2, 512)).shape == (2, 3, 256, 256)
        assert discriminator(torch.empty(2, 3, 256, 256)).shape == (2,)
    convolutions = [m for m in generator.modules() if isinstance(m, EqualizedConv2d)]
    assert len(convolutions) == 15
    # Karras et al. 2018, table 2: 23.1 million parameters in each network.
    assert [m.bias.numel() for m in convolutions] == [
        *[512] * 8, *[256] * 2, *[128] * 2, *[64] * 2, 3
    ]  # fmt: skip
    for network in (generator, discriminator):
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(23.1e6, rel=0.01)


# Growth


def test_phases_follow_the_iterations():
    grown = [SMALL.grown(iteration) for iteration in range(14)]
    assert grown == [
        (4, 1), (4, 1),
        (8, 0.5), (8, 1), (8, 1), (8, 1),
        (16, 0.5), (16, 1), (16, 1), (16, 1),
        (32, 0.5), (32, 1), (32, 1), (32, 1),
    ]  # fmt: skip
    assert SMALL.replace(growth=0).grown(0) == (32, 1.0)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_new_size_begins_as_the_last_one_enlarged(generator, size):
    torch.manual_seed(1)
    grows = GrowingGenerator(generator)
    judge = GrowingDiscriminator(ProGanDiscriminator(32, 3, 2))
    latent, image = normal(3, 6), normal(3, 3, size, size)

    def at(size: int, alpha: float, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grows.grow(size, alpha)
        judge.grow(size, alpha)
        return grows(latent), judge(image)

    smaller, logit = at(size // 2, 1.0, functional.avg_pool2d(image, 2))
    first, first_logit = at(size, 0.0, image)
    assert torch.equal(first, smaller.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(first_logit, logit)
    half, _ = at(size, 0.5, image)
    last, _ = at(size, 1.0, image)
    assert (last - first).abs().max() > 0.01
    torch.testing.assert_close(half, (first + last) / 2)


def test_fully_grown_it_is_the_plain_network(generator):
    torch.manual_seed(1)
    discriminator = ProGanDiscriminator(32, 3, 2)
    latent, image = normal(3, 6), normal(3, 3, 32, 32)
    assert torch.equal(growing(generator)(latent), generator(latent))
    assert torch.equal(growing(discriminator)(image), discriminator(image))


def test_real_images_are_seen_at_the_networks_size():
    images = normal(2, 3, 32, 32)
    small = images.reshape(2, 3, 8, 4, 8, 4).mean((3, 5))
    torch.testing.assert_close(shrunk(images, 8, 1.0), small)
    smaller = images.reshape(2, 3, 4, 8, 4, 8).mean((3, 5))
    enlarged = smaller.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(shrunk(images, 8, 0.25), 0.25 * small + 0.75 * enlarged)
    assert torch.equal(shrunk(images, 32, 1.0), images)


# Training


@pytest.mark.parametrize("iteration", [0, 1])
def test_the_penalty_is_that_of_the_equation(pixels, iteration):
    """Of its gradient, because Adam's first step is no more than the gradient's sign."""
    configuration = SMALL.replace(growth=0)
    trained = Adversaries(configuration, pixels, torch.device("cpu"))
    trained.iteration = iteration
    discriminator = trained.networks["discriminator"]
    real = trained._real(iteration).clone().requires_grad_(True)
    z = torch.randn(4, 6, generator=random(0, Purpose.LATENTS, iteration))
    fake = trained.networks["generator"](z).detach()
    logits = discriminator(real)
    loss = functional.softplus(-logits).mean() + functional.softplus(discriminator(fake)).mean()
    expected_loss = loss.item()
    if iteration % 3 == 0:
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        loss = loss + 3 * 1.0 / 2 * slope.flatten(1).square().sum(1).mean()
    expected = torch.autograd.grad(loss, list(discriminator.parameters()))
    found = []
    step = trained.solvers["discriminator"].step
    trained.solvers["discriminator"].step = lambda: (
        found.extend(p.grad.clone() for p in discriminator.parameters()),
        step(),
    )
    assert trained.step()[0] == pytest.approx(expected_loss, rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_what_has_not_grown_yet_is_not_trained(pixels):
    adversaries = Adversaries(SMALL, pixels, torch.device("cpu"))
    network = adversaries.networks["generator"]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}

    def changed() -> set[str]:
        return {
            name.removeprefix("generator.").split(".convolution")[0]
            for name, p in network.named_parameters()
            if not torch.equal(p, before[name])
        }

    for _ in range(2):
        adversaries.step()
    assert changed() == {"layer1", "layer2", "outputs.0"}
    assert adversaries.samples().shape == (64, 3, 32, 32)
    adversaries.step()
    assert changed() == {"layer1", "layer2", "layer3", "layer4", "outputs.0", "outputs.1"}


@pytest.mark.parametrize("stops", [(1, 2), (5, 7), (9, 10, 11)])
def test_a_run_that_is_stopped_at_a_phases_end_gives_the_same_bits(
    pixels, tmp_path, monkeypatch, stops
):
    monkeypatch.setattr(gan, "_export", lambda *arguments: None)

    def train(folder: Path, stop: int | None = None) -> dict:
        def progress(now: dict) -> None:
            if now["iteration"] == stop:
                raise KeyboardInterrupt

        options = {"data_name": "noise", "threads": 1, "progress": progress}
        if stop is None:
            train_gan(SMALL, pixels, folder, **options)
        else:
            with pytest.raises(KeyboardInterrupt):
                train_gan(SMALL, pixels, folder, **options)
        return torch.load(folder / "checkpoint.pt", weights_only=True)

    straight = train(tmp_path / "straight")
    for stop in stops:
        assert train(tmp_path / "run", stop)["iteration"] == stop
    stopped = train(tmp_path / "run")
    assert torch.equal(stopped["losses"], straight["losses"])
    for name, network in straight["networks"].items():
        for key, tensor in network.items():
            assert torch.equal(stopped["networks"][name][key], tensor), (name, key)
    assert stopped["solvers"].keys() == straight["solvers"].keys()
    for name, solver in straight["solvers"].items():
        for key, state in solver["state"].items():
            for item, tensor in state.items():
                assert torch.equal(stopped["solvers"][name]["state"][key][item], tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"growth": -1}, "growth must be a whole number >= 0, got -1"),
        ({"model": "dcgan"}, "growth must be 0 for model dcgan, got 2"),
        ({"beta2": 1.0}, "beta2 must be a number >= 0 and < 1"),
        ({"gradient_penalty": -1}, "gradient_penalty must be a number >= 0"),
        ({"penalty_every": 0}, "penalty_every must be a whole number >= 1, got 0"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(change, message):
    with pytest.raises(InputError) as error:
        SMALL.replace(**change)
    assert message in str(error.value)


def test_a_description_of_before_these_fields_is_read():
    """Folders and bundles that were written without them stay those of the same configuration."""
    described = CONFIGURATIONS["lipton-32"].describe()
    assert not {"beta2", "growth", "gradient_penalty", "penalty_every"} & set(described)
    assert GanConfiguration.from_description(described) == CONFIGURATIONS["lipton-32"]
    assert SMALL.describe()["growth"] == 2


# Bundles


@pytest.fixture(scope="module")
def trained(pixels, tmp_path_factory) -> tuple[ProGanGenerator, Path]:
    """A generator as training leaves it, loaded from its weights, and its bundle."""
    folder = tmp_path_factory.mktemp("progan") / "run"
    # With more channels: where a pixel has few, their norm may be near 0, and magnifies rounding.
    done = train_gan(SMALL.replace(width=8), pixels, folder, data_name="noise", threads=1)
    generator = get_model("progan").generator(6, (3, 32, 32), width=8)
    generator.load_state_dict(torch.load(done.weights, weights_only=True))
    return generator.eval(), done.bundles["eval"]


def test_a_training_leaves_the_grown_generator_alone(trained):
    generator, path = trained
    assert pyinv.Bundle.open(path).manifest.has_normal_equations("mse")
    latents = normal(3, 6)
    with torch.no_grad():
        expected = generator(latents).numpy()
    found = pyinv.Inverter(path, threads=1).generate(latents.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_latent_of_zeros_gives_the_same_image_in_the_bundle(trained):
    generator, path = trained
    with torch.no_grad():
        expected = generator(torch.zeros(1, 6)).numpy()
    found = pyinv.Inverter(path, threads=1).generate(np.zeros((1, 6), np.float32))
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_latent_is_recovered_but_for_its_length(tmp_path):
    torch.manual_seed(0)
    generator = get_model("progan").generator(6, (3, 32, 32), width=8).eval()
    # Wide enough for all of its images: none is clipped.
    path = export(
        generator,
        tmp_path / "b",
        latent_shape=6,
        prior=pyinv.Normal(),
        losses="mse",
        value_range=(-8, 8),
        normal_equations=True,
    )
    latents = normal(8, 6)
    with torch.no_grad():
        images = generator(latents).numpy()
    found = pyinv.Inverter(path, threads=1).invert(images, recipe="precise").latents
    cosine = functional.cosine_similarity(torch.from_numpy(found).double(), latents.double())
    assert (1 - cosine < 1e-6).sum() >= 7


def test_the_large_generator_is_exported_without_normal_equations(tmp_path):
    """All 15 convolutions and 512 latents, with few channels and random weights and biases.

    Biases are of the activations' size: where all channels of a pixel are almost 0, pixel norm
    enlarges their rounding, and no two runtimes agree.
    """
    torch.manual_seed(1)
    generator = get_model("progan").generator(512, (3, 256, 256), width=4).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    with pytest.warns(UserWarning, match="value_range is not given"):
        path = export(
            generator,
            tmp_path / "b",
            latent_shape=512,
            prior=pyinv.Normal(),
            losses="mse",
            normal_equations=False,
        )
    latents = normal(2, 512)
    with torch.no_grad():
        expected = generator(latents).numpy()
    found = pyinv.Inverter(path, threads=1).generate(latents.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-3)
