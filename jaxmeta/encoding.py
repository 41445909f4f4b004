"""Lifts coordinates to features that let a small network represent fine detail."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmeta.sines import sine_and_cosine


def positional_encoding(
    coordinates: Float[Array, "*points dimensions"], *, num_frequencies: int, max_log2_frequency: float
) -> Float[Array, "*points features"]:
    """Returns the sines and cosines of the coordinates at geometrically spaced frequencies.

    `sin(f x), cos(f x)` for `f = 2^l`, `l` evenly spaced from 0 to `max_log2_frequency` (Mildenhall et al. 2020, eq. 4,
    with the spacing of Tancik et al. 2021 and without the factor pi). Features are ordered by frequency, then sine
    before cosine, then dimension; there are `2 * num_frequencies * dimensions`.
    """
    frequencies = jnp.asarray(positional_frequencies(num_frequencies, max_log2_frequency), coordinates.dtype)
    # Elementwise: as a matmul the phases, which reach 2^8 times a coordinate, would be rounded to TF32 on a GPU.
    phases = frequencies[:, None] * coordinates[..., None, :]
    features = jnp.stack(sine_and_cosine(phases), axis=-2)
    return features.reshape(*coordinates.shape[:-1], -1)


def positional_frequencies(num_frequencies: int, max_log2_frequency: float) -> Float[np.ndarray, "frequencies"]:
    """Returns the frequencies of `positional_encoding`, in radians per unit of the coordinates."""
    return 2.0 ** np.linspace(0.0, max_log2_frequency, num_frequencies)


def gaussian_encoding(
    coordinates: Float[Array, "*points dimensions"], frequencies: Float[Array, "dimensions frequencies"]
) -> Float[Array, "*points features"]:
    """Returns the sines, then the cosines, of the coordinates along random directions.

    `sin(x B), cos(x B)` (Tancik et al. 2020, section 5, without the factor 2 pi); there are twice as many features as
    frequencies.

    Args:
      coordinates: of each point.
      frequencies: `B`, in radians per unit of the coordinates, one column for each frequency.
    """
    phases = jnp.matmul(coordinates, frequencies, precision="highest")  # A GPU would round them to TF32.
    return jnp.concatenate(sine_and_cosine(phases), axis=-1)
