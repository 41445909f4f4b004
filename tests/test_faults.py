"""Whole trainings that are damaged and misled: the exit code, what is told, and what is left on disk.

T1 to T22 are the rows of the project's table of faults; kills are in test_kills.py, signals in test_stops.py and full
disks in test_storage.py. Some faults come from outside; those that must meet a certain moment are planted there, in
the process itself.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import STEPS, STOP_AT_6, digests, ended, metrics, same_end, steps, write_data

from jaxmeta import checkpoints

pytestmark = pytest.mark.slow


def test_t12_another_config_is_told_field_by_field(commands, half):
    before = (half / "config.json").read_bytes()
    done = commands.train(half, seed=3, inner__num_steps=5, log_every=1, **STEPS)
    ended(done, 2, "holds a run with other settings (seed: 0 -> 3; inner.num_steps: 2 -> 5); give the old settings")
    assert (half / "config.json").read_bytes() == before and steps(half) == [2, 4, 6]


def test_t12_other_data_are_refused(commands, half, tmp_path):
    before = {name: (half / name).read_bytes() for name in ("config.json", "metrics.jsonl")}
    other = write_data(tmp_path / "other", seed=1)
    ended(commands.train(half, data__root=other, **STEPS), 2, "was trained on other data than")
    # Neither is the run bent towards the other data.
    assert {name: (half / name).read_bytes() for name in before} == before and steps(half) == [2, 4, 6]


def test_resume_never_and_must(commands, half, tmp_path):
    before = (half / "config.json").read_bytes()
    ended(commands.train(half, resume="never", **STEPS), 2, "holds a run at step 6; drop --resume never")
    assert (half / "config.json").read_bytes() == before and steps(half) == [2, 4, 6]
    new = tmp_path / "new"
    ended(commands.train(new, resume="must", **STEPS), 3, "no checkpoint to continue from; drop --resume must")
    assert not (new / "config.json").exists()


def params_at(run: Path, step: int) -> list[np.ndarray]:
    import jax

    with checkpoints.open_checkpoints(run, read_only=True) as saved:
        state = saved.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state["params"])]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_t13_the_devices_may_change(commands, tmp_path):
    ended(commands.train(tmp_path / "one", outer__num_steps=6), 0)
    for num_devices, until in ((8, 2), (1, 4), (4, 6)):
        done = commands.train(tmp_path / "many", num_devices=num_devices, outer__num_steps=until)
        ended(done, 0)
        assert f"{num_devices} x cpu, meta-steps {until - 2} to {until}" in done.stdout
    for many, one in zip(params_at(tmp_path / "many", 6), params_at(tmp_path / "one", 6), strict=True):
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-5)


def test_t14_damages_cost_a_checkpoint_and_a_line_each(commands, whole, half):
    (data,) = (half / "checkpoints" / "6" / "state" / "d").iterdir()
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    (data,) = (half / "checkpoints" / "4" / "state" / "d").iterdir()
    data.write_bytes(data.read_bytes()[:100])
    done = commands.train(half, **STEPS)
    ended(done, 0)
    first, second = done.stderr.splitlines()
    assert first.startswith("warning: checkpoint 6 rejected: ") and "checksum verification failed" in first
    assert second.startswith("warning: checkpoint 4 rejected: ") and len(first) < 300 and len(second) < 300
    assert "meta-steps 2 to 12" in done.stdout
    assert {path.name for path in (half / "rejected").iterdir()} == {"checkpoints-6", "checkpoints-4"}
    same_end(half, whole)


def test_t14_nothing_starts_from_zero_where_all_is_damaged(commands, half):
    for path in half.glob("checkpoints/*/meta/metadata"):
        path.write_text("")
    before = sorted(half.rglob("*")), (half / "metrics.jsonl").read_bytes()
    for _ in range(2):
        ended(commands.train(half, **STEPS), 3, "no usable checkpoint (checkpoint 6 rejected: ")
    assert (sorted(half.rglob("*")), (half / "metrics.jsonl").read_bytes()) == before
    ended(commands.evaluate(half), 3, "no usable checkpoint")


def test_t1_a_scene_that_diverges_is_left_out_and_named(commands, tmp_path):
    fault = """
import jaxmeta.data.splits as m
load = m.load_split
def load_broken(*args, **kwargs):
    split = load(*args, **kwargs)
    poses = split.views.poses.copy()
    poses[1:2, :, :3, 3] = 1e38
    return split._replace(views=split.views._replace(poses=poses))
