"""The method "layers": losses that fall, networks and equations of the paper, resuming."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from pyinv import Inverter, Normal, Uniform  # noqa: E402
from pyinv.errors import InputError  # noqa: E402
from pyinv.export import export  # noqa: E402
from pyinv.models.layer_encoders import (  # noqa: E402
    make_first_encoder,
    make_layer_encoder,
    make_tail_encoder,
)
from pyinv.models.progan import ProGanGenerator  # noqa: E402
from pyinv.training.checkpoint import read_checkpoint, write_checkpoint  # noqa: E402
from pyinv.training.encoder import EncoderTraining, train_encoder  # noqa: E402
from pyinv.training.encoder_configurations import (  # noqa: E402
    EncoderConfiguration,
    Schedule,
    get_encoder_configuration,
)
from pyinv.training.encoder_methods import Phase, Setting, make_phases  # noqa: E402
from pyinv.training.frozen import FrozenGenerator, open_generator  # noqa: E402
from pyinv.training.layerwise import layer_phases, with_layers  # noqa: E402

LATENT = 6


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configuration(iterations: int = 3, **changes: Any) -> EncoderConfiguration:
    return get_encoder_configuration("bau-32").replace(
        method="layers",
        width=4,
        batch_size=8,
        layer_schedules=(Schedule(iterations, 5e-3),) * 5,
        fine_tuning=Schedule(iterations, 3e-3),
        **changes,
    )


@pytest.fixture(scope="module")
def pixel_norm() -> FrozenGenerator:
    torch.manual_seed(0)
    network = ProGanGenerator(LATENT, 8, 1, 4)
    return open_generator(network, latent_shape=LATENT, prior=Normal(), value_range=(-1, 1))


def without_pixel_norm() -> nn.Module:
    """Two activations before the image; uniform latents [6, 1, 1]."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.ConvTranspose2d(LATENT, 8, 4),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2, inplace=True),
        nn.ConvTranspose2d(8, 4, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(4, 1, 3, padding=1),
        nn.Tanh(),
    ).eval()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        runtime: export(
            without_pixel_norm(),
            folder / f"{runtime}.bundle",
            latent_shape=(LATENT, 1, 1),
            prior=Uniform(),
            losses="mse",
            normal_equations=False,
            runtimes=runtime,
        )
        for runtime in ("onnx", "torchscript")
    }


def run(phase: Phase) -> list[dict[str, float]]:
    found = []
    for iteration in range(phase.schedule.iterations):
        for solver in phase.solvers.values():
            for group in solver.param_groups:
                group["lr"] = phase.schedule.rate(iteration)
        found.append(phase.step(iteration))
    return found


def phases_of(generator: FrozenGenerator, **changes: Any) -> list[Phase]:
    return make_phases(Setting(configuration(**changes), generator, torch.device("cpu")))


@pytest.mark.parametrize("kind", ["pixel norm", "other"])
def test_every_loss_falls(kind: str, pixel_norm: FrozenGenerator) -> None:
    generator = pixel_norm
    names = ["e1", "e2", "e3", "e4", "eF", "whole"]
    if kind == "other":
        generator = open_generator(
            without_pixel_norm(),
            latent_shape=(LATENT, 1, 1),
            prior=Uniform(),
            value_range=(-1, 1),
        )
        names = ["e1", "e2", "eF", "whole"]
    phases = phases_of(generator, iterations=100)
    assert [phase.name for phase in phases] == names
    assert [phase.first for phase in phases] == [100 * i for i in range(len(names))]
    for phase in phases:
        losses = run(phase)
        assert set(losses[0]) == set(phase.losses)
        early, late = (
            np.mean([sum(step.values()) for step in part]) for part in (losses[:5], losses[-5:])
        )
        assert late < 0.9 * early, phase.name
        assert (phase.encoder() is None) == (phase is not phases[-1])


