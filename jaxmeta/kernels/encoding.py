"""The positional encoding as the kernels compute it, of a tile of points at a time."""

from collections.abc import Iterable
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, BFloat16, Float

from jaxmeta.encoding import positional_frequencies
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, TILE
from jaxmeta.kernels.layers import load

_MULTIPLE = 128
"""Columns come in multiples of this."""


def table(num_frequencies: int, max_log2_frequency: float) -> Float[np.ndarray, "4 columns"]:
    """Returns what makes `encoding.positional_encoding` of a point: radians for a unit of x, y and z, and radians more.

    All columns are sines. Those beyond the encoding's are the sine of a quarter turn: ones before the first layer's
    bias, in two parts, and zeros. The gradient there is that of the bias.
    """
    frequencies = positional_frequencies(num_frequencies, max_log2_frequency)
    num_features = 6 * num_frequencies
    angles = np.zeros((4, num_features + -num_features % _MULTIPLE), np.float32)
    columns = np.arange(num_features).reshape(num_frequencies, 2, 3)  # sine before cosine
    for dimension in range(3):
        angles[dimension, columns[:, :, dimension]] = frequencies[:, None]
    angles[3] = np.pi / 2
    angles[3, columns[:, 0]] = 0.0
    return angles


def by_dimension(points: Float[Array, "scenes rows 3"]) -> Float[Array, "scenes 3 padded_rows"]:
    """Returns coordinates as the kernels copy them, by tiles, and filled up to whole groups of these."""
    return jnp.pad(points.mT, ((0, 0), (0, 0), (0, -points.shape[1] % (CONSUMERS * TILE))))


def encode(points: Iterable[Any], angles: Iterable[Any]) -> BFloat16[Array, "*_"]:
    """Returns the sines.

    By the hardware's in a kernel: off by up to 1.2e-4 for coordinates up to 4 and frequencies up to 2^8, as measured;
    rounding moves them by up to 2e-3.

    Args:
      points: arrays of x, y and z.
      angles: the rows of the table, in shapes that go with the points'.
    """
    x, y, z = points
    by_x, by_y, by_z, more = angles
    return jnp.sin(more + x * by_x + y * by_y + z * by_z).astype(jnp.bfloat16)


def encode_chunk(points: Any, angles: Any, start: Any) -> Any:
    """Returns 64 columns, from `start` on, of the encoding of a tile of points [3, 64], both in shared memory."""
    shape, layout = (TILE, CHUNK), plgpu.Layout.WGMMA
    rows = [load(points.at[k], layout.reduce(1)) for k in range(3)]
    columns = [load(angles.at[k, pl.ds(start, CHUNK)], layout.reduce(0)) for k in range(4)]
    return encode(
        [lax.broadcast_in_dim(row, shape, (0,)) for row in rows],
        [lax.broadcast_in_dim(column, shape, (1,)) for column in columns],
    )
