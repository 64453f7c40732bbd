"""The perceptual loss: what it computes, in PyTorch and in a bundle, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.backends import Backend

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from torch import Tensor, nn  # noqa: E402

from pyinv.bundle import Bundle  # noqa: E402
from pyinv.cli import main  # noqa: E402
from pyinv.errors import ExportError  # noqa: E402
from pyinv.export import export, perceptual  # noqa: E402
from pyinv.inverter import Inverter  # noqa: E402
from pyinv.priors import Normal  # noqa: E402
from support.generators import BatchNormGenerator, seeded  # noqa: E402

MEAN, STD = 0.45, 0.25


class FeatureNetwork(nn.Module):
    """Gray images of 8x8 pixels to 5 numbers; works in place, as VGG does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        )
        self.second = nn.Conv2d(6, 7, 3, padding=1)
        self.after = nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(7 * 16, 5)
        self.spare = nn.Linear(2, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.after(self.second(self.first(image))))


def network() -> nn.Module:
    return seeded(FeatureNetwork(), seed=3)


def distance(one: Tensor, other: Tensor) -> Tensor:
    return torch.stack([(a - b).abs().mean() for a, b in zip(one, other, strict=True)])


def loss_of_output(image: Tensor, target: Tensor) -> Tensor:
    net = network()
    return distance(image, target) + distance(net(image), net(target))


def loss_of_layers(image: Tensor, target: Tensor) -> Tensor:
    """Of the layers first and second, with weight 3 and images that are normalised."""
    net = network()

    def features(x: Tensor) -> tuple[Tensor, Tensor]:
        first = net.first(((x + 1) / 2 - MEAN) / STD)
        return first, net.second(first)

    pairs = zip(features(image), features(target), strict=True)
    return distance(image, target) + sum(3 / 2 * distance(one, other) for one, other in pairs)


