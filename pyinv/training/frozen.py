"""Frozen generators to train encoders for: PyTorch modules or bundles."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyinv.bundle import Bundle, is_address
from pyinv.errors import InputError, PyinvError
from pyinv.images import check_value_range, not_pictures
from pyinv.inverter import Inverter
from pyinv.models import get_model
from pyinv.priors import Prior
from pyinv.training.configurations import GanConfiguration
from pyinv.training.draws import draw_latents
from pyinv.validation import shape_text, whole_number

__all__ = ["FrozenGenerator", "open_generator"]

_MANIFEST = "manifest.json"
_TRIED = 2
# Relative to the value range. Pixel norm's epsilon changes images by 1e-8 of it.
_SAME = 1e-3

LossFunction = Callable[[Tensor, Tensor], Tensor]
Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class FrozenGenerator:
    """A trained generator with its losses and their gradients with respect to latents.

    Create one with ``open_generator``. Latents are [B, d] or [B, *latent_shape], on any device;
    results are on the latents' device.

    Attributes:
        name: name of the generator.
        latent_shape: shape of one latent.
        image_shape: (C, H, W).
        value_range: the lowest and highest pixel value.
        prior: prior of the latents.
        losses: the names that ``loss`` accepts.
        normalizes_latent: whether the image is independent of the latent's length.
        module: latent [B, *latent_shape] -> image, in eval mode and without gradients of weights;
            None for a bundle.
        bundle: the bundle, if there is one.
        sha256: hash of the bundle's files, or of the module's weights.
    """

    def __init__(
        self,
        name: str,
        latent_shape: tuple[int, ...],
        value_range: tuple[float, float],
        prior: Prior,
        *,
        module: nn.Module | None,
        values: Mapping[str, LossFunction],
        bundle: Bundle | None,
        inverter: Inverter | None,
        sha256: str,
        given_losses: Any = None,
    ) -> None:
        self.name = name
        self.latent_shape = latent_shape
        self.value_range = value_range
        self.prior = prior
        self.module = module
        self.bundle = bundle
        self.sha256 = sha256
        self._values = dict(values)
        self._inverter = inverter
        self._given_losses = given_losses
        self._exports = False
        baked = () if bundle is None else bundle.manifest.losses
        self.losses = tuple(dict.fromkeys((*values, *baked)))
        latents = draw_latents(prior, _TRIED, self.latent_size, torch.Generator().manual_seed(0))
        images = self._try(latents)
        self.image_shape: tuple[int, int, int] = tuple(images.shape[1:])  # type: ignore[assignment]
        self.normalizes_latent = self._ignores_length(latents, images)

    @property
    def latent_size(self) -> int:
        """The number of components of one latent, d."""
        return math.prod(self.latent_shape)

    @property
    def origin(self) -> dict[str, Any]:
        """Description of this generator for a bundle: name, SHA-256 and its own bundle's origin."""
        own = {} if self.bundle is None else dict(self.bundle.manifest.origin)
        return {"name": self.name, "sha256": self.sha256, "origin": own}

    def to(self, device: torch.device) -> None:
        """Move the generator to this device; a bundle stays where it was opened."""
        if self.module is not None:
            self.module.to(device)

    def generate(self, latents: Tensor) -> Tensor:
        """Return the images G(z), [B, C, H, W], without a gradient.

        Non-finite latents give images of NaN.
        """
        if self.module is not None:
            with torch.no_grad():
                images: Tensor = self.module(self._shaped(latents))
            return images
        assert self._inverter is not None
        if not bool(torch.isfinite(latents.detach()).all()):
            return latents.new_full((len(latents), *self.image_shape), math.nan)
        made = self._inverter.generate(_numpy(latents), batch_size=len(latents))
        return torch.from_numpy(made).to(latents.device)

    def loss(self, name: str, latents: Tensor, images: Tensor) -> Tensor:
        """Return a loss between G(z) and images, [B], differentiable with respect to z.

        Args:
            name: one of ``losses``.
            latents: z. Non-finite latents give non-finite losses.
            images: [B, C, H, W] in the value range; without a gradient.

        Raises:
            InputError: no such loss.
        """
        self.check_loss(name)
        if self.module is not None and name in self._values:
            return self._values[name](self.module(self._shaped(latents)), images)
        flat = latents.flatten(1)
        if not bool(torch.isfinite(flat.detach()).all()):
            return flat.sum(1) * math.nan
        inverter = self._inverter
        assert inverter is not None

        def evaluate(latents: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            loss, gradient = inverter.evaluate(
                _numpy(latents), _numpy(images), loss=name, batch_size=len(latents)
            )
            return torch.from_numpy(loss), torch.from_numpy(gradient).flatten(1)

        values: Tensor = _Baked.apply(flat, images, evaluate)  # type: ignore[no-untyped-call]
        return values

    def check_loss(self, name: str) -> None:
        """Raise InputError if ``loss`` does not accept this name."""
        if name not in self.losses:
            raise InputError(
                f"{self.name} has no loss {name!r}; it has {', '.join(self.losses)}: choose one of "
                "these (--image-loss), or export the generator again with it (--loss)"
            )

    def check_export(self) -> None:
        """Raise ExportError now if ``write_bundle`` would fail after the training."""
        if self.bundle is not None or self._exports:
            return
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the export after the training warns
            self._export(Path(folder) / "tried.bundle", normal_equations=False)
        self._exports = True

    def write_bundle(
        self,
        encoder: nn.Module,
        path: Path,
        *,
        origin: Mapping[str, Any],
        say: Callable[[str], None] | None = None,
    ) -> Path:
        """Write a bundle of this generator that has the function ``encode``.

        Args:
            encoder: image [B, C, H, W] -> latent [B, d].
            path: the bundle's folder; an existing one is replaced.
            origin: JSON values for its manifest.
            say: called with a line of text for each step.

        Raises:
            ExportError: the encoder cannot be exported.
            OutputError: the folder cannot be written.
        """
        from pyinv.export import add_encoder

        more: dict[str, Any] = {"origin": origin, "overwrite": True, "progress": say}
        if self.bundle is not None:
            written: Path = add_encoder(self.bundle, encoder, path, **more)
            return written
        return self._export(path, encoder=encoder, name=self.name, **more)

    def _export(self, path: Path, **more: Any) -> Path:
        from pyinv.export import export

        assert self.module is not None
        written: Path = export(
            self.module,
            path,
            latent_shape=self.latent_shape,
            prior=self.prior,
            losses=self._given_losses,
            value_range=self.value_range,
            **more,
        )
        return written

    def _shaped(self, latents: Tensor) -> Tensor:
        return latents.reshape(len(latents), *self.latent_shape)

    def _try(self, latents: Tensor) -> Tensor:
        """Generate images, or raise InputError with the reason why that fails."""
        if self.module is None:
            return self.generate(latents)
        weights = next(self.module.parameters(), latents)
        try:
            images = self.generate(latents.to(weights.device))
            again = self.generate(latents.to(weights.device))
        except PyinvError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.name} does not take latents [B, {shape_text(self.latent_shape)}]: "
                f"{reason}; give the latent_shape it has (--latent-shape)"
            ) from None
        if not isinstance(images, Tensor) or images.ndim != 4:
            got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"{self.name} must return images [B, C, H, W], it returned {got}")
        if not bool(torch.isfinite(images).all()):
            raise InputError(f"{self.name} returned NaN or infinity: check its weights")
        if not torch.allclose(images, again, rtol=1e-4, atol=1e-4):
            raise InputError(
                f"{self.name} returned different images for the same latents: it draws noise; fix "
                "the noise in its forward"
            )
        return images

    def _ignores_length(self, latents: Tensor, images: Tensor) -> bool:
        known = getattr(self.module, "normalizes_latent", None)
        if isinstance(known, bool):
            return known
        low, high = self.value_range
        longer = self._try(2 * latents)
        return bool((longer - images).abs().max() <= _SAME * (high - low))


