"""Volume rendering, on fields in closed form."""

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta.cameras import Rays, orbit_pose
from jaxmeta.rendering import (
    Sampling,
    compositing_weights,
    render_ray,
    render_rays,
    render_view,
    stratified_distances,
)

LOG2 = float(np.log(2))
SAMPLES = 6
DENSITIES = arrays.arrays(np.float32, SAMPLES, elements=st.floats(0, 50, width=32))
GAPS = arrays.arrays(np.float32, SAMPLES, elements=st.floats(2**-6, 4, width=32))
RAY = Rays(jnp.array([0.0, 0.0, 4.0]), jnp.array([0.0, 0.0, -1.0]))
ORANGE = np.array([1.0, 0.5, 0.0])


def uniform_field(density, colour=ORANGE):
    return lambda points: (
        jnp.full(points.shape[:-1], density),
        jnp.broadcast_to(jnp.asarray(colour, points.dtype), points.shape),
    )


def blob(points):
    """A soft ball off the axes whose colour changes along x, y and z."""
    offset = points - jnp.array([0.5, -0.3, 0.4])
    return 5.0 * jnp.exp(-4.0 * jnp.sum(offset**2, axis=-1)), jax.nn.sigmoid(2.0 * points)


def blob_by_hand(point):
    offset = point - np.array([0.5, -0.3, 0.4])
    return 5.0 * np.exp(-4.0 * np.sum(offset**2)), 1 / (1 + np.exp(-2.0 * point))


@pytest.fixture(scope="module")
def weights_of():
    return jax.jit(compositing_weights, static_argnames="last_interval")


@pytest.fixture(scope="module")
def view_of_blob():
    def view(pose, focal, *, pixel_centre=0.5, rays_per_chunk=4096):
        return render_view(
            blob,
            pose,
            focal,
            Sampling(2.0, 6.0, 12),
            height=5,
            width=7,
            pixel_centre=pixel_centre,
            rays_per_chunk=rays_per_chunk,
        )

    return jax.jit(view, static_argnames=("pixel_centre", "rays_per_chunk"))


def test_each_unit_of_log_2_absorbs_half_of_what_arrives():
    # exp(-log 2 * 1) = 1/2: a half, then half of the half, then half of the quarter that is left.
    weights = compositing_weights(jnp.full(3, LOG2), jnp.array([2.0, 3.0, 4.0]), last_interval=1.0)
    np.testing.assert_allclose(weights, [0.5, 0.25, 0.125], rtol=1e-6)


def test_last_interval_by_hand():
    # Nothing before the last sample: it alone absorbs, 1 - exp(-3 log 2) = 7/8 over an interval of 3.
    density, distances = jnp.array([0.0, 0.0, LOG2]), jnp.array([2.0, 3.0, 4.0])
    np.testing.assert_allclose(compositing_weights(density, distances, last_interval=3.0), [0, 0, 0.875], rtol=1e-6)
    np.testing.assert_allclose(compositing_weights(density, distances, last_interval=1e10), [0, 0, 1], rtol=1e-6)
    assert compositing_weights(density, distances)[2] == pytest.approx(LOG2 * 1e-3, rel=1e-3)  # the default is small


def test_haze_before_a_wall_by_hand():
    # Haze of depth 1/2, then a wall of depth 1e9, which would swallow the 1/2 in a sum that is taken back.
    weights = compositing_weights(jnp.array([0.5, 1e9, 1.0]), jnp.array([2.0, 3.0, 4.0]))
    np.testing.assert_allclose(weights, [1 - np.exp(-0.5), np.exp(-0.5), 0], rtol=1e-6)


def test_thin_haze_keeps_its_digits():
    # 1 - exp(-x) = x - x^2 / 2 + ..; as 1 - exp(-1e-8) in float32 it would be 0.
    weights = compositing_weights(jnp.full(2, 1e-8), jnp.array([0.0, 1.0]), last_interval=1.0)
    np.testing.assert_allclose(weights, [1e-8, 1e-8], rtol=1e-6)


@pytest.mark.parametrize("last_interval", [1e-3, 1.0, 1e10])
def test_weights_equal_the_reference(x64, generator, last_interval):
    for _ in range(5):
        density = generator.exponential(size=9)
        distances = np.cumsum(generator.uniform(0.01, 0.7, 9))
        weights = compositing_weights(jnp.asarray(density), jnp.asarray(distances), last_interval=last_interval)
        expected = reference.compositing_weights(density, distances, last_interval)
        np.testing.assert_allclose(weights, expected, rtol=1e-11, atol=1e-15)


