"""A cache of inversions on disk, so that a long reproduction can be stopped and continued."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import pyinv
from pyinv import runtimes
from pyinv.array_files import read_npz
from pyinv.atomic_files import OutputFile
from pyinv.errors import InputError, OutputError
from pyinv.inverter import Inverter
from pyinv.papers.folder import open_folder
from pyinv.progress import Progress
from pyinv.recipes import Recipe
from pyinv.result import Inversion, Status
from pyinv.validation import as_numpy

__all__ = ["RunCache"]

_ROWS = ("latents", "loss", "status", "steps", "attempts", "normal_equations")

RUNTIMES = {"onnx": "ONNX Runtime", "torchscript": "TorchScript of"}


class RunCache:
    """The inversions of one reproduction, each cached as ``folder/runs/<id>.npz`` once it is done.

    A run that is asked for again with the same settings is read back. Its settings are the recipe,
    the seed, the images, the bundle's files and whatever else the draws and the results depend on.
    A run with other settings, or whose file is damaged, runs again and replaces the file.

    Of a run that was stopped or failed, the targets that were done are kept in
    ``folder/runs/<id>.npz.part``, and the next call inverts the others: a target's result depends
    on its own number and not on when it runs. Where targets depend on one another, by batch-norm
    statistics or a moment penalty, a run is kept whole or not at all.

    Args:
        folder: the reproduction's folder; made if it is not there.

    Attributes:
        read_back: the ids of those that were there already.

    Raises:
        OutputError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Any) -> None:
        self.folder = open_folder(Path(folder) / "runs")
        self._fingerprints: dict[str, str] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self.read_back: set[str] = set()

    def made_with(self) -> dict[str, Any]:
        """Return the versions and machines of all runs that are done, each thing once."""
        names = ("pyinv", "runtime", "device", "threads", "batch_size")
        return {
            name: ", ".join(dict.fromkeys(str(facts[name]) for facts in self._facts.values()))
            for name in names
        }

    def facts(self, id: str) -> dict[str, Any]:
        """Return what a report tells of a run that is done, as JSON values.

        Args:
            id: the run's.

        Returns:
            bundle, targets, seed, batch_size, runtime, device, threads, seconds, status (how many
            ended with each), mean_steps, and pyinv (the version), as they were when it ran.

        Raises:
            InputError: no such run.
        """
        if id not in self._facts:
            known = ", ".join(self._facts) or "none"
            raise InputError(f"run {id!r} is not done; those done are {known}")
        return dict(self._facts[id])

    def run(
        self,
        id: str,
        inverter: Inverter,
        images: Any,
        *,
        recipe: Recipe,
        seed: int,
        true_latents: Any = None,
        init: Any = None,
        condition: Any = None,
        progress: bool | Progress | None = None,
    ) -> Inversion:
        """Return the inversion of these images: the cached one, or a new one, which is then cached.

        Args:
            id: letters, digits, dots, hyphens and underscores; its own for each run.
            true_latents: the latents that made the images, where they are known.
            init: the latents that first attempts begin at; None takes the recipe's start.
            condition: [N, k], for bundles that have a condition.
            inverter, images, recipe, seed, progress: as ``Inverter.invert`` has them.

        Returns:
            the Inversion, of all targets. Its images are made by ``inverter`` when first asked for.

        Raises:
            InputError: an id of other characters, or one that was run with other settings before.
            KeyboardInterrupt: Ctrl-C. Finished runs stay, and this one's targets as said above.
            OutputError: the run cannot be written.
            All that ``Inverter.invert`` raises.
        """
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", id):
            raise InputError(
                f"a run's id must be letters, digits, dots, hyphens and underscores, got {id!r}"
            )
        manifest = inverter.manifest
        # With all that the run will have, so that its description tells it apart.
        recipe = recipe.fit(manifest.prior)
        images = as_numpy(images, "images", "floats [N, C, H, W]")
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
            for name, given in (
                ("true_latents", true_latents),
                ("init", init),
                ("condition", condition),
            )
            if given is not None
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

            # The draft is opened before the work, so that a bad folder is found at once.
            with OutputFile(path) as output:
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
                    # Of two errors, the one that stopped the run is raised.
                    failed = not isinstance(stopped, KeyboardInterrupt)
                    with contextlib.suppress(*[OutputError] * failed), OutputFile(part) as output:
                        write(output, inversion)
                if stopped is not None:
                    raise stopped
        latents = inversion.latents
        of = rows_of.get("condition")
        return replace(inversion, _images=lambda: inverter.generate(latents, condition=of))


def _unfinished(inversion: Inversion) -> NDArray[np.bool_]:
    """Return which targets are not done."""
    unfinished: NDArray[np.bool_] = inversion.status == Status.CANCELLED
    return unfinished


def _joined(before: Inversion | None, found: Inversion) -> Inversion:
    """Return a run's cached targets together with those that were found now."""
    if before is None:
        return replace(found, cancelled=bool(_unfinished(found).any()))
    joined = {}
    for name in (*_ROWS, "min_latent_error"):
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
    means = {"mean_steps": float(np.mean(inversion.steps))}
    if equations.any():
        means["mean_normal_equations"] = float(np.mean(equations))
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
    """Write what ``Inversion.load`` reads, with one more text in it: the settings."""
    archived = io.BytesIO()  # which can be read back, as adding to an archive needs
    inversion.save(archived, images=False)
    text = json.dumps({"fingerprint": fingerprint, "settings": settings, "facts": facts})
    with zipfile.ZipFile(archived, "a") as archive, archive.open("settings.npy", "w") as member:
        np.lib.format.write_array(member, np.asarray(text), allow_pickle=False)
    file.write(archived.getbuffer())


def _read(path: Path, fingerprint: str, count: int) -> tuple[Inversion, dict[str, Any]] | None:
    """Return what was kept of a run and its facts; None where there is none of these settings."""
    try:
        cached = json.loads(str(read_npz(path, ["settings"])["settings"]))
        if cached["fingerprint"] != fingerprint:
            return None
        inversion = Inversion.load(path)
        if len(inversion) != count:
            return None
        return inversion, dict(cached["facts"])
    except Exception:  # whatever is wrong with the file: the run is made again
        return None
