"""The encoders of a reproduction: given bundles, or encoders trained for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pyinv.bundle import Bundle, Manifest
from pyinv.datasets import to_range
from pyinv.errors import BundleError, DependencyError, InputError
from pyinv.extras import install_command
from pyinv.images import to_uint8
from pyinv.inverter import Inverter
from pyinv.models import get_model
from pyinv.papers.generators import Generator, find_bundles
from pyinv.papers.pixels import FloatArray, Pixels
from pyinv.papers.request import Request
from pyinv.training.encoder_configurations import get_encoder_configuration

__all__ = [
    "Encoder",
    "match_encoders",
    "open_encoders",
    "to_pixels",
    "train_encoders",
    "why_not_trained",
]

OWN_GENERATOR = ("bigan",)
"""The methods that train a generator along with the encoder."""
CHUNK = 1024  # images converted to float at a time, to bound memory
PROBES = 4
SAME = 1e-3  # of the value range's span: two exports of one generator differ by rounding


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder and the generator that its latents are for.

    Args:
        method: its training method, see ``pyinv.training``.
        inverter: the inverter of the bundle that has both.
    """

    method: str
    inverter: Inverter

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self.inverter.bundle.path

    @property
    def description(self) -> str:
        """How it was trained, in words, as far as its bundle says."""
        origin = self.inverter.manifest.origin
        settings = origin.get("configuration", {})
        text = f"{settings.get('method')}"
        if "name" in settings:
            text += f", configuration {settings['name']}"
        if isinstance(origin.get("iterations"), int):
            text += f", {origin['iterations']:,} iterations"
        if isinstance(settings.get("batch_size"), int):
            text += f" of {settings['batch_size']} images"
        if settings.get("gradient_penalty"):
            text += f", gradient penalty {settings['gradient_penalty']:g}"
        if isinstance(origin.get("images"), int):
            text += f", on {origin['images']:,} images of {origin.get('data')}"
        return text

    @property
    def value_range(self) -> tuple[float, float]:
        """The value range of its own bundle's images."""
        return self.inverter.manifest.value_range

    def encode(self, pixels: Pixels) -> FloatArray:
        """Return the latents of 8-bit images [N, C, H, W], [N, *latent_shape]."""
        parts = [
            self.inverter.encode(to_range(pixels[first : first + CHUNK], self.value_range))
            for first in range(0, len(pixels), CHUNK)
        ]
        return np.concatenate(parts)

    def reconstruct(self, pixels: Pixels) -> Pixels:
        """Encode 8-bit images and return what its generator makes of the latents."""
        return to_pixels(self.inverter.generate(self.encode(pixels)), self.value_range)


def to_pixels(images: FloatArray, value_range: tuple[float, float]) -> Pixels:
    """Return images [N, C, H, W] as uint8, as an image file would store them."""
    return np.ascontiguousarray(to_uint8(images, value_range).transpose(0, 3, 1, 2))


def open_encoders(request: Request, methods: Collection[str]) -> list[Encoder]:
    """Open the given encoders.

    Args:
        request: its ``encoders`` are bundles, or folders that ``pyinv train encoder`` wrote.
        methods: the training methods that are needed.

    Raises:
        InputError: an encoder that was trained by another method, or that is given twice.
        BundleError: a bundle that is missing, damaged or without an encoder.
    """
    found: list[Encoder] = []
    for given in request.encoders:
        for path in find_bundles(given):
            if any(one.path.samefile(path) for one in found):
                raise InputError(f"{path}: given twice; give each encoder once (--encoder)")
            inverter = Inverter(Bundle.open(path), **request.machine)
            method = _method(inverter.manifest, path, methods)
            found.append(Encoder(method, inverter))
    return found


def match_encoders(
    encoders: Sequence[Encoder], generators: Sequence[Generator]
) -> dict[str, dict[str, Encoder]]:
    """Assign each encoder to its generators; return them by generator key and training method.

    Raises:
        InputError: an encoder that fits no generator, or two for the same generator and method.
    """
    found: dict[str, dict[str, Encoder]] = {generator.key: {} for generator in generators}
    for encoder in encoders:
        method = encoder.method
        fitting = [one for one in generators if _fits(one, encoder.inverter, method)]
        if not fitting:
            what = "another image or latent size" if method in OWN_GENERATOR else "other images"
            raise InputError(
                f"{encoder.path}: the encoder of another generator, with {what} than those of this "
                "reproduction; give one that `pyinv train encoder` trained for this generator, "
                "or leave out --encoder"
            )
        for generator in fitting:
            if method in found[generator.key]:
                raise InputError(
                    f"{found[generator.key][method].path} and {encoder.path}: two encoders of "
                    f"{generator.title} that the method {method} trained; give only one of them"
                )
            found[generator.key][method] = encoder
    return found