class _Baked(torch.autograd.Function):
    """A bundle's objective: computes loss and gradient forward, and saves the gradient."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, images: Tensor, evaluate: Evaluate) -> Tensor:
        loss, gradient = evaluate(latents, images)
        ctx.save_for_backward(gradient.to(latents.device))
        return loss.to(latents.device)

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outward[0][:, None] * gradient, None, None


def open_generator(
    generator: Any,
    *,
    latent_shape: int | Sequence[int] | None = None,
    prior: Prior | None = None,
    value_range: tuple[float, float] | None = None,
    losses: Any = None,
    device: str | torch.device = "cpu",
    threads: int | None = None,
) -> FrozenGenerator:
    """Open a generator to train an encoder for.

    Args:
        generator: a bundle, its folder or its address; the folder of a finished training; a
            torch.nn.Module; "package.module:factory", "file.py:factory" or a TorchScript or ONNX
            file, as for ``pyinv export``.
        latent_shape: shape of one latent, for a module only; bundles and trainings have their own.
        prior: prior of the latents, for a module only.
        value_range: the values of black and white, for a module only.
        losses: losses as for ``pyinv.export.export``, for a module only; by default mse, and bce
            for pixels in [0, 1].
        device: the device to compute on.
        threads: CPU threads of a bundle's runtime; None uses every core.

    Raises:
        InputError: no such generator, options that do not apply to it, or a bundle that needs a
            condition or has batch statistics.
        BundleError, ExportError: the generator is damaged or invalid.
    """
    options = {"latent_shape": latent_shape, "prior": prior, "value_range": value_range}
    given = [name for name, value in {**options, "losses": losses}.items() if value is not None]
    where = torch.device(device)
    path = _folder(generator)
    if isinstance(generator, str) and is_address(generator):
        generator = Bundle.open(generator)
    if isinstance(generator, Bundle) or path is not None:
        if given:
            raise InputError(
                f"{generator if path is None else path}: has its own {given[0]}; leave it out"
            )
        if path is not None and not (path / _MANIFEST).is_file():
            return _open_training(path, where, threads)
        bundle = generator if isinstance(generator, Bundle) else Bundle.open(path or generator)
        return _open_bundle(bundle, where, threads)
    if isinstance(generator, nn.Module):
        module, name = generator, type(generator).__name__
    else:
        from pyinv.export import load_generator

        text = os.fspath(generator)
        if ":" not in text and not Path(text).exists():
            raise InputError(
                f"{text}: there is no such bundle, folder or file; give a bundle, a training's "
                "folder, a TorchScript or ONNX file, or module:factory"
            )
        module, name = load_generator(os.fspath(generator)), str(generator)
    if latent_shape is None or prior is None or value_range is None:
        missing = ", ".join(key for key, value in options.items() if value is None)
        raise InputError(
            f"{name}: a module says nothing of its latents and values; give also {missing} (such "
            "as --latent-shape 100 --prior normal --value-range -1 1)"
        )
    sizes = latent_shape if isinstance(latent_shape, Sequence) else (latent_shape,)
    shape = tuple(whole_number("latent_shape", size, at_least=1) for size in sizes)
    ends = check_value_range(value_range)
    if losses is None:
        losses = ("mse", "bce") if ends == (0.0, 1.0) else ("mse",)
    return FrozenGenerator(
        name,
        shape,
        ends,
        prior,
        module=_frozen(module, where),
        values=_values(losses, ends),
        bundle=None,
        inverter=None,
        sha256=_digest_of_weights(module),
        given_losses=losses,
    )


def _folder(generator: Any) -> Path | None:
    if not isinstance(generator, str | os.PathLike):
        return None
    path = Path(generator)
    return path if path.is_dir() else None


def _open_bundle(bundle: Bundle, device: torch.device, threads: int | None) -> FrozenGenerator:
    manifest = bundle.manifest
    if len(manifest.image_shape) != 3:
        raise InputError(
            f"{bundle.path}: {not_pictures(manifest)}, and encoders are trained for images "
            "[C, H, W]; add an encoder of your own with pyinv.export.add_encoder"
        )
    if manifest.observes:
        raise InputError(
            f"{bundle.path}: its targets are observations of images, and encoders are trained for "
            "images; add an encoder of your own with pyinv.export.add_encoder"
        )
    if manifest.conditions:
        raise InputError(
            f"{bundle.path}: its generator takes a condition, and an encoder's training has none "
            "to give; export it with a fixed value of it in inputs"
        )
    if manifest.batch_norm == "batch":
        raise InputError(
            f"{bundle.path}: has batch statistics, and its images depend on one another; give the "
            "bundle with running statistics (batch_norm='eval')"
        )
    return _of_bundle(bundle, device, threads)


def _of_bundle(
    bundle: Bundle,
    device: torch.device,
    threads: int | None,
    module: nn.Module | None = None,
    values: Mapping[str, LossFunction] | None = None,
) -> FrozenGenerator:
    """Return a bundle's generator, with PyTorch's module and losses if they are known."""
    manifest = bundle.manifest
    return FrozenGenerator(
        manifest.name or bundle.path.name,
        manifest.latent_shape,
        manifest.value_range,
        manifest.prior,
        module=module,
        values=values or {},
        bundle=bundle,
        inverter=Inverter(bundle, device=str(device), threads=threads),
        sha256=_digest_of_bundle(bundle),
    )


def _open_training(path: Path, device: torch.device, threads: int | None) -> FrozenGenerator:
    written = path / "configuration.json"
    bundle_path, weights = path / "generator.bundle", path / "generator.pt"
    if not written.is_file():
        raise InputError(
            f"{path}: neither a bundle (it has no {_MANIFEST}) nor a training's folder (it has no "
            "configuration.json); give one of these, a TorchScript or ONNX file, or module:factory"
        )
    if not bundle_path.is_dir():
        raise InputError(
            f"{path}: holds a training that is not finished, without generator.bundle; finish it "
            "first, with the command that began it"
        )
    bundle = Bundle.open(bundle_path)
    try:
        described = json.loads(written.read_text(encoding="utf-8"))["configuration"]
        configuration = GanConfiguration.from_description(described)
    except (KeyError, TypeError, ValueError):
        # An encoder's training, whose generator is only in the bundle.
        return _open_bundle(bundle, device, threads)
    model = get_model(configuration.model)
    with torch.random.fork_rng(devices=[]):
        module = model.generator(
            configuration.latent_size, configuration.image_shape, **configuration.options
        )
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        module.load_state_dict(state)
    except Exception as error:  # torch.load raises many undocumented types for damaged files
        reason = " ".join(str(error).split())
        raise InputError(f"{weights}: cannot be read ({reason}); train the generator again") from (
            None
        )
    manifest = bundle.manifest
    torch_losses = [name for name in manifest.losses if name in ("mse", "l1", "bce")]
    values = _values(torch_losses, manifest.value_range)
    return _of_bundle(bundle, device, threads, _frozen(module, device), values)


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a frozen copy; the caller's module is unchanged."""
    # TorchScript copies weights with an operation that autograd records; requires_grad_ then fails.
    with torch.no_grad():
        copied = copy.deepcopy(module).float().to(device).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return copied


def _values(losses: Any, value_range: tuple[float, float]) -> dict[str, LossFunction]:
    """Return the losses that PyTorch can compute between two images, by name."""
    from pyinv.export.derivatives.losses import Loss, resolve_losses

    resolved = resolve_losses(losses, value_range=value_range)

    def function(loss: Loss) -> LossFunction:
        return lambda image, target: loss.mean(loss.value(image, target))

    return {loss.name: function(loss) for loss in resolved if not loss.needs_activation}


def _digest_of_bundle(bundle: Bundle) -> str:
    files = {name: record.sha256 for name, record in bundle.manifest.files.items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _digest_of_weights(module: nn.Module) -> str:
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def _numpy(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    found: np.ndarray[Any, np.dtype[np.float32]] = tensor.detach().cpu().numpy()
    return found
