"""Learns initial parameters from which a few gradient steps fit a new scene.

Nothing here knows what a scene is: `loss_fn(params, data, key)` is the loss of one scene's data, and `data` is any
pytree. Functions handle one scene, except `meta_step`, which maps over a batch of them.

The algorithms have one signature and differ in one thing, the meta-gradient. With `adapted` the inner loop's result:

    reptile   params - adapted                      Nichol et al. 2018, section 3
    fomaml    d query_loss / d adapted              Finn et al. 2017, section 5.2, and Nichol et al. 2018, section 2
    maml      d query_loss(adapted) / d params      Finn et al. 2017, equation 1
    maml of a `Learned`: Meta-SGD                   Li et al. 2017, equation 3
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

Params = PyTree[Float[Array, "..."]]
LossFn = Callable[[Params, Any, Any], Float[Array, ""]]


class Learned(NamedTuple):
    """An initialisation that brings its own step sizes, as Meta-SGD learns it."""

    params: Params
    step_sizes: Params
    """Factors of the inner optimiser's updates. For each leaf of the parameters a number or one for each of its
    entries, after a leading axis of steps; the last entry serves all later steps. They may become negative, as in the
    paper: a parameter can learn to step uphill, or not at all."""


Initialisation = Params | Learned
"""What the outer loop learns."""


class Keys(NamedTuple):
    """The draws of one scene in a meta-step."""

    inner: Any
    """One for each inner step, along the leading axis."""
    query: Any
    """Of the query loss."""


class Adapted(NamedTuple):
    """The inner loop's result."""

    params: Params
    losses: Float[Array, "steps"]
    """Before each step."""


class SceneGradient(NamedTuple):
    """What one scene contributes to the outer loop."""

    gradient: Initialisation
    losses: Float[Array, "steps"]
    """Before each inner step."""


SceneGradientFn = Callable[[Initialisation, Any, Keys], SceneGradient]
"""`(initialisation, data, keys)`: one of the algorithms with its losses and optimiser."""


class MetaState(NamedTuple):
    """The outer loop's state."""

    params: Initialisation
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


def with_step_sizes(
    params: Params, *, granularity: Literal["leaf", "parameter"] = "leaf", num_steps: int | None = None
) -> Learned:
    """Returns an initialisation whose inner loop is, until it has learned, that of its parameters alone.

    Args:
      params: to start from.
      granularity: whether the entries of a leaf share their step size.
      num_steps: steps that have step sizes of their own; None for the same in all.
    """
    steps = (num_steps or 1,)
    step_sizes = jax.tree.map(
        lambda leaf: jnp.ones(steps + (leaf.shape if granularity == "parameter" else ()), leaf.dtype), params
    )
    return Learned(params, step_sizes)


def adapt(
    loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    initialisation: Initialisation,
    data: Any,
    keys: Any,
    *,
    unroll: int = 1,
) -> Adapted:
    """Fits one scene by gradient descent from the given parameters: the inner loop.

    Args:
      loss_fn: the loss of one scene.
      optimiser: of the inner loop; its state starts afresh.
      initialisation: what to start from, with the step sizes where they are learned.
      data: the scene's support.
      keys: one for each step, along the leading axis; their number is the number of steps.
      unroll: how many steps the compiled loop's body holds.
    """
    params, optimiser = start(initialisation, optimiser)
    # Where the loop is differentiated, a step keeps its parameters and computes the rest again: 32 steps on a scene of
    # full size would else keep 25.8 GiB, and so 1.4. Where it is not, this does nothing.
    one_step = jax.checkpoint(partial(inner_step, loss_fn, optimiser, data), prevent_cse=False)
    (adapted, _), losses = jax.lax.scan(one_step, (params, optimiser.init(params)), keys, unroll=unroll)
    return Adapted(adapted, losses)


def adapt_in_stages(
    loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    initialisation: Initialisation,
    data: Any,
    keys: Any,
    stages: Sequence[int],
) -> Params:
    """Returns what `adapt` reaches after each of several numbers of steps, along a new leading axis.

    Args:
      loss_fn: the loss of one scene.
      optimiser: of the inner loop.
      initialisation: what to start from, with the step sizes where they are learned.
      data: the scene's support.
      keys: one for each step, along the leading axis, at least as many as the last stage has steps.
      stages: numbers of steps, increasing.
    """
    params, optimiser = start(initialisation, optimiser)

    def one_step(step: Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
        key = jax.tree.map(lambda leaf: leaf[step], keys)
        return inner_step(loss_fn, optimiser, data, carry, key)[0]

    def one_stage(carry: tuple[Params, Any], span: tuple[Array, Array]) -> tuple[tuple[Params, Any], Params]:
        carry = jax.lax.fori_loop(span[0], span[1], one_step, carry)
        return carry, carry[0]

    # Stages of different lengths share one compiled step because the loop's bounds are data.
    spans = (jnp.array([0, *stages[:-1]]), jnp.array(stages))
    return jax.lax.scan(one_stage, (params, optimiser.init(params)), spans)[1]


def start(
    initialisation: Initialisation, optimiser: optax.GradientTransformation
) -> tuple[Params, optax.GradientTransformation]:
    """Returns the parameters to start from, and the optimiser with the learned step sizes if there are any."""
    if isinstance(initialisation, Learned):
        return initialisation.params, optax.chain(optimiser, _scale_by(initialisation.step_sizes))
    return initialisation, optimiser


def _scale_by(step_sizes: Params) -> optax.GradientTransformation:
    """Returns a transformation that scales the updates of step k by the k-th step sizes, or the last."""

    def scale(updates: Any, state: Any, params: Any = None) -> tuple[Params, Array]:
        del params
        now = jax.tree.map(lambda sizes: sizes[jnp.minimum(state, len(sizes) - 1)], step_sizes)
        return jax.tree.map(jnp.multiply, updates, now), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), scale)


