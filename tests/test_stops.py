"""Trainings and evaluations that are told to stop, hang, or meet another in their folder: rows T6, T7, T19 and T21."""

import os
import signal

import pytest
from commands import COMPILING, PATIENCE, STEPS, ended, metrics, same_end, steps

pytestmark = pytest.mark.slow


SIGNALS = {
    "loading": ("import jaxmeta.data.splits as m; wrap(m, 'load_split', after=lambda *_, **k: {do})", None),
    "compiling": (COMPILING, 2),
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
    _, stderr = process.communicate(timeout=PATIENCE)
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


def test_t19_a_stuck_step_is_ended_with_stacks(commands, whole, half):
    fault = "import jaxmeta.training as m; wrap(m, 'summarise', before=lambda d, i: d.step == 10 and time.sleep(100))"
    done = commands.train(half, fault=fault, step_timeout=7, **STEPS)
    assert done.returncode == 1
    assert "Timeout" in done.stderr and 'train.py", line' in done.stderr and "in train" in done.stderr
    assert steps(half)[-1] in (6, 8)
    ended(commands.train(half, step_timeout=PATIENCE, **STEPS), 0)
    same_end(half, whole)


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


def test_nobody_reads_the_output(commands, half):
    read, write = os.pipe()
    os.close(read)
    process = commands.start(commands.train_words(half, **STEPS), stdout=write)
    os.close(write)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "error: nobody reads the output any more; send it to a file"
    assert steps(half)[-1] >= 6
