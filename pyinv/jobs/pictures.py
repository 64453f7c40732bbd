"""The images of a shard's latents, a folder of PNG files that is complete or not there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinv.errors import OutputError, one_line
from pyinv.images import save_images

__all__ = ["file_stem", "publish_pictures", "save_pictures"]

FloatArray = NDArray[np.float32]


def save_pictures(
    images: FloatArray,
    folder: Path,
    value_range: tuple[float, float],
    *,
    names: list[str],
    first: bool,
) -> None:
    """Write images of a shard to a folder that stands in for theirs until it is complete."""
    draft = _draft_of(folder)
    with _errors_of_the_disk(folder):
        if first:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
        save_images(images, draft, value_range, names=names)


def publish_pictures(folder: Path) -> None:
    """Move a complete folder of images to its place."""
    with _errors_of_the_disk(folder):
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(_draft_of(folder), folder)


def _draft_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


@contextlib.contextmanager
def _errors_of_the_disk(folder: Path) -> Iterator[None]:
    """Raise OutputError for an error of the disk."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({one_line(error)})") from None


def file_stem(id_: str) -> str:
    """Return the end of an id as part of a file name."""
    stem = id_.rstrip("/").rpartition("/")[2]
    stem = stem.removesuffix(Path(stem).suffix)
    return re.sub(r"[^\w.-]", "_", stem)[:100]
