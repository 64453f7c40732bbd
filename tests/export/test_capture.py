"""Capture: forward code that generators are written in, and what is said of code that cannot be."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import pyinv  # noqa: E402
from pyinv.errors import ExportError  # noqa: E402
from pyinv.export import export, load_factory  # noqa: E402

LATENT = 16


class Body(nn.Module):
    """A generator of [B, 2, 4, 4] images around a body that maps [B, 2, 4, 4] to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(LATENT, 32)
        self.last = nn.Conv2d(2, 2, 1)
        self.register_buffer("start", torch.ones(1, 2, 4, 4))
        self.register_buffer("one", torch.tensor(1.0))

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, latent: Tensor) -> Tensor:
        x = self.body(self.embed(latent).view(-1, 2, 4, 4))
        return torch.tanh(self.last(x))


class LinearOnTokens(Body):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.mix(x.reshape(-1, 4, 8)).view(x.shape)


class Attention(Body):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def body(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(-1, 4, 8)).chunk(3, dim=-1)
        return functional.scaled_dot_product_attention(q, k, v).reshape(x.shape)


class Transformer(Body):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, 4, 8)).reshape(x.shape)


class GroupNormOfChannelsLast(Body):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 2)

    def body(self, x: Tensor) -> Tensor:
        return self.norm(x.to(memory_format=torch.channels_last))


class CircularPadding(Body):
    def body(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (1, 2, 0, 1), mode="circular")
        return padded[..., 1:, 2:-1] + x