LOSSES: dict[str, tuple[Callable[[], Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "perceptual": (lambda: perceptual(network()), loss_of_output),
    "layers": (
        lambda: perceptual(network(), ["first", "second"], 3.0, mean=MEAN, std=STD),
        loss_of_layers,
    ),
}


def images(count: int, *, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", LOSSES)
def test_as_a_plain_function_of_torch(name: str) -> None:
    make, plain = LOSSES[name]
    image, target = images(3), images(3, seed=1)
    image.requires_grad_(True)
    value, expected = make()(image, target), plain(image, target)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value.sum(), image)
    (right,) = torch.autograd.grad(expected.sum(), image)
    torch.testing.assert_close(gradient, right)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perceptual") / "bundle"
    return export(
        seeded(BatchNormGenerator()),
        path,
        latent_shape=(12, 1, 1),
        prior=Normal(),
        losses={name: make() for name, (make, _) in LOSSES.items()},
        runtimes=("onnx", "torchscript"),
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_bundle_has_its_value_and_gradient(
    bundle: Path, runtime: str, name: str, batch: int
) -> None:
    Backend(runtime, "cpu").require()
    target = images(batch, seed=2)
    latent = torch.randn(batch, 12, 1, 1, generator=torch.Generator().manual_seed(batch))
    latent.requires_grad_(True)
    expected = LOSSES[name][1](seeded(BatchNormGenerator())(latent), target)
    (right,) = torch.autograd.grad(expected.sum(), latent)

    inverter = Inverter(bundle, runtime=runtime, batch_size=batch)
    value, gradient = inverter.evaluate(latent.detach().numpy(), target.numpy(), loss=name)
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient.reshape(right.shape), right.numpy(), atol=1e-5 * float(right.abs().max())
    )


def test_a_bundle_holds_the_weights_once(bundle: Path) -> None:
    weight = network().second.weight.detach()
    assert (bundle / "weights.bin").read_bytes().count(weight.numpy().tobytes()) == 1
    buffers = [buffer for _, buffer in torch.jit.load(bundle / "functions.pt").named_buffers()]
    same = [buffer for buffer in buffers if torch.equal(buffer, weight)]
    assert len({buffer.data_ptr() for buffer in same}) == 1


def test_batch_norm_is_folded_into_the_weights(bundle: Path) -> None:
    convolution, norm, _ = network().first
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = (convolution.weight * scale[:, None, None, None]).detach()
    buffers = [buffer for _, buffer in torch.jit.load(bundle / "functions.pt").named_buffers()]
    same = [buffer for buffer in buffers if buffer.shape == folded.shape]
    assert any(torch.allclose(buffer, folded) for buffer in same)


@pytest.mark.parametrize("script", [torch.jit.script, lambda net: torch.jit.trace(net, images(2))])
def test_a_torchscript_file_is_a_feature_network(
    tmp_path: Path, script: Callable[[nn.Module], torch.jit.ScriptModule]
) -> None:
    path = tmp_path / "features.pt"
    torch.jit.save(script(network()), str(path))
    image, target = images(2), images(2, seed=1)
    torch.testing.assert_close(perceptual(path)(image, target), loss_of_output(image, target))
    torch.testing.assert_close(
        perceptual(torch.jit.load(str(path)))(image, target), loss_of_output(image, target)
    )


def test_the_network_itself_stays_as_it_is() -> None:
    net = network().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    loss = perceptual(net)
    image, target = images(2).requires_grad_(True), images(2, seed=1)
    value = loss(image, target)
    value.sum().backward()
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        net.head.weight.zero_()  # of which the loss has a copy
    torch.testing.assert_close(loss(image, target), value)


def test_the_network_follows_the_precision_of_the_images() -> None:
    image, target = images(2), images(2, seed=1)
    loss = perceptual(network(), "second")
    value = loss(image.double(), target.double())
    assert value.dtype == torch.float64
    torch.testing.assert_close(value.float(), loss(image, target))


def test_zero_weight_leaves_the_pixels() -> None:
    image, target = images(2), images(2, seed=1)
    torch.testing.assert_close(
        perceptual(network(), weight=0.0)(image, target), distance(image, target)
    )


# Errors


class Noisy(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image + torch.rand_like(image)


class Tuple(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image, image


class Infinite(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image / 0.0


def test_layers_that_do_not_exist_are_refused_with_those_that_do() -> None:
    with pytest.raises(ExportError) as caught:
        perceptual(network(), ["first", "third"])
    assert str(caught.value) == (
        "the feature network has no layer 'third'; it has first, first.0, first.1, first.2, "
        "second, after, after.0, after.1, after.2, head, spare"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": []}, "layers must be names of submodules, got []"),
        ({"layers": 3}, "layers must be names of submodules, got 3"),
        ({"layers": ["first", "first"]}, "layer 'first' is given twice"),
        ({"weight": -1.0}, "weight must be at least 0, got -1"),
        ({"weight": float("nan")}, "weight must be a number, got nan"),
        ({"weight": "much"}, "weight must be a number, got 'much'"),
        ({"std": 0.0}, "std must be above 0, got 0.0"),
        ({"mean": ()}, "mean is empty"),
        ({"mean": (0.1, 0.2), "std": (1, 2, 3)}, "mean has 2 channels and std 3"),
        ({"mean": 0.5, "value_range": (1, 0)}, "value_range must be (lowest, highest)"),
        ({"features": 3}, "feature network must be a torch.nn.Module, got int"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=r"^[^\n]*$") as caught:
        perceptual(**{"features": network(), **arguments})
    assert message in str(caught.value)


def test_layers_of_torchscript_are_refused() -> None:
    with pytest.raises(ExportError, match="cannot be taken out of a TorchScript network"):
        perceptual(torch.jit.script(network()), "first")


def test_files_that_are_no_torchscript(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no file .*none\.pt: give a TorchScript file$"):
        perceptual(tmp_path / "none.pt")
    path = tmp_path / "state.pt"
    torch.save(network().state_dict(), path)
    with pytest.raises(ExportError, match=r"not a TorchScript file: .* the feature network's so"):
        perceptual(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ExportError, match=r"state\.pt is not a TorchScript file"):
        perceptual(str(path))


WRONG_NETWORKS: dict[str, tuple[Callable[[], Any], str]] = {
    "channels": (
        lambda: perceptual(nn.Conv2d(3, 4, 3)),
        "the feature network does not take images [B, 1, 8, 8]: Given groups=1",
    ),
    "image size": (
        lambda: perceptual(nn.Sequential(nn.Flatten(), nn.Linear(1 * 16 * 16, 4))),
        "the feature network does not take images [B, 1, 8, 8]: mat1 and mat2",
    ),
    "normalised channels": (
        lambda: perceptual(network(), mean=(0.5, 0.5, 0.5)),
        "mean and std are of 3 channels, the images have 1",
    ),
    "no tensor": (
        lambda: perceptual(Tuple()),
        "the output of the feature network must be a tensor, it is tuple",
    ),
    "no tensor in a layer": (
        lambda: perceptual(nn.Sequential(Tuple()), "0"),
        "the output of layer '0' of the feature network must be a tensor, it is tuple",
    ),
    "of no image": (
        lambda: perceptual(nn.Sequential(nn.Flatten(0), nn.AdaptiveAvgPool1d(4))),
        "the feature network does not take",
    ),
    "infinite": (lambda: perceptual(Infinite()), "must be finite floats: check its weights"),
    "noise": (lambda: perceptual(Noisy()), "differs for the same images"),
    "layer that does not run": (
        lambda: perceptual(network(), "spare"),
        "layer 'spare' of the feature network does not run",
    ),
}


@pytest.mark.parametrize("name", WRONG_NETWORKS)
def test_a_wrong_network_is_refused_before_tracing(tmp_path: Path, name: str) -> None:
    make, message = WRONG_NETWORKS[name]
    loss = make()
    lines: list[str] = []
    with pytest.raises(ExportError, match=r"^[^\n]*$") as caught:
        export(
            seeded(BatchNormGenerator()),
            tmp_path / "bundle",
            latent_shape=(12, 1, 1),
            prior=Normal(),
            value_range=(-1, 1),
            losses=("mse", loss),
            progress=lines.append,
        )
    assert str(caught.value).startswith("loss 'perceptual': ")
    assert message in str(caught.value)
    assert lines == []
    assert list(tmp_path.iterdir()) == []


def test_images_of_other_shapes_than_the_target() -> None:
    with pytest.raises(ExportError, match=r"of one shape \[B, C, H, W\], got \[2, 1, 8, 8\] and"):
        perceptual(network())(images(2), images(3))


def fails(image: Tensor, target: Tensor) -> Tensor:
    return image @ target[:, :, :3]


def constant(image: Tensor, target: Tensor) -> Tensor:
    return (image.detach() - target).abs().mean((1, 2, 3))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (fails, "loss 'fails' fails on images [B, 1, 8, 8]: RuntimeError: "),
        (constant, "loss 'constant' cannot be differentiated"),
        (lambda image, target: (image - target)[:, 0, 0], "[B], it returned [B, 8]: take"),
    ],
)
def test_losses_of_your_own_are_tried_before_tracing(
    tmp_path: Path, loss: Callable[[Tensor, Tensor], Tensor], message: str
) -> None:
    name = loss.__name__.strip("<>")
    lines: list[str] = []
    with pytest.raises(ExportError) as caught:
        export(
            seeded(BatchNormGenerator()),
            tmp_path / "bundle",
            latent_shape=(12, 1, 1),
            prior=Normal(),
            value_range=(-1, 1),
            losses={name: loss},
            progress=lines.append,
        )
    assert message in str(caught.value)
    assert lines == []


# The command line

FACTORIES = """
from torch import nn

def generator():
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))

def features():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    factories = tmp_path / "factories.py"
    factories.write_text(FACTORIES)
    path = str(tmp_path / "bundle")
    options = ["--latent-shape", "4", "--prior", "normal"]
    return ["export", f"{factories}:generator", "-o", path, *options]


def test_the_command_line_takes_a_factory_and_layers(command: list[str], tmp_path: Path) -> None:
    features = f"{tmp_path / 'factories.py'}:features"
    options = ["--loss", "perceptual", "--features", features, "--feature-layers", "0,1"]
    assert main([*command, *options]) == 0
    assert Bundle.open(tmp_path / "bundle").manifest.losses == ("perceptual",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "perceptual"], "--loss perceptual needs a network: give one with --features"),
        (["--features", "f.pt"], "--features and --feature-layers need --loss perceptual"),
        (["--loss", "perceptual", "--features", "f.pt"], "no file f.pt: give a TorchScript file\n"),
        (["--loss", "perceptual", "--features", "f"], "feature network 'f' must be"),
    ],
)
def test_the_command_line_refuses(
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert main([*command, *options]) != 0
    assert message in capsys.readouterr().err


def test_its_name_alone_is_no_loss(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"give pyinv\.export\.perceptual\(network\)"):
        export(nn.Identity(), tmp_path / "b", latent_shape=4, prior=Normal(), losses="perceptual")
