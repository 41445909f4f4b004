"""The radiance field on kernels of our own, with the same parameters and results as `fields.RadianceField`.

`RadianceField` is the reference and runs everywhere. This runs on NVIDIA's Hopper GPUs, and has first derivatives only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from jaxmeta.encoding import positional_encoding
from jaxmeta.fields import RadianceField, activate
from jaxmeta.metalearning import Params

KNOWN_VERSIONS = ("0.11.", "0.12.")
"""Versions of jax whose Pallas the kernels were written for; it changes without notice."""
UNKNOWN_VERSION = f"jax {jax.__version__} is not one of {', '.join(f'{version}x' for version in KNOWN_VERSIONS)}"
"""The obstacle that another jax may remove."""
_CHUNK = 64
"""The kernels' inputs come in multiples of this; what is missing is filled with zeros."""


def fused_apply(field: RadianceField) -> Callable[[Params, Float[Array, "*points 3"]], Any]:
    """Returns `field.apply`, `(params, points) -> (density, rgb)`, with matmuls on bfloat16 operands."""

    def apply(params: Params, points: Float[Array, "*points 3"]) -> Any:
        features = positional_encoding(
            points.reshape(-1, 3), num_frequencies=field.num_frequencies, max_log2_frequency=field.max_log2_frequency
        )
        outputs = _network(params["params"], _fill(features.astype(jnp.bfloat16), 1))
        return activate(outputs.reshape(*points.shape[:-1], 4), field.density_activation)

    return apply


def obstacle(field: RadianceField) -> str | None:
    """Returns what stands against `fused_apply` for a field on this process's devices, or None."""
    if field.compute_dtype != jnp.bfloat16:
        return "--field.compute-dtype is not bfloat16"
    if field.width not in (128, 256):
        return f"--field.width {field.width} is neither 128 nor 256"
    if 6 * field.num_frequencies > 256:
        return f"--field.num-frequencies {field.num_frequencies} is more than 42"
    device = jax.local_devices()[0]
    if getattr(device, "compute_capability", None) != "9.0":
        return f"{device.device_kind} is not a Hopper GPU"
    if not jax.__version__.startswith(KNOWN_VERSIONS):
        return UNKNOWN_VERSION
    return None


@jax.custom_vjp
def _network(params: dict[str, Any], features: BFloat16[Array, "points features"]) -> Float[Array, "points 4"]:
    return _forward(params, features)[0]


def _forward(params: dict[str, Any], features: BFloat16[Array, "points features"]) -> tuple[Array, Any]:
    from jaxmeta import kernels  # brings half a second of imports, which only these GPUs need

    layers = [params[f"Dense_{index}"] for index in range(len(params))]
    weights = [layer["kernel"].astype(jnp.bfloat16) for layer in layers]
    weights[0] = _fill(weights[0], 0)
    activations = [features]
    for kernel, layer in zip(weights[:-1], layers[:-1], strict=True):
        activations.append(kernels.dense_relu(activations[-1], kernel, layer["bias"]))
    outputs = jnp.matmul(activations[-1], weights[-1], preferred_element_type=jnp.float32) + layers[-1]["bias"]
    return outputs, (weights, activations, layers[0]["kernel"].shape[0])


def _backward(residuals: Any, gradient: Float[Array, "points 4"]) -> tuple[dict[str, Any], Array]:
    from jaxmeta import kernels  # as in _forward

    weights, activations, num_features = residuals
    bias_gradient = jnp.sum(gradient, axis=0)
    gradient = gradient.astype(jnp.bfloat16)
    by_layer = {}
    for index in reversed(range(len(weights))):
        kernel_gradient = jnp.matmul(activations[index].T, gradient, preferred_element_type=jnp.float32)
        by_layer[f"Dense_{index}"] = {"kernel": kernel_gradient, "bias": bias_gradient}
        if index:
            back = _fill(weights[index].T, 0)
            gradient, bias_gradient = kernels.dense_masked(_fill(gradient, 1), back, activations[index])
    first = by_layer["Dense_0"]
    by_layer["Dense_0"] = first | {"kernel": first["kernel"][:num_features]}
    # Nobody asks where the field's points should move.
    return by_layer, jnp.zeros_like(activations[0])


_network.defvjp(_forward, _backward)


def _fill(array: Array, axis: int) -> Array:
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, -array.shape[axis] % _CHUNK)
    return jnp.pad(array, padding)
