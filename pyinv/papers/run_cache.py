"""An on-disk cache of inversions, so that a long reproduction can be stopped and resumed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import pyinv
from pyinv import runtimes
from pyinv.array_files import read_npz
from pyinv.atomic_files import OutputFile
from pyinv.errors import InputError, OutputError, PyinvWarning
from pyinv.interrupts import deferred
from pyinv.inverter import Inverter
from pyinv.papers.folder import open_folder
from pyinv.progress import Progress
from pyinv.result import Inversion, Status
from pyinv.validation import as_numpy

if TYPE_CHECKING:
    from pyinv.papers.plan import Planned

__all__ = ["RunCache"]

_ROWS = ("latents", "loss", "status", "steps", "attempts", "normal_equations")

RUNTIMES = {"onnx": "ONNX Runtime", "torchscript": "TorchScript of"}


class RunCache:
    """The inversions of one reproduction, each cached in ``folder/runs/<id>.npz`` when it is done.

    A run that is requested again with the same settings is read from the cache. The settings are
    the recipe, the seed, the images, the bundle's files and everything else that the results depend
    on. If the settings differ or the file is damaged, the run is repeated and the file replaced.

    If a run is stopped or fails, its finished targets are saved in ``folder/runs/<id>.npz.part``.
    The next call inverts only the rest: a target's result depends on its own row, not on when it
    runs. Where targets depend on one another, through batch-norm statistics or a moment penalty,
    only complete runs are cached.

    Args:
        folder: the reproduction's folder; created if necessary.

    Attributes:
        read_back: ids of the runs that were read from the cache.

    Raises:
        OutputError: the folder cannot be created or written to.
    """

    def __init__(self, folder: Any) -> None:
        self.folder = open_folder(Path(folder) / "runs")
        self._fingerprints: dict[str, str] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self.read_back: set[str] = set()

    def made_with(self) -> dict[str, Any]:
        """Return the versions and hardware of all finished runs, without duplicates."""
        names = ("pyinv", "runtime", "device", "threads", "batch_size")
        return {
            name: ", ".join(dict.fromkeys(str(facts[name]) for facts in self._facts.values()))
            for name in names
        }

    def facts(self, id: str) -> dict[str, Any]:
        """Return a report's facts about a finished run, as JSON values.

        Args:
            id: the run's id.

        Returns:
            bundle, targets, seed, batch_size, runtime, device, threads, seconds, status (the number
            of targets that ended with each), mean_steps, median_psnr (a text), and pyinv (the
            version), as of the time of the run.

        Raises:
            InputError: no such run.
        """
        if id not in self._facts:
            known = ", ".join(self._facts) or "none"
            raise InputError(f"run {id!r} is not done; those done are {known}")
        return dict(self._facts[id])

    def is_done(self, id: str) -> bool:
        """Return whether this run is finished."""
        return id in self._facts

    def run(
        self, planned: Planned, *, seed: int, progress: bool | Progress | None = None
    ) -> Inversion:
        """Return the inversion of a run's targets from the cache, or compute and cache it.

        Args:
            planned: the run. Its id has letters, digits, dots, hyphens and underscores.
            seed, progress: as in ``Inverter.invert``.

        Returns:
            the Inversion of all targets. The run's inverter generates its images on first access.

        Raises:
            InputError: an id with other characters, or one that was used with other settings.
            KeyboardInterrupt: Ctrl-C. Finished runs, and finished targets of this one, stay cached
                as described above.
            OutputError: the run cannot be written.
            Any error of ``Inverter.invert``.
        """
        id, inverter = planned.id, planned.inverter
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", id):
            raise InputError(
                f"a run's id must be letters, digits, dots, hyphens and underscores, got {id!r}"
            )
        manifest = inverter.manifest
        # Fitted to the prior, so that the description holds everything the run depends on.
        recipe = planned.recipe.fit(manifest.prior)
        images = as_numpy(planned.images, "images", "floats [N, C, H, W]")
        settings: dict[str, Any] = {
            "recipe": recipe.describe(),
            "seed": int(seed),
            "images": _hash(images),
            "bundle": {name: record.sha256 for name, record in manifest.files.items()},
            "prior": manifest.prior.describe(),
            "batch_norm": manifest.batch_norm,
        }
        rows_of: dict[str, Any] = {
            name: as_numpy(given, name, "numbers")
            for name in ("true_latents", "init", "conditions")
            if (given := getattr(planned, name)) is not None
        }
        settings |= {name: _hash(given) for name, given in rows_of.items()}
        coupled = recipe.is_coupled(manifest)
        if coupled:
            settings["batch_size"] = inverter.batch_size
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        if self._fingerprints.setdefault(id, fingerprint) != fingerprint:
            raise InputError(
                f"run {id!r} was run with other settings before; give each run its own id"
            )

        path = self.folder / f"{id}.npz"
        cached = _read(path, fingerprint, len(images))
        if cached is not None and not cached[0].cancelled:
            inversion, self._facts[id] = cached
            self.read_back.add(id)
        else:
            part = path.with_name(f"{path.name}.part")
            before = None if coupled else _read(part, fingerprint, len(images))
            missing = _unfinished(before[0]) if before else np.ones(len(images), dtype=bool)
            rows = np.flatnonzero(missing)

            def write(output: OutputFile, inversion: Inversion) -> dict[str, Any]:
                seconds = time.perf_counter() - started + (before[1]["seconds"] if before else 0)
                facts = _facts(inverter, inversion, seconds)
                output.write(lambda file: _write(file, inversion, settings, fingerprint, facts))
                return facts

            # Open the output before the work, so that an unwritable folder fails at once. Ctrl-C
            # ends the run once what it has found is written.
            with (
                OutputFile(path, overwrite=True) as output,
                deferred() as received,
                warnings.catch_warnings(),
            ):
                # Methods are compared on images that some of them are not for.
                warnings.simplefilter("ignore", PyinvWarning)
                started = time.perf_counter()
                stopped: BaseException | None = None
                try:
                    found = inverter.invert(
                        images[rows],
                        recipe=recipe,
                        seed=seed,
                        target_ids=rows,
                        **{name: given[rows] for name, given in rows_of.items()},
                        progress=progress,
                    )
                    if found.cancelled:
                        stopped = KeyboardInterrupt()
                except Exception as error:
                    if getattr(error, "inversion", None) is None:
                        raise
                    stopped, found = error, error.inversion  # type: ignore[attr-defined]
                inversion = _joined(before[0] if before else None, found)
                if not inversion.cancelled:
                    self._facts[id] = write(output, inversion)
                    part.unlink(missing_ok=True)
                elif not coupled and not _unfinished(inversion).all():
                    # The error that stopped the run takes precedence over one while writing.
                    failed = not isinstance(stopped, KeyboardInterrupt)
                    with (
                        contextlib.suppress(*[OutputError] * failed),
                        OutputFile(part, overwrite=True) as output,
                    ):
                        write(output, inversion)
                if stopped is None and received():
                    stopped = KeyboardInterrupt()
                if stopped is not None:
                    raise stopped
        latents = inversion.latents
        of = rows_of.get("conditions")
        return replace(inversion, _images=lambda: inverter.generate(latents, conditions=of))


def _unfinished(inversion: Inversion) -> NDArray[np.bool_]:
    """Return a mask of the targets that are not done."""
    unfinished: NDArray[np.bool_] = inversion.status == Status.CANCELLED
    return unfinished


def _joined(before: Inversion | None, found: Inversion) -> Inversion:
    """Merge a run's cached targets with newly inverted ones."""
    if before is None:
        return replace(found, cancelled=bool(_unfinished(found).any()))
    joined = {}
    for name in (*_ROWS, "min_latent_error", "psnr"):
        if getattr(before, name) is not None:
            joined[name] = getattr(before, name).copy()
            joined[name][_unfinished(before)] = getattr(found, name)
    return replace(before, **joined, cancelled=bool(_unfinished(found).any()))


