"""A training's folder: its files, and the training it belongs to."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyinv.atomic_files import write_whole
from pyinv.bundle import Bundle
from pyinv.drafts import remove_left_drafts
from pyinv.errors import BundleError, InputError, OutputError
from pyinv.images import save_grid
from pyinv.training.configurations import GanConfiguration

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["BUNDLES", "REMEDY", "TrainingData", "TrainingFolder"]

BUNDLES = {"eval": "generator.bundle", "batch": "generator-batch.bundle"}
"""The bundles' names, by batch-norm mode."""

_CONFIGURATION = "configuration.json"
_LOCK = ".lock"
REMEDY = "use another folder, or overwrite this one (--overwrite)"


@dataclass(frozen=True)
class TrainingData:
    """The identity of a training's images.

    Args:
        name: name of the images.
        images: number of images.
        sha256: hash of their pixels.
    """

    name: str
    images: int
    sha256: str


class TrainingFolder:
    """A folder for one training. Entering it creates it if necessary, and locks it.

    This class is for GANs; subclasses adapt it to other kinds of training.

    Args:
        path: the folder.
        configuration: the training's configuration.
        data: the training's images.
        overwrite: delete the files of another training in the folder.

    Raises:
        InputError: on entry, if the folder contains another training.
        OutputError: on entry, if the folder contains anything else, cannot be written to, or
            another training is running in it.
    """

    kind = "a GAN"
    # Fields that a resumed training may change: its length, and how it is named and exported.
    free: tuple[str, ...] = ("iterations", "source", "name", "losses", "batch_norm")
    loss_names: tuple[str, ...] = ("discriminator", "generator")

    def __init__(
        self,
        path: Path,
        configuration: Any,
        data: TrainingData,
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.configuration = configuration
        self.data = data
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "generator.pt"
        modes = getattr(configuration, "batch_norm", ("eval",))
        self.bundles = {mode: path / BUNDLES[mode] for mode in modes}
        self._losses = path / "losses.csv"
        self._samples = path / "samples"
        self._overwrite = overwrite
        self._lock: int | None = None

    def __enter__(self) -> Self:
        path = self.path
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path}: expected a folder, and this is a file")
        try:
            path.mkdir(parents=True, exist_ok=True)
            held = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
            if held and not (path / _CONFIGURATION).is_file():
                raise OutputError(
                    f"{path}: contains files but no training; give a new or empty folder"
                )
            self._acquire_lock()
            for folder in (path, self._samples):
                remove_left_drafts(folder)
            if (path / _CONFIGURATION).is_file():
                if self._overwrite:
                    self._empty()
                else:
                    self._refuse_another()
        except BaseException as error:
            self._release_lock()
            if isinstance(error, OSError):
                raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._release_lock()

    def write_configuration(self) -> None:
        """Write configuration.json, which identifies the training; may raise OutputError."""
        content = json.dumps(self.describe(), indent=2) + "\n"
        write_whole(self.path / _CONFIGURATION, content.encode())

    def describe(self) -> dict[str, Any]:
        """Return the training's identity as JSON values."""
        return {"configuration": self.configuration.describe(), "data": asdict(self.data)}

    def read_description(self, described: Mapping[str, Any]) -> tuple[Any, TrainingData]:
        """Return the configuration and data for the output of ``describe()``.

        Raises:
            InputError, KeyError, TypeError, ValueError: ``described`` is invalid.
        """
        configuration = GanConfiguration.from_description(described["configuration"])
        return configuration, TrainingData(**described["data"])

    def write_losses(self, losses: Any) -> None:
        """Write losses.csv, one line per iteration; may raise OutputError."""
        # Nine digits distinguish all float32 values.
        lines = [f"{row},{pair[0]:.9g},{pair[1]:.9g}\n" for row, pair in enumerate(losses, 1)]
        header = ",".join(("iteration", *self.loss_names)) + "\n"
        write_whole(self._losses, "".join([header, *lines]).encode())

    def write_samples(
        self, images: NDArray[np.float32], value_range: tuple[float, float], iteration: int
    ) -> Path:
        """Write a grid of generated images to samples/ and return its path.

        Raises:
            OutputError: it cannot be written.
        """
        picture = io.BytesIO()
        save_grid(images, picture, value_range, columns=8)
        try:
            self._samples.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._samples}: cannot be made ({error.strerror})") from None
        path = self._samples / f"{iteration:08d}.png"
        write_whole(path, picture.getbuffer())
        return path

    @property
    def lost_its_start(self) -> bool:
        """Whether the folder contains a training that ended before its first checkpoint."""
        return self._samples.exists() and not self.checkpoint.exists()

    def refuse_lost_checkpoint(self) -> None:
        """Raise InputError if the folder contains a training whose checkpoint is missing."""
        if self.weights.exists() or self._losses.exists():
            raise InputError(
                f"{self.checkpoint}: missing, so this training cannot be resumed; restore it, or "
                "start over (--overwrite)"
            )

    def refuse_another(self, path: Path, configuration: Any, data: TrainingData) -> None:
        """Raise InputError, naming the first field that differs, if ``path`` is another training's.

        The fields in ``free`` may differ.
        """
        field = configuration.difference(self.configuration, ignore=self.free)
        if field is not None:
            field, theirs, ours = _first_difference(
                field, getattr(configuration, field), getattr(self.configuration, field), self.free
            )
            raise InputError(
                f"{path}: from another training, whose {field} is {_text(theirs)} and not "
                f"{_text(ours)}; {REMEDY}"
            )
        if (data.images, data.sha256) != (self.data.images, self.data.sha256):
            raise InputError(
                f"{path}: from another training, whose data are {data.images} other images "
                f"({data.name}) and not these {self.data.images} ({self.data.name}); {REMEDY}"
            )

    @property
    def origin(self) -> dict[str, Any]:
        """The bundles' record of where their generator comes from."""
        return {
            "configuration": self.configuration.describe(),
            "data": self.data.name,
            "images": self.data.images,
            "iterations": self.configuration.iterations,
        }

    def missing(self) -> list[str]:
        """Return the batch-norm modes whose bundle is missing, damaged or from another training.

        If the weights are missing, return all modes.
        """
        if not self.weights.is_file():
            return list(self.bundles)
        return [mode for mode, path in self.bundles.items() if not self._is_exported(path)]

    def _is_exported(self, path: Path) -> bool:
        try:
            origin = Bundle.open(path).manifest.origin
        except BundleError:
            return False
        return _decisive(origin) == _decisive(self.origin)

    def _acquire_lock(self) -> None:
        if fcntl is None:
            return
        # Some file systems have no locks; if the folder is not writable, the checkpoint will fail.
        with contextlib.suppress(OSError):
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                # The system releases the lock however the process ends.
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"{self.path}: another training is running in this folder; wait for it, or "
                    "use another folder"
                ) from None

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _refuse_another(self) -> None:
        path = self.path / _CONFIGURATION
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kind = content.get("kind", TrainingFolder.kind)
            if kind == self.kind:
                configuration, data = self.read_description(content)
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: damaged ({reason}); {REMEDY}") from None
        if kind != self.kind:
            raise InputError(f"{path}: from the training of another kind, of {kind}; {REMEDY}")
        self.refuse_another(path, configuration, data)

    def _empty(self) -> None:
        """Delete the files of a training, and no others."""
        names = ("generator.pt", "encoder.pt", "autoencoder.pt", *BUNDLES.values())
        written = [self.path / name for name in names]
        for path in (self.checkpoint, self._losses, self._samples, *written):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        # Replaced last and atomically, so that the folder is recognisable as a training throughout.
        self.write_configuration()


def _decisive(origin: Mapping[str, Any]) -> list[Any]:
    """Return the parts of an origin that determine a bundle, without the names of its data."""
    settings = origin.get("configuration")
    if isinstance(settings, Mapping):
        settings = {name: value for name, value in settings.items() if name != "source"}
    return [settings, *map(origin.get, ("images", "iterations", "generator"))]


def _first_difference(
    name: str, theirs: Any, ours: Any, ignore: tuple[str, ...]
) -> tuple[str, Any, Any]:
    """Return what differs within two values: a field of a dataclass, or the values themselves."""
    if is_dataclass(theirs) and type(theirs) is type(ours):
        for item in fields(theirs):
            pair = getattr(theirs, item.name), getattr(ours, item.name)
            if item.name not in ignore and pair[0] != pair[1]:
                return item.name, *pair
    return name, theirs, ours


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
