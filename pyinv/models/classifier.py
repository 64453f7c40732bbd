"""A small classifier, as a feature network where no pretrained one is available."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyinv.errors import InputError

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Image [B, C, H, W] -> class logits [B, K].

    With w the width, for images of 28 to 64 pixels:

    ====================================================== =====================
    layer                                                  output, at 32 pixels
    ====================================================== =====================
    ``layer1``: convolution 3x3, batch norm, ReLU          w x 32 x 32
    ``layer2``: convolution 3x3, stride 2, the same        2w x 16 x 16
    ``layer3``: convolution 3x3, the same                  2w x 16 x 16
    ``layer4``: convolution 3x3, stride 2, the same        4w x 8 x 8
    ``layer5``: convolution 3x3, the same                  4w x 8 x 8
    ``head``: mean over pixels, dense layer                K
    ====================================================== =====================

    It uses strides instead of pooling, so that the whole network can be exported with its gradient.
    Pass the layers' names to ``pyinv.export.perceptual``.

    Args:
        channels: C.
        classes: the names of the K classes, in the order of the logits.
        width: w.

    Raises:
        InputError: fewer than two classes, a duplicate class, or ``channels`` or ``width`` below 1.
    """

    LAYERS = ("layer1", "layer2", "layer3", "layer4", "layer5")

    def __init__(self, channels: int, classes: Sequence[str], width: int = 16) -> None:
        super().__init__()
        self.classes = tuple(classes)
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise InputError(
                f"classes must be at least two names, each once, got {list(self.classes)}"
            )
        if channels < 1 or width < 1:
            raise InputError(f"channels and width must be at least 1, got {channels} and {width}")
        widths = (channels, width, 2 * width, 2 * width, 4 * width, 4 * width)
        strides = (1, 2, 1, 2, 1)
        for name, (before, after), stride in zip(
            self.LAYERS, pairwise(widths), strides, strict=True
        ):
            self.add_module(
                name,
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ),
            )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, len(self.classes))
        )

    def forward(self, image: Tensor) -> Tensor:
        for name in self.LAYERS:
            image = self.get_submodule(name)(image)
        logits: Tensor = self.head(image)
        return logits
