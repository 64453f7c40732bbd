"""Reports of papers: their numbers, their page, their pictures, and the runs that are kept."""

from __future__ import annotations

import base64
import html.parser
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyinv import Adam, Inverter, Normal, Recipe, Stage, evaluation, recipes
from pyinv.errors import DependencyError, InputError, OutputError, RunError
from pyinv.images import to_uint8
from pyinv.papers import figures
from pyinv.papers.page import LEAST_SHRUNK_IF_NARROW, NARROW, STYLE, render
from pyinv.papers.plan import Planned
from pyinv.papers.report import Column, Paper, Ref, Report, Row, check, literal, recompute
from pyinv.papers.run_cache import RunCache
from pyinv.result import Status
from support.manifests import manifest
from support.tiny_bundle import LATENT, write_tiny_bundle

PAPER = Paper(
    name="tiny",
    title="Recovery of <latents> & more",
    authors='A. Author, B. "Bee" O\'Author',
    year=2017,
    venue="A venue",
    link="https://example.org/paper?a=1&b=2",
)
ERRORS = np.array([1e-5, 3e-4, 0.02, 0.3, 1.7], dtype=np.float32)
BASELINE = np.array([1e-3, 3e-4, 0.5, 0.1, 2.0], dtype=np.float32)
# Of every exponent, in both signs, with infinities and NaN among them.
EVERY_KIND = np.arange(0, 2**32, 2_097_143, dtype=np.uint64).astype(np.uint32).view(np.float32)
DOUBLES = np.arange(0, 2**64 - 2**52, 2**53 - 111, dtype=np.uint64).view(np.float64)


@pytest.fixture
def report(tmp_path):
    """A report with two runs."""
    report = Report(tmp_path / "report", PAPER, settings={"targets": 5}, made={"device": "cpu"})
    report.add_run("ours", "our run", arrays={"errors": ERRORS}, facts={"seconds": 1.5})
    report.add_run("baseline", "the baseline", arrays={"errors": BASELINE})
    return report


@pytest.fixture
def picture(report):
    """The path of a PNG in the report's folder."""
    images = np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 1, 8, 8)
    return figures.image_grid(images, report.folder / "grid.png", value_range=(-1, 1))


def cell(report, published=None, threshold=0.01, note=None):
    return report.compute(
        "recovery_rate",
        errors=Ref("ours", "errors"),
        threshold=threshold,
        published=published,
        note=note,
    )


def table(report, cells, columns=None, **arguments):
    columns = columns or [Column(f"column {i}") for i in range(len(cells))]
    report.add_table("table", "A table", "It", columns=columns, rows=[Row("row", cells)])
    return written(report)


def written(report):
    """Write the report and return its numbers and its page."""
    path = report.write()
    return (
        json.loads((report.folder / "numbers.json").read_text("utf-8")),
        path.read_text("utf-8"),
    )


def text_of(page, selector):
    """Return the texts of the elements that are ``<selector>...</``."""
    found = re.findall(rf"<{selector}>(.*?)</(?:span|td|th|p|dd)>", page, re.DOTALL)
    return [re.sub(r"<[^>]*>", "", text).strip() for text in found]


# -- numbers


@pytest.mark.parametrize(
    "array",
    [
        EVERY_KIND,
        EVERY_KIND[:2048].reshape(64, 32),
        DOUBLES,
        np.arange(-3, 4),
        np.array([True, False]),
        np.zeros(0, dtype=np.float32),
        np.array([2**63, 5], dtype=np.uint64),
        np.array([0.1, 65504, 6e-8], dtype=np.float16),
    ],
    ids=["float32", "2d", "float64", "int64", "bool", "empty", "uint64", "float16"],
)
def test_arrays_come_back_to_the_last_bit(tmp_path, array):
    report = Report(tmp_path, PAPER)
    report.add_run("run", "a run", arrays={"values": array})
    numbers, _ = written(report)
    held = numbers["runs"]["run"]["arrays"]["values"]
    back = np.asarray(held["values"], dtype=held["dtype"])
    expected = array.copy()
    if array.dtype.kind == "f":
        expected[~np.isfinite(array)] = np.nan
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, expected)
    np.testing.assert_array_equal(
        np.signbit(back[back == back]), np.signbit(expected[back == back])
    )


def test_numbers_of_a_full_reproduction_are_small(tmp_path):
    # As the widest: three runs of 1,000 latents of 100 components, 18 of 100 targets.
    latents = np.sin(np.arange(1e5, dtype=np.float32)).reshape(1000, 100)
    report = Report(tmp_path, PAPER)
    for run in range(3):
        report.add_run(f"wide-{run}", "wide", arrays={"latents": latents})
    for run in range(18):
        report.add_run(f"run-{run}", "run", arrays={"errors": latents[run], "loss": latents[-run]})
    report.write()
    assert (tmp_path / "numbers.json").stat().st_size < 4_000_000


def test_a_cell_is_what_the_function_gives(report):
    assert cell(report).value == evaluation.recovery_rate(ERRORS, 0.01) == 0.4
    wins = report.compute(
        "win_rate", errors=Ref("ours", "errors"), baseline_errors=Ref("baseline", "errors")
    )
    assert wins.value == evaluation.win_rate(ERRORS, BASELINE)


