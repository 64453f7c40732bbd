"""Find the data that generators were trained on, and data that they never saw."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["FACES", "MNIST", "OMNIGLOT", "find_data"]

FACES = Path("face_generator", "generator.pt")
MNIST = Path("mnist")
OMNIGLOT = Path("omniglot")

VARIABLE = "PYINV_DATA"
REPOSITORY = Path(__file__).resolve().parents[2]


def find_data(given: Path | None, repository: Path = REPOSITORY) -> Path | None:
    """Return the folder with the face generator, MNIST and Omniglot, or None.

    Args:
        given: the folder from the command line, which takes precedence over the environment's
            PYINV_DATA. Neither needs to have all three.
        repository: without these, the first folder ``data`` with all three is used: in the
            repository, one level below it, or one level below a folder beside it.
    """
    if given is not None:
        return given
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    around = (repository, repository.parent)
    candidates = [
        repository / "data",
        *(path for folder in around for path in sorted(folder.glob("*/data"))),
    ]
    return next((path for path in candidates if _is_whole(path)), None)


def _is_whole(path: Path) -> bool:
    try:
        return (path / FACES).is_file() and (path / MNIST).is_dir() and (path / OMNIGLOT).is_dir()
    except OSError:  # a folder without read permission
        return False
