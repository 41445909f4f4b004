"""Draws whole pictures of which a network was given a part."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.figures import Cell, Picture, image_grid
from jaxmeta.kinds.refits import refit
from jaxmeta.samples import Samples
from jaxmeta.signals import Evaluated

UNSEEN = 0.5
"""The grey of pixels that were not given."""


def draw_parts(path: Path, done: Evaluated, *, num_scenes: int) -> Picture:
    """Writes a row per picture: what was given, all of it, and what each initialisation makes of it at the end.

    Args:
      path: the PNG file.
      done: the evaluation.
      num_scenes: how many pictures to show.
    """
    scenes, views = np.arange(min(num_scenes, len(done.split.ids))), done.supports[0]
    support = done.signal.support(done.split.scenes, scenes, np.tile(views, (len(scenes), 1)))
    whole = done.signal.query(done.split.scenes, scenes, np.zeros((len(scenes), 1), int))
    fits = refit(done, done.initialisations, scenes, support, num_steps=done.stages[-1])
    predict = jax.jit(done.signal.predict)
    rows = []
    for place in range(len(scenes)):
        item = Samples(*(jnp.asarray(leaf[place, 0]) for leaf in whole))
        seen = _given(Samples(support.points[place], support.values[place]), item.values.shape)
        made = [predict(jax.tree.map(lambda leaf: leaf[place], fit), item) for fit in fits.values()]  # noqa: B023
        rows.append([Cell(np.asarray(image)) for image in (seen, done.signal.target(item), *made)])
    titles = ["given", "whole", *(f"{name}\n{done.stages[-1]} steps" for name in fits)]
    image_grid(path, rows, column_titles=titles, row_titles=[done.split.ids[scene] for scene in scenes])
    return Picture(
        path,
        "All of the picture",
        "The network is given the pixels that are not grey in the first column. Look at the rest of the picture: it "
        "comes from what was learned about the class.",
    )


def _given(samples: Samples, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the picture with what was given of it."""
    image = np.full(shape, UNSEEN)
    rows, columns = np.rint(np.asarray(samples.points) * shape[:2]).astype(int).T
    image[rows, columns] = np.asarray(samples.values) / 255
    return image
