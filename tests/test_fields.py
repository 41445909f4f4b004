"""The radiance field's network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jaxmeta.fields import FourierMLP, RadianceField, Siren

SMALL = {"width": 8, "depth": 2, "num_frequencies": 3, "max_log2_frequency": 2.0}
POINTS = jnp.array([[0.1, -0.7, 1.3], [0.4, 0.2, -2.0]])


def layers(params) -> reference.Layers:
    of_name = params["params"]
    return [
        (np.asarray(of_name[f"Dense_{i}"]["kernel"]), np.asarray(of_name[f"Dense_{i}"]["bias"]))
        for i in range(len(of_name))
    ]


@pytest.fixture(scope="module")
def params():
    return jax.jit(RadianceField(**SMALL).init)(jax.random.key(0), POINTS)


@pytest.mark.parametrize(
    ("activation", "empty"),
    # relu(0) = 0; softplus(0 - 1) = log(1 + 1 / e).
    [("relu", 0.0), ("shifted_softplus", np.log1p(np.exp(-1.0)))],
)
def test_all_zero_parameters_by_hand(params, activation, empty):
    zeros = jax.tree.map(jnp.zeros_like, params)
    density, rgb = RadianceField(**SMALL, density_activation=activation).apply(zeros, POINTS)
    np.testing.assert_allclose(density, [empty] * 2, rtol=1e-6)
    np.testing.assert_allclose(rgb, 0.5, rtol=1e-6)  # sigmoid(0)


def test_last_layer_by_hand(params):
    # With all kernels zero the last bias alone speaks: three colours, then density.
    zeros = jax.tree.map(jnp.zeros_like, params)
    zeros["params"]["Dense_2"]["bias"] = jnp.array([0.0, np.log(3.0), -np.log(3.0), 2.0])
    density, rgb = RadianceField(**SMALL, density_activation="relu").apply(zeros, POINTS)
    np.testing.assert_allclose(density, 2.0)
    np.testing.assert_allclose(rgb, [[0.5, 0.75, 0.25]] * 2, rtol=1e-6)  # sigmoid(log 3) = 3 / (3 + 1)


@pytest.mark.parametrize("activation", ["relu", "shifted_softplus"])
def test_equals_the_reference(x64, generator, activation):
    points = generator.uniform(-2, 2, (6, 3))
    field = RadianceField(**SMALL, density_activation=activation)
    # Three times the start, so that both sides of every relu are met.
    params = jax.tree.map(lambda leaf: 3 * leaf, jax.jit(field.init)(jax.random.key(1), jnp.asarray(points)))
    density, rgb = jax.jit(field.apply)(params, jnp.asarray(points))
    expected = [
        reference.network(
            layers(params), point, num_frequencies=3, max_log2_frequency=2.0, density_activation=activation
        )
        for point in points
    ]
    assert density.dtype == rgb.dtype == jnp.float64
    np.testing.assert_allclose(density, [d for d, _ in expected], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(rgb, [c for _, c in expected], rtol=1e-11)


def test_start_fills_the_bounds_of_the_original():
    # A uniform number within +-b has variance b^2 / 3; 256 x 120 and 256 x 256 of them come within a few percent.
    params = jax.jit(RadianceField(width=256, depth=2, num_frequencies=20).init)(jax.random.key(0), POINTS)
    for (kernel, bias), inputs in zip(layers(params), [120, 256, 256], strict=True):
        assert kernel.shape[0] == inputs
        bound = inputs**-0.5
        assert np.abs(kernel).max() <= bound and np.abs(bias).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.1)
    (_, first_bias), (_, second_bias), _ = layers(params)
    np.testing.assert_allclose(first_bias.std(), 120**-0.5 / np.sqrt(3), rtol=0.2)
    assert not np.allclose(first_bias * 120**0.5, second_bias * 256**0.5)  # each layer has its own draw


def test_points_in_any_arrangement(params):
    field = RadianceField(**SMALL)
    density, rgb = field.apply(params, POINTS[:, None])
    flat_density, flat_rgb = field.apply(params, POINTS)
    assert density.shape == (2, 1) and rgb.shape == (2, 1, 3)
    np.testing.assert_allclose(density[:, 0], flat_density, rtol=1e-6)
    np.testing.assert_allclose(rgb[:, 0], flat_rgb, rtol=1e-6)
    alone_density, alone_rgb = field.apply(params, POINTS[1])
    np.testing.assert_allclose(alone_density, flat_density[1], rtol=1e-6)
    np.testing.assert_allclose(alone_rgb, flat_rgb[1], rtol=1e-6)


@pytest.mark.parametrize(("activation", "alive"), [("relu", False), ("shifted_softplus", True)])
def test_an_empty_scene_can_still_learn_with_softplus(params, activation, alive):
    transparent = jax.tree.map(jnp.zeros_like, params)
    transparent["params"]["Dense_2"]["bias"] = jnp.array([0.0, 0.0, 0.0, -20.0])
    field = RadianceField(**SMALL, density_activation=activation)
    gradient = jax.jit(jax.grad(lambda params: field.apply(params, POINTS)[0].sum()))(transparent)
    slope = gradient["params"]["Dense_2"]["bias"][3]
    assert (slope > 0) == alive


def test_bfloat16_is_in_the_matmuls_alone(params):
    # bfloat16 keeps 8 bits, so each layer rounds by 0.4 %. Were the phases rounded too, those of frequency 2^8 would
    # be off by whole radians here, and the features of the two fields would have nothing in common.
    size = SMALL | {"num_frequencies": 9, "max_log2_frequency": 8.0, "width": 64}
    field, half = RadianceField(**size), RadianceField(**size, compute_dtype=jnp.bfloat16)
    points = jnp.linspace(1.5, 1.6, 60).reshape(20, 3)
    start = jax.jit(half.init)(jax.random.key(0), points)
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}
    (density, rgb), (density_half, rgb_half) = jax.jit(lambda *args: (field.apply(*args), half.apply(*args)))(
        start, points
    )
    assert density_half.dtype == rgb_half.dtype == jnp.float32
    np.testing.assert_allclose(density_half, density, atol=4e-3)
    np.testing.assert_allclose(rgb_half, rgb, atol=4e-3)
    assert np.abs(rgb_half - rgb).max() > 1e-5  # it does compute in bfloat16


def test_gradients_of_many_points_are_summed_in_float32():
    # A sum of thousands of numbers in bfloat16 stops growing at 256 times what is added.
    size = {"width": 16, "depth": 2, "num_frequencies": 4}
    points = jax.random.uniform(jax.random.key(1), (5001, 3))
    params = jax.jit(RadianceField(**size).init)(jax.random.key(0), points[:1])

    def gradient(dtype):
        field = RadianceField(**size, compute_dtype=dtype)
        return jax.jit(jax.grad(lambda params: jnp.sum(field.apply(params, points)[1])))(params)

    for (path, exact), found in zip(
        jax.tree.leaves_with_path(gradient(None)), jax.tree.leaves(gradient(jnp.bfloat16)), strict=True
    ):
        assert np.linalg.norm(found - exact) <= 1e-2 * np.linalg.norm(exact), path


def test_siren_by_hand():
    # sin(2 (0.25 pi x + 0)) at x = 1 is 1; sin(2 (0.25 pi 1 + 0.25 pi)) is sin(pi) = 0; 3 * 0 + 0.1 + 0.5 = 0.6.
    params = {
        "params": {
            "Dense_0": {"kernel": jnp.array([[np.pi / 4]]), "bias": jnp.zeros(1)},
            "Dense_1": {"kernel": jnp.array([[np.pi / 4]]), "bias": jnp.array([np.pi / 4])},
            "Dense_2": {"kernel": jnp.array([[3.0]]), "bias": jnp.array([0.1])},
        }
    }
    found = Siren(features=1, width=1, depth=2, w0=2.0).apply(params, jnp.array([[1.0], [0.0]]))
    # At x = 0 the first sine is 0, the second sin(pi / 2) = 1.
    np.testing.assert_allclose(found, [[0.6], [3.6]], atol=1e-5)


def test_siren_starts_within_the_bounds_of_its_authors():
    params = jax.jit(Siren(width=64, depth=2, w0=50.0).init)(jax.random.key(0), jnp.zeros((1, 2)))
    for (kernel, bias), bound in zip(layers(params), [1 / 2, (6 / 64) ** 0.5 / 50, (6 / 64) ** 0.5 / 50], strict=True):
        assert np.abs(kernel).max() <= bound and not bias.any()
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.1)


def test_a_sine_network_keeps_its_scale_through_the_layers():
    # What the bounds are for: with them, the values before the last layer spread as sines of a wide phase do.
    field = Siren(features=64, width=64, depth=4)
    points = jnp.stack(jnp.meshgrid(jnp.linspace(0, 1, 20), jnp.linspace(0, 1, 20)), axis=-1)
    values = jax.jit(lambda key: field.apply(field.init(key, points), points))(jax.random.key(0))
    # A kernel of deviation sqrt(2 / 64) / 200 meets 64 sines of mean square 1/2: a deviation of 1 / 200.
    np.testing.assert_allclose(values.std(), 1 / 200, rtol=0.15)
    np.testing.assert_allclose(values.mean(), 0.5, atol=1e-3)


def test_fourier_mlp_by_hand():
    # Frequency pi at x = 1/2: features (1, 0). relu(2 * 1 + 3 * 0 - 1) = 1; sigmoid(ln 3 * 1) = 3/4.
    params = {
        "params": {
            "frequencies": jnp.array([[np.pi]]),
            "Dense_0": {"kernel": jnp.array([[2.0, -2.0], [3.0, 0.0]]), "bias": jnp.array([-1.0, 1.0])},
            "Dense_1": {"kernel": jnp.array([[np.log(3.0)], [7.0]]), "bias": jnp.zeros(1)},
        }
    }
    found = FourierMLP(width=2, depth=1, num_frequencies=1).apply(params, jnp.array([[0.5]]))
    np.testing.assert_allclose(found, [[0.75]], rtol=1e-5)


def test_no_gradient_moves_the_frequencies():
    field, points = FourierMLP(width=4, depth=1, num_frequencies=6, frequency_scale=7.0), jnp.ones((5, 2))
    params = jax.jit(field.init)(jax.random.key(0), points)
    gradient = jax.jit(jax.grad(lambda params: field.apply(params, points).sum()))(params)["params"]
    assert not gradient["frequencies"].any() and gradient["Dense_0"]["kernel"].any()
    drawn = jax.jit(FourierMLP(num_frequencies=400, frequency_scale=7.0).init)(jax.random.key(0), points)
    np.testing.assert_allclose(drawn["params"]["frequencies"].std(), 7, rtol=0.1)


@pytest.mark.parametrize("field", [Siren(width=8, depth=2), FourierMLP(width=8, depth=2, num_frequencies=4)])
def test_coordinate_networks_take_float64_and_one_point(x64, field):
    points = jnp.linspace(0, 1, 12, dtype=jnp.float64).reshape(3, 2, 2)
    params = field.init(jax.random.key(0), points)
    values = field.apply(params, points)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float64")} == {values.dtype}
    np.testing.assert_allclose(field.apply(params, points[1, 1]), values[1, 1], rtol=1e-12)
