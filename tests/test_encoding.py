"""The positional encoding."""

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta.encoding import gaussian_encoding, positional_encoding

POINTS = arrays.arrays(np.float32, (4, 3), elements=st.floats(-6, 6, width=32))


@pytest.fixture(scope="module")
def encode():
    return jax.jit(lambda points: positional_encoding(points, num_frequencies=20, max_log2_frequency=8.0))


def test_quarter_turns_by_hand():
    # Frequencies 1, 2, 4 turn pi/2 into a quarter, a half and a whole turn; 0 stays.
    features = positional_encoding(jnp.array([np.pi / 2, 0.0]), num_frequencies=3, max_log2_frequency=2.0)
    by_hand = [[1, 0, 0, 1], [0, 0, -1, 1], [0, 0, 1, 1]]  # sin of both, cos of both, for each frequency
    np.testing.assert_allclose(features.reshape(3, 4), by_hand, atol=1e-6)


@pytest.mark.parametrize(("num_frequencies", "max_log2_frequency"), [(20, 8.0), (10, 5.0), (2, 0.5)])
def test_equals_the_reference(x64, generator, num_frequencies, max_log2_frequency):
    points = generator.uniform(-6, 6, (2, 5, 3))
    features = positional_encoding(
        jnp.asarray(points), num_frequencies=num_frequencies, max_log2_frequency=max_log2_frequency
    )
    expected = [[reference.encoding(p, num_frequencies, max_log2_frequency) for p in row] for row in points]
    assert features.dtype == jnp.float64
    np.testing.assert_allclose(features, expected, atol=1e-11)


def test_float32_phases_are_not_rounded_to_less(encode, generator):
    # The largest phase, 6 * 2^8, has a spacing of 1.2e-4 in float32; in TF32 or bfloat16 it would be 1 or more.
    points = generator.uniform(-6, 6, (4, 3)).astype(np.float32)
    expected = [reference.encoding(p, 20, 8.0) for p in points]
    np.testing.assert_allclose(encode(points), expected, atol=2e-3)


@given(points=POINTS)
def test_every_sine_and_cosine_lie_on_the_unit_circle(encode, points):
    features = np.asarray(encode(points)).reshape(4, 20, 2, 3)
    np.testing.assert_allclose(np.square(features).sum(axis=2), 1, atol=1e-5)


@given(points=POINTS)
def test_mirrored_points_flip_the_sines_alone(encode, points):
    there, back = (np.asarray(encode(sign * points)).reshape(4, 20, 2, 3) for sign in (1, -1))
    np.testing.assert_array_equal(back[:, :, 0], -there[:, :, 0])
    np.testing.assert_array_equal(back[:, :, 1], there[:, :, 1])


def test_one_point_alone_is_the_same_point_among_others(encode, generator):
    points = generator.uniform(-6, 6, (4, 3)).astype(np.float32)
    alone = positional_encoding(jnp.asarray(points[2]), num_frequencies=20, max_log2_frequency=8.0)
    np.testing.assert_allclose(encode(points)[2], alone, atol=1e-3)


def test_gradient_is_the_phase_shifted_encoding():
    # d sin(f x) / dx = f cos(f x) and d cos(f x) / dx = -f sin(f x).
    encode_number = lambda x: positional_encoding(x[None], num_frequencies=4, max_log2_frequency=3.0)  # noqa: E731
    x = jnp.array(0.7)
    sines_and_cosines = encode_number(x).reshape(4, 2)
    slopes = jax.jacobian(encode_number)(x).reshape(4, 2)
    frequencies = 2.0 ** np.arange(4)
    np.testing.assert_allclose(slopes[:, 0], frequencies * sines_and_cosines[:, 1], rtol=1e-5)
    np.testing.assert_allclose(slopes[:, 1], -frequencies * sines_and_cosines[:, 0], rtol=1e-5)


def test_gaussian_encoding_by_hand():
    # Frequency (pi, 0) turns the point (1/2, 5) by a quarter, (0, pi) by five halves, (2 pi, pi) by 1 + 5/2 half turns.
    frequencies = np.pi * jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    features = gaussian_encoding(jnp.array([[0.5, 5.0]]), frequencies)
    np.testing.assert_allclose(features, [[1, 0, 0, 0, -1, 1]], atol=1e-5)
