"""Operators that ONNX has no form of, or no gradient of."""

from __future__ import annotations

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
from pyinv.export import export  # noqa: E402

LATENT = 12


class Applies(nn.Module):
    """Apply an operator to [B, 2, 8, 6], and mix what it gives."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = nn.Linear(LATENT, 96)
        self.operator = operator

    def forward(self, latent: Tensor) -> Tensor:
        y = self.operator(self.embed(latent).view(-1, 2, 8, 6))
        return torch.tanh(y.flatten(1) * torch.linspace(0.5, 1.5, y[0].numel()))


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.view(-1, 6, 16)[:, :4])[0]
        return y


class Filter(nn.Module):
    """A layer of a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.sin(torch.arange(48.0)).view(2, 2, 3, 2, 2)
        self.weight = nn.Parameter(torch.view_as_complex(weight))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        kept = torch.zeros(x.shape[0], 2, 8, 4, dtype=torch.complex64)
        kept[:, :, :3, :2] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :3, :2], self.weight)
        return torch.fft.irfft2(kept, s=(8, 6), norm="ortho")


def all_of(*outputs: Tensor) -> Tensor:
    return torch.cat([y.flatten(1) for y in outputs], 1)


def volume(x: Tensor) -> Tensor:
    return x.view(-1, 2, 4, 4, 3)


def average_pools(x: Tensor) -> Tensor:
    return all_of(
        functional.adaptive_avg_pool2d(x, (3, 4)),
        functional.adaptive_avg_pool1d(x.flatten(2), 7),
        functional.adaptive_avg_pool3d(volume(x), (2, 3, 2)),
        functional.avg_pool3d(volume(x), 2, 1, 1),
        functional.avg_pool3d(volume(x), (2, 2, 1), count_include_pad=False),
        functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        functional.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    )


def maximum_pools(x: Tensor) -> Tensor:
    return all_of(
        functional.adaptive_max_pool2d(x, (3, 4)),
        functional.adaptive_max_pool1d(x.flatten(2), 7),
        functional.max_pool3d(volume(x), 2, 2, (1, 1, 1)),
        functional.max_pool3d(volume(x), (1, 2, 2), 1, dilation=(1, 2, 1), ceil_mode=True),
        functional.max_pool2d(x, 3, 1, 1),
        functional.max_pool2d(x, 2, 1, 1, dilation=2),
    )


def resizes(x: Tensor) -> Tensor:
    resize = functional.interpolate
    return all_of(
        resize(x, size=(5, 9), mode="area"),
        resize(x.flatten(2), scale_factor=0.5, mode="area"),
        resize(x, size=(5, 4), mode="bilinear", antialias=True),
        resize(x, scale_factor=0.6, mode="bicubic", antialias=True),
        resize(x, size=(5, 9), mode="nearest-exact"),
        resize(x, scale_factor=(1.7, 0.6), mode="nearest-exact"),
        resize(x, scale_factor=1.5, mode="bicubic", antialias=True, align_corners=True),
    )


def pads(x: Tensor) -> Tensor:
    around = (1, 0, 2, 1, 1, 2)
    return all_of(
        functional.pad(volume(x), around, mode="replicate"),
        functional.pad(volume(x), around, mode="reflect"),
        functional.pad(x.flatten(2), (3, 1), mode="reflect"),
    )


def sampled(mode: str, *paddings: str) -> Callable[[Tensor], Tensor]:
    def sample(x: Tensor) -> Tensor:
        grid = 1.5 * torch.tanh(x.permute(0, 2, 3, 1))
        return all_of(
            *(
                functional.grid_sample(
                    x, grid, mode=mode, padding_mode=padding, align_corners=corners
                )
                for padding, corners in zip(paddings, (False, True, False), strict=False)
            )
        )

    return sample


def sampled_volume(x: Tensor) -> Tensor:
    theta = torch.eye(3, 4) + 0.2 * x.flatten(1)[:, :12].view(-1, 3, 4)
    grid = functional.affine_grid(theta, [x.shape[0], 2, 3, 2, 2], align_corners=True)
    return functional.grid_sample(volume(x), grid, padding_mode="reflection", align_corners=True)


def spectrum(x: Tensor) -> Tensor:
    spectrum = torch.fft.fft2(x)
    return all_of(
        spectrum.abs(),
        torch.fft.fft(x, dim=1).imag,
        torch.fft.ifft2(torch.fft.fftshift(spectrum * (1 + 2j), dim=(2, 3)).conj()).real,
        torch.fft.ihfft(x).real,
    )


