"""Says which views each network of an evaluation is fitted to, and on which it is scored."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxmeta.protocols import Plan


class Tasks(NamedTuple):
    """What is fitted and scored: the scene of each task, its support and its query."""

    scenes: Int[np.ndarray, "tasks"]
    support: Int[np.ndarray, "tasks support_views"]
    query: Int[np.ndarray, "tasks query_views"]


def make_tasks(plan: Plan, support: tuple[int, ...], *, seed: int, num_scenes: int, num_views: int) -> Tasks:
    """Returns the tasks of all scenes: one for each scene, or one for each draw, scene by scene.

    Args:
      plan: of the evaluation.
      support: one of the plan's; nothing where views are drawn.
      seed: of the draws; those of a scene depend on it and on the scene's place alone.
      num_scenes: in all.
      num_views: to draw from.
    """
    if not plan.draws:
        fixed = (np.tile(np.array(views), (num_scenes, 1)) for views in (support, plan.query))
        return Tasks(np.arange(num_scenes), *fixed)
    pairs = []
    for scene in range(num_scenes):
        generator = np.random.default_rng((seed, scene))
        pairs += [generator.choice(num_views, 2, replace=False) for _ in range(plan.draws)]
    drawn = np.array(pairs)
    return Tasks(np.repeat(np.arange(num_scenes), plan.draws), drawn[:, :1], drawn[:, 1:])


def first_draws(tasks: Tasks, num_scenes: int) -> Tasks:
    """Returns the first task of each scene."""
    every = len(tasks.scenes) // num_scenes
    return Tasks(*(numbers[::every] for numbers in tasks))


def views_needed(plan: Plan, num_views: int) -> int:
    """Returns how many views of each scene, which has `num_views`, are to be loaded."""
    return num_views if plan.draws else max(*plan.query, *(view for views in plan.supports for view in views)) + 1
