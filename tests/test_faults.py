"""Whole trainings that are killed, starved and damaged: the exit code, what is told, and what is left on disk.

T1 to T22 are the rows of the project's table of faults. Some faults come from outside, at a random moment; those that
must meet a certain moment are planted there, in the process itself.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import Commands, digests, ended, metrics, same_end, steps, timeless, write_data

from jaxmeta import checkpoints

pytestmark = pytest.mark.slow
STEPS = {"outer__num_steps": 12}
STOP_AT_6 = """
import jaxmeta.training as m
wrap(m, 'summarise', before=lambda done, ids: done.step == 6 and send(signal.SIGTERM))
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Commands:
    return Commands(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory) -> Path:
    """A training that nothing happens to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ended(commands.train(run, **STEPS), 0)
    return run


@pytest.fixture(scope="module")
def halfway(commands, whole, tmp_path_factory) -> Path:
    """Stopped at step 6; its best state is that of the end, as if it had been there before and lost its checkpoints."""
    run = Path(shutil.copytree(whole, tmp_path_factory.mktemp("halfway") / "run"))
    shutil.rmtree(run / "checkpoints")
    ended(commands.train(run, fault=STOP_AT_6, **STEPS), 143)
    return run


@pytest.fixture
def half(halfway, tmp_path) -> Path:
    return Path(shutil.copytree(halfway, tmp_path / "half"))


def test_t8_twenty_kills_at_random_moments(commands, tmp_path):
    much = {"outer__num_steps": 240}
    ended(commands.train(tmp_path / "whole", **much), 0)
    moments = random.Random(0)  # noqa: S311
    reached = []
    for kill in range(20):
        process = commands.start(commands.train_words(tmp_path / "killed", **much))
        if kill % 3:  # while it trains and saves, else while it starts, loads, restores and compiles
            while not process.stdout.readline().startswith("step "):
                assert process.poll() is None, process.stderr.read()
            time.sleep(moments.uniform(0, 0.4))
        else:
            time.sleep(moments.uniform(0, 3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        found = tmp_path / "killed" / "checkpoints"
        reached.append(max((int(p.name) for p in found.glob("*") if p.name.isdigit()), default=0))
    assert reached == sorted(reached) and 0 < reached[-1] < 240
    ended(commands.train(tmp_path / "killed", **much), 0)
    same_end(tmp_path / "killed", tmp_path / "whole")


KILLS = {
    "config written": "import jaxmeta.runfiles as m; wrap(m, 'claim_run', after=lambda *_: {do})",
    "compiling": "import jaxmeta.training as m; wrap(m, 'compile_within_memory', before=lambda *_: {do})",
    "best saved, metrics not": "import jaxmeta.keeping as m; wrap(m.Keeper, 'keep_if_best', after=lambda *_: {do})",
    "metrics written, state not": "import jaxmeta.keeping as m; wrap(m.Keeper, 'keep', before=lambda *_, **k: {do})",
    "save begun": "import jaxmeta.checkpoints as m; wrap(m, 'save', after=lambda c, s, _: s.step == 8 and {do})",
    "save done": "import jaxmeta.checkpoints as m; wrap(m, 'finish', after=lambda c: 10 in c.all_steps() and {do})",
}


def test_t8_t9_kills_between_the_writes_of_a_step(commands, whole, tmp_path):
    run = tmp_path / "run"
    for fault in KILLS.values():
        done = commands.train(run, fault=fault.format(do="send(signal.SIGKILL)"), **STEPS)
        assert done.returncode == -signal.SIGKILL, done.stderr
    ended(commands.train(run, **STEPS), 0)
    same_end(run, whole)


SIGNALS = {
    "loading": ("import jaxmeta.data.splits as m; wrap(m, 'load_split', after=lambda *_, **k: {do})", None),
    "compiling": (KILLS["compiling"], 2),
    "validating": ("import jaxmeta.evaluation as m; wrap(m, 'fit_in_batches', before=lambda *_, **k: {do})", 4),
    "saving": ("import jaxmeta.checkpoints as m; wrap(m, 'save', after=lambda c, s, _: s.step == 6 and {do})", 8),
    "in the loop": (
        "import jaxmeta.training as m; wrap(m, 'summarise', before=lambda d, i: d.step == 10 and {do})",
        10,
    ),
}


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
    ids=["T6-SIGTERM", "T7-SIGINT"],
)
def test_signals_save_and_stop(commands, whole, tmp_path, number, code, name):
    run = tmp_path / "run"
    for fault, step in SIGNALS.values():
        do = f"send(signal.{number.name})"
        done = commands.train(run, fault=fault.format(do=do), **STEPS)
        if step is None:
            ended(done, code, f"{name}; nothing was left half written")
            assert not run.exists()
            continue
        ended(done, code, f"stopped at step {step}; the same command continues")
        assert "a second signal stops at once" in done.stderr
        assert steps(run)[-1] == metrics(run)[-1]["step"] == step
    ended(commands.train(run, **STEPS), 0)
    same_end(run, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_t6_t7_a_signal_from_outside_while_it_trains(commands, tmp_path, number):
    run = tmp_path / "run"
    process = commands.start(commands.train_words(run, outer__num_steps=20_000, checkpoint_every=20_000))
    while not process.stdout.readline().startswith("step "):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = metrics(run)[-1]["step"]
    assert f"error: stopped at step {step}; " in stderr
    assert steps(run) == [step]


def test_t6_two_signals_stop_at_once(commands, half):
    fault = (
        SIGNALS["in the loop"][0]
        .replace("d.step == 10", "d.step == 8")
        .format(do="[send(signal.SIGTERM), time.sleep(0.3), send(signal.SIGTERM), time.sleep(60)]")
    )
    done = commands.train(half, fault=fault, **STEPS)
    assert done.returncode == 143
    assert "stopping when the state is saved" in done.stderr
    assert steps(half) == [2, 4, 6]  # without the state of step 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_t6_t7_evaluation_stops(commands, half, tmp_path, number):
    fault = f"import jaxmeta.evaluation as m; wrap(m, 'fit_in_batches', before=lambda *_, **k: send({int(number)}))"
    done = commands.evaluate(half, "--out", tmp_path / "out", fault=fault)
    ended(done, 128 + number, "nothing was left half written")
    assert list((tmp_path / "out").iterdir()) == []


# Lines of metrics fit on the disk, arrays do not.
ONLY_SMALL_FILES = "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))"


WIDE = {"field__width": 48}


@pytest.fixture(scope="module")
def wide(commands, tmp_path_factory) -> Path:
    """Its arrays take more than 4000 bytes."""
    run = tmp_path_factory.mktemp("wide") / "run"
    ended(commands.train(run, **STEPS, **WIDE), 0)
    return run


@pytest.fixture(scope="module")
def halfway_wide(commands, wide, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("halfway_wide") / "run"
    ended(commands.train(run, outer__num_steps=4, **WIDE), 0)
    return run


@pytest.fixture
def half_wide(halfway_wide, tmp_path) -> Path:
    return Path(shutil.copytree(halfway_wide, tmp_path / "half"))


def test_t10_disk_full_until_the_end(commands, wide, half_wide):
    process = commands.start(commands.train_words(half_wide, **STEPS, **WIDE), fault=ONLY_SMALL_FILES)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 6
    assert "warning: a checkpoint could not be written" in stderr and "training goes on" in stderr
    assert "step 8/12" in stdout  # it did
    told = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "the ones before it are intact; free some space and run the same command" in told[0]
    assert "Traceback" not in stderr
    assert steps(half_wide) == [2, 4]  # no litter
    ended(commands.train(half_wide, **STEPS, **WIDE), 0)  # there is space again
    assert digests(half_wide, 12) == digests(wide, 12) and timeless(half_wide) == timeless(wide)


def test_t10_disk_full_for_the_last_save_alone(commands, half_wide):
    process = commands.start(commands.train_words(half_wide, outer__num_steps=6, **WIDE), fault=ONLY_SMALL_FILES)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 6 and "could not be written" in stderr
    assert steps(half_wide) == [2, 4]


def test_t10_disk_full_for_a_while(commands, wide, half_wide):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))"
    fault = (
        f"import jaxmeta.training as m; wrap(m, 'summarise', before=lambda d, i: d.step == 6 and "
        f"{limit.format(4000)} or d.step == 10 and {limit.format('resource.RLIM_INFINITY')})"
    )
    done = commands.train(half_wide, fault=fault, **STEPS, **WIDE)
    assert done.returncode == 0, done.stderr
    assert "warning: a checkpoint could not be written" in done.stderr and "error: " not in done.stderr
    assert digests(half_wide, 12) == digests(wide, 12) and timeless(half_wide) == timeless(wide)
    assert not [path for path in half_wide.rglob("*tmp*")]


@pytest.mark.parametrize("place", ["file/run", "/proc/nowhere/run"])
def test_t11_a_place_that_cannot_be_written(commands, tmp_path, place):
    (tmp_path / "file").write_text("")
    done = commands.train(tmp_path / place, **STEPS)
    ended(done, 2, "cannot be written")
    assert done.stdout == ""  # before anything is compiled
    assert (tmp_path / "file").read_text() == ""


def test_t11_results_that_cannot_be_written(commands, half, tmp_path):
    (tmp_path / "file").write_text("")
    done = commands.evaluate(half, "--out", tmp_path / "file" / "out")
    ended(done, 2, "cannot be written")
    assert done.stdout == ""


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


def test_t14_a_flipped_bit_costs_a_checkpoint_and_nothing_else(commands, whole, half):
    (data,) = (half / "checkpoints" / "6" / "state" / "d").iterdir()
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    done = commands.train(half, **STEPS)
    ended(done, 0)
    assert "warning: checkpoint 6 rejected: " in done.stderr and "meta-steps 4 to 12" in done.stdout
    assert [path.name for path in (half / "rejected").iterdir()] == ["checkpoints-6"]
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


def test_t4_what_does_not_fit_is_refused_with_numbers(commands, tmp_path):
    fault = "import jaxmeta.devices as m; m.memory_limit = lambda: 1000"
    done = commands.train(tmp_path / "run", fault=fault, **STEPS)
    ended(done, 5, "GiB, a device has 0.0 GiB; lower --outer.num-scenes or --inner.num-rays")
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


def test_t19_a_stuck_step_is_ended_with_stacks(commands, whole, half):
    fault = "import jaxmeta.training as m; wrap(m, 'summarise', before=lambda d, i: d.step == 10 and time.sleep(100))"
    done = commands.train(half, fault=fault, step_timeout=7, **STEPS)
    assert done.returncode == 1
    assert "Timeout" in done.stderr and 'train.py", line' in done.stderr and "in train" in done.stderr
    assert steps(half)[-1] in (6, 8)
    ended(commands.train(half, step_timeout=60, **STEPS), 0)
    same_end(half, whole)


def test_t20_an_error_while_scenes_are_fetched_comes_out(commands, tmp_path):
    fault = """
