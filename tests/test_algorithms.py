"""FOMAML, MAML and Meta-SGD: closed forms on quadratics, finite differences elsewhere, what they cost and survive.

With the loss `|params - s|^2 / 2` for the inner loop and q in place of s for the query, and r = (1 - a)^k as in
test_metalearning.py: adapted = s + r (params - s), and the query loss's gradient there is adapted - q.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta import metalearning
from jaxmeta.cameras import Views
from jaxmeta.fields import RadianceField
from jaxmeta.metalearning import (
    Keys,
    Learned,
    adapt,
    adapt_in_stages,
    fomaml,
    initial_state,
    maml,
    meta_step,
    reptile,
    with_step_sizes,
)
from jaxmeta.objectives import photometric_loss
from jaxmeta.optimisers import inner_optimiser
from jaxmeta.rendering import Sampling

RATE, STEPS = 0.3, 5
START = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
PLACES = st.floats(-5, 5, width=32)


def quadratic(params, target, key):
    """About the scene's target, moved by the key: the query's key is q - s."""
    return sum(jnp.sum(jnp.square(leaf - target - key)) for leaf in jax.tree.leaves(params)) / 2


def curved(params, data, key):
    """Smooth, with a third derivative, and every parameter in the way of every other."""
    hidden = jnp.tanh(params["w"] @ data + params["b"])
    return jnp.mean(jnp.square(jnp.sin(hidden) - data[:2] - 0.1 * key))


def scene_gradient_of(algorithm, optimiser=None, loss_fn=quadratic):
    return jax.jit(partial(algorithm, loss_fn, loss_fn, optimiser or optax.sgd(RATE)))


@pytest.fixture(scope="module")
def of():
    """The algorithms on the quadratic, compiled."""
    return {algorithm: scene_gradient_of(algorithm) for algorithm in (reptile, fomaml, maml)}


def keys_to(query_minus_support):
    return Keys(np.zeros(STEPS, np.float32), np.float32(query_minus_support))


def assert_trees_close(found, wanted, rtol=1e-5, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, wanted)


def by_entry(tree, function):
    return jax.tree.map(lambda leaf: function(np.asarray(leaf)), tree)


def test_by_hand(of):
    # One step at rate 1/2 from 4 to the target 0 arrives at 2. The query's target is 1, its gradient there 2 - 1, and
    # half of a move of the start is left: Reptile 4 - 2, FOMAML 1, MAML 1/2.
    arguments = jnp.array(4.0), jnp.array(0.0), Keys(jnp.zeros(1), jnp.array(1.0))
    for algorithm, wanted in ((reptile, 2), (fomaml, 1), (maml, 0.5)):
        scene = algorithm(quadratic, quadratic, optax.sgd(0.5), *arguments)
        assert scene.gradient == wanted
        np.testing.assert_array_equal(scene.losses, [8])


@given(support=PLACES, query=PLACES)
def test_closed_forms(of, support, query):
    left, keys = (1 - RATE) ** STEPS, keys_to(query - support)
    wanted = {
        reptile: lambda leaf: (1 - left) * (leaf - support),
        fomaml: lambda leaf: support + left * (leaf - support) - query,
        maml: lambda leaf: left * (support + left * (leaf - support) - query),
    }
    for algorithm, gradient in wanted.items():
        scene = of[algorithm](START, np.float32(support), keys)
        assert_trees_close(scene.gradient, by_entry(START, gradient))


def test_all_adapt_alike(of):
    losses = [of[algorithm](START, np.float32(0.5), keys_to(1.0)).losses for algorithm in of]
    np.testing.assert_array_equal(losses[1], losses[0])
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-6)


@given(support=PLACES, query=PLACES, factor=st.floats(-0.5, 2, width=32))
@pytest.mark.parametrize("granularity", ["leaf", "parameter"])
def test_meta_sgd_in_closed_form(of, granularity, support, query, factor):
    # At factor f: r = (1 - a f)^k, and d adapted / d f = -a k (1 - a f)^(k - 1) (params - s).
    learned = with_step_sizes(START, granularity=granularity)
    learned = Learned(START, jax.tree.map(lambda sizes: np.float32(factor) * sizes, learned.step_sizes))
    scene = of[maml](learned, np.float32(support), keys_to(query - support))
    shrink = 1 - RATE * factor

    def by_factor(leaf):
        off = support + shrink**STEPS * (leaf - support) - query
        entries = off * -RATE * STEPS * shrink ** (STEPS - 1) * (leaf - support)
        return (entries if granularity == "parameter" else np.sum(entries))[None]

    def by_params(leaf):
        return shrink**STEPS * (support + shrink**STEPS * (leaf - support) - query)

    assert_trees_close(scene.gradient.params, by_entry(START, by_params), atol=2e-3)
    assert_trees_close(scene.gradient.step_sizes, by_entry(START, by_factor), atol=2e-3)


def test_step_sizes_of_each_step_in_closed_form(of, generator):
    # r is the product of 1 - a f_j over the steps j; by f_j it is that product without j, times -a.
    factors = generator.uniform(0.5, 1.5, STEPS).astype(np.float32)
    learned = Learned(START, jax.tree.map(lambda leaf: jnp.asarray(factors), START))
    scene = of[maml](learned, np.float32(0.5), keys_to(-1.0))
    shrinks = 1 - RATE * factors
    without = np.array([np.prod(np.delete(shrinks, j)) for j in range(STEPS)])

    def by_factors(leaf):
        off = 0.5 + np.prod(shrinks) * (leaf - 0.5) - -0.5
        return -RATE * without * np.sum(off * (leaf - 0.5))

    assert_trees_close(scene.gradient.step_sizes, by_entry(START, by_factors))


@pytest.mark.parametrize("num_steps", [None, 3])
@pytest.mark.parametrize(("granularity", "shape"), [("leaf", ()), ("parameter", (2,))])
def test_first_step_sizes_change_nothing(of, granularity, num_steps, shape):
    learned = with_step_sizes(START, granularity=granularity, num_steps=num_steps)
    assert learned.step_sizes["a"].shape == (num_steps or 1, *shape)
    found = of[maml](learned, np.float32(0.5), keys_to(1.0))
    assert_trees_close(found.gradient.params, of[maml](START, np.float32(0.5), keys_to(1.0)).gradient)


def test_step_sizes_by_hand():
    # From 8 to the target 0 at rate 1/2 with factors 1, 0, 2: 4, 4, 0; from 16 with 1, 1/2: 8, 6, and the last serves
    # all later steps: 4.5. A negative one steps uphill: from 4 with -1 to 6.
    for start, factors, wanted in ((8, [1, 0, 2], 0), (16, [1, 0.5], 4.5), (4, [-1], 13.5)):
        learned = Learned(jnp.float32(start), jnp.array(factors, jnp.float32))
        arguments = quadratic, optax.sgd(0.5), learned, jnp.array(0.0), jnp.zeros(3)
        assert adapt(*arguments).params == wanted
        np.testing.assert_array_equal(adapt_in_stages(*arguments, (0, 3)), [start, wanted])


POINT = np.array([0.3, -0.8, 0.5])
CURVED_KEYS = Keys(np.array([0.2, -0.4, 0.1]), np.array(0.7))


def curved_start(generator, learned):
    params = {"w": jnp.array(generator.normal(size=(2, 3))), "b": jnp.array(generator.normal(size=2))}
    if not learned:
        return params
    sizes = {"w": generator.uniform(0.5, 1.5, (3, 2, 3)), "b": generator.uniform(0.5, 1.5, (3, 2))}
    return Learned(params, jax.tree.map(jnp.array, sizes))


def slope(function, tree, direction, step=1e-5):
    """The central difference of a function of a tree, to the second order in the step."""
    ahead, behind = (jax.tree.map(lambda leaf, d, s=sign: leaf + s * step * d, tree, direction) for sign in (1, -1))
    return (function(ahead) - function(behind)) / (2 * step)


def along(gradient, direction):
    return sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("learned", [False, True])
def test_maml_against_finite_differences(x64, generator, optimiser, learned):
    inner = inner_optimiser(optimiser, 0.1)
    start = curved_start(generator, learned)
    gradient = scene_gradient_of(maml, inner, curved)(start, POINT, CURVED_KEYS).gradient

    @jax.jit
    def query_loss(start):
        return curved(adapt(curved, inner, start, POINT, CURVED_KEYS.inner).params, POINT, CURVED_KEYS.query)

    for _ in range(3):
        direction = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), start)
        np.testing.assert_allclose(along(gradient, direction), slope(query_loss, start, direction), rtol=1e-6)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_fomaml_against_finite_differences(x64, generator, optimiser):
    inner = inner_optimiser(optimiser, 0.1)
    start = curved_start(generator, False)
    gradient = scene_gradient_of(fomaml, inner, curved)(start, POINT, CURVED_KEYS).gradient
    adapted = jax.jit(partial(adapt, curved, inner))(start, POINT, CURVED_KEYS.inner).params
    direction = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), start)
    wanted = slope(lambda params: curved(params, POINT, CURVED_KEYS.query), adapted, direction)
    np.testing.assert_allclose(along(gradient, direction), wanted, rtol=1e-6)


def test_maml_of_a_radiance_field_against_finite_differences(x64, generator, balls, small_field, small_start, sampling):
    loss_fn = partial(photometric_loss, small_field.apply, num_rays=4, sampling=sampling)
    views = jax.tree.map(jnp.asarray, Views(balls.images[0], balls.poses[0].astype(float), np.float64(balls.focal[0])))
    keys = Keys(jax.random.split(jax.random.key(0), 2), jax.random.key(1))
    start = jax.tree.map(lambda leaf: np.asarray(leaf, float), small_start)
    gradient = scene_gradient_of(maml, optax.sgd(0.5), loss_fn)(start, views, keys).gradient

    @jax.jit
    def query_loss(start):
        return loss_fn(adapt(loss_fn, optax.sgd(0.5), start, views, keys.inner).params, views, keys.query)

    direction = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), start)
    np.testing.assert_allclose(along(gradient, direction), slope(query_loss, start, direction, 1e-7), rtol=1e-4)


def test_maml_through_adam_where_a_gradient_is_zero():
    # The root of Adam's second moment has no derivative at zero, and a parameter of no effect has no other gradient.
    def loss_fn(params, data, key):
        return jnp.square(params[0] - data)

    inner = inner_optimiser("adam", 0.1)
    scene = maml(loss_fn, loss_fn, inner, jnp.array([2.0, 1.0]), jnp.array(0.0), Keys(jnp.zeros(3), None))
    assert np.isfinite(scene.gradient).all()
    assert scene.gradient[0] > 0 and scene.gradient[1] == 0


def test_rematerialisation_saves_memory(monkeypatch):
    # A wide hidden layer of many points that each inner step would keep, beside parameters that are few.
    points = jnp.linspace(-1, 1, 256)

    def loss_fn(params, data, key):
        return jnp.mean(jnp.square(jnp.tanh(jnp.outer(points, params)).sum(1) - data))

    def temporary_bytes():
        gradient_of = jax.jit(lambda *arguments: maml(loss_fn, loss_fn, optax.sgd(0.1), *arguments))
        compiled = gradient_of.lower(jnp.ones(64), jnp.array(0.0), Keys(jnp.zeros(32), None)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    with_it = temporary_bytes()
    monkeypatch.setattr(metalearning.jax, "checkpoint", lambda function, **_: function)
    # 32 steps would keep at least a layer of 256 x 64 floats each.
    assert temporary_bytes() > 32 * 256 * 64 * 4 > 4 * with_it


LEARNED = with_step_sizes(START, granularity="parameter", num_steps=STEPS)
TARGETS = jnp.array([0.5, -1.0, 4.0])
KEYS = Keys(jnp.zeros((3, STEPS)), jnp.array([0.1, 0.2, -0.3]))
ALL = jnp.ones(3, bool)


@pytest.mark.parametrize(
    ("algorithm", "start"), [(fomaml, START), (maml, START), (maml, LEARNED)], ids=["fomaml", "maml", "meta-sgd"]
)
def test_a_meta_step_does_not_know_which_it_was(algorithm, start):
    scene_gradient = partial(algorithm, quadratic, quadratic, optax.sgd(RATE))
    improve = jax.jit(partial(meta_step, scene_gradient, optax.sgd(1.0)))
    state = initial_state(start, optax.sgd(1.0))
    after, metrics = improve(state, TARGETS, KEYS, ALL)
    scenes = [scene_gradient(start, *jax.tree.map(lambda leaf, i=i: leaf[i], (TARGETS, KEYS))) for i in range(3)]
    gradients = [scene.gradient for scene in scenes]
    wanted = jax.tree.map(lambda leaf, *three: leaf - sum(three) / 3, start, *gradients)
    assert_trees_close(after.params, wanted)
    assert not metrics.diverged.any()
    # A scene whose loss is not finite is left out, and changes nothing of the rest.
    harmed, metrics = improve(state, TARGETS.at[1].set(jnp.nan), KEYS, ALL)
    without, _ = improve(state, TARGETS, KEYS, jnp.array([True, False, True]))
    np.testing.assert_array_equal(metrics.diverged, [False, True, False])
    jax.tree.map(np.testing.assert_array_equal, harmed, without)


def test_t3_a_query_that_diverges_is_left_out():
    # The inner loop is sound, only the judge's draw is not.
    keys = KEYS._replace(query=jnp.array([0.1, jnp.inf, -0.3]))
    for algorithm in (fomaml, maml):
        scene_gradient = partial(algorithm, quadratic, quadratic, optax.sgd(RATE))
        improve = jax.jit(partial(meta_step, scene_gradient, optax.sgd(1.0)))
        state = initial_state(START, optax.sgd(1.0))
        after, metrics = improve(state, TARGETS, keys, ALL)
        without, _ = improve(state, TARGETS, KEYS, jnp.array([True, False, True]))
        np.testing.assert_array_equal(metrics.diverged, [False, True, False])
        jax.tree.map(np.testing.assert_array_equal, after, without)


def loss_with(density_activation, sampling, num_rays=8):
    field = RadianceField(16, 2, num_frequencies=4, max_log2_frequency=2.0, density_activation=density_activation)
    return field, partial(photometric_loss, field.apply, num_rays=num_rays, sampling=sampling)


def test_a_white_image_is_for_good_with_relu_and_not_with_softplus(balls, sampling, small_start):
    # All densities below zero: relu has no derivative there, so that no algorithm has anything to go by.
    white = jax.tree.map(jnp.asarray, small_start)
    white["params"]["Dense_2"]["bias"] = white["params"]["Dense_2"]["bias"].at[3].add(-3.0)
    views = jax.tree.map(jnp.asarray, Views(*(leaf[0] for leaf in balls)))
    for density_activation, gone in (("relu", True), ("shifted_softplus", False)):
        _, loss_fn = loss_with(density_activation, sampling, num_rays=64)
        gradient = jax.jit(jax.grad(loss_fn))(white, views, jax.random.key(0))
        assert (optax.tree.norm(gradient) == 0) == gone


def test_fomaml_dies_with_relu_and_lives_with_softplus(balls):
    # Eight random starts at a high outer rate. Where the meta-gradient has become exactly zero, all is white for good.
    scenes = jax.tree.map(jnp.asarray, Views(*(leaf[:16] for leaf in balls)))
    num_steps, outer = 16, optax.adam(5e-2)

    def losses_and_norms(density_activation):
        field, loss_fn = loss_with(density_activation, Sampling(near=2.5, far=5.5, num_samples=12))
        scene_gradient = partial(fomaml, loss_fn, loss_fn, optax.sgd(1.0))

        def one_step(state, key):
            scene_key, inner_key, query_key = jax.random.split(key, 3)
            chosen = jax.random.choice(scene_key, 16, (4,), replace=False)
            keys = Keys(jax.random.split(inner_key, (4, 4)), jax.random.split(query_key, 4))
            data = jax.tree.map(lambda leaf: leaf[chosen], scenes)
            state, metrics = meta_step(scene_gradient, outer, state, data, keys, jnp.ones(4, bool))
            return state, (metrics.losses[-1], metrics.gradient_norm)

        def one_training(seed):
            init_key, *step_keys = jax.random.split(jax.random.key(seed), num_steps + 1)
            state = initial_state(field.init(init_key, jnp.zeros((1, 3))), outer)
            return jax.lax.scan(one_step, state, jnp.stack(step_keys))[1]

        compiled = jax.jit(one_training)
        return tuple(np.stack(rows) for rows in zip(*map(compiled, range(8)), strict=True))

    _, norms = losses_and_norms("relu")
    assert (norms[:, -4:] == 0).all(axis=1).sum() >= 3
    losses, norms = losses_and_norms("shifted_softplus")
    assert (norms > 0).all()
    # A white image's loss is about 0.08.
    assert losses[:, -4:].mean() < 0.05
