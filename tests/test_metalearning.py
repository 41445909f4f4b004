"""The inner and the outer loop, on quadratics in closed form.

With the loss `|params - s|^2 / 2` each step of gradient descent at rate a leaves (1 - a) of the way to s, so k steps
leave r = (1 - a)^k of it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta.metalearning import Keys, adapt, adapt_in_stages, initial_state, meta_step, reptile

RATE, STEPS = 0.3, 5
LEFT = (1 - RATE) ** STEPS
START = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
TARGETS = jnp.array([0.5, -1.0, 4.0])
"""Of three scenes; each number is the target of all parameters."""
KEYS = Keys(jnp.zeros((3, STEPS)), jnp.zeros(3))
ALL = jnp.array([True, True, True])


def quadratic(params, target, key):
    return sum(jnp.sum(jnp.square(leaf - target)) for leaf in jax.tree.leaves(params)) / 2


def towards_key(params, data, key):
    """A quadratic about a target that each step brings along as its key, on top of the scene's."""
    return quadratic(params, data + key, None)


@pytest.fixture(scope="module")
def fit():
    return jax.jit(partial(adapt, quadratic, optax.sgd(RATE)))


@pytest.fixture(scope="module")
def gradient_of():
    return jax.jit(partial(reptile, quadratic, quadratic, optax.sgd(RATE)))


@pytest.fixture(scope="module")
def improve():
    """A meta-step on quadratics with plain outer descent at rate 1: the step is the meta-gradient."""
    return jax.jit(partial(meta_step, partial(reptile, quadratic, quadratic, optax.sgd(RATE)), optax.sgd(1.0)))


@pytest.fixture(scope="module")
def improve_with_adam():
    return jax.jit(partial(meta_step, partial(reptile, quadratic, quadratic, optax.sgd(RATE)), optax.adam(0.1)))


def assert_trees_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def assert_trees_close(found, wanted, rtol=1e-5, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, wanted)


def test_adaptation_by_hand():
    # From 4 to the target 0 at rate 1/2: 4, 2, 1, with losses 8 and 2 before the steps.
    adapted = adapt(quadratic, optax.sgd(0.5), jnp.array(4.0), jnp.array(0.0), jnp.zeros(2))
    assert adapted.params == 1
    np.testing.assert_array_equal(adapted.losses, [8, 2])


@given(target=st.floats(-5, 5, width=32), num_steps=st.sampled_from([1, 3, 8]))
def test_adaptation_in_closed_form(fit, target, num_steps):
    adapted = fit(START, np.float32(target), np.zeros(num_steps, np.float32))
    left = (1 - RATE) ** np.arange(num_steps + 1)
    assert_trees_close(adapted.params, jax.tree.map(lambda leaf: target + left[-1] * (leaf - target), START))
    whole = sum(np.sum((leaf - target) ** 2) for leaf in START.values()) / 2
    np.testing.assert_allclose(adapted.losses, left[:-1] ** 2 * whole, rtol=1e-4, atol=1e-6)


def test_each_step_has_its_own_key_in_order():
    # At rate 1/2 from 0: half way to 8 is 4, half way from there to 2 is 3, half way from there to 1 is 2.
    adapted = adapt(towards_key, optax.sgd(0.5), jnp.array(0.0), jnp.array(0.0), jnp.array([8.0, 2.0, 1.0]))
    assert adapted.params == 2


def test_unrolling_changes_nothing(generator):
    keys = jnp.asarray(generator.normal(size=7), jnp.float32)
    plain = adapt(towards_key, optax.sgd(RATE), START, jnp.array(0.5), keys)
    assert_trees_close(adapt(towards_key, optax.sgd(RATE), START, jnp.array(0.5), keys, unroll=3), plain)


