"""Training encoders: the methods' equations, bundles in place of modules, stopping, the command."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyinv.bundle import Bundle
from pyinv.cli import main
from pyinv.cores import usable_cores
from pyinv.demo import DIGITS
from pyinv.errors import ExportError, InputError, RunError
from pyinv.inverter import Inverter
from pyinv.priors import Normal, Uniform
from pyinv.training import (
    ENCODER_CONFIGURATIONS,
    EncoderConfiguration,
    Schedule,
    get_encoder_configuration,
)

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from pyinv.export import export  # noqa: E402
from pyinv.models.encoders import make_encoder  # noqa: E402
from pyinv.models.luo import (  # noqa: E402
    InverseGenerator,
    LuoBiganDiscriminator,
    LuoDiscriminator,
    LuoGenerator,
)
from pyinv.training import bigan, encoder, open_generator, train_encoder  # noqa: E402
from pyinv.training.adversaries import gradient_penalty  # noqa: E402
from pyinv.training.draws import Purpose  # noqa: E402
from pyinv.training.encoder_methods import Phase, Setting, make_phases  # noqa: E402

LATENT, SIZE = 4, 8
QUICK = Schedule(6, 1e-2)
SMALL = EncoderConfiguration(
    "small",
    width=4,
    batch_size=16,
    schedule=QUICK,
    layer_schedules=(QUICK, QUICK),
    fine_tuning=QUICK,
)


class Generator(nn.Module):
    """Latent [B, 4] -> image [B, 1, 8, 8] in [-1, 1]; with ``unit``, of the latent's direction."""

    def __init__(self, unit: bool = False, size: int = SIZE) -> None:
        super().__init__()
        self.unit = unit
        self.size = size
        self.dense = nn.Linear(LATENT, 16)
        self.act = nn.LeakyReLU(0.2)
        self.last = nn.Linear(16, size * size)

    def forward(self, latent):
        if self.unit:
            latent = latent * torch.rsqrt((latent * latent).mean(1, keepdim=True) + 1e-8)
        hidden = self.act(self.dense(latent))
        return torch.tanh(self.last(hidden)).view(-1, 1, self.size, self.size)


def make_generator(unit: bool = False, size: int = SIZE) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Generator(unit, size)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("generator") / "tiny.bundle"
    return export(
        make_generator(),
        path,
        latent_shape=LATENT,
        prior=Uniform(),
        losses=("mse", "l1"),
        normal_equations=False,
        name="tiny",
        origin={"data": "nothing"},
    )


@pytest.fixture
def unexported(monkeypatch):
    """Trainings that end before the export, which takes longer than they do."""
    monkeypatch.setattr(encoder, "_export", lambda *arguments: None)


OF_MODULE: dict[str, Any] = {"prior": Uniform(), "value_range": (-1, 1)}


def as_module(**options: Any):
    return open_generator(
        make_generator(**options), latent_shape=LATENT, losses=("mse", "l1"), **OF_MODULE
    )


def photographs(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, size, size)).astype(np.uint8)


def train(folder: Path, generator: Any, configuration=SMALL, **options: Any):
    return train_encoder(configuration, generator, folder, **{"threads": 1, **options})


