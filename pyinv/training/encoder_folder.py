"""The folder of an encoder's training: its files, and the training it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinv.atomic_files import write_whole
from pyinv.errors import InputError
from pyinv.training.encoder_configurations import EncoderConfiguration
from pyinv.training.folder import REMEDY, TrainingData, TrainingFolder

__all__ = ["EncoderData", "EncoderFolder"]


@dataclass(frozen=True)
class EncoderData(TrainingData):
    """The identity of an encoder's training data and generator.

    Args:
        name: name of the real images; empty if there are none.
        images: number of real images.
        sha256: hash of their pixels; empty if there are none.
        generator: name of the generator.
        generator_sha256: hash of its files or weights.
    """

    generator: str
    generator_sha256: str


class EncoderFolder(TrainingFolder):
    """A folder for the training of one encoder; see ``TrainingFolder``.

    Args:
        path, configuration, data, overwrite: as for ``TrainingFolder``.
        generator: description of the generator for the bundle.
    """

    kind = "an encoder"
    free = ("iterations", "source", "name")
    data: EncoderData

    def __init__(
        self,
        path: Path,
        configuration: EncoderConfiguration,
        data: EncoderData,
        *,
        generator: Mapping[str, Any],
        overwrite: bool = False,
    ) -> None:
        super().__init__(path, configuration, data, overwrite=overwrite)
        self.weights = path / "encoder.pt"
        self._generator = dict(generator)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, **super().describe()}

    def read_description(self, described: Mapping[str, Any]) -> tuple[Any, EncoderData]:
        configuration = EncoderConfiguration.from_description(described["configuration"])
        return configuration, EncoderData(**described["data"])

    def refuse_another(self, path: Path, configuration: Any, data: TrainingData) -> None:
        assert isinstance(data, EncoderData)
        if data.generator_sha256 != self.data.generator_sha256:
            raise InputError(
                f"{path}: from another training, whose generator is another one "
                f"({data.generator}) and not this one ({self.data.generator}); {REMEDY}"
            )
        super().refuse_another(path, configuration, data)

    def write_losses(self, losses: Any) -> None:
        """Write losses.csv, one line per iteration, with a column for every loss of any phase.

        Args:
            losses: (name, loss names, rows) of each phase, in order.

        Raises:
            OutputError: it cannot be written.
        """
        columns = list(dict.fromkeys(name for _, names, _ in losses for name in names))
        lines = [",".join(("iteration", "phase", *columns)) + "\n"]
        for phase, names, rows in losses:
            for row in rows:
                # Nine digits distinguish all float32 values.
                texts = {name: f"{value:.9g}" for name, value in zip(names, row, strict=True)}
                cells = (str(len(lines)), phase, *(texts.get(name, "") for name in columns))
                lines.append(",".join(cells) + "\n")
        write_whole(self._losses, "".join(lines).encode())

    @property
    def origin(self) -> dict[str, Any]:
        """The bundle's record of where its encoder and generator come from."""
        origin = {
            "configuration": self.configuration.describe(),
            "iterations": self.configuration.iterations,
            "generator": self._generator,
        }
        if self.data.images:
            origin |= {"data": self.data.name, "images": self.data.images}
        return origin
