"""Failures that a user can mend, each with the exit code of the command that it ends."""

import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn


class JaxmetaError(Exception):
    """A failure told to the user in one line: what, where, how to mend."""

    exit_code = 1


class InputError(JaxmetaError):
    """A flag, a config or a data file is not what it should be."""

    exit_code = 2


class CheckpointError(JaxmetaError):
    """No checkpoint of a run can be used."""

    exit_code = 3


class DivergedError(JaxmetaError):
    """Training stopped because its numbers are no longer finite."""

    exit_code = 4


class OutOfMemoryError(JaxmetaError):
    """A device has too little memory."""

    exit_code = 5


class StorageError(JaxmetaError):
    """A disk is full or cannot be written."""

    exit_code = 6


_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def run_command(main: Callable[[], None]) -> NoReturn:
    """Runs an entry point; an error ends it with one line on stderr and its exit code.

    With `--debug` on the command line, the traceback comes first. SIGINT ends it with 130 and SIGTERM with 143.
    """
    signal.signal(signal.SIGTERM, _end)
    if "--debug" not in sys.argv:
        # What fails in orbax's threads is raised again where its result is wanted.
        threading.excepthook = sys.unraisablehook = lambda _: None
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        main()
        sys.exit(0)
    except (KeyboardInterrupt, _Terminated) as stopped:
        number = signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM
        _tell(f"{'interrupted' if number == signal.SIGINT else 'terminated'}; nothing was left half written")
        os._exit(128 + number)  # while XLA still computes, the end of the interpreter would crash
    except JaxmetaError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:
        first_line = reason(error)
        if isinstance(error, BrokenPipeError):
            _fail("nobody reads the output any more; send it to a file", JaxmetaError.exit_code)
        if isinstance(error, OSError) and error.errno in _STORAGE:
            _fail(f"a file could not be written ({first_line}); free some space", StorageError.exit_code)
        if "RESOURCE_EXHAUSTED" in str(error):
            advice = "lower --outer.scenes-at-once, --inner.num-rays or --scenes-at-once"
            _fail(f"a device ran out of memory ({first_line}); {advice}", OutOfMemoryError.exit_code)
        if type(error).__name__ == "JaxRuntimeError" and "--processes.join" in sys.argv:
            _tell(f"the processes broke off ({first_line}); the same command in each of them continues the run")
            os._exit(JaxmetaError.exit_code)  # jax would wait for the others at the exit of the interpreter
        _fail(f"unexpected: {type(error).__name__}: {first_line}; --debug shows where", JaxmetaError.exit_code)


def reason(error: Exception) -> str:
    """Returns the first line of an error; of the long ones of tensorstore the kind and the innermost cause."""
    line = (str(error) or type(error).__name__).splitlines()[0].split(" [tensorstore_spec=")[0]
    outer, nested, cause = line.rpartition(": Error ")
    return f"{outer.split(':')[0]}: {cause}" if nested else line


def show_if_debugging(error: Exception) -> None:
    """Prints where an error that does not end the command came from, with `--debug` on the command line."""
    if "--debug" in sys.argv:
        traceback.print_exception(error)


def _fail(message: str, exit_code: int) -> NoReturn:
    _tell(message)
    sys.exit(exit_code)


def _tell(message: str) -> None:
    try:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        sys.stdout.flush()
    except OSError:
        # Nobody reads; another attempt at the end of the interpreter would spoil the exit code.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Terminated(BaseException):
    """SIGTERM has come."""


def _end(_number: int, _frame: object) -> NoReturn:
    raise _Terminated
