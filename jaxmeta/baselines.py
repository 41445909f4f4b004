"""Initialisations that a learned one is compared with (Tancik et al. 2021, section 4).

    standard      random weights
    mean          the average of the weights that training scenes, fitted one by one from the same random start, reach
    matched       a network trained to give, before any adaptation, what the learned one gives
    shuffled      the learned weights, permuted within each array
    single-view   meta-learned from one view of each scene
    joint         meta-learned with a single inner step: the network that fits all scenes at once

They tell what of the learned initialisation helps: a good average of the class (mean, joint), what it shows without
adaptation (matched), or the distribution of its weights (shuffled).
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxmeta.capacity import compile_adapt
from jaxmeta.config import TrainConfig
from jaxmeta.devices import fetch, put, replicated
from jaxmeta.evaluation import AdaptTasks, adapt_in_batches, make_adapt
from jaxmeta.metalearning import Params
from jaxmeta.signals import Signal

TRAINED = ("single-view", "joint")
"""The baselines that are trainings of their own."""
MATCHING_RATE = 1e-3
"""Learning rate of Adam in the regression of the matched baseline, which decays to zero as a cosine."""


def trained_config(settings: TrainConfig, name: str) -> TrainConfig:
    """Returns the config of the training behind a baseline, in RUN/baselines/<name>.

    It is the run's own but for one thing, and is not validated. joint, with one inner step, takes so many more
    meta-steps that it sees as many gradients of each scene.

    Args:
      settings: of the run.
      name: "single-view" or "joint".
    """
    if name == "joint":
        longer = settings.inner.num_steps
        outer = dataclasses.replace(
            settings.outer,
            num_steps=settings.outer.num_steps * longer,
            warmup_steps=settings.outer.warmup_steps * longer,
        )
        changes: dict[str, Any] = {
            "inner": dataclasses.replace(settings.inner, num_steps=1),
            "outer": outer,
            "log_every": settings.log_every * longer,
            "checkpoint_every": settings.checkpoint_every * longer,
        }
    else:
        changes = {"signal": settings.signal.with_one_view()}
    validation = dataclasses.replace(settings.validation, every=0)
    run = settings.run / "baselines" / name
    return dataclasses.replace(settings, run=run, validation=validation, resume="auto", **changes)


def make_computed(
    signal: Signal,
    learned: Params,
    training: Callable[[], PyTree[Any]],
    mesh: Mesh,
    *,
    optimiser: optax.GradientTransformation,
    num_steps: int,
) -> Callable[[str, int], Params]:
    """Returns a function `(name, seed) -> initialisation` of the baselines that need no meta-training.

    Args:
      signal: the kind of signal, with the training's number of rays.
      learned: the learned initialisation.
      training: gives the support of the training scenes, along the leading axis; called where it is needed.
      mesh: shares the scenes.
      optimiser: of the fits behind the mean.
      num_steps: of each of these fits, and of the regression behind the matched baseline.
    """
    adapt = make_adapt(signal.loss, optimiser, mesh, stages=[num_steps])
    match = make_match(signal.output, signal.mismatch, mesh, num_steps=num_steps)
    scenes = functools.cache(training)
    compiled = functools.cache(lambda: compile_adapt(adapt, learned, scenes(), mesh))

    def compute(name: str, seed: int) -> Params:
        key = jax.random.key(seed)
        standard = signal.init(key)
        if name == "mean":
            adapt_tasks, size = compiled()
            return mean_of_fits(adapt_tasks, standard, scenes(), mesh, seed=seed, batch_size=size)
        if name == "matched":
            return match(standard, learned, scenes(), jax.random.fold_in(key, 1))
        return shuffled(learned, jax.random.fold_in(key, 2)) if name == "shuffled" else standard

    return compute


def shuffled(params: Params, key: Array) -> Params:
    """Returns the parameters with the numbers of each array in random order."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [
            jax.random.permutation(leaf_key, jnp.ravel(leaf)).reshape(leaf.shape)
            for leaf_key, leaf in zip(keys, leaves, strict=True)
        ]
    )


def mean_of_fits(
    adapt_tasks: AdaptTasks, start: Params, support: PyTree[Any], mesh: Mesh, *, seed: int, batch_size: int
) -> Params:
    """Returns the average of the parameters that training scenes, each fitted from the same start, reach.

    A scene whose fit is not finite is left out.

    Args:
      adapt_tasks: from `make_adapt`, with a single stage.
      start: the random start.
      support: of the training scenes, along the leading axis.
      mesh: shares the scenes.
      seed: of the draws.
      batch_size: scenes at once.
    """
    total, count = jax.tree.map(lambda leaf: np.zeros(leaf.shape), start), 0
    for tasks, _, adapted, _ in adapt_in_batches(adapt_tasks, start, support, mesh, seed=seed, batch_size=batch_size):
        fits = jax.tree.map(lambda leaf: np.asarray(leaf[:, 0], np.float64), fetch(adapted))
        finite = [np.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(fits)]
        counted = np.flatnonzero(np.all(finite, axis=0))
        counted = counted[counted < len(tasks)]  # without fillers
        total = jax.tree.map(partial(_add_rows, counted), total, fits)
        count += len(counted)
    mean = jax.tree.map(lambda leaf: leaf / count if count else np.full_like(leaf, np.nan), total)
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), mean, start)


def _add_rows(rows: np.ndarray, total: np.ndarray, added: np.ndarray) -> np.ndarray:
    return total + added[rows].sum(axis=0)


def make_match(
    output: Callable[[Params, Any, Array], Float[Array, "*points outputs"]],
    mismatch: Callable[[Array, Array], Array],
    mesh: Mesh,
    *,
    num_steps: int,
) -> Callable[[Params, Params, Any, Array], Params]:
    """Returns a compiled function `(start, learned, support, key) -> params` whose output is trained towards another's.

    Adam on the mean mismatch of the outputs at random points of a training scene, another one in each step.

    Args:
      output: `(params, support, key)`: what a network gives at random points of the domain of one scene's support.
      mismatch: `(outputs, wanted)`: how far each is from what is wanted.
      mesh: holds `support`, of the training scenes, along the leading axis.
      num_steps: of the regression.
    """
    optimiser = optax.adam(optax.cosine_decay_schedule(MATCHING_RATE, num_steps))

    def difference(params: Params, learned: Params, support: Any, key: Array) -> Float[Array, ""]:
        return jnp.mean(mismatch(output(params, support, key), output(learned, support, key)))

    @jax.jit
    def match(start: Params, learned: Params, support: Any, key: Array) -> Params:
        def step(carry: tuple[Params, Any], step_key: Array) -> tuple[tuple[Params, Any], None]:
            params, opt_state = carry
            scene_key, point_key = jax.random.split(step_key)
            scene = jax.random.randint(scene_key, (), 0, len(jax.tree.leaves(support)[0]))
            one = jax.tree.map(lambda leaf: leaf[scene], support)
            gradient = jax.grad(difference)(params, learned, one, point_key)
            updates, opt_state = optimiser.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (start, optimiser.init(start)), jax.random.split(key, num_steps))[0][0]

    return lambda *arguments: match(*put(arguments, replicated(mesh)))