def test_values_that_are_not_finite_are_null_and_recomputed_as_nan(tmp_path):
    report = Report(tmp_path, PAPER)
    errors = np.array([0.5, np.inf, -np.inf, np.nan], dtype=np.float32)
    report.add_run("run", "a run", arrays={"errors": errors}, facts={"mean": np.float32("nan")})
    nothing = report.compute("mean", values=Ref("run", "errors"))
    assert np.isnan(nothing.value)
    numbers, page = table(report, [nothing])
    text = (tmp_path / "numbers.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert numbers["runs"]["run"]["arrays"]["errors"]["values"] == [0.5, None, None, None]
    assert check(numbers) == 1
    assert text_of(page, r'span class="none"') == ["–"]


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_result_that_is_not_finite_is_stated_as_none(report):
    numbers, _ = table(report, [report.compute("mean", values=[1.7e308, 1.7e308])])
    assert numbers["content"][0]["rows"][0]["cells"][0]["value"] is None
    assert check(numbers) == 1


def everywhere(report, picture):
    """Fill a report with one cell of each threshold at every place that takes one."""
    cells = [cell(report, threshold=threshold) for threshold in (1e-4, 1e-3, 0.1, 1.0)]
    caption, first, text, drawn = cells
    report.add_table(
        "table",
        "A table",
        "{rate:.0%}",
        columns=[Column("rate", group="all")],
        rows=[Row("row", [first], group="some"), Row("empty", [None])],
        cells={"rate": caption},
    )
    report.add_text("text", "A text", ["It is {rate}."], cells={"rate": text})
    report.add_figure(
        "figure",
        "A figure",
        "A share of {share}",
        lambda _: picture,
        alt="a grid",
        cells={"share": drawn},
    )
    mean = report.compute("mean", values=[first, text, 3.0])
    report.add_text("mean", "Mean", ["{mean}"], cells={"mean": mean})
    return written(report)[0]


WHERE = [
    "table, {rate}",
    "table, some, row, all, rate",
    "text, {rate}",
    "figure, {share}",
    "mean, {mean}",
]


def test_every_number_can_be_recomputed(report, picture):
    numbers = everywhere(report, picture)
    assert [where for where, _, _ in recompute(numbers)] == WHERE
    for _, stated, recomputed in recompute(numbers):
        assert stated == recomputed
    assert check(numbers) == len(WHERE)


def every_cell(value):
    if isinstance(value, dict):
        if "function" in value:
            yield value
        else:
            for item in value.values():
                yield from every_cell(item)
    elif isinstance(value, list):
        for item in value:
            yield from every_cell(item)


@pytest.mark.parametrize("index", range(len(WHERE)))
@pytest.mark.parametrize("wrong", [0.123, None])
def test_a_wrong_number_is_found_and_named(report, picture, index, wrong):
    numbers = everywhere(report, picture)
    list(every_cell(numbers["content"]))[index]["value"] = wrong
    (difference,) = [at for at, stated, again in recompute(numbers) if stated != again]
    with pytest.raises(InputError, match=re.escape(difference)):
        check(numbers)


def test_a_changed_array_is_found(report):
    numbers, _ = table(report, [cell(report)])
    numbers["runs"]["ours"]["arrays"]["errors"]["values"][2] = 0.001
    with pytest.raises(InputError, match=r"table, row, column 0.*states 0\.4.*give 0\.6"):
        check(numbers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda numbers: numbers.update(format="other"), "not a report's numbers"),
        (lambda numbers: numbers.update(format_version=99), "format_version is 99"),
        (lambda numbers: numbers.pop("runs"), "wrong or missing entry"),
        (lambda numbers: numbers["runs"].pop("ours"), "no run 'ours'"),
        (lambda numbers: numbers["runs"]["ours"]["arrays"].clear(), "no array 'errors'"),
        (lambda numbers: numbers["content"][0].pop("cells"), "wrong or missing entry"),
    ],
)
def test_what_are_no_numbers_of_a_report(report, change, message):
    numbers, _ = table(report, [cell(report)])
    change(numbers)
    with pytest.raises(InputError, match=message):
        recompute(numbers)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.compute("nonsense"), "no function 'nonsense'; it has .*recovery_rate"),
        (lambda r: r.compute("np"), "no function 'np'"),
        (lambda r: r.compute("mean", values=Ref("no", "errors")), "no run 'no'.* ours, baseline"),
        (lambda r: r.compute("mean", values=Ref("ours", "no")), "no array 'no'; it has errors"),
        (lambda r: r.compute("mean", values=ERRORS), "must belong to a run"),
        (
            lambda r: r.compute(
                "mean_absolute_error",
                images=[[[[0.5]]], [[[0.25]]]],
                reconstructions=[[[[0.5]]], [[[0.5]]]],
            ),
            "must give one number",
        ),
        (lambda r: r.add_run("ours", "again", arrays={}), "'ours' is in the report already"),
        (lambda r: r.add_run("new", "", arrays={"a": ["x"]}), "array 'a' must hold numbers"),
        (lambda r: r.add_run("new", "", arrays={"a": np.float32(1)}), "array 'a' must hold"),
        (
            lambda r: r.add_table("t", "", "", columns=[Column("a")], rows=[Row("b", [])]),
            "row 'b' must have a cell for each column, got 0 for 1 columns",
        ),
        (
            lambda r: r.add_table(
                "t", "", "", columns=[Column("a")], rows=[Row("b", [None], text="x")]
            ),
            "row 'b' must have no cell beside its text, got 1",
        ),
        (lambda r: r.add_text("t", "", ["{rate}"]), "{rate}, which must be one of its cells: none"),
        (lambda r: r.add_text("t", "", ["{"]), "wrong placeholder"),
        (lambda r: r.add_text("t", "", ["{a:d}"], cells={"a": cell(r)}), "wrong placeholder"),
        (lambda r: r.add_text("t", "", ["{a!r}"], cells={"a": cell(r)}), "wrong placeholder"),
        (lambda r: r.add_text("a b", "", []), "a part's id must be"),
        (lambda r: r.add_text("runs", "", []), "'runs' is in the report already"),
        (lambda r: (r.add_text("t", "", []), r.add_text("t", "", [])), "'t' is in the report"),
        (
            lambda r: r.add_figure("f", "", "", lambda _: "/etc/hosts", alt=""),
            "expected a picture inside",
        ),
        (lambda r: r.add_figure("f", "", "", lambda path: path, alt=""), "no such picture"),
        (lambda r: Column("a", "{:.3q}"), "format must be"),
        (lambda r: Column("a", best="largest"), 'best must be "lowest"'),
    ],
)
def test_bad_input_is_told_in_one_line(report, call, message):
    with pytest.raises(InputError, match=message) as raised:
        call(report)
    assert "\n" not in str(raised.value)


