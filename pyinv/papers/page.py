"""The page of a report: one self-contained HTML file, rendered from the report's numbers."""

from __future__ import annotations

import base64
import io
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pyinv.errors import InputError

__all__ = ["PAGE_IDS", "render"]

STYLE = Path(__file__).with_name("page.css")
# The ids of the sections that every page has.
PAGE_IDS = ("what-was-run", "differences", "runs")
NONE = '<span class="none">–</span>'

PROPER_NAMES = {
    "median_psnr": "Median PSNR",
    "numpy": "NumPy",
    "onnxruntime": "ONNX Runtime",
    "pyinv": "pyinv",
    "torch": "PyTorch",
}
# "Figure 2: what it shows", or "Figure 2, which part: what it shows".
LABELLED = r"((?:Table|Figure|Fig\.)\s+\S+?(?:, [^:]+)?)\s*[:.–—-]\s+(.*)"
# A longer fact gets its own line.
LONG_FACT = 60  # characters
CSS_DOTS_PER_INCH = 96
# A picture without a resolution is enlarged by an integer factor, to at most about this width.
ENLARGED_WIDTH = 480
# On a narrow screen, a picture shrinks to this share of its size, where its text is still readable,
# then scrolls. The text of plots is larger, and they are as wide as NARROW.
LEAST_SHRUNK = 0.8
LEAST_SHRUNK_IF_NARROW = 2 / 3
NARROW = 480


