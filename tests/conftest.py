"""How every test runs: shapes and dtypes checked, eight devices, full precision."""

# ruff: noqa: E402
import os
import shutil
import signal

# Before jax starts: eight devices on any machine.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# Of LLVM alone: these programs are compiled longer than they run. Commands that tests start are compiled so too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send.
signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest

# Before jaxmeta is imported: its signatures are executed.
jaxtyping.install_import_hook("jaxmeta", "typechecking.checked")

from jax.sharding import AxisType, Mesh

from jaxmeta.cameras import Views, orbit_pose
from jaxmeta.devices import scene_mesh
from jaxmeta.fields import RadianceField
from jaxmeta.rendering import Sampling

jax.config.update("jax_default_matmul_precision", "highest")
hypothesis.settings.register_profile("tests", max_examples=40, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def mesh8() -> Mesh:
    return scene_mesh()


@pytest.fixture(scope="session")
def mesh1() -> Mesh:
    return jax.make_mesh((1,), ("scenes",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 in jax for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def generator() -> np.random.Generator:
    """Inputs that are as good as any others; no test knows their values."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Any:
    """Starts the commands; see `Commands`."""
    from commands import Commands  # which imports the package, as few tests need to

    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="session")
def whole(commands, tmp_path_factory) -> Path:
    """A training that nothing happened to."""
    from commands import STEPS, ended

    run = tmp_path_factory.mktemp("whole") / "run"
    ended(commands.train(run, **STEPS), 0)
    return run


@pytest.fixture(scope="session")
def halfway(commands, whole, tmp_path_factory) -> Path:
    """Stopped at step 6; its best state is that of the end, as if it had been there before and lost its checkpoints."""
    from commands import STEPS, STOP_AT_6, ended

    run = Path(shutil.copytree(whole, tmp_path_factory.mktemp("halfway") / "run"))
    shutil.rmtree(run / "checkpoints")
    ended(commands.train(run, fault=STOP_AT_6, **STEPS), 143)
    return run


@pytest.fixture
def half(halfway, tmp_path) -> Path:
    """A copy of `halfway`, to be damaged."""
    return Path(shutil.copytree(halfway, tmp_path / "half"))


NUM_SCENES, NUM_VIEWS, SIZE, FOCAL = 24, 4, 12, 14.0


def ball_view(pose: np.ndarray, centre: Sequence[float], radius: float, colour: Sequence[float]) -> np.ndarray:
    """The bytes of a view of an opaque ball, lit from above: where a line from the camera meets it, solved for."""
    row, column = np.indices((SIZE, SIZE))
    right, up = (column + 0.5 - SIZE / 2) / FOCAL, (SIZE / 2 - row - 0.5) / FOCAL
    directions = np.stack([right, up, -np.ones_like(up)], axis=-1) @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    to_ball = np.asarray(centre) - pose[:3, 3]
    along = directions @ to_ball
    room = radius**2 - to_ball @ to_ball + along**2
    normal_z = pose[2, 3] + (along - np.sqrt(np.maximum(room, 0))) * directions[..., 2] - centre[2]
    light = 0.75 + 0.25 * normal_z / radius
    rgba = np.concatenate([light[..., None] * np.asarray(colour), np.ones((SIZE, SIZE, 1))], axis=-1)
    return np.round(255 * np.where(room[..., None] > 0, rgba, 0)).astype(np.uint8)


@pytest.fixture(scope="session")
def balls() -> Views:
    """A class of scenes: warm-coloured balls that float about a place off the middle, seen from around."""
    generator = np.random.default_rng(0)
    images = np.zeros((NUM_SCENES, NUM_VIEWS, SIZE, SIZE, 4), np.uint8)
    poses = np.zeros((NUM_SCENES, NUM_VIEWS, 4, 4), np.float32)
    for scene in range(NUM_SCENES):
        centre = np.array([0.5, 0.0, -0.2]) + generator.uniform(-0.2, 0.2, 3)
        radius, colour = generator.uniform(0.7, 0.9), np.array([0.9, generator.uniform(0.2, 0.7), 0.1])
        for view in range(NUM_VIEWS):
            pose = orbit_pose(2 * np.pi * view / NUM_VIEWS + generator.uniform(0, 1), generator.uniform(0, 0.8), 4.0)
            images[scene, view], poses[scene, view] = ball_view(pose, centre, radius, colour), pose
    return Views(images, poses, np.full(NUM_SCENES, FOCAL, np.float32))


@pytest.fixture(scope="session")
def small_field() -> RadianceField:
    return RadianceField(width=16, depth=2, num_frequencies=4, max_log2_frequency=2.0)


@pytest.fixture(scope="session")
def small_start(small_field: RadianceField) -> Any:
    """The field's standard initialisation, on the host."""
    return jax.device_get(jax.jit(small_field.init)(jax.random.key(0), np.zeros((1, 3), np.float32)))


@pytest.fixture(scope="session")
def sampling() -> Sampling:
    return Sampling(near=2.5, far=5.5, num_samples=12)