# -- the page


class Checker(html.parser.HTMLParser):
    """Collects what a page that works offline may not have, and whether its tags are balanced."""

    VOID = ("meta", "img", "br", "source")

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.names = [], [], [], [], set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name == "href":
                self.links.append(value)
            elif name in ("src", "srcset"):
                self.sources.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(report, picture):
    everywhere(report, picture)
    page = (report.folder / "report.html").read_text("utf-8")
    checker = Checker(page)
    assert checker.open == []
    assert not checker.names & {"script", "link", "iframe", "object"}
    assert len(set(checker.ids)) == len(checker.ids)
    inner = [link[1:] for link in checker.links if link.startswith("#")]
    assert inner == ["what-was-run", "table", "text", "figure", "mean", "runs"]
    assert set(inner) <= set(checker.ids)
    assert [link for link in checker.links if not link.startswith("#")] == [PAPER.link]
    assert all(source.startswith("data:image/png;base64,") for source in checker.sources)
    assert "url(" not in page
    assert "@import" not in page


def test_results_come_before_the_differences(report, picture):
    report.difference("Targets", "1,000", "5")
    everywhere(report, picture)
    page = (report.folder / "report.html").read_text("utf-8")
    sections = re.findall(r'<section id="([^"]+)"', page)
    assert sections == ["what-was-run", "table", "text", "figure", "mean", "differences", "runs"]


def test_settings_without_a_value_are_left_out(tmp_path):
    settings = {"data": [], "generators": ["faces"], "configuration": None, "seed": 0}
    _, page = written(Report(tmp_path, PAPER, settings=settings))
    assert re.findall("<dt>(.*?)</dt>", page) == ["Generators", "Seed"]


def test_dark_pages_show_dark_figures(report, picture):
    other = report.folder / "other.png"
    Image.new("RGB", (8, 8)).save(other)
    report.add_figure("both", "F", "", lambda _: picture, alt="")
    report.add_figure("light", "F", "", lambda _: other, alt="")
    _, page = written(report)
    both, light = re.findall(r'<div class="card.*?</div>', page)
    encoded = base64.b64encode((report.folder / "grid-dark.png").read_bytes()).decode()
    source = (
        f'media="screen and (prefers-color-scheme: dark)" srcset="data:image/png;base64,{encoded}"'
    )
    assert f"<picture><source {source}>" in both
    assert "<source" not in light
    assert light.startswith('<div class="card light">')


def test_the_page_is_a_function_of_the_numbers_and_the_pictures(report, picture):
    numbers = everywhere(report, picture)
    assert render(numbers, report.folder) == (report.folder / "report.html").read_text("utf-8")


def test_all_text_is_escaped(tmp_path):
    evil = "<script>alert(\"1\")</script> & 'x'"
    paper = Paper(evil, evil, evil, 2017, evil, evil)
    report = Report(tmp_path, paper, settings={evil: evil}, made={evil: [evil, {evil: evil}]})
    report.difference(evil, evil, evil)
    arrays = {evil: ERRORS}
    report.add_run(
        "run", evil, recipe={"kind": evil, evil: evil}, arrays=arrays, facts={evil: evil}
    )
    number = report.compute("mean", values=Ref("run", evil), published=evil, note=evil)
    columns = [Column(evil, group=evil)]
    rows = [Row(evil, [number], group=evil, tag=evil), Row(evil, text=f"{evil} `{evil}`")]
    report.add_table("t", evil, evil, columns=columns, rows=rows, row_title=evil)
    report.add_text("p", evil, [evil + "{mean}"], cells={"mean": number})
    image = np.zeros((1, 1, 8, 8), dtype=np.float32)
    path = figures.image_grid(image, tmp_path / "grid.png", value_range=(0, 1))
    report.add_figure("f", evil, evil, lambda _: path, alt=evil)
    _, page = written(report)
    assert "script" not in Checker(page).names
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("column", "published", "shown"),
    [
        (Column("rate"), 0.5, ["0.400", "0.500"]),
        (Column("rate", percent=True), 0.986, ["40%", "99%"]),
        (Column("rate", "{:.1f}", percent=True), 0.986, ["40.0%", "98.6%"]),
        (Column("rate", "{:.2e}"), 2.03e-4, ["4.00×10−1", "2.03×10−4"]),
        (Column("rate", "{:+.1f}"), -0.5, ["+0.4", "−0.5"]),
        (Column("rate"), "not given", ["0.400", "not given"]),
        (Column("rate"), None, ["0.400"]),
    ],
)
def test_ours_and_the_published_figure_are_shown_as_asked(report, column, published, shown):
    _, page = table(report, [cell(report, published)], [column])
    (ours,) = re.findall(r'<span class="ours" title="[^"]*">(.*?)</span>', page)
    found = [
        re.sub("<[^>]*>", "", ours),
        *text_of(page.split("<tbody>")[1], 'span class="published"'),
    ]
    assert found == shown
    assert (published is not None) == ("published in the paper" in page)


