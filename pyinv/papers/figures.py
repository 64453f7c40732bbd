"""A report's figures: image grids and curves, as PNG files for light and dark pages.

Each function writes two files, a.png on white and a-dark.png on the ground of dark pages, and
returns the path of the first.

All have 192 dots per inch and are shown at half their size in pixels, so that they are sharp on
high-density screens. Images are enlarged by integer factors, so that their pixels stay square.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pyinv.atomic_files import write_whole
from pyinv.errors import DependencyError, InputError
from pyinv.extras import install_command
from pyinv.images import to_uint8
from pyinv.papers.folder import open_folder
from pyinv.validation import shape_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Line", "curves", "dark_variant", "image_grid", "image_rows", "pairs"]

PathLike = str | os.PathLike[str]

DOTS_PER_INCH = 192
Colour = tuple[int, int, int]

# Sizes in dots, two per CSS pixel. The text column of the page is 800 CSS pixels wide. On a phone a
# picture shrinks, see page.LEAST_SHRUNK, and its text has to be readable there.
WIDEST = 1600
TILE = 160  # eight fit beside a label
GAP = 6
TEXT = 28
MARGIN = 8

PLOT_INCHES = (5.0, 3.6)  # page.NARROW is this width
LABEL_POINTS = 12.5
NUMBER_POINTS = 11.5
# The most characters of an axis label in a line.
X_CHARACTERS = 44
Y_CHARACTERS = 30

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":")  # of lines that share a colour
MOST_MARKED = 16  # longer lines are drawn without markers
MOST_INSIDE = 4  # longer legends are placed below the axes
LEGEND_LINE = 0.24  # inches


@dataclass(frozen=True)
class _Theme:
    """The colours of a light or dark page; ``paper`` is the ground that page.css puts there."""

    paper: Colour
    ink: Colour
    faint: Colour
    frame: Colour
    lines: tuple[str, ...]


# Okabe & Ito's colour-blind-safe palette ("Color Universal Design", 2008) without the yellow,
# which is too faint on white. On dark ground its darker colours are lightened.
LIGHT = _Theme(
    (255, 255, 255),
    (32, 35, 40),
    (98, 104, 114),
    (222, 225, 230),
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D5561"),
)
DARK = _Theme(
    (29, 33, 38),
    (231, 234, 238),
    (160, 169, 180),
    (62, 70, 80),
    ("#4FA8E0", "#F07F3C", "#2EBE8E", "#DE97BE", "#E69F00", "#A6D9F7", "#A0A9B4"),
)


@dataclass(frozen=True)
class Line:
    """A curve.

    Args:
        label: its label in the legend.
        x: [K] horizontal positions.
        y: [K] values; NaN leaves a gap.
    """

    label: str
    x: Any
    y: Any


def image_grid(
    images: Any,
    path: PathLike,
    *,
    value_range: tuple[float, float],
) -> Path:
    """Draw a roughly square grid of images, row by row, with at most 16 columns.

    Args:
        images: [N, C, H, W] in ``value_range``, N >= 1, C of 1 or 3.
        path: the PNG file; its folder is created if necessary.
        value_range: (low, high), the values of black and white.

    Returns:
        the path.

    Raises:
        InputError: images of another shape.
        OutputError: the file cannot be written.
    """
    tiles = _tiles(images, "images", value_range)
    columns = min(16, math.ceil(math.sqrt(len(tiles))))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    return _draw_rows([("", row) for row in rows], path)


def image_rows(
    rows: Mapping[str, Any],
    path: PathLike,
    *,
    value_range: tuple[float, float],
) -> Path:
    """Draw one labelled row of images per entry.

    Args:
        rows: label to images [N, C, H, W] in ``value_range``, for example the targets, their
            reconstructions after 100 steps, and so on. Rows may differ in N.
        path: the PNG file; its folder is created if necessary.
        value_range: (low, high), the values of black and white.

    Returns:
        the path.

    Raises:
        InputError: no rows, or images of another shape.
        OutputError: the file cannot be written.
    """
    if not rows:
        raise InputError("rows must hold at least one row of images, got none")
    tiles = [(label, _tiles(images, label, value_range)) for label, images in rows.items()]
    return _draw_rows(tiles, path)


def pairs(
    targets: Any,
    reconstructions: Any,
    path: PathLike,
    *,
    value_range: tuple[float, float],
    columns: int = 5,
    titles: tuple[str, str] = ("x", "G(z*)"),
) -> Path:
    """Draw each target beside its reconstruction.

    Args:
        targets: [N, C, H, W] in ``value_range``, N >= 1, C of 1 or 3.
        reconstructions: the same shape.
        path: the PNG file; its folder is created if necessary.
        value_range: (low, high), the values of black and white.
        columns: pairs per row.
        titles: headings over the two images of each column of pairs.

    Returns:
        the path.

    Raises:
        InputError: images of another shape.
        OutputError: the file cannot be written.
    """
    left = _tiles(targets, "targets", value_range)
    right = _tiles(reconstructions, "reconstructions", value_range)
    if left.shape != right.shape:
        raise InputError(
            "reconstructions must have the shape of the targets, "
            f"[{shape_text(left.shape)}], got [{shape_text(right.shape)}]"
        )
    both = np.stack([left, right], axis=1).reshape(-1, *left.shape[1:])
    columns = min(columns, len(left))
    rows = [both[start : start + 2 * columns] for start in range(0, len(both), 2 * columns)]
    return _draw_rows([("", row) for row in rows], path, titles=titles * columns, together=2)


def curves(
    lines: Sequence[Line],
    path: PathLike,
    *,
    x_label: str,
    y_label: str,
    x_log: bool = False,
    y_log: bool = False,
) -> Path:
    """Draw a line plot.

    Args:
        lines: one or more curves.
        path: the PNG file; its folder is created if necessary.
        x_label: label of the horizontal axis, with its unit.
        y_label: label of the vertical axis, with its unit.
        x_log: use a logarithmic horizontal axis; values of 0 and below are left out.
        y_log: use a logarithmic vertical axis.

    Returns:
        the path.

    Raises:
        DependencyError: matplotlib is missing.
        OutputError: the file cannot be written.
    """
    for theme, file in _themed(path):
        figure = _plot(theme, lines, x_label, y_label, x_log, y_log)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        _write(file, content)
    return Path(path)


def dark_variant(path: PathLike) -> Path:
    """Return the path of a figure's file for dark pages."""
    path = Path(path)
    return path.with_name(f"{path.stem}-dark{path.suffix}")


