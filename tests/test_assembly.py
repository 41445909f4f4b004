"""The functions that a config describes are wired as it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.cameras import Views
from jaxmeta.fields import RadianceField
from jaxmeta.kinds.views import FieldConfig, ViewsConfig, scene_signal
from jaxmeta.objectives import composite_on_white, photometric_loss
from jaxmeta.rendering import Sampling, render_view

SETTINGS = ViewsConfig(
    field=FieldConfig(width=6, depth=1, num_frequencies=3, max_log2_frequency=1.5, density_activation="relu"),
    sampling=Sampling(near=2.5, far=5.5, num_samples=7, last_interval=0.5),
    pixel_centre=0.25,
)
FIELD = RadianceField(width=6, depth=1, num_frequencies=3, max_log2_frequency=1.5, density_activation="relu")


@pytest.fixture(scope="module")
def functions():
    return scene_signal(SETTINGS, height=5, width=12, num_rays=9)


@pytest.fixture(scope="module")
def params(functions):
    # Four times the start: opaque enough for differences to show.
    return jax.tree.map(lambda leaf: 4 * leaf, functions.init(jax.random.key(2)))


def test_init(functions):
    wanted = FIELD.init(jax.random.key(2), jnp.zeros((1, 3)))
    jax.tree.map(np.testing.assert_array_equal, functions.init(jax.random.key(2)), wanted)


def test_loss(functions, params, balls):
    views = Views(jnp.asarray(balls.images[0]), jnp.asarray(balls.poses[0]), jnp.asarray(balls.focal[0]))
    key = jax.random.key(5)

    @jax.jit
    def found_and_wanted(params, views, key):
        wanted = photometric_loss(
            FIELD.apply, params, views, key, num_rays=9, sampling=SETTINGS.sampling, pixel_centre=0.25
        )
        return functions.loss(params, views, key), wanted

    found, wanted = found_and_wanted(params, views, key)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found > 0.01


def test_render_pose(functions, params, balls):
    pose, focal = jnp.asarray(balls.poses[0, 0]), jnp.asarray(balls.focal[0])
    found = functions.render_pose(params, pose, focal)
    wanted = render_view(
        lambda points: FIELD.apply(params, points),
        pose,
        focal,
        SETTINGS.sampling,
        height=5,
        width=12,
        pixel_centre=0.25,
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)
    assert found.rgb.shape == (5, 12, 3)
    assert found.opacity.max() > 0.01


def test_a_query_item_is_a_view_with_its_focal_length(functions, params, balls):
    scenes, numbers = np.array([4, 0, 4]), np.array([[3, 1], [0, 2], [1, 1]])
    support, query = functions.support(balls, scenes, numbers), functions.query(balls, scenes, numbers)
    for task, (scene, chosen) in enumerate(zip(scenes, numbers, strict=True)):
        np.testing.assert_array_equal(support.images[task], balls.images[scene, chosen])
        np.testing.assert_array_equal(support.poses[task], balls.poses[scene, chosen])
        assert support.focal[task] == balls.focal[scene]
    np.testing.assert_array_equal(query.image, support.images)
    np.testing.assert_array_equal(query.pose, support.poses)
    np.testing.assert_array_equal(query.focal, np.stack([support.focal] * 2, axis=1))
    item = jax.tree.map(lambda leaf: jnp.asarray(leaf[0, 1]), query)
    rendering = functions.render_pose(params, item.pose, item.focal)
    np.testing.assert_allclose(functions.predict(params, item, rays_per_chunk=20), rendering.rgb, atol=1e-6)
    np.testing.assert_array_equal(functions.target(item), composite_on_white(jnp.asarray(balls.images[4, 1])))


def test_compute_dtype_reaches_the_field(functions, params, balls):
    halved = dataclasses.replace(SETTINGS, field=dataclasses.replace(SETTINGS.field, compute_dtype="bfloat16"))
    pose, focal = jnp.asarray(balls.poses[0, 0]), jnp.asarray(balls.focal[0])
    half = scene_signal(halved, height=5, width=12, num_rays=9).render_pose(params, pose, focal)
    full = functions.render_pose(params, pose, focal)
    assert 1e-5 < np.abs(half.rgb - full.rgb).max() < 0.05
