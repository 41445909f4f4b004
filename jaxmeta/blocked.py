"""The radiance field on a CPU, with the same parameters and results as `fields.RadianceField`.

XLA's matmuls of a CPU are fastest where both operands lie along what is summed, and everything is where a layer's
activations stay in a core's cache. So features stand before points here, and
`objectives.mean_over_blocks` takes the loss a few rays at a time. Of bfloat16 operands XLA must sum in float32:
only then, and only of operands that are not transposed, does it use the units that some processors have for them.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmeta.encoding import positional_frequencies
from jaxmeta.fields import OUTPUTS, RadianceField, activate
from jaxmeta.metalearning import Params
from jaxmeta.sines import sine_and_cosine

_ACTIVATIONS = 2**20
"""Bytes that one layer gives for a block, at most."""
_PROCESSOR = Path("/proc/cpuinfo")
_UNITS = ("amx_bf16", "avx512_bf16")
"""What processors call their units for matmuls of bfloat16."""
_WIDE = 128
"""Features of a layer from which matmuls of bfloat16 gain more than the conversions cost."""


def blocked_apply(field: RadianceField) -> Callable[[Params, Float[Array, "*points 3"]], Any]:
    """Returns `field.apply`, `(params, points) -> (density, rgb)`."""

    def apply(params: Params, points: Float[Array, "*points 3"]) -> Any:
        tree: Any = params
        layers = [tree["params"][f"Dense_{index}"] for index in range(field.depth + 1)]
        dtype = field.compute_dtype or points.dtype
        features = _encoding(field, points.reshape(-1, 3).T).astype(dtype)
        for layer in layers[:-1]:
            features = jax.nn.relu(_product(layer["kernel"], features) + layer["bias"][:, None]).astype(dtype)
        outputs = _product(layers[-1]["kernel"], features) + layers[-1]["bias"][:, None]
        return activate(outputs.reshape(OUTPUTS, *points.shape[:-1]), field.density_activation)

    return apply


def possible(field: RadianceField) -> bool:
    """Returns whether this process's devices are CPUs and the field computes in float32 or bfloat16."""
    return jax.default_backend() == "cpu" and field.compute_dtype in (None, jnp.float32, jnp.bfloat16)


def bfloat16_pays(width: int) -> bool:
    """Returns whether this process's devices are CPUs that compute a field so wide faster in bfloat16."""
    return jax.default_backend() == "cpu" and width >= _WIDE and _has_units()


@functools.cache
def _has_units() -> bool:
    told = _PROCESSOR.read_text() if _PROCESSOR.exists() else ""
    return any(unit in told for unit in _UNITS)


def rays_per_block(field: RadianceField, num_rays: int, num_samples: int) -> int:
    """Returns how many rays to take at a time: a divisor of their number, or all where none is near what fits."""
    itemsize = jnp.dtype(field.compute_dtype or jnp.float32).itemsize
    fitting = max(_ACTIVATIONS // (itemsize * field.width * num_samples), 1)
    near = [size for size in range(1, num_rays + 1) if num_rays % size == 0 and fitting / 4 <= size <= fitting]
    return max(near, default=num_rays)


@jax.custom_vjp
def _product(kernel: Float[Array, "inputs width"], features: Float[Array, "inputs points"]) -> Array:
    return _sums(_transposed(kernel.astype(features.dtype)), features, 0, kernel.dtype)


def _product_forward(kernel: Array, features: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(kernel, features), (kernel, features)


def _product_backward(operands: tuple[Array, Array], gradient: Float[Array, "width points"]) -> tuple[Array, Array]:
    kernel, features = operands
    narrow = gradient.astype(features.dtype)
    by_features = _sums(kernel.astype(features.dtype), narrow, 0, kernel.dtype)
    return _sums(features, narrow, 1, kernel.dtype), by_features.astype(features.dtype)


def _transposed(matrix: Float[Array, "rows columns"]) -> Float[Array, "columns rows"]:
    """Returns the transpose, by a way that XLA cannot fold into a matmul: of a transposed operand they are slow."""
    places = np.arange(matrix.size).reshape(matrix.shape).T
    return matrix.reshape(-1)[places]


def _sums(left: Array, right: Array, axis: int, dtype: Any) -> Array:
    """Returns the sums of products over the last axis of `left` and an axis of `right`."""
    return jax.lax.dot_general(left, right, (((1,), (axis,)), ((), ())), preferred_element_type=dtype)


_product.defvjp(_product_forward, _product_backward)


def _encoding(field: RadianceField, points: Float[Array, "3 points"]) -> Float[Array, "features points"]:
    """Returns `encoding.positional_encoding` of the points, transposed."""
    frequencies = positional_frequencies(field.num_frequencies, field.max_log2_frequency)
    phases = jnp.asarray(frequencies, points.dtype)[:, None, None] * points
    return jnp.stack(sine_and_cosine(phases), axis=1).reshape(-1, points.shape[-1])
