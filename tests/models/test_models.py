"""The papers' networks: their layers, shapes and ranges, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyinv.errors import InputError
from pyinv.extras import install_command
from pyinv.models import MODELS, get_model

torch = pytest.importorskip("torch")

NARROW = {
    "creswell": {},
    "dcgan": {"width": 2},
    "egan": {"width": 2},
    "egan-pixel-shuffle": {"width": 2},
    "progan": {"width": 2},
    "luo": {"width": 2},
}
CASES = [(name, shape) for name, model in MODELS.items() for shape in model.image_shapes]


def shapes(network) -> list[tuple[str, tuple[int, ...]]]:
    """The layers that have weights, in order, with the shape of the weight."""
    return [
        (type(module).__name__, tuple(module.weight.shape))
        for module in network.modules()
        if getattr(module, "weight", None) is not None
    ]


def widths(network) -> list[int]:
    """How many channels the network normalises, in order."""
    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    return [module.num_features for module in network.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_latent_becomes_an_image_and_an_image_a_logit(name, shape):
    model = get_model(name)
    torch.manual_seed(0)
    generator = model.generator(latent_size=7, image_shape=shape, **NARROW[name])
    image = generator(torch.randn(3, 7))
    assert image.shape == (3, *shape)
    low, high = model.value_range
    if name != "progan":  # which ends in no activation
        # Stretched before the last activation, so that all of the range is seen.
        activation = generator.layers[-1]
        stretched = activation(1e4 * torch.linspace(-1, 1, 101))
        assert (stretched.min(), stretched.max()) == (low, high)
    logit = model.discriminator(image_shape=shape, **NARROW[name])(image)
    assert logit.shape == (3,)


@pytest.mark.parametrize("name", MODELS)
def test_a_discriminator_gives_logits_and_no_probabilities(name):
    model = get_model(name)
    discriminator = model.discriminator(**NARROW[name])
    with torch.no_grad():
        weights = [m.weight for m in discriminator.modules() if hasattr(m, "weight")]
        weights[-1].mul_(1e4)
        image = torch.rand(8, *model.image_shapes[0], generator=torch.Generator().manual_seed(1))
        assert discriminator(image).abs().max() > 1


def test_creswell_has_the_layers_of_table_1():
    model = MODELS["creswell"]
    assert shapes(model.generator()) == [
        ("Linear", (1024, 100)),
        ("BatchNorm1d", (1024,)),
        ("Linear", (6272, 1024)),
        ("BatchNorm1d", (6272,)),
        ("ConvTranspose2d", (128, 64, 5, 5)),
        ("BatchNorm2d", (64,)),
        ("ConvTranspose2d", (64, 1, 5, 5)),
    ]
    assert shapes(model.discriminator()) == [
        ("Conv2d", (64, 1, 5, 5)),
        ("BatchNorm2d", (64,)),
        ("Conv2d", (128, 64, 5, 5)),
        ("BatchNorm2d", (128,)),
        ("Linear", (1024, 6272)),
        ("BatchNorm1d", (1024,)),
        ("Linear", (1, 1024)),
    ]


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("dcgan", 64, [512, 256, 128, 64]),
        ("dcgan", 32, [256, 128, 64]),
        ("egan", 64, [512, 256, 128, 64]),
        ("egan-pixel-shuffle", 64, [512, 256, 128, 64]),
        ("egan-pixel-shuffle", 32, [256, 128, 64]),
    ],
)
def test_dcgan_has_the_widths_of_the_papers(name, size, expected):
    model = MODELS[name]
    assert widths(model.generator(image_shape=(3, size, size))) == expected
    # The first layer of a discriminator is not normalised.
    assert widths(model.discriminator((3, size, size))) == expected[-2::-1]


def test_a_pixel_shuffle_takes_the_place_of_the_last_hidden_up_convolution():
    basic = shapes(MODELS["egan"].generator())
    shuffled = shapes(MODELS["egan-pixel-shuffle"].generator())
    differing = [pair for pair in zip(basic, shuffled, strict=True) if pair[0] != pair[1]]
    assert differing == [(("ConvTranspose2d", (128, 64, 4, 4)), ("Conv2d", (256, 128, 3, 3)))]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: get_model("vae"), "model must be one of creswell, dcgan"),
        (lambda: MODELS["dcgan"].generator(image_shape=(1, 28, 28)), "got 1x28x28"),
        (lambda: MODELS["creswell"].discriminator((3, 28, 28)), "makes images of 1x28x28"),
        (lambda: MODELS["creswell"].generator(width=3), "no option 'width'; it has none"),
        (lambda: MODELS["dcgan"].generator(width=0), "width must be at least 1, got 0"),
        (lambda: MODELS["dcgan"].generator(0), "latent_size must be at least 1, got 0"),
    ],
)
def test_what_a_model_cannot_be_is_refused(ask, message):
    with pytest.raises(InputError) as error:
        ask()
    assert message in str(error.value)


def test_models_are_known_without_torch_and_say_that_making_one_needs_it():
    program = """
import sys
sys.modules["torch"] = None
from pyinv.errors import DependencyError
from pyinv.models import MODELS
from pyinv.training import CONFIGURATIONS
assert MODELS and CONFIGURATIONS
for make in (MODELS["dcgan"].generator, MODELS["creswell"].discriminator):
    try:
        make()
    except DependencyError as error:
        print(error)
try:
    from pyinv.training import train_gan
except DependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(install_command("export") in line for line in lines)
