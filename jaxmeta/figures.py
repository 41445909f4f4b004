"""Draws arrays as pictures for people."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

Image = Float[np.ndarray, "height width 3"]


def image_grid(
    path: Path, rows: Sequence[Sequence[Image]], *, column_titles: Sequence[str], row_titles: Sequence[str]
) -> None:
    """Writes a PNG of images in rows and columns.

    Args:
      path: the PNG file.
      rows: of images with colours in [0, 1]; all rows have one length.
      column_titles: above the first row.
      row_titles: left of the rows.
    """
    cell, left, top = 1.25, 1.0, 0.45
    size = (left + cell * len(column_titles), top + cell * len(rows))
    figure = Figure(figsize=size, dpi=130, facecolor="white")
    axes = figure.subplots(len(rows), len(column_titles), squeeze=False)
    figure.subplots_adjust(left / size[0], 0.01, 0.99, 1 - top / size[1], 0.04, 0.04)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            axes[row, column].imshow(np.clip(image, 0, 1), interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].spines[:].set_color("0.85")
        axes[row, 0].set_ylabel(
            textwrap.fill(row_titles[row], 15), rotation=0, ha="right", va="center", fontsize=7, labelpad=6
        )
    for column, title in enumerate(column_titles):
        axes[0, column].set_title(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def curves(
    path: Path,
    steps: Sequence[int],
    values: Mapping[str, Float[np.ndarray, "scenes stages"]],
    *,
    label: str,
) -> None:
    """Writes a PNG of a metric over inner steps: the mean over scenes, with a band of one standard deviation.

    Args:
      path: the PNG file.
      steps: the stages.
      values: by initialisation.
      label: of the metric.
    """
    figure = Figure(figsize=(4.5, 3.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, scores in values.items():
        mean, deviation = scores.mean(axis=0), scores.std(axis=0)
        axes.plot(steps, mean, marker="o", markersize=3, label=name)
        axes.fill_between(steps, mean - deviation, mean + deviation, alpha=0.2)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="inner steps", ylabel=label, xticks=list(steps), xticklabels=[str(step) for step in steps])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
