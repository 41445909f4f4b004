"""The command that writes a mesh, on a tiny run."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import trimesh
from commands import write_run

from jaxmeta import assembly, configfiles, mesh
from jaxmeta.errors import CheckpointError, InputError
from jaxmeta.loading import load_initialisation
from jaxmeta.mesh import MeshConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("mesh"))


def words(run: Path, *more: object) -> list[str]:
    return ["mesh", str(run), "--scene", "cube4", "--resolution", "8", "--steps", "2", *map(str, more)]


def test_the_command_writes_a_mesh(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "cube.PLY"
    monkeypatch.setattr("sys.argv", words(run, "--threshold", 0.2, "--support", 0, 2, "--out", out))
    mesh.main()
    body = trimesh.load(out, file_type="ply")
    assert body.is_watertight and body.volume > 0
    assert np.linalg.norm(body.vertices, axis=-1).max() < 1.6
    assert f"{out}: {len(body.vertices)} vertices" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_draws_are_those_of_eval(run):
    """`split(fold_in(key(seed), scene), steps)`, and plain gradient descent."""
    settings = configfiles.load(run / "config.json")
    wanted = MeshConfig(run=run, scene="cube1", out=Path("x.ply"), split="train", steps=2)
    index, support = mesh.load_support(wanted, assembly.views_config(settings))
    assert (index, support.images.shape) == (1, (1, 12, 12, 4))
    signal = assembly.assemble(settings, size=(12, 12), num_rays=4)
    start = signal.init(jax.random.key(0))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), 1), 2)
    found = mesh.adapt(wanted, settings, index, support)
    for key in keys:
        gradient = jax.jit(jax.grad(signal.loss))(start, jax.tree.map(jax.numpy.asarray, support), key)
        start = jax.tree.map(lambda leaf, slope: leaf - settings.inner.step_size * slope, start, gradient)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6), found, start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": Path("cube.obj")}, "--out cube.obj must end in .ply or .glb"),
        ({"support": ()}, "--support"),
        ({"support": (0, -1)}, "--support"),
        ({"steps": -1}, "--steps -1"),
        ({"resolution": 7}, "^--resolution 7 must be 8 to 1024$"),
        ({"resolution": 1025}, "--resolution 1025"),
        ({"threshold": 0.0}, "--threshold 0.0 must be positive"),
        ({"radius": float("inf")}, "--radius inf"),
    ],
)
def test_bad_flags(changes, message):
    with pytest.raises(InputError, match=message):
        mesh.check(dataclasses.replace(MeshConfig(run=Path(), scene="a", out=Path("a.ply")), **changes))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(mesh, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=r"pip install 'jaxmeta\[meshes\]'"):
        mesh.check(MeshConfig(run=Path(), scene="a", out=Path("a.ply")))


def test_an_unknown_scene_and_a_run_without_checkpoints(run, tmp_path):
    wanted = MeshConfig(run=run, scene="cube9", out=Path("a.ply"), split="train")
    settings = configfiles.load(run / "config.json")
    for views in ((0, 3), (99,)):
        with pytest.raises(InputError, match=re.escape(f"--support {views} must be views from 0 to 2")):
            mesh.load_support(dataclasses.replace(wanted, support=views), assembly.views_config(settings))
    with pytest.raises(InputError, match="--scene cube9 is not in the split 'train', which has cube0, cube1, cube2"):
        mesh.load_support(wanted, assembly.views_config(settings))
    with pytest.raises(CheckpointError, match="drop --checkpoint best"):
        load_initialisation(run, settings, "best")
    wanted = dataclasses.replace(wanted, run=tmp_path, scene="cube0")
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        mesh.adapt(wanted, settings, *mesh.load_support(wanted, assembly.views_config(settings)))
