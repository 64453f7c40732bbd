"""A paper's report: what was run, tables of our numbers beside the published ones, and figures.

A report is plain data, stored in numbers.json. The page, report.html, is a function of that data
and of the PNG files that it names. Every number of ours in the tables and texts is a ``Cell``: it
records the ``pyinv.evaluation`` function and the arguments that it was computed with, so that
``recompute`` can compute it again from the file alone.

An array is written as its dtype and nested lists of numbers, with the fewest digits that read back
as the same floats. JSON has neither NaN nor infinity: non-finite values are written as null, and
null reads as NaN. Cells are computed from the arrays as they read back, so that writing and reading
a report changes no number.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv.atomic_files import refuse_inputs, write_whole
from pyinv.errors import InputError, OutputError
from pyinv.papers.figures import dark_variant
from pyinv.papers.folder import open_folder
from pyinv.papers.page import PAGE_IDS, render

__all__ = [
    "Cell",
    "Column",
    "Paper",
    "Ref",
    "Report",
    "Row",
    "check",
    "check_report_folder",
    "literal",
    "recompute",
]

FORMAT = "pyinv-report"
FORMAT_VERSION = 1
NUMBERS = "numbers.json"
PAGE = "report.html"


@dataclass(frozen=True)
class Paper:
    """The paper that a report reproduces.

    Args:
        name: its name for `pyinv reproduce`.
        title: the paper's title.
        authors: the authors as the paper prints them, as one string.
        year: year of publication.
        venue: where it was published.
        link: a URL, or an identifier such as "arXiv:1611.05644".
    """

    name: str
    title: str
    authors: str
    year: int
    venue: str
    link: str = ""


@dataclass(frozen=True)
class Ref:
    """A reference to an array of a run, as an argument of ``Report.compute``.

    Args:
        run: the run's id, as passed to ``Report.add_run``.
        array: the name of one of that run's arrays.
    """

    run: str
    array: str


def literal(text: str) -> str:
    """Escape braces, so that a caption or paragraph shows the text unchanged."""
    return text.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True)
class Cell:
    """One number of a report and its origin; created by ``Report.compute``.

    Args:
        value: our number; NaN if there is none.
        function: name of the ``pyinv.evaluation`` function that computed it.
        arguments: its keyword arguments as JSON values; an array is ``{"run": ..., "array": ...}``.
        published: the paper's number in the same unit, or a text that is shown unchanged.
        note: a footnote.
    """

    value: float
    function: str
    arguments: Mapping[str, Any]
    published: float | str | None = None
    note: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return the cell as JSON values."""
        return {
            "value": _plain(self.value),
            "published": self.published,
            "note": self.note,
            "function": self.function,
            "arguments": dict(self.arguments),
        }


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: its heading.
        format: ``str.format`` specification of its numbers; None is "{:.3f}", or "{:.0f}" for
            percent.
        percent: whether its numbers, ours and the published ones, are shares to show in percent.
        group: a heading over this column and adjacent columns of the same group.
        best: which of our numbers to highlight: "lowest", "highest" or None.
    """

    title: str
    format: str | None = None
    percent: bool = False
    group: str = ""
    best: str | None = None

    def __post_init__(self) -> None:
        if self.best not in (None, "lowest", "highest"):
            raise InputError(f'best must be "lowest", "highest" or None, got {self.best!r}')
        if self.format is None:
            object.__setattr__(self, "format", "{:.0f}" if self.percent else "{:.3f}")
        try:
            str(self.format).format(1.5)
        except (ValueError, IndexError, KeyError):
            raise InputError(
                f'format must be a text for str.format such as "{{:.3f}}", got {self.format!r}'
            ) from None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        label: its heading.
        cells: one per column; None leaves a cell empty.
        emphasis: whether to highlight it.
        group: a heading over this row and adjacent rows of the same group.
        tag: a few words under its heading, such as "not in the paper".
        text: a text in place of all cells, such as the reason that there are none. Text between
            backticks is shown as code.
    """

    label: str
    cells: Sequence[Cell | None] = ()
    emphasis: bool = False
    group: str = ""
    tag: str = ""
    text: str = ""


