"""The kernels, run by Pallas's interpreter, against the field that XLA runs and against float64."""

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
from jaxmeta.encoding import positional_encoding
from jaxmeta.errors import InputError
from jaxmeta.fields import RadianceField
from jaxmeta.kinds import views

SIZES = {"width": 256, "depth": 3, "num_frequencies": 4, "max_log2_frequency": 3.0}
FIELD = RadianceField(**SIZES, compute_dtype=jnp.bfloat16)
SCENES, POINTS = 3, 198  # four slabs of 64 rows each, the last in part, so that two pairs of blocks share a scene
CASES = {
    "few points": (FIELD, fused.MANY),
    "many points": (FIELD.clone(depth=4), 0),
    "many, 256 inputs": (FIELD.clone(depth=2, num_frequencies=22), 0),
}
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


def distance(left, right):
    return float(np.linalg.norm(np.asarray(left, np.float64) - right) / np.linalg.norm(right))


def interpret():
    """What the kernels return on a machine of four multiprocessors.

    Losses and gradients of each case, outputs of scenes, outputs of rays.
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
    return jax.device_get((by_case, by_scenes, of_rays))


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    path = tmp_path_factory.mktemp("fused") / "results"
    code = f"import pickle, test_fused; pickle.dump(test_fused.interpret(), open({str(path)!r}, 'wb'))"
    environment = os.environ | {"NPROC": THREADS, "PYTHONPATH": os.pathsep.join([*sys.path, os.path.dirname(__file__)])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
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
    _, by_scenes, of_rays = interpreted
    jax.tree.map(
        lambda apart, both: np.testing.assert_array_equal(apart.reshape(both[0].shape), both[0]), of_rays, by_scenes
    )


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


def test_a_slab_always_has_the_same_warpgroup_in_its_place_of_the_ring():
    from jaxmeta.kernels.layer_plan import Plan
    from jaxmeta.kernels.slabs import Slabs

    for kind, inputs in [("head", 256), ("layer", 256), ("first", 128), ("first", 256)]:
        plan = Plan(Slabs(1, 1, False, 4), kind, inputs, 1, 0, 0)
        assert plan.ring % plan.preparing == 0


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
