"""Projections of slices, and the phantoms that are projected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.data import shepp_logan_phantom
from skimage.transform import radon, resize

from jaxmeta.data.phantoms import SHEPP_LOGAN, draw_phantoms, draw_slice, random_ellipses
from jaxmeta.kinds import slices_by_views
from jaxmeta.kinds.ct import CTConfig, sinogram
from jaxmeta.objectives import projection_loss
from jaxmeta.samples import grid_points
from jaxmeta.tomography import Scan, even_angles, project

DEGREES = np.array([0.0, 13.0, 45.0, 90.0, 161.0])


@pytest.fixture(scope="module")
def projected():
    return jax.jit(project)


def in_circle(density: np.ndarray) -> np.ndarray:
    """What scikit-image asks for: nothing outside the circle that turns within the square."""
    size = len(density)
    return np.where(np.hypot(*(np.indices(density.shape) - size // 2)) < size // 2 - 1, density, 0)


def test_right_angles_by_hand(projected):
    density = jnp.zeros((4, 4)).at[1, 3].set(1.0).at[2, 3].set(0.5)
    # Unturned, rays run down the columns: all is in column 3, a mean of 1.5 / 4. A quarter turn about pixel (2, 2)
    # takes row 1, one up, to column 3, one to the right, and row 2 to column 2.
    upright, turned = projected(density, jnp.array([0.0, np.pi / 2]))
    np.testing.assert_allclose(upright, [0, 0, 0, 0.375], atol=1e-6)
    np.testing.assert_allclose(np.sort(turned), [0, 0, 0.125, 0.25], atol=1e-6)


@pytest.mark.parametrize("size", [24, 25])
def test_equals_scikit_image(projected, generator, size):
    density = in_circle(generator.uniform(0, 1, (size, size)))
    wanted = radon(density, DEGREES, circle=True).T / size
    found = projected(jnp.asarray(density, jnp.float32), jnp.radians(jnp.asarray(DEGREES, jnp.float32)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_projections_are_linear_and_so_is_their_gradient(projected, generator):
    one, other = jnp.asarray(generator.uniform(0, 1, (2, 9, 9)), jnp.float32)
    angles = jnp.asarray(even_angles(5))
    both = projected(2 * one - 3 * other, angles)
    np.testing.assert_allclose(both, 2 * projected(one, angles) - 3 * projected(other, angles), atol=1e-5)
    # <P x, y> = <x, P' y>: the gradient of the first with respect to x is P' y, whatever x.
    weights = jnp.asarray(generator.uniform(0, 1, (5, 9)), jnp.float32)
    back = jax.jit(jax.grad(lambda x: jnp.sum(project(x, angles) * weights)))(other)
    np.testing.assert_allclose(jnp.sum(projected(one, angles) * weights), jnp.sum(one * back), rtol=1e-5)


def test_angles_divide_the_half_turn():
    np.testing.assert_allclose(even_angles(4), np.radians([0, 45, 90, 135]), rtol=1e-6)
    np.testing.assert_allclose(even_angles(2), even_angles(8)[::4])  # fewer views are among more


def test_projection_loss_by_hand():
    # A network that is 1 everywhere: unturned, every ray's mean is 1. Off by 0.5 in all bins, and by 0.1 in all.
    flat = lambda params, points: jnp.ones((*points.shape[:-1], 2)) * jnp.array([params, 9.0])  # noqa: E731
    scan = Scan(jnp.array([[0.5] * 4, [1.1] * 4]), jnp.zeros(2))
    loss = projection_loss(flat, 1.0, scan, jax.random.key(0), num_directions=None)
    np.testing.assert_allclose(loss, (0.25 + 0.01) / 2, rtol=1e-5)
    # One direction at a time: each of the two comes up.
    some = {round(float(projection_loss(flat, 1.0, scan, jax.random.key(i), num_directions=1)), 4) for i in range(9)}
    assert some == {0.25, 0.01}


def test_the_right_network_has_no_loss():
    density = jnp.asarray(draw_slice(jnp.asarray(SHEPP_LOGAN), size=16))
    lookup = lambda params, points: params[tuple(jnp.round(16 * points).astype(int).T)].T[..., None]  # noqa: E731
    angles = jnp.asarray(even_angles(3))
    scan = Scan(project(density, angles), angles)
    loss = lambda params: projection_loss(lookup, params, scan, jax.random.key(0), num_directions=None)  # noqa: E731
    assert loss(density) < 1e-12 < 1e-5 < loss(density.T)


def test_grid_points_by_hand():
    np.testing.assert_allclose(grid_points(2, 4)[1], [[0.5, 0], [0.5, 0.25], [0.5, 0.5], [0.5, 0.75]])


def test_the_standard_phantom_is_that_of_scikit_image():
    wanted = resize(shepp_logan_phantom(), (64, 64), anti_aliasing=True)
    found = np.asarray(draw_slice(jnp.asarray(SHEPP_LOGAN), size=64))
    assert np.abs(found - wanted).mean() < 0.02  # edges are drawn in other ways
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.97


def test_random_phantoms_differ_and_stay_in_the_circle():
    keys = jax.random.split(jax.random.key(0), 24)
    slices = np.asarray(draw_phantoms(keys, size=32))
    assert slices.min() >= 0 and slices.max() <= 1
    np.testing.assert_array_equal(slices[::-1], draw_phantoms(keys[::-1], size=32))
    corners = np.hypot(*(np.indices((32, 32)) - 15.5)) > 17  # an edge is a pixel wide
    assert not slices[:, corners].any()
    apart = np.abs(slices[:, None] - slices[None]).mean(axis=(2, 3)) + np.eye(24)
    assert apart.min() > 0.01
    ellipses = np.asarray(jax.vmap(random_ellipses)(keys))
    assert (ellipses[:, :, 1:3] > 0).all()


def test_a_sinogram_has_a_band_for_each_projection():
    few = np.array([[0, 2, 4, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 3]], np.float32)
    image = sinogram(few)[..., 0]
    np.testing.assert_allclose(image[[0, 3]], np.stack([few[0], few[0]]) / 4)
    np.testing.assert_array_equal(image[4], np.ones(8))  # parts the bands
    np.testing.assert_allclose(image[[5, 7]], np.stack([few[1], few[1]]) / 4)
    many = np.repeat(np.arange(16, dtype=np.float32)[:, None], 8, axis=1)
    np.testing.assert_allclose(sinogram(many)[:, 0, 0], np.arange(0, 16, 2) / 15)
    assert np.isfinite(sinogram(np.zeros((1, 8), np.float32))).all()  # of an empty slice
    assert CTConfig().notes((0, 32, 64, 96), 0) == ("4 projections", "")


def test_the_caption_tells_which_numbers_of_projections_have_fewer_steps():
    told = slices_by_views.explanation([1, 2, 4], 1000)
    assert "to 1 projection for 50 steps and 2 projections for 100 steps only" in told
    assert "after 1,000 steps for every number" in told
    assert "1 projection for 50 steps only" in slices_by_views.explanation([1, 2], 100)
    assert slices_by_views.explanation([1, 2, 4], 50) == slices_by_views.explanation([4, 8], 1000) == ""
