"""``run_job``: checks the arguments, opens the source and the folder, and starts the work."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from pyinv.atomic_files import OutputFolder
from pyinv.conditions import condition_rows
from pyinv.errors import InputError
from pyinv.images import check_fit, not_pictures
from pyinv.inverter import Inverter
from pyinv.jobs.folder import JobFile, locked, part_of
from pyinv.jobs.opening import check_pyarrow, open_source
from pyinv.jobs.shards import ShardTable
from pyinv.jobs.stopping import Signals
from pyinv.jobs.work import Event, JobStopped, JobSummary, Work
from pyinv.progress import Progress, check_progress
from pyinv.recipes import Recipe
from pyinv.validation import noise_level, whole_number

__all__ = ["DEFAULT_SHARD_SIZE", "run_job"]

DEFAULT_SHARD_SIZE = 1000


def run_job(
    inverter: Inverter,
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    recipe: str | Recipe = "default",
    loss: str | None = None,
    max_steps: int | None = None,
    restarts: int | None = None,
    seed: int = 0,
    effort: str | None = None,
    noise: float | None = None,
    init: str | None = None,
    conditions: Mapping[str, Any] | None = None,
    fit: str = "crop",
    image_column: str | None = None,
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    uncertainty: bool = False,
    save_images_to: str | os.PathLike[str] | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    shard: str | tuple[int, int] | None = None,
    on_error: str = "result",
    workers: int = 2,
    progress: bool | Progress | None = None,
    on_event: Event | None = None,
) -> JobSummary:
    """Find the latents of any number of images, and write them to a folder of Parquet files.

    The targets are divided into shards of ``shard_size`` rows. A shard is written under a temporary
    name and renamed when it is on the disk. A job that was ended, by whatever, is resumed by the
    same call: finished shards are kept, and the rows do not depend on when it was ended. Memory
    does not grow with the number of targets, except for the list of file names or ids.

    Args:
        inverter: the bundle, and what it runs on.
        source: one or more paths of one kind:

            - image files, folders that are searched recursively (also for .wav files, where targets
              are audio), and lists of files, .txt with one path a line, relative to the list's
              folder. A target's id is its path, relative to the folder or as listed; of several
              folders, relative to the one that holds them all;
            - .npy and IDX files (MNIST's), as for ``load_images``. A target's id is its number,
              counted over all files;
            - Parquet files, Arrow files (also .feather), or folders of them. A target's id is in
              ``id_column``.
        output: the folder of the results, made if necessary.
        recipe: as for ``Inverter.stream``.
        loss: as for ``Inverter.stream``.
        max_steps: as for ``Inverter.stream``.
        restarts: as for ``Inverter.stream``.
        seed: 0 to 2^64 - 1. Random draws depend on the seed and ``target_id(id)``.
        effort: as for ``Inverter.stream``.
        noise: as for ``Inverter.stream``; with ``uncertainty``, as for ``Inverter.uncertainty``.
        init: as for ``Inverter.stream``.
        conditions: what the generator takes beside the latent, by name: a number for all targets,
            or the name of a column of the table.
        fit: how to resize images, see ``load_images``.
        image_column: a table's column of images: encoded images (bytes, or structs of "bytes" and
            "path", as Hugging Face's data sets have), or lists of numbers, as ``load_images``
            expects arrays. None takes "image", or the only column of encoded images.
        id_column: a table's column of ids: unique texts, or whole numbers from 0 to below 2^47.
            None takes "id", and if there is none, the rows' numbers.
        columns: a table's columns to carry through; None carries all others.
        uncertainty: also estimate the latents' uncertainty, see ``Inverter.uncertainty``, with
            ``noise`` if it is given.
        save_images_to: a folder to write each latent's image to, as PNG files, a folder per shard.
        shard_size: rows of a shard, at least 1. A job that is ended abruptly loses the shards that
            were not finished, about two.
        shard: "i/n" or (i, n), with i from 1 to n: work on every n-th shard, from the i-th on. Runs
            with different i may share one folder at the same time, or have one each.
        on_error: "result" gives a target that cannot be read a row with the status "invalid" and a
            reason; "raise" ends the job with an InputError.
        workers: number of threads that decode images, at least 1.
        progress: as for ``Inverter.invert``.
        on_event: called with a dictionary whenever something happens. "event" says what: "start",
            "progress" (about once a second), "shard" (one was written) or "done".

    Returns:
        a summary. ``read_job`` reads the results.

    Raises:
        InputError: a wrong argument, a source that cannot be read or has an id twice, or a folder
            that is a job with other settings.
        OutputError: the folder cannot be written to, or another run is working on it.
        DependencyError: pyarrow is not installed.
        JobStopped: Ctrl-C, or SIGTERM unless the program handles it. What is finished was kept.
        RuleError, BundleError, DeviceError, RunError: as for ``Inverter.stream``.

    Examples:
        >>> pyinv.run_job(inverter, "photos/", "latents/")          # doctest: +SKIP
        >>> pyinv.read_job("latents/").to_table()                   # doctest: +SKIP
    """
    check_pyarrow()
    part = part_of(shard)
    shard_size = whole_number("shard_size", shard_size, at_least=1)
    seed = whole_number("seed", seed, at_least=0, at_most=2**64 - 1)
    workers = whole_number("workers", workers, at_least=1)
    check_fit(fit)
    check_progress(progress)
    if on_error not in ("result", "raise"):
        raise InputError(f'on_error must be "result" or "raise", got {on_error!r}')
    manifest = inverter.manifest
    if save_images_to is not None and not manifest.is_picture:
        raise InputError(f"save_images_to: {not_pictures(manifest)}; leave it out")
    known_noise = noise_level(noise)
    if noise is not None and recipe != "reconstruct" and not uncertainty:
        raise InputError('noise is for recipe="reconstruct" and uncertainty=True; leave it out')
    # What the stream would refuse is refused before the folder becomes a job.
    chosen = inverter._stream_recipe(
        recipe,
        {"max_steps": max_steps, "restarts": restarts},
        known_noise if recipe == "reconstruct" else None,
        init,
        effort,
        loss,
    )
    inverter._session.plan(chosen)
    if chosen.start == "encoder":
        manifest.encode(inverter.runtime)
    if uncertainty:
        inverter.check_uncertainty(noise=known_noise)
    constant, from_columns = _conditions(inverter, conditions)
    paths = [source] if isinstance(source, str | os.PathLike) else list(source)
    folder = Path(output)
    outputs = [folder] if save_images_to is None else [folder, Path(save_images_to)]
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        try:
            with signals.interrupting():
                opened = open_source(
                    paths,
                    manifest,
                    fit=fit,
                    outputs=outputs,
                    image_column=image_column,
                    id_column=id_column,
                    columns=columns,
                    condition_columns=from_columns,
                )
                description = opened.describe()
        except KeyboardInterrupt:
            raise JobStopped(signals.name, 0, 0) from None
        settings = {
            "bundle": inverter.bundle.digest,
            "recipe": chosen.describe(),
            "seed": seed,
            "source": description,
            "shard_size": shard_size,
            "fit": fit,
            "conditions": dict(conditions or {}) or None,
            "columns": None if opened.columns is None else opened.columns.names,
            "uncertainty": uncertainty,
            "noise": known_noise,
            "save_images": save_images_to is not None,
        }
        made_with = {"sources": [str(path) for path in paths], **_machine(inverter)}
        job = JobFile(json.loads(json.dumps(settings)), made_with)
        tables = ShardTable(
            job.digest,
            manifest,
            has_text_ids=opened.has_text_ids,
            columns=opened.columns,
            has_uncertainty=uncertainty,
        )
        stack.enter_context(OutputFolder(folder))
        pictures = None
        if save_images_to is not None:
            pictures = stack.enter_context(OutputFolder(save_images_to)).path
        job = stack.enter_context(locked(folder, part, job))
        work = Work(
            inverter,
            opened,
            folder,
            job,
            part,
            tables,
            constant=constant,
            pictures=pictures,
            noise=known_noise,
            on_event=on_event or (lambda event: None),
        )
        return work(chosen, signals, on_error=on_error, workers=workers, progress=progress)


def _conditions(
    inverter: Inverter, given: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the conditions for all targets, and the columns of the others; check both."""
    known = inverter.manifest.conditions
    columns = {name: value for name, value in (given or {}).items() if isinstance(value, str)}
    constant = {name: value for name, value in (given or {}).items() if name not in columns}
    for name, value in constant.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(
                f"condition {name!r} must be a number for all targets, or the name of a column of "
                f"the table, got {value!r}"
            )
    stand_ins = {
        name: np.zeros((1, known[name].columns) if name in known else 1) for name in columns
    }
    condition_rows(known, {**constant, **stand_ins} or None, 1)
    return constant, columns


def _machine(inverter: Inverter) -> dict[str, Any]:
    """Return what a run's results were made with."""
    package = {"onnx": ("onnxruntime", "onnxruntime-gpu"), "torchscript": ("torch",)}
    runtime = inverter.runtime
    for name in package[inverter.runtime]:
        with contextlib.suppress(PackageNotFoundError):
            runtime = f"{name} {version(name)}"
            break
    return {
        "pyinv": version("pyinv"),
        "runtime": runtime,
        "device": inverter.device,
        "threads": inverter.threads,
        "batch_size": inverter.batch_size,
        "platform": platform.platform(),
    }