@given(density=DENSITIES, gaps=GAPS)
def test_weights_are_shares_of_one(weights_of, density, gaps):
    weights = np.asarray(weights_of(density, np.cumsum(gaps), last_interval=0.5), np.float64)
    assert (weights >= 0).all()
    assert weights.sum() <= 1 + 1e-6
    # What is not absorbed went through all of it.
    distances = np.cumsum(gaps).astype(np.float64)
    depth = float(np.sum(density * np.append(np.diff(distances), 0.5)))
    np.testing.assert_allclose(1 - weights.sum(), np.exp(-depth), atol=1e-5)


@given(density=DENSITIES, gaps=GAPS, unit=st.sampled_from([0.125, 16.0]))
def test_units_of_distance_do_not_matter(weights_of, density, gaps, unit):
    # A power of two, so that nothing rounds.
    distances, unit32 = np.cumsum(gaps), np.float32(unit)
    np.testing.assert_array_equal(
        weights_of(density / unit32, distances * unit32, last_interval=0.5 * unit),
        weights_of(density, distances, last_interval=0.5),
    )


@given(density=DENSITIES, gaps=GAPS, share=st.floats(0.125, 0.875))
def test_splitting_a_constant_interval_changes_nothing(weights_of, density, gaps, share):
    distances = np.cumsum(gaps, dtype=np.float32)
    between = distances[2] + np.float32(share) * (distances[3] - distances[2])
    whole = weights_of(density, distances, last_interval=0.5)
    split = weights_of(np.insert(density, 3, density[2]), np.insert(distances, 3, between), last_interval=0.5)
    joined = np.delete(np.asarray(split), 3)
    joined[2] += split[3]
    np.testing.assert_allclose(joined, whole, atol=1e-5)


@given(density=DENSITIES, gaps=GAPS, at=st.integers(0, SAMPLES - 2))
def test_nothing_shows_behind_a_wall(weights_of, density, gaps, at):
    density[at] = 1e5
    weights = np.asarray(weights_of(density, np.cumsum(gaps), last_interval=0.5))
    np.testing.assert_array_equal(weights[at + 1 :], 0)


@pytest.mark.parametrize("last_interval", [1e-3, 1e10])
def test_extreme_densities_give_finite_colours_and_gradients(last_interval):
    sampling = Sampling(2.0, 6.0, 8, last_interval)

    def outcome(log_density, colour, uniform):
        def field(points):
            return jnp.exp(log_density), jnp.broadcast_to(colour, points.shape)

        rendering = render_ray(field, RAY, uniform, sampling)
        return jnp.sum(rendering.rgb) + rendering.opacity + rendering.distance

    slopes = jax.jit(jax.value_and_grad(outcome, argnums=(0, 1, 2)))
    # The same density everywhere, then the extreme at one sample among ordinary ones.
    extremes = (-100.0, -20.0, 0.0, 5.0, 20.0, 80.0)
    for densities in [np.full(8, x) for x in extremes] + [np.where(np.arange(8) == 3, x, 0) for x in extremes]:
        inputs = densities.astype(np.float32), jnp.array([0.2, 0.5, 0.9]), jnp.full(8, 0.5)
        value, gradients = slopes(*inputs)
        assert np.isfinite(value)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_strata_by_hand():
    # Distances 2, 4, 6 meet halfway: [2, 3], [3, 5], [5, 6].
    sampling = Sampling(2.0, 6.0, 3)
    np.testing.assert_allclose(stratified_distances(jnp.array([0.5, 0.5, 0.5]), sampling), [2.5, 4, 5.5])
    np.testing.assert_allclose(stratified_distances(jnp.array([0.0, 0.25, 1.0]), sampling), [2, 3.5, 6])


@given(uniform=arrays.arrays(np.float32, (2, 9), elements=st.floats(0, 1, width=32, exclude_max=True)))
def test_distances_increase_within_the_range(uniform):
    distances = np.asarray(stratified_distances(jnp.asarray(uniform), Sampling(0.5, 4.5, 9)))
    assert (np.diff(distances) >= 0).all()
    assert (distances >= 0.5).all() and (distances <= 4.5).all()
    expected = [reference.distances(row, 0.5, 4.5) for row in uniform]
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


def test_a_ray_through_nothing_is_white():
    rendering = render_ray(uniform_field(0.0), RAY, jnp.full(8, 0.5), Sampling(2.0, 6.0, 8))
    np.testing.assert_array_equal(rendering.rgb, [1, 1, 1])
    assert rendering.opacity == 0
    assert rendering.distance == 6


