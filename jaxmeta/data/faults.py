"""Gathers what is wrong with a scene, so that all of it can be told and not only the first thing."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxmeta.errors import InputError


class FaultsError(InputError):
    """One or more things that are wrong with a scene; as text it is the first."""

    def __init__(self, faults: Sequence[str]):
        super().__init__(faults[0])
        self.faults = tuple(dict.fromkeys(faults))

    def __reduce__(self) -> tuple[type["FaultsError"], tuple[tuple[str, ...]]]:
        """Returns how another process makes it again."""
        return FaultsError, (self.faults,)


def gather(*reads: Callable[[], Any]) -> list[Any]:
    """Calls each, and returns what they give.

    Raises:
      FaultsError: some of them raised InputError; holds what all of these told.
    """
    given, faults = [], []
    for read in reads:
        try:
            given.append(read())
        except InputError as error:
            faults += faults_of(error)
    if faults:
        raise FaultsError(faults)
    return given


def faults_of(error: InputError) -> tuple[str, ...]:
    """Returns all that an error tells."""
    return error.faults if isinstance(error, FaultsError) else (str(error),)
