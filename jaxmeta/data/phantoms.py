"""Draws slices of heads that nobody has: Shepp-Logan phantoms whose ellipses vary at random.

The slice spans -1 to 1 both ways, x to the right and y up; edges are about a pixel wide.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Density, half axes, centre, and turn in degrees of each ellipse (Toft 1996, table B.3); densities add up.
SHEPP_LOGAN = np.array(
    [
        [1.0, 0.69, 0.92, 0.0, 0.0, 0.0],
        [-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0],
        [-0.2, 0.11, 0.31, 0.22, 0.0, -18.0],
        [-0.2, 0.16, 0.41, -0.22, 0.0, 18.0],
        [0.1, 0.21, 0.25, 0.0, 0.35, 0.0],
        [0.1, 0.046, 0.046, 0.0, 0.1, 0.0],
        [0.1, 0.046, 0.046, 0.0, -0.1, 0.0],
        [0.1, 0.046, 0.023, -0.08, -0.605, 0.0],
        [0.1, 0.023, 0.023, 0.0, -0.606, 0.0],
        [0.1, 0.023, 0.046, 0.06, -0.605, 0.0],
    ],
    np.float32,
)


@partial(jax.jit, static_argnames="size")
def draw_phantoms(keys: Array, *, size: int) -> Float[Array, "phantoms size size"]:
    """Returns the slice of a random phantom for each key, with densities in [0, 1]."""
    return jax.lax.map(lambda key: draw_slice(random_ellipses(key), size=size), keys)


def random_ellipses(key: Array) -> Float[Array, "10 6"]:
    """Returns the ellipses of a random phantom: the skull varies as a whole, what lies in it one by one."""
    skull_key, inside_key = jax.random.split(key)
    stretch_x, stretch_y, turn = jax.random.uniform(
        skull_key, (3,), minval=jnp.array([0.8, 0.8, -15.0]), maxval=jnp.array([1.05, 1.05, 15.0])
    )
    density, wide, tall, x, y, angle = jnp.asarray(SHEPP_LOGAN).T
    vary = jax.random.uniform(inside_key, (6, len(density)), minval=-1.0) * (jnp.arange(len(density)) > 1)
    density = density * (1 + 0.6 * vary[0])
    wide, tall = wide * stretch_x * (1 + 0.3 * vary[1]), tall * stretch_y * (1 + 0.3 * vary[2])
    x, y = stretch_x * (x + 0.08 * vary[3]), stretch_y * (y + 0.08 * vary[4])
    cosine, sine = jnp.cos(jnp.radians(turn)), jnp.sin(jnp.radians(turn))
    x, y = cosine * x - sine * y, sine * x + cosine * y
    return jnp.stack([density, wide, tall, x, y, angle + turn + 20 * vary[5]], axis=1)


def draw_slice(ellipses: Float[Array, "ellipses 6"], *, size: int) -> Float[Array, "size size"]:
    """Returns the slice through ellipses that are laid out as `SHEPP_LOGAN`, with densities clipped to [0, 1]."""
    across = (jnp.arange(size) + 0.5) * (2 / size) - 1
    y, x = jnp.meshgrid(-across, across, indexing="ij")
    density, wide, tall, centre_x, centre_y, angle = (column[:, None, None] for column in ellipses.T)
    cosine, sine = jnp.cos(jnp.radians(angle)), jnp.sin(jnp.radians(angle))
    right, up = x - centre_x, y - centre_y
    radius = jnp.hypot((cosine * right + sine * up) / wide, (cosine * up - sine * right) / tall)
    inside = jnp.clip(0.5 + (1 - radius) * jnp.minimum(wide, tall) * size / 2, 0, 1)
    return jnp.clip(jnp.sum(density * inside, axis=0), 0, 1)
