"""Scenes spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from jaxmeta import devices
from jaxmeta.devices import (
    by_scene,
    compilation_clock,
    describe,
    over_scenes,
    padded_size,
    replicated,
    resolve_dtype,
    scene_mesh,
    scenes_side_by_side,
)


def test_the_mesh_holds_every_device():
    mesh = scene_mesh()
    assert mesh.size == jax.device_count() == 8
    assert mesh.axis_names == ("scenes",)
    assert mesh.axis_types == (AxisType.Auto,)  # explicit axes, jax's default, fail or compile twice under vmap
    assert set(mesh.devices.ravel()) == set(jax.devices())


def test_scenes_are_shared_and_params_are_everywhere(mesh8):
    array = np.arange(32.0).reshape(16, 2)
    shared, whole = jax.device_put(array, by_scene(mesh8)), jax.device_put(array, replicated(mesh8))
    assert [shard.data.shape for shard in shared.addressable_shards] == [(2, 2)] * 8
    assert [shard.data.shape for shard in whole.addressable_shards] == [(16, 2)] * 8
    second_axis = jax.device_put(array.T, by_scene(mesh8, axis=1))
    assert [shard.data.shape for shard in second_axis.addressable_shards] == [(2, 2)] * 8


def test_a_function_knows_how_many_scenes_its_device_was_given(mesh8, mesh1):
    @jax.custom_vjp
    def loss(params):
        return params

    loss.defvjp(lambda params: (params, scenes_side_by_side()), lambda scenes, _: (jnp.float32(scenes),))

    def count(shared, one, other):
        def step(total, _):
            return total + jax.grad(loss)(total), None  # as the kernels ask: in a gradient in a scan

        return jax.lax.scan(step, shared + one + other, length=2)[0]

    zeros = jnp.zeros(16)
    for mesh, scenes in ((mesh8, 2), (mesh1, 16)):
        np.testing.assert_array_equal(jax.jit(over_scenes(count, mesh))(0.0, zeros, zeros), 2.0 * scenes)
    assert scenes_side_by_side() == 1


@pytest.mark.parametrize(("num_scenes", "sizes"), [(0, []), (4, [4]), (8, [4, 4]), (9, [3, 3, 3]), (10, [4, 4, 2])])
def test_more_scenes_than_a_device_takes_at_once_go_in_groups(mesh1, num_scenes, sizes):
    one, other = np.arange(num_scenes), {"a": jax.random.split(jax.random.key(0), num_scenes)}
    run = over_scenes(lambda shared, a, b: (shared + a, b["a"], scenes_side_by_side()), mesh1, at_once=4)
    total, keys, together = jax.jit(run)(3, one, other)
    np.testing.assert_array_equal(total, 3 + one)
    assert jnp.array_equal(keys, other["a"])
    np.testing.assert_array_equal(together, np.repeat(sizes, sizes))


@given(num_scenes=st.integers(0, 1000))
def test_padded_size_is_the_smallest_that_divides(mesh8, mesh1, num_scenes):
    assert padded_size(num_scenes, mesh1) == num_scenes
    size = padded_size(num_scenes, mesh8)
    assert size % 8 == 0 and num_scenes <= size < num_scenes + 8


@pytest.mark.parametrize(("name", "wanted"), [("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")])
def test_dtypes_on_a_cpu(name, wanted):
    assert resolve_dtype(name) == jnp.dtype(wanted)


def test_auto_is_bfloat16_where_the_hardware_is_made_for_it(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert resolve_dtype("auto") == jnp.bfloat16
    assert resolve_dtype("float32") == jnp.float32


def test_devices_in_words():
    assert describe() == "8 x cpu"


@pytest.fixture
def cache_of(monkeypatch, tmp_path):
    """Calls `keep_compiled` as on a GPU, and gives the folder that jax was told."""

    def call() -> str | None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        devices.keep_compiled()
        return jax.config.jax_compilation_cache_dir

    yield call
    jax.config.update("jax_compilation_cache_dir", None)


def test_n6_compiled_programs_lie_where_only_the_user_writes(cache_of, tmp_path):
    assert cache_of() == str(tmp_path / "jaxmeta" / "programs")
    assert (tmp_path / "jaxmeta" / "programs").stat().st_mode & 0o777 == 0o700


def test_n6_a_cache_open_to_others_is_not_used(cache_of, tmp_path, capsys):
    (tmp_path / "jaxmeta" / "programs").mkdir(parents=True)
    (tmp_path / "jaxmeta" / "programs").chmod(0o777)
    assert cache_of() is None
    assert "others may use" in capsys.readouterr().err


def test_a_cache_that_cannot_be_made_costs_a_warning(cache_of, tmp_path, capsys):
    (tmp_path / "jaxmeta").write_text("a file in the way")
    assert cache_of() is None
    assert "compiled programs are not kept" in capsys.readouterr().err


def test_the_clock_counts_compilation_alone():
    clock, function = compilation_clock(), jax.jit(lambda x: jnp.sin(x) * 3.25)
    assert clock() == 0
    function(1.0).block_until_ready()
    first = clock()
    assert first > 0
    function(2.0).block_until_ready()
    assert clock() == first