def _themed(path: PathLike) -> tuple[tuple[_Theme, Path], ...]:
    return (LIGHT, Path(path)), (DARK, dark_variant(path))


# -- images


def _tiles(images: Any, name: str, value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Return images as uint8 [N, H, W, 3]."""
    array = np.asarray(images, dtype=np.float32)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        raise InputError(
            f"{name or 'images'} must be [N, C, H, W] with N >= 1 and C of 1 or 3, got "
            f"[{shape_text(array.shape)}]"
        )
    pixels = to_uint8(np.nan_to_num(array, nan=value_range[0]), value_range)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def _draw_rows(
    rows: Sequence[tuple[str, NDArray[np.uint8]]],
    path: PathLike,
    *,
    titles: Sequence[str] = (),
    together: int = 1,
) -> Path:
    """Draw rows of tiles, with a gap after every ``together`` adjacent tiles."""
    font = _font()
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label_width = math.ceil(max(measure.textlength(label, font) for label, _ in rows))
    left = MARGIN + (label_width + 2 * GAP if label_width else 0)
    columns = max(len(tiles) for _, tiles in rows)
    height, width = rows[0][1].shape[1:3]
    gap = GAP if together == 1 else 4 * GAP
    gaps = (columns - 1) // together * gap + (columns - 1)
    zoom = max(1, round(TILE / max(height, width)))
    while zoom > 1 and left + columns * width * zoom + gaps > WIDEST:
        zoom -= 1
    height, width = height * zoom, width * zoom

    top = MARGIN + (TEXT + 2 * GAP if titles else 0)
    size = (
        left + columns * width + gaps + MARGIN,
        top + len(rows) * (height + GAP) - GAP + MARGIN,
    )
    for theme, file in _themed(path):
        sheet = Image.new("RGB", size, theme.paper)
        draw = ImageDraw.Draw(sheet)
        for row, (label, tiles) in enumerate(rows):
            above = top + row * (height + GAP)
            middle = (left - 2 * GAP, above + height // 2)
            draw.text(middle, label, theme.ink, font, anchor="rm")
            for column, tile in enumerate(tiles):
                place = (left + column * (width + 1) + column // together * (gap - 1), above)
                picture = Image.fromarray(np.ascontiguousarray(tile))
                sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), place)
                # Without a frame around the tile, one in the colour of the paper has no edge.
                corner = (place[0] + width, place[1] + height)
                draw.rectangle((place[0] - 1, place[1] - 1, *corner), outline=theme.frame)
                if row == 0 and column < len(titles):
                    centre = (place[0] + width // 2, above - GAP)
                    draw.text(centre, titles[column], theme.faint, font, anchor="md")
        content = io.BytesIO()
        sheet.save(content, format="PNG", dpi=(DOTS_PER_INCH, DOTS_PER_INCH), optimize=True)
        _write(file, content)
    return Path(path)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return matplotlib's font, which has the symbols of formulas, or else Pillow's."""
    try:
        import matplotlib
    except ImportError:
        return ImageFont.load_default(TEXT)
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 25)