def test_uniform_haze_in_closed_form():
    # Samples lie at 2.25, 3, 4, 5, 5.75 and the last counts for 1/2, so the haze is 4 long: log(2)/4 per unit lets
    # half of the white through.
    sampling = Sampling(2.0, 6.0, 5, last_interval=0.5)
    rendering = render_ray(uniform_field(LOG2 / 4), RAY, jnp.full(5, 0.5), sampling)
    np.testing.assert_allclose(rendering.opacity, 0.5, rtol=1e-6)
    np.testing.assert_allclose(rendering.rgb, ORANGE / 2 + 0.5, rtol=1e-6)


def test_a_wall_hides_what_is_behind_it():
    # The ray starts at z = 4 and looks down; green below z = 0.5, first sampled 3.75 from the start.
    def wall(points):
        inside = points[..., 2] < 0.5
        green, red = jnp.array([0.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0])
        return jnp.where(inside, 1e4, 0.0), jnp.where(inside[:, None], green, red)

    rendering = render_ray(wall, RAY, jnp.full(9, 0.5), Sampling(1.75, 5.75, 9))
    np.testing.assert_allclose(rendering.rgb, [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(rendering.opacity, 1, rtol=1e-6)
    np.testing.assert_allclose(rendering.distance, 3.75, rtol=1e-6)


@pytest.mark.parametrize("last_interval", [1e-3, 1e10])
def test_rays_equal_the_reference(x64, generator, last_interval):
    directions = generator.normal(size=(5, 3)) * 0.2 - np.array([0, 0, 1])
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = np.array([0.2, 0.1, 4.0]) + generator.normal(size=(5, 3)) * 0.2
    uniform = generator.uniform(size=(5, 12))
    rays = Rays(jnp.asarray(origins), jnp.asarray(directions))
    rendering = render_rays(blob, rays, jnp.asarray(uniform), Sampling(2.0, 6.0, 12, last_interval))
    for i in range(5):
        rgb, opacity, distance = reference.render_ray(
            blob_by_hand, origins[i], directions[i], uniform[i], near=2.0, far=6.0, last_interval=last_interval
        )
        np.testing.assert_allclose(rendering.rgb[i], rgb, rtol=1e-11)
        np.testing.assert_allclose(rendering.opacity[i], opacity, rtol=1e-11)
        np.testing.assert_allclose(rendering.distance[i], distance, rtol=1e-11)


def test_one_ray_alone_is_the_same_ray_among_others(generator):
    rays = Rays(
        jnp.broadcast_to(RAY.origins, (3, 3)),
        jnp.asarray(generator.normal(size=(3, 3)) * 0.1 + np.array(RAY.directions), jnp.float32),
    )
    uniform = jnp.asarray(generator.uniform(size=(3, 8)), jnp.float32)
    sampling = Sampling(2.0, 6.0, 8)
    together = jax.jit(lambda rays, uniform: render_rays(blob, rays, uniform, sampling))(rays, uniform)
    alone = render_ray(blob, Rays(rays.origins[2], rays.directions[2]), uniform[2], sampling)
    for batch, single in zip(together, alone, strict=True):
        np.testing.assert_allclose(batch[2], single, rtol=1e-5)


@pytest.mark.parametrize("pixel_centre", [0.5, 0.0])
def test_view_equals_the_reference(view_of_blob, pixel_centre):
    pose = orbit_pose(0.4, 0.3, 4.0)
    view = view_of_blob(jnp.asarray(pose, jnp.float32), jnp.array(7.5), pixel_centre=pixel_centre)
    assert view.rgb.shape == (5, 7, 3) and view.opacity.shape == view.distance.shape == (5, 7)
    for row in range(5):
        for column in range(7):
            origin, direction = reference.pixel_ray(row, column, pose, 7.5, 5, 7, pixel_centre)
            rgb, opacity, distance = reference.render_ray(
                blob_by_hand, origin, direction, [0.5] * 12, near=2.0, far=6.0, last_interval=1e-3
            )
            np.testing.assert_allclose(view.rgb[row, column], rgb, atol=1e-5)
            np.testing.assert_allclose(view.opacity[row, column], opacity, atol=1e-5)
            np.testing.assert_allclose(view.distance[row, column], distance, atol=1e-4)


def test_chunks_of_a_view_do_not_show(view_of_blob):
    pose, focal = jnp.asarray(orbit_pose(0.4, 0.3, 4.0), jnp.float32), jnp.array(7.5)
    whole, chunked = view_of_blob(pose, focal), view_of_blob(pose, focal, rays_per_chunk=8)  # 35 = 4 * 8 + 3
    for a, b in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