def test_the_page_summarizes_each_array(report):
    report.add_run("odd", "odd", arrays={"mixed": [[4.0, np.nan, -1.0], [np.inf, 2.0, 7.5]]})
    _, page = written(report)
    heads = re.findall(r'<th scope="col">([^<]*)</th>', page.split("<h3>Arrays</h3>")[1])
    assert heads[:7] == ["", "values", "min", "median", "mean", "max", "not finite"]
    (errors, _), (mixed,) = (
        re.findall(rf"<code>{name}</code></th>(.*?)</tr>", page) for name in ("errors", "mixed")
    )
    assert text_of(errors, "td") == ["5", "1×10−5", "0.02", "0.4041", "1.7", "–"]
    assert text_of(mixed, "td") == ["2 × 3", "−1", "3", "3.125", "7.5", "2"]


def test_a_text_shows_its_numbers_as_asked(report):
    report.add_text("t", "T", ["{rate} {rate:.2f} {rate:.1e}"], cells={"rate": cell(report)})
    _, page = written(report)
    shown = re.findall(r'<span class="ours" title="[^"]*">(.*?)</span>', page)
    assert shown == ["0.4", "0.40", "4.0×10<sup>−1</sup>"]


def test_a_share_is_shaded_by_our_number(report):
    _, page = table(report, [cell(report, 0.986)], [Column("rate", percent=True)])
    assert re.findall(r"--share:([\d.]+)\"", page) == ["0.400"]


def test_a_small_number_is_checked_as_closely(report):
    report.add_run("small", "small", arrays={"errors": [1e-5, 3e-5]})
    numbers, _ = table(report, [report.compute("mean", values=Ref("small", "errors"))])
    (shown,) = numbers["content"][0]["rows"][0]["cells"]
    shown["value"] *= 1.001
    with pytest.raises(InputError, match=r"states 2\.002e-05, but its arrays give 2e-05"):
        check(numbers)


def test_a_cell_tells_its_origin(report):
    _, page = table(report, [cell(report)])
    assert 'title="recovery_rate(errors=ours/errors, threshold=0.01) = 0.4"' in page


def test_the_best_is_marked_in_each_group_where_figures_differ(report):
    rows = [
        Row(f"{t}", [cell(report, threshold=t)], group=group)
        for group, thresholds in (("a", (0.01, 1e-4)), ("b", (1.0, 0.1)), ("c", (0.1, 0.1)))
        for t in thresholds
    ]
    report.add_table("t", "T", "", columns=[Column("rate", best="highest")], rows=rows)
    _, page = written(report)
    assert re.findall(r'class="ours best"[^>]*>([^<]*)<', page) == ["0.400", "0.800"]
    assert "our best in each column of a row group" in page


def test_a_literal_text_is_shown_as_it_is(report):
    report.add_text(
        "t", "T", [literal("{a} of {{b}") + " {rate:.1f}"], cells={"rate": cell(report)}
    )
    _, page = written(report)
    assert "<p>{a} of {{b} <span" in page


@pytest.mark.parametrize(("best", "marked"), [("lowest", "0.200"), ("highest", "0.800")])
def test_the_best_of_a_column_is_marked(report, best, marked):
    rows = [Row(f"{t}", [cell(report, threshold=t)]) for t in (0.01, 1e-4, 1.0, 0.1)]
    rows.append(Row("none", [None]))
    report.add_table("t", "T", "", columns=[Column("rate", best=best)], rows=rows)
    _, page = written(report)
    assert re.findall(r'class="ours best"[^>]*>([^<]*)<', page) == [marked]


def test_rows_columns_and_notes_are_laid_out(report):
    cells = [
        cell(report, 0.1, note="a note"),
        cell(report, note="a note"),
        cell(report, note="2nd"),
    ]
    columns = [Column("a", group="left"), Column("b", group="left"), Column("c")]
    rows = [Row("one", cells, emphasis=True, group="upper"), Row("two", cells, group="upper")]
    report.add_table("t", "Table 7: some <cells>", "", columns=columns, rows=rows)
    _, page = written(report)
    assert '<th scope="colgroup" colspan="2">left</th>' in page
    assert page.count('<th scope="colgroup" colspan="4">upper</th>') == 1
    assert page.count('<tr class="emphasis">') == 1
    assert re.findall(r'<sup class="note">(\d)</sup>', page) == ["1", "1", "2"] * 2
    assert '<ol class="notes"><li>a note</li><li>2nd</li></ol>' in page
    assert '<span class="label">Table 7</span> Some &lt;cells&gt;' in page


def test_a_row_may_have_a_tag_or_a_text_in_place_of_its_figures(report):
    rows = [
        Row("one", [cell(report), cell(report)], tag="not theirs"),
        Row("two", group="others", text="not run: `pyinv export --normal-equations` <helps>"),
    ]
    report.add_table("t", "T", "", columns=[Column("a", best="lowest"), Column("b")], rows=rows)
    numbers, page = written(report)
    assert '<th scope="row">one<span class="tag">not theirs</span></th>' in page
    (text,) = re.findall(r'<td class="text" colspan="2"><p>(.*?)</p></td>', page)
    assert "<code><span>pyinv</span> <span>export</span>" in text
    assert re.sub("<[^>]*>", "", text) == "not run: pyinv export --normal-equations &lt;helps&gt;"
    assert check(numbers) == 2


