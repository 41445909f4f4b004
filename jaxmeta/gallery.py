"""Composes the figures of an evaluation: what was given, what was wanted, what each initialisation made of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmeta.evaluation import Fit, Predict, Target
from jaxmeta.figures import Cell, Picture, image_grid
from jaxmeta.words import counted, decibels

PAIR = ("standard", "learned")
"""What is always compared."""
MOST_STAGES, MOST_VIEWS = 4, 6
"""So many columns are legible in print."""


class Exhibition(NamedTuple):
    """What the figures choose from: scenes, and what each initialisation made of them.

    Items are what the fields are scored on, views in the case of scenes; their leading axes are `scenes items`.
    """

    ids: Sequence[str]
    given: Callable[[int], Any]
    """`scene -> picture` of what its field was adapted to."""
    support: Any
    """The views that the fields were adapted to, as items; None where there is no such thing."""
    query: Any
    """Held-out items, or what is pictured in their place."""
    notes: Callable[[int, int], tuple[str, str]]
    """`(scene, index) -> what stands below the picture of the support and of that query item`."""
    explanation: str
    """What else a reader must know of the pictures."""
    fits: Mapping[str, Fit]
    """Of all scenes, by initialisation; one is called "learned"."""
    stages: Sequence[int]
    """The numbers of steps after which the fits were scored."""
    predict: Predict
    target: Target

    def field(self, name: str, scene: int, stage: int = -1) -> Any:
        """Returns an adapted field."""
        return jax.tree.map(lambda leaf: leaf[scene, stage], self.fits[name].params)

    def seen(self, name: str, scene: int, index: int, stage: int = -1) -> Cell:
        """Returns what an adapted field shows of a query item, with its PSNR."""
        image = self.predict(self.field(name, scene, stage), item(self.query, scene, index))
        return Cell(np.asarray(image), decibels(float(self.fits[name].scores.psnr[scene, stage, index])))

    def support_cell(self, scene: int) -> Cell:
        """Returns what a field was adapted to, with its name."""
        return Cell(np.asarray(self.given(scene)), self.notes(scene, 0)[0])

    def wanted(self, scene: int, index: int) -> Cell:
        """Returns what a query item should look like, with its name."""
        return Cell(np.asarray(self.target(item(self.query, scene, index))), self.notes(scene, index)[1])

    def psnr(self, name: str) -> np.ndarray:
        """Returns each scene's PSNR after the last step, in dB: the mean over its query items."""
        return self.fits[name].scores.psnr[:, -1].mean(axis=-1)


def item(items: Any, scene: int, index: int) -> Any:
    """Returns one of a scene's items."""
    return jax.tree.map(lambda leaf: leaf[scene, index], items)


def num_items(items: Any) -> int:
    """Returns how many items each scene has."""
    return jax.tree.leaves(items)[0].shape[1]


def spread(count: int, most: int) -> list[int]:
    """Returns the first, the last and evenly spread ones between them of so many indices."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})


def comparison(path: Path, shown: Exhibition, scenes: Sequence[int]) -> Picture:
    """Draws a row per scene: the support, a query item, and that item after some steps of each initialisation."""
    middle, stages = num_items(shown.query) // 2, spread(len(shown.stages), MOST_STAGES)
    names = [name for name in PAIR if name in shown.fits]
    rows = [
        [shown.support_cell(scene), shown.wanted(scene, middle)]
        + [shown.seen(name, scene, middle, stage) for name in names for stage in stages]
        for scene in scenes
    ]
    image_grid(
        path,
        rows,
        column_titles=["support", "target"] + [steps(shown.stages[stage]) for _ in names for stage in stages],
        row_titles=[shown.ids[scene] for scene in scenes],
        groups={"": 2} | {name: len(stages) for name in names},
    )
    caption = (
        "Each row is a scene of those evaluated. The network is given the support alone, and is asked for "
        "the target. Compare the columns with equal numbers of steps; below each picture is its PSNR, of which more "
        f"is better. {shown.explanation}"
    )
    start = "two starting points" if len(names) > 1 else "the learned initialisation"
    return Picture(path, f"The same scenes from {start}", caption.rstrip())


def novel_views(path: Path, shown: Exhibition, scenes: Sequence[int]) -> Picture:
    """Draws two rows per scene: a support view and query views, and the same from the learned initialisation."""
    indices, last = spread(num_items(shown.query), MOST_VIEWS), steps(shown.stages[-1])
    rows = []
    for scene in scenes:
        fitted = shown.predict(shown.field("learned", scene), item(shown.support, scene, 0))
        rows.append([shown.support_cell(scene)] + [shown.wanted(scene, index) for index in indices])
        rows.append([Cell(np.asarray(fitted))] + [shown.seen("learned", scene, index) for index in indices])
    image_grid(
        path,
        rows,
        column_titles=[""] * (1 + len(indices)),
        row_titles=[title for scene in scenes for title in (shown.ids[scene], f"learned,\n{last}")],
        groups={"support": 1, "query": len(indices)},
    )
    return Picture(
        path,
        "Views that were asked for",
        "Two rows per scene: the truth, with the number that each view has in the data set, and below it what the "
        f"learned initialisation makes of the support after {last}. What the support does not show comes from what was "
        "learned about the class.",
    )


def baselines(path: Path, shown: Exhibition, scenes: Sequence[int]) -> Picture:
    """Draws a row per scene: a query item, and what every initialisation makes of it at the end."""
    middle, names = num_items(shown.query) // 2, list(shown.fits)
    rows = [
        [shown.support_cell(scene), shown.wanted(scene, middle)] + [shown.seen(name, scene, middle) for name in names]
        for scene in scenes
    ]
    image_grid(
        path,
        rows,
        column_titles=["support", "target", *(name.replace(" ", "\n", 1) for name in names)],
        row_titles=[shown.ids[scene] for scene in scenes],
        groups={"": 2, f"after {steps(shown.stages[-1])}": len(names)},
    )
    return Picture(
        path,
        "Every initialisation",
        "The same target from every starting point, after the same steps with the same draws. Compare along a row; "
        "below each picture is its PSNR, of which more is better.",
    )


def steps(count: int) -> str:
    """Returns a number of steps in words."""
    return counted(count, "step")
