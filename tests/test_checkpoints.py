"""Checkpoints: what is saved comes back, and what is damaged does not."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import checkpoints
from jaxmeta.devices import replicated, scene_mesh
from jaxmeta.errors import CheckpointError
from jaxmeta.metalearning import MetaState, initial_state

OPTIMISER = optax.adam(1e-3)


def state_at(step: int, width: int = 3) -> MetaState:
    params = {"kernel": jnp.arange(2.0 * width).reshape(2, width) + step, "bias": jnp.full(width, 0.5 * step)}
    return initial_state(params, OPTIMISER)._replace(step=jnp.int32(step))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with checkpoints.open_checkpoints(tmp_path) as saved:
        for step in (1, 2, 3):
            checkpoints.save(saved, state_at(step))
    return tmp_path


def restored(run: Path, like: MetaState | None = None) -> MetaState | None:
    with checkpoints.open_checkpoints(run) as saved:
        return checkpoints.restore(saved, like=like or state_at(0), sharding=replicated(scene_mesh()))


def test_the_newest_state_comes_back(run):
    state = restored(run)
    assert jax.tree.structure(state) == jax.tree.structure(state_at(3))
    jax.tree.map(np.testing.assert_array_equal, state, state_at(3))


def test_a_new_run_has_no_state(tmp_path):
    assert restored(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
    with checkpoints.open_checkpoints(tmp_path, keep=2) as saved:
        for step in range(5):
            checkpoints.save(saved, state_at(step))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def data_files(run: Path, step: int) -> list[Path]:
    """The files that hold arrays: all of the step's state that is not empty."""
    return [path for path in (run / "checkpoints" / str(step) / "state").rglob("*") if path.is_file()]


def flip_bits(run: Path) -> None:
    for path in data_files(run, 3):
        if path.parent.name == "d":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)


def delete_files(run: Path) -> None:
    for path in data_files(run, 3):
        path.unlink()


def truncate_files(run: Path) -> None:
    for path in data_files(run, 3):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def add_empty_step(run: Path) -> None:
    (run / "checkpoints" / "3").rename(run / "elsewhere")
    (run / "checkpoints" / "999").mkdir()


@pytest.mark.parametrize("damage", [flip_bits, delete_files, truncate_files, add_empty_step])
def test_falls_back_to_the_newest_sound_step(run, damage, capsys):
    damage(run)
    state = restored(run)
    assert state is not None
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, state, state_at(2))
    assert "rejected" in capsys.readouterr().err


def test_stops_where_no_step_is_sound(run):
    with pytest.raises(CheckpointError, match=r"no usable checkpoint .*bias is float32\[3\], wanted float32\[4\]"):
        restored(run, like=state_at(0, width=4))


def test_refuses_another_dtype(run):
    like = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim else leaf, state_at(0))
    with pytest.raises(CheckpointError, match=r"is float32\[3\], wanted bfloat16\[3\]"):
        restored(run, like=like)
