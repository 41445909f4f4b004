"""Turns a posed pinhole camera into rays.

Poses are camera-to-world matrices with OpenGL axes: x right, y up, the camera looks along -z. Directions have unit
length, so every distance along a ray is Euclidean.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8


class Rays(NamedTuple):
    """Half-lines in the scene's frame; directions have unit length."""

    origins: Float[Array, "*rays 3"]
    directions: Float[Array, "*rays 3"]


class Views(NamedTuple):
    """Posed images of scenes, kept as bytes; the leading axes are the same in all three.

    NumPy arrays on the host, jax arrays on a device.
    """

    images: UInt8[Any, "*scenes views height width 4"]
    """Red, green, blue and (straight) alpha."""
    poses: Float[Any, "*scenes views 4 4"]
    """Camera to world."""
    focal: Float[Any, "*scenes"]
    """In pixels, one for all views of a scene."""


class View(NamedTuple):
    """Posed images, each with its own focal length; the leading axes are the same in all three."""

    image: UInt8[Any, "*views height width 4"]
    pose: Float[Any, "*views 4 4"]
    focal: Float[Any, "*views"]


def pixel_rays(
    row: Int[Array, "*rays"],
    column: Int[Array, "*rays"],
    pose: Float[Array, "*rays 4 4"],
    focal: Float[Array, ""],
    *,
    height: int,
    width: int,
    pixel_centre: float = 0.5,
) -> Rays:
    """Returns the ray through each pixel.

    Args:
      row: counted from the top of the image.
      column: counted from the left.
      pose: camera to world, one for each pixel.
      focal: in pixels; the principal point is the image's centre.
      height: of the image, in pixels.
      width: of the image, in pixels.
      pixel_centre: where in its pixel a ray passes: 0.5 is the middle, 0 the upper left corner.
    """
    right = (column + pixel_centre - width / 2) / focal
    up = (height / 2 - row - pixel_centre) / focal
    # Sums of products, not a matmul: a GPU would round a float32 dot to TF32.
    directions = right[..., None] * pose[..., :3, 0] + up[..., None] * pose[..., :3, 1] - pose[..., :3, 2]
    directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
    return Rays(pose[..., :3, 3], directions)


def orbit_pose(azimuth: float, elevation: float, radius: float) -> Float[np.ndarray, "4 4"]:
    """Returns the pose of a camera on a sphere about the origin, looking at it, with z up.

    Args:
      azimuth: about z from the x axis, in radians.
      elevation: above the xy plane, in radians, short of the poles.
      radius: distance to the origin, in scene units.
    """
    outwards = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(outwards, right), outwards, radius * outwards
    return pose