def long_transforms(x: Tensor) -> Tensor:
    wave = functional.pad(x.flatten(1), (0, 24))  # 120 = 10 * 12 values
    spectrum = torch.fft.rfft(wave) / (1 + torch.arange(61.0))
    return all_of(torch.fft.irfft(spectrum, n=120), torch.fft.fft(torch.complex(wave, wave)).real)


def frames(x: Tensor) -> Tensor:
    """A vocoder's end, and its spectrogram."""
    window = torch.hann_window(8)
    size, angle = x.flatten(1)[:, :90].reshape(-1, 2, 5, 9).unbind(1)
    wave = torch.istft(torch.polar(size.exp(), angle), 8, hop_length=2, window=window)
    back = torch.stft(x.flatten(1), 8, hop_length=3, window=window, return_complex=True)
    return all_of(wave, back.abs())


def spline(x: Tensor) -> Tensor:
    """Values between a monotonic spline's knots, as flows compute them."""
    ends = x.softmax(-1).cumsum(-1)
    at = torch.sigmoid(x[..., :2])
    bins = torch.searchsorted(ends.contiguous(), at).clamp(max=5)
    return at * x.gather(-1, bins) + torch.bucketize(at, torch.tensor([0.2, 0.5]))


WEIGHT = torch.eye(6) + torch.arange(36.0).view(6, 6) / 40


def triangular(x: Tensor) -> Tensor:
    solve = torch.linalg.solve_triangular
    return all_of(
        solve(WEIGHT, x.transpose(2, 3), upper=True),
        solve(WEIGHT, x, upper=False, left=False, unitriangular=True),
    )


OPERATORS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "average pools": lambda: average_pools,
    "maximum pools": lambda: maximum_pools,
    "resizes": lambda: resizes,
    "pads": lambda: pads,
    "bilinear samples": lambda: sampled("bilinear", "zeros", "border", "reflection"),
    "nearest samples": lambda: sampled("nearest", "border", "reflection", "zeros"),
    "bicubic samples": lambda: sampled("bicubic", "reflection"),
    "samples of a volume": lambda: sampled_volume,
    "complex spectra": lambda: spectrum,
    "a filter in frequency": Filter,
    "long Fourier transforms": lambda: long_transforms,
    "short-time Fourier transforms": lambda: frames,
    "bins": lambda: spline,
    "triangular systems": lambda: triangular,
    "LSTM": lambda: Recurrent(nn.LSTM(16, 5, batch_first=True, bidirectional=True)),
    "GRU": lambda: Recurrent(nn.GRU(16, 5, batch_first=True)),
    "extremes": lambda: lambda x: torch.maximum(x, x.flip(-1)) + x.clamp(-0.3, 0.4),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_values_and_derivatives_equal_pytorchs(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    generator = Applies(OPERATORS[name]()).eval()
    runtimes = ("onnx", "torchscript")
    path = export(
        generator,
        tmp_path / "bundle",
        latent_shape=LATENT,
        prior=pyinv.Normal(),
        losses="mse",
        runtimes=runtimes,
        normal_equations=True,
    )
    latent = torch.randn(5, LATENT, generator=torch.Generator().manual_seed(1), requires_grad=True)
    image = generator(latent)
    target = torch.rand(image.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    loss = ((image - target) ** 2).mean(1)
    (gradient,) = torch.autograd.grad(loss.sum(), latent)
    for runtime in runtimes:
        inverter = pyinv.Inverter(path, runtime=runtime, threads=1)
        images = inverter.generate(latent.detach().numpy())
        np.testing.assert_allclose(images, image.detach().numpy(), atol=1e-5)
        found, slope = inverter.evaluate(latent.detach().numpy(), target.numpy())
        np.testing.assert_allclose(found, loss.detach().numpy(), rtol=1e-5)
        np.testing.assert_allclose(slope, gradient, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (
            lambda x: torch.fft.fft(x).pow(2).real,
            r"aten::pow \(at test_operators\.py:\d+\) of complex numbers.*imaginary parts",
        ),
        (
            lambda x: torch.fft.fft(functional.pad(x, (0, 2**12 - 9))).real,
            r"\(at test_operators\.py:\d+\): .*length 4093, .*pad to a length with small factors",
        ),
        (
            lambda x: torch.linalg.inv(torch.eye(6) + x[..., :6, :]),
            r"linalg_inv_ex \(at test_operators\.py:\d+\), .*runtimes='torchscript'",
        ),
    ],
)
def test_refused(tmp_path: Path, operator, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(
            Applies(operator),
            tmp_path / "bundle",
            latent_shape=LATENT,
            prior=pyinv.Normal(),
            normal_equations=False,
        )
