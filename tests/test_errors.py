"""How a command ends: one line, and a code that says of which kind the failure is."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from jaxmeta import errors
from jaxmeta.data.faults import FaultsError
from jaxmeta.errors import run_command

PROJECT = Path(__file__).parents[1]
ENDS = {
    "bad input": (errors.InputError("seed: 0 -> 3"), 2, "error: seed: 0 -> 3"),
    "T14 no usable checkpoint": (errors.CheckpointError("none"), 3, "error: none"),
    "T2 diverged": (errors.DivergedError("at 14"), 4, "error: at 14"),
    "T4 does not fit": (errors.OutOfMemoryError("needs 3 GiB"), 5, "error: needs 3 GiB"),
    "T10 disk full": (errors.StorageError("no checkpoint"), 6, "error: no checkpoint"),
    "T10 disk full elsewhere": (
        OSError(errno.ENOSPC, "No space left on device", "psnr.png"),
        6,
        "error: a file could not be written ([Errno 28] No space left on device: 'psnr.png'); free some space",
    ),
    "T4 device out of memory": (
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 bytes.\nmore"),
        5,
        "error: a device ran out of memory (RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 bytes.); "
        "lower --outer.scenes-at-once, --inner.num-rays or --scenes-at-once",
    ),
    "unexpected": (ValueError("this\nand that"), 1, "error: unexpected: ValueError: this; --debug shows where"),
    "unexpected and silent": (KeyError(), 1, "error: unexpected: KeyError: KeyError; --debug shows where"),
    "T7 interrupted": (KeyboardInterrupt(), 130, "error: interrupted; nothing was left half written"),
    "nobody reads": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "error: nobody reads the output any more; "),
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(os, "_exit", sys.exit)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def ends(error: BaseException | None) -> int:
    def main() -> None:
        if error:
            raise error

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    return caught.value.code


@pytest.mark.parametrize(("error", "code", "message"), ENDS.values(), ids=ENDS.keys())
def test_each_kind_has_its_code_and_line(error, code, message, capsys):
    assert ends(error) == code
    told = capsys.readouterr().err
    assert told.startswith(message) and told.count("\n") == 1


def test_success_is_silent(capsys):
    assert ends(None) == 0
    assert capsys.readouterr() == ("", "")


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--debug"])
    assert ends(errors.InputError("bad")) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and "in main" in told and told.endswith("error: bad\n")


def test_threads_fail_silently_as_their_errors_come_back(capsys, monkeypatch):
    def main() -> None:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    for arguments, shown in ((["train.py"], False), (["train.py", "--debug"], True)):
        told: list[str] = []
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setattr(threading, "excepthook", lambda _, told=told: told.append("shown"))
        with pytest.raises(SystemExit):
            run_command(main)
        assert bool(told) == shown


def run(code: str, **kwargs) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", f"from jaxmeta.errors import *\nimport os, time, signal\n{code}"]
    return subprocess.Popen(words, cwd=PROJECT, text=True, env=os.environ | {"PYTHONUNBUFFERED": ""}, **kwargs)


def test_t6_sigterm_before_there_is_anything_to_save():
    code = "def main():\n os.kill(os.getpid(), signal.SIGTERM)\n time.sleep(60)\nrun_command(main)"
    with run(code, stderr=subprocess.PIPE) as process:
        assert process.communicate(timeout=120)[1] == "error: terminated; nothing was left half written\n"
    assert process.returncode == 143


@pytest.mark.parametrize(("flag", "waits"), [("--processes.join", False), ("--no-processes.join", True)])
def test_t19_a_process_that_lost_the_others_does_not_wait_for_them(flag, waits):
    code = f"sys.argv.append({flag!r})\nclass JaxRuntimeError(RuntimeError): pass\n"
    code += "atexit.register(lambda: print('waits for the others'))\n"  # as jax does
    code += "def main():\n print('step 2')\n raise JaxRuntimeError('UNKNOWN: Gloo AllGather failed')\nrun_command(main)"
    with run(f"import atexit, sys\n{code}", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (1, "step 2\nwaits for the others\n" if waits else "step 2\n")
    broke_off = "the processes broke off (UNKNOWN: Gloo AllGather failed); the same command in each of them continues"
    unexpected = "unexpected: JaxRuntimeError: UNKNOWN: Gloo AllGather failed; --debug"
    assert stderr.startswith(f"error: {unexpected if waits else broke_off}") and stderr.count("\n") == 1


def test_a_long_reason_is_its_kind_and_its_innermost_cause():
    inner = "Error reading x: Error decoding b-tree node: CRC-32C checksum verification failed: expected=2, actual=3"
    told = errors.reason(
        ValueError(f"DATA_LOSS: Error opening \"zarr\" driver: {inner} [tensorstore_spec='{{}}']\nmore")
    )
    assert told == "DATA_LOSS: decoding b-tree node: CRC-32C checksum verification failed: expected=2, actual=3"
    assert errors.reason(ValueError("Errors: 3\nmore")) == "Errors: 3"


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_the_code_is_right_though_nobody_reads(streams):
    # Both ends of a pipe of which the reader is gone.
    code = "def main():\n print('x', flush=False)\n raise StorageError('disk full')\nrun_command(main)"
    read, write = os.pipe()
    os.close(read)
    others = {name: subprocess.DEVNULL for name in ("stdout", "stderr")}
    with run(code, **others | {name: write for name in streams}) as process:
        os.close(write)
        assert process.wait(120) == 6


def test_the_faults_of_a_scene_survive_the_way_from_another_process():
    back = pickle.loads(pickle.dumps(FaultsError(["no such file", "no pose"])))  # noqa: S301  # made here
    assert (str(back), back.faults) == ("no such file", ("no such file", "no pose"))