def test_numbers_of_an_older_report_are_rendered(report):
    numbers, page = table(report, [cell(report)])
    for row in numbers["content"][0]["rows"]:
        del row["tag"], row["text"]
    assert render(numbers, report.folder) == page


def test_what_is_not_of_the_paper_gets_a_letter(report, picture):
    titles = ("ours", "Figure 2: theirs", "also ours", "Figure 3, below: a part of theirs")
    for id, title in zip("abcd", titles, strict=True):
        report.add_figure(id, title, "", lambda _: picture, alt="")
    _, page = written(report)
    labels = re.findall(r'<h2><span class="label">(.*?)</span> (.*?)</h2>', page)
    assert labels == [
        ("Figure A", "Ours"),
        ("Figure 2", "Theirs"),
        ("Figure B", "Also ours"),
        ("Figure 3, below", "A part of theirs"),
    ]


@pytest.mark.parametrize(
    ("size", "dots_per_inch", "shown"),
    [
        ((400, 200), 192, "200 100"),
        ((400, 200), None, "400 200"),
        ((64, 32), None, "448 224 pixels"),
    ],
)
def test_a_picture_has_its_size(report, size, dots_per_inch, shown):
    path = report.folder / "picture.png"
    Image.new("RGB", size).save(path, **({"dpi": (dots_per_inch,) * 2} if dots_per_inch else {}))
    report.add_figure("f", "F", "", lambda _: path, alt="black")
    _, page = written(report)
    tag = re.search(r"<img[^>]*>", page)[0]
    found = [re.search(rf'{name}="(\d+)"', tag)[1] for name in ("width", "height")]
    assert " ".join([*found, *re.findall(r'class="(\w+)"', tag)]) == shown


@pytest.mark.parametrize("harm", ["missing", "truncated", "no PNG"])
def test_a_bad_picture_is_told(report, picture, harm):
    report.add_figure("f", "F", "", lambda _: picture, alt="")
    if harm == "missing":
        picture.unlink()
    else:
        content = picture.read_bytes()
        picture.write_bytes(content[:60] if harm == "truncated" else b"GIF89a" + content)
    with pytest.raises(InputError, match=re.escape(str(picture))):
        report.write()


def test_a_report_is_replaced_whole_or_not_at_all(report, monkeypatch):
    _, before = table(report, [cell(report)])
    report.add_text("more", "More", ["text"])
    replace = os.replace

    def full(source, target):
        if str(target).endswith("report.html"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"report\.html: cannot be written \(No space left"):
        report.write()
    assert (report.folder / "report.html").read_text("utf-8") == before
    monkeypatch.undo()
    assert 'id="more"' in written(report)[1]
    assert sorted(path.name for path in report.folder.iterdir()) == ["numbers.json", "report.html"]


@pytest.mark.parametrize("make", [lambda path: Report(path, PAPER), RunCache])
def test_a_file_in_place_of_the_folder_is_told(tmp_path, make):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(OutputError, match=re.escape(str(path))):
        make(path)


# -- figures


IMAGES = np.linspace(-1, 1, 6 * 3 * 64, dtype=np.float32).reshape(6, 3, 8, 8)
COLOURS = to_uint8(IMAGES, (-1, 1))