@pytest.mark.parametrize("optimiser", [optax.sgd(RATE), optax.sgd(RATE, momentum=0.9), optax.adam(0.2)])
def test_stages_are_stops_on_one_way(generator, optimiser):
    # Adam and momentum remember earlier steps, so a stage that started them afresh would end elsewhere.
    stages, keys = (0, 1, 4, 9), jnp.asarray(generator.normal(size=9), jnp.float32)
    stops = jax.jit(partial(adapt_in_stages, towards_key, optimiser, stages=stages))(START, jnp.array(0.5), keys)
    for index, num_steps in enumerate(stages):
        stop = jax.tree.map(lambda leaf, index=index: leaf[index], stops)
        assert_trees_close(stop, adapt(towards_key, optimiser, START, jnp.array(0.5), keys[:num_steps]).params)


def test_stages_need_not_begin_at_zero(generator):
    keys = jnp.asarray(generator.normal(size=6), jnp.float32)
    stops = adapt_in_stages(towards_key, optax.sgd(RATE), START, jnp.array(0.5), keys, (2, 5))
    assert_trees_close(
        jax.tree.map(lambda leaf: leaf[1], stops),
        adapt(towards_key, optax.sgd(RATE), START, jnp.array(0.5), keys[:5]).params,
    )


@given(target=st.floats(-5, 5, width=32))
def test_reptile_in_closed_form(gradient_of, target):
    scene = gradient_of(START, np.float32(target), Keys(np.zeros(STEPS, np.float32), np.float32(0)))
    assert_trees_close(scene.gradient, jax.tree.map(lambda leaf: (1 - LEFT) * (leaf - target), START))
    np.testing.assert_allclose(scene.losses[1] / (1 - RATE) ** 2, scene.losses[0], rtol=1e-5)


def test_first_state():
    optimiser = optax.adam(0.1)
    state = initial_state(START, optimiser)
    assert_trees_equal(state.params, START)
    assert_trees_equal(state.opt_state, optimiser.init(START))
    assert state.step == 0


def test_meta_step_in_closed_form(improve):
    # The mean over scenes of (1 - r)(params - s_i) is (1 - r)(params - mean s_i).
    state, metrics = improve(initial_state(START, optax.sgd(1.0)), TARGETS, KEYS, ALL)
    gradient = jax.tree.map(lambda leaf: (1 - LEFT) * (leaf - TARGETS.mean()), START)
    assert_trees_close(state.params, jax.tree.map(np.subtract, START, gradient))
    assert state.step == 1
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in gradient.values()))
    np.testing.assert_allclose(metrics.gradient_norm, norm, rtol=1e-5)
    first_losses = [sum(np.sum((leaf - s) ** 2) for leaf in START.values()) / 2 for s in TARGETS]
    np.testing.assert_allclose(metrics.losses, np.mean(first_losses) * (1 - RATE) ** (2 * np.arange(STEPS)), rtol=1e-5)
    assert not metrics.diverged.any()


def test_one_scene_alone_is_the_same_scene_in_a_batch(generator):
    keys = Keys(jnp.asarray(generator.normal(size=(3, STEPS)), jnp.float32), None)
    scene_gradient = partial(reptile, towards_key, towards_key, optax.sgd(RATE))
    together = jax.jit(jax.vmap(scene_gradient, in_axes=(None, 0, 0)))(START, TARGETS, keys)
    alone = scene_gradient(START, TARGETS[1], jax.tree.map(lambda leaf: leaf[1], keys))
    assert_trees_close(jax.tree.map(lambda leaf: leaf[1], together), alone)


def test_not_jitted_is_the_same(improve_with_adam):
    state = initial_state(START, optax.adam(0.1))
    step = partial(meta_step, partial(reptile, quadratic, quadratic, optax.sgd(RATE)), optax.adam(0.1))
    assert_trees_close(improve_with_adam(state, TARGETS, KEYS, ALL), step(state, TARGETS, KEYS, ALL))


@pytest.mark.parametrize("harm", [np.nan, np.inf, 1e38])
def test_t1_a_diverged_scene_is_left_out(improve_with_adam, harm):
    # 1e38 is finite, its square is not.
    state = initial_state(START, optax.adam(0.1))
    harmed = TARGETS.at[1].set(harm)
    after, metrics = improve_with_adam(state, harmed, KEYS, ALL)
    without, metrics_without = improve_with_adam(state, TARGETS, KEYS, jnp.array([True, False, True]))
    assert_trees_equal(after, without)
    np.testing.assert_array_equal(metrics.diverged, [False, True, False])
    assert not metrics_without.diverged.any()
    assert_trees_equal(metrics.losses, metrics_without.losses)
    assert_trees_equal(metrics.gradient_norm, metrics_without.gradient_norm)


