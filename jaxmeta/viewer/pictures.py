"""Decides from where and how finely a browser's picture is rendered; knows no browser and no device.

A picture fills a window of any shape with n x n tiles, n a power of two. All tiles have the same number of pixels,
which need not be square, so one compiled program renders every picture and may be left between tiles. What a tile sees
is a linear map of the camera's axes, which `cameras.pixel_rays` takes as a pose.
"""

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESTING_SECONDS = 30.0
"""How long a picture may take when nothing moves."""


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
