"""Every array that the original implementation gave, reproduced in float64 by the package's own functions."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta.cameras import Rays, Views
from jaxmeta.fields import RadianceField
from jaxmeta.metalearning import Keys, adapt, initial_state, meta_step, reptile
from jaxmeta.objectives import view_pixels
from jaxmeta.rendering import Sampling, render_rays

FIELD = RadianceField(width=32, depth=5, density_activation="relu")
SAMPLING = Sampling(near=2.0, far=6.0, num_samples=24, last_interval=1e10)


class Rows(NamedTuple):
    """Rays with the colour that each should have."""

    rays: Rays
    rgb: jax.Array


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("original_golden.npz")) as arrays:
        return dict(arrays)


def params_of(golden, prefix=""):
    layers = {
        f"Dense_{i}": {name: jnp.asarray(golden[f"{prefix}{name}_{i}"]) for name in ("kernel", "bias")}
        for i in range(6)
    }
    return {"params": layers}


def assert_params(found, golden, prefix):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), found, params_of(golden, prefix))


def loss_of_rows(params, rows: Rows, uniform):
    rendering = render_rays(lambda points: FIELD.apply(params, points), rows.rays, uniform, SAMPLING)
    return jnp.mean(jnp.square(rendering.rgb - rows.rgb))


def recorded_loss(params, task, draw):
    """The loss of one inner step, on the rows and the jitter that were recorded."""
    indices, uniform = draw
    return loss_of_rows(params, jax.tree.map(lambda leaf: leaf[indices], task), uniform)


def task_of(golden) -> Rows:
    origins, directions, rgb = (jnp.asarray(part) for part in np.split(golden["task"], 3, axis=1))
    return Rows(Rays(origins, directions), rgb)


def test_loader(x64, golden):
    images, poses = golden["load_images"], golden["load_poses"]
    focal = images.shape[2] / 2 / np.tan(golden["load_camera_angle_x"] / 2)
    rays, rgb = view_pixels(
        Views(jnp.asarray(images), jnp.asarray(poses), jnp.asarray(focal)),
        jnp.arange(images[..., 0].size),
        pixel_centre=0.0,
    )
    for name, found in {"origins": rays.origins, "directions": rays.directions, "rgb": rgb}.items():
        wanted = golden[f"load_{name}"]
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=0, atol=1e-12)


def test_field(x64, golden):
    density, rgb = jax.jit(FIELD.apply)(params_of(golden), jnp.asarray(golden["points"]))
    np.testing.assert_allclose(density, golden["field_density"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(rgb, golden["field_rgb"], rtol=0, atol=1e-12)


def test_rays_loss_and_gradient(x64, golden):
    params, uniform = params_of(golden), jnp.asarray(golden["ray_uniform"])
    rays = Rays(jnp.asarray(golden["ray_origins"]), jnp.asarray(golden["ray_directions"]))
    rendering = render_rays(lambda points: FIELD.apply(params, points), rays, uniform, SAMPLING)
    np.testing.assert_allclose(rendering.rgb, golden["ray_rgb"], rtol=0, atol=1e-10)
    rows = Rows(rays, jnp.asarray(golden["ray_target"]))
    loss, gradient = jax.jit(jax.value_and_grad(loss_of_rows))(params, rows, uniform)
    np.testing.assert_allclose(loss, golden["ray_loss"], rtol=0, atol=1e-12)
    assert_params(gradient, golden, "grad_")


def test_adaptation_and_two_reptile_steps(x64, golden):
    task, params = task_of(golden), params_of(golden)
    draws = [(jnp.asarray(golden["inner_indices"][m]), jnp.asarray(golden["inner_uniform"][m])) for m in range(2)]
    inner, outer = optax.sgd(0.5), optax.adam(5e-5)
    adapted = jax.jit(lambda params, draw: adapt(recorded_loss, inner, params, task, draw).params)
    assert_params(adapted(params, draws[0]), golden, "adapted_")

    def scene_gradient(params, data, keys):
        return reptile(recorded_loss, recorded_loss, inner, params, data, keys)

    @jax.jit
    def improve(state, draw):
        rows, keys = jax.tree.map(lambda leaf: leaf[None], (task, Keys(draw, None)))
        return meta_step(scene_gradient, outer, state, rows, keys, jnp.ones(1, bool))[0]

    state = initial_state(params, outer)
    for draw in draws:
        state = improve(state, draw)
    assert_params(state.params, golden, "meta_")
    assert state.step == 2


def test_no_array_is_left_over(golden):
    # What the tests above read, by the keys' first words.
    read = {"load", "kernel", "bias", "points", "field", "ray", "grad", "task", "inner", "adapted", "meta"}
    assert {name.split("_")[0] for name in golden} == read
