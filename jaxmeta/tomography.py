"""Projects slices as a CT scanner with parallel beams does.

A slice is a square image of density. Its projection in a direction is the mean along parallel rays, one for each column
of the slice turned by the direction's angle about the pixel `size // 2`; in between pixels the slice is interpolated
linearly. That is scikit-image's `radon` divided by the size, with angles in radians. Departure: the paper's authors
turn the other way and take the nearest pixel.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float


class Scan(NamedTuple):
    """Projections of slices: what a scanner measures."""

    projections: Float[Any, "*scenes directions bins"]
    angles: Float[Any, "*scenes directions"]
    """In radians; a half turn holds all that there is to see."""


def even_angles(num_directions: int) -> Float[np.ndarray, "directions"]:
    """Returns angles, in radians, that divide the half turn evenly, from 0."""
    return np.linspace(0, np.pi, num_directions, endpoint=False, dtype=np.float32)


def project(density: Float[Array, "size size"], angles: Float[Array, "directions"]) -> Float[Array, "directions size"]:
    """Returns the projections of a slice; linear in the slice."""
    size = density.shape[0]
    centre = size // 2
    down, across = jnp.indices((size, size), dtype=density.dtype) - centre
    cosine, sine = jnp.cos(angles)[:, None, None], jnp.sin(angles)[:, None, None]
    places = [cosine * down - sine * across + centre, cosine * across + sine * down + centre]
    return map_coordinates(density, places, order=1, mode="constant").mean(axis=1)