# -- plots


def _plot(
    theme: _Theme, lines: Sequence[Line], x_label: str, y_label: str, x_log: bool, y_log: bool
) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError(
            f"the plots of a report need matplotlib: {install_command('plots')}"
        ) from None
    ink, faint = _hex(theme.ink), _hex(theme.faint)
    labels = [line.label for line in lines if line.label]
    below = labels if len(labels) > MOST_INSIDE else []
    legend_columns = 2 if max(map(len, below), default=0) < X_CHARACTERS // 2 else 1
    width, height = PLOT_INCHES
    height += LEGEND_LINE * math.ceil(len(below) / legend_columns)
    paper = _hex(theme.paper)
    figure = Figure((width, height), dpi=DOTS_PER_INCH, facecolor=paper, layout="constrained")
    axes = figure.add_subplot(facecolor=paper)
    axes.set_xscale("log" if x_log else "linear")
    axes.set_yscale("log" if y_log else "linear")
    axes.set_xlabel(textwrap.fill(x_label, X_CHARACTERS), color=ink, fontsize=LABEL_POINTS)
    axes.set_ylabel(textwrap.fill(y_label, Y_CHARACTERS), color=ink, fontsize=LABEL_POINTS)
    axes.tick_params(which="both", colors=faint, labelsize=NUMBER_POINTS)
    axes.grid(color=_hex(theme.frame), linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(faint)
    for index, line in enumerate(lines):
        x = np.asarray(line.x, dtype=np.float64)
        few = len(x) <= MOST_MARKED
        cycle, colour = divmod(index, len(theme.lines))
        axes.plot(
            x,
            np.asarray(line.y, dtype=np.float64),
            color=theme.lines[colour],
            linestyle=DASHES[cycle % len(DASHES)],
            label=line.label,
            marker=MARKERS[index % len(MARKERS)] if few else None,
            markersize=6,
            linewidth=1.8,
        )
    if len(labels) > 1:
        style: dict[str, Any] = {"frameon": False, "fontsize": NUMBER_POINTS, "labelcolor": ink}
        if below:
            figure.legend(loc="outside lower left", ncols=legend_columns, **style)
        else:
            axes.legend(loc="best", **style)
    return figure


def _write(path: PathLike, content: io.BytesIO) -> Path:
    path = Path(path)
    open_folder(path.parent)
    write_whole(path, content.getbuffer())
    return path


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