m.load_split = load_broken
"""
    run = tmp_path / "run"
    ended(commands.train(run, fault=fault, **STEPS), 0)
    named = [scene for row in metrics(run) for scene in row["diverged"]]
    assert set(named) == {"cube1"} and len(named) == 8  # 12 steps of two scenes, of three
    assert all(np.isfinite(row["loss"]) for row in metrics(run)) and steps(run) == [8, 10, 12]


def test_t2_divergence_ends_the_run_with_a_report(commands, whole, tmp_path):
    run = tmp_path / "run"
    before = digests(whole, 12)
    done = commands.train(run, inner__step_size=1e30, outer__num_steps=40)
    ended(done, 4, "every scene diverged in the last 10 meta-steps, up to 10")
    report = json.loads((run / "crash" / "10.json").read_text())
    assert (report["step"], report["last_good_step"]) == (10, 0)
    assert set(report["scenes"][-1]) <= {"cube0", "cube1", "cube2"}
    assert [row["loss"] for row in metrics(run)] == [None] * 5
    assert all(np.isfinite(leaf).all() for leaf in params_at(run, steps(run)[-1]))
    assert digests(whole, 12) == before


def test_t2_a_run_that_is_too_short_for_that_does_not_end_well_either(commands, tmp_path):
    done = commands.train(tmp_path / "run", inner__step_size=1e30, outer__num_steps=4)
    ended(done, 4, "every scene diverged in the last 4 meta-steps, up to 4")


def test_t4_what_does_not_fit_is_refused_with_numbers(commands, tmp_path):
    fault = "import jaxmeta.devices as m; m.memory_limit = lambda: 1000"
    done = commands.train(tmp_path / "run", fault=fault, **STEPS)
    ended(
        done,
        5,
        "GiB, a device has 0.0 GiB; lower --outer.scenes-at-once (below its share of the batch) or --inner.num-rays",
    )
    assert steps(tmp_path / "run") == [] and not (tmp_path / "run" / "metrics.jsonl").exists()


OUT_OF_MEMORY = """
import jax
import jaxmeta.evaluation as m
make, made = m.make_score, []
def make_on_a_small_device(*args, **kwargs):
    made.append(args[0].keywords["rays_per_chunk"])
    def score_tasks(*arguments):
        if made[-1] > {fits}:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return make(*args, **kwargs)(*arguments)
    return score_tasks
m.make_score = make_on_a_small_device
"""


def test_t5_rendering_takes_fewer_rays_at_a_time(commands, half, tmp_path):
    ended(commands.evaluate(half, "--out", tmp_path / "usual"), 0)
    done = commands.evaluate(half, "--out", tmp_path / "small", fault=OUT_OF_MEMORY.format(fits=1024))
    assert done.returncode == 0, done.stderr
    warnings = [line.split("; ")[1] for line in done.stderr.splitlines() if "ran out of memory" in line]
    assert warnings == ["now 2048 rays at a time", "now 1024 rays at a time"]
    usual, small = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("usual", "small"))
    assert usual["views"] == small["views"]


def test_t5_there_is_a_floor(commands, half, tmp_path):
    done = commands.evaluate(half, "--out", tmp_path / "out", fault=OUT_OF_MEMORY.format(fits=255))
    ended(done, 5, "a device ran out of memory (RESOURCE_EXHAUSTED")
    assert "now 256 rays at a time" in done.stderr and "now 128" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_t16_one_compilation(commands, tmp_path):
    env = {"JAX_LOG_COMPILES": "1", "JAX_COMPILATION_CACHE_DIR": ""}
    done = commands.train(tmp_path / "run", env=env, data__residency="host", outer__num_steps=9)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Finished XLA compilation of jit(train_steps)") == 1
    assert done.stderr.count("Finished XLA compilation of jit(adapt_task") == 1
    assert done.stderr.count("Finished XLA compilation of jit(score_tasks") == 1


def test_t17_from_another_place_and_by_a_path_with_spaces(commands, whole, tmp_path):
    elsewhere = tmp_path / "anderswo mit Leerzeichen – ünïcode"
    elsewhere.mkdir()
    env = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "HOSTNAME": "elsewhere"}
    ended(commands.train(Path("läufe") / "ein lauf", cwd=elsewhere, env=env, fault=STOP_AT_6, **STEPS), 143)
    run = elsewhere / "läufe" / "ein lauf"
    ended(commands.train(run, cwd="/", **STEPS), 0)
    same_end(run, whole)
    ended(commands.evaluate(run), 0)


def test_t18_torn_metrics_are_mended(commands, whole, half):
    with (half / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "loss": 0.1, "ps\xff')
    ended(commands.train(half, **STEPS), 0)
    same_end(half, whole)


def test_t20_an_error_while_scenes_are_fetched_comes_out(commands, tmp_path):
    fault = """
import jaxmeta.feeding as m
def broken(*args, **kwargs): raise OSError(5, "Input/output error", "cube1.npy")
m.pad_batches = broken  # what the thread that sends the scenes calls first
"""
    done = commands.train(tmp_path / "run", fault=fault, data__residency="host", **STEPS)
    ended(done, 6, "Input/output error: 'cube1.npy'")  # and no thread hangs
    assert steps(tmp_path / "run") == []


def test_t22_nothing_to_evaluate(commands, half, tmp_path):
    ended(commands.evaluate(tmp_path / "missing"), 2, "missing/config.json cannot be read")
    assert not (tmp_path / "missing").exists()
    done = commands.evaluate(half, "--split", "none", "--out", tmp_path / "out")
    ended(done, 2, "none")
    shutil.rmtree(half / "checkpoints")
    ended(commands.evaluate(half), 3, "holds no checkpoint yet")


def test_debug_shows_where(commands, half):
    done = commands.train(half, "--debug", seed=3, **STEPS)
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback") and "check_run" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    ended(commands.train(half, "--debug", **STEPS), 0)  # debugging is no other training
