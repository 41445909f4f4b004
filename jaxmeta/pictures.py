"""Makes all pictures of an evaluation, in the order in which a reader wants them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxmeta import closeups, gallery, turntable
from jaxmeta.comparison import Shown
from jaxmeta.curves import Band, draw_curves
from jaxmeta.evaluation import within_memory
from jaxmeta.figures import Picture
from jaxmeta.gallery import Exhibition
from jaxmeta.metalearning import Params
from jaxmeta.rendering import Rendering
from jaxmeta.signals import Kind, Signal, Split
from jaxmeta.words import counted

MOST_SCENES = 3
"""So many scenes are looked at closely."""
FILES = (
    *(f"{name}.png" for name in ("comparison", "baselines", "novel_views", "extremes", "geometry", "interpolation")),
    *(f"{name}.png" for name in ("psnr", "support_views", "slices")),
    *("turntable.gif", "turntable.mp4", "report.html"),
)
"""All that an evaluation may draw, and the report that holds it."""


def remove_earlier(out: Path) -> None:
    """Removes the pictures and the report of an earlier evaluation, if its results are in the folder."""
    results = out / "results.json"
    if not results.is_file():
        return
    with results.open("rb") as file:
        ours = file.read(32).startswith(b'{\n  "schema": ')
    for name in FILES if ours else ():
        (out / name).unlink(missing_ok=True)


def write_pictures(
    out: Path, signal: Signal, shown: Exhibition, *, span: tuple[float, float], num_scenes: int
) -> list[Picture]:
    """Writes the pictures that can be made of what there is, and returns them.

    Args:
      out: the folder.
      signal: what is shown.
      shown: what there is.
      span: the least and the largest distance, in scene units.
      num_scenes: how many scenes a figure shows; 0 for no pictures.
    """
    scenes = gallery.spread(len(shown.ids), num_scenes)
    if not scenes:
        return []
    few = scenes[:MOST_SCENES]
    made = [gallery.comparison(out / "comparison.png", shown, scenes)]
    if set(shown.fits) - set(gallery.PAIR):
        made.append(gallery.baselines(out / "baselines.png", shown, few))
    if signal.render_pose:
        made.append(gallery.novel_views(out / "novel_views.png", shown, few))
    made.append(closeups.extremes(out / "extremes.png", shown))
    if signal.render_pose:
        render = closeup_function(signal.render_pose)
        made.append(closeups.geometry(out / "geometry.png", shown, few, render, near=span[0], far=span[1]))
    if len(shown.ids) > 1:
        made.append(closeups.interpolation(out / "interpolation.png", shown, scenes if len(scenes) > 1 else [0, 1]))
    return made


def write_film(
    out: Path,
    signal: Signal,
    film_pose: Callable[..., Rendering],
    shown: Exhibition,
    initialisations: Mapping[str, Params],
    inner_optimiser: optax.GradientTransformation,
    *,
    seed: int,
) -> Picture:
    """Writes turntable.gif, and turntable.mp4 with the extra `video`, of a typical scene.

    Args:
      out: the folder.
      signal: what is shown.
      film_pose: as `signal.render_pose`, of the size of a film's frames.
      shown: what there is.
      initialisations: that were adapted, by name.
      inner_optimiser: of the adaptation.
      seed: of the draws.
    """
    height, width = shown.support.image.shape[-3:-1]
    return turntable.write_turntable(
        out / "turntable.gif",
        shown,
        typical_scene(shown),
        partial(film_function, signal, film_pose, inner_optimiser),
        initialisations,
        seed=seed,
        scale=turntable.film_size(height, width)[0] / height,
    )


def exhibition(kind: Kind, signal: Signal, split: Split, stages: Sequence[int], shown: Shown) -> Exhibition:
    """Returns what the pictures choose from, with compiled functions."""
    scenes, support, query = shown.tasks
    items = None if signal.given else signal.query(split.scenes, scenes, support)
    fitted = signal.support(split.scenes, scenes, support) if signal.given else None

    def given(scene: int) -> Any:
        if signal.given:
            return signal.given(jax.tree.map(lambda leaf: leaf[scene], fitted))
        return signal.target(gallery.item(items, scene, 0))

    return Exhibition(
        ids=split.ids,
        given=given,
        support=items,
        query=signal.query(split.scenes, scenes, kind.pictured(query)),
        notes=lambda scene, index: kind.notes(support[scene].tolist(), int(query[scene, index])),
        explanation=kind.explanation(support[0].tolist()),
        fits=shown.fits,
        stages=stages,
        predict=within_memory(lambda rays: jax.jit(partial(signal.predict, rays_per_chunk=rays))),
        target=signal.target,
    )


def closeup_function(render_pose: Callable[..., Rendering]) -> Callable[[Params, Any], Rendering]:
    """Returns what renders colour, distance and opacity of a view, compiled."""
    return within_memory(
        lambda rays: jax.jit(lambda params, view: render_pose(params, view.pose, view.focal, rays_per_chunk=rays))
    )


def film_function(
    signal: Signal,
    film_pose: Callable[..., Rendering],
    inner_optimiser: optax.GradientTransformation,
    told: Sequence[int],
) -> turntable.FilmScene:
    """Returns what films the adaptation of a scene, compiled."""

    def make(rays: int) -> turntable.FilmScene:
        def render(params: Params, pose: Any, focal: Any) -> Any:
            return film_pose(params, pose, focal, rays_per_chunk=rays).rgb

        predict = partial(signal.predict, rays_per_chunk=rays)
        return turntable.make_film(signal.loss, inner_optimiser, render, predict, signal.target, told)

    return within_memory(make)


def write_curves(out: Path, summary: Sequence[Mapping[str, Any]], unit: str) -> list[Picture]:
    """Draws the PSNR over inner steps and, where there are several, over numbers of support views.

    Args:
      out: the folder; psnr.png and support_views.png are written.
      summary: from `results.summary`.
      unit: what the views of a support are called.
    """
    counts, last = sorted({row["support_views"] for row in summary}), max(row["steps"] for row in summary)
    path = out / "psnr.png"
    _draw(path, [row for row in summary if row["support_views"] == counts[0]], "steps", "inner steps")
    given = counted(counts[0], f"support {unit}")
    made = [
        Picture(
            path,
            "How fast a scene is fitted",
            f"PSNR over the number of gradient steps with {given}: the mean over scenes and its 95 % interval. What a "
            "curve has at 0 steps is known before the scene was seen. Where a curve falls again while the "
            "query is not of the support, the field fits the support at the cost of the rest.",
        )
    ]
    if len(counts) > 1:
        path = out / "support_views.png"
        _draw(path, [row for row in summary if row["steps"] == last], "support_views", f"support {unit}s")
        made.append(
            Picture(
                path,
                f"What a learned start is worth in {unit}s",
                f"PSNR after {gallery.steps(last)} over the number of support {unit}s: the mean over scenes and its "
                f"95 % interval. Read it sideways: how many {unit}s does the standard initialisation need for what "
                "the learned one makes of a few?",
            )
        )
    return made


def _draw(path: Path, rows: Sequence[Mapping[str, Any]], place: str, across: str) -> None:
    by_name = {name: [row for row in rows if row["initialisation"] == name] for name in _names(rows)}
    bands = {
        name: Band(*(np.array([row[f"psnr_{of}"] for row in of_name]) for of in ("mean", "low", "high")))
        for name, of_name in by_name.items()
    }
    places = list(dict.fromkeys(row[place] for row in rows))
    draw_curves(path, places, bands, across=across, up="PSNR of the query (dB),\nhigher is better")


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["initialisation"] for row in rows))


def typical_scene(shown: Exhibition) -> int:
    """Returns the scene whose fit from the learned initialisation is the median one: neither picked nor lucky.

    It is the median of the fits that did not diverge, if any did not.
    """
    score = shown.psnr("learned")
    order = np.argsort(score, kind="stable")  # what is not finite comes last
    return int(order[max(np.isfinite(score).sum(), 1) // 2])
