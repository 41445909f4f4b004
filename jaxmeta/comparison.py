"""Fits the same tasks from several initialisations: for each number of support views and each seed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmeta.capacity import compile_adapt
from jaxmeta.evaluation import (
    AdaptTasks,
    Distance,
    Fit,
    ScoreTasks,
    fit_all,
    fit_in_batches,
    make_adapt,
    make_score,
    within_memory,
)
from jaxmeta.metalearning import Params
from jaxmeta.protocols import Plan, inner_optimiser
from jaxmeta.results import Outcome
from jaxmeta.signals import Signal
from jaxmeta.tasks import Tasks, first_draws, make_tasks

_SHORT = 1.0
"""In seconds: where the first batch of an initialisation takes less, the overhead of a first call would be seen."""

Starts = Mapping[int, Mapping[str, Params]]
"""By seed and name: the initialisations."""


class Subject(NamedTuple):
    """What is evaluated on."""

    signal: Signal
    data: Any
    """Of all scenes, as the signal's `support` and `query` take it."""
    num_scenes: int
    num_views: int
    """Of each scene."""


class Shown(NamedTuple):
    """What pictures are made of: every scene, in its first draw, for the first seed and number of support views."""

    fits: dict[str, Fit]
    """By initialisation."""
    tasks: Tasks
    """What they were fitted to and scored on."""


def score_function(signal: Signal, mesh: Mesh, *, lpips: Distance | None = None) -> ScoreTasks:
    """Returns what scores adapted tasks of a kind of signal, so many rays at a time as fit; `lpips` if it is given."""
    return within_memory(
        lambda rays: make_score(partial(signal.predict, rays_per_chunk=rays), signal.target, mesh, lpips=lpips)
    )


def num_fits(plan: Plan, starts: Starts, num_scenes: int) -> int:
    """Returns how many tasks a comparison fits in all."""
    initialisations = sum(len(of_seed) for of_seed in starts.values())
    return max(len(plan.supports), 1) * initialisations * num_scenes * max(plan.draws, 1)


def compare(
    subject: Subject,
    plan: Plan,
    starts: Starts,
    mesh: Mesh,
    *,
    num_at_once: int | None,
    tell: Callable[[int], Any],
    lpips: Distance | None = None,
) -> tuple[list[Outcome], Shown]:
    """Fits and scores all scenes from all initialisations; all of these share the compiled programs.

    Args:
      subject: what to fit.
      plan: the protocol.
      starts: the initialisations.
      mesh: shares the tasks.
      num_at_once: as for `compile_adapt`.
      tell: called with the number of tasks that were just done.
      lpips: as for `make_score`.
    """
    signal = subject.signal
    adapt = make_adapt(signal.loss, inner_optimiser(plan), mesh, stages=plan.stages)
    score = score_function(signal, mesh, lpips=lpips)
    outcomes, shown = [], None
    for views in plan.supports or ((),):
        compiled = None
        for seed, initialisations in starts.items():
            tasks = make_tasks(plan, views, seed=seed, num_scenes=subject.num_scenes, num_views=subject.num_views)
            if compiled is None:
                support = signal.support(subject.data, tasks.scenes, tasks.support)
                compiled = compile_adapt(
                    adapt, next(iter(initialisations.values())), support, mesh, num_at_once=num_at_once
                )
            fits = fit_each(
                subject,
                tasks,
                *compiled,
                score,
                initialisations,
                mesh,
                seed=seed,
                keep=shown is None,
                tell=tell,
            )
            outcomes += [_outcome(name, seed, tasks, fit) for name, fit in fits.items()]
            if shown is None:
                shown = Shown(fits, first_draws(tasks, subject.num_scenes))
    if shown is None:
        raise ValueError("there is no initialisation to compare")
    return outcomes, shown


def fit_each(
    subject: Subject,
    tasks: Tasks,
    adapt_tasks: AdaptTasks,
    batch_size: int,
    score_tasks: ScoreTasks,
    initialisations: Mapping[str, Params],
    mesh: Mesh,
    *,
    seed: int,
    keep: bool,
    tell: Callable[[int], Any],
) -> dict[str, Fit]:
    """Returns the fits of the same tasks from each initialisation, by scene.

    Args:
      subject: what to fit.
      tasks: the views.
      adapt_tasks: from `compile_adapt`, as `batch_size` is.
      batch_size: how many tasks at once.
      score_tasks: from `score_function`.
      initialisations: by name.
      mesh: shares the tasks.
      seed: of the draws.
      keep: whether to keep the adapted parameters of each scene's first task.
      tell: called with the number of tasks that were just done.
    """
    support = subject.signal.support(subject.data, tasks.scenes, tasks.support)
    query = subject.signal.query(subject.data, tasks.scenes, tasks.query)
    keep_every = len(tasks.scenes) // subject.num_scenes if keep else 0
    fits = {}
    for name, params in initialisations.items():
        batches = fit_in_batches(
            adapt_tasks,
            score_tasks,
            params,
            support,
            query,
            mesh,
            seed=seed,
            batch_size=batch_size,
            keep_every=keep_every,
            repeat_below=_SHORT,
        )
        fits[name] = by_scene(fit_all(_told(batches, tell)), subject.num_scenes)
    return fits


def by_scene(fit: Fit, num_scenes: int) -> Fit:
    """Returns fits of all draws with scenes along the leading axis, and the views of all draws along the scores' last.

    Args:
      fit: of all tasks, scene by scene.
      num_scenes: how many scenes that is.
    """

    def fold(scores: np.ndarray) -> np.ndarray:
        by_draw = scores.reshape(num_scenes, -1, *scores.shape[1:])
        return np.moveaxis(by_draw, 1, 2).reshape(num_scenes, scores.shape[1], -1)

    return Fit(fit.params, jax.tree.map(fold, fit.scores), fit.seconds.reshape(num_scenes, -1).mean(axis=1))


def _outcome(name: str, seed: int, tasks: Tasks, fit: Fit) -> Outcome:
    num_scenes, num_query = len(fit.seconds), tasks.query.shape[1]
    query = tasks.query.reshape(num_scenes, -1)
    support = np.repeat(tasks.support, num_query, axis=0).reshape(*query.shape, -1)
    return Outcome(name, seed, fit.scores, support, query, float(fit.seconds.mean()))


def _told(batches: Iterable[Fit], tell: Callable[[int], Any]) -> Iterator[Fit]:
    for fit in batches:
        tell(len(fit.seconds))
        yield fit