def render(numbers: Mapping[str, Any], folder: Path) -> str:
    """Return the page as HTML.

    Args:
        numbers: the content of numbers.json.
        folder: the folder that the paths of its figures are relative to.

    Raises:
        InputError: a picture is missing or damaged.
    """
    paper = numbers["paper"]
    content = numbers["content"]
    sections = [
        ("what-was-run", ("", "What was run"), _facts({**numbers["settings"], **numbers["made"]}))
    ]
    for entry, label in zip(content, _labels(content), strict=True):
        sections.append((entry["id"], label, _body(entry, label, folder)))
    if numbers["differences"]:
        label = ("", "What differs from the paper")
        sections.append(("differences", label, _differences(numbers["differences"])))
    if numbers["runs"]:
        sections.append(("runs", ("", "Runs"), _runs(numbers["runs"])))
    kinds = {entry["id"]: entry["kind"] for entry in content if entry["kind"] != "text"}
    contents = "".join(
        f'<li><a href="#{escape(id)}">{_titled(label)}</a></li>' for id, label, _ in sections
    )
    main = "".join(
        f'<section id="{escape(id)}"{_class(kinds.get(id))}><h2>{_titled(label)}</h2>{body}'
        "</section>\n"
        for id, label, body in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(paper["title"])} · reproduced with pyinv</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header class="top">
{_header(paper)}
</header>
<div class="columns">
<nav aria-label="Contents"><h2>Contents</h2><ol>{contents}</ol></nav>
<main>
{main}
</main>
</div>
<footer><p>Every number of ours in this report can be recomputed from numbers.json:
<code>pyinv.papers.report.check(json.load(open("numbers.json")))</code>. Hover over a number to see
the function and arrays it was computed from.</p></footer>
</body>
</html>
"""


def _header(paper: Mapping[str, Any]) -> str:
    link = paper["link"]
    if re.match(r"https?://", link):
        shown = re.sub(r"^https?://(www\.)?", "", link).rstrip("/")
        link = f'<a href="{escape(link)}">{escape(shown)}</a>'
    else:
        link = escape(link)
    year = "" if str(paper["year"]) in paper["venue"] else str(paper["year"])
    where = " · ".join(filter(None, [escape(paper["venue"]), year, link]))
    return (
        f'<p class="eyebrow">Reproduction report · {escape(paper["name"])}</p>'
        f"<h1>{escape(paper['title'])}</h1>"
        f'<p class="authors">{escape(paper["authors"])}</p><p class="venue">{where}</p>'
    )


def _facts(facts: Mapping[str, Any]) -> str:
    texts = [
        (_name(name), _text(value)) for name, value in facts.items() if value not in (None, [])
    ]
    items = "".join(
        f"<div{' class=wide' if len(text) > LONG_FACT else ''}><dt>{escape(name)}</dt>"
        f"<dd>{escape(text)}</dd></div>"
        for name, text in texts
    )
    return f'<dl class="facts">{items}</dl>'


def _differences(differences: Sequence[Mapping[str, str]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(row["what"])}</th><td data-label="In the paper">'
        f'{escape(row["paper"])}</td><td data-label="Here">{escape(row["here"])}</td></tr>'
        for row in differences
    )
    return (
        '<table class="differences"><thead><tr><th scope="col">What</th><th scope="col">In the '
        f'paper</th><th scope="col">Here</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _body(entry: Mapping[str, Any], label: tuple[str, str], folder: Path) -> str:
    if entry["kind"] == "table":
        return _table(entry, label[1])
    if entry["kind"] == "figure":
        return _figure(entry, folder)
    return "".join(f"<p>{_fill(text, entry['cells'])}</p>" for text in entry["paragraphs"])


# -- tables


def _table(entry: Mapping[str, Any], title: str) -> str:
    columns, rows = entry["columns"], entry["rows"]
    notes: list[str] = []
    best = {
        name: [
            _best(index, column, [row for row in rows if row["group"] == name])
            for index, column in enumerate(columns)
        ]
        for name in {row["group"] for row in rows}
    }
    body = []
    group = ""
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            body.append(
                f'<tr class="group"><th scope="colgroup" colspan="{len(columns) + 1}">'
                f"{escape(group)}</th></tr>"
            )
        cells = "".join(
            f"<td{_tint(cell, column)}>{_cell(cell, column, notes, best=top)}</td>"
            for cell, column, top in zip(row["cells"], columns, best[row["group"]], strict=True)
        )
        if text := row.get("text"):
            cells = f'<td class="text" colspan="{len(columns)}"><p>{_with_code(text)}</p></td>'
        tag = f'<span class="tag">{escape(row["tag"])}</span>' if row.get("tag") else ""
        emphasis = _class("emphasis" if row["emphasis"] else "")
        body.append(f'<tr{emphasis}><th scope="row">{escape(row["label"])}{tag}</th>{cells}</tr>')
    published = any(
        cell is not None and cell["published"] is not None for row in rows for cell in row["cells"]
    )
    marked = any(top is not None for tops in best.values() for top in tops)
    return (
        f'<p class="caption">{_fill(entry["caption"], entry["cells"])}</p>'
        f"{_legend(published=published, marked=marked, grouped=len(best) > 1)}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
        f'<table class="numbers">{_head(entry)}<tbody>{"".join(body)}</tbody></table></div>'
        f"{_footnotes(notes)}"
    )


def _with_code(text: str) -> str:
    """Return a text as HTML; text between backticks becomes code that breaks only at spaces."""

    def code(found: re.Match[str]) -> str:
        return f"<code>{' '.join(f'<span>{word}</span>' for word in found[1].split())}</code>"

    return re.sub("`([^`]+)`", code, escape(text))


def _footnotes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ol class="notes">{items}</ol>' if items else ""


def _legend(*, published: bool, marked: bool, grouped: bool) -> str:
    """Return the legend that distinguishes our numbers, the published ones and our best."""
    entries = []
    if published:
        entries.append('<span class="ours">ours</span>')
        entries.append('<span class="published">published in the paper</span>')
    if marked:
        where = "each column of a row group" if grouped else "each column"
        entries.append(f'<span class="best">our best in {where}</span>')
    return f'<p class="legend">{"".join(entries)}</p>' if entries else ""


def _head(entry: Mapping[str, Any]) -> str:
    columns = entry["columns"]
    titles = "".join(f'<th scope="col">{escape(column["title"])}</th>' for column in columns)
    corner = escape(entry["row_title"])
    if not any(column["group"] for column in columns):
        return f'<thead><tr><th scope="col">{corner}</th>{titles}</tr></thead>'
    above = "".join(
        f'<th scope="colgroup" colspan="{len(list(adjacent))}">{escape(title)}</th>'
        for title, adjacent in groupby(column["group"] for column in columns)
    )
    return (
        f'<thead><tr class="groups"><td></td>{above}</tr>'
        f'<tr><th scope="col">{corner}</th>{titles}</tr></thead>'
    )


def _best(index: int, column: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the best of our numbers in a column; None if all are equal or there is no best."""
    if column["best"] is None:
        return None
    values = [
        row["cells"][index]["value"]
        for row in rows
        if row["cells"][index] is not None and row["cells"][index]["value"] is not None
    ]
    if len(set(values)) < 2:
        return None
    return float(min(values) if column["best"] == "lowest" else max(values))


