"""The field of a CPU and the loss in blocks, against the plain ones."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import blocked
from jaxmeta.fields import RadianceField
from jaxmeta.kinds import views
from jaxmeta.metalearning import Keys, adapt, maml
from jaxmeta.objectives import mean_over_blocks, photometric_loss
from jaxmeta.optimisers import inner_optimiser
from jaxmeta.rendering import Sampling

FIELD = RadianceField(width=16, depth=3, num_frequencies=5, max_log2_frequency=6.0)
SAMPLING = Sampling(num_samples=6)


@pytest.fixture(scope="module")
def starts():
    return jax.vmap(lambda key: FIELD.init(key, jnp.zeros((1, 3))))(jax.random.split(jax.random.key(1), 2))


def close(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), left, right)


def test_same_outputs_and_gradients_of_two_scenes(starts):
    points = jax.random.normal(jax.random.key(2), (2, 4, 7, 3))

    def judged(apply):
        def loss(params, points):
            density, rgb = apply(params, points)
            return jnp.sum(jnp.sin(density)) + jnp.sum(jnp.square(rgb) * jnp.arange(3)), (density, rgb)

        return jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)))(starts, points)

    (ours, outputs), (by_params, by_points) = judged(blocked.blocked_apply(FIELD))
    (plain, plain_outputs), (plain_by_params, plain_by_points) = judged(FIELD.apply)
    close((ours, outputs, by_params), (plain, plain_outputs, plain_by_params))
    np.testing.assert_allclose(by_points, plain_by_points, rtol=1e-3, atol=1e-4)  # has the frequencies as factors


def test_same_derivative_through_inner_steps(balls, starts):
    """As MAML takes it: of the loss after two steps, by where they began."""
    scene = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), balls)
    start = jax.tree.map(lambda leaf: leaf[0], starts)
    keys = Keys(jax.random.split(jax.random.key(3), 2), jax.random.key(4))

    def gradient(apply):
        loss = partial(photometric_loss, apply, num_rays=8, sampling=SAMPLING)
        return jax.jit(partial(maml, loss, loss, inner_optimiser("sgd", 0.5)))(start, scene, keys).gradient

    close(gradient(blocked.blocked_apply(FIELD)), gradient(FIELD.apply))


@pytest.mark.parametrize("rays_per_block", [1, 4])
def test_steps_in_blocks_are_those_of_all_rays(balls, starts, rays_per_block):
    scenes = jax.tree.map(lambda leaf: jnp.asarray(leaf[:2]), balls)
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.split(jax.random.key(3), 2))

    def adapted(apply, **wanted):
        loss = partial(photometric_loss, apply, num_rays=8, sampling=SAMPLING, **wanted)
        return jax.jit(jax.vmap(partial(adapt, loss, inner_optimiser("sgd", 0.5))))(starts, scenes, keys)

    in_blocks = adapted(blocked.blocked_apply(FIELD), rays_per_block=rays_per_block)
    plain = adapted(FIELD.apply)
    close(in_blocks, plain)


def test_loss_without_its_gradient_and_times_a_factor():
    entries = jnp.arange(12.0).reshape(6, 2)

    def mean(scale, entries, size=2):
        return mean_over_blocks(lambda scale, block: scale**2 * jnp.mean(block), scale, entries, size=size)

    np.testing.assert_allclose(mean(jnp.float32(3), entries), 9 * 5.5, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda scale: 2 * mean(scale, entries))(jnp.float32(3)), 2 * 6 * 5.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("width", "num_rays", "num_samples", "wanted"),
    [
        (256, 128, 128, 8),  # the presets' size: 8 x 128 points, 1 MiB a layer
        (64, 64, 32, 64),  # the toy preset fits as it is
        (256, 12, 128, 6),
        (256, 127, 128, 127),  # a prime: nothing between one ray and all
        (4096, 128, 128, 1),
    ],
)
def test_rays_per_block(width, num_rays, num_samples, wanted):
    assert blocked.rays_per_block(RadianceField(width=width), num_rays, num_samples) == wanted


def test_twice_the_rays_fit_in_bfloat16():
    assert blocked.rays_per_block(RadianceField(compute_dtype=jnp.bfloat16), 128, 128) == 16


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
def test_a_cpu_takes_it(dtype):
    field = dataclasses.replace(FIELD, compute_dtype=dtype)
    assert views.field_apply(field, "auto") != field.apply
    assert views.choose(field, "auto", twice=True) == "blocked"
    assert views.field_apply(field, "xla") == field.apply


def test_only_first_derivatives_are_taken_in_blocks():
    config = views.ViewsConfig(field=views.FieldConfig(width=256))

    def blocks(*, twice):
        loss = views.scene_signal(config, height=8, width=8, num_rays=128, twice=twice).loss
        return loss.keywords.get("rays_per_block")

    assert blocks(twice=True) is None
    assert blocks(twice=False) < 128


@pytest.mark.parametrize(
    ("flags", "changes", "wanted"),
    [
        ("fpu amx_bf16 amx_tile", {}, jnp.bfloat16),
        ("fpu amx_bf16 amx_tile", {"width": 127}, jnp.float32),
        ("fpu amx_bf16 amx_tile", {"implementation": "xla"}, jnp.float32),
        ("fpu amx_bf16 amx_tile", {"compute_dtype": "float32"}, jnp.float32),
        ("fpu avx512_bf16", {}, jnp.bfloat16),
        ("fpu avx512f", {}, jnp.float32),
        ("fpu avx512f", {"compute_dtype": "bfloat16"}, jnp.bfloat16),
        (None, {}, jnp.float32),
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_matmuls_for_it(tmp_path, monkeypatch, flags, changes, wanted):
    processor = tmp_path / "cpuinfo"
    if flags:
        processor.write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(blocked, "_PROCESSOR", processor)
    blocked._has_units.cache_clear()
    config = views.ViewsConfig(field=dataclasses.replace(views.FieldConfig(width=128), **changes))
    assert views.radiance_field(config).compute_dtype == wanted
    blocked._has_units.cache_clear()


def test_bfloat16_is_near_float32_and_has_float32_parameters():
    """Better than XLA's, which rounds each layer's sums too; the gradients of the parameters are not rounded."""
    field = dataclasses.replace(FIELD, width=64)
    params = field.init(jax.random.key(1), jnp.zeros((1, 3)))
    points = jax.random.normal(jax.random.key(2), (4, 100, 3))

    def gradient(apply):
        def loss(params):
            density, rgb = apply(params, points)
            return jnp.mean(jnp.sin(density)) + jnp.mean(jnp.square(rgb) * jnp.arange(3))

        return jax.jit(jax.grad(loss))(params)

    wanted, ours = (
        gradient(field.apply),
        gradient(blocked.blocked_apply(dataclasses.replace(field, compute_dtype=jnp.bfloat16))),
    )
    for exact, found in zip(jax.tree.leaves(wanted), jax.tree.leaves(ours), strict=True):
        assert found.dtype == jnp.float32
        error = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
        assert 1e-5 < error < 2e-2
    kernel = ours["params"]["Dense_1"]["kernel"]
    assert (kernel.astype(jnp.bfloat16).astype(jnp.float32) != kernel).any()
