"""The kernels, run by Pallas's interpreter, against the field that XLA runs and against float64."""

import functools
import inspect
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import fused
from jaxmeta.cameras import Rays
from jaxmeta.encoding import positional_encoding
from jaxmeta.errors import InputError
from jaxmeta.fields import RadianceField, activate
from jaxmeta.kinds import views
from jaxmeta.objectives import squared_error
from jaxmeta.rendering import Sampling, composite, sample_intervals

SIZES = {"width": 256, "depth": 3, "num_frequencies": 4, "max_log2_frequency": 3.0}
FIELD = RadianceField(**SIZES, compute_dtype=jnp.bfloat16)
SCENES, POINTS = 3, 198  # four slabs of 64 rows each, the last in part, so that two pairs of blocks share a scene
CASES = {
    "few points": (FIELD, fused.MANY),
    "many points": (FIELD.clone(depth=4), 0),
    "many, 256 inputs": (FIELD.clone(depth=2, num_frequencies=22), 0),
}
ERROR_FIELD = FIELD.clone(depth=2, density_activation="relu")
RAYS, SAMPLES = 16, 64  # of the error from parameters on
BOTH_WAYS = (0, fused.MANY)  # back, for many points and for few
COMPOSITED = [("relu", (2, 16, 64)), ("shifted_softplus", (2, 32, 128))]  # scenes, rays, samples
THREADS = "48"  # The interpreter needs one for each warpgroup of the machine that it plays, and waits forever for more.

needs_interpreter = pytest.mark.skipif(
    not jax.__version__.startswith(fused.KNOWN_VERSIONS), reason=f"kernels are off: {fused.UNKNOWN_VERSION}"
)


def scenes(field=FIELD):
    keys = jax.random.split(jax.random.key(1), SCENES)
    params = jax.vmap(lambda key: field.init(key, jnp.zeros((1, 3))))(keys)
    return params, jax.random.normal(jax.random.key(2), (SCENES, POINTS, 3))


def judged(apply):
    """A loss that every output matters to, of each scene, with its gradient."""

    def loss(params, points):
        density, rgb = apply(params, points)
        return jnp.sum(jnp.sin(density)) + jnp.sum(jnp.square(rgb) * jnp.arange(3))

    return jax.vmap(jax.value_and_grad(loss))


def rays_of_a_scene():
    keys = jax.random.split(jax.random.key(4), 3)
    towards = jax.random.normal(keys[0], (1, RAYS, 3))
    rays = Rays(-3.0 * towards, towards / jnp.linalg.norm(towards, axis=-1, keepdims=True))
    params = jax.tree.map(lambda leaf: leaf[:1], scenes(ERROR_FIELD)[0])
    return params, rays, jax.random.uniform(keys[1], (1, RAYS, SAMPLES)), jax.random.uniform(keys[2], (1, RAYS, 3))


def error_by(error):
    """The error of colours, with its gradient."""

    def of_scene(params, *drawn):
        return error(params, *drawn, Sampling(num_samples=SAMPLES))

    return jax.vmap(jax.value_and_grad(of_scene))


def to_composite(num_scenes, *shape):
    """Outputs of the head in planes, its bias, distances and colours; a density of the first scene is not a number."""
    keys = jax.random.split(jax.random.key(5), 4)
    outputs = 3.0 * jax.random.normal(keys[0], (num_scenes, 8, *shape))
    outputs = outputs.at[0, 3, 1, 2].set(jnp.nan)
    distances = jnp.sort(jax.random.uniform(keys[1], (num_scenes, *shape), minval=2.0, maxval=6.0))
    target = jax.random.uniform(keys[3], (num_scenes, shape[0], 3))
    return outputs, jax.random.normal(keys[2], (num_scenes, 4)), distances, target