def test_the_scenes_that_count_share_the_mean(improve):
    # Two of three: the mean of their targets is (0.5 + 4) / 2.
    state, _ = improve(initial_state(START, optax.sgd(1.0)), TARGETS, KEYS, jnp.array([True, False, True]))
    wanted = jax.tree.map(lambda leaf: leaf - (1 - LEFT) * (leaf - 2.25), START)
    assert_trees_close(state.params, wanted)


def test_an_absurd_step_size_diverges_and_is_noticed():
    # At rate 1e20 the way left grows by 1e20 a step: beyond float32 after the second.
    step = partial(meta_step, partial(reptile, quadratic, quadratic, optax.sgd(1e20)), optax.adam(0.1))
    state = initial_state(START, optax.adam(0.1))
    after, metrics = step(state, TARGETS, KEYS, ALL)
    assert metrics.diverged.all()
    assert_trees_equal(after.params, START)


def test_a_scene_that_diverges_on_its_last_step_is_noticed():
    # Losses are those before each step: here the only one, 1e38, is finite, and what it leads to is not.
    step = partial(meta_step, partial(reptile, quadratic, quadratic, optax.sgd(1e20)), optax.adam(0.1))
    state = initial_state(jnp.array(1.0), optax.adam(0.1))
    after, metrics = step(state, jnp.array([1.0, 1e19]), Keys(jnp.zeros((2, 1)), None), jnp.ones(2, bool))
    np.testing.assert_array_equal(metrics.diverged, [False, True])
    assert after.params == 1


def test_t2_a_step_on_which_all_scenes_diverge_only_counts(improve_with_adam):
    # From a state whose moments are not zero: Adam would move on by them alone.
    state, _ = improve_with_adam(initial_state(START, optax.adam(0.1)), TARGETS, KEYS, ALL)
    after, metrics = improve_with_adam(state, jnp.full(3, jnp.nan), KEYS, ALL)
    assert metrics.diverged.all()
    assert_trees_equal((after.params, after.opt_state), (state.params, state.opt_state))
    assert after.step == 2


def test_fillers_alone_are_no_step(improve_with_adam):
    state, _ = improve_with_adam(initial_state(START, optax.adam(0.1)), TARGETS, KEYS, ALL)
    after, metrics = improve_with_adam(state, jnp.array([0.0, jnp.nan, 1.0]), KEYS, ~ALL)
    assert_trees_equal(after, state)
    assert not metrics.diverged.any()


def test_scenes_that_need_nothing_leave_adam_still():
    # Adam takes a full step along any gradient but zero, so `params - mean(adapted)`, whose rounding is not zero,
    # would move parameters that are optimal for every scene.
    params = jnp.linspace(0.1, 3.0, 1000)
    loss_fn = lambda params, data, key: jnp.sum(params * data)  # noqa: E731
    scene_gradient = partial(reptile, loss_fn, loss_fn, optax.sgd(RATE))
    state, metrics = jax.jit(partial(meta_step, scene_gradient, optax.adam(0.1)))(
        initial_state(params, optax.adam(0.1)),
        jnp.zeros(7),
        Keys(jnp.zeros((7, 2)), None),
        jnp.ones(7, bool),
    )
    assert metrics.gradient_norm == 0
    np.testing.assert_array_equal(state.params, params)


def test_repeated_meta_steps_end_where_the_scenes_meet(improve_with_adam):
    # Reptile's fixed point for equal quadratics is the mean of their targets.
    state = initial_state(START, optax.adam(0.1))
    for _ in range(200):
        state, _ = improve_with_adam(state, TARGETS, KEYS, ALL)
    assert_trees_close(state.params, jax.tree.map(lambda leaf: np.full_like(leaf, TARGETS.mean()), START), atol=2e-2)