def inner_step(
    loss_fn: LossFn, optimiser: optax.GradientTransformation, data: Any, carry: tuple[Params, Any], key: Any
) -> tuple[tuple[Params, Any], Float[Array, ""]]:
    """Returns the parameters and the optimiser's state after one step from `carry`, and the loss before it."""
    params, opt_state = carry
    loss, gradient = jax.value_and_grad(loss_fn)(params, data, key)
    updates, opt_state = optimiser.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


def reptile(
    loss_fn: LossFn,
    query_loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    params: Params,
    data: Any,
    keys: Keys,
    *,
    unroll: int = 1,
) -> SceneGradient:
    """Returns `params - adapted`, the Reptile meta-gradient of one scene.

    Args:
      loss_fn: the loss of one scene that the inner loop descends.
      query_loss_fn: the loss of the adapted parameters; not used by Reptile.
      optimiser: of the inner loop.
      params: the initialisation.
      data: of the scene.
      keys: their number for the inner loop is the number of steps.
      unroll: as for `adapt`.
    """
    del query_loss_fn
    adapted = adapt(loss_fn, optimiser, params, data, keys.inner, unroll=unroll)
    return SceneGradient(jax.tree.map(jnp.subtract, params, adapted.params), adapted.losses)


def fomaml(
    loss_fn: LossFn,
    query_loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    params: Params,
    data: Any,
    keys: Keys,
    *,
    unroll: int = 1,
) -> SceneGradient:
    """Returns the gradient of the query loss at the adapted parameters, as if they had moved with the initialisation.

    The arguments are those of `reptile`.
    """
    adapted = adapt(loss_fn, optimiser, params, data, keys.inner, unroll=unroll)
    return SceneGradient(jax.grad(query_loss_fn)(adapted.params, data, keys.query), adapted.losses)


def maml(
    loss_fn: LossFn,
    query_loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    initialisation: Initialisation,
    data: Any,
    keys: Keys,
    *,
    unroll: int = 1,
) -> SceneGradient:
    """Returns the gradient of the query loss after the inner loop by the initialisation, through all its steps.

    Of a `Learned` this is Meta-SGD's: the step sizes are part of the initialisation. The arguments are those of
    `reptile`; the optimiser's updates must have a derivative by the gradient.
    """

    def query_loss(initialisation: Initialisation) -> tuple[Float[Array, ""], Float[Array, "steps"]]:
        adapted = adapt(loss_fn, optimiser, initialisation, data, keys.inner, unroll=unroll)
        return query_loss_fn(adapted.params, data, keys.query), adapted.losses

    return SceneGradient(*jax.grad(query_loss, has_aux=True)(initialisation))


def initial_state(initialisation: Initialisation, optimiser: optax.GradientTransformation) -> MetaState:
    """Returns the outer loop's state before its first step."""
    return MetaState(initialisation, optimiser.init(initialisation), jnp.zeros((), jnp.int32))


_side_by_side = partial(jax.vmap, in_axes=(None, 0, 0))


def meta_step(
    scene_gradient: SceneGradientFn,
    optimiser: optax.GradientTransformation,
    state: MetaState,
    data: Any,
    keys: Keys,
    counts: Bool[Array, "scenes"],
    *,
    over_scenes: Callable[[SceneGradientFn], SceneGradientFn] = _side_by_side,
) -> tuple[MetaState, MetaMetrics]:
    """Improves the initialisation by the mean meta-gradient of a batch of scenes.

    Where no scene is left to count, or their step leads to numbers that are not finite, the parameters and the
    optimiser's state stay as they are, and all scenes have diverged. A batch of fillers alone is no step.

    Args:
      scene_gradient: of one scene, such as `reptile` with its losses and optimiser; which one does not matter here.
      optimiser: of the outer loop.
      state: to be improved.
      data: of each scene, along the leading axis.
      keys: of each scene, along the leading axis.
      counts: false for entries that only fill the batch up to a size that the devices divide.
      over_scenes: maps a function of one scene over the batch.
    """
    gradients, losses = over_scenes(scene_gradient)(state.params, data, keys)
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