def shown_in(path, zoom=20):
    """Return which of IMAGES a picture shows, row by row."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.info["dpi"] == pytest.approx((192, 192), abs=0.01)
        pixels = np.asarray(picture.convert("RGB"))
    found = []
    for index, image in enumerate(COLOURS):
        tile = image.repeat(zoom, 0).repeat(zoom, 1)
        height, width = tile.shape[:2]
        for top, left in np.argwhere((pixels == tile[0, 0]).all(axis=2)):
            if np.array_equal(pixels[top : top + height, left : left + width], tile):
                found.append((top, left, index))
    return [index for _, _, index in sorted(found)]


def test_a_grid_shows_every_image_on_light_and_on_dark(tmp_path):
    path = figures.image_grid(IMAGES, tmp_path / "new" / "a.png", value_range=(-1, 1))
    dark = figures.dark_variant(path)
    assert shown_in(path) == shown_in(dark) == [0, 1, 2, 3, 4, 5]
    with Image.open(path) as light_picture, Image.open(dark) as dark_picture:
        assert light_picture.getpixel((0, 0)) == (255, 255, 255)
        assert sum(dark_picture.getpixel((0, 0))) < 128
        assert light_picture.size == dark_picture.size


def test_dark_figures_have_the_ground_of_the_page():
    ground = "#{:02x}{:02x}{:02x}".format(*figures.DARK.paper)
    dark = STYLE.read_text("utf-8").partition("@media (prefers-color-scheme: dark)")[2]
    assert f"--card: {ground};" in dark.partition("}")[0]


def test_pairs_alternate(tmp_path):
    path = tmp_path / "a.png"
    figures.pairs(IMAGES[:3], IMAGES[3:], path, value_range=(-1, 1), columns=2)
    assert shown_in(path) == [0, 3, 1, 4, 2, 5]


def test_rows_have_their_images(tmp_path):
    path = tmp_path / "a.png"
    rows = {"target": IMAGES[:2], "found": IMAGES[2:5]}
    figures.image_rows(rows, path, value_range=(-1, 1))
    assert shown_in(path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("count", "size"), [(1, 8), (200, 28), (16, 64), (1, 256), (20, 128)])
def test_pictures_fit_the_page(tmp_path, count, size):
    images = np.zeros((count, 1, size, size), dtype=np.float32)
    path = figures.image_grid(images, tmp_path / "a.png", value_range=(0, 1))
    with Image.open(path) as picture:
        assert picture.width <= max(figures.WIDEST, 16 * (size + 8)) + 2 * figures.MARGIN


@pytest.mark.parametrize(("size", "zoom"), [(8, 20), (16, 10), (32, 5), (64, 2), (128, 1)])
def test_eight_small_images_beside_their_label_are_enlarged(tmp_path, size, zoom):
    rows = {"colour histogram": np.zeros((8, 1, size, size), dtype=np.float32)}
    path = figures.image_rows(rows, tmp_path / "a.png", value_range=(0, 1))
    with Image.open(path) as picture:
        assert picture.height == size * zoom + 2 * figures.MARGIN


@pytest.mark.parametrize("shape", [(2, 8, 8), (0, 1, 8, 8), (2, 2, 8, 8)])
def test_images_of_a_wrong_shape_are_told(tmp_path, shape):
    with pytest.raises(InputError, match=r"must be \[N, C, H, W\]"):
        figures.image_grid(np.zeros(shape), tmp_path / "a.png", value_range=(0, 1))


def test_pairs_that_do_not_match_are_told(tmp_path):
    with pytest.raises(InputError, match=r"shape of the targets, \[3, .*, got \[2, "):
        figures.pairs(IMAGES[:3], IMAGES[:2], tmp_path / "a.png", value_range=(-1, 1))


def test_plots_draw_in_their_colours(tmp_path):
    pytest.importorskip("matplotlib")
    x = [1e-3, 1e-2, 0.1]
    lines = [
        figures.Line("a", x, [1.0, np.nan, 3.0]),
        figures.Line("b", x, [2.0, 3.0, 4.0]),
    ]
    labels = {"x_label": "x", "y_label": "y"}
    path = figures.curves(lines, tmp_path / "c.png", x_log=True, y_log=True, **labels)
    for theme, file in ((figures.LIGHT, path), (figures.DARK, figures.dark_variant(path))):
        with Image.open(file) as picture:
            assert picture.info["dpi"] == pytest.approx((192, 192), abs=0.01)
            pixels = np.asarray(picture.convert("RGB"), dtype=int)
        assert (pixels[0, 0] == theme.paper).all()
        for colour in theme.lines[:2]:
            wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            near = np.abs(pixels - wanted).max(axis=2) < 45
            assert near.sum() > 100


def test_a_plot_is_readable_on_a_phone(tmp_path):
    """Its text keeps 10 CSS pixels, and a long legend takes no width from it."""
    pytest.importorskip("matplotlib")
    labels = {"x_label": "x", "y_label": "the probability of resampling during the whole run"}
    lines = [figures.Line(f"line {number}", [0, 1], [0, number]) for number in range(9)]
    with Image.open(figures.curves(lines[:2], tmp_path / "a.png", **labels)) as few:
        assert few.width / 2 <= NARROW
        assert figures.NUMBER_POINTS * 96 / 72 * LEAST_SHRUNK_IF_NARROW > 10
        size = few.size
    with Image.open(figures.curves(lines, tmp_path / "b.png", **labels)) as many:
        assert many.width == size[0]
        assert many.height > size[1]


def test_matplotlib_is_needed_for_plots_alone(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    figures.image_grid(IMAGES, tmp_path / "a.png", value_range=(-1, 1))
    with pytest.raises(DependencyError, match=r"pip install .*matplotlib"):
        figures.curves([], tmp_path / "b.png", x_label="", y_label="")


def test_a_report_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from pyinv.papers import report, run_cache, figures; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


# -- runs


QUICK = Recipe("quick", Stage(Adam(0.1), max_steps=20))


def run(cache, id, inverter, images, *, recipe, seed, progress=None, **latents):
    planned = Planned(id, f"run {id}", inverter, images, recipe, **latents)
    return cache.run(planned, seed=seed, progress=progress)


@pytest.fixture(scope="module")
def latents(inverter):
    return inverter.sample(5, seed=3)


@pytest.fixture(scope="module")
def images(inverter, latents):
    return inverter.generate(latents)


@pytest.fixture
def calls(monkeypatch):
    """The arguments of every call of Inverter.invert."""
    seen = []
    invert = Inverter.invert

    def recording(self, images, **arguments):
        seen.append(arguments)
        return invert(self, images, **arguments)

    monkeypatch.setattr(Inverter, "invert", recording)
    return seen


def test_a_finished_run_is_given_back(tmp_path, inverter, images, latents, calls):
    settings = {"recipe": QUICK, "seed": 1, "true_latents": latents}
    first = run(RunCache(tmp_path), "run", inverter, images, **settings)
    runs = RunCache(tmp_path)
    again = run(runs, "run", inverter, images, **settings)
    assert len(calls) == 1
    assert runs.read_back == {"run"}
    for name in ("latents", "loss", "status", "steps", "attempts", "min_latent_error", "images"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name), err_msg=name)
    assert (again.seed, again.recipe) == (first.seed, first.recipe)
    plain = inverter.invert(images, **settings)
    np.testing.assert_array_equal(again.latents, plain.latents)
    np.testing.assert_array_equal(again.images, plain.images)


CHANGES = {
    "recipe": {"recipe": QUICK.replace(max_steps=21)},
    "learning rate": {"recipe": QUICK.replace(learning_rate=0.05)},
    "restarts": {"recipe": QUICK.replace(restarts=1)},
    "start": {"recipe": QUICK.replace(start="mean")},
    "seed": {"seed": 2},
    "true_latents": {"true_latents": np.zeros((5, LATENT), dtype=np.float32)},
    "other true latents": {"true_latents": np.ones((5, LATENT), dtype=np.float32)},
    "no true latents": {"true_latents": None},
}


@pytest.fixture
def kept(tmp_path, inverter, images, latents, calls):
    """The settings of a run that is kept in tmp_path."""
    settings = {"recipe": QUICK, "seed": 1, "true_latents": latents}
    run(RunCache(tmp_path), "run", inverter, images, **settings)
    assert len(calls) == 1
    return settings


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_setting_runs_again(tmp_path, inverter, images, kept, calls, change):
    for _ in range(2):
        run(RunCache(tmp_path), "run", inverter, images, **kept | change)
        assert len(calls) == 2


def test_other_images_run_again(tmp_path, inverter, images, kept, calls):
    for _ in range(2):
        run(RunCache(tmp_path), "run", inverter, np.ascontiguousarray(images[::-1]), **kept)
        assert len(calls) == 2


def test_another_bundle_runs_again(tmp_path, images, kept, calls):
    losses = ("mse", "l1", "bce")
    bundles = {
        "other files": {"losses": ("mse", "l1")},
        "other prior": {"losses": losses, "prior": Normal()},
        "other batch norm": {"losses": losses, "batch_norm": "batch"},
    }
    for count, (name, changed) in enumerate(bundles.items(), 2):
        write_tiny_bundle(tmp_path / name, **changed)
        inverter = Inverter(tmp_path / name, threads=1)
        for _ in range(2):
            run(RunCache(tmp_path), "run", inverter, images, **kept)
            assert len(calls) == count


def test_threads_and_lanes_run_nothing_again(tmp_path, bundle_path, images, kept, calls):
    run(RunCache(tmp_path), "run", Inverter(bundle_path, threads=2, batch_size=3), images, **kept)
    assert len(calls) == 1


def test_lanes_tell_a_run_apart_where_targets_are_coupled(tmp_path, images, calls):
    path = tmp_path / "batch.bundle"
    write_tiny_bundle(path, batch_norm="batch")
    for batch_size in (4, 2):
        inverter = Inverter(path, threads=1, batch_size=batch_size)
        run(RunCache(tmp_path), "run", inverter, images[:4], recipe=QUICK, seed=1)
    assert len(calls) == 2


def test_truth_is_handed_on_only_where_it_is_given(tmp_path, inverter, images, latents, calls):
    runs = RunCache(tmp_path)
    run(runs, "without", inverter, images, recipe=QUICK, seed=1)
    run(runs, "with", inverter, images, recipe=QUICK, seed=1, true_latents=latents)
    assert "true_latents" not in calls[0]
    np.testing.assert_array_equal(calls[1]["true_latents"], latents)


@pytest.mark.parametrize("harm", ["empty", "truncated", "flipped", "foreign", "no settings"])
def test_a_damaged_file_runs_again(tmp_path, inverter, images, calls, harm):
    first = run(RunCache(tmp_path), "run", inverter, images, recipe=QUICK, seed=1)
    path = tmp_path / "runs" / "run.npz"
    content = path.read_bytes()
    if harm == "flipped":
        place = content.index(first.latents.tobytes())
        content = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
    path.write_bytes(
        {"empty": b"", "truncated": content[: len(content) // 2], "foreign": b"{}"}.get(
            harm, content
        )
    )
    if harm == "no settings":
        first.save(path, images=False)
    again = run(RunCache(tmp_path), "run", inverter, images, recipe=QUICK, seed=1)
    assert len(calls) == 2
    np.testing.assert_array_equal(again.latents, first.latents)
    run(RunCache(tmp_path), "run", inverter, images, recipe=QUICK, seed=1)
    assert len(calls) == 2


@pytest.mark.skipif(os.name != "posix", reason="sends this process a signal")
def test_ctrl_c_keeps_the_finished_runs_alone(tmp_path, inverter, images, calls):
    import signal

    runs = RunCache(tmp_path)
    run(runs, "first", inverter, images, recipe=QUICK, seed=1)
    endless = QUICK.replace(max_steps=100_000_000)
    with pytest.raises(KeyboardInterrupt):
        run(
            runs,
            "second",
            inverter,
            images,
            recipe=endless,
            seed=1,
            progress=lambda state: os.kill(os.getpid(), signal.SIGINT),
        )
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["first.npz"]
    run(RunCache(tmp_path), "first", inverter, images, recipe=QUICK, seed=1)
    assert len(calls) == 2


KEPT = ("latents", "loss", "status", "steps", "attempts", "min_latent_error")


def stopping(monkeypatch, done, error):
    """Let the next inversion end after some of its targets, as Ctrl-C or a failed run ends it."""
    whole = Inverter.invert

    def invert(self, images, **arguments):
        monkeypatch.setattr(Inverter, "invert", whole)
        inversion = whole(self, images, **arguments)
        status = inversion.status.copy()
        status[~np.isin(np.arange(len(images)), done)] = Status.CANCELLED
        stopped = replace(inversion, status=status, cancelled=True)
        for name in ("latents", "loss"):
            getattr(stopped, name)[status == Status.CANCELLED] = np.nan
        if error is not None:
            raise error("the device is gone", stopped)
        return stopped

    monkeypatch.setattr(Inverter, "invert", invert)


@pytest.mark.parametrize("error", [None, RunError])
def test_what_a_stopped_run_had_done_is_not_done_again(
    tmp_path, inverter, images, latents, calls, monkeypatch, error
):
    settings = {
        "recipe": recipes.lipton(manifest(), "stochastic").replace(max_steps=30),
        "seed": 1,
        "true_latents": latents,
    }
    whole = run(RunCache(tmp_path / "whole"), "run", inverter, images, **settings)
    for done in ([0, 3], [1]):  # of five, then of the three that are left
        stopping(monkeypatch, done, error)
        with pytest.raises(error or KeyboardInterrupt):
            run(RunCache(tmp_path), "run", inverter, images, **settings)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run.npz.part"]
    again = RunCache(tmp_path)
    found = run(again, "run", inverter, images, **settings)
    assert [call["target_ids"].tolist() for call in calls[1:]] == [[*range(5)], [1, 2, 4], [1, 4]]
    for name in KEPT:
        np.testing.assert_allclose(
            getattr(found, name), getattr(whole, name), rtol=1e-5, atol=1e-6, err_msg=name
        )
    assert not found.cancelled
    assert again.read_back == set()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run.npz"]
    run(RunCache(tmp_path), "run", inverter, images, **settings)
    assert len(calls) == 4


def test_a_stopped_run_of_other_settings_is_no_part(tmp_path, inverter, images, calls, monkeypatch):
    stopping(monkeypatch, [0, 1], None)
    with pytest.raises(KeyboardInterrupt):
        run(RunCache(tmp_path), "run", inverter, images, recipe=QUICK, seed=1)
    run(RunCache(tmp_path), "run", inverter, images, recipe=QUICK, seed=2)
    assert len(calls[-1]["target_ids"]) == 5


def test_targets_of_a_batch_are_kept_together_or_not_at_all(tmp_path, images, monkeypatch):
    path = tmp_path / "batch.bundle"
    write_tiny_bundle(path, batch_norm="batch")
    stopping(monkeypatch, [0, 1], None)
    with pytest.raises(KeyboardInterrupt):
        run(RunCache(tmp_path), "run", Inverter(path, threads=1), images, recipe=QUICK, seed=1)
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_settings_are_all_that_a_result_depends_on(tmp_path, inverter, images, latents):
    run(RunCache(tmp_path), "run", inverter, images, recipe=QUICK, seed=1, true_latents=latents)
    with np.load(tmp_path / "runs" / "run.npz") as file:
        settings = json.loads(str(file["settings"]))["settings"]
    assert list(settings) == [
        *("recipe", "seed", "images", "bundle", "prior", "batch_norm", "true_latents")
    ]
    assert settings["recipe"] == json.loads(
        json.dumps(QUICK.fit(inverter.manifest.prior).describe())
    )


def test_a_full_disk_is_told_and_keeps_what_was_there(tmp_path, inverter, images, monkeypatch):
    run(RunCache(tmp_path), "run", inverter, images, recipe=QUICK, seed=1)
    path = tmp_path / "runs" / "run.npz"
    before = path.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"run\.npz: cannot be written \(No space left"):
        run(RunCache(tmp_path), "run", inverter, images, recipe=QUICK, seed=2)
    assert path.read_bytes() == before
    assert list((tmp_path / "runs").iterdir()) == [path]


@pytest.mark.parametrize("id", ["", "../up", "a/b", ".hidden", "a b"])
def test_an_id_must_be_a_file_name(tmp_path, inverter, images, id):
    with pytest.raises(InputError, match="a run's id must be"):
        run(RunCache(tmp_path), id, inverter, images, recipe=QUICK, seed=1)


def test_one_id_is_one_run(tmp_path, inverter, images):
    runs = RunCache(tmp_path)
    run(runs, "run", inverter, images, recipe=QUICK, seed=1)
    run(runs, "run", inverter, images, recipe=QUICK, seed=1)
    with pytest.raises(InputError, match="'run' was run with other settings"):
        run(runs, "run", inverter, images, recipe=QUICK, seed=2)


def test_facts_tell_how_a_run_went(tmp_path, inverter, images):
    runs = RunCache(tmp_path)
    run(runs, "run", inverter, images, recipe=QUICK, seed=1)
    facts = runs.facts("run")
    assert facts["targets"] == 5
    assert facts["seed"] == 1
    assert sum(facts["status"].values()) == 5
    assert set(facts["status"]) <= {"step_limit", "step_limit_improving"}
    assert facts["mean_steps"] == 20
    found = run(runs, "run", inverter, images, recipe=QUICK, seed=1)
    assert facts["median_psnr"] == f"{np.median(found.psnr):.1f} dB"
    assert (facts["device"], facts["threads"]) == ("cpu", 1)
    again = RunCache(tmp_path)
    run(again, "run", inverter, images, recipe=QUICK, seed=1)
    assert again.facts("run") == facts == json.loads(json.dumps(facts))
    with pytest.raises(InputError, match="run 'no' is not done; those done are run"):
        runs.facts("no")


def test_the_style_is_in_the_package():
    import pyinv.papers.page

    style = Path(pyinv.papers.page.__file__).with_name("page.css").read_text("utf-8")
    assert "prefers-color-scheme: dark" in style
