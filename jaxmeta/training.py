"""Puts scenes and the meta-learning core together: which scenes and keys each meta-step gets, many steps a dispatch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from jaxmeta.devices import by_scene
from jaxmeta.feeding import FILLER
from jaxmeta.metalearning import LossFn, MetaMetrics, MetaState, meta_step, reptile

TrainSteps = Callable[[MetaState, Any, Int[Any, "steps scenes"]], tuple[MetaState, MetaMetrics]]


def scene_batches(
    seed: int, first_step: int, num_steps: int, *, num_scenes: int, scenes_per_step: int
) -> Int[np.ndarray, "steps scenes"]:
    """Returns the scenes of consecutive meta-steps: every scene once an epoch, each epoch in another order.

    The answer depends on the arguments alone, so a resumed run sees what it would have seen.

    Args:
      seed: of the orders.
      first_step: counted from 0.
      num_steps: how many steps to plan.
      num_scenes: in the data set.
      scenes_per_step: the batch.
    """
    first, last = first_step * scenes_per_step, (first_step + num_steps) * scenes_per_step
    epochs = range(first // num_scenes, -(-last // num_scenes))
    order = np.concatenate([np.random.default_rng((seed, epoch)).permutation(num_scenes) for epoch in epochs])
    offset = first - epochs.start * num_scenes
    return order[offset : offset + last - first].reshape(num_steps, scenes_per_step)


def plan_batches(
    seed: int, first_step: int, last_step: int, *, steps_per_chunk: int, num_scenes: int, scenes_per_step: int
) -> list[Int[np.ndarray, "_ scenes"]]:
    """Returns `scene_batches` of the steps up to `last_step`, cut into chunks of at most `steps_per_chunk` steps."""
    return [
        scene_batches(
            seed,
            start,
            min(steps_per_chunk, last_step - start),
            num_scenes=num_scenes,
            scenes_per_step=scenes_per_step,
        )
        for start in range(first_step, last_step, steps_per_chunk)
    ]


def make_train_steps(
    loss_fn: LossFn,
    inner_optimiser: optax.GradientTransformation,
    outer_optimiser: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    num_inner_steps: int,
    unroll: int = 1,
) -> TrainSteps:
    """Returns a compiled function that takes meta-steps, `(state, scenes, batches) -> (state, metrics)`.

    It consumes `state`. `scenes` is the data of all scenes, along the leading axis; `batches` says which scenes each
    step adapts; the metrics have a leading axis of steps.

    Args:
      loss_fn: the loss of one scene.
      inner_optimiser: fits one scene.
      outer_optimiser: improves the initialisation.
      mesh: shares the scenes of a batch.
      seed: of every draw.
      num_inner_steps: of the inner loop.
      unroll: as for `adapt`.
    """
    scene_gradient = partial(reptile, loss_fn, inner_optimiser, unroll=unroll)

    def inner_keys(step: Array, slot: Array) -> Array:
        scene_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), slot)
        return jax.random.split(scene_key, num_inner_steps)

    def one_step(scenes: PyTree[Array], state: MetaState, batch: Array) -> tuple[MetaState, MetaMetrics]:
        data = jax.tree.map(lambda leaf: leaf[batch], scenes)
        slots = jnp.arange(batch.shape[0])
        keys = jax.vmap(inner_keys, in_axes=(None, 0))(state.step, slots)
        data, keys = jax.lax.with_sharding_constraint((data, keys), by_scene(mesh))
        return meta_step(scene_gradient, outer_optimiser, state, data, keys, batch != FILLER)

    @partial(jax.jit, donate_argnums=0)
    def train_steps(state: MetaState, scenes: PyTree[Array], batches: Array) -> tuple[MetaState, MetaMetrics]:
        return jax.lax.scan(partial(one_step, scenes), state, batches)

    return train_steps
