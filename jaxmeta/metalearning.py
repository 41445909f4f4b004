"""Learns initial parameters from which a few gradient steps fit a new scene.

Nothing here knows what a scene is: `loss_fn(params, data, key)` is the loss of one scene's data, and `data` is any
pytree. Functions handle one scene, except `meta_step`, which maps over a batch of them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

Params = PyTree[Float[Array, "..."]]
LossFn = Callable[[Params, Any, Any], Float[Array, ""]]


class Adapted(NamedTuple):
    """The inner loop's result."""

    params: Params
    losses: Float[Array, "steps"]
    """Before each step."""


class SceneGradient(NamedTuple):
    """What one scene contributes to the outer loop."""

    gradient: Params
    losses: Float[Array, "steps"]
    """Before each inner step."""


class MetaState(NamedTuple):
    """The outer loop's state."""

    params: Params
    """The initialisation."""
    opt_state: Any
    step: Int[Array, ""]
    """How many meta-steps led here."""


class MetaMetrics(NamedTuple):
    """What one meta-step tells."""

    losses: Float[Array, "steps"]
    """Before each inner step, mean over the scenes that count."""
    gradient_norm: Float[Array, ""]
    diverged: Bool[Array, "scenes"]
    """Scenes that do not count, because their inner loop or the step that they share led to numbers not finite."""


def adapt(
    loss_fn: LossFn, optimiser: optax.GradientTransformation, params: Params, data: Any, keys: Any, *, unroll: int = 1
) -> Adapted:
    """Fits one scene by gradient descent from the given parameters: the inner loop.

    Args:
      loss_fn: the loss of one scene.
      optimiser: of the inner loop; its state starts afresh.
      params: the initialisation.
      data: the scene's support.
      keys: one for each step, along the leading axis; their number is the number of steps.
      unroll: how many steps the compiled loop's body holds.
    """
    inner_step = partial(_inner_step, loss_fn, optimiser, data)
    (adapted, _), losses = jax.lax.scan(inner_step, (params, optimiser.init(params)), keys, unroll=unroll)
    return Adapted(adapted, losses)


def adapt_in_stages(
    loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    params: Params,
    data: Any,
    keys: Any,
    stages: Sequence[int],
) -> Params:
    """Returns what `adapt` reaches after each of several numbers of steps, along a new leading axis.

    Args:
      loss_fn: the loss of one scene.
      optimiser: of the inner loop.
      params: the initialisation.
      data: the scene's support.
      keys: one for each step, along the leading axis, at least as many as the last stage has steps.
      stages: numbers of steps, increasing.
    """

    def one_step(step: Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
        key = jax.tree.map(lambda leaf: leaf[step], keys)
        return _inner_step(loss_fn, optimiser, data, carry, key)[0]

    def one_stage(carry: tuple[Params, Any], span: tuple[Array, Array]) -> tuple[tuple[Params, Any], Params]:
        carry = jax.lax.fori_loop(span[0], span[1], one_step, carry)
        return carry, carry[0]

    # Stages of different lengths share one compiled step because the loop's bounds are data.
    spans = (jnp.array([0, *stages[:-1]]), jnp.array(stages))
    return jax.lax.scan(one_stage, (params, optimiser.init(params)), spans)[1]


def _inner_step(
    loss_fn: LossFn, optimiser: optax.GradientTransformation, data: Any, carry: tuple[Params, Any], key: Any
) -> tuple[tuple[Params, Any], Float[Array, ""]]:
    params, opt_state = carry
    loss, gradient = jax.value_and_grad(loss_fn)(params, data, key)
    updates, opt_state = optimiser.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


def reptile(
    loss_fn: LossFn, optimiser: optax.GradientTransformation, params: Params, data: Any, keys: Any, *, unroll: int = 1
) -> SceneGradient:
    """Returns `params - adapted`, the Reptile meta-gradient of one scene (Nichol et al. 2018, section 3).

    The arguments are those of `adapt`.
    """
    adapted = adapt(loss_fn, optimiser, params, data, keys, unroll=unroll)
    return SceneGradient(jax.tree.map(jnp.subtract, params, adapted.params), adapted.losses)


def initial_state(params: Params, optimiser: optax.GradientTransformation) -> MetaState:
    """Returns the outer loop's state before its first step."""
    return MetaState(params, optimiser.init(params), jnp.zeros((), jnp.int32))


def meta_step(
    scene_gradient: Callable[[Params, Any, Any], SceneGradient],
    optimiser: optax.GradientTransformation,
    state: MetaState,
    data: Any,
    keys: Any,
    counts: Bool[Array, "scenes"],
) -> tuple[MetaState, MetaMetrics]:
    """Improves the initialisation by the mean meta-gradient of a batch of scenes.

    Where no scene is left to count, or their step leads to numbers that are not finite, the parameters and the
    optimiser's state stay as they are, and all scenes have diverged. A batch of fillers alone is no step.

    Args:
      scene_gradient: `(params, data, keys) -> SceneGradient` of one scene, such as `reptile`.
      optimiser: of the outer loop.
      state: to be improved.
      data: of each scene, along the leading axis.
      keys: of each scene, along the leading axis.
      counts: false for entries that only fill the batch up to a size that the devices divide.
    """
    gradients, losses = jax.vmap(scene_gradient, in_axes=(None, 0, 0))(state.params, data, keys)
    finite = jax.vmap(_all_finite)((gradients, losses))
    counted = counts & finite
    # The mean of the differences, not the difference from the mean, which would feed rounding noise to Adam.
    gradient = jax.tree.map(lambda leaf: _mean_where(counted, leaf), gradients)
    updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
    improved = (optax.apply_updates(state.params, updates), opt_state)
    # A gradient may be finite, and its square in the optimiser not.
    accepted = jnp.any(counted) & _all_finite(improved)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old), improved, (state.params, state.opt_state)
    )
    metrics = MetaMetrics(_mean_where(counted, losses), optax.tree.norm(gradient), counts & ~(finite & accepted))
    return MetaState(params, opt_state, state.step + jnp.any(counts)), metrics


def _all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _mean_where(counted: Bool[Array, "scenes"], values: Float[Array, "scenes *axes"]) -> Float[Array, "*axes"]:
    mask = counted.reshape(-1, *([1] * (values.ndim - 1)))
    return jnp.sum(jnp.where(mask, values, 0), axis=0) / jnp.maximum(jnp.sum(counted), 1)
