"""Composes the figures of an evaluation: what was given, what was wanted, what each initialisation made of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxmeta import figures
from jaxmeta.cameras import Views
from jaxmeta.evaluation import Fit, within_memory
from jaxmeta.objectives import composite_on_white
from jaxmeta.rendering import Rendering


def write_figures(
    out: Path,
    render_pose: Callable[..., Rendering],
    support: Views,
    query: Views,
    fits: Mapping[str, Fit],
    *,
    ids: Sequence[str],
    query_numbers: Sequence[int],
    stages: Sequence[int],
    num_scenes: int,
) -> None:
    """Writes comparison.png, novel_views.png and psnr.png.

    Args:
      out: the folder.
      render_pose: `(params, pose, focal, rays_per_chunk) -> Rendering` of a view of an adapted field.
      support: views of all scenes.
      query: views of all scenes.
      fits: of all scenes, by initialisation; one is called "learned".
      ids: of the scenes.
      query_numbers: which of their scene's views the query views are.
      stages: the numbers of steps after which the fits were scored.
      num_scenes: how many scenes to show.
    """
    shown, titles = range(min(num_scenes, len(ids))), [str(scene_id) for scene_id in ids]
    render = within_memory(
        lambda rays_per_chunk: jax.jit(lambda params, pose, focal: render_pose(params, pose, focal, rays_per_chunk).rgb)
    )

    def view(name: str, stage: int, views: Views, scene: int, index: int) -> np.ndarray:
        params = jax.tree.map(lambda leaf: leaf[scene, stage], fits[name].params)
        return np.asarray(render(params, views.poses[scene, index], views.focal[scene]))

    _comparison(out / "comparison.png", view, support, query, list(fits), shown, titles, stages)
    _novel_views(out / "novel_views.png", view, support, query, shown, titles, query_numbers, stages)
    psnr = {name: fit.scores.psnr.mean(axis=-1) for name, fit in fits.items()}
    figures.curves(out / "psnr.png", stages, psnr, label="PSNR of query views (dB)")


def _comparison(
    path: Path,
    view: Callable[[str, int, Views, int, int], np.ndarray],
    support: Views,
    query: Views,
    names: Sequence[str],
    shown: Sequence[int],
    titles: Sequence[str],
    stages: Sequence[int],
) -> None:
    """Writes a row per scene: the support view, a query view, and that view after each stage of each fit."""
    middle = query.images.shape[1] // 2
    columns = [(name, stage) for name in names for stage in range(len(stages))]
    rows = [
        [_target(support, scene, 0), _target(query, scene, middle)]
        + [view(name, stage, query, scene, middle) for name, stage in columns]
        for scene in shown
    ]
    column_titles = ["support view", "target"] + [f"{name}\n{_steps(stages[stage])}" for name, stage in columns]
    figures.image_grid(path, rows, column_titles=column_titles, row_titles=[titles[scene] for scene in shown])


def _novel_views(
    path: Path,
    view: Callable[[str, int, Views, int, int], np.ndarray],
    support: Views,
    query: Views,
    shown: Sequence[int],
    titles: Sequence[str],
    query_numbers: Sequence[int],
    stages: Sequence[int],
) -> None:
    """Writes two rows per scene: its input and novel views, and the same from the learned initialisation at the end."""
    last = len(stages) - 1
    places = [(support, 0)] + [(query, index) for index in range(len(query_numbers))]
    rows = []
    for scene in shown:
        rows.append([_target(views, scene, index) for views, index in places])
        rows.append([view("learned", last, views, scene, index) for views, index in places])
    row_titles = [title for scene in shown for title in (titles[scene], f"learned, {_steps(stages[last])}")]
    column_titles = ["input view"] + [f"novel view {number}" for number in query_numbers]
    figures.image_grid(path, rows, column_titles=column_titles, row_titles=row_titles)


def _target(views: Views, scene: int, index: int) -> np.ndarray:
    return np.asarray(composite_on_white(views.images[scene, index]))


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
