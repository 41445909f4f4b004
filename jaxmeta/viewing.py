"""Decides what a live viewer does next; knows no browser and no device.

A picture fills a window of any shape with n x n tiles, n a power of two. All tiles have the same number of pixels,
which need not be square, so one compiled program renders every picture and may be left between tiles. What a tile sees
is a linear map of the camera's axes, which `cameras.pixel_rays` takes as a pose.
"""

import re
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmeta.metalearning import Params

RESTING_SECONDS = 30.0
"""How long a picture may take when nothing moves."""
SUPPORT_SLOTS = 60
"""Support views are repeated up to this number: a multiple of 1 to 6, so that up to six weigh the same."""
MAX_SUPPORT = 6


class Camera(NamedTuple):
    """Where a browser looks from."""

    pose: Float[np.ndarray, "4 4"]
    """Camera to world, with OpenGL axes."""
    fov: float
    """From the window's lower to its upper edge, in radians."""
    aspect: float
    """The window's width over its height."""


class Start(NamedTuple):
    """Where a browser's camera begins, looking at the origin, and how far from there it may be."""

    pose: Float[np.ndarray, "4 4"]
    """With OpenGL axes."""
    fov: float
    """As of `Camera`."""
    nearest: float
    farthest: float


class Picture(NamedTuple):
    """What a browser shows."""

    camera: Camera
    side: int = 0
    """Tiles along each edge; 0 if it shows something else by now."""
    sharp: bool = False
    """Whether all samples along the rays were taken."""


def pose_from_opencv(wxyz: Float[np.ndarray, "4"], position: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
    """Returns a pose with OpenGL axes from one with OpenCV's: x right, y down, looks along z.

    Args:
      wxyz: the rotation from camera to world as a unit quaternion, the scalar first.
      position: of the camera in the world.
    """
    w, (x, y, z) = wxyz[0], wxyz[1:]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    pose = np.eye(4)
    pose[:3, :3] = (np.eye(3) + 2 * w * cross + 2 * cross @ cross) * [1, -1, -1]
    pose[:3, 3] = position
    return pose


def tile_pose(camera: Camera, row: int, column: int, side: int, *, height: int, width: int) -> Float[np.ndarray, "4 4"]:
    """Returns the pose that makes `pixel_rays`, with a focal length of `height / 2` pixels, see one tile of a window.

    Args:
      camera: of the window.
      row: of the tile, from the top.
      column: of the tile, from the left.
      side: tiles along each edge of the window.
      height: of a tile, in pixels.
      width: of a tile, in pixels.
    """
    top = np.tan(camera.fov / 2)
    right, up, backwards = camera.pose[:3, 0], camera.pose[:3, 1], camera.pose[:3, 2]
    centre = (
        top * camera.aspect * ((2 * column + 1) / side - 1) * right + top * (1 - (2 * row + 1) / side) * up - backwards
    )
    pose = camera.pose.copy()
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = (
        right * top * camera.aspect / side * height / width,
        up * top / side,
        -centre,
    )
    return pose


def moving_side(seconds_per_tile: float, seconds: float, finest: int) -> int:
    """Returns how many tiles along each edge a picture has that may take so many seconds: 1 at least.

    Args:
      seconds_per_tile: how long a tile takes.
      seconds: how long the picture may take.
      finest: the largest number of tiles along an edge, a power of two.
    """
    side = 1
    while 2 * side <= finest and (2 * side) ** 2 * seconds_per_tile <= seconds:
        side *= 2
    return side


def stale(pictures: Mapping[Hashable, Picture]) -> list[Hashable]:
    """Returns the browsers whose pictures show something else by now."""
    return [browser for browser, picture in pictures.items() if not picture.side]


def finer(pictures: Mapping[Hashable, Picture], seconds_per_tile: float, finest: int) -> tuple[Hashable, int] | None:
    """Returns whose picture to refine next, to how many tiles along each edge, when nothing moves.

    Args:
      pictures: by browser.
      seconds_per_tile: of a tile with all samples.
      finest: the largest number of tiles along an edge.
    """
    sides = {browser: picture.side * (1 + picture.sharp) for browser, picture in pictures.items()}
    browser = min(sides, key=lambda browser: sides[browser], default=None)
    if browser is None or sides[browser] > finest or sides[browser] ** 2 * seconds_per_tile > RESTING_SECONDS:
        return None
    return browser, sides[browser]


def looked(
    pictures: Mapping[Hashable, Picture], cameras: Mapping[Hashable, Camera | None], *, changed: bool
) -> dict[Hashable, Picture]:
    """Returns the pictures after cameras moved, came and went, and all of them stale if the field changed."""
    kept = {
        browser: picture._replace(side=0) if changed else picture
        for browser, picture in pictures.items()
        if browser not in cameras
    }
    return kept | {browser: Picture(camera) for browser, camera in cameras.items() if camera is not None}


class Choice(NamedTuple):
    """What is looked at."""

    scene: int
    support: tuple[int, ...] = (0,)
    shown: str = "learned"
    """Which initialisation."""


class Session(NamedTuple):
    """The adaptation of a scene from each initialisation, in step."""

    choice: Choice
    fits: Mapping[str, Params] = {}
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


def advanced(session: Session, fits: Mapping[str, Params], psnr: Mapping[str, float]) -> Session:
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
