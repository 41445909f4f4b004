"""What can end a run from outside: signals, another run in its folder, a step that never ends."""

import contextlib
import faulthandler
import fcntl
import functools
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from jaxmeta.checkpoints import Checkpoints
from jaxmeta.devices import is_main_process
from jaxmeta.errors import InputError, JaxmetaError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRun(JaxmetaError):
    """A signal ended the run after its state was saved; the exit code is a shell's, 128 + the signal's number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def stop_requests(latest: Checkpoints) -> Iterator[Callable[[int], int | None]]:
    """Gives a function of the step that returns the number of the signal which asks for an end, or None.

    Several processes stop at the same step: orbax tells it to all when one of them is sent SIGTERM, and handlers of our
    own would silence it.
    """
    if jax.process_count() > 1:
        # The processes agree on one of these numbers, so that none may be left out, as steps are.
        numbers = itertools.count()
        preempted = functools.lru_cache(1)(lambda step: latest.reached_preemption(next(numbers)))
        yield lambda step: signal.SIGTERM.value if preempted(step) else None
    else:
        with deferred_signals() as signal_number:
            yield lambda step: signal_number()


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Gives a function that returns the number of the SIGTERM or SIGINT that arrived, or None.

    A second signal ends the process at once, also while the main thread is in compiled code.
    """
    received: list[int] = []
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def watch() -> None:
        # The interpreter writes a signal's number here the moment it arrives; Python handlers would have to wait until
        # the main thread comes back from a compilation.
        for number in iter(lambda: os.read(read_end, 1), b""):
            if received:
                os._exit(128 + number[0])
            received.append(number[0])
            with contextlib.suppress(OSError):  # nobody may be reading any more
                print("stopping when the state is saved; a second signal stops at once", file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    wakeup_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    handlers_before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(write_end)


@contextmanager
def sole_writer(run: Path) -> Iterator[None]:
    """Makes a run's folder, and sure that no other run trains in it; the lock ends with the process in any case.

    Raises:
      InputError: another process holds the lock, or the folder cannot be written.
    """
    if not is_main_process():
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / ".lock").open("a")
    except OSError as error:
        raise InputError(f"--run {run} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{run} is in use by another process; wait for it, or give another --run") from error
        yield


@contextmanager
def watchdog(seconds: float) -> Iterator[Callable[[], None]]:
    """Gives a function to call at each sign of progress; too long without a call ends the process, with all stacks.

    Args:
      seconds: how long is too long; 0 for no watchdog.
    """

    def progress() -> None:
        if seconds:
            faulthandler.dump_traceback_later(seconds, exit=True)

    progress()
    try:
        yield progress
    finally:
        faulthandler.cancel_dump_traceback_later()
