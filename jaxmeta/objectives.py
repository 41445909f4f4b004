"""One loss per kind of signal, each `loss(apply, params, data, key, ...) -> scalar`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from jaxmeta.cameras import Rays, Views, pixel_rays
from jaxmeta.rendering import Sampling, render_rays, sample_points, stratified_distances
from jaxmeta.samples import Samples, grid_points, unit_values
from jaxmeta.tomography import Scan, project


def cross_entropy(outputs: Float[Array, "*any"], wanted: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Returns the binary cross-entropy, in nats, of each output in [0, 1] for a wanted value in [0, 1].

    The gradient of the squared error vanishes where a sigmoid saturates, even at the wrong end; this one's does not.
    """
    tiny = 1e-6  # against log(0)
    return -wanted * jnp.log(outputs + tiny) - (1 - wanted) * jnp.log(1 - outputs + tiny)


def composite_on_white(rgba: UInt8[Array, "*pixels 4"], dtype: Any = jnp.float32) -> Float[Array, "*pixels 3"]:
    """Returns colours in [0, 1] of pixels with straight alpha before a white background."""
    rgba = rgba.astype(dtype) / 255
    return rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])


def view_pixels(
    views: Views, pixels: Int[Array, "rays"], *, pixel_centre: float = 0.5
) -> tuple[Rays, Float[Array, "rays 3"]]:
    """Returns the rays through some pixels of one scene, and the pixels' colours.

    Args:
      views: of one scene.
      pixels: indices into all views at once, counted by view, then row, then column.
      pixel_centre: as for `pixel_rays`.
    """
    num_views, height, width, _ = views.images.shape
    view, row, column = jnp.unravel_index(pixels, (num_views, height, width))
    poses = jnp.asarray(views.poses)[view]
    rays = pixel_rays(row, column, poses, views.focal, height=height, width=width, pixel_centre=pixel_centre)
    return rays, composite_on_white(jnp.asarray(views.images)[view, row, column], poses.dtype)


def squared_error(
    apply: Callable[..., Any],
    params: Any,
    rays: Rays,
    uniform: Float[Array, "rays samples"],
    target: Float[Array, "rays 3"],
    sampling: Sampling,
) -> Float[Array, ""]:
    """Returns the mean squared error of the colours that rays see.

    Args:
      apply: `(params, points) -> (density, rgb)`.
      params: of the field.
      rays: of one scene.
      uniform: as for `stratified_distances`.
      target: the colours that they should see.
      sampling: the range of each ray.
    """
    rendering = render_rays(lambda points: apply(params, points), rays, uniform, sampling)
    return jnp.mean(jnp.square(rendering.rgb - target))


def photometric_loss(
    apply: Callable[..., Any],
    params: Any,
    views: Views,
    key: Array,
    *,
    num_rays: int,
    sampling: Sampling,
    pixel_centre: float = 0.5,
    rays_per_block: int | None = None,
    error: Callable[..., Float[Array, ""]] | None = None,
) -> Float[Array, ""]:
    """Returns the mean squared error of rendered colours at random pixels of one scene's views.

    Args:
      apply: `(params, points) -> (density, rgb)`.
      params: of the field.
      views: of one scene.
      key: draws the pixels, with replacement, and the samples' jitter.
      num_rays: how many pixels to draw.
      sampling: the range of each ray.
      pixel_centre: as for `pixel_rays`.
      rays_per_block: taken at a time, as for `mean_over_blocks`; None for all.
      error: `squared_error` of `apply` in another way, with its arguments but the first; None for that itself.
    """
    error = error or partial(squared_error, apply)

    def error_of(params: Any, drawn: tuple[Rays, Array, Array]) -> Float[Array, ""]:
        rays, target, uniform = drawn
        return error(params, rays, uniform, target, sampling)

    drawn = _random_rays(views, key, num_rays, sampling, pixel_centre)
    if rays_per_block in (None, num_rays):
        return error_of(params, drawn)
    return mean_over_blocks(error_of, params, drawn, size=rays_per_block)


