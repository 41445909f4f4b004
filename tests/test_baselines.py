"""What a learned initialisation is compared with, on networks whose outcome is known."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.losses import squared_error

from jaxmeta import baselines, configfiles
from jaxmeta.baselines import make_match, mean_of_fits, shuffled, trained_config
from jaxmeta.config import TrainConfig
from jaxmeta.evaluation import make_adapt
from jaxmeta.fields import RadianceField
from jaxmeta.objectives import cross_entropy


def test_shuffled_keeps_each_array_and_its_numbers(small_start):
    small_start = jax.tree.map(jnp.asarray, small_start)
    found = shuffled(small_start, jax.random.key(3))
    again, other = shuffled(small_start, jax.random.key(3)), shuffled(small_start, jax.random.key(4))
    for a, b, c, before in zip(*map(jax.tree.leaves, (found, again, other, small_start)), strict=True):
        assert a.shape == before.shape
        np.testing.assert_array_equal(np.sort(a, axis=None), np.sort(before, axis=None))
        np.testing.assert_array_equal(a, b)
        assert (a != before).any() and (a != c).any()


def test_mean_of_fits_by_hand(mesh8, mesh1):
    # Gradient descent on |w - s|^2 / 2 from w: after two steps of 0.5, s + (w - s) / 4. The scene that is not finite is
    # left out, and so are the fillers.
    targets = np.array([[1.0, 2.0], [3.0, np.inf], [5.0, 6.0], [9.0, 1.0]], np.float32)
    start = {"w": jnp.array([1.0, -1.0])}
    for mesh, batch_size in ((mesh1, 3), (mesh8, 8)):
        adapt = make_adapt(
            lambda params, s, key: jnp.sum(jnp.square(params["w"] - s)) / 2, optax.sgd(0.5), mesh, stages=[2]
        )
        found = mean_of_fits(adapt, start, targets, mesh, seed=0, batch_size=batch_size)
        wanted = np.mean([s + (np.array([1.0, -1.0]) - s) / 4 for s in targets[[0, 2, 3]]], axis=0)
        np.testing.assert_allclose(found["w"], wanted, rtol=1e-6)
        assert found["w"].dtype == np.float32


def test_matched_gives_what_the_learned_one_gives(mesh1):
    """A linear network that only ever sees points of the scenes: there it matches, elsewhere it keeps its start."""

    def output(params, support, key):
        return jax.random.normal(key, (8, 1)) * support @ params["w"]

    directions = np.array([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]], np.float32)
    start, learned = {"w": jnp.array([0.3, -0.2, 0.7])}, {"w": jnp.array([0.2, -0.1, 0.1])}
    found = make_match(output, squared_error, mesh1, num_steps=1500)(start, learned, directions, jax.random.key(0))
    np.testing.assert_allclose(found["w"], [0.2, -0.1, 0.7], atol=2e-3)
    np.testing.assert_array_equal(start["w"], np.array([0.3, -0.2, 0.7], np.float32))


@pytest.mark.parametrize(("mismatch", "matches"), [(cross_entropy, True), (squared_error, False)])
def test_matched_does_not_saturate_where_most_is_white(mesh1, mismatch, matches):
    """White but for a dark ball, as what an object's field learns: a sigmoid that is all white has no way back."""
    field = RadianceField(width=256, num_frequencies=6, max_log2_frequency=5.0)

    def colour(params, support, key):
        points = jax.random.uniform(key, (512, 3), minval=-1.0)
        if "radius" not in params:
            return field.apply(params, points)[1]
        dark = jnp.linalg.norm(points, axis=-1, keepdims=True) < params["radius"]
        return jnp.where(dark, 0.3, jnp.ones(3))

    ball = {"radius": jnp.array(0.4)}
    start = field.init(jax.random.key(0), jnp.zeros((1, 3)))
    found = make_match(colour, mismatch, mesh1, num_steps=200)(start, ball, jnp.zeros((1, 1)), jax.random.key(0))
    given = colour(found, None, jax.random.key(1))
    if matches:
        assert jnp.mean(squared_error(given, colour(ball, None, jax.random.key(1)))) < 0.006  # 0.017 if all is white
    else:
        assert given.min() == 1.0


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("single-view", ["data.num_views: 25 -> 1"]),
        ("joint", ["inner.num_steps: 32 -> 1"]),
    ],
)
def test_trained_baselines_differ_in_one_thing(name, changes):
    settings = TrainConfig(run=Path("runs/a"))
    changed = trained_config(settings, name)
    assert changed.run == Path("runs/a/baselines") / name and changed.validation.every == 0
    assert configfiles.differences(settings, changed) == changes
    assert changed.outer.num_steps * changed.inner.num_steps == settings.outer.num_steps * settings.inner.num_steps
    assert name in baselines.TRAINED
