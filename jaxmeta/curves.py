"""Draws scores as curves with bands: over inner steps, and over the number of support views."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmeta.figures import colours, save

MARKERS = "os^Dv<>P"


class Band(NamedTuple):
    """A mean at each place along an axis, and how far it can be trusted."""

    mean: Float[np.ndarray, "points"]
    low: Float[np.ndarray, "points"]
    high: Float[np.ndarray, "points"]


def draw_curves(path: Path, places: Sequence[int], bands: Mapping[str, Band], *, across: str, up: str) -> None:
    """Writes a PNG with a curve and its band for each initialisation, on a logarithmic axis that has room for zero.

    Where the numbers are not finite, the curve has a gap.

    Args:
      path: the PNG file.
      places: along the horizontal axis, increasing.
      bands: by initialisation.
      across: the label of the horizontal axis.
      up: that of the vertical axis.
    """
    figure = Figure(figsize=(5.6, 3.3), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots()
    by_name = colours(list(bands))
    # The legend has the order in which the curves end.
    for index, (name, band) in sorted(enumerate(bands.items()), key=lambda entry: -_last(entry[1][1].mean)):
        marker = MARKERS[index % len(MARKERS)]
        axes.plot(places, band.mean, color=by_name[name], marker=marker, markersize=4, linewidth=1.5, label=name)
        axes.fill_between(places, band.low, band.high, color=by_name[name], alpha=0.18, linewidth=0)
    _mark_places(axes, places)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color="0.9", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    save(figure, path)


def _last(values: Float[np.ndarray, "points"]) -> float:
    return float(values[-1]) if len(values) and np.isfinite(values[-1]) else -np.inf


def _mark_places(axes: Axes, places: Sequence[int]) -> None:
    """Puts a tick at every place, and a number where there is room for it; round numbers go first."""
    axes.set_xscale("symlog", linthresh=1)
    # As the axis has it: straight up to 1, from there on by powers of ten.
    along = {place: min(place, 1) + np.log10(max(place, 1)) for place in places}
    room = 0.1 * max(along[places[-1]] - along[places[0]], 1e-9)
    numbered: list[int] = []
    for place in sorted(places, key=lambda place: (place not in (places[0], places[-1]), str(place).strip("10") != "")):
        if all(abs(along[place] - along[other]) >= room for other in numbered):
            numbered.append(place)
    axes.set_xticks(list(places), [f"{place:,}" if place in numbered else "" for place in places])
    axes.minorticks_off()
