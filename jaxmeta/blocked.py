"""The radiance field on a CPU, with the same parameters and results as `fields.RadianceField`.

XLA's matmuls of a CPU are fastest where both operands lie along what is summed, and everything is where a layer's
activations stay in a core's cache. So features stand before points here, and
`objectives.mean_over_blocks` takes the loss a few rays at a time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmeta.encoding import positional_frequencies
from jaxmeta.fields import RadianceField, activate
from jaxmeta.metalearning import Params

_ACTIVATIONS = 2**18
"""Numbers that one layer gives for a block, at most: 1 MiB."""


def blocked_apply(field: RadianceField) -> Callable[[Params, Float[Array, "*points 3"]], Any]:
    """Returns `field.apply`, `(params, points) -> (density, rgb)`, for float32."""

    def apply(params: Params, points: Float[Array, "*points 3"]) -> Any:
        tree: Any = params
        layers = [tree["params"][f"Dense_{index}"] for index in range(field.depth + 1)]
        features = _encoding(field, points.reshape(-1, 3).T)
        for layer in layers[:-1]:
            features = jax.nn.relu(_product(layer["kernel"], features) + layer["bias"][:, None])
        outputs = _product(layers[-1]["kernel"], features) + layers[-1]["bias"][:, None]
        return activate(outputs.T.reshape(*points.shape[:-1], 4), field.density_activation)

    return apply


def possible(field: RadianceField) -> bool:
    """Returns whether this process's devices are CPUs and the field computes in float32."""
    return jax.default_backend() == "cpu" and field.compute_dtype in (None, jnp.float32)


def rays_per_block(field: RadianceField, num_rays: int, num_samples: int) -> int:
    """Returns how many rays to take at a time: a divisor of their number, or all where none is near what fits."""
    fitting = max(_ACTIVATIONS // (field.width * num_samples), 1)
    near = [size for size in range(1, num_rays + 1) if num_rays % size == 0 and fitting / 4 <= size <= fitting]
    return max(near, default=num_rays)


@jax.custom_vjp
def _product(kernel: Float[Array, "inputs width"], features: Float[Array, "inputs points"]) -> Array:
    # Without the barrier XLA would fold the transposition into the matmul, which is slower than to transpose first.
    return jax.lax.optimization_barrier(kernel.T) @ features


def _product_forward(kernel: Array, features: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(kernel, features), (kernel, features)


def _product_backward(operands: tuple[Array, Array], gradient: Float[Array, "width points"]) -> tuple[Array, Array]:
    kernel, features = operands
    return jax.lax.dot_general(features, gradient, (((1,), (1,)), ((), ()))), kernel @ gradient


_product.defvjp(_product_forward, _product_backward)


def _encoding(field: RadianceField, points: Float[Array, "3 points"]) -> Float[Array, "features points"]:
    """Returns `encoding.positional_encoding` of the points, transposed."""
    frequencies = positional_frequencies(field.num_frequencies, field.max_log2_frequency)
    phases = jnp.asarray(frequencies, points.dtype)[:, None, None] * points
    return jnp.stack(_sine_cosine(phases), axis=1).reshape(-1, points.shape[-1])


def _sine_cosine(phases: Float[Array, "*any"]) -> tuple[Float[Array, "*any"], Float[Array, "*any"]]:
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
