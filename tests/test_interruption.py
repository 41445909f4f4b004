"""Signals wait until the state is saved, a folder has one writer, and what hangs is ended."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jaxmeta.errors import InputError
from jaxmeta.interruption import InterruptedRun, deferred_signals, sole_writer, watchdog

PROJECT = Path(__file__).parents[1]


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits(number, capfd):
    before = signal.getsignal(number)
    with deferred_signals() as received:
        assert received() is None
        os.kill(os.getpid(), number)
        wait_for(received)
        assert received() == number
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before
    assert "stopping when the state is saved; a second signal stops at once" in capfd.readouterr().err


def test_signals_come_back_after_the_block():
    for _ in range(3):
        with deferred_signals() as received:
            assert received() is None
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


@contextmanager
def program(code: str) -> Iterator[subprocess.Popen[str]]:
    """Runs code, and ends it with the block."""
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


# The main thread holds out in compiled code, as in a compilation: no Python handler runs.
IN_COMPILED_CODE = """
import signal, threading
from jaxmeta.interruption import deferred_signals
with deferred_signals() as received:
    print("ready", flush=True)
    (lambda lock: (lock.acquire(), lock.acquire()))(__import__("_thread").allocate_lock())
"""


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
@pytest.mark.parametrize("stderr_open", [True, False])
def test_t6_the_second_signal_ends_the_process_at_once(first, second, stderr_open):
    with program(IN_COMPILED_CODE) as process:
        assert process.stdout.readline() == "ready\n"
        if not stderr_open:
            process.stderr.close()
        process.send_signal(first)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(60) == 128 + second


def test_an_interrupted_run_ends_as_in_a_shell():
    assert [InterruptedRun("", number).exit_code for number in (signal.SIGINT, signal.SIGTERM)] == [130, 143]


def test_t21_a_folder_has_one_writer(tmp_path):
    run = tmp_path / "new" / "run"
    with sole_writer(run):
        with pytest.raises(InputError, match=r"run is in use by another process; wait for it, or give another --run"):
            with sole_writer(run):
                pass
    with sole_writer(run):  # it is free again
        pass


def test_t21_a_lock_ends_with_its_process(tmp_path):
    code = f"""
import time
from pathlib import Path
from jaxmeta.interruption import sole_writer
with sole_writer(Path({str(tmp_path)!r})):
    print("ready", flush=True)
    time.sleep(60)
"""
    with program(code) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match="in use"):
            with sole_writer(tmp_path):
                pass
        process.kill()
    with sole_writer(tmp_path), (tmp_path / ".lock").open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("place", ["file/run", "/proc/nowhere/run"])
def test_t11_a_folder_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--run .*/run cannot be written: "):
        with sole_writer(tmp_path / place):
            pass


STUCK = """
import time
from jaxmeta.interruption import watchdog
def hangs():
    time.sleep(60)
with watchdog({seconds}) as alive:
    for _ in range(4):
        time.sleep(0.6)
        alive()
    print("alive", flush=True)
    {then}
"""


def test_t19_what_hangs_is_ended_with_all_stacks():
    with program(STUCK.format(seconds=2.0, then="hangs()")) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert stdout == "alive\n"  # progress had put it off
    assert "Timeout" in stderr and "in hangs" in stderr


@pytest.mark.parametrize("seconds", [0, 2.0])
def test_t19_what_does_not_hang_is_left_alone(seconds):
    code = STUCK.format(seconds=seconds, then="pass") + "time.sleep(2.2)"
    with program(code) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout, stderr) == (0, "alive\n", "")


def test_the_watchdog_of_this_process_is_called_off():
    with watchdog(0.3):
        pass
    time.sleep(0.5)
