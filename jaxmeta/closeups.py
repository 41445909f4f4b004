"""Looks closer at what an evaluation found: where it errs, what it believes about space, what lies between scenes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta.figures import Cell, Picture, Scale, image_grid
from jaxmeta.gallery import PAIR, Exhibition, item, num_items, steps
from jaxmeta.metalearning import Params
from jaxmeta.rendering import Rendering
from jaxmeta.words import decibels

ERROR = Scale("absolute error\n(share of the range)", 0, 0.5, "magma_r")
OPACITY = Scale("opacity\n(share of the light)", 0, 1, "gray_r")


def extremes(path: Path, shown: Exhibition) -> Picture:
    """Draws the scenes that the learned initialisation fits best and worst, with the errors as heat maps.

    A scene that is the only one is neither.
    """
    score, middle = shown.psnr("learned"), num_items(shown.query) // 2
    # Scenes whose fit diverged are the worst.
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable").tolist()
    several = len(order) > 1
    each = min(2, max(len(order) // 2, 1))
    places = {scene: "best" for scene in order[:each] if np.isfinite(score[scene])}
    places |= {scene: "worst" for scene in order[-each:] if scene not in places}
    names, rows = [name for name in PAIR if name in shown.fits], []
    for scene in places:
        target = shown.wanted(scene, middle)
        seen = [shown.seen(name, scene, middle) for name in names]
        rows.append([shown.support_cell(scene), target, *seen, *(_error(cell, target) for cell in seen)])
    image_grid(
        path,
        rows,
        column_titles=["support", "target", *names, *names],
        row_titles=[
            (f"{place}\n" if several else "") + f"{shown.ids[scene]}\n{decibels(float(score[scene]))}"
            for scene, place in places.items()
        ],
        groups={"": 2, f"after {steps(shown.stages[-1])}": len(names), "error": len(names)},
    )
    return Picture(
        path,
        "Best and worst scenes" if several else "Errors",
        ("Chosen by" if several else "At the left is")
        + " the mean PSNR of the learned initialisation over the scene's query"
        + (", which stands at the left" if several else "")
        + "; below a picture is its own. "
        "The darker a place in the heat maps, the more it is off, black from half the "
        "range on: a dark rim is a shape that does not quite fit, a dark patch a colour or a part that the "
        "support did not tell.",
    )


def interpolation(path: Path, shown: Exhibition, scenes: Sequence[int], *, num_places: int = 7) -> Picture:
    """Draws what lies between the parameters of two adapted fields, `(1 - t) a + t b`, from one point of view."""
    first, second = scenes[0], scenes[-1]
    names, rows = [name for name in PAIR if name in shown.fits], []
    looked_at = item(shown.query, first, num_items(shown.query) // 2)
    places = np.linspace(0, 1, num_places).tolist()
    for name in names:
        ends = shown.field(name, first), shown.field(name, second)
        between = [jax.tree.map(lambda a, b, t=t: (1 - t) * a + t * b, *ends) for t in places]
        rows.append([Cell(np.asarray(shown.predict(params, looked_at))) for params in between])
    titles = [f"t = {place:.2g}" for place in places]
    titles[0], titles[-1] = f"{shown.ids[first]}\n{titles[0]}", f"{shown.ids[second]}\n{titles[-1]}"
    image_grid(path, rows, column_titles=titles, row_titles=names)
    caption = (
        "The parameters of two adapted networks are mixed, (1 - t) a + t b, and the mixture is rendered. Networks "
        f"that share a learned start stay close enough to be mixed: {shown.ids[first]} turns into {shown.ids[second]} "
        "step by step."
    )
    if len(names) > 1:
        caption += f" The row {names[0]} is the same between fits from that initialisation."
    return Picture(path, "Between two scenes", caption)


def geometry(
    path: Path,
    shown: Exhibition,
    scenes: Sequence[int],
    render: Callable[[Params, Any], Rendering],
    *,
    near: float,
    far: float,
) -> Picture:
    """Draws colour, distance and opacity of adapted scenes side by side.

    Args:
      path: the PNG file.
      shown: what there is.
      scenes: which to show.
      render: `(params, item) -> Rendering` of a query view.
      near: the least distance, in scene units.
      far: the largest.
    """
    distance, middle = Scale("distance\n(scene units)", near, far, "viridis_r"), num_items(shown.query) // 2
    names, rows = [name for name in PAIR if name in shown.fits], []
    for scene in scenes:
        row = [shown.wanted(scene, middle)]
        for name in names:
            seen = render(shown.field(name, scene), item(shown.query, scene, middle))
            row.append(Cell(np.asarray(seen.rgb)))
            row += [Cell(np.asarray(seen.distance), scale=distance), Cell(np.asarray(seen.opacity), scale=OPACITY)]
        rows.append(row)
    image_grid(
        path,
        rows,
        column_titles=["target"] + ["colour", "distance", "opacity"] * len(names),
        row_titles=[shown.ids[scene] for scene in scenes],
        groups={"": 1} | {name: 3 for name in names},
    )
    return Picture(
        path,
        "What the network believes about space",
        "How far away the network sees a surface, and how much light it stops there. A solid scene has a sharp "
        "outline and an even opacity; haze is a network that paints the picture without having found the shape.",
    )


def _error(cell: Cell, target: Cell) -> Cell:
    difference = np.abs(np.clip(cell.image, 0, 1) - target.image)
    return Cell(difference.mean(axis=-1) if difference.ndim == 3 else difference, scale=ERROR)
