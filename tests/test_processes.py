"""Several processes train as one: the same numbers, the same end."""

import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from commands import PATIENCE, Commands, metrics

pytestmark = pytest.mark.slow


def start_two(commands: Commands, run: Path, **flags: object) -> list[subprocess.Popen[str]]:
    """Starts two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"processes.coordinator": f"127.0.0.1:{port}", "processes.count": 2, "processes.heartbeat": 10}
    words = [
        commands.train_words(run, "--processes.join", **together | {"processes.index": index} | flags)
        for index in range(2)
    ]
    return [commands.start(of_process, num_devices=2) for of_process in words]


def wait_for_steps(run: Path, count: int) -> None:
    for _ in range(10 * PATIENCE):
        if (run / "metrics.jsonl").exists() and len(metrics(run)) >= count:
            return
        time.sleep(0.1)
    pytest.fail(f"{run} did not get to {count} lines of metrics")


def test_two_processes_do_what_one_does(commands, tmp_path):
    flags = {"outer.num-scenes": 3, "outer.num-steps": 8}
    # Each of the two reads its own scenes alone; the one has all on its devices.
    pair = start_two(commands, tmp_path / "two", **flags | {"data.residency": "host"})
    alone = commands.train(tmp_path / "one", num_devices=4, **flags)
    outputs = [process.communicate(timeout=PATIENCE) for process in pair]
    assert [alone.returncode, *(process.returncode for process in pair)] == [0, 0, 0], outputs
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two] == [2, 4, 6, 8]
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], rtol=1e-5)
    np.testing.assert_allclose(two[-1]["validation_psnr"], one[-1]["validation_psnr"], atol=1e-4)
    # Only the first process tells.
    assert "step 8/8" in outputs[0][0]
    assert "step" not in outputs[1][0]


def test_one_preempted_all_stop_at_the_same_step_and_continue(commands, tmp_path):
    run = tmp_path / "run"
    pair = start_two(commands, run, **{"outer.num-steps": 100_000})
    wait_for_steps(run, 3)
    pair[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=PATIENCE) for process in pair]
    assert [process.returncode for process in pair] == [143, 143], outputs
    step = metrics(run)[-1]["step"]
    for _, stderr in outputs:
        assert f"error: stopped at step {step}; the same command continues" in stderr
    assert (run / "checkpoints" / str(step)).is_dir()
    pair = start_two(commands, run, **{"outer.num-steps": step + 2})
    outputs = [process.communicate(timeout=PATIENCE) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert f"meta-steps {step} to {step + 2}" in outputs[0][0]


@pytest.mark.parametrize("victim", [0, 1])
def test_t19_one_killed_the_other_ends(commands, tmp_path, victim):
    run = tmp_path / "run"
    pair = start_two(commands, run, **{"outer.num-steps": 100_000})
    wait_for_steps(run, 3)
    pair[victim].kill()
    _, stderr = pair[1 - victim].communicate(timeout=PATIENCE)
    pair[victim].communicate()
    # Either it finds that the other does not answer, or jax does, which aborts it.
    if pair[1 - victim].returncode == 1:
        assert "error: the processes broke off (" in stderr
    else:
        assert pair[1 - victim].returncode == -signal.SIGABRT, stderr
        assert "Terminating process because the JAX distributed service detected fatal errors" in stderr
    assert "free some space" not in stderr  # the disk has nothing to do with it
    # A checkpoint that is whole is left, and one process goes on from it.
    step = metrics(run)[-1]["step"] + 2
    done = commands.train(run, num_devices=4, **{"outer.num-steps": step})
    assert done.returncode == 0, done.stderr
