"""Turns a field and rays into colours by volume rendering (Mildenhall et al. 2020, section 4).

Distances are Euclidean, densities per unit of distance, and what a
ray does not meet is white.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmeta.cameras import Rays, pixel_rays

Field = Callable[[Float[Array, "*points 3"]], Any]
"""`points -> (density, rgb)`: per unit of distance and non-negative; in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Where a ray is sampled."""

    near: float = 2.0
    """Distance of the first sample."""
    far: float = 6.0
    """Distance of the last sample."""
    num_samples: int = 128
    """Points along a ray."""
    last_interval: float = 1e-3
    """The last sample's share of the ray; small, so that a ray that meets nothing shows the background."""


class Rendering(NamedTuple):
    """What a ray sees."""

    rgb: Float[Array, "*rays 3"]
    """In [0, 1], over a white background."""
    opacity: Float[Array, "*rays"]
    """The share of the light that does not come from the background, in [0, 1]."""
    distance: Float[Array, "*rays"]
    """Mean distance of what is seen, the background at `far`."""


def stratified_distances(uniform: Float[Array, "*rays samples"], sampling: Sampling) -> Float[Array, "*rays samples"]:
    """Returns one distance in each stratum of a ray, increasing.

    The strata meet halfway between evenly spaced distances (Mildenhall et al. 2020, eq. 2, in the form of their code).

    Args:
      uniform: where in its stratum each sample lies, in [0, 1): random in training, 0.5 in evaluation.
      sampling: the range.
    """
    distances = jnp.linspace(sampling.near, sampling.far, sampling.num_samples, dtype=uniform.dtype)
    middles = (distances[1:] + distances[:-1]) / 2
    lower = jnp.concatenate([distances[:1], middles])
    upper = jnp.concatenate([middles, distances[-1:]])
    return lower + (upper - lower) * uniform


def sample_points(rays: Rays, distances: Float[Array, "*rays samples"]) -> Float[Array, "*rays samples 3"]:
    """Returns the points at these distances along rays."""
    return rays.origins[..., None, :] + distances[..., None] * rays.directions[..., None, :]


def sample_intervals(
    distances: Float[Array, "*rays samples"], *, last_interval: float
) -> Float[Array, "*rays samples"]:
    """Returns the gap from each sample to the next; the arguments are those of `compositing_weights`."""
    last = jnp.full_like(distances[..., :1], last_interval)
    return jnp.concatenate([jnp.diff(distances), last], axis=-1)


def compositing_weights(
    density: Float[Array, "samples"], distances: Float[Array, "samples"], *, last_interval: float = 1e-3
) -> Float[Array, "samples"]:
    """Returns each sample's share of its ray's colour.

    `w_i = T_i (1 - exp(-sigma_i delta_i))`, `T_i = exp(-sum_{j<i} sigma_j delta_j)` (Mildenhall et al. 2020, eq. 3).

    Args:
      density: per unit of distance, non-negative.
      distances: increasing; `delta_i` is the gap to the next one.
      last_interval: the last sample's `delta`.
    """
    optical_depth = density * sample_intervals(distances, last_interval=last_interval)
    # Shifted before the sum: cumsum(x) - x would cancel where the density is high.
    before = jnp.cumsum(jnp.concatenate([jnp.zeros_like(optical_depth[:1]), optical_depth[:-1]]))
    return jnp.exp(-before) * -jnp.expm1(-optical_depth)


def composite(
    density: Float[Array, "samples"],
    rgb: Float[Array, "samples 3"],
    distances: Float[Array, "samples"],
    sampling: Sampling,
) -> Rendering:
    """Returns what a ray sees of its samples; `density` and `distances` are as for `compositing_weights`."""
    weights = compositing_weights(density, distances, last_interval=sampling.last_interval)
    opacity = jnp.sum(weights)
    return Rendering(
        rgb=jnp.sum(weights * rgb.T, axis=1) + (1 - opacity),  # along the samples, which lie side by side in memory
        opacity=opacity,
        distance=jnp.sum(weights * distances) + (1 - opacity) * sampling.far,
    )


def render_ray(field: Field, ray: Rays, uniform: Float[Array, "samples"], sampling: Sampling) -> Rendering:
    """Returns what one ray sees; `uniform` is as for `stratified_distances`."""
    distances = stratified_distances(uniform, sampling)
    density, rgb = field(sample_points(ray, distances))
    return composite(density, rgb, distances, sampling)


def render_rays(field: Field, rays: Rays, uniform: Float[Array, "rays samples"], sampling: Sampling) -> Rendering:
    """Returns what each ray sees; `uniform` is as for `stratified_distances`."""
    distances = stratified_distances(uniform, sampling)
    # The field sees all points at once, not ray by ray under the vmap, so that it may run as few large matmuls.
    density, rgb = field(sample_points(rays, distances))
    return jax.vmap(partial(composite, sampling=sampling))(density, rgb, distances)


def render_view(
    field: Field,
    pose: Float[Array, "4 4"],
    focal: Float[Array, ""],
    sampling: Sampling,
    *,
    height: int,
    width: int,
    pixel_centre: float = 0.5,
    rays_per_chunk: int = 4096,
) -> Rendering:
    """Returns a whole view, `height x width` rays, without randomness.

    Args:
      field: what is seen.
      pose: camera to world.
      focal: in pixels.
      sampling: the range; samples lie at the middle of their strata.
      height: in pixels.
      width: in pixels.
      pixel_centre: as for `pixel_rays`.
      rays_per_chunk: how many rays are in memory at a time.
    """
    num_rays = height * width
    num_chunks = -(-num_rays // rays_per_chunk)
    chunk_size = -(-num_rays // num_chunks)
    middle = jnp.full((chunk_size, sampling.num_samples), 0.5, pose.dtype)

    def chunk(pixels: Array) -> Rendering:
        row, column = pixels // width, pixels % width
        poses = jnp.broadcast_to(pose, (chunk_size, 4, 4))
        rays = pixel_rays(row, column, poses, focal, height=height, width=width, pixel_centre=pixel_centre)
        return render_rays(field, rays, middle, sampling)

    pixels = jnp.arange(num_chunks * chunk_size).reshape(num_chunks, chunk_size)
    chunks = jax.lax.map(chunk, jnp.minimum(pixels, num_rays - 1))
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_rays].reshape(height, width, *leaf.shape[2:]), chunks
    )
