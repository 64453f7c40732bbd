"""Where the data lies that generators come from, and that they never saw."""

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
    """Return the folder that holds the face generator, MNIST and Omniglot, or None.

    Args:
        given: what the command line says; comes first, then the environment's PYINV_DATA. Neither
            has to hold all three.
        repository: else the first folder ``data`` is taken that does hold all three: in the
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
    except OSError:  # a neighbour's folder that may not be entered
        return False
