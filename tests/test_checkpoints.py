"""Checkpoints: what is saved comes back, and what is damaged does not."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import checkpoints, soundness
from jaxmeta.checkpoints import Restored
from jaxmeta.devices import replicated, scene_mesh
from jaxmeta.errors import CheckpointError, DivergedError, InputError, StorageError
from jaxmeta.metalearning import MetaState, initial_state

OPTIMISER = optax.adam(1e-3)
# Of orbax's threads; what went wrong in them is raised where the result is waited for.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ABOUT = {"data": "abc", "config": {"seed": 3}}


def state_at(step: int, width: int = 3) -> MetaState:
    params = {"kernel": jnp.arange(2.0 * width).reshape(2, width) + step, "bias": jnp.full(width, 0.5 * step)}
    return initial_state(params, OPTIMISER)._replace(step=jnp.int32(step))


def assert_is_state_at(step: int, found: Restored | None) -> None:
    assert found is not None
    assert jax.tree.structure(found.state) == jax.tree.structure(state_at(step))
    jax.tree.map(np.testing.assert_array_equal, found.state, state_at(step))


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    with checkpoints.open_checkpoints(folder) as saved:
        for step in (1, 2, 3):
            checkpoints.save(saved, state_at(step), ABOUT)
        checkpoints.finish(saved)
    return folder


@pytest.fixture
def run(three_steps, tmp_path) -> Path:
    return Path(shutil.copytree(three_steps, tmp_path / "run"))


def restored(run: Path, like: MetaState | None = None, *, set_aside: bool = False) -> Restored | None:
    with checkpoints.open_checkpoints(run) as saved:
        sharding = replicated(scene_mesh())
        return checkpoints.restore(saved, like=like or state_at(0), sharding=sharding, set_aside=set_aside)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_the_newest_state_comes_back(run):
    found = restored(run)
    assert_is_state_at(3, found)
    assert found.meta.items() >= ABOUT.items()
    assert found.meta["versions"] == soundness.versions()


def test_t9_a_checkpoint_has_state_and_meta_under_one_name(run):
    # They are renamed together, so that a kill cannot come between them.
    assert names(run / "checkpoints") == {"1", "2", "3"}
    assert all(names(run / "checkpoints" / step) >= {"state", "meta"} for step in "123")


def test_a_new_run_has_no_state(tmp_path):
    assert restored(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
    with checkpoints.open_checkpoints(tmp_path, keep=2) as saved:
        for step in range(5):
            checkpoints.save(saved, state_at(step), {})
        checkpoints.finish(saved)
    assert names(tmp_path / "checkpoints") == {"3", "4"}


def test_a_step_that_is_there_is_replaced(run):
    # As after a kill between a save and the metrics of its step.
    with checkpoints.open_checkpoints(run) as saved:
        checkpoints.save(saved, state_at(3), {"second": "time"})
        checkpoints.finish(saved)
        assert checkpoints.newest_meta(saved)["second"] == "time"
    assert_is_state_at(3, restored(run))
    assert names(run / "checkpoints") == {"1", "2", "3"}


def test_what_goes_with_the_newest(run, tmp_path):
    with checkpoints.open_checkpoints(run) as saved:
        assert checkpoints.newest_meta(saved)["data"] == "abc"
    with checkpoints.open_checkpoints(tmp_path / "new") as saved:
        assert checkpoints.newest_meta(saved) == {}
    (run / "checkpoints" / "3" / "meta" / "metadata").write_text("{")
    with checkpoints.open_checkpoints(run) as saved:
        assert checkpoints.newest_meta(saved) == {}


def test_a_reader_touches_nothing(run):
    litter = run / "checkpoints" / "4.orbax-checkpoint-tmp"
    litter.mkdir()  # which the writer is about to rename
    with checkpoints.open_checkpoints(run, read_only=True) as saved:
        assert_is_state_at(3, checkpoints.restore(saved, like=state_at(0), sharding=replicated(scene_mesh())))
    with checkpoints.open_checkpoints(run, "best", read_only=True) as saved:
        assert checkpoints.restore(saved, like=state_at(0), sharding=replicated(scene_mesh())) is None
    assert litter.exists() and names(run) == {"checkpoints"}
    restored(run)  # the writer comes back
    assert not litter.exists()


def files(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoints" / "3").rglob("*") if path.is_file())


def test_t14_a_flipped_bit_in_any_file_is_noticed_or_harmless(run, capsys):
    """Either the step before is used, or what comes back is what was saved; each file, at its start, middle and end."""
    noticed = {}
    for path in files(run):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            found = restored(run)
            rejected = "checkpoint 3 rejected" in capsys.readouterr().err
            assert_is_state_at(2 if rejected else 3, found)
            assert rejected or found.meta.items() >= ABOUT.items()
            kind = path.parent.name if len(path.name) == 32 else path.relative_to(run / "checkpoints" / "3").as_posix()
            noticed[kind] = noticed.get(kind, False) or rejected
        path.write_bytes(whole)
    # The arrays are in state/d, found through the manifest. Harmless are the stamps of orbax, and what each process
    # wrote before it was merged into state/d.
    assert {kind for kind, was in noticed.items() if was} >= {"d", "meta/metadata", "state/manifest.ocdbt"}
    assert_is_state_at(3, restored(run))


def flip_bits(run: Path) -> str:
    for path in files(run):
        if path.parent.name == "d":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    return "3"


def delete_files(run: Path) -> str:
    for path in files(run):
        path.unlink()
    return "3"


def truncate_files(run: Path) -> str:
    for path in files(run):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "3"


def delete_state(run: Path) -> str:
    shutil.rmtree(run / "checkpoints" / "3" / "state")
    return "3"


def delete_meta(run: Path) -> str:
    shutil.rmtree(run / "checkpoints" / "3" / "meta")
    return "3"


def empty_step(run: Path) -> str:
    shutil.rmtree(run / "checkpoints" / "3")
    (run / "checkpoints" / "999").mkdir()
    return "999"


def foreign_step(run: Path) -> str:
    shutil.rmtree(run / "checkpoints" / "3")
    (run / "checkpoints" / "999").mkdir()
    (run / "checkpoints" / "999" / "model.pkl").write_bytes(b"\x80\x04K\x01.")
    return "999"


def copied_step(run: Path) -> str:
    shutil.rmtree(run / "checkpoints" / "3")
    shutil.copytree(run / "checkpoints" / "1", run / "checkpoints" / "999")
    return "999"


def other_arrays(run: Path) -> str:
    """Whole files, with their checksums, that are of another training."""
    with checkpoints.open_checkpoints(run.parent / "other") as saved:
        state = state_at(3)
        checkpoints.save(saved, state._replace(params=jax.tree.map(jnp.negative, state.params)), ABOUT)
        checkpoints.finish(saved)
    shutil.rmtree(run / "checkpoints" / "3" / "state")
    (run.parent / "other" / "checkpoints" / "3" / "state").rename(run / "checkpoints" / "3" / "state")
    return "3"


def change_meta(run: Path, **changes: object) -> str:
    path = run / "checkpoints" / "3" / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return "3"


def other_data(run: Path) -> str:
    return change_meta(run, data="abd")


def newer_format(run: Path) -> str:
    return change_meta(run, format=2, versions={"jaxmeta": "9.9", "jax": "1.0"})


def older_format(run: Path) -> str:
    return change_meta(run, format=0, versions={"jaxmeta": "0.0.1", "jax": "0.4.30"})


REASONS = {
    foreign_step: "",
    other_arrays: "its arrays differ from what was saved",
    copied_step: "it is of step 1",
    other_data: "its description differs from what was saved",
    newer_format: r"its format is 2, jaxmeta \S+ reads 1; it was written by jaxmeta 9\.9, jax 1\.0$",
    older_format: r"its format is 0, jaxmeta \S+ reads 1; it was written by jaxmeta 0\.0\.1, jax 0\.4\.30$",
}
DAMAGES = [
    flip_bits, delete_files, truncate_files, delete_state, delete_meta, empty_step, *REASONS
]  # fmt: skip


@pytest.mark.parametrize(
    "damage", DAMAGES, ids=[f"T{15 if 'format' in damage.__name__ else 14}-{damage.__name__}" for damage in DAMAGES]
)
def test_falls_back_to_the_newest_sound_step(run, damage, capsys):
    step = damage(run)
    assert_is_state_at(2, restored(run))
    told = capsys.readouterr().err
    assert told.startswith(f"warning: checkpoint {step} rejected: ")
    assert told.count("\n") == 1 and len(told) < 300
    assert re.search(REASONS.get(damage, ""), told)
    assert step in names(run / "checkpoints")  # a reader leaves it alone
    assert_is_state_at(2, restored(run, set_aside=True))
    assert names(run / "checkpoints") <= {"1", "2"} and names(run / "rejected") == {f"checkpoints-{step}"}


def test_t14_debug_tells_all_of_a_damage(run, capsys, monkeypatch):
    flip_bits(run)
    monkeypatch.setattr("sys.argv", ["train.py", "--debug"])
    assert_is_state_at(2, restored(run))
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and "tensorstore_spec" in told
    assert told.splitlines()[-1].startswith("warning: checkpoint 3 rejected: ")


OLDER = {"jaxmeta": "0.0.1", "jax": "0.4.30"}


@pytest.fixture
def older_run(tmp_path, monkeypatch) -> Path:
    now = soundness.versions()
    with monkeypatch.context() as patch, checkpoints.open_checkpoints(tmp_path) as saved:
        patch.setattr(soundness, "versions", lambda: now | OLDER)
        checkpoints.save(saved, state_at(3), ABOUT)
        checkpoints.finish(saved)
    return tmp_path


def test_t15_what_an_older_jax_wrote_comes_back(older_run, capsys):
    found = restored(older_run)
    assert_is_state_at(3, found)
    assert found.meta["versions"].items() >= OLDER.items()
    assert capsys.readouterr().err == ""


def test_t15_what_an_older_jax_wrote_otherwise_is_refused_with_both_versions(older_run):
    now = soundness.versions()
    here = f"here is jaxmeta {re.escape(now['jaxmeta'])}, jax {re.escape(now['jax'])}\\);"
    message = rf"wanted float32\[4\]; it was written by jaxmeta 0\.0\.1, jax 0\.4\.30, {here}"
    with pytest.raises(CheckpointError, match=message):
        restored(older_run, like=state_at(0, width=4))


def test_t14_files_that_are_no_steps_do_not_hinder(run):
    (run / "checkpoints" / "notes").mkdir()
    (run / "checkpoints" / "77").write_text("a file")
    assert_is_state_at(3, restored(run))


def test_t14_stops_where_no_step_is_sound(run):
    before = names(run / "checkpoints")
    message = r"no usable checkpoint .*bias is float32\[3\], wanted float32\[4\].*another --run"
    with pytest.raises(CheckpointError, match=message) as caught:
        restored(run, like=state_at(0, width=4), set_aside=True)
    assert caught.value.exit_code == 3
    assert names(run / "checkpoints") == before  # nothing is moved away, nothing starts from zero


def test_t14_refuses_another_dtype(run):
    like = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim else leaf, state_at(0))
    with pytest.raises(CheckpointError, match=r"is float32\[3\], wanted bfloat16\[3\]"):
        restored(run, like=like)


def test_t14_refuses_another_structure(run):
    like = state_at(0)._replace(params={"kernel": jnp.zeros((2, 3))})
    with pytest.raises(CheckpointError, match=r"bias is float32\[3\], wanted None"):
        restored(run, like=like)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_t2_a_state_that_is_not_finite_is_not_saved(run, bad):
    state = state_at(4)
    state.params["bias"] = state.params["bias"].at[1].set(bad)
    with checkpoints.open_checkpoints(run) as saved:
        with pytest.raises(DivergedError, match="params/bias is not finite at meta-step 4; that state was not saved"):
            checkpoints.save(saved, state, {})
    assert names(run / "checkpoints") == {"1", "2", "3"}
    assert_is_state_at(3, restored(run))


def test_t10_a_save_that_fails_surfaces_and_leaves_no_litter(run, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with checkpoints.open_checkpoints(run) as saved:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", full)
            patch.setattr("os.rename", full)
            patch.setattr("os.replace", full)
            with pytest.raises(StorageError, match=r"could not be written to .* the ones before it are intact"):
                checkpoints.save(saved, state_at(4), {})
                checkpoints.finish(saved)
        assert names(run / "checkpoints") == {"1", "2", "3"}
        checkpoints.save(saved, state_at(5), {})  # there is space again
        checkpoints.finish(saved)
    assert_is_state_at(5, restored(run))


def test_t19_processes_that_lose_each_other_are_no_full_disk(run, monkeypatch):
    def lost() -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: Barrier failed")

    with checkpoints.open_checkpoints(run) as saved:
        monkeypatch.setattr(saved, "wait_until_finished", lost)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Barrier failed"):
            checkpoints.finish(saved)


def test_t11_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(InputError, match=r"checkpoints cannot be opened: .*; give another --run"):
        with checkpoints.open_checkpoints(tmp_path):
            pass