def _cell(
    cell: Mapping[str, Any] | None,
    column: Mapping[str, Any],
    notes: list[str],
    *,
    best: float | None = None,
) -> str:
    if cell is None:
        return NONE
    value, published, note = cell["value"], cell["published"], cell["note"]
    classes = "ours best" if best is not None and value == best else "ours"
    ours = f'<span class="{classes}" title="{escape(_origin(cell))}">{_formatted(value, column)}'
    if note:
        if note not in notes:
            notes.append(note)
        ours += f'<sup class="note">{notes.index(note) + 1}</sup>'
    ours += "</span>"
    if published is None:
        return ours
    return f'{ours}<span class="published">{_formatted(published, column)}</span>'


def _tint(cell: Mapping[str, Any] | None, column: Mapping[str, Any]) -> str:
    """Return the attributes that shade a cell in proportion to its share."""
    if cell is None or cell["value"] is None or not column["percent"]:
        return ""
    return f' class="share" style="--share:{min(max(cell["value"], 0), 1):.3f}"'


def _formatted(value: Any, column: Mapping[str, Any]) -> str:
    if value is None:
        return NONE
    if isinstance(value, str):
        return escape(value)
    if column["percent"]:
        return _number(column["format"].format(value * 100)) + '<span class="unit">%</span>'
    return _number(column["format"].format(value))


def _number(text: str) -> str:
    """Return a formatted number as HTML: 1.5e-04 as 1.5×10⁻⁴, with a real minus sign."""
    power = re.fullmatch(r"([-+]?[\d.]+)e([-+]?\d+)", text.strip())
    if power:
        exponent = str(int(power[2])).replace("-", "−")
        return f"{escape(power[1]).replace('-', '−')}×10<sup>{exponent}</sup>"
    return re.sub(r"^-(?=[\d.])", "−", escape(text))


def _origin(cell: Mapping[str, Any]) -> str:
    """Return the call that computed a cell, and its result."""
    arguments = ", ".join(f"{name}={_argument(v)}" for name, v in cell["arguments"].items())
    value = cell["value"]
    return f"{cell['function']}({arguments}) = {'NaN' if value is None else format(value, '.6g')}"


def _argument(value: Any) -> str:
    if isinstance(value, Mapping):
        return _origin(value) if "function" in value else f"{value['run']}/{value['array']}"
    if isinstance(value, list):
        inner = [_argument(item) for item in value[:3]] + (["…"] if len(value) > 3 else [])
        return f"[{', '.join(inner)}]"
    return _text(value)


# -- figures


def _figure(entry: Mapping[str, Any], folder: Path) -> str:
    data, width, height, enlarged = _picture(folder / entry["path"])
    least = width * (LEAST_SHRUNK_IF_NARROW if width <= NARROW else LEAST_SHRUNK)
    card, dark = "card light", ""
    if entry["dark"] is not None:
        card = "card"
        dark = (
            '<source media="screen and (prefers-color-scheme: dark)" '
            f'srcset="data:image/png;base64,{_picture(folder / entry["dark"])[0]}">'
        )
    return (
        f'<figure><div class="{card}"><picture>{dark}<img{_class("pixels" if enlarged else "")} '
        f'src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'style="min-width:{least:.0f}px" alt="{escape(entry["alt"])}"></picture>'
        f"</div><figcaption>{_fill(entry['caption'], entry['cells'])}</figcaption></figure>"
    )


