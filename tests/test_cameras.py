"""From a pixel to its ray."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta.cameras import orbit_pose, pixel_rays

ANGLES = st.floats(-3.0, 3.0)
HEIGHT, WIDTH = 5, 8


@pytest.fixture(scope="module")
def rays_of():
    return jax.jit(lambda row, column, pose, focal: pixel_rays(row, column, pose, focal, height=HEIGHT, width=WIDTH))


def test_pixels_of_an_unmoved_camera_by_hand():
    # A 2x2 image at focal 1: pixel centres lie half a pixel off the axis. x is right, y up, the view along -z.
    row, column = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
    pose = jnp.broadcast_to(jnp.eye(4), (4, 4, 4))
    rays = pixel_rays(row, column, pose, jnp.array(1.0), height=2, width=2)
    by_hand = np.array([[-0.5, 0.5, -1], [0.5, 0.5, -1], [-0.5, -0.5, -1], [0.5, -0.5, -1]]) / np.sqrt(1.5)
    np.testing.assert_allclose(rays.directions, by_hand, rtol=1e-6)
    np.testing.assert_array_equal(rays.origins, np.zeros((4, 3)))


def test_pixel_corner_by_hand():
    # The upper left corner of pixel (1, 1) of a 2x2 image is the image's centre: straight ahead.
    rays = pixel_rays(jnp.array(1), jnp.array(1), jnp.eye(4), jnp.array(3.0), height=2, width=2, pixel_centre=0.0)
    np.testing.assert_array_equal(rays.directions, [0, 0, -1])


def test_image_axes_of_an_oblong_image():
    # The principal point is half the width from the left and half the height from the top.
    rays = pixel_rays(
        jnp.array(2), jnp.array(4), jnp.eye(4), jnp.array(1.0), height=HEIGHT - 1, width=WIDTH, pixel_centre=0.0
    )
    np.testing.assert_array_equal(rays.directions, [0, 0, -1])


@given(azimuth=ANGLES, elevation=st.floats(-1.4, 1.4), radius=st.floats(0.5, 8), focal=st.floats(2.0, 50.0))
def test_a_pixels_ray_projects_back_onto_the_pixel(rays_of, azimuth, elevation, radius, focal):
    pose = orbit_pose(azimuth, elevation, radius)
    row, column = (axis.ravel() for axis in np.indices((HEIGHT, WIDTH)))
    poses = np.broadcast_to(pose, (row.size, 4, 4)).astype(np.float32)
    origins, directions = (np.asarray(part) for part in rays_of(row, column, poses, np.float32(focal)))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1, rtol=1e-5)
    # A point along the ray, brought into camera axes by the inverse pose, then divided by its depth.
    x, y, z = pose[:3, :3].T @ (origins + 2.5 * directions - pose[:3, 3]).T
    assert (z < 0).all()
    np.testing.assert_allclose(WIDTH / 2 + focal * x / -z - 0.5, column, atol=1e-3)
    np.testing.assert_allclose(HEIGHT / 2 - focal * y / -z - 0.5, row, atol=1e-3)


@pytest.mark.parametrize("pixel_centre", [0.5, 0.0])
def test_equals_the_reference(x64, pixel_centre):
    row, column = jnp.array([0, 4, 2]), jnp.array([7, 0, 3])
    poses = jnp.stack([jnp.asarray(orbit_pose(angle, angle / 3, 4.0)) for angle in (0.3, -1.0, 2.5)])
    rays = pixel_rays(row, column, poses, jnp.array(6.5), height=HEIGHT, width=WIDTH, pixel_centre=pixel_centre)
    for i in range(3):
        origin, direction = reference.pixel_ray(
            int(row[i]), int(column[i]), np.asarray(poses[i]), 6.5, HEIGHT, WIDTH, pixel_centre
        )
        np.testing.assert_allclose(rays.origins[i], origin, rtol=1e-14)
        np.testing.assert_allclose(rays.directions[i], direction, rtol=1e-12)


def test_one_pixel_alone_is_the_same_pixel_among_others(rays_of):
    poses = jnp.stack([jnp.asarray(orbit_pose(angle, 0.2, 4.0), jnp.float32) for angle in (0.3, -1.0)])
    together = rays_of(jnp.array([1, 3]), jnp.array([0, 6]), poses, jnp.array(7.0))
    alone = pixel_rays(jnp.array(3), jnp.array(6), poses[1], jnp.array(7.0), height=HEIGHT, width=WIDTH)
    for batch, single in zip(together, alone, strict=True):
        np.testing.assert_allclose(batch[1], single, rtol=1e-6)


def test_orbit_by_hand():
    # On the x axis, two away: outwards is x, the camera's right is y, up is z.
    by_hand = np.array([[0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(orbit_pose(0.0, 0.0, 2.0), by_hand, atol=1e-15)


@given(azimuth=ANGLES, elevation=st.floats(-1.5, 1.5), radius=st.floats(0.1, 10))
def test_an_orbiting_camera_sees_the_origin_upright(azimuth, elevation, radius):
    pose = orbit_pose(azimuth, elevation, radius)
    rotation, position = pose[:3, :3], pose[:3, 3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    np.testing.assert_allclose(position - radius * rotation[:, 2], 0, atol=1e-12)  # -z leads to the origin
    np.testing.assert_allclose(rotation[2, 0], 0)  # the horizon is level
    assert rotation[2, 1] > 0  # up is up
    np.testing.assert_allclose(position[2], radius * np.sin(elevation))
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])
