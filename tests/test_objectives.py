"""The photometric loss and the pixels it looks at."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from jaxmeta.cameras import Views, orbit_pose
from jaxmeta.fields import RadianceField
from jaxmeta.metalearning import adapt
from jaxmeta.objectives import composite_on_white, field_samples, photometric_loss, view_pixels
from jaxmeta.rendering import Sampling

NUM_VIEWS, HEIGHT, WIDTH, FOCAL = 2, 3, 4, 5.0
NUM_PIXELS = NUM_VIEWS * HEIGHT * WIDTH
SAMPLING = Sampling(2.0, 6.0, 4)


def views_of(images, dtype=np.float32) -> Views:
    poses = np.stack([orbit_pose(angle, 0.3, 4.0) for angle in (0.2, 1.9)]).astype(dtype)
    return Views(jnp.asarray(images, jnp.uint8), jnp.asarray(poses), jnp.asarray(FOCAL, dtype))


def empty(params, points):
    return jnp.zeros(points.shape[:-1]), jnp.zeros(points.shape)


@pytest.fixture(scope="module")
def loss_of_empty():
    return jax.jit(lambda views, key: photometric_loss(empty, {}, views, key, num_rays=7, sampling=SAMPLING))


def test_compositing_by_hand():
    pixels = jnp.array([[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 51, 51], [0, 0, 0, 255]], jnp.uint8)
    # Opaque red; transparent; a fifth of (1, 0, 1/5) before four fifths of white; opaque black.
    by_hand = [[1, 0, 0], [1, 1, 1], [1, 0.8, 0.84], [0, 0, 0]]
    np.testing.assert_allclose(composite_on_white(pixels), by_hand, atol=1e-6)


def test_pixels_are_counted_by_view_then_row_then_column():
    images = np.full((NUM_VIEWS, HEIGHT, WIDTH, 4), 255)
    images[..., 0] = np.arange(NUM_PIXELS).reshape(NUM_VIEWS, HEIGHT, WIDTH)
    views = views_of(images)
    rays, colours = view_pixels(views, jnp.arange(NUM_PIXELS))
    np.testing.assert_allclose(colours[:, 0] * 255, np.arange(NUM_PIXELS), atol=1e-4)
    for pixel, (view, row, column) in enumerate(np.ndindex(NUM_VIEWS, HEIGHT, WIDTH)):
        origin, direction = reference.pixel_ray(
            row, column, np.asarray(views.poses[view]), FOCAL, HEIGHT, WIDTH, pixel_centre=0.5
        )
        np.testing.assert_allclose(rays.origins[pixel], origin, rtol=1e-6)
        np.testing.assert_allclose(rays.directions[pixel], direction, atol=1e-6)


def test_an_empty_field_before_a_flat_image_by_hand(loss_of_empty):
    # The render is white; the image (1, 1/5, 3/5): the mean of 0, 0.64 and 0.16.
    views = views_of(np.broadcast_to([255, 51, 153, 255], (NUM_VIEWS, HEIGHT, WIDTH, 4)))
    np.testing.assert_allclose(loss_of_empty(views, jax.random.key(0)), 0.8 / 3, rtol=1e-6)


def test_a_field_that_is_right_has_no_loss(loss_of_empty):
    clear = views_of(np.zeros((NUM_VIEWS, HEIGHT, WIDTH, 4)))
    assert loss_of_empty(clear, jax.random.key(0)) == 0


def test_every_pixel_of_every_view_is_drawn_alike():
    # In image set i pixel i alone is black and the field is empty, so the loss is the share of rays drawn at pixel i.
    num_rays = 20_000
    black = np.zeros((NUM_PIXELS, NUM_PIXELS, 4))
    black[np.arange(NUM_PIXELS), np.arange(NUM_PIXELS), 3] = 255
    loss = partial(photometric_loss, empty, {}, num_rays=num_rays, sampling=Sampling(2.0, 6.0, 2))
    shares = jax.jit(jax.vmap(lambda images: loss(views_of(images), jax.random.key(0))))(
        black.reshape(NUM_PIXELS, NUM_VIEWS, HEIGHT, WIDTH, 4)
    )
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-5)
    share = 1 / NUM_PIXELS
    deviation = np.sqrt(share * (1 - share) / num_rays)
    assert np.abs(shares - share).max() < 5 * deviation


class Case(NamedTuple):
    """A field of 26 numbers, four rays a step, in float64: what the package gives, and the reference's losses."""

    loss: Any
    gradient: Any
    adapted: Any
    losses_by_hand: list[Callable[[list[np.ndarray]], float]]
    """Of the draws that each of two keys gives, as functions of the parameters' leaves."""
    leaves: list[np.ndarray]