def composite_by_kernel(density_activation, outputs, bias, distances, target):
    from jaxmeta.kernels import compositing

    in_tiles = jax.vmap(compositing.in_tiles)(outputs)
    intervals = compositing.in_tiles(sample_intervals(distances, last_interval=1e-3))
    error, gradient, by_bias = compositing.squared_error(
        in_tiles.reshape(8, -1), bias, intervals, target, density_activation
    )
    back = jax.vjp(jax.vmap(compositing.in_tiles), outputs)[1](gradient.astype(jnp.float32).reshape(in_tiles.shape))[0]
    return error, back, by_bias


def composite_by_xla(density_activation, outputs, bias, distances, target):
    def error(outputs, bias):
        density, rgb = activate(outputs[:4] + bias[:, None, None], density_activation)
        seen = jax.vmap(lambda *ray: composite(*ray, Sampling()))(density, rgb, distances).rgb
        return jnp.mean(jnp.square(seen - target))

    value, gradients = jax.value_and_grad(error, (0, 1))(outputs, bias)
    return value, *gradients


def distance(left, right):
    return float(np.linalg.norm(np.asarray(left, np.float64) - right) / np.linalg.norm(right))


def interpret():
    """What the kernels return on a machine of four multiprocessors.

    Losses and gradients of each case, outputs of scenes, outputs of rays, errors of colours and their gradients, and
    what compositing returns.
    """
    import jax.experimental.pallas.mosaic_gpu as plgpu

    from jaxmeta.kernels import launching

    launching.MULTIPROCESSORS = 4
    params, points = scenes()
    one = jax.tree.map(lambda leaf: leaf[0], params)
    apply = fused.fused_apply(FIELD)
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        by_case = {
            case: judged(fused.fused_apply(field, many=many))(*scenes(field)) for case, (field, many) in CASES.items()
        }
        by_scenes = jax.vmap(apply)(params, points)
        of_rays = jax.vmap(lambda some: apply(one, some))(points[0].reshape(2, POINTS // 2, 3))
        errors = {many: error_by(fused.fused_error(ERROR_FIELD, many=many))(*rays_of_a_scene()) for many in BOTH_WAYS}
        composited = [
            jax.vmap(functools.partial(composite_by_kernel, activation))(*to_composite(*shape))
            for activation, shape in COMPOSITED
        ]
    return jax.device_get((by_case, by_scenes, of_rays, errors, composited))


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    path = tmp_path_factory.mktemp("fused") / "results"
    code = f"import pickle, test_fused; pickle.dump(test_fused.interpret(), open({str(path)!r}, 'wb'))"
    environment = os.environ | {"NPROC": THREADS, "PYTHONPATH": os.pathsep.join([*sys.path, os.path.dirname(__file__)])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=600)
    return pickle.loads(path.read_bytes())  # noqa: S301  # written above


@needs_interpreter
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_as_near_to_float64_as_bfloat16_allows(interpreted, case):
    field, _ = CASES[case]
    losses, gradients = interpreted[0][case]
    by_xla = jax.device_get(judged(field.apply)(*scenes(field)))
    wide = jax.tree.map(np.float64, jax.device_get(scenes(field)))
    with jax.enable_x64(True):
        in_float64 = jax.device_get(judged(field.clone(compute_dtype=None).apply)(*wide))
    np.testing.assert_allclose(losses, in_float64[0], rtol=2e-3)
    paths = jax.tree.leaves_with_path(in_float64[1])
    for (path, exact), ours, theirs in zip(paths, *map(jax.tree.leaves, (gradients, by_xla[1])), strict=True):
        assert ours.shape == exact.shape
        assert distance(ours, exact) < max(1e-2, 1.3 * distance(theirs, exact)), path


@needs_interpreter
def test_a_scene_alone_and_rays_apart_see_the_same(interpreted):
    _, by_scenes, of_rays, *_ = interpreted
    jax.tree.map(
        lambda apart, both: np.testing.assert_array_equal(apart.reshape(both[0].shape), both[0]), of_rays, by_scenes
    )


@needs_interpreter
@pytest.mark.parametrize("many", BOTH_WAYS)
def test_errors_of_colours_are_as_near_to_float64_as_bfloat16_allows(interpreted, many):
    errors, gradients = interpreted[3][many]
    drawn = rays_of_a_scene()
    by_xla = jax.device_get(error_by(functools.partial(squared_error, ERROR_FIELD.apply))(*drawn))
    with jax.enable_x64(True):
        wide = functools.partial(squared_error, ERROR_FIELD.clone(compute_dtype=None).apply)
        exact = jax.device_get(error_by(wide)(*jax.tree.map(np.float64, jax.device_get(drawn))))
    np.testing.assert_allclose(errors, exact[0], rtol=2e-3)
    for ours, theirs, wanted in zip(*map(jax.tree.leaves, (gradients, by_xla[1], exact[1])), strict=True):
        assert distance(ours, wanted) < max(1e-2, 1.3 * distance(theirs, wanted))


@needs_interpreter
@pytest.mark.parametrize("case", range(len(COMPOSITED)))
def test_compositing_differs_from_float64_by_the_gradients_rounding_alone(interpreted, case):
    error, gradient, by_bias = interpreted[4][case]
    activation, shape = COMPOSITED[case]
    wide = jax.tree.map(np.float64, jax.device_get(to_composite(*shape)))
    with jax.enable_x64(True):
        exact = jax.device_get(jax.vmap(functools.partial(composite_by_xla, activation))(*wide))
    assert np.isnan(error[0])
    np.testing.assert_allclose(error[1], exact[0][1], rtol=1e-6)
    np.testing.assert_allclose(by_bias[1], exact[2][1], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(gradient[:, 4:], 0.0)
    assert distance(gradient[1], exact[1][1]) < 2e-3


@needs_interpreter
def test_what_the_kernel_cannot_composite_xla_does(monkeypatch):
    from jaxmeta.kernels import compositing

    assert compositing.possible(128, 128)
    assert not compositing.possible(127, 128)
    for num_samples in (101, 192, 256):
        assert not compositing.possible(128, num_samples)
    monkeypatch.setattr(fused, "fused_apply", lambda field, many: field.apply)
    params, *drawn = jax.tree.map(lambda leaf: leaf[0], rays_of_a_scene())
    drawn = params, *jax.tree.map(lambda leaf: leaf[:15], drawn), Sampling(num_samples=SAMPLES)
    np.testing.assert_array_equal(fused.fused_error(ERROR_FIELD)(*drawn), squared_error(ERROR_FIELD.apply, *drawn))


@needs_interpreter
def test_the_encoding_of_the_kernels_is_that_of_the_field():
    from jaxmeta.kernels import encoding

    field = RadianceField()
    points = jax.random.uniform(jax.random.key(3), (500, 3), minval=-3.0, maxval=3.0)
    with jax.enable_x64(True):
        wide = jnp.asarray(np.float64(points))
        exact = positional_encoding(
            wide, num_frequencies=field.num_frequencies, max_log2_frequency=field.max_log2_frequency
        )
    angles = encoding.table(field.num_frequencies, field.max_log2_frequency)
    rows = np.float64(jax.jit(encoding.encode)(list(points.T[:, :, None]), list(angles[:, None, :])))
    np.testing.assert_allclose(rows[:, : exact.shape[1]], exact, atol=2**-9 + 1e-4)
    np.testing.assert_array_equal(rows[:, exact.shape[1] :], 1.0)


@pytest.mark.parametrize(
    ("num_scenes", "layers", "narrow", "slabs"),
    [
        (1, 5, True, 255),
        (3, 1, False, 7),
        (16, 1, False, 256),
        (16, 1, False, 255),
        (25, 1, False, 256),
        (200, 3, False, 5),
    ],
)
def test_every_slab_is_added_once(num_scenes, layers, narrow, slabs):
    from jaxmeta.kernels.slabs import Slabs

    work = Slabs(num_scenes, layers, narrow, slabs)
    slabs_in_parts = np.full((work.pairs, work.parts), np.nan)
    for pair in range(len(slabs_in_parts)):
        slab, end, part = work.start(pair), work.start(pair + 1), 0
        while slab < end:
            slabs_in_parts[pair, part] = min(work.locate(slab)[-1], end - slab)
            slab, part = slab + int(slabs_in_parts[pair, part]), part + 1
    expected = np.full((num_scenes, layers), slabs)
    expected[:, 0] = work.first
    np.testing.assert_array_equal(work.add(jnp.asarray(slabs_in_parts)), expected)


def test_pairs_keep_to_a_scene_where_few_must_rest_for_it():
    from jaxmeta.kernels.slabs import Slabs

    for num_scenes, slabs, pairs in [(1, 256, 64), (16, 256, 64), (64, 256, 64), (16, 255, 66), (25, 256, 66)]:
        assert Slabs(num_scenes, 1, False, slabs).pairs == pairs
    assert Slabs(16, 1, False, 256).parts == Slabs(64, 1, False, 256).parts == 1


def test_a_slab_of_the_first_layer_always_has_the_same_warpgroup_in_its_place_of_the_ring():
    from jaxmeta.kernels.layer_plan import ENCODED, Plan
    from jaxmeta.kernels.slabs import Slabs

    for inputs in (128, 256):
        plan = Plan(Slabs(1, 1, False, 4), "first", inputs, 1, 0, 0, 0)
        assert plan.ring % plan.encoding == ENCODED % plan.encoding == 0


@needs_interpreter
def test_pallas_waits_for_the_whole_warpgroup_where_the_kernels_rely_on_it():
    from jax.experimental.mosaic.gpu import LaunchContext
    from jax.experimental.mosaic.gpu.utils import commit_shared

    for function in (commit_shared, LaunchContext.await_async_copy):  # of commit_smem and of wait_smem_to_gmem
        assert "warpgroup_barrier()" in inspect.getsource(function)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"compute_dtype": jnp.float32}, "not bfloat16"),
        ({"width": 128}, "--field.width 128 is not 256"),
        ({"depth": 1}, "--field.depth 1"),
        ({"num_frequencies": 43}, "--field.num-frequencies 43"),
        ({}, "not a Hopper GPU"),
    ],
)
def test_what_stands_against_the_kernels_is_told(change, reason):
    field = FIELD.clone(**change)
    assert reason in (fused.obstacle(field) or "")
    with pytest.raises(InputError, match=reason):
        views.field_apply(field, "fused")
    assert views.field_apply(field, "auto").__module__ == "jaxmeta.blocked"  # this is a CPU


class Hopper:
    """What a Hopper GPU says of itself."""

    device_kind, compute_capability = "NVIDIA H200", "9.0"


def test_an_unknown_jax_leaves_the_work_to_xla_with_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(jax, "local_devices", lambda: [Hopper()])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "__version__", "0.99.0")
    assert views.field_apply(FIELD, "auto") == FIELD.apply
    assert "warning: no fused kernels" in capsys.readouterr().err
    monkeypatch.setattr(jax, "__version__", "0.12.3")
    assert views.field_apply(FIELD, "auto") != FIELD.apply
    assert views.field_apply(FIELD, "xla") == FIELD.apply


def test_a_hopper_gpu_composites_by_the_kernel_where_only_first_derivatives_are_asked_for(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [Hopper()])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "__version__", "0.12.3")

    def composites(implementation, *, twice=False):
        config = views.ViewsConfig(field=views.FieldConfig(implementation=implementation))
        return "error" in views.scene_signal(config, height=8, width=8, num_rays=16, twice=twice).loss.keywords

    assert composites("auto")
    assert composites("fused")
    assert not composites("auto", twice=True)
    assert not composites("xla")
