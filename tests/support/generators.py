"""Small, seeded generators of every architecture that export must handle."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "BatchNormGenerator",
    "ConditionalGenerator",
    "Dcgan",
    "Mlp",
    "PixelShuffleGenerator",
    "UpsampleGenerator",
    "VaeDecoder",
    "seeded",
]


def seeded(generator: nn.Module, *, seed: int = 0) -> nn.Module:
    """Fill a generator with reproducible weights that look trained, and put it in eval mode.

    Modules are visited in the order of their definition, so the module defined last is the last
    layer. Weights preserve the signal's scale from layer to layer. Batch norm gets statistics and
    affine weights that differ by channel, so that a wrong folding is noticed.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=random))

    last: nn.Module | None = None
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.ConvTranspose2d):
                area = module.weight.shape[2] * module.weight.shape[3]
                overlap = area / (module.stride[0] * module.stride[1])
                normal(module.weight, 0.0, (2.0 / (module.in_channels * overlap)) ** 0.5)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                normal(module.weight, 0.0, (2.0 / module.weight[0].numel()) ** 0.5)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                normal(module.weight, 1.0, 0.2)
                normal(module.bias, 0.0, 0.2)
                if module.running_mean is not None and module.running_var is not None:
                    normal(module.running_mean, 0.0, 0.3)
                    module.running_var.copy_(
                        0.5 + torch.rand(module.running_var.shape, generator=random)
                    )
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d | nn.Linear):
                last = module
            if getattr(module, "bias", None) is not None and not isinstance(
                module, nn.modules.batchnorm._BatchNorm
            ):
                normal(module.bias, 0.0, 0.1)
        # Few pixels saturate, because float32 has little precision for the bce of saturated pixels.
        if last is not None:
            last.weight.mul_(0.3)
    return generator.eval()


class Dcgan(nn.Module):
    """DCGAN (Radford et al. 2016) for 64x64 images; latent [100, 1, 1] or [100]."""

    def __init__(self, *, latent: int = 100, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        widths = [latent, 8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = []
        for i in range(4):
            stride, padding = (1, 0) if i == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(widths[i], widths[i + 1], 4, stride, padding, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent.view(latent.shape[0], -1, 1, 1))


class PixelShuffleGenerator(nn.Module):
    """A dense layer, then convolutions with pixel shuffle; 16x16."""

    def __init__(self, *, latent: int = 32, width: int = 24, channels: int = 3) -> None:
        super().__init__()
        self.width = width
        self.dense = nn.Linear(latent, width * 16)
        self.layers = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 4 * channels, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(self.dense(latent).view(-1, self.width, 4, 4))


class UpsampleGenerator(nn.Module):
    """Upsampling followed by convolution, nearest and bilinear, with a skip connection; 32x32."""

    def __init__(self, *, latent: int = 48, width: int = 16, channels: int = 3) -> None:
        super().__init__()
        self.width = width
        self.dense = nn.Linear(latent, width * 64)
        self.first = nn.Sequential(nn.BatchNorm2d(width), nn.Upsample(scale_factor=2))
        self.middle = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, 0.8), nn.LeakyReLU(0.2)
        )
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.first(self.dense(latent).view(latent.shape[0], self.width, 8, 8))
        x = x + self.middle(x)
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.tanh(self.last(x))


class Mlp(nn.Module):
    """Dense layers with batch norm only, reshaped to a 1x28x28 image in [0, 1]."""

    def __init__(self, *, latent: int = 20, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 2 * width),
            nn.BatchNorm1d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Linear(2 * width, 784),
            nn.Sigmoid(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent).view(latent.size(0), 1, 28, 28)


class VaeDecoder(nn.Module):
    """A VAE's decoder: dense, unflatten, transposed convolutions, SiLU and group norm; 28x28."""

    def __init__(self, *, latent: int = 16, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent, 4 * width),
            nn.ELU(),
            nn.Linear(4 * width, 2 * width * 49),
            nn.Unflatten(1, (2 * width, 7, 7)),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1),
            nn.ELU(),
            nn.ConvTranspose2d(width, 1, 3, stride=2, padding=1, output_padding=1),
            nn.Sigmoid(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)


class BatchNormGenerator(nn.Module):
    """The smallest DCGAN: 12 latents, 1x8x8 images, one batch norm before and one after a ReLU."""

    def __init__(self, *, latent: int = 12, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent, width, 4, 1, 0, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            # Follows a ReLU, so it cannot be folded into a layer.
            nn.BatchNorm2d(width),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)


class LabelledGenerator(nn.Module):
    """A generator of (latent, label, scale): a class label of 5 and a number [B, 1]; 1x4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6)
        self.layers = nn.Sequential(
            nn.Linear(12, 24),
            nn.LeakyReLU(),
            nn.Linear(24, 16),
            nn.Unflatten(1, (1, 4, 4)),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor, label: Tensor, scale: Tensor) -> Tensor:
        return self.layers(torch.cat([latent * scale, self.table(label)], dim=1))


class ConditionalGenerator(nn.Module):
    """A generator of (latent, condition) that joins the outputs of two dense layers; 1x8x8."""

    def __init__(self, *, latent: int = 10, condition: int = 4, width: int = 8) -> None:
        super().__init__()
        self.from_latent = nn.Linear(latent, width * 8)
        self.from_condition = nn.Linear(condition, width * 8)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (width, 4, 4)),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        return self.layers(
            torch.cat([self.from_latent(latent), self.from_condition(condition)], dim=1)
        )