def _hash(array: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _facts(inverter: Inverter, inversion: Inversion, seconds: float) -> dict[str, Any]:
    equations = inversion.normal_equations
    means: dict[str, Any] = {"mean_steps": float(np.mean(inversion.steps))}
    if equations.any():
        means["mean_normal_equations"] = float(np.mean(equations))
    if inversion.psnr is not None and not np.isnan(inversion.psnr).all():
        psnr = float(np.nanmedian(inversion.psnr))
        means["median_psnr"] = f"{psnr:.1f} dB" if np.isfinite(psnr) else "infinite"
    return {
        "bundle": inverter.manifest.name or inverter.bundle.path.name,
        "batch_norm": inverter.manifest.batch_norm,
        "targets": len(inversion),
        "seed": inversion.seed,
        "runtime": f"{RUNTIMES[inverter.runtime]} {runtimes.load(inverter.runtime)}",
        "device": inverter.device,
        "threads": inverter.threads,
        "batch_size": inverter.batch_size,
        "seconds": round(seconds, 2),
        "status": {name: count for name, count in inversion.counts().items() if count},
        **means,
        "pyinv": pyinv.__version__,
    }


def _write(
    file: BinaryIO,
    inversion: Inversion,
    settings: dict[str, Any],
    fingerprint: str,
    facts: dict[str, Any],
) -> None:
    """Write a file that ``Inversion.load`` reads, with the settings as an additional entry."""
    archived = io.BytesIO()  # appending to an archive needs a readable file
    inversion.save(archived, images=False)
    text = json.dumps({"fingerprint": fingerprint, "settings": settings, "facts": facts})
    with zipfile.ZipFile(archived, "a") as archive, archive.open("settings.npy", "w") as member:
        np.lib.format.write_array(member, np.asarray(text), allow_pickle=False)
    file.write(archived.getbuffer())


def _read(path: Path, fingerprint: str, count: int) -> tuple[Inversion, dict[str, Any]] | None:
    """Return a cached inversion and its facts; None if no run with these settings is cached."""
    try:
        cached = json.loads(str(read_npz(path, ["settings"])["settings"]))
        if cached["fingerprint"] != fingerprint:
            return None
        inversion = Inversion.load(path)
        if len(inversion) != count:
            return None
        return inversion, dict(cached["facts"])
    except Exception:  # a damaged file counts as not cached
        return None
