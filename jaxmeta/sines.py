"""Sines and cosines, with derivatives of any order; on a CPU in float32 by polynomials, which XLA's are slower than."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sine_and_cosine(phases: Float[Array, "*any"]) -> tuple[Float[Array, "*any"], Float[Array, "*any"]]:
    """Returns the sine and the cosine of phases in radians."""
    if phases.dtype == jnp.float32 and jax.default_backend() == "cpu":
        return _by_polynomials(phases)
    return jnp.sin(phases), jnp.cos(phases)


@jax.custom_jvp
def _by_polynomials(phases: Float[Array, "*any"]) -> tuple[Float[Array, "*any"], Float[Array, "*any"]]:
    """Returns the sine and the cosine, to 1e-7 up to phases of 1e4 and beyond to the rounding of the phase itself.

    Quarter turns are taken off in three parts, of which the first two have few enough digits to lose none; then come
    the polynomials of Cephes (Moshier 1992) for float32. XLA computes both to half of that, several times slower.
    """
    quarters = jnp.round(phases * np.float32(2 / np.pi))
    rest = phases
    for part in (1.5703125, 4.837512969970703e-4, 7.549789954891882e-8):
        rest = rest - quarters * np.float32(part)
    square = rest * rest
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * rest + rest
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1
    quadrant = quarters.astype(jnp.int32)
    swapped = quadrant & 1 == 1
    sines, cosines = jnp.where(swapped, cosine, sine), jnp.where(swapped, sine, cosine)
    return jnp.where(quadrant & 2 == 2, -sines, sines), jnp.where((quadrant + 1) & 2 == 2, -cosines, cosines)


@_by_polynomials.defjvp
def _derivative(phases: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    sine, cosine = _by_polynomials(*phases)
    return (sine, cosine), (cosine * tangents[0], -sine * tangents[0])
