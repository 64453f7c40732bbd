"""Opening a job's source: which kind the given paths are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyinv.bundle import Manifest
from pyinv.errors import DependencyError, InputError, check_source
from pyinv.extras import install_command
from pyinv.images import target_suffixes
from pyinv.jobs.sources import (
    LIST_SUFFIXES,
    ArraySource,
    FileSource,
    Source,
    check_name,
    files_of_list,
    files_under,
    is_idx,
)
from pyinv.jobs.tables import TABLE_SUFFIXES, TableSource

__all__ = ["check_pyarrow", "open_source"]

_KINDS = (
    "image files, folders of them, lists of files (.txt), .npy or IDX files, or Parquet or Arrow "
    "files or folders"
)


def check_pyarrow() -> None:
    """Raise DependencyError if pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DependencyError(f"jobs need pyarrow: {install_command('jobs')}") from None


def open_source(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    manifest: Manifest,
    *,
    fit: str,
    outputs: Sequence[Path] = (),
    image_column: str | None = None,
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    condition_columns: Mapping[str, str] | None = None,
) -> Source:
    """Return the source that the paths name.

    Raises:
        InputError: nothing found, files of several kinds, or a file that cannot be read.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    given = [Path(path) for path in paths]
    if not given:
        raise InputError(f"no sources given; name {_KINDS}")
    found: dict[str, list[Any]] = {"files": [], "arrays": [], "table": []}
    suffixes = target_suffixes(manifest)
    for path in given:
        check_name(path)
        kind, entries = _look_at(path, suffixes)
        found[kind] += entries
        for output in outputs if path.is_dir() else ():
            place = output.resolve()
            if path.resolve() in (place, *place.parents):
                raise InputError(
                    f"{output}: is within the source {path}; write the results somewhere else"
                )
    kinds = [kind for kind, entries in found.items() if entries]
    if len(kinds) > 1:
        raise InputError(f"the sources are {' and '.join(kinds)}; run a job for each kind")
    if kinds == ["table"]:
        return TableSource(
            found["table"],
            manifest,
            fit,
            image_column=image_column,
            id_column=id_column,
            columns=columns,
            condition_columns=dict(condition_columns or {}),
        )
    table_only = {
        "image_column": image_column,
        "id_column": id_column,
        "columns": columns,
        "conditions from columns": condition_columns or None,
    }
    for name, value in table_only.items():
        if value is not None:
            raise InputError(f"{name}: only for tables (Parquet and Arrow files); leave it out")
    if kinds == ["arrays"]:
        return ArraySource(found["arrays"], manifest, fit)
    return _file_source(found["files"], manifest, fit)


def _look_at(path: Path, suffixes: Sequence[str]) -> tuple[str, list[Any]]:
    """Return a path's kind, and what it stands for: of files, (folder or None, names)."""
    suffix = path.suffix.lower()
    if path.is_dir():
        names = files_under(path, [*suffixes, *TABLE_SUFFIXES])
        tables = [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]
        if tables and len(tables) < len(names):
            raise InputError(f"{path}: holds images and tables; name the files")
        if tables:
            return "table", [path / name for name in tables]
        if not names:
            raise InputError(
                f"{path}: no targets in this folder; expected files that end in "
                f"{', '.join([*suffixes, *TABLE_SUFFIXES])}"
            )
        return "files", [(path, names)]
    check_source(path)
    if suffix in LIST_SUFFIXES:
        return "files", [(path, files_of_list(path))]
    if suffix in suffixes:
        return "files", [(path.parent, [path.name])]
    if suffix in TABLE_SUFFIXES:
        return "table", [path]
    if suffix == ".npz":
        raise InputError(
            f"{path}: a .npz file cannot be read in parts; save its array with numpy.save"
        )
    if suffix == ".npy" or is_idx(path):
        return "arrays", [path]
    raise InputError(f"{path}: not a source of a job; expected {_KINDS}")


def _file_source(
    found: Sequence[tuple[Path, list[str]]], manifest: Manifest, fit: str
) -> FileSource:
    """Return the files of folders and lists as one source."""
    if len(found) == 1:
        base, names = found[0]
        if base.suffix.lower() in LIST_SUFFIXES and base.is_file():
            base = base.parent
        return FileSource(base, _unique(names), manifest, fit)
    # Relative to the folder that holds all of them.
    places = [base.parent if base.is_file() else base for base, _ in found]
    common = Path(os.path.commonpath([os.path.abspath(place) for place in places]))
    merged = []
    for place, (_, names) in zip(places, found, strict=True):
        prefix = Path(os.path.abspath(place)).relative_to(common).as_posix()
        merged += names if prefix == "." else [f"{prefix}/{name}" for name in names]
    return FileSource(common, _unique(merged), manifest, fit)


def _unique(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"{twice}: is named twice; each target needs an id of its own")
    return names
