"""Draws what a network makes of slices from more and more projections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta.evaluation import make_adapt, psnr
from jaxmeta.figures import Cell, Picture, image_grid
from jaxmeta.gallery import PAIR
from jaxmeta.signals import Evaluated
from jaxmeta.words import counted, decibels

FEW_STEPS = {1: 50, 2: 100}
"""Of the paper's authors, who take 1000 with more projections."""


def draw_slices(path: Path, done: Evaluated, *, num_scenes: int) -> Picture:
    """Writes a row per slice and initialisation: the slice, and what comes out of each number of projections.

    One or two projections are fitted for fewer steps, as by the paper's authors.

    Args:
      path: the PNG file.
      done: the evaluation.
      num_scenes: how many slices to show.
    """
    scenes = np.arange(min(num_scenes, len(done.split.ids)))
    names = [name for name in PAIR if name in done.initialisations]
    items = done.signal.query(done.split.scenes, scenes, np.zeros((len(scenes), 1), int))
    predict = jax.jit(done.signal.predict)
    columns = [_fitted(done, scenes, views, names) for views in done.supports]
    rows, row_titles = [], []
    for place, scene in enumerate(scenes):
        item = jax.tree.map(lambda leaf, place=place: leaf[place, 0], items)
        target = done.signal.target(item)
        for name in names:
            images = [predict(jax.tree.map(lambda leaf: leaf[place], fits[name]), item) for fits in columns]  # noqa: B023
            noted = [Cell(np.asarray(image), note=decibels(float(psnr(image, target)))) for image in images]
            rows.append([Cell(np.asarray(target)), *noted])
            row_titles.append(f"{done.split.ids[scene]}, {name}")
    titles = ["slice"] + [_title(len(views), done.stages[-1]) for views in done.supports]
    image_grid(path, rows, column_titles=titles, row_titles=row_titles)
    return Picture(
        path,
        "Slices by the number of projections",
        "Two rows per slice: what comes out of more and more projections, from the standard and from the learned "
        f"initialisation. {explanation([len(views) for views in done.supports], done.stages[-1])}".rstrip(),
    )


def explanation(counts: Sequence[int], most: int) -> str:
    """Returns a sentence that says which numbers of projections are fitted for fewer steps than the most, if any are.

    Args:
      counts: the numbers of projections.
      most: steps, of which the tables have the scores.
    """
    few = {count: _num_steps(count, most) for count in counts if _num_steps(count, most) < most}
    if not few:
        return ""
    told = " and ".join(f"{counted(count, 'projection')} for {counted(steps, 'step')}" for count, steps in few.items())
    return (
        f"As by the paper's authors, the network is fitted to {told} only, so that the PSNRs below these pictures are "
        f"not those of the tables and curves, which are after {counted(most, 'step')} for every number of projections."
    )


def _fitted(done: Evaluated, scenes: np.ndarray, views: tuple[int, ...], names: list[str]) -> dict[str, Any]:
    """Returns the parameters that each initialisation reaches, along a leading axis of slices, on one device."""
    mesh = jax.make_mesh((1,), ("scenes",), axis_types=done.mesh.axis_types, devices=jax.local_devices()[:1])
    adapt = make_adapt(done.signal.loss, done.optimiser, mesh, stages=[_num_steps(len(views), done.stages[-1])])
    support = done.signal.support(done.split.scenes, scenes, np.tile(views, (len(scenes), 1)))
    keys = jax.random.split(jax.random.key(done.seed), len(scenes))
    adapted = {name: adapt(jax.device_get(done.initialisations[name]), support, keys) for name in names}
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0], adapted)


def _num_steps(num_views: int, most: int) -> int:
    return min(FEW_STEPS.get(num_views, most), most)


def _title(num_views: int, most: int) -> str:
    return f"{counted(num_views, 'projection')}\n{counted(_num_steps(num_views, most), 'step')}"