def read(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def stop_after(iteration: int):
    def progress(now):
        if now["iteration"] == iteration:
            raise KeyboardInterrupt

    return progress


# Frozen generators


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_a_bundles_gradient_is_its_modules(bundle, loss):
    module, baked = as_module(), open_generator(bundle, threads=1)
    assert baked.module is None
    source = torch.Generator().manual_seed(0)
    latents = torch.rand(5, LATENT, generator=source) * 2 - 1
    images = torch.rand(5, 1, SIZE, SIZE, generator=source) * 2 - 1
    weights = torch.rand(5, generator=source)
    gradients = []
    for one in (module, baked):
        free = latents.clone().requires_grad_()
        values = one.loss(loss, free, images)
        (values * weights).sum().backward()
        gradients.append((values.detach(), free.grad))
    for found, wanted in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(baked.generate(latents), module.generate(latents))


@pytest.mark.parametrize("unit", [False, True])
def test_it_is_found_out_whether_a_latents_length_counts(unit):
    assert as_module(unit=unit).normalizes_latent is unit


def test_the_callers_module_is_left_as_it_was():
    module = make_generator().train()
    open_generator(module, latent_shape=LATENT, **OF_MODULE)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_latent_that_is_not_finite_gives_such_a_loss(bundle):
    latents = torch.full((2, LATENT), torch.nan)
    images = torch.zeros(2, 1, SIZE, SIZE)
    assert open_generator(bundle, threads=1).loss("mse", latents, images).isnan().all()


# Networks


@pytest.mark.parametrize(("size", "widest"), [(64, 8), (32, 4)])
def test_networks_are_those_of_the_tables(size, widest):
    generator = LuoGenerator(100, size, 3, 64)
    first = next(module for module in generator.modules() if _is_up(module))
    assert (first.in_channels, first.out_channels) == (64 * widest, 32 * widest)
    images = torch.zeros(2, 3, size, size)
    assert generator(torch.zeros(2, 100)).shape == images.shape
    assert LuoDiscriminator(size, 3, 64)(images).shape == (2,)
    inverse = InverseGenerator((3, size, size), 100, 64)
    assert inverse(images).shape == (2, 100)
    assert inverse.layers[-1].in_features == 4 * 4 * 64 * widest
    judge = LuoBiganDiscriminator(100, size, 3, 64)
    assert judge(images, torch.zeros(2, 100)).shape == (2,)
    # "Cond concat" at 8 x 8 pixels: the latent beside the channels there.
    assert judge.of_both[0].in_channels == 64 * widest // 2 + 100


def _is_up(module: nn.Module) -> bool:
    return isinstance(module, nn.ConvTranspose2d)


@pytest.mark.parametrize("network", ["luo", "resnet"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 33), (1, 3, 3)])
def test_encoders_take_images_of_any_size(network, shape):
    made = make_encoder(shape, 5, prior=Normal(), network=network, width=2)
    assert made(torch.zeros(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize(
    ("prior", "unit_length"), [(Uniform(2.0, 6.0), False), (Normal(), False), (Normal(), True)]
)
def test_an_encoder_ends_as_its_prior_asks(prior, unit_length):
    made = make_encoder((1, 8, 8), 6, prior=prior, width=2, unit_length=unit_length)
    with torch.no_grad():
        made.network.layers[-1].weight.mul_(1000)
        found = made(torch.randn(16, 1, 8, 8))
    if unit_length:
        torch.testing.assert_close((found**2).mean(1), torch.ones(16))
    elif isinstance(prior, Uniform):
        assert 2 <= found.min() < 3
        assert 5 < found.max() <= 6
    else:
        assert found.abs().max() > 10


# Methods


def difference(pixels: np.ndarray, image: torch.Tensor) -> torch.Tensor:
    """How far an image in [-1, 1] is from each of these, [N]."""
    real = torch.from_numpy(pixels).float() / 127.5 - 1
    return (real - image).abs().flatten(1).amax(1)


def first_step(configuration, generator, pixels=None) -> tuple[Phase, dict[str, float]]:
    """The first phase, and the losses of its first iteration with a learning rate of 0."""
    setting = Setting(configuration, generator, torch.device("cpu"), pixels)
    phase = make_phases(setting)[0]
    return phase, phase.step(0)


@pytest.mark.parametrize("unit", [False, True])
def test_losses_are_those_of_the_equations(unit):
    generator = as_module(unit=unit)
    phase, losses = first_step(SMALL.replace(method="latent+image"), generator)
    latents = phase.setting.latents(0)
    images = generator.generate(latents)
    with torch.no_grad():
        found = phase.encoder()(images)
    if unit:
        cosine = (found * latents).sum(1) / found.norm(dim=1) / latents.norm(dim=1)
        of_latents = (1 - cosine).mean()
    else:
        of_latents = ((found - latents) ** 2).mean()
    of_images = ((generator.generate(found) - images) ** 2).mean()
    assert losses == pytest.approx(
        {"latent": of_latents.item(), "image": of_images.item()}, rel=1e-5
    )


def test_the_image_weight_is_the_second_losses():
    """With lambda = 0 the gradient is that of direct."""
    gradients = []
    for method, weight in (("direct", 1.0), ("latent+image", 0.0), ("latent+image", 1.0)):
        settings = SMALL.replace(method=method, image_weight=weight)
        phase, _ = first_step(settings, as_module())
        gradients.append(torch.cat([p.grad.flatten() for p in phase.encoder().parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-2)


def test_a_share_of_the_batch_is_real():
    settings = SMALL.replace(method="aegan", real_share=0.25)
    pixels = photographs(40)
    phase, _ = first_step(settings, as_module(), pixels)
    batch = phase.batch(0)
    assert batch.shape == (16, 1, SIZE, SIZE)
    seen = [bool((difference(pixels, image) < 1e-5).any()) for image in batch]
    assert seen == [False] * 12 + [True] * 4


def test_an_epoch_shows_every_real_image_once():
    pixels = photographs(40)
    setting = Setting(SMALL, as_module(), torch.device("cpu"), pixels)
    shown = torch.cat([setting.real(number, 10) for number in range(4)])
    order = [int(difference(pixels, image).argmin()) for image in shown]
    assert sorted(order) == list(range(40))
    assert order != sorted(order)


@pytest.mark.parametrize("kind", ["module", "bundle"])
@pytest.mark.parametrize("method", ["direct", "aegan", "latent+image", "layers"])
def test_every_method_lowers_its_loss(bundle, tmp_path, unexported, method, kind):
    generator = as_module() if kind == "module" else bundle
    schedule = Schedule(40, 1e-2, (30,))
    settings = SMALL.replace(
        method=method,
        schedule=schedule,
        layer_schedules=(schedule, schedule),
        fine_tuning=schedule.replace(learning_rate=1e-3),
    )
    train(tmp_path / "run", generator, settings)
    for rows in read(tmp_path / "run")["losses"]:
        assert rows[-10:].sum() < 0.9 * rows[:10].sum()


def test_the_gradient_penalty_is_half_the_squared_slope():
    rows = torch.arange(12.0).view(4, 3).requires_grad_()
    more = torch.ones(4, 2, 1).requires_grad_()
    logits = rows @ torch.tensor([1.0, 2.0, 3.0]) + 4 * more.sum((1, 2))
    penalty = gradient_penalty(logits, rows, more)
    assert penalty.item() == pytest.approx((1 + 4 + 9 + 16 + 16) / 2)


def test_bigan_penalizes_the_discriminators_slope(tmp_path, unexported, monkeypatch):
    """In one of four iterations, at four times the weight, at the pair (x, E(x)) alone."""
    seen: list[tuple[float, ...]] = []

    def slope(logits, *inputs):
        assert [tuple(one.shape) for one in inputs] == [(8, 1, 32, 32), (8, LATENT)]
        penalty = gradient_penalty(logits, *inputs)
        penalty.register_hook(lambda weight: seen.append((weight.item(), penalty.item())))
        return penalty

    monkeypatch.setattr(bigan, "gradient_penalty", slope)
    settings = SMALL.replace(method="bigan", schedule=Schedule(9, 5e-3), batch_size=8)
    train(tmp_path / "without", as_module(size=32), settings)
    assert not seen
    train(tmp_path / "with", as_module(size=32), settings.replace(gradient_penalty=0.5))
    assert [weight for weight, _ in seen] == [2.0] * 3
    assert all(penalty > 0 for _, penalty in seen)


def test_bigan_trains_encoder_and_generator_toward_each_other(tmp_path, unexported):
    """From N(0, 0.02^2) weights the discriminator learns to tell the pairs, then is fooled."""
    settings = SMALL.replace(method="bigan", schedule=Schedule(12, 5e-3), batch_size=8)
    train(tmp_path / "run", as_module(size=32), settings)
    losses = read(tmp_path / "run")["losses"][0]
    assert losses[0] == pytest.approx([2 * np.log(2)] * 2, abs=0.2)
    assert losses[-1, 0] < losses[0, 0]
    networks = read(tmp_path / "run")["networks"]
    assert set(networks) == {"encoder", "generator", "discriminator"}


# Stopping and continuing


@pytest.mark.parametrize("kind", ["module", "bundle"])
@pytest.mark.parametrize("method", ["aegan", "bigan", "layers"])
def test_a_stopped_run_ends_with_the_same_bits(bundle, tmp_path, unexported, method, kind):
    settings = SMALL.replace(method=method, batch_size=8)
    data: dict[str, Any] = {}
    generator: Any = bundle if kind == "bundle" else as_module()
    if method == "bigan":
        if kind == "bundle":
            pytest.skip("its networks are for 32 pixels")
        generator, data = as_module(size=32), {"data": photographs(20, 32)}
        settings = settings.replace(gradient_penalty=0.5)
    if method == "aegan":
        settings, data = settings.replace(real_share=0.5), {"data": photographs(20)}
    train(tmp_path / "straight", generator, settings, **data)
    for iteration in (2, 4) if method != "layers" else (3, 6, 8, 14):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", generator, settings, progress=stop_after(iteration), **data)
        assert read(tmp_path / "run")["iteration"] == iteration
        torch.manual_seed(iteration)  # the caller's random numbers are none of its business
    train(tmp_path / "run", generator, settings, **data)
    assert same(read(tmp_path / "run"), read(tmp_path / "straight"))
    names = ("losses.csv", "configuration.json")
    for name in names:
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "straight" / name).read_text()


def test_ctrl_c_waits_for_the_iterations_end(bundle, tmp_path, monkeypatch, unexported):
    update = Phase.update

    def interrupted(self, name, loss):
        os.kill(os.getpid(), signal.SIGINT)
        update(self, name, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Phase, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", bundle)
    assert read(tmp_path / "run")["iteration"] == 1
    train(tmp_path / "run", bundle)
    train(tmp_path / "straight", bundle)
    assert same(read(tmp_path / "run"), read(tmp_path / "straight"))


def test_a_training_may_be_made_longer(bundle, tmp_path, unexported):
    train(tmp_path / "run", bundle, SMALL.with_iterations(3))
    train(tmp_path / "run", bundle)
    train(tmp_path / "straight", bundle)
    assert same(read(tmp_path / "run"), read(tmp_path / "straight"))


def test_the_learning_rate_drops_as_the_schedule_says():
    schedule = Schedule(10, 1.0, (2, 5), 0.5)
    assert [schedule.rate(i) for i in (0, 1, 2, 4, 5, 9)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert schedule.stretched(2) == Schedule(20, 1.0, (4, 10), 0.5)


# What a finished training leaves


@pytest.mark.parametrize("method", ["aegan", "bigan"])
def test_a_finished_training(bundle, tmp_path, method, monkeypatch):
    settings = SMALL.replace(method=method)
    generator: Any = bundle if method == "aegan" else as_module(size=32)
    trained = train(tmp_path / "run", generator, settings)
    inverter = Inverter(trained.bundle, threads=1)
    manifest = inverter.manifest
    assert manifest.origin["configuration"] == settings.describe()
    assert manifest.origin["iterations"] == 6
    own = Bundle.open(bundle).manifest
    if method == "aegan":
        assert manifest.origin["generator"]["origin"] == {"data": "nothing"}
        assert manifest.losses == own.losses
        assert not (trained.folder / "generator.pt").exists()
    else:
        assert manifest.value_range == (0.0, 1.0)
        assert (trained.folder / "generator.pt").exists()
    images = inverter.generate(inverter.sample(3))
    state = torch.load(trained.weights, weights_only=True)
    network = make_encoder(
        manifest.image_shape,
        LATENT,
        prior=Uniform(),
        value_range=manifest.value_range,
        width=4,
    ).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        wanted = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(inverter.encode(images), wanted, atol=1e-4)
    assert len(list((trained.folder / "samples").iterdir())) == 6

    monkeypatch.setattr(encoder.EncoderTraining, "step", lambda self: pytest.fail("trained again"))
    said: list[str] = []
    train(tmp_path / "run", generator, settings, say=said.append)
    assert "all 6 iterations were done before" in said[0]


def test_an_exported_encoder_has_the_statistics_of_generated_batches():
    generator = as_module()
    setting = Setting(SMALL.replace(method="direct"), generator, torch.device("cpu"))
    training = encoder.EncoderTraining(setting)
    training.step()
    exported = training.encoder()
    latents = [setting.latents(number, Purpose.STATISTICS) for number in range(32)]
    convolution, norm = exported.network.layers[:2]
    with torch.no_grad():
        seen = [convolution(generator.generate(one)) for one in latents]
    mean = torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    assert not exported.training


# What is refused


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"image_loss": "perceptual"}, None, "tiny has no loss 'perceptual'; it has mse, l1"),
        ({"real_share": 0.5}, None, "needs real images"),
        (
            {"real_share": 0.02},
            photographs(40),
            "0.02 is less than one image in a batch of 16; give a larger",
        ),
        ({}, photographs(40), "real_share=0; give real_share"),
        ({"method": "direct"}, photographs(40), "trains on generated images alone"),
        (
            {"method": "direct", "real_share": 0.5},
            photographs(40),
            "real_share is for method aegan",
        ),
        (
            {"method": "direct", "image_loss": "mse"},
            None,
            r"aegan and latent\+image, got image_loss",
        ),
        ({"latent_loss": "mse"}, None, "latent_loss='mse' for aegan; leave it out"),
        ({"image_weight": 2.0}, None, r"image_weight is for method latent\+image"),
        ({"real_share": 0.5}, photographs(40, 16), r"images must be uint8 \[N, 1, 8, 8\]"),
        ({"real_share": 0.5}, photographs(3), "must fill a batch of 8, got 3"),
        ({"method": "bigan"}, None, r"32 or 64 pixels.*got images \[1, 8, 8\]"),
        ({"method": "layers", "layers": ("nowhere",)}, None, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(bundle, tmp_path, changes, data, message):
    with pytest.raises(InputError, match=message) as error:
        train(tmp_path / "run", bundle, SMALL.replace(**changes), data=data)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_a_generator_that_cannot_be_exported_is_refused_before_any_work(tmp_path):
    class Untraceable(nn.Module):
        def forward(self, latents):
            return torch.from_numpy(latents.detach().numpy()).view(-1, 1, 2, 4)

    generator = open_generator(Untraceable(), latent_shape=8, **OF_MODULE)
    with pytest.raises(ExportError, match="no gradient with respect to the latent"):
        train(tmp_path / "run", generator, SMALL, overwrite=True)
    assert not list(tmp_path.iterdir()), "what is there must stay when nothing can replace it"


@pytest.mark.parametrize("method", ["aegan", "latent+image"])
def test_a_loss_that_the_generator_lacks_is_missed_before_any_work(tmp_path, method):
    generator = open_generator(make_generator(), latent_shape=LATENT, losses=("l1",), **OF_MODULE)
    with pytest.raises(InputError, match="no loss 'mse'; it has l1: choose"):
        train(tmp_path / "run", generator, SMALL.replace(method=method))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pixels: pixels * torch.nan, "returned NaN or infinity"),
        (lambda pixels: pixels + torch.randn(pixels.shape), "different images for the same late"),
    ],
)
def test_a_generator_that_nothing_can_learn_from_is_refused(change, message):
    generator = make_generator()
    generator.last.register_forward_hook(lambda module, inputs, pixels: change(pixels))
    with pytest.raises(InputError, match=message):
        open_generator(generator, latent_shape=LATENT, prior=Normal(), value_range=(-1, 1))


def test_a_training_does_not_overwrite_its_own_generator(bundle, tmp_path):
    generator = tmp_path / "gan" / "generator.bundle"
    shutil.copytree(bundle, generator)
    (tmp_path / "gan" / "configuration.json").write_text("{}")
    for given in (generator, tmp_path / "gan"):
        with pytest.raises(InputError, match="gan: holds the generator itself"):
            train(tmp_path / "gan", given, overwrite=True)
    assert generator.is_dir()


def test_a_generator_that_is_none_is_refused(tmp_path, bundle):
    with pytest.raises(InputError, match="neither a bundle"):
        open_generator(tmp_path)
    with pytest.raises(InputError, match="give also latent_shape, prior, value_range"):
        open_generator(make_generator())
    with pytest.raises(InputError, match="give also prior, value_range"):
        open_generator(make_generator(), latent_shape=LATENT)
    with pytest.raises(InputError, match="has its own latent_shape"):
        open_generator(bundle, latent_shape=4)
    with pytest.raises(InputError, match="give the latent_shape it has"):
        open_generator(make_generator(), latent_shape=5, **OF_MODULE)
    with pytest.raises(InputError, match="latent_shape must be a whole number >= 1, got 0"):
        open_generator(make_generator(), latent_shape=(LATENT, 0), **OF_MODULE)
    with pytest.raises(InputError, match=r"value_range must be .* got \(1, -1\)"):
        open_generator(make_generator(), latent_shape=LATENT, prior=Uniform(), value_range=(1, -1))


@pytest.mark.parametrize("method", ["direct", "aegan", "latent+image"])
def test_a_training_that_diverges_says_so(bundle, tmp_path, method):
    schedule = dataclasses.replace(QUICK, learning_rate=1e30)
    with pytest.raises(RunError, match="the training has diverged: after iteration"):
        train(tmp_path / "run", bundle, SMALL.replace(method=method, schedule=schedule))


def test_a_training_that_ended_before_its_first_checkpoint_starts_over(
    bundle, tmp_path, unexported
):
    train(tmp_path / "run", bundle)
    lines = []
    for name in ("checkpoint.pt", "encoder.pt", "losses.csv", "generator.bundle"):
        path = tmp_path / "run" / name
        if path.is_file():
            path.unlink()
    train(tmp_path / "run", bundle, say=lines.append)
    assert lines[0] == "no checkpoint was written before the last run ended; starting over"
    lines.clear()
    train(tmp_path / "new", bundle, say=lines.append)
    assert not any("starting over" in line for line in lines)


def test_the_setting_that_differs_is_named(bundle, tmp_path, unexported):
    train(tmp_path / "run", bundle)
    schedule = dataclasses.replace(QUICK, iterations=QUICK.iterations + 1, learning_rate=0.5)
    with pytest.raises(InputError, match=r"whose learning_rate is \S+ and not 0\.5; ") as error:
        train(tmp_path / "run", bundle, SMALL.replace(schedule=schedule))
    assert "Schedule" not in str(error.value)


def test_a_folder_of_another_training_is_refused(bundle, tmp_path, unexported):
    train(tmp_path / "run", bundle)
    with pytest.raises(InputError, match="whose method is aegan and not direct"):
        train(tmp_path / "run", bundle, SMALL.replace(method="direct"))
    with pytest.raises(InputError, match="whose generator is another one"):
        train(tmp_path / "run", as_module())
    other = tmp_path / "gan"
    other.mkdir()
    (other / "configuration.json").write_text(json.dumps({"configuration": {}, "data": {}}))
    with pytest.raises(InputError, match="of another kind, of a GAN"):
        train(other, bundle)
    train(tmp_path / "run", bundle, SMALL.replace(method="direct"), overwrite=True)
    assert read(tmp_path / "run")["configuration"]["method"] == "direct"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "method must be one of direct, aegan"),
        ({"network": "vit"}, "network must be one of"),
        ({"real_share": 1.5}, "real_share must be a number >= 0 and <= 1"),
        ({"beta1": 1.0}, "beta1 must be a number >= 0 and < 1"),
        ({"batch_size": 1}, "batch_size must be"),
        ({"method": "layers", "fine_tuning": None}, "bau-32"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        SMALL.replace(**change)


@pytest.mark.parametrize("name", ENCODER_CONFIGURATIONS)
def test_a_configuration_describes_itself(name):
    settings = get_encoder_configuration(name)
    described = json.loads(json.dumps(settings.describe()))
    assert EncoderConfiguration.from_description(described) == settings


def test_configurations_are_the_papers():
    luo, bau = ENCODER_CONFIGURATIONS["luo"], ENCODER_CONFIGURATIONS["bau"]
    assert (luo.batch_size, luo.width, luo.schedule.learning_rate, luo.beta1) == (
        64,
        64,
        2e-4,
        0.5,
    )
    assert (bau.batch_size, bau.image_weight) == (32, 1.0)
    assert bau.fine_tuning == Schedule(100_000, 1e-5, (5000, 15_000, 35_000), 0.5)
    rates = [schedule.learning_rate for schedule in bau.layer_schedules]
    assert rates == [1e-4, 1e-4, 1e-4, 1e-4, 1e-2]
    assert bau.layer_schedules[1].drops == (6000, 8000)


# The command


def test_the_command_trains_and_its_bundle_encodes(bundle, tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["train", "encoder", str(bundle), "--method", "direct", "-o", str(folder), "--json"]
    options = ["--iterations", "3", "--width", "4", "--batch-size", "8", "--threads", "1"]
    assert main([*command, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["configuration"]["method"] == "direct"
    assert Bundle.open(found["bundle"]).manifest.has_encoder


def test_the_command_trains_with_as_many_threads_as_asked(
    bundle, tmp_path, monkeypatch, unexported
):
    step, asked, used = encoder.EncoderTraining.step, usable_cores() + 1, []

    def counted(self):
        used.append(torch.get_num_threads())
        return step(self)

    monkeypatch.setattr(encoder.EncoderTraining, "step", counted)
    command = ["train", "encoder", str(bundle), "--method", "direct", "-o", str(tmp_path / "run")]
    options = ["--iterations", "2", "--width", "4", "--batch-size", "8", "--threads", str(asked)]
    assert main([*command, *options]) == 0
    assert used == [asked, asked]


def test_the_command_takes_a_module_and_real_images(tmp_path, monkeypatch, unexported):
    (tmp_path / "tiny_module.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)), nn.Tanh())\n"
    )
    np.save(tmp_path / "images.npy", photographs(40))
    monkeypatch.chdir(tmp_path)
    command = "train encoder tiny_module.py:make --latent-shape 3 --prior normal -o run --quiet"
    options = (
        "--value-range -1 1 --data images.npy --real-share 0.5 --iterations 2 --width 2 --threads 1"
    )
    assert main([*command.split(), *options.split()]) == 0
    assert read(tmp_path / "run")["data"]["images"] == 40


def test_the_command_refuses_in_one_line(bundle, tmp_path, capsys):
    command = ["train", "encoder", str(bundle), "-o", str(tmp_path / "run")]
    assert main([*command, "--image-loss", "bce"]) != 0
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "tiny has no loss 'bce'; it has mse, l1" in error
    assert not (tmp_path / "run").exists()


def test_an_encoder_of_the_demo_bundle_learns(tmp_path, unexported):
    settings = SMALL.replace(method="direct", schedule=Schedule(30, 2e-3), batch_size=32)
    train(tmp_path / "run", DIGITS.with_suffix(".bundle"), settings)
    rows = read(tmp_path / "run")["losses"][0]
    assert rows[-5:].mean() < 0.7 * rows[:5].mean()


def test_a_generator_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.bundle: there is no such bundle, folder or"):
        open_generator(str(tmp_path / "none.bundle"))
