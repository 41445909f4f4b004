"""What a live viewer adapts, and how browsers tell it; knows no browser and no device."""

import re
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmeta.metalearning import Params
from jaxmeta.viewer.pictures import Camera

SUPPORT_SLOTS = 60
"""Support views are repeated up to this number: a multiple of 1 to 6, so that up to six weigh the same."""
MAX_SUPPORT = 6


class Choice(NamedTuple):
    """What is looked at."""

    scene: int
    support: tuple[int, ...] = (0,)
    shown: str = "learned"
    """Which initialisation."""


class Fit(NamedTuple):
    """How far the inner loop came from one initialisation."""

    params: Params
    opt_state: Any
    """Of the inner optimiser."""


class Session(NamedTuple):
    """The adaptation of a scene from each initialisation, in step."""

    choice: Choice
    fits: Mapping[str, Fit] = {}
    """By initialisation; none before the first scores."""
    psnr: Mapping[str, tuple[float, ...]] = {}
    """By initialisation, after 0, 1, 2, .. steps."""
    goal: int = 0
    """The number of steps after which to rest."""

    @property
    def step(self) -> int:
        """How many steps were done."""
        return max((len(values) - 1 for values in self.psnr.values()), default=0)


def choose(session: Session, **changes: Any) -> Session:
    """Returns the session with another choice; another scene or other support views begin anew."""
    choice = session.choice._replace(**changes)
    same = (choice.scene, choice.support) == (session.choice.scene, session.choice.support)
    return session._replace(choice=choice) if same else Session(choice)


def adapt(session: Session, steps: int) -> Session:
    """Returns the session with so many steps to go."""
    return session._replace(goal=session.step + steps)


def pause(session: Session) -> Session:
    """Returns the session at rest."""
    return session._replace(goal=session.step)


def reset(session: Session) -> Session:
    """Returns the session at its beginning."""
    return Session(session.choice)


def advanced(session: Session, fits: Mapping[str, Fit], psnr: Mapping[str, float]) -> Session:
    """Returns the session with the parameters and scores that a step, or the beginning, led to."""
    curves = {name: (*session.psnr.get(name, ()), value) for name, value in psnr.items()}
    return session._replace(fits=fits, psnr=curves)


def parse_support(text: str, num_views: int) -> tuple[int, ...]:
    """Returns the numbers of views in a text, each once, in order.

    Args:
      text: numbers, and anything between them.
      num_views: of the scene.

    Raises:
      ValueError: what is wrong, in words.
    """
    numbers = tuple(sorted({int(word) for word in re.findall(r"\d+", text)}))
    if not 1 <= len(numbers) <= min(MAX_SUPPORT, num_views - 1):
        raise ValueError(f"give 1 to {min(MAX_SUPPORT, num_views - 1)} support views")
    if numbers[-1] >= num_views:
        raise ValueError(f"views are numbered from 0 to {num_views - 1}")
    return numbers


def held_out(support: tuple[int, ...], num_views: int, count: int) -> tuple[int, ...]:
    """Returns the numbers of `count` views, spread over those that are not support; some twice where they are few."""
    others = [view for view in range(num_views) if view not in support]
    return tuple(others[int(place)] for place in np.linspace(0, len(others) - 1, count).round())


class Inbox:
    """What browsers asked for and the viewer has not done yet; any thread may post, one takes."""

    def __init__(self):
        self._changed = threading.Condition()
        self._transitions: list[Callable[[Session], Session]] = []
        self._cameras: dict[Hashable, Camera | None] = {}

    def change(self, transition: Callable[[Session], Session]) -> None:
        """Posts a change of the session."""
        with self._changed:
            self._transitions.append(transition)
            self._changed.notify()

    def look(self, browser: Hashable, camera: Camera | None) -> None:
        """Posts where a browser looks from, in place of what it posted before; None when it has gone."""
        with self._changed:
            self._cameras[browser] = camera
            self._changed.notify()

    def waiting(self) -> bool:
        """Returns whether anything is there."""
        return bool(self._transitions or self._cameras)

    def take(self, timeout: float | None) -> tuple[list[Callable[[Session], Session]], dict[Hashable, Camera | None]]:
        """Returns all that is there; waits for something for so many seconds, or for ever."""
        with self._changed:
            self._changed.wait_for(self.waiting, timeout)
            taken = self._transitions, self._cameras
            self._transitions, self._cameras = [], {}
        return taken
