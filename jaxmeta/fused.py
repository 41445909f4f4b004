"""The radiance field on kernels of our own, with the same parameters and results as `fields.RadianceField`.

`RadianceField` is the reference and runs everywhere. This runs on NVIDIA's Hopper GPUs, and has first derivatives only.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmeta.fields import RadianceField, activate
from jaxmeta.metalearning import Params

KNOWN_VERSIONS = ("0.11.", "0.12.")
"""Versions of jax whose Pallas the kernels were written for; it changes without notice."""
UNKNOWN_VERSION = f"jax {jax.__version__} is not one of {', '.join(f'{version}x' for version in KNOWN_VERSIONS)}"
"""The obstacle that another jax may remove."""
_ROWS = 8
"""The kernels' rows come in multiples of this; what is missing is filled up."""


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

    return forward(points, *_operands(field, params))[:, :4] + _head(params)["bias"]


def _forward(
    field: RadianceField, params: dict[str, Any], points: Float[Array, "points 3"]
) -> tuple[Float[Array, "points 4"], Any]:
    from jaxmeta.kernels.forward import forward_keeping  # here as in _network

    turns, weights, biases = _operands(field, params)
    outputs, activations = forward_keeping(points, turns, weights, biases)
    return outputs[:, :4] + _head(params)["bias"], (weights, _head(params)["kernel"], points, turns, activations)


def _backward(field: RadianceField, residuals: Any, gradient: Float[Array, "points 4"]) -> tuple[dict[str, Any], Array]:
    from jaxmeta.kernels.backward import NARROW, backward  # here as in _network

    weights, head, points, turns, activations = residuals
    narrow = [jnp.pad(array.astype(jnp.bfloat16), ((0, 0), (0, NARROW - 4))) for array in (gradient, head)]
    kernels, biases = backward(narrow[0], weights, narrow[1], points, turns, activations)
    kernels = [kernels[0][: 6 * field.num_frequencies], *kernels[1:-1], kernels[-1][:, :4]]
    biases = [*biases, jnp.sum(gradient, axis=0)]
    layers = [{"kernel": kernel, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True)]
    # Nobody asks where the field's points should move.
    return {f"Dense_{index}": layer for index, layer in enumerate(layers)}, jnp.zeros_like(points)


_network.defvjp(_forward, _backward)


def _head(params: dict[str, Any]) -> dict[str, Any]:
    return params[f"Dense_{len(params) - 1}"]


def _operands(field: RadianceField, params: dict[str, Any]) -> tuple[Array, ...]:
    """Returns what the forward kernels take besides points: the encoding's table, stacked weights and biases."""
    from jaxmeta.kernels.encoding import table  # here as in _network
    from jaxmeta.kernels.layers import stack

    turns = table(field.num_frequencies, field.max_log2_frequency)
    layers = [params[f"Dense_{index}"] for index in range(field.depth)]
    first = jnp.pad(layers[0]["kernel"], ((0, turns.shape[1] - 6 * field.num_frequencies), (0, 0)))
    weights = stack([first, *(layer["kernel"] for layer in layers[1:])], _head(params)["kernel"])
    return jnp.asarray(turns), weights, jnp.stack([layer["bias"] for layer in layers])
