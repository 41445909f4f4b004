"""Draws arrays as pictures for people: grids of images, with notes, heat maps and colour bars.

Every colour stays apart for colour-blind eyes and in grey print: initialisations have the colours of Okabe and Ito
2008, heat maps rise evenly in lightness.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxmeta.words import DIVERGED

Image = Float[np.ndarray, "height width"] | Float[np.ndarray, "height width 1"] | Float[np.ndarray, "height width 3"]
"""Grey or coloured."""

COLOURS = {"learned": "#0072B2", "standard": "#D55E00"}
"""Of the initialisations that every evaluation has."""
CHANNELS = ("#444444", "#E69F00", "#56B4E9")
"""Of the channels of a curve."""
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 200
LINE, COLOUR_BAR = 0.14, 0.58
"""Heights in inches: of a line of a title, of the strip that holds the colour bars."""
CURVE_ASPECT = 0.6
"""Height of a curve over its width."""


class Picture(NamedTuple):
    """A picture on disk, and what a reader wants to know of it."""

    path: Path
    title: str
    caption: str
    """What is seen, and what to look at."""


class Scale(NamedTuple):
    """How the values of a heat map become colours."""

    label: str
    """What the values are, with their unit; stands below the colour bar."""
    low: float
    high: float
    """Larger values look like this one."""
    colours: str = "magma"
    """A colour map of Matplotlib."""


class Cell(NamedTuple):
    """One picture of a grid."""

    image: Any
    """An `Image`; colours and greys in [0, 1] unless there is a scale. What is one pixel high is a signal over one
    dimension, such as a sound, and is drawn as a curve; what is not finite is drawn as the word for it."""
    note: str = ""
    """Stands below the picture."""
    scale: Scale | None = None
    """Makes a heat map of an image with one channel."""


class _Layout(NamedTuple):
    """Where the cells of a grid lie, in inches from the top left."""

    size: tuple[float, float]
    cell: tuple[float, float]
    lefts: list[float]
    tops: list[float]


def colours(names: Sequence[str]) -> dict[str, str]:
    """Returns a colour for each initialisation, the same in every figure of an evaluation."""
    others = [name for name in names if name not in COLOURS]
    return COLOURS | {name: OTHER_COLOURS[index % len(OTHER_COLOURS)] for index, name in enumerate(others)}


def image_grid(
    path: Path,
    rows: Sequence[Sequence[Cell]],
    *,
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    groups: Mapping[str, int] | None = None,
    cell_width: float = 0.95,
) -> None:
    """Writes a PNG of images in rows and columns; heat maps get a colour bar below their columns.

    Args:
      path: the PNG file.
      rows: of cells; all rows have one length.
      column_titles: above the first row.
      row_titles: left of the rows.
      groups: how many neighbouring columns belong together, by title; the empty title gives none.
      cell_width: in inches; a cell is as high as the first image wants.
    """
    if not rows:
        return
    groups = groups or {"": len(column_titles)}
    titles, headers = [_wrapped(title) for title in row_titles], [_wrapped(title) for title in column_titles]
    scales = [next((row[column].scale for row in rows if row[column].scale), None) for column in range(len(rows[0]))]
    layout = _layout(rows, titles, headers, groups, scales, cell_width)
    figure = Figure(figsize=layout.size, dpi=DPI, facecolor="white")
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            _draw(_axes(figure, layout, layout.lefts[column], layout.tops[row]), cell)
        middle = layout.tops[row] + layout.cell[1] / 2
        named = (COLOURS[line.rstrip(",")] for line in titles[row].split("\n") if line.rstrip(",") in COLOURS)
        style = {"ha": "right", "va": "center", "fontsize": 7, "color": next(named, "black")}
        _text(figure, layout, layout.lefts[0] - 0.08, middle, titles[row], **style)
    for left, title in zip(layout.lefts, headers, strict=True):
        # Line by line from below, so that all last lines stand on one level.
        for above, line in enumerate(reversed(title.split("\n"))):
            top = layout.tops[0] - 0.07 - LINE * above
            style = {"fontsize": 8, "color": COLOURS.get(line, "black")}
            _text(figure, layout, left + layout.cell[0] / 2, top, line, ha="center", va="baseline", **style)
    _draw_groups(figure, layout, groups)
    _draw_colour_bars(figure, layout, scales)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, into a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _layout(
    rows: Sequence[Sequence[Cell]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    groups: Mapping[str, int],
    scales: Sequence[Scale | None],
    cell_width: float,
) -> _Layout:
    height, width = rows[0][0].image.shape[:2]
    cell = (cell_width, cell_width * (CURVE_ASPECT if height == 1 else height / width))
    longest = max(len(line) for title in row_titles for line in title.split("\n"))
    left = 0.08 + (0.058 * longest + 0.08 if longest else 0)
    lines = max(title.count("\n") + 1 for title in column_titles)
    top = 0.12 + LINE * lines + (0.2 if any(groups) else 0)
    below = [0.17 if any(cell.note for cell in row) else 0.0 for row in rows]
    firsts = np.cumsum([0, *groups.values()])[:-1]
    group_of = np.searchsorted(firsts, np.arange(len(column_titles)), side="right") - 1
    lefts = [left + (cell[0] + 0.05) * column + 0.15 * group for column, group in enumerate(group_of.tolist())]
    tops = [top + (cell[1] + 0.05) * row + sum(below[:row]) for row in range(len(rows))]
    bottom = tops[-1] + cell[1] + below[-1] + (COLOUR_BAR if any(scales) else 0.06)
    return _Layout((lefts[-1] + cell[0] + 0.08, bottom), cell, lefts, tops)


def _wrapped(title: str) -> str:
    # An id may break after its underscores.
    lines = [line for part in title.split("\n") for line in textwrap.wrap(part.replace("_", "_ "), 14) or [""]]
    return "\n".join(line.replace("_ ", "_") for line in lines)


def _axes(figure: Figure, layout: _Layout, left: float, top: float, size: tuple[float, float] | None = None) -> Axes:
    width, height = size or layout.cell
    figure_width, figure_height = layout.size
    return figure.add_axes(
        (left / figure_width, 1 - (top + height) / figure_height, width / figure_width, height / figure_height)
    )


def _text(figure: Figure, layout: _Layout, left: float, top: float, text: str, **style: Any) -> None:
    # Ids and names are what they are: a dollar sign starts no formula.
    figure.text(left / layout.size[0], 1 - top / layout.size[1], text, parse_math=False, linespacing=1.1, **style)


def _draw(axes: Axes, cell: Cell) -> None:
    image = np.asarray(cell.image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if not np.isfinite(image).all():
        axes.set_facecolor("0.9")
        axes.text(0.5, 0.5, DIVERGED, transform=axes.transAxes, ha="center", va="center", fontsize=7, color="0.25")
    elif cell.scale:
        axes.imshow(image, cmap=cell.scale.colours, vmin=cell.scale.low, vmax=cell.scale.high, aspect="auto")
    elif len(image) == 1:
        for channel, colour in zip(np.atleast_2d(image[0].T), CHANNELS, strict=False):
            axes.plot(channel, color=colour, linewidth=0.8)
        axes.set(xlim=(0, image.shape[1] - 1), ylim=(-0.05, 1.05))
    else:
        axes.imshow(np.clip(image, 0, 1), cmap="gray", vmin=0, vmax=1, aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="0.8", linewidth=0.5)
    if cell.note and cell.note != DIVERGED:
        axes.set_xlabel(cell.note, fontsize=7, color="0.25", labelpad=2)


def _draw_groups(figure: Figure, layout: _Layout, groups: Mapping[str, int]) -> None:
    """Writes the title of each group over a line as wide as its columns."""
    first = 0
    for title, count in groups.items():
        left, right = layout.lefts[first], layout.lefts[first + count - 1] + layout.cell[0]
        if title:
            colour = COLOURS.get(title, "0.2")
            _text(figure, layout, (left + right) / 2, 0.17, title, ha="center", va="baseline", fontsize=9,
                  weight="bold", color=colour)  # fmt: skip
            line = _axes(figure, layout, left, 0.21, (right - left, 0.012))
            line.set(xticks=[], yticks=[], facecolor=colour)
            line.spines[:].set_visible(False)
        first += count


def _draw_colour_bars(figure: Figure, layout: _Layout, scales: Sequence[Scale | None]) -> None:
    """Draws a bar below each run of columns that share a scale."""
    first = 0
    for scale, run in itertools.groupby(scales):
        last = first + len(list(run)) - 1
        if scale:
            size = (layout.lefts[last] + layout.cell[0] - layout.lefts[first], 0.08)
            axes = _axes(figure, layout, layout.lefts[first], layout.size[1] - COLOUR_BAR + 0.06, size)
            _draw_colour_bar(figure, axes, scale)
        first = last + 1


def _draw_colour_bar(figure: Figure, axes: Axes, scale: Scale) -> None:
    colours_of = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
    bar = figure.colorbar(colours_of, cax=axes, orientation="horizontal")
    bar.set_ticks(np.linspace(scale.low, scale.high, 3).tolist())
    axes.tick_params(labelsize=6.5, length=2, pad=1)
    # The outer numbers stay inside the bar's width.
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(side)
    bar.set_label(scale.label, fontsize=7, labelpad=1)
    bar.outline.set_linewidth(0.5)
