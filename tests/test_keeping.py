"""Which states go to disk, which one a run continues from, and which failures it bears."""

import json
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import checkpoints
from jaxmeta.config import TrainConfig
from jaxmeta.devices import replicated, scene_mesh
from jaxmeta.errors import CheckpointError, DivergedError, InputError, StorageError
from jaxmeta.keeping import MAX_FAILURES, Keeper, resume
from jaxmeta.kinds.views import DataConfig, ViewsConfig
from jaxmeta.metalearning import MetaState, initial_state

OPTIMISER = optax.sgd(0.1)
# Of orbax's threads; what went wrong in them is raised where the save is waited for.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def state_at(step: int) -> MetaState:
    # Noise, so that it does not compress: about 16 kB on disk.
    params = {"w": jnp.asarray(np.random.default_rng(step).normal(size=4000), jnp.float32)}
    return initial_state(params, OPTIMISER)._replace(step=jnp.int32(step))


@contextmanager
def disk_full() -> Iterator[None]:
    """No file of this process grows beyond 8 kB: lines of metrics go in, arrays do not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def keeper_of(run: Path) -> Iterator[Keeper]:
    with checkpoints.open_checkpoints(run) as latest, checkpoints.open_checkpoints(run, "best", keep=1) as best:
        yield Keeper(run, latest, best, {"data": "abc"})


def steps(run: Path, name: str = "checkpoints") -> list[str]:
    return sorted(path.name for path in (run / name).iterdir())


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def continued(run: Path, data: str = "abc", **changes) -> int:
    settings = TrainConfig(run=run, signal=ViewsConfig(data=DataConfig(root=Path("pictures"))), **changes)
    with checkpoints.open_checkpoints(run) as latest:
        start = resume(settings, latest, lambda: state_at(0), data, replicated(scene_mesh()))
    jax.tree.map(np.testing.assert_array_equal, start.state(), state_at(start.step))
    assert jax.tree.map(jnp.shape, start.state()) == jax.tree.map(jnp.shape, start.like)
    return start.step


@pytest.fixture
def run(tmp_path) -> Path:
    """With checkpoints of steps 2 and 4 and metrics up to 6, as a kill leaves it."""
    with keeper_of(tmp_path) as keeper:
        for step in (2, 4, 6):
            keeper.note(step=step, loss=1.0 / step)
            if step < 6:
                keeper.keep(state_at(step), must=True)
    return tmp_path


def test_a_run_continues_from_its_newest_state_and_forgets_what_came_after(run):
    assert continued(run) == 4
    assert [row["step"] for row in rows(run)] == [2, 4]


def test_a_new_run_starts_at_zero(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')  # killed before its first checkpoint
    assert continued(tmp_path) == 0
    assert rows(tmp_path) == []


def test_never_and_must(run, tmp_path):
    with pytest.raises(InputError, match=r"holds a run at step 4; drop --resume never"):
        continued(run, resume="never")
    assert len(rows(run)) == 3
    assert continued(run, resume="must") == 4
    with pytest.raises(CheckpointError, match=r"no checkpoint to continue from; drop --resume must"):
        continued(tmp_path / "new", resume="must")
    assert continued(tmp_path / "new", resume="never") == 0


def test_t12_other_data_are_refused(run):
    with pytest.raises(InputError, match="was trained on other data than pictures holds now"):
        continued(run, data="abd")
    assert len(rows(run)) == 3 and steps(run) == ["2", "4"]


def test_the_best_state_is_kept_apart(tmp_path):
    with keeper_of(tmp_path) as keeper:
        for step, psnr in ((1, 10.0), (2, 12.0), (3, 11.0), (4, math.nan)):
            keeper.keep_if_best(state_at(step), psnr)
    assert steps(tmp_path, "best") == ["2"]
    with keeper_of(tmp_path) as keeper:  # the run continues, and knows
        keeper.keep_if_best(state_at(5), 11.9)
        assert steps(tmp_path, "best") == ["2"]
        # Killed before step 2, it comes there again; on a GPU the number may be another.
        keeper.keep_if_best(state_at(2), 12.1)
        assert steps(tmp_path, "best") == ["2"]
        keeper.keep_if_best(state_at(1), 12.2)
    assert steps(tmp_path, "best") == ["1"]


def test_t10_a_full_disk_is_borne_a_while(run, capsys):
    with keeper_of(run) as keeper, disk_full():
        for step in range(5, 5 + MAX_FAILURES):  # each tells of the one before
            keeper.keep(state_at(step))
        told = capsys.readouterr().err
        assert told.count("warning: a checkpoint could not be written") == told.count("; training goes on") == 2
        with pytest.raises(StorageError, match="could not be written"):
            keeper.keep(state_at(20))
    assert steps(run) == ["2", "4"]
    assert continued(run) == 4


def test_t10_a_save_that_must_succeed_is_not_borne(run):
    with keeper_of(run) as keeper, disk_full(), pytest.raises(StorageError, match="the ones before it are intact"):
        keeper.keep(state_at(6), must=True)
    assert steps(run) == ["2", "4"]


def test_t10_the_last_save_is_tried_though_the_one_before_failed(run, capsys):
    with keeper_of(run) as keeper:
        with disk_full():
            keeper.keep(state_at(6))
            time.sleep(1)  # it fails in the background
        keeper.keep(state_at(8), must=True)
    assert "training goes on" in capsys.readouterr().err
    assert steps(run) == ["2", "4", "8"]
    assert continued(run) == 8


def test_t10_a_failed_best_is_borne_and_tried_again(run, capsys):
    with keeper_of(run) as keeper:
        with disk_full():
            keeper.keep_if_best(state_at(6), 12.0)
        assert "training goes on" in capsys.readouterr().err
        assert steps(run, "best") == []
        keeper.keep_if_best(state_at(8), 11.0)  # better than what is on disk
    assert steps(run, "best") == ["8"]


def test_t10_metrics_wait_for_a_full_disk(run, capsys, monkeypatch):
    before = (run / "metrics.jsonl").read_bytes()
    with keeper_of(run) as keeper:
        with monkeypatch.context() as patch:
            patch.setattr("jaxmeta.keeping.append_metrics", full)
            keeper.note(step=8)
            assert (run / "metrics.jsonl").read_bytes() == before
            with pytest.raises(StorageError, match="no space"):
                keeper.keep(state_at(8), must=True)
        keeper.note(step=10)
    assert "warning: no space; training goes on" in capsys.readouterr().err
    assert [row["step"] for row in rows(run)] == [2, 4, 6, 8, 10]


def full(*args, **kwargs):
    raise StorageError("no space")


def test_t2_a_state_that_is_not_finite_ends_the_run(run):
    state = state_at(6)._replace(params={"w": jnp.full(4000, jnp.nan)})
    with keeper_of(run) as keeper, pytest.raises(DivergedError) as caught:
        keeper.keep(state, must=True)
    assert caught.value.exit_code == 4
    assert steps(run) == ["2", "4"]
