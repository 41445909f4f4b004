"""Turns a radiance field into a coloured triangle mesh: marching cubes (Lewiner et al. 2003) on a grid of densities.

The grid fills a cube about the origin; outside the ball in it the scene counts as empty, so that every surface is
closed. Coordinates are the scene's, z up.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
from jaxtyping import Array, Float, Int, UInt8
from skimage.measure import marching_cubes

from jaxmeta.cameras import Views
from jaxmeta.errors import InputError
from jaxmeta.rendering import Field, Sampling

_Z_UP_TO_Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


class ColouredMesh(NamedTuple):
    """A surface."""

    vertices: Float[np.ndarray, "vertices 3"]
    """In scene units."""
    faces: Int[np.ndarray, "faces 3"]
    """Indices of vertices, counterclockwise as seen from where the density is low."""
    colours: UInt8[np.ndarray, "vertices 3"]
    normals: Float[np.ndarray, "vertices 3"]
    """Of unit length, towards where the density is low."""


def seen_radius(views: Views, sampling: Sampling) -> float:
    """Returns the radius of the largest ball about the origin that every view of a scene holds whole; may be negative.

    Args:
      views: of one scene.
      sampling: what is nearer or farther than this range is not in a view.
    """
    distance = np.linalg.norm(np.asarray(views.poses)[..., :3, 3], axis=-1)
    half_angle = np.arctan(min(views.images.shape[-3:-1]) / 2 / float(views.focal))
    return float(np.min([distance - sampling.near, sampling.far - distance, distance * np.sin(half_angle)]))


def density_grid(
    field: Field, *, radius: float, resolution: int, points_per_chunk: int = 2**16
) -> Float[np.ndarray, "resolution resolution resolution"]:
    """Returns the density at evenly spaced points of the cube [-radius, radius]^3, by x, y, z; 0 outside its ball.

    Args:
      field: of the scene.
      radius: of the ball, in scene units.
      resolution: points along each edge.
      points_per_chunk: how many points are evaluated at a time.
    """
    places = jnp.linspace(-radius, radius, resolution)

    def density(flat: Int[Array, "points"]) -> Float[Array, "points"]:
        points = places[jnp.stack(jnp.unravel_index(flat, (resolution,) * 3), axis=-1)]
        return jnp.where(jnp.linalg.norm(points, axis=-1) <= radius, field(points)[0], 0.0)

    flat = np.arange(resolution**3, dtype=np.int32)
    return _in_chunks(density, flat, points_per_chunk).reshape((resolution,) * 3)


def isosurface(field: Field, *, radius: float, resolution: int, threshold: float) -> ColouredMesh:
    """Returns the surface on which a field's density is `threshold`, in the field's colours.

    Args:
      field: of the scene.
      radius: of the ball that is looked through, in scene units.
      resolution: grid points along each edge of the cube about it.
      threshold: density, per unit of distance.

    Raises:
      InputError: the density is nowhere above the threshold.
    """
    grid = density_grid(field, radius=radius, resolution=resolution)
    if not grid.max() > threshold:
        raise InputError(
            f"no density above --threshold {threshold:g} within {radius:.3g} of the origin; the highest found is "
            f"{grid.max():.4g}; give a lower --threshold"
        )
    spacing = 2 * radius / (resolution - 1)
    # An empty border closes what the ball cuts. "ascent" orients the faces outwards where the density is higher inside.
    found = marching_cubes(np.pad(grid, 1), threshold, spacing=(spacing,) * 3, gradient_direction="ascent")
    vertices = np.asarray(found[0] - spacing - radius, np.float32)
    rgb = _in_chunks(lambda points: field(points)[1], vertices, 2**16)
    return ColouredMesh(vertices, np.asarray(found[1]), np.round(255 * rgb).astype(np.uint8), np.asarray(found[2]))


def encode(mesh: ColouredMesh, file_type: str) -> bytes:
    """Returns the content of a mesh file.

    Args:
      mesh: in the scene's frame.
      file_type: "ply", which keeps coordinates and colours as they are, or "glb", whose standard wants y up and linear
        colours.
    """
    vertices, faces, colours, normals = mesh
    if file_type == "glb":
        vertices, normals = vertices @ _Z_UP_TO_Y_UP.T, normals @ _Z_UP_TO_Y_UP.T
        colours = np.round(255 * _linear(colours / 255)).astype(np.uint8)
    content: Any = trimesh.Trimesh(vertices, faces, vertex_normals=normals, vertex_colors=colours, process=False)
    wanted = {"include_normals": True} if file_type == "glb" else {"vertex_normal": True}
    return content.export(file_type=file_type, **wanted)


def _in_chunks(function: Callable[[Any], Array], inputs: Any, size: int) -> np.ndarray:
    """Returns a function of each row, compiled once for so many rows at a time."""
    compiled = jax.jit(function)
    size = min(size, len(inputs))
    chunks = [inputs[start : start + size] for start in range(0, len(inputs), size)]
    padded = (np.resize(chunk, (size, *chunk.shape[1:])) for chunk in chunks)
    return np.concatenate([np.asarray(compiled(chunk)) for chunk in padded])[: len(inputs)]


def _linear(display: Float[np.ndarray, "*colours"]) -> Float[np.ndarray, "*colours"]:
    """Returns linear light of sRGB values (IEC 61966-2-1)."""
    return np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
