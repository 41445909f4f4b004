"""The radiance field on kernels of our own, with the same parameters and results as `fields.RadianceField`.

`RadianceField` is the reference and runs everywhere. This runs on NVIDIA's Hopper GPUs, and has first derivatives only.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmeta.devices import scenes_side_by_side
from jaxmeta.fields import RadianceField, activate
from jaxmeta.metalearning import Params

KNOWN_VERSIONS = ("0.11.", "0.12.")
"""Versions of jax whose Pallas the kernels were written for; it changes without notice."""
UNKNOWN_VERSION = f"jax {jax.__version__} is not one of {', '.join(f'{version}x' for version in KNOWN_VERSIONS)}"
"""The obstacle that another jax may remove."""
_ROWS = 8
"""The kernels' rows come in multiples of this; what is missing is filled up."""
MANY = 2**16
"""Four scenes of 128 rays of 128 samples: faster layer by layer (row HH of the benchmarks), as three are not (LL)."""
_TINY = 1e-30
"""Stands for a bias of zero."""


def fused_apply(field: RadianceField, *, many: int = MANY) -> Callable[[Params, Float[Array, "*points 3"]], Any]:
    """Returns `field.apply`, `(params, points) -> (density, rgb)`, with matmuls on bfloat16 operands.

    Args:
      field: has what it takes, see `obstacle`.
      many: points of all scenes that a device takes at once from which on gradients come of the kernels for many.
    """

    def apply(params: Params, points: Float[Array, "*points 3"]) -> Any:
        flat = points.reshape(-1, 3)
        filled = jnp.pad(flat, ((0, -len(flat) % _ROWS), (0, 0)))
        outputs: Any = _network(field, many, params["params"], filled)
        return activate(outputs[:, : len(flat)].reshape(4, *points.shape[:-1]), field.density_activation)

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


class _Few(NamedTuple):
    """What goes from forward to backward where the points are few: all layers in two kernels, for launches count."""

    rows: Array
    weights: Array
    head: Array
    activations: Array
    """Of all layers but the last."""
    last: Array
    cut: Array
    points: Array


class _Many(NamedTuple):
    """The same where they are many: back layer by layer, which reads and writes less."""

    weights: Array
    head: Array
    angles: Array
    activations: Array
    last: Array
    points: Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _network(
    field: RadianceField, many: int, params: dict[str, Any], points: Float[Array, "points 3"]
) -> Float[Array, "4 points"]:
    from jaxmeta.kernels.forward import forward  # brings half a second of imports, which only these GPUs need

    del many  # there is no gradient
    return _add_bias(forward(points, *_operands(field, params)), params)


def _forward(
    field: RadianceField, many: int, params: dict[str, Any], points: Float[Array, "points 3"]
) -> tuple[Float[Array, "4 points"], _Few | _Many]:
    from jaxmeta.kernels.encoding import encode  # here as in _network
    from jaxmeta.kernels.forward import forward_keeping, forward_marking

    angles, weights, biases = _operands(field, params)
    head = _head(params)["kernel"]
    if scenes_side_by_side() * len(points) < many:
        # Relu cuts off what has a sign, and so must be a sum of nothing, where all units below are cut off.
        biases = jnp.where(biases == 0.0, -_TINY, biases)
        outputs, activations, last, cut = forward_marking(points, angles, weights, biases)
        rows = encode([points[:, k, None] for k in range(3)], angles)
        kept = _Few(rows, weights, head, activations, last, cut, points)
    else:
        outputs, activations, last = forward_keeping(points, angles, weights, biases)
        kept = _Many(weights, head, angles, activations, last, points)
    return _add_bias(outputs, params), kept


def _backward(
    field: RadianceField, many: int, kept: _Few | _Many, gradient: Float[Array, "4 points"]
) -> tuple[dict[str, Any], Array]:
    del many  # told by what was kept
    if isinstance(kept, _Few):
        kernels, biases = _backward_few(field, kept, gradient)
    else:
        kernels, biases = _backward_many(kept, gradient)
    kernels[0] = kernels[0][: 6 * field.num_frequencies]
    biases = [*biases, jnp.sum(gradient, axis=1)]
    layers = [{"kernel": kernel, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True)]
    # Nobody asks where the field's points should move.
    return {f"Dense_{index}": layer for index, layer in enumerate(layers)}, jnp.zeros_like(kept.points)


def _backward_few(field: RadianceField, kept: _Few, gradient: Float[Array, "4 points"]) -> tuple[list[Array], Any]:
    from jaxmeta.kernels.backward import backward  # here as in _network
    from jaxmeta.kernels.launching import WIDTH
    from jaxmeta.kernels.weight_gradients import weight_gradients

    narrow = gradient.T.astype(jnp.bfloat16)
    gradients = backward(narrow, kept.weights, kept.head.astype(jnp.bfloat16), kept.cut)
    products, sums = weight_gradients(kept.rows, kept.activations, gradients)
    first, others = jnp.split(products, [kept.rows.shape[-1]])
    head = jnp.matmul(kept.last.T, narrow, preferred_element_type=jnp.float32)
    biases = [first[6 * field.num_frequencies], *sums]  # a one stands there in every row
    return [first, *others.reshape(len(sums), WIDTH, WIDTH), head], biases


def _backward_many(kept: _Many, gradient: Float[Array, "4 points"]) -> tuple[list[Array], Any]:
    from jaxmeta.kernels.layerwise import layerwise  # here as in _network

    narrow, head = gradient.astype(jnp.bfloat16), kept.head.astype(jnp.bfloat16)
    return layerwise(narrow, kept.weights, head, kept.points, kept.angles, kept.activations, kept.last)


_network.defvjp(_forward, _backward)


def _add_bias(outputs: Float[Array, "points 8"], params: dict[str, Any]) -> Float[Array, "4 points"]:
    # The barrier has XLA transpose them once, not in each kernel that reads them.
    return jax.lax.optimization_barrier(outputs[:, :4].T + _head(params)["bias"][:, None])


def _head(params: dict[str, Any]) -> dict[str, Any]:
    return params[f"Dense_{len(params) - 1}"]


def _operands(field: RadianceField, params: dict[str, Any]) -> tuple[Array, Array, Array]:
    """Returns what the forward kernels take besides points: the encoding's table, stacked weights, and biases."""
    from jaxmeta.kernels.encoding import table  # here as in _network
    from jaxmeta.kernels.layers import stack

    angles = table(field.num_frequencies, field.max_log2_frequency)
    layers = [params[f"Dense_{index}"] for index in range(field.depth)]
    kernels = [layer["kernel"] for layer in layers]
    weights = stack(kernels, layers[0]["bias"], angles.shape[1], _head(params)["kernel"])
    return jnp.asarray(angles), weights, jnp.stack([layer["bias"] for layer in layers[1:]])