def test_the_losses_are_the_papers(pixel_norm: FrozenGenerator) -> None:
    """Equations 6 to 8 and the fine-tuning loss, by hand, for the first step of each phase."""
    phases = phases_of(pixel_norm)
    network = pixel_norm.module
    assert network is not None

    def d(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(1 - functional.cosine_similarity(a, b).mean())

    g = [getattr(network, f"layer{i}") for i in range(1, 5)]
    e = [phase.networks[phase.name] for phase in phases[:4]]
    for number, phase in enumerate(phases[:4]):
        with torch.no_grad():
            r = [phase.setting.latents(phase.first)]
            for layer in g:
                r.append(layer(r[-1]))
            found = e[number](r[number + 1])
            expected = {
                "inverted": d(found, r[number]),
                "regenerated": d(g[number](found), r[number + 1]),
            }
        assert phase.step(0) == pytest.approx(expected, abs=1e-5)
    whole = phases[-1]
    with torch.no_grad():
        z = whole.setting.latents(whole.first)
        x, r_4 = network(z), z
        for layer in g:
            r_4 = layer(r_4)
        found_4 = phases[4].networks["eF"](x)
        found = e[0](e[1](e[2](e[3](found_4))))
        again = found
        for layer in g:
            again = layer(again)
        expected = {
            "latent": d(found, z),
            "activation": d(found_4, r_4),
            "regenerated": d(again, r_4),
            "image": float(functional.mse_loss(network(found), x)),
        }
    assert whole.step(0) == pytest.approx(expected, abs=1e-5)


def test_a_step_follows_its_own_gradient_alone(pixel_norm: FrozenGenerator) -> None:
    first, second = phases_of(pixel_norm)[0], phases_of(pixel_norm)[0]
    run(first)
    second.networks["e1"].load_state_dict(first.networks["e1"].state_dict())
    for phase in (first, second):
        phase.step(7)
    pairs = zip(first.networks["e1"].parameters(), second.networks["e1"].parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)  # nothing of the steps before


def test_fine_tuning_leaves_the_last_convolutions(pixel_norm: FrozenGenerator) -> None:
    whole = phases_of(pixel_norm)[-1]
    encoder = whole.encoder()
    assert encoder is not None
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    run(whole)
    changed = {name for name, value in encoder.named_parameters() if not value.equal(before[name])}
    kept = set(before) - changed
    assert len(kept) == 10  # weight and bias of e_1 to e_4 and e_F
    assert all(name.split(".")[-2] == "last" for name in kept)
    assert all(before[n].shape[2:] == (1, 1) for n in kept if n.endswith("weight"))


def test_the_encoder_returns_what_the_prior_allows(pixel_norm: FrozenGenerator) -> None:
    encoder = phases_of(pixel_norm)[-1].encoder()
    assert encoder is not None
    found = encoder(torch.randn(5, 1, 8, 8))
    # A generator that normalises its latent: all have the length that is usual for the prior.
    assert torch.allclose(found.square().mean(1), torch.ones(5), atol=1e-4)
    uniform = open_generator(
        without_pixel_norm(), latent_shape=(LATENT, 1, 1), prior=Uniform(), value_range=(-1, 1)
    )
    encoder = phases_of(uniform)[-1].encoder()
    assert encoder is not None
    assert encoder(10 * torch.randn(5, 1, 8, 8)).abs().max() <= 1


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_a_bundle_alone_is_enough(bundles: dict[str, Path], runtime: str, tmp_path: Path) -> None:
    generator = open_generator(bundles[runtime])
    assert generator.module is None
    given = configuration(iterations=2)
    resolved = with_layers(given, generator)
    assert resolved.layers == ("LeakyRelu1", "LeakyRelu2")
    assert len(resolved.layer_schedules) == 3
    trained = train_encoder(given, generator, tmp_path / "out", threads=1)
    inverter = Inverter(trained.bundle)
    images = inverter.generate(inverter.sample(3, seed=1))
    assert inverter.encode(images).shape == (3, LATENT, 1, 1)


def test_a_torchscript_file_is_enough(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(without_pixel_norm()), tmp_path / "net.pt")
    generator = open_generator(
        str(tmp_path / "net.pt"),
        latent_shape=(LATENT, 1, 1),
        prior=Uniform(),
        value_range=(-1, 1),
    )
    setting = Setting(configuration(), generator, torch.device("cpu"))
    assert [phase.name for phase in layer_phases(setting)] == ["e1", "e2", "eF", "whole"]


def test_layers_that_do_not_exist(pixel_norm: FrozenGenerator) -> None:
    wrong = configuration(layers=("layer1", "layer2", "layer3", "layer9"))
    with pytest.raises(InputError, match="no layer 'layer9': it has layer1, "):
        with_layers(wrong, pixel_norm)


@pytest.fixture(scope="module")
def unstopped(pixel_norm: FrozenGenerator) -> EncoderTraining:
    training = EncoderTraining(Setting(configuration(), pixel_norm, torch.device("cpu")))
    for _ in range(6 * 3):
        training.step()
    return training


# In the middle of a phase, at a boundary, one after it, in the last phase.
@pytest.mark.parametrize("stop", [4, 9, 10, 16])
def test_a_resumed_training_equals_the_unstopped_to_the_bit(
    pixel_norm: FrozenGenerator, unstopped: EncoderTraining, tmp_path: Path, stop: int
) -> None:
    setting = Setting(configuration(), pixel_norm, torch.device("cpu"))
    training = EncoderTraining(setting)
    for _ in range(stop):
        training.step()
    write_checkpoint(tmp_path / "checkpoint.pt", training.state())
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None
    resumed = EncoderTraining(setting)
    resumed.load(state)
    for _ in range(6 * 3 - stop):
        resumed.step()
    assert resumed.losses == unstopped.losses
    ours, theirs = resumed.encoder(), unstopped.encoder()
    assert ours is not None
    assert theirs is not None
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((12,), (8, 4, 4)),
        ((12,), (20,)),
        ((12, 1, 1), (8, 4, 4)),
        ((8, 4, 4), (8, 4, 4)),
        ((8, 4, 4), (6, 8, 8)),
        ((8, 7, 5), (6, 28, 20)),
    ],
)
def test_shapes_of_layer_encoders(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    for normalizes in (True, False):
        encoder = make_layer_encoder(before, after, normalizes=normalizes)
        assert encoder(torch.randn(3, *after)).shape == (3, *before)


def test_the_papers_encoders() -> None:
    """What e_1, e_3 and e_F are at 256 pixels."""

    def layers(network: nn.Module) -> list[str]:
        kinds = {nn.Conv2d: "conv", nn.BatchNorm2d: "bn", nn.LeakyReLU: "leaky"}
        return [
            f"{kinds[type(m)]}{m.kernel_size[0]}/{m.stride[0]}"
            if isinstance(m, nn.Conv2d)
            else kinds.get(type(m), type(m).__name__)
            for m in network.modules()
            if not list(m.children())
        ]

    e_1 = make_first_encoder(512, (512, 4, 4), Normal(), normalizes=True)
    assert layers(e_1) == ["PixelNorm", "conv4/1", "bn", "leaky", "conv1/1"]
    e_3 = make_layer_encoder((512, 4, 4), (512, 8, 8), normalizes=True)
    assert layers(e_3) == [
        *("PixelNorm", "conv3/2", "bn", "leaky", "conv3/1", "bn", "leaky", "conv1/1")
    ]
    e_f = make_tail_encoder((3, 256, 256), (512, 8, 8)).eval()
    with torch.no_grad():
        assert e_f(torch.zeros(1, 3, 256, 256)).shape == (1, 512, 8, 8)
    # ResNet-18 without its dense layer has 11,176,512 parameters.
    assert sum(p.numel() for p in e_f.body.parameters()) == 11_176_512
    assert layers(e_f)[-2:] == ["conv1/1", "leaky"]


@pytest.mark.parametrize("shape", [(8, 32, 32), (8, 16, 16), (8, 8, 8), (8, 1, 1), (8,)])
def test_shapes_of_tail_encoders(shape: tuple[int, ...]) -> None:
    encoder = make_tail_encoder((3, 32, 32), shape, value_range=(0, 1), width=4)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, *shape)


def test_activations_without_an_encoder() -> None:
    with pytest.raises(InputError, match="enlarge height and width by the same whole number"):
        make_layer_encoder((4, 4, 4), (4, 6, 6), normalizes=False)
    with pytest.raises(InputError, match="smaller than the image by a power of two"):
        make_tail_encoder((3, 30, 30), (4, 10, 10))