@pytest.fixture(scope="module")
def case() -> Case:
    with jax.enable_x64(True):
        field = RadianceField(width=2, depth=1, num_frequencies=2, max_log2_frequency=1.0)
        params = field.init(jax.random.key(3), jnp.zeros((1, 3)))
        images = np.random.default_rng(0).integers(0, 256, (NUM_VIEWS, HEIGHT, WIDTH, 4))
        views = views_of(images, np.float64)
        keys = jax.random.split(jax.random.key(7))
        loss_fn = partial(photometric_loss, field.apply, num_rays=4, sampling=SAMPLING, pixel_centre=0.25)
        loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(params, views, keys[0])
        adapted = jax.jit(partial(adapt, loss_fn, optax.sgd(0.5)))(params, views, keys).params
        draws = []
        for key in keys:
            pixel_key, jitter_key = jax.random.split(key)
            pixels = np.asarray(jax.random.randint(pixel_key, (4,), 0, NUM_PIXELS))
            draws.append((pixels, np.asarray(jax.random.uniform(jitter_key, (4, 4), jnp.float64))))
    leaves, treedef = jax.tree.flatten(params)

    def loss_by_hand(draw: tuple[np.ndarray, np.ndarray], leaves: list[np.ndarray]) -> float:
        of_name = jax.tree.unflatten(treedef, leaves)["params"]
        layers = [(of_name[name]["kernel"], of_name[name]["bias"]) for name in ("Dense_0", "Dense_1")]

        def network(point):
            return reference.network(
                layers, point, num_frequencies=2, max_log2_frequency=1.0, density_activation="shifted_softplus"
            )

        rendered, target = [], []
        for pixel, jitter in zip(*draw, strict=True):
            view, row, column = np.unravel_index(pixel, (NUM_VIEWS, HEIGHT, WIDTH))
            ray = reference.pixel_ray(row, column, np.asarray(views.poses[view]), FOCAL, HEIGHT, WIDTH, 0.25)
            rgb, _, _ = reference.render_ray(network, *ray, jitter, near=2.0, far=6.0, last_interval=1e-3)
            rendered.append(rgb)
            target.append(reference.composite_on_white(images[view, row, column]))
        return reference.mean_squared_error(np.array(rendered), np.array(target))

    leaves = [np.asarray(leaf) for leaf in leaves]
    return Case(loss, gradient, adapted, [partial(loss_by_hand, draw) for draw in draws], leaves)


def test_loss_equals_the_reference(case):
    np.testing.assert_allclose(case.loss, case.losses_by_hand[0](case.leaves), rtol=1e-11)


def test_gradient_equals_finite_differences(case):
    slopes = reference.gradient(case.losses_by_hand[0], case.leaves)
    for found, wanted in zip(jax.tree.leaves(case.gradient), slopes, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-10)


def test_adaptation_equals_descent_along_finite_differences(case):
    adapted = reference.adapt(case.losses_by_hand, case.leaves, step_size=0.5)
    for found, wanted, start in zip(jax.tree.leaves(case.adapted), adapted, case.leaves, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-9)
        assert np.abs(wanted - start).max() > 1e-4


def test_another_key_draws_other_rays(loss_of_empty, generator):
    views = views_of(generator.integers(0, 256, (NUM_VIEWS, HEIGHT, WIDTH, 4)))
    values = {float(loss_of_empty(views, jax.random.key(seed))) for seed in range(4)}
    assert len(values) == 4


def test_field_samples_by_hand():
    # Four samples from 2 to 6: each has a stretch of length 1, of which a density of ln 2 stops half the light.
    seen = []

    def even(params, points):
        seen.append(points)
        return jnp.full(points.shape[:-1], jnp.log(2.0)), jnp.full(points.shape, 0.3)

    views, key = views_of(np.zeros((NUM_VIEWS, HEIGHT, WIDTH, 4))), jax.random.key(2)
    found = field_samples(even, {}, views, key, num_rays=7, sampling=SAMPLING)
    np.testing.assert_allclose(found, np.broadcast_to([0.3, 0.3, 0.3, 0.5], (7, 4, 4)), rtol=1e-6)
    # The points are those of the loss with the same key.
    photometric_loss(even, {}, views, key, num_rays=7, sampling=SAMPLING)
    np.testing.assert_allclose(seen[0], jnp.reshape(seen[1], seen[0].shape), rtol=1e-6)
