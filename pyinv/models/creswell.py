"""Creswell & Bharath's networks for 28x28 images: table 1 of "Inverting the generator of a GAN"."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["CreswellDiscriminator", "CreswellGenerator"]


class CreswellGenerator(nn.Module):
    """Latent [B, d] -> image [B, 1, 28, 28] in [0, 1].

    ========================================================== ====================
    layer                                                      output
    ========================================================== ====================
    fully connected, batch norm, ReLU                          1024
    fully connected, batch norm, ReLU                          6272 = 128 x 7 x 7
    up-convolution 5x5, stride 2, batch norm, ReLU             64 x 14 x 14
    up-convolution 5x5, stride 2, sigmoid                      1 x 28 x 28
    ========================================================== ====================

    Source: Creswell & Bharath 2016 (arXiv:1611.05644), table 1, with these differences:

    - The table's generator down-samples and its discriminator up-samples. 7x7 must become 28x28,
      and 28x28 must become 6272 = 128x7x7 numbers, so the two words are assumed to be swapped.
      "conv + up-sample" is one convolution with fractional stride, as in the MNIST networks of
      InfoGAN (Chen et al. 2016, which the paper cites), whose layers are the same except for the
      kernel.
    - The table ends the generator with batch norm and ReLU. The paper's inversion loss is binary
      cross-entropy, which needs pixels in [0, 1], so the last activation is a sigmoid. As in
      Radford et al. 2016, there is no batch norm before it: it would fix the brightness of a batch.

    Args:
        latent_size: d.
    """

    def __init__(self, latent_size: int = 100) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent_size, 1024, bias=False),
            nn.BatchNorm1d(1024),
            nn.ReLU(),
            nn.Linear(1024, 128 * 7 * 7, bias=False),
            nn.BatchNorm1d(128 * 7 * 7),
            nn.ReLU(),
            nn.Unflatten(1, (128, 7, 7)),
            nn.ConvTranspose2d(128, 64, 5, stride=2, padding=2, output_padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 1, 5, stride=2, padding=2, output_padding=1),
            nn.Sigmoid(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image


class CreswellDiscriminator(nn.Module):
    """Image [B, 1, 28, 28] in [0, 1] -> logit [B].

    ========================================================== ====================
    layer                                                      output
    ========================================================== ====================
    convolution 5x5, stride 2, batch norm, leaky ReLU (0.2)    64 x 14 x 14
    convolution 5x5, stride 2, batch norm, leaky ReLU (0.2)    128 x 7 x 7 = 6272
    fully connected, batch norm, leaky ReLU (0.2)              1024
    fully connected                                            1
    ========================================================== ====================

    Source: Creswell & Bharath 2016, table 1, with these differences:

    - "Up-sample" is stride 2, for the reason given for the generator.
    - The fully connected layer has a batch norm, as in InfoGAN. Without it, the first steps at the
      paper's learning rate of 0.002 move the logits by tens, and the generator gets almost no
      gradient for a good part of the paper's 500 iterations.
    - There is no last leaky ReLU. The logit goes to the sigmoid of the GAN's loss, which is part of
      that loss here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 64, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(128 * 7 * 7, 1024, bias=False),
            nn.BatchNorm1d(1024),
            nn.LeakyReLU(0.2),
            nn.Linear(1024, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        logit: Tensor = self.layers(image)
        return logit.squeeze(1)