import jaxmeta.feeding as m
def broken(*args, **kwargs): raise OSError(5, "Input/output error", "cube1.npy")
wrap(m, "made_ahead", before=lambda *_: setattr(m.np, "unique", broken))
"""
    began = time.monotonic()
    done = commands.train(tmp_path / "run", fault=fault, data__residency="host", **STEPS)
    ended(done, 6, "Input/output error: 'cube1.npy'")
    assert time.monotonic() - began < 60
    assert steps(tmp_path / "run") == []


def test_t21_a_second_run_is_refused_the_folder(commands, half):
    fault = "import jaxmeta.training as m; wrap(m, 'summarise', before=lambda *_: [print('in'), time.sleep(99)])"
    first = commands.start(commands.train_words(half, **STEPS), fault=fault, env={"PYTHONUNBUFFERED": "1"})
    try:
        while first.stdout.readline() != "in\n":
            assert first.poll() is None, first.stderr.read()
        before = sorted(half.rglob("*"))
        ended(commands.train(half, **STEPS), 2, "is in use by another process")
        assert sorted(half.rglob("*")) == before
    finally:
        first.kill()
        first.communicate()
    ended(commands.train(half, **STEPS), 0)  # the lock went with its holder


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


def test_nobody_reads_the_output(commands, half):
    read, write = os.pipe()
    os.close(read)
    process = commands.start(commands.train_words(half, **STEPS), stdout=write)
    os.close(write)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "error: nobody reads the output any more; send it to a file"
    assert steps(half)[-1] >= 6