def mean_over_blocks(loss: Callable[..., Float[Array, ""]], params: Any, data: Any, *, size: int) -> Any:
    """Returns the mean of `loss(params, block)` over blocks of data, with a first derivative by the parameters alone.

    The gradient of a block is taken while its activations are in the cache, and only the sum is kept.

    Args:
      loss: the mean over a block's entries.
      params: of the loss.
      data: entries along the leading axis.
      size: entries in a block; divides their number.
    """
    return _mean(loss, params, jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), data))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mean(loss: Callable[..., Float[Array, ""]], params: Any, blocks: Any) -> Float[Array, ""]:
    return jnp.mean(jax.lax.map(partial(loss, params), blocks))


def _mean_forward(loss: Callable[..., Float[Array, ""]], params: Any, blocks: Any) -> tuple[Array, Any]:
    def add(sums: Any, block: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(params, block)), None

    first = jax.tree.map(lambda leaf: leaf[0], blocks)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(jax.value_and_grad(loss), params, first))
    sums, _ = jax.lax.scan(add, zeros, blocks)
    return jax.tree.map(lambda leaf: leaf / len(jax.tree.leaves(blocks)[0]), sums)


def _mean_backward(loss: Callable[..., Any], gradient: Any, factor: Float[Array, ""]) -> tuple[Any, None]:
    del loss
    return jax.tree.map(lambda leaf: factor * leaf, gradient), None


_mean.defvjp(_mean_forward, _mean_backward)


def field_samples(
    apply: Callable[..., Any],
    params: Any,
    views: Views,
    key: Array,
    *,
    num_rays: int,
    sampling: Sampling,
    pixel_centre: float = 0.5,
) -> Float[Array, "rays samples 4"]:
    """Returns what a field holds at random points of a scene's volume: those that random rays of its views sample.

    It is the colour, and the density as the share of the light that a point stops on its stretch of the ray, so that
    all four are in [0, 1]. The arguments are those of `photometric_loss`.
    """
    rays, _, uniform = _random_rays(views, key, num_rays, sampling, pixel_centre)
    distances = stratified_distances(uniform, sampling)
    density, rgb = apply(params, sample_points(rays, distances))
    stopped = -jnp.expm1(-density * (sampling.far - sampling.near) / sampling.num_samples)
    return jnp.concatenate([rgb, stopped[..., None]], axis=-1)


def _random_rays(
    views: Views, key: Array, num_rays: int, sampling: Sampling, pixel_centre: float
) -> tuple[Rays, Float[Array, "rays 3"], Float[Array, "rays samples"]]:
    """Returns the rays through random pixels, the pixels' colours and the samples' jitter."""
    pixel_key, jitter_key = jax.random.split(key)
    num_pixels = views.images[..., 0].size
    pixels = jax.random.randint(pixel_key, (num_rays,), 0, num_pixels)
    rays, target = view_pixels(views, pixels, pixel_centre=pixel_centre)
    return rays, target, jax.random.uniform(jitter_key, (num_rays, sampling.num_samples), target.dtype)


def regression_loss(
    apply: Callable[..., Any], params: Any, samples: Samples, key: Array, *, num_points: int | None
) -> Float[Array, ""]:
    """Returns the mean squared error of a coordinate network at samples of one signal.

    Args:
      apply: `(params, points) -> values`.
      params: of the network.
      samples: of one signal.
      key: draws the points, with replacement.
      num_points: how many to draw; None for each sample once.
    """
    samples = Samples(*(jnp.asarray(leaf).reshape(-1, leaf.shape[-1]) for leaf in samples))
    if num_points is not None:
        drawn = jax.random.randint(key, (num_points,), 0, len(samples.points))
        samples = Samples(samples.points[drawn], samples.values[drawn])
    return jnp.mean(jnp.square(apply(params, samples.points) - unit_values(samples)))


def projection_loss(
    apply: Callable[..., Any], params: Any, scan: Scan, key: Array, *, num_directions: int | None
) -> Float[Array, ""]:
    """Returns the mean squared error of the projections of a slice that a coordinate network holds.

    Args:
      apply: `(params, points) -> values`; the first value at each point is the density.
      params: of the network.
      scan: of one slice, as many pixels wide as it has bins.
      key: draws the directions, without replacement.
      num_directions: how many to draw; None for all.
    """
    size = scan.projections.shape[-1]
    if num_directions is not None:
        drawn = jax.random.permutation(key, len(scan.angles))[:num_directions]
        scan = Scan(scan.projections[drawn], scan.angles[drawn])
    density = apply(params, jnp.asarray(grid_points(size, size)))[..., 0]
    return jnp.mean(jnp.square(project(density, scan.angles) - scan.projections))
