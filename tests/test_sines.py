"""Sines and cosines by polynomials, which CPUs take in float32, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.sines import sine_and_cosine


@pytest.mark.parametrize(("top", "error"), [(3e3, 1e-7), (1e5, 2e-6), (1e6, 0.05)])
def test_large_phases(generator, top, error):
    phases = generator.uniform(-top, top, 100_000).astype(np.float32)
    sines, cosines = sine_and_cosine(jnp.asarray(phases))
    np.testing.assert_allclose(sines, np.sin(phases.astype(float)), rtol=0, atol=error)
    np.testing.assert_allclose(cosines, np.cos(phases.astype(float)), rtol=0, atol=error)


def test_quarters():
    angles = np.arange(-8, 9) * np.pi / 4
    np.testing.assert_allclose(
        sine_and_cosine(jnp.asarray(angles, jnp.float32)), [np.sin(angles), np.cos(angles)], atol=1e-6
    )


def test_what_is_no_number_stays_none():
    assert np.isnan(sine_and_cosine(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    ("function", "derivatives"),
    [
        (lambda x: sine_and_cosine(x)[0], [np.sin, np.cos, lambda x: -np.sin(x), lambda x: -np.cos(x)]),
        (lambda x: sine_and_cosine(x)[1], [np.cos, lambda x: -np.sin(x), lambda x: -np.cos(x), np.sin]),
    ],
)
def test_derivatives_up_to_the_third(generator, function, derivatives, dtype):
    phases = generator.uniform(-300, 300, 1000).astype(np.float32)
    with jax.enable_x64(True):
        for derivative in derivatives:
            found = jax.vmap(function)(jnp.asarray(phases, dtype))
            assert found.dtype == dtype
            np.testing.assert_allclose(found, derivative(phases.astype(float)), rtol=0, atol=3e-7)
            function = jax.grad(function)
