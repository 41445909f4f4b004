"""What a signal is at some points of it: the common form of pictures, sounds and the like."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8


class Samples(NamedTuple):
    """What a signal is at some points, such as the colours of pixels; the leading axes are the same in both."""

    points: Float[Any, "*points dimensions"]
    values: Float[Any, "*points features"] | UInt8[Any, "*points features"]
    """Bytes stand for 0 to 1."""


def grid_points(height: int, width: int) -> Float[np.ndarray, "height width 2"]:
    """Returns the place of each pixel, row then column, from 0 up to 1, which is the first pixel that is not there."""
    return np.stack(
        np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij"), -1, dtype=np.float32
    )


def unit_values(samples: Samples) -> Float[Array, "*points features"]:
    """Returns the values of samples, bytes as 0 to 1."""
    values = jnp.asarray(samples.values)
    return values.astype(samples.points.dtype) / 255 if values.dtype == jnp.uint8 else values


def values_at(
    apply: Callable[..., Any], params: Any, samples: Samples, *, rays_per_chunk: int = 2**16
) -> Float[Array, "*points features"]:
    """Returns what a network holds at the points of samples, so many at a time."""
    points = samples.points.reshape(-1, samples.points.shape[-1])
    values = jax.lax.map(partial(apply, params), points, batch_size=min(rays_per_chunk, len(points)))
    return values.reshape(*samples.points.shape[:-1], -1)


def values_somewhere(
    apply: Callable[..., Any], params: Any, samples: Samples, key: Array
) -> Float[Array, "points features"]:
    """Returns what a network holds at random points of those that are sampled."""
    points = jnp.asarray(samples.points).reshape(-1, samples.points.shape[-1])
    return apply(params, points[jax.random.randint(key, (1024,), 0, len(points))])


def whole_signals(
    samples: Samples, scenes: Int[np.ndarray, "tasks"], numbers: Int[np.ndarray, "tasks views"]
) -> Samples:
    """Returns all samples of each scene, whatever the number of its view: a support."""
    del numbers
    return Samples(*(leaf[scenes] for leaf in samples))


def whole_items(samples: Samples, scenes: Int[np.ndarray, "tasks"], numbers: Int[np.ndarray, "tasks views"]) -> Samples:
    """Returns all samples of each scene as one item of a query."""
    return Samples(*(leaf[:, None] for leaf in whole_signals(samples, scenes, numbers)))