class AssignsSlices(Body):
    def body(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        y[:, ::2] = 2 * x[:, ::2]
        y[:, 1::2] = x[:, 1::2]
        y[:, :, 1:3] = y[:, :, 1:3] + 1
        y[:, :, :, 1::2] *= 3
        y[:, 0, 1, -1] = 5.0
        return y


class AddsInPlace(Body):
    def body(self, x: Tensor) -> Tensor:
        y = self.start.repeat(x.shape[0], 1, 1, 1)
        y += x
        return y.mul_(2)


class CountsCalls(Body):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def body(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class NumbersOutOfConstants(Body):
    def body(self, x: Tensor) -> Tensor:
        if self.one > 0.5:
            x = x * float(self.last.weight.detach().exp().mean())
        return x + self.start.mean().item()


class StraightThrough(Body):
    def body(self, x: Tensor) -> Tensor:
        x = 3 * torch.tanh(x)
        return x + (x.round() - x).detach()


class PartWithoutGradient(Body):
    def body(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(4 * x).mean((2, 3), keepdim=True)
        return gate * x


class LeakyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return functional.leaky_relu(x, 0.2)

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(ctx.saved_tensors[0] > 0, gradient, 0.2 * gradient)


apply_leaky = LeakyFunction.apply


class CallsBoundFunction(Body):
    def body(self, x: Tensor) -> Tensor:
        return x + apply_leaky(x)


@torch.jit.script
def snake(x: Tensor) -> Tensor:
    shape = x.shape
    x = x.reshape(shape[0], shape[1], -1)
    return (x + torch.sin(x).pow(2)).reshape(shape)


class CallsScriptedFunction(Body):
    def body(self, x: Tensor) -> Tensor:
        return snake(x)


class WritesToClone(Body):
    def body(self, x: Tensor) -> Tensor:
        y = self.start.clone()
        y = y + torch.zeros_like(self.start)
        z = torch.zeros_like(self.start).repeat(x.shape[0], 1, 1, 1)
        z += x
        return y + z


class CallsFunction(Body):
    def body(self, x: Tensor) -> Tensor:
        return LeakyFunction.apply(x)


class NamesGpu(Body):
    def body(self, x: Tensor) -> Tensor:
        shift = torch.zeros(1, device="cuda") + torch.ones(1).to("cuda:0")
        x = x.type("torch.cuda.FloatTensor")
        return x + shift.cuda() + torch.full((1,), 0.5, device=torch.device("cuda"))


class CompiledPart(Body):
    def __init__(self) -> None:
        super().__init__()
        self.part = torch.compile(nn.Conv2d(2, 2, 3, padding=1))

    def body(self, x: Tensor) -> Tensor:
        return self.part(x)


class NormsByGroups(Body):
    """Group norm without weights, as batch norm of one image."""

    def body(self, x: Tensor) -> Tensor:
        y = functional.batch_norm(x.reshape(1, x.shape[0], -1), None, None, training=True)
        z = functional.batch_norm(x.reshape(1, 2 * x.shape[0], -1), None, None, training=True)
        return y.view(x.shape) + z.view(x.shape)


class ModulatedConvolution(Body):
    """StyleGAN2's: weights per target as one convolution with a group per target."""

    up = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(1, 3, 2, 3, 3))
        self.style = nn.Linear(32, 2)
        self.rgb = nn.Conv2d(3, 2, 1)

    def weights(self, x: Tensor) -> Tensor:
        style = (1 + self.style(x.flatten(1))).view(-1, 1, 2, 1, 1)
        weight = 0.5 * self.weight * style
        demodulation = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
        return weight * demodulation.view(-1, 3, 1, 1, 1)

    def body(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        weight, x = self.weights(x), x.reshape(1, b * 2, 4, 4)
        if self.up:
            weight = weight.transpose(1, 2).reshape(b * 2, 3, 3, 3)
            x = functional.conv_transpose2d(x, weight, stride=2, padding=1, groups=b)
            return self.rgb(functional.avg_pool2d(x.view(b, 3, 7, 7), 2, padding=1))
        x = functional.conv2d(x, weight.reshape(b * 3, 2, 3, 3), padding=1, groups=b)
        return self.rgb(x.view(b, 3, 4, 4))


class ModulatedWithBias(ModulatedConvolution):
    """A bias per channel, an integer factor, and a factor per target alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("two", torch.tensor(2))
        self.bias = nn.Parameter(torch.randn(3))

    def body(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        gain = (1 + self.style(x.flatten(1))[:, :1]).view(-1, 1, 1, 1, 1)
        weight = (self.weight * gain * self.two).reshape(b * 3, 2, 3, 3)
        x = x.reshape(1, b * 2, 4, 4)
        x = functional.conv2d(x, weight, self.bias.repeat(b), padding=1, groups=b)
        return self.rgb(x.view(b, 3, 4, 4))


class ModulatedUpsampling(ModulatedConvolution):
    up = True


class MixedKernels(ModulatedConvolution):
    """Weights per target that are no shared weights with factors, as GigaGAN's."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Parameter(0.3 * torch.randn(4, 3, 2, 3, 3))
        self.choose = nn.Linear(32, 4)

    def weights(self, x: Tensor) -> Tensor:
        return torch.einsum("bn,noihw->boihw", self.choose(x.flatten(1)).softmax(1), self.kernels)


class MixedUpsampling(MixedKernels):
    up = True


class OneByOne(Body):
    """torch.vmap of a function of one latent, which computes transmittances like a NeRF."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.rand(16))

    def of_one(self, x: Tensor) -> Tensor:
        passed = torch.cumprod(torch.sigmoid(self.places[:, None] * x.flatten()), dim=-1)
        passed = passed.roll(1, -1)
        passed[..., 0] = 1.0
        return (passed * x.flatten()).sum(0).view(x.shape)

    def body(self, x: Tensor) -> Tensor:
        return torch.vmap(self.of_one)(x)


class Products(Body):
    def body(self, x: Tensor) -> Tensor:
        zero = x * torch.tensor([0.0, 1.0, 1.0, 1.0])
        return x * x.prod(-1, keepdim=True) + zero.cumprod(2) + x.prod(1)[:, None]


class NamesAnArgumentMod(Body):
    """torch.fx calls modules through a function that has such an argument."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor, mod: Tensor) -> Tensor:
            return x * mod

    def __init__(self) -> None:
        super().__init__()
        self.scaled = self.Scaled()

    def body(self, x: Tensor) -> Tensor:
        return self.scaled(x, mod=x.mean((2, 3), keepdim=True))


CASES: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        LinearOnTokens,
        Attention,
        Transformer,
        GroupNormOfChannelsLast,
        CircularPadding,
        AssignsSlices,
        AddsInPlace,
        CountsCalls,
        NumbersOutOfConstants,
        StraightThrough,
        PartWithoutGradient,
        CallsFunction,
        CallsBoundFunction,
        CallsScriptedFunction,
        WritesToClone,
        CompiledPart,
        NormsByGroups,
        ModulatedConvolution,
        ModulatedUpsampling,
        ModulatedWithBias,
        MixedKernels,
        MixedUpsampling,
        OneByOne,
        Products,
        NamesAnArgumentMod,
    )
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def exported(generator: nn.Module, path: Path, **options: object) -> pyinv.Inverter:
    given = {"latent_shape": LATENT, "prior": pyinv.Normal(), "losses": "mse", **options}
    return pyinv.Inverter(export(generator, path, **given), threads=1)


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_pytorchs(tmp_path: Path, name: str, runtime: str) -> None:
    generator = seeded(CASES[name])
    inverter = exported(generator, tmp_path / "bundle", runtimes=runtime)
    assert inverter.manifest.has_normal_equations("mse")
    latent = torch.randn(5, LATENT, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.compiler.set_stance("force_eager"):
        image = generator(latent)
    target = torch.rand(image.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    loss = ((image - target) ** 2).mean((1, 2, 3))
    (gradient,) = torch.autograd.grad(loss.sum(), latent)
    images = inverter.generate(latent.detach().numpy())
    np.testing.assert_allclose(images, image.detach().numpy(), atol=2e-5)
    found, slope = inverter.evaluate(latent.detach().numpy(), target.numpy())
    np.testing.assert_allclose(found, loss.detach().numpy(), rtol=1e-4)
    np.testing.assert_allclose(slope, gradient.numpy(), atol=2e-5 * float(gradient.abs().max()))


def test_devices_in_forward_are_ignored(tmp_path: Path) -> None:
    inverter = exported(seeded(NamesGpu), tmp_path / "bundle", normal_equations=False)
    plain = seeded(Body)
    latents = inverter.sample(3)
    x = plain.embed(torch.from_numpy(latents)).view(-1, 2, 4, 4) + 1.5
    expected = torch.tanh(plain.last(x)).detach().numpy()
    np.testing.assert_allclose(inverter.generate(latents), expected, atol=1e-5)


class Half(Body):
    def body(self, x: Tensor) -> Tensor:
        weight = self.last.weight.half()
        return functional.conv2d(x.half(), weight).to(torch.bfloat16).float()


class Autocast(Body):
    def forward(self, latent: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(latent).float()


@pytest.mark.parametrize("kind", [Half, Autocast])
def test_reduced_precision_in_forward_becomes_float32(tmp_path: Path, kind: type) -> None:
    with pytest.warns(UserWarning, match="computes in float32"):
        inverter = exported(seeded(kind), tmp_path / "bundle", normal_equations=False)
    plain = seeded(Body)
    latents = inverter.sample(3)
    x = plain.embed(torch.from_numpy(latents)).view(-1, 2, 4, 4)
    if kind is Half:
        x = functional.conv2d(x, plain.last.weight)
    expected = torch.tanh(plain.last(x)).detach().numpy()
    np.testing.assert_allclose(inverter.generate(latents), expected, atol=1e-5)


def test_a_module_under_torch_compile(tmp_path: Path) -> None:
    inverter = exported(torch.compile(seeded(Body)), tmp_path / "bundle", normal_equations=False)
    assert inverter.manifest.name == "Body"


def test_modulated_convolutions_become_plain_ones(tmp_path: Path) -> None:
    import onnx

    exported(seeded(ModulatedConvolution), tmp_path / "bundle", normal_equations=False)
    graph = onnx.load(tmp_path / "bundle" / "forward.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    # The demodulation is a product of matrices: no weights per target are ever made.
    assert "MatMul" not in kinds
    assert max(len(v.type.tensor_type.shape.dim) for v in graph.value_info) <= 4


class NoGradient(Body):
    @torch.no_grad()
    def forward(self, latent: Tensor) -> Tensor:
        return super().forward(latent)


class WritesToBuffer(Body):
    def body(self, x: Tensor) -> Tensor:
        self.start.copy_(x.mean(0, keepdim=True))
        return x + self.start.mean()


class FixesTheBatch(Body):
    def body(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), 2, 4, 4)


class WrongFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class CallsWrongFunction(Body):
    def body(self, x: Tensor) -> Tensor:
        return WrongFunction.apply(x)


class DecidesByValue(Body):
    def body(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


class MeanOfTheBatch(Body):
    def body(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class DecidesByBatch(Body):
    def body(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 32 else x


class DecidesHowToStore(Body):
    def body(self, x: Tensor) -> Tensor:
        return x.contiguous() if x.shape[0] >= 64 else x


class LoopsOverLatents(Body):
    def body(self, x: Tensor) -> Tensor:
        return torch.stack([one * self.one for one in x])


class LoopsByNumber(Body):
    def body(self, x: Tensor) -> Tensor:
        return torch.cat([x[i : i + 1].square() for i in range(x.shape[0])])


class WritesToData(Body):
    def body(self, x: Tensor) -> Tensor:
        x.data[:, 0] = 0
        return x


class ReturnsSparse(Body):
    def forward(self, latent: Tensor) -> Tensor:
        return super().forward(latent).to_sparse()


class RoundsAll(Body):
    def forward(self, latent: Tensor) -> Tensor:
        return super().forward(latent).round()


class RandomConstant(Body):
    def body(self, x: Tensor) -> Tensor:
        return x + 1e-7 * torch.randn_like(self.start)


REFUSED = {
    "no gradient": (NoGradient, r"no gradient with respect to the latent: .*torch\.no_grad"),
    "a write to a buffer": (WritesToBuffer, r"changes one of its own tensors.*clone\(\)"),
    "a fixed batch": (FixesTheBatch, r"number of latents.*\(at test_capture\.py:\d+\).*x\.shape"),
    "another backward": (CallsWrongFunction, r"WrongFunction may not be the derivative"),
    "targets that depend on each other": (MeanOfTheBatch, "for a latent in a smaller batch"),
    "a decision": (DecidesByValue, r"\(at test_capture\.py:\d+\)"),
    "a decision by the batch": (
        DecidesByBatch,
        r"decides by the number of latents \(at test_capture\.py:\d+\)",
    ),
    "a loop over latents": (
        LoopsOverLatents,
        r"loops over the latents of a batch \(at test_capture\.py:\d+\): .*\[B, ",
    ),
    "a loop by number": (LoopsByNumber, r"loops over the latents of a batch"),
    "a write to .data": (WritesToData, r"detached tensor \(at test_capture\.py:\d+\): write y ="),
    "a sparse result": (
        ReturnsSparse,
        r"must return a dense tensor, it returned torch\.sparse_coo",
    ),
    "a random constant": (RandomConstant, r"draws random numbers with .*randn_like"),
    "a lazy layer": (
        lambda: nn.Sequential(nn.LazyLinear(32), nn.Unflatten(1, (2, 4, 4))),
        r"lazy layer.*call it once",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(tmp_path: Path, what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(ExportError, match=message) as raised:
        exported(seeded(make), tmp_path / "bundle", normal_equations=False)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "bundle").exists()


def test_a_generator_that_fails_for_a_single_latent(tmp_path: Path) -> None:
    class Squeezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(LATENT, 32), nn.Unflatten(1, (2, 4, 4)), nn.Tanh())

        def forward(self, latent: Tensor) -> Tensor:
            return self.net(latent.squeeze())

    with pytest.raises(ExportError, match="fails in PyTorch at batch 1"):
        exported(Squeezes(), tmp_path / "bundle", latent_shape=(LATENT, 1, 1))


def test_a_sigmoid_with_another_range_is_warned_of(tmp_path: Path) -> None:
    decoder = nn.Sequential(nn.Linear(LATENT, 32), nn.Unflatten(1, (2, 4, 4)), nn.Sigmoid())
    options = {"normal_equations": False}
    with pytest.warns(UserWarning, match=r"ends in sigmoid with values in \[0, 1\], .*\(-1, 1\)"):
        exported(decoder, tmp_path / "wrong", value_range=(-1, 1), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported(decoder, tmp_path / "right", value_range=(0, 1), **options)


def test_a_gradient_of_0_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="gradient of the generator's images is 0 at all of 64"):
        exported(seeded(RoundsAll), tmp_path / "bundle", normal_equations=False)


def test_a_relative_bundle_stays_open_in_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inverter = exported(seeded(Body), Path("bundle"), normal_equations=False)
    os.chdir("/")
    assert inverter.generate(inverter.sample(1)).shape == (1, 2, 4, 4)


def test_the_whole_cause_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    net = nn.Linear(2, 3)\n"
        "    net.load_state_dict(nn.DataParallel(nn.Linear(2, 3)).state_dict())\n"
    )
    with pytest.raises(ExportError, match=r"loading state_dict for Linear: Missing key.*weight"):
        load_factory(f"{tmp_path}/keys.py:make")
    (tmp_path / "script.py").write_text("import sys\nsys.exit('usage: script.py')\n")
    with pytest.raises(ExportError, match=r"cannot be run: SystemExit: usage: script\.py"):
        load_factory(f"{tmp_path}/script.py:make")


class DrawsNoise(Body):
    """Normal noise per target in three ways, as lightweight-gan and pi-GAN draw it."""

    def body(self, x: Tensor) -> Tensor:
        x = x + 0.1 * torch.randn(x.shape[0], 1, 4, 4)
        x = x + 0.2 * torch.randn_like(x[:, :1])
        return x + torch.empty(x.shape[0], 2, 1, 1).normal_(0.5, 2.0)


class DrawsByOtherNames(Body):
    """The noise of DrawsNoise, drawn by other functions."""

    def body(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = x + 0.1 * torch.normal(torch.zeros(batch, 1, 4, 4), 1.0)
        x = x + 0.2 * torch.distributions.Normal(torch.zeros(batch, 1, 4, 4), 1.0).rsample()
        return x + nn.init.normal_(x.new_empty(batch, 2, 1, 1), 0.5, std=2.0)


class DropsOut(Body):
    def body(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x + 0.1 * torch.randn_like(x), training=True)


class DrawsUniformNoise(Body):
    def body(self, x: Tensor) -> Tensor:
        return x + torch.rand(1, 2, 4, 4).mul_(0.5) + torch.rand_like(x)


class DrawsPerTarget(Body):
    def body(self, x: Tensor) -> Tensor:
        return x + torch.stack([torch.randn(2, 4, 4) for _ in range(len(x))])


def test_noise_that_is_drawn_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"noise='freeze' .*noise='latent'"):
        exported(seeded(DrawsNoise), tmp_path / "bundle")


@pytest.mark.parametrize("kind", [DrawsNoise, DrawsByOtherNames, DrawsUniformNoise])
@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_frozen_noise_is_the_same_for_all_targets(tmp_path: Path, kind: type, runtime: str) -> None:
    options = {"noise": "freeze", "runtimes": runtime}
    inverter = exported(seeded(kind), tmp_path / "one", noise_seed=1, **options)
    other = exported(seeded(kind), tmp_path / "two", noise_seed=2, **options)
    latents = np.repeat(inverter.sample(1), 3, axis=0)
    images = inverter.generate(latents)
    np.testing.assert_allclose(images[1:], images[:-1], atol=1e-6)
    assert np.abs(images - other.generate(latents)).max() > 1e-3
    assert np.abs(images - exported(seeded(Body), tmp_path / "no").generate(latents)).max() > 1e-3


@pytest.mark.parametrize("kind", [DrawsNoise, DrawsByOtherNames])
@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_noise_as_a_part_of_the_latent(tmp_path: Path, runtime: str, kind: type) -> None:
    inverter = exported(
        seeded(kind),
        tmp_path / "bundle",
        noise="latent",
        prior=pyinv.Normal(1.0, 2.0),
        runtimes=runtime,
    )
    assert inverter.manifest.latent_shape == (LATENT + 16 + 16 + 2,)
    plain = seeded(Body)
    rows = torch.from_numpy(inverter.sample(3))
    noise = (rows[:, LATENT:] - 1) / 2
    x = plain.embed(rows[:, :LATENT]).view(-1, 2, 4, 4)
    x = x + 0.1 * noise[:, :16].view(-1, 1, 4, 4) + 0.2 * noise[:, 16:32].view(-1, 1, 4, 4)
    x = x + 0.5 + 2 * noise[:, 32:].view(-1, 2, 1, 1)
    expected = torch.tanh(plain.last(x)).detach().numpy()
    np.testing.assert_allclose(inverter.generate(rows.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Body, {"noise": "freeze"}, "draws none: leave noise out"),
        (DrawsNoise, {"noise": "drop"}, "noise must be 'freeze' or 'latent', got 'drop'"),
        (DrawsNoise, {"noise": "latent", "prior": pyinv.Uniform()}, "needs a normal prior"),
        (DrawsUniformNoise, {"noise": "latent"}, "uniform noise or shares it"),
        (DropsOut, {"noise": "freeze"}, "noise fixes draws by torch.randn"),
        (DrawsPerTarget, {"noise": "freeze"}, "draw it for the whole batch"),
        (DrawsNoise, {"noise": "freeze", "noise_seed": -1}, "noise_seed must be a whole number"),
        (DrawsNoise, {"noise": "freeze", "noise_seed": "1"}, "noise_seed must be a whole number"),
    ],
)
def test_noise_that_cannot_be_handled(tmp_path: Path, make, options, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        exported(seeded(make), tmp_path / "bundle", **options)


def test_a_decision_by_the_batch_that_changes_nothing_is_kept(tmp_path: Path) -> None:
    exported(seeded(DecidesHowToStore), tmp_path / "bundle", normal_equations=False)