def train_encoders(
    given: Mapping[str, Mapping[str, Encoder]],
    generators: Sequence[Generator],
    request: Request,
    methods: Mapping[str, str],
    configurations: Mapping[str, str],
    images: Mapping[str, tuple[str, Pixels]],
) -> dict[str, dict[str, Encoder]]:
    """Train the encoders that are missing.

    Args:
        given: the result of ``match_encoders``.
        generators: the reproduction's generators.
        request: the reproduction's settings. Encoders are written to ``encoders`` in its folder.
        methods: the training methods that are needed, with their display names.
        configurations: the name of the encoders' configuration, by generator key.
        images: the dataset's name and training images, uint8 [N, C, H, W], by generator key, for
            the methods that also train a generator. Without an entry, they are trained on generated
            images.

    Returns:
        the given and the trained encoders, by generator key and method, except those that
        ``why_not_trained`` rules out.

    Raises:
        DependencyError: an encoder has to be trained, but torch is missing.
        KeyboardInterrupt: Ctrl-C during training; its checkpoint remains.
    """
    found = {key: dict(encoders) for key, encoders in given.items()}
    missing = [
        (generator, method)
        for generator in generators
        for method in methods
        if method not in found[generator.key] and not why_not_trained(generator, method)
    ]
    if not missing:
        return found
    if find_spec("torch") is None:
        raise DependencyError(
            f"no encoder of the method {missing[0][1]} was given, and training one needs torch: "
            f"{install_command('papers')}; or give a bundle (--encoder)"
        )
    from pyinv.training.encoder import train_encoder
    from pyinv.training.frozen import open_generator

    training = request.training
    for number, (generator, method) in enumerate(missing):
        request.say(f"encoder {number + 1} of {len(missing)}: {generator.title}, {methods[method]}")
        settings = get_encoder_configuration(configurations[generator.key], method)
        settings = settings.replace(seed=request.seed)
        if request.encoder_iterations is not None:
            settings = settings.with_iterations(request.encoder_iterations)
        data: dict[str, Any] = {}
        if method in OWN_GENERATOR and generator.key in images:
            data["data_name"], data["data"] = images[generator.key]
        folder = request.folder / "encoders" / f"{generator.key}-{method}"
        try:
            frozen = open_generator(
                generator.source, device=training["device"], threads=training["threads"]
            )
            train_encoder(settings, frozen, folder, **training, **data)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{number} of {len(missing)} encoders are trained; run the same command to resume "
                "from the last checkpoint"
            ) from None
        (path,) = find_bundles(folder)
        inverter = Inverter(Bundle.open(path), **request.machine)
        found[generator.key][method] = Encoder(method, inverter)
    return found


def why_not_trained(generator: Generator, method: str) -> str:
    """Return why a method cannot train an encoder for a generator's images; "" if it can."""
    if method in OWN_GENERATOR:
        try:
            get_model("luo").check(generator.manifest.image_shape)
        except InputError:
            return (
                "not run: the networks of Luo et al. make square images of 32 or 64 pixels, but "
                f"these images are {generator.describe_image()}"
            )
    return ""


def _method(manifest: Manifest, path: Path, methods: Collection[str]) -> str:
    """Return the method that trained a bundle's encoder."""
    if not manifest.has_encoder:
        raise BundleError(
            f"{path}: has no encoder; give one that `pyinv train encoder` wrote, or leave out "
            "--encoder to train one"
        )
    settings = manifest.origin.get("configuration")
    method = settings.get("method") if isinstance(settings, Mapping) else None
    if method not in methods:
        raise InputError(
            f"{path}: expected an encoder whose bundle says that it was trained by one of "
            f"{', '.join(methods)}, but this one says {method or 'nothing'}; give one that `pyinv "
            "train encoder` wrote"
        )
    return str(method)


def _fits(generator: Generator, inverter: Inverter, method: str) -> bool:
    """Return whether an encoder is for this generator.

    An encoder that was trained with its own generator only needs the same image and latent shapes.
    """
    own, other = generator.manifest, inverter.manifest
    if (own.image_shape, own.latent_shape) != (other.image_shape, other.latent_shape):
        return False
    if method in OWN_GENERATOR:
        return True
    if (own.value_range, own.prior) != (other.value_range, other.prior):
        return False
    latents = inverter.sample(PROBES, seed=0)
    difference = np.abs(generator.inverter.generate(latents) - inverter.generate(latents)).max()
    low, high = own.value_range
    return bool(difference <= SAME * (high - low))