def _picture(path: Path) -> tuple[str, int, int, bool]:
    """Return a PNG file in base64, its size in CSS pixels, and whether it is enlarged."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            picture.verify()
            width, height = picture.size
            dots_per_inch = picture.info.get("dpi", (None,))[0]
    except FileNotFoundError:
        raise InputError(f"{path}: no such picture; write it again") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a readable PNG file ({error}); write it again") from None
    if dots_per_inch:
        scale = CSS_DOTS_PER_INCH / float(dots_per_inch)
    else:
        scale = max(1, ENLARGED_WIDTH // width)
    data = base64.b64encode(content).decode("ascii")
    return data, max(1, round(width * scale)), max(1, round(height * scale)), scale > 1


# -- runs


def _runs(runs: Mapping[str, Any]) -> str:
    return "".join(
        f'<details class="run"><summary>{escape(run["label"])} <code>{escape(id)}</code></summary>'
        + (_facts(run["facts"]) if run["facts"] else "")
        + _recipe(run["recipe"])
        + _arrays(run["arrays"])
        + "</details>"
        for id, run in runs.items()
    )


def _recipe(recipe: Mapping[str, Any] | None) -> str:
    if not recipe:
        return ""
    stages = [
        {name: value for name, value in stage.items() if name != "kind"}
        for stage in recipe.get("stages", [])
    ]
    whole = {name: value for name, value in recipe.items() if name not in ("kind", "stages")}
    if len(stages) == 1:
        return f"<h3>Recipe</h3>{_facts({**whole, **stages[0]})}"
    each = (f"<h4>Stage {number}</h4>{_facts(stage)}" for number, stage in enumerate(stages, 1))
    return f"<h3>Recipe</h3>{_facts(whole)}{''.join(each)}"


def _arrays(arrays: Mapping[str, Any]) -> str:
    rows = []
    for name, array in arrays.items():
        values = np.asarray(array["values"], dtype=array["dtype"])
        numbers = values.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        shape = " × ".join(map(str, values.shape))
        middle = (
            "".join(
                f"<td>{_number(f'{x:.4g}')}</td>"
                for x in (finite.min(), np.median(finite), finite.mean(), finite.max())
            )
            if finite.size
            else f"<td>{NONE}</td>" * 4
        )
        missing = int(numbers.size - finite.size)
        rows.append(
            f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{shape}</td>{middle}'
            f"<td>{missing or NONE}</td></tr>"
        )
    if not rows:
        return ""
    heads = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("", "values", "min", "median", "mean", "max", "not finite")
    )
    return (
        '<h3>Arrays</h3><div class="scroll" tabindex="0"><table class="numbers plain"><thead><tr>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


# -- text


def _labels(content: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield each part's ("Table 1", "what it shows"); parts without a number get a letter."""
    given: Counter[str] = Counter()
    for entry in content:
        kind = str(entry["kind"]).capitalize()
        match = re.match(LABELLED, entry["title"])
        if entry["kind"] == "text":
            yield "", entry["title"]
        elif match:
            yield match[1], _capital(match[2])
        else:
            given[kind] += 1
            yield f"{kind} {_letter(given[kind])}", _capital(entry["title"])


def _letter(number: int) -> str:
    letters = string.ascii_uppercase
    text = ""
    while number:
        number, rest = divmod(number - 1, len(letters))
        text = letters[rest] + text
    return text


def _class(name: str | None) -> str:
    return f' class="{name}"' if name else ""


def _titled(label: tuple[str, str]) -> str:
    number = f'<span class="label">{escape(label[0])}</span> ' if label[0] else ""
    return number + escape(label[1])


def _fill(text: str, cells: Mapping[str, Any]) -> str:
    """Return a text as HTML, with its placeholders replaced by numbers."""
    filled = []
    for literal, name, spec, _ in string.Formatter().parse(text):
        filled.append(escape(literal))
        if name is not None:
            cell = cells[name]
            value = NONE if cell["value"] is None else _number(format(cell["value"], spec or ".4g"))
            filled.append(f'<span class="ours" title="{escape(_origin(cell))}">{value}</span>')
    return "".join(filled)


def _name(name: str) -> str:
    """Return a field's name as words: mean_steps as "Mean steps"."""
    return PROPER_NAMES.get(name) or _capital(name.replace("_", " ").strip())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _text(value: Any) -> str:
    """Return a setting as readable text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e12 else f"{value:.6g}"
    if isinstance(value, Mapping):
        return _rule(value)
    if isinstance(value, list):
        return ", ".join(map(_text, value)) if value else "none"
    return str(value)


def _rule(value: Mapping[str, Any]) -> str:
    rest = {name: item for name, item in value.items() if name != "kind"}
    inner = ", ".join(f"{name.replace('_', ' ')} {_text(item)}" for name, item in rest.items())
    if "kind" not in value:
        return inner
    kind = str(value["kind"]).replace("_", " ")
    return f"{kind} ({inner})" if inner else kind
