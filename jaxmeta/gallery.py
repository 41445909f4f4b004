"""Composes the figures of an evaluation: what was given, what was wanted, what each initialisation made of it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxmeta import figures
from jaxmeta.evaluation import Fit, Target, within_memory

Show = Callable[[str, int, Any, int, int], np.ndarray]
"""`(initialisation, stage, items, scene, index) -> image` of one of a scene's items."""


def write_figures(
    out: Path,
    predict: Callable[..., Float[Array, "height width channels"]],
    target: Target,
    support: Any,
    query: Any,
    fits: Mapping[str, Fit],
    *,
    ids: Sequence[str],
    query_titles: Sequence[str],
    stages: Sequence[int],
    num_scenes: int,
) -> None:
    """Writes comparison.png, novel_views.png and psnr.png.

    Args:
      out: the folder.
      predict: `(params, item, *, rays_per_chunk) -> image` that an adapted field shows.
      target: what it should show.
      support: the support of all scenes as items, as those of the query.
      query: items of all scenes, along the second axis.
      fits: of all scenes, by initialisation; one is called "learned".
      ids: of the scenes.
      query_titles: of the query's items.
      stages: the numbers of steps after which the fits were scored.
      num_scenes: how many scenes to show.
    """
    shown, titles = range(min(num_scenes, len(ids))), [str(scene_id) for scene_id in ids]
    draw = within_memory(lambda rays_per_chunk: jax.jit(partial(predict, rays_per_chunk=rays_per_chunk)))

    def show(name: str, stage: int, items: Any, scene: int, index: int) -> np.ndarray:
        params = jax.tree.map(lambda leaf: leaf[scene, stage], fits[name].params)
        return np.asarray(draw(params, _item(items, scene, index)))

    def wanted(items: Any, scene: int, index: int) -> np.ndarray:
        return np.asarray(target(_item(items, scene, index)))

    _comparison(out / "comparison.png", show, wanted, support, query, list(fits), shown, titles, stages)
    _novel_views(out / "novel_views.png", show, wanted, support, query, shown, titles, query_titles, stages)
    psnr = {name: fit.scores.psnr.mean(axis=-1) for name, fit in fits.items()}
    figures.curves(out / "psnr.png", stages, psnr, label="PSNR of query views (dB)")


def _comparison(
    path: Path,
    show: Show,
    wanted: Callable[[Any, int, int], np.ndarray],
    support: Any,
    query: Any,
    names: Sequence[str],
    shown: Sequence[int],
    titles: Sequence[str],
    stages: Sequence[int],
) -> None:
    """Writes a row per scene: the support view, a query view, and that view after each stage of each fit."""
    middle = jax.tree.leaves(query)[0].shape[1] // 2
    columns = [(name, stage) for name in names for stage in range(len(stages))]
    rows = [
        [wanted(support, scene, 0), wanted(query, scene, middle)]
        + [show(name, stage, query, scene, middle) for name, stage in columns]
        for scene in shown
    ]
    column_titles = ["support view", "target"] + [f"{name}\n{_steps(stages[stage])}" for name, stage in columns]
    figures.image_grid(path, rows, column_titles=column_titles, row_titles=[titles[scene] for scene in shown])


def _novel_views(
    path: Path,
    show: Show,
    wanted: Callable[[Any, int, int], np.ndarray],
    support: Any,
    query: Any,
    shown: Sequence[int],
    titles: Sequence[str],
    query_titles: Sequence[str],
    stages: Sequence[int],
) -> None:
    """Writes two rows per scene: its input and novel views, and the same from the learned initialisation at the end."""
    last = len(stages) - 1
    places = [(support, 0)] + [(query, index) for index in range(len(query_titles))]
    rows = []
    for scene in shown:
        rows.append([wanted(views, scene, index) for views, index in places])
        rows.append([show("learned", last, views, scene, index) for views, index in places])
    row_titles = [title for scene in shown for title in (titles[scene], f"learned, {_steps(stages[last])}")]
    column_titles = ["input view", *query_titles]
    figures.image_grid(path, rows, column_titles=column_titles, row_titles=row_titles)


def _item(items: Any, scene: int, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[scene, index], items)


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