@dataclass
class Report:
    """A report on a paper's reproduction. Its parts appear in the order in which they are added.

    Args:
        folder: where ``write`` puts numbers.json and report.html; created if necessary.
        paper: the paper.
        settings: the requested settings: targets, steps, seed, generators, data and so on.
        made: the environment: device, versions and so on.

    Raises:
        OutputError: the folder cannot be created or written to.
    """

    folder: Path
    paper: Paper
    settings: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    made: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        self.folder = open_folder(self.folder)
        self._differences: list[dict[str, str]] = []
        self._runs: dict[str, dict[str, Any]] = {}
        self._content: list[dict[str, Any]] = []
        self._arrays = _Arrays(self._runs)

    def difference(self, what: str, paper: str, here: str) -> None:
        """Add a row to "What differs from the paper".

        Args:
            what: the setting.
            paper: its value in the paper.
            here: its value in this report.
        """
        self._differences.append({"what": what, "paper": paper, "here": here})

    def add_run(
        self,
        id: str,
        label: str,
        *,
        recipe: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the arrays that numbers are computed from, usually those of one inversion.

        Args:
            id: its id for ``Ref``.
            label: its name for people.
            recipe: ``Inversion.recipe``, if the run is an inversion.
            arrays: per-target arrays of numbers or booleans, of any shape. Non-finite values
                become NaN.
            facts: further facts to show; see ``RunCache.facts``.

        Raises:
            InputError: the id is taken, or an array has another type.
        """
        if id in self._runs:
            raise InputError(f"run {id!r} is in the report already; give each run its own id")
        self._runs[id] = {
            "label": label,
            "recipe": _plain(recipe),
            "facts": _plain(facts or {}),
            "arrays": {name: _describe_array(name, array) for name, array in arrays.items()},
        }

    def compute(
        self,
        function_name: str,
        *,
        published: float | str | None = None,
        note: str | None = None,
        **arguments: Any,
    ) -> Cell:
        """Compute a number and return it with its origin.

        Args:
            function_name: a function that ``pyinv.evaluation`` exports and that returns one number.
            published: the paper's number in the same unit (a share for a percent column), or a
                text that is shown unchanged.
            note: a footnote to the number.
            arguments: the function's keyword arguments: ``Ref(run_id, array_name)`` for an array
                of a run, numbers, texts, other cells, and lists of these.

        Raises:
            InputError: no such function, run or array, or a result that is not one number.
        """
        described = {name: self._describe_argument(value) for name, value in arguments.items()}
        value = _evaluate(function_name, described, self._arrays)
        if isinstance(published, (np.floating, np.integer)):
            published = published.item()
        return Cell(value, function_name, described, published, note)

    def add_table(
        self,
        id: str,
        title: str,
        caption: str,
        *,
        columns: Sequence[Column],
        rows: Sequence[Row],
        row_title: str = "",
        cells: Mapping[str, Cell] | None = None,
    ) -> None:
        """Add a table of cells.

        Args:
            id: its anchor in the page.
            title: "Table 1: what it shows" for a table of the paper, "Table 1, which part: …"
                for a part of one; other tables are numbered by letter.
            caption: the caption; ``{name}`` and ``{name:.3f}`` are replaced by ``cells``.
            columns: the columns.
            rows: the rows, each with one cell per column or a text.
            row_title: the heading of the row labels.
            cells: the numbers in the caption.

        Raises:
            InputError: an id that is taken, a row of another length, or a caption with a
                placeholder that is not in ``cells``.
        """
        for row in rows:
            if len(row.cells) != (0 if row.text else len(columns)):
                expected = "no cell beside its text" if row.text else "a cell for each column"
                raise InputError(
                    f"table {id!r}: row {row.label!r} must have {expected}, got {len(row.cells)} "
                    f"for {len(columns)} columns"
                )
        width = len(columns)
        self._add(
            "table",
            id,
            title,
            caption,
            cells,
            row_title=row_title,
            columns=[asdict(column) for column in columns],
            rows=[
                {
                    "label": row.label,
                    "group": row.group,
                    "tag": row.tag,
                    "emphasis": row.emphasis,
                    "text": row.text,
                    "cells": [cell and cell.describe() for cell in row.cells or [None] * width],
                }
                for row in rows
            ],
        )

    def add_figure(
        self,
        id: str,
        title: str,
        caption: str,
        draw: Callable[[Path], str | os.PathLike[str]],
        *,
        alt: str,
        cells: Mapping[str, Cell] | None = None,
    ) -> None:
        """Add a figure.

        Args:
            id: its anchor in the page.
            title: "Figure 1: what it shows" for a figure of the paper, "Figure 1, which part: …"
                for a part of one; other figures are numbered by letter.
            caption: the caption; ``{name}`` and ``{name:.3f}`` are replaced by ``cells``.
            draw: called with the path figures/<id>.png in the report's folder. It writes a PNG file
                inside that folder and returns its path. Dark pages show <id>-dark.png, if there is
                one. The file's resolution sets its size on the page: a file with 192 dots per inch,
                as ``pyinv.papers.figures`` writes, is shown at half its size in pixels.
            alt: the alternative text.
            cells: the numbers in the caption.

        Raises:
            InputError: an id that is taken, a file that is not a PNG inside the folder, or a
                caption with a placeholder that is not in ``cells``.
        """
        path = self._picture(draw(self.folder / "figures" / f"{id}.png"))
        dark = dark_variant(path)
        self._add(
            "figure",
            id,
            title,
            caption,
            cells,
            path=path,
            dark=dark.as_posix() if (self.folder / dark).is_file() else None,
            alt=alt,
        )

    def add_text(
        self,
        id: str,
        title: str,
        paragraphs: Sequence[str],
        *,
        cells: Mapping[str, Cell] | None = None,
    ) -> None:
        """Add a section of text.

        Args:
            id: its anchor in the page.
            title: its heading.
            paragraphs: texts in which ``{name}`` and ``{name:.3f}`` are replaced by ``cells``.
            cells: the numbers in the paragraphs.

        Raises:
            InputError: an id that is taken, or a placeholder that is not in ``cells``.
        """
        if isinstance(paragraphs, str):
            paragraphs = [paragraphs]
        self._add("text", id, title, list(paragraphs), cells)

    def describe(self) -> dict[str, Any]:
        """Return the content of numbers.json."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "paper": asdict(self.paper),
            "settings": _plain(self.settings),
            "made": _plain(self.made),
            "differences": self._differences,
            "content": self._content,
            "runs": self._runs,
        }

    def write(self) -> Path:
        """Write numbers.json and report.html, each atomically.

        Returns:
            the path of report.html.

        Raises:
            InputError: a figure's file is missing or damaged.
            OutputError: the disk is full, or the files cannot be written.
        """
        described = self.describe()
        text = _dump(described) + "\n"
        page = render(json.loads(text), self.folder)
        write_whole(self.folder / NUMBERS, text.encode())
        write_whole(self.folder / PAGE, page.encode())
        return self.folder / PAGE

    def _add(
        self,
        kind: str,
        id: str,
        title: str,
        text: str | Sequence[str],
        cells: Mapping[str, Cell] | None,
        **described: Any,
    ) -> None:
        """Add a part with a caption or with paragraphs, and the cells in that text."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", id):
            raise InputError(
                f"a part's id must be letters, digits, dots, hyphens and underscores, got {id!r}"
            )
        if id in PAGE_IDS or any(entry["id"] == id for entry in self._content):
            raise InputError(f"{id!r} is in the report already; give each part its own id")
        cells = cells or {}
        for one in [text] if isinstance(text, str) else text:
            _check_text(one, cells)
        name = "caption" if isinstance(text, str) else "paragraphs"
        entry: dict[str, Any] = {"kind": kind, "id": id, "title": title, name: text}
        entry["cells"] = {name: cell.describe() for name, cell in cells.items()}
        self._content.append(entry | described)

    def _picture(self, path: str | os.PathLike[str]) -> str:
        picture = Path(path).resolve()
        folder = self.folder.resolve()
        if not picture.is_relative_to(folder):
            raise InputError(f"{path}: expected a picture inside {self.folder}; write it there")
        if not picture.is_file():
            raise InputError(f"{path}: no such picture; write it before adding it")
        return picture.relative_to(folder).as_posix()

    def _describe_argument(self, value: Any) -> Any:
        if isinstance(value, Ref):
            self._arrays.get(value.run, value.array)
            return asdict(value)
        if isinstance(value, np.ndarray) and value.ndim:
            raise InputError(
                "an array must belong to a run, so that it is in numbers.json; "
                "add it with add_run and give Ref(run_id, array_name)"
            )
        if isinstance(value, (list, tuple)):
            return [self._describe_argument(item) for item in value]
        return _plain(value)


def check_report_folder(folder: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise OutputError if a report would replace an input, or a file that is not a report's."""
    refuse_inputs(folder, inputs)
    numbers, page = folder / NUMBERS, folder / PAGE
    try:
        ours = json.loads(numbers.read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        ours = False
    for path in (numbers, page):
        if path.exists() and not ours:
            raise OutputError(f"{path}: exists and is not a report's; give another folder")


def recompute(numbers: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Recompute every number of a report.

    Args:
        numbers: the content of its numbers.json.

    Returns:
        (where, stated, recomputed) per cell. A number that is null in the file is NaN.

    Raises:
        InputError: not the content of a report's numbers.json.
    """
    if not isinstance(numbers, Mapping) or numbers.get("format") != FORMAT:
        raise InputError(f'not a report\'s numbers: expected "format": "{FORMAT}"')
    if numbers.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"format_version is {numbers.get('format_version')!r}, but this pyinv reads "
            f"{FORMAT_VERSION}; install the pyinv that wrote the report, or write it again"
        )
    try:
        arrays = _Arrays(numbers["runs"])
        return [
            (
                where,
                math.nan if cell["value"] is None else float(cell["value"]),
                _evaluate(cell["function"], cell["arguments"], arrays),
            )
            for entry in numbers["content"]
            for where, cell in _cells(entry)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a report's numbers: a wrong or missing entry ({error})") from None


def check(numbers: Mapping[str, Any], *, tolerance: float = 1e-6) -> int:
    """Recompute every number of a report and compare it with the stated one.

    Args:
        numbers: the content of its numbers.json.
        tolerance: the largest relative difference to attribute to rounding.

    Returns:
        the number of numbers compared.

    Raises:
        InputError: a number differs from the recomputed one, or this is not a report's
            numbers.json.
    """
    compared = recompute(numbers)
    for where, stated, recomputed in compared:
        same = math.isclose(stated, recomputed, rel_tol=tolerance)
        if not same and not (math.isnan(stated) and math.isnan(recomputed)):
            raise InputError(
                f"{where}: the report states {stated:.9g}, but its arrays give {recomputed:.9g}; "
                "write the report again"
            )
    return len(compared)


class _Arrays:
    """The arrays of described runs, decoded once."""

    def __init__(self, runs: Mapping[str, Any]) -> None:
        self._runs = runs
        self._decoded: dict[tuple[str, str], NDArray[Any]] = {}

    def get(self, run: str, array: str) -> NDArray[Any]:
        if (run, array) not in self._decoded:
            if run not in self._runs:
                known = ", ".join(self._runs) or "none"
                raise InputError(f"no run {run!r} in the report; its runs are {known}")
            arrays = self._runs[run]["arrays"]
            if array not in arrays:
                known = ", ".join(arrays) or "none"
                raise InputError(f"run {run!r} has no array {array!r}; it has {known}")
            decoded = np.asarray(arrays[array]["values"], dtype=arrays[array]["dtype"])
            decoded.flags.writeable = False
            self._decoded[run, array] = decoded
        return self._decoded[run, array]


def _evaluate(function_name: str, arguments: Mapping[str, Any], arrays: _Arrays) -> float:
    """Call a function of pyinv.evaluation with arguments given as JSON values."""
    from pyinv import evaluation

    if function_name not in evaluation.__all__:
        known = ", ".join(
            name for name in evaluation.__all__ if inspect.isfunction(getattr(evaluation, name))
        )
        raise InputError(f"pyinv.evaluation has no function {function_name!r}; it has {known}")

    def decode(value: Any) -> Any:
        if isinstance(value, Mapping):
            if "run" in value:
                return arrays.get(value["run"], value["array"])
            return _evaluate(value["function"], value["arguments"], arrays)
        if isinstance(value, list):
            return [decode(item) for item in value]
        return value

    function = getattr(evaluation, function_name)
    result = np.asarray(function(**{name: decode(value) for name, value in arguments.items()}))
    if result.ndim or result.dtype.kind not in "fiub":
        raise InputError(
            f"{function_name} must give one number for a cell, got {result.dtype} "
            f"{list(result.shape)}; add its result to a run and use its mean"
        )
    value = float(result)
    return value if math.isfinite(value) else math.nan


def _cells(entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the location and content of every cell in a part of the report."""
    for name, cell in entry["cells"].items():
        yield f"{entry['id']}, {{{name}}}", cell
    for row in entry.get("rows", ()):
        for column, cell in zip(entry["columns"], row["cells"], strict=True):
            if cell is not None:
                labels = (row["group"], row["label"], column["group"], column["title"])
                yield ", ".join([entry["id"], *filter(None, labels)]), cell


def _check_text(text: str, cells: Mapping[str, Cell]) -> None:
    """Check that every placeholder in the text has a cell."""
    try:
        for _, name, spec, conversion in string.Formatter().parse(text):
            if name is None:
                continue
            if name not in cells:
                raise InputError(
                    f"a text has {{{name}}}, which must be one of its cells: "
                    f"{', '.join(cells) or 'none'} (double a brace to show it); got {text!r}"
                )
            if conversion:
                raise ValueError("conversions with ! are not supported")
            format(0.5, spec or "")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"a text has a wrong placeholder ({error}); got {text!r}") from None


def _describe_array(name: str, values: Any) -> dict[str, Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise InputError(
            f"array {name!r} must hold numbers, at least one per target; got {array.dtype} "
            f"{list(array.shape)}"
        )
    return {"dtype": array.dtype.name, "values": _shortest(array)}


def _shortest(array: NDArray[Any]) -> Any:
    """Return nested lists of numbers with the fewest digits that read back as the same values."""
    if array.dtype.kind != "f":
        return array.tolist()
    finite = np.where(np.isfinite(array), array, np.zeros_like(array))
    values = finite.astype(np.float64)
    if array.dtype.itemsize < 8:
        short = np.array([float(str(value)) for value in finite.ravel()]).reshape(array.shape)
        # Reading rounds twice, to double and then to float, so the short form may not be exact.
        values = np.where(short.astype(array.dtype) == finite, short, values)
    lists = values.astype(object)
    lists[~np.isfinite(array)] = None
    return lists.tolist()


def _plain(value: Any) -> Any:
    """Convert a value to JSON values: cells and arrays are described, non-finite floats None."""
    if isinstance(value, Cell):
        return value.describe()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return _shortest(value) if value.ndim else _plain(value.item())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = float(str(value)) if isinstance(value, np.floating) else value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def _dump(value: Any, indent: str = "") -> str:
    """Return JSON text with line breaks between entries, but not inside lists of numbers."""
    deeper = indent + " "
    if isinstance(value, Mapping) and any(isinstance(v, (Mapping, list)) for v in value.values()):
        items = [f"{deeper}{json.dumps(k)}: {_dump(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        return "[\n" + ",\n".join(deeper + _dump(v, deeper) for v in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
