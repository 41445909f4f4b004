"""The radiance field on kernels of our own, with the same parameters and results as `fields.RadianceField`.

`RadianceField` is the reference and runs everywhere. This runs on NVIDIA's Hopper GPUs, and has first derivatives only.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float

from jaxmeta.encoding import positional_frequencies
from jaxmeta.fields import RadianceField, activate
from jaxmeta.metalearning import Params

KNOWN_VERSIONS = ("0.11.", "0.12.")
"""Versions of jax whose Pallas the kernels were written for; it changes without notice."""
UNKNOWN_VERSION = f"jax {jax.__version__} is not one of {', '.join(f'{version}x' for version in KNOWN_VERSIONS)}"
"""The obstacle that another jax may remove."""
_ROWS = 8
"""The kernels' rows come in multiples of this; what is missing is filled up."""
_INPUTS = 128
"""The first layer's inputs come in multiples of this; what is missing is filled up."""


_TINY = 1e-30
"""Stands for a bias of zero."""


def _fit_sine() -> Float[np.ndarray, "4"]:
    """Returns the polynomial of `_sine`, in squares of the turns, from its values at Chebyshev's points."""
    square = 0.125 + 0.125 * np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    turns = np.sqrt(square)
    return np.polyfit(square, np.sin(2 * np.pi * turns) / (turns * (0.25 - square)), 3)


_SINE = _fit_sine()


def fused_apply(field: RadianceField) -> Callable[[Params, Float[Array, "*points 3"]], Any]:
    """Returns `field.apply`, `(params, points) -> (density, rgb)`, with matmuls on bfloat16 operands."""

    def apply(params: Params, points: Float[Array, "*points 3"]) -> Any:
        flat = points.reshape(-1, 3)
        filled = jnp.pad(flat, ((0, -len(flat) % _ROWS), (0, 0)))
        outputs: Any = _network(field, params["params"], filled)
        return activate(outputs[: len(flat)].reshape(*points.shape[:-1], 4), field.density_activation)

    return apply


def obstacle(field: RadianceField) -> str | None:
    """Returns what stands against `fused_apply` for a field on this process's devices, or None."""
    if field.compute_dtype != jnp.bfloat16:
        return "--field.compute-dtype is not bfloat16"
    if field.width != 256:
        return f"--field.width {field.width} is not 256"
    if field.depth < 2:
        return f"--field.depth {field.depth} is less than 2"
    if 6 * field.num_frequencies > 256:
        return f"--field.num-frequencies {field.num_frequencies} is more than 42"
    device = jax.local_devices()[0]
    if getattr(device, "compute_capability", None) != "9.0":
        return f"{device.device_kind} is not a Hopper GPU"
    if not jax.__version__.startswith(KNOWN_VERSIONS):
        return UNKNOWN_VERSION
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _network(
    field: RadianceField, params: dict[str, Any], points: Float[Array, "points 3"]
) -> Float[Array, "points 4"]:
    from jaxmeta.kernels.forward import forward  # brings half a second of imports, which only these GPUs need

    return forward(*_operands(field, params, points))[:, :4] + _head(params)["bias"]


def _forward(
    field: RadianceField, params: dict[str, Any], points: Float[Array, "points 3"]
) -> tuple[Float[Array, "points 4"], Any]:
    from jaxmeta.kernels.forward import forward_keeping  # here as in _network

    rows, weights, biases = _operands(field, params, points)
    outputs, activations, cut = forward_keeping(rows, weights, biases)
    return outputs[:, :4] + _head(params)["bias"], (rows, weights, activations, cut, points)


def _backward(field: RadianceField, residuals: Any, gradient: Float[Array, "points 4"]) -> tuple[dict[str, Any], Array]:
    from jaxmeta.kernels.backward import backward  # here as in _network
    from jaxmeta.kernels.launching import CHUNK, WIDTH
    from jaxmeta.kernels.weight_gradients import weight_gradients

    rows, weights, activations, cut, points = residuals
    narrow = gradient.astype(jnp.bfloat16)
    gradients = backward(jnp.pad(narrow, ((0, 0), (0, CHUNK - 4))), weights, cut)
    products, sums = weight_gradients([rows, *activations[:-1]], gradients)
    first, others = jnp.split(products, [rows.shape[-1]])
    num_features = 6 * field.num_frequencies
    by_layer = [first[:num_features], *others.reshape(len(sums), WIDTH, WIDTH)]
    biases = [first[num_features], *sums]  # a one stands there in every row
    layers = [{"kernel": kernel, "bias": bias} for kernel, bias in zip(by_layer, biases, strict=True)]
    layers.append(
        {
            "kernel": jnp.matmul(activations[-1].T, narrow, preferred_element_type=jnp.float32),
            "bias": jnp.sum(gradient, axis=0),
        }
    )
    # Nobody asks where the field's points should move.
    return {f"Dense_{index}": layer for index, layer in enumerate(layers)}, jnp.zeros_like(points)


_network.defvjp(_forward, _backward)


def _head(params: dict[str, Any]) -> dict[str, Any]:
    return params[f"Dense_{len(params) - 1}"]


def _operands(field: RadianceField, params: dict[str, Any], points: Float[Array, "points 3"]) -> tuple[Array, ...]:
    """Returns what the forward kernels take: rows, stacked weights and biases."""
    from jaxmeta.kernels.layers import stack  # here as in _network

    rows = _rows(field, points)
    layers = [params[f"Dense_{index}"] for index in range(field.depth)]
    missing = rows.shape[1] - 6 * field.num_frequencies
    first = jnp.pad(layers[0]["kernel"], ((0, missing), (0, 0)))
    weights = stack([first, *(layer["kernel"] for layer in layers[1:])], _head(params)["kernel"])
    biases = jnp.stack([layer["bias"] for layer in layers])
    # Relu cuts off what has a sign, and so must be a sum of nothing, where all units below are cut off.
    return rows, weights, jnp.where(biases == 0.0, -_TINY, biases)


def _rows(field: RadianceField, points: Float[Array, "points 3"]) -> BFloat16[Array, "points columns"]:
    """Returns `encoding.positional_encoding` of the points, filled up with ones to a multiple of 128 columns.

    The ones stand before weights of zero, whose gradient is then that of the first layer's bias. All columns are
    sines, in turns instead of radians and to 2e-5, which is below what bfloat16 can tell: it takes a fifth of the time.
    """
    num_features = 6 * field.num_frequencies
    num_columns = num_features + -num_features % _INPUTS
    frequencies = positional_frequencies(field.num_frequencies, field.max_log2_frequency) / (2.0 * np.pi)
    turns, shift = np.zeros((3, num_columns)), np.full(num_columns, 0.25)
    columns = np.arange(num_features).reshape(field.num_frequencies, 2, 3)  # sine before cosine
    for dimension in range(3):
        turns[dimension, columns[:, :, dimension]] = frequencies[:, None]
    shift[columns[:, 0]] = 0.0
    place = jnp.asarray(shift, points.dtype)
    for dimension in range(3):
        place = place + points[:, dimension : dimension + 1] * turns[dimension].astype(points.dtype)
    return _sine(place - jnp.round(place)).astype(jnp.bfloat16)


def _sine(turns: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Returns `sin(2 pi turns)` for turns from -1/2 to 1/2, to 2e-5."""
    square = turns * turns
    third, second, first, constant = _SINE.astype(turns.dtype)
    return turns * (0.25 - square) * (((third * square + second) * square + first) * square + constant)
