"""The papers' networks. Their descriptions need no PyTorch; creating them does."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyinv.errors import DependencyError, InputError
from pyinv.extras import install_command

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "GanModel", "get_model"]

ImageShape = tuple[int, int, int]


@dataclass(frozen=True)
class GanModel:
    """A generator and its discriminator.

    Args:
        name: name on the command line and in training configurations.
        source: the paper, and the table or section that describes the layers.
        value_range: the lowest and highest pixel value of the training images.
        image_shapes: the supported (C, H, W).
        options: additional settings with their defaults; ``width`` is the number of channels of the
            layer next to the image.
        latent_size: the paper's latent size.
        grows: whether it can be trained progressively from 4x4 pixels.
    """

    name: str
    source: str
    value_range: tuple[float, float]
    image_shapes: tuple[ImageShape, ...]
    options: tuple[tuple[str, int], ...] = ()
    latent_size: int = 100
    grows: bool = False

    def generator(
        self, latent_size: int | None = None, image_shape: ImageShape | None = None, **options: int
    ) -> nn.Module:
        """Create a generator: latent [B, d] -> image [B, C, H, W] in ``value_range``.

        Args:
            latent_size: d, by default the paper's.
            image_shape: one of ``image_shapes``, by default the first.
            options: values for any of ``options``.

        Raises:
            InputError: the shape or an option is not supported.
            DependencyError: PyTorch is not installed.
        """
        size = self.latent_size if latent_size is None else latent_size
        if size < 1:
            raise InputError(f"latent_size must be at least 1, got {size}; 100 is usual")
        return self._make(_NETWORKS[self.name][0], image_shape, options, latent_size=size)

    def discriminator(self, image_shape: ImageShape | None = None, **options: int) -> nn.Module:
        """Create a discriminator: image [B, C, H, W] -> logit [B], high for real images.

        Arguments and errors are as for ``generator``.
        """
        return self._make(_NETWORKS[self.name][1], image_shape, options)

    def check(self, image_shape: tuple[int, ...], **options: int) -> None:
        """Raise InputError if this model does not support the image shape or an option."""
        if image_shape not in self.image_shapes:
            raise InputError(
                f"model {self.name} makes images of {_shapes(self.image_shapes)}, got "
                f"{_shapes([image_shape])}; choose one of these (--image-size, --channels), or "
                "another model (--model)"
            )
        known = dict(self.options)
        for option, value in options.items():
            if option not in known:
                raise InputError(
                    f"model {self.name} has no option {option!r}; it has "
                    f"{', '.join(known) or 'none'}"
                )
            if value < 1:
                raise InputError(f"{option} must be at least 1, got {value}")

    def _make(
        self, name: str, image_shape: ImageShape | None, options: dict[str, int], **sizes: int
    ) -> nn.Module:
        shape = self.image_shapes[0] if image_shape is None else image_shape
        self.check(shape, **options)
        file, _, network = name.partition(".")
        try:
            module = importlib.import_module(f"pyinv.models.{file}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "torch":
                raise
            raise DependencyError(f"the models need PyTorch: {install_command('export')}") from None
        if len(self.image_shapes) > 1:  # otherwise the networks know it
            sizes |= {"channels": shape[0], "image_size": shape[1]}
        made: nn.Module = getattr(module, network)(**sizes, **{**dict(self.options), **options})
        return made


def get_model(name: str) -> GanModel:
    """Return the model of this name; raise InputError if there is none."""
    if name not in MODELS:
        raise InputError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    return MODELS[name]


def _shapes(shapes: Any) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


_PROGAN_SHAPES = tuple((channels, size, size) for size in (256, 128, 64, 32) for channels in (3, 1))
_DCGAN_SHAPES = ((3, 64, 64), (1, 64, 64), (3, 32, 32), (1, 32, 32))
_WIDTH = (("width", 64),)
_ALL = (
    GanModel("creswell", "Creswell & Bharath 2016, table 1", (0.0, 1.0), ((1, 28, 28),)),
    GanModel(
        "dcgan", "Radford et al. 2016, figure 1 and section 3", (-1.0, 1.0), _DCGAN_SHAPES, _WIDTH
    ),
    GanModel("egan", "Egan et al. 2018, section 4.1.2", (-1.0, 1.0), _DCGAN_SHAPES, _WIDTH),
    GanModel(
        "egan-pixel-shuffle", "Egan et al. 2018, section 4.1.3", (-1.0, 1.0), _DCGAN_SHAPES, _WIDTH
    ),
    GanModel(
        "progan",
        "Karras et al. 2018, table 2 and section 4; Bau et al. 2019, section 3.2",
        # The range of the training images; generated ones are not bounded to it.
        (-1.0, 1.0),
        _PROGAN_SHAPES,
        _WIDTH,
        latent_size=512,
        grows=True,
    ),
    GanModel("luo", "Luo et al. 2017, tables 3 and 4", (0.0, 1.0), _DCGAN_SHAPES, _WIDTH),
)
MODELS: dict[str, GanModel] = {model.name: model for model in _ALL}
"""All models, by name."""

# The classes of each model's generator and discriminator.
_NETWORKS = {
    "creswell": ("creswell.CreswellGenerator", "creswell.CreswellDiscriminator"),
    "dcgan": ("dcgan.DcganGenerator", "dcgan.DcganDiscriminator"),
    # The paper's list of layers starts at the second; the first is from PyTorch's example, which
    # the paper builds on.
    "egan": ("dcgan.DcganGenerator", "dcgan.DcganDiscriminator"),
    "egan-pixel-shuffle": ("egan.PixelShuffleGenerator", "dcgan.DcganDiscriminator"),
    "progan": ("progan.ProGanGenerator", "progan.ProGanDiscriminator"),
    "luo": ("luo.LuoGenerator", "luo.LuoDiscriminator"),
}
