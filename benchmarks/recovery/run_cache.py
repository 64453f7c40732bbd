"""Cache measurements on disk, so that an interrupted benchmark resumes where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import pyinv
from pyinv import _core
from pyinv.atomic_files import write_whole
from pyinv.recipes import Recipe
from pyinv.result import Status

__all__ = ["Found", "RunCache"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Found:
    """A recipe's results and cost for N targets.

    Args:
        latents: float32 [N, d].
        loss: float32 [N], the recipe's own loss.
        status: [N], the codes of ``pyinv.Status``.
        steps: [N].
        attempts: [N].
        normal_equations: [N], evaluations of the normal equations.
        min_latent_error: [N], the lowest latent error at any step; None without true latents.
        seconds: wall time of the run, or the sum over its parts.
        recipe: the recipe.
    """

    latents: Array
    loss: Array
    status: Array
    steps: Array
    attempts: Array
    normal_equations: Array
    min_latent_error: Array | None
    seconds: float
    recipe: Recipe

    def __len__(self) -> int:
        return len(self.latents)


_ARRAYS = tuple(field.name for field in fields(Found) if field.name not in ("seconds", "recipe"))


class RunCache:
    """A cache of runs and measurements; each file is named by the run's name and settings.

    Settings are everything that a result depends on: recipe, seed, images, the bundle's files,
    threads, and the versions of the engine and of ONNX Runtime. With other settings it runs again.

    Args:
        folder: the cache's folder, created if missing.
        fresh: ignore results of earlier benchmarks.
        progress: whether runs show a progress bar.
        say: called with a line about each measurement.
    """

    def __init__(
        self, folder: Path, *, fresh: bool, progress: bool, say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._fresh = fresh
        self._progress = progress
        self._say = say
        self._made: set[Path] = set()
        self.read_back = 0
        self.measured = 0
        folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        name: str,
        inverter: pyinv.Inverter,
        images: Array,
        recipe: Recipe,
        *,
        true_latents: Array | None = None,
        at_a_time: int | None = None,
        **options: Any,
    ) -> Found:
        """Return the result of ``inverter.invert``, from the cache if it is there.

        After Ctrl-C finished targets stay in the cache, and the next call inverts the others.

        Args:
            name: the run's name, for messages and file names.
            inverter, images, recipe: as in ``Inverter.invert``; target n has the id n.
            true_latents: the latents that made the images, if known.
            at_a_time: the most targets per call. If the process is killed, a long run loses at
                most one such part.
            options: other arguments of ``Inverter.invert``, as JSON values.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        recipe = recipe.fit(inverter.manifest.prior)
        described = {
            "recipe": recipe.describe(),
            "bundle": {name: one.sha256 for name, one in inverter.manifest.files.items()},
            "threads": inverter.threads,
            "batch_size": inverter.batch_size,
            "options": options,
        }
        parts = []
        size = at_a_time or len(images)
        for start in range(0, len(images), size):
            rows = np.arange(start, min(start + size, len(images)))
            of = f" {rows[0] + 1} to {rows[-1] + 1} of {len(images)}" if size < len(images) else ""
            parts.append(
                self._run(
                    f"{name}{of}", described, inverter, images, recipe, true_latents, rows, options
                )
            )
        return _joined(parts, recipe)

    def measurement(self, name: str, settings: Any, measure: Callable[[], Any]) -> Any:
        """Return the result of ``measure()``, JSON values, from the cache if it is there.

        Args:
            name: the measurement's name, for messages and the file name.
            settings: what it depends on besides the versions, as JSON values.
            measure: the function to call.
        """
        path = self._path(name, settings, "json")
        if self._may_read(path):
            try:
                cached = json.loads(path.read_text(encoding="utf-8"))
                self._note(path)
                return cached
            except (OSError, ValueError):  # measuring again replaces the file
                pass
        self._say(name)
        measured = measure()
        write_whole(path, json.dumps(measured).encode())
        self._made.add(path)
        self.measured += 1
        return measured

    def _run(
        self,
        name: str,
        described: dict[str, Any],
        inverter: pyinv.Inverter,
        images: Array,
        recipe: Recipe,
        true_latents: Array | None,
        rows: NDArray[np.int64],
        options: dict[str, Any],
    ) -> Found:
        known = None if true_latents is None else true_latents[rows]
        settings = {
            **described,
            "rows": [int(rows[0]), int(rows[-1])],
            "images": _hash(images[rows]),
            "true_latents": None if known is None else _hash(known),
        }
        path = self._path(name, settings, "npz")
        before = _read(path, recipe) if self._may_read(path) else None
        unfinished = np.ones(len(rows), bool) if before is None else _unfinished(before)
        if before is not None and not unfinished.any():
            self._note(path)
            return before
        done = f", {len(rows) - unfinished.sum()} were done before" if not unfinished.all() else ""
        self._say(f"{name}: {len(rows)} targets{done}")
        started = time.perf_counter()
        with warnings.catch_warnings():
            # Methods are compared on images that some of them are not for.
            warnings.simplefilter("ignore", pyinv.PyinvWarning)
            inversion = inverter.invert(
                images[rows[unfinished]],
                recipe=recipe,
                target_ids=rows[unfinished],
                true_latents=None if known is None else known[unfinished],
                progress=self._progress,
                **options,
            )
        found = _found(inversion, time.perf_counter() - started, recipe)
        if before is not None:
            found = _completed(before, found, unfinished)
        if not _unfinished(found).all():
            write_whole(path, _packed(found))
            self._made.add(path)
        if inversion.cancelled:
            raise KeyboardInterrupt
        self.measured += 1
        return found

    def _path(self, name: str, settings: Any, suffix: str) -> Path:
        text = json.dumps([settings, _versions()], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        plain = "".join(letter if letter.isalnum() else "-" for letter in name)
        return self._folder / f"{plain}-{digest}.{suffix}"

    def _may_read(self, path: Path) -> bool:
        return path.is_file() and (not self._fresh or path in self._made)

    def _note(self, path: Path) -> None:
        """Count a result of an earlier benchmark, once."""
        if path not in self._made:
            self._made.add(path)
            self.read_back += 1


def _found(inversion: pyinv.Inversion, seconds: float, recipe: Recipe) -> Found:
    count = len(inversion)
    arrays = {name: getattr(inversion, name) for name in _ARRAYS}
    arrays["latents"] = arrays["latents"].reshape(count, -1)
    return Found(**arrays, seconds=seconds, recipe=recipe)


def _unfinished(found: Found) -> NDArray[np.bool_]:
    """Return which targets are not finished."""
    cancelled: NDArray[np.bool_] = found.status == Status.CANCELLED
    return cancelled


def _completed(before: Found, found: Found, unfinished: NDArray[np.bool_]) -> Found:
    """Return an earlier run, completed with new results for its unfinished targets."""
    arrays = {}
    for name in _ARRAYS:
        whole = getattr(before, name)
        if whole is not None:
            whole = whole.copy()
            whole[unfinished] = getattr(found, name)
        arrays[name] = whole
    return Found(**arrays, seconds=before.seconds + found.seconds, recipe=found.recipe)


def _joined(parts: list[Found], recipe: Recipe) -> Found:
    arrays = {
        name: None
        if getattr(parts[0], name) is None
        else np.concatenate([getattr(part, name) for part in parts])
        for name in _ARRAYS
    }
    return Found(**arrays, seconds=sum(part.seconds for part in parts), recipe=recipe)


def _packed(found: Found) -> memoryview:
    content = io.BytesIO()
    arrays = {name: getattr(found, name) for name in _ARRAYS}
    there = {name: array for name, array in arrays.items() if array is not None}
    np.savez(content, seconds=np.float64(found.seconds), **there)
    return content.getbuffer()


def _read(path: Path, recipe: Recipe) -> Found | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file.get(name) for name in _ARRAYS}
            return Found(**arrays, seconds=float(file["seconds"]), recipe=recipe)
    except Exception:  # running again replaces the file
        return None


def _hash(array: Array) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


@cache
def _versions() -> dict[str, str]:
    engine = hashlib.sha256(Path(_core.__file__).read_bytes()).hexdigest()
    return {
        "pyinv": pyinv.__version__,
        "engine": engine,
        "onnxruntime": onnxruntime.__version__,
    }
