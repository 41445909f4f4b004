"""Failures that a user can mend, each with the exit code of the command that it ends."""

import sys
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


class StorageError(JaxmetaError):
    """A disk is full or cannot be written."""

    exit_code = 6


def run_command(main: Callable[[], None]) -> NoReturn:
    """Runs an entry point; a JaxmetaError ends it with one line on stderr and the error's exit code."""
    try:
        main()
    except JaxmetaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)
