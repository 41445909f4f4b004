"""The radiance field on kernels of our own, with the same parameters and results as `fields.RadianceField`.

`RadianceField` is the reference and runs everywhere. This runs on NVIDIA's Hopper GPUs, and has first derivatives only.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from jaxmeta.cameras import Rays
from jaxmeta.devices import scenes_side_by_side
from jaxmeta.fields import OUTPUTS, RadianceField, activate
from jaxmeta.metalearning import Params
from jaxmeta.objectives import squared_error
from jaxmeta.rendering import Sampling, sample_intervals, sample_points, stratified_distances

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
        return activate(outputs[:, : len(flat)].reshape(OUTPUTS, *points.shape[:-1]), field.density_activation)

    return apply


def fused_error(field: RadianceField, *, many: int = MANY) -> Callable[..., Float[Array, ""]]:
    """Returns `objectives.squared_error` of `fused_apply`, without its first argument.

    Where `kernels.compositing.possible` a kernel composites; then there is a gradient by the parameters alone.

    Args:
      field: as for `fused_apply`.
      many: as for `fused_apply`.
    """

    def error(
        params: Params,
        rays: Rays,
        uniform: Float[Array, "rays samples"],
        target: Float[Array, "rays 3"],
        sampling: Sampling,
    ) -> Float[Array, ""]:
        from jaxmeta.kernels import compositing  # here as in _network

        if not compositing.possible(*uniform.shape):
            return squared_error(fused_apply(field, many=many), params, rays, uniform, target, sampling)
        distances = stratified_distances(uniform, sampling)
        intervals = compositing.in_tiles(sample_intervals(distances, last_interval=sampling.last_interval))
        points = compositing.in_tiles(sample_points(rays, distances)).reshape(-1, 3)
        return _error(field, many, params["params"], points, intervals, target)

    return error


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


class _Many(NamedTuple):
    """The same where they are many: back layer by layer, which reads and writes less."""

    weights: Array
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


def _network_forward(
    field: RadianceField, many: int, params: dict[str, Any], points: Float[Array, "points 3"]
) -> tuple[Float[Array, "4 points"], _Few | _Many]:
    outputs, kept = _forward(field, many, params, points)
    return _add_bias(outputs, params), kept


def _network_backward(
    field: RadianceField, many: int, kept: _Few | _Many, gradient: Float[Array, "4 points"]
) -> tuple[dict[str, Any], None]:
    from jaxmeta.kernels.launching import STRIPE  # here as in _network

    del many  # told by what was kept
    filled = jnp.pad(gradient, ((0, STRIPE - OUTPUTS), (0, 0))).astype(jnp.bfloat16)
    return _backward(field, kept, filled, jnp.sum(gradient, axis=1)), None  # nobody asks where points should move


_network.defvjp(_network_forward, _network_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _error(
    field: RadianceField,
    many: int,
    params: dict[str, Any],
    points: Float[Array, "points 3"],
    intervals: Float[Array, "tiles 64 stretch"],
    target: Float[Array, "rays 3"],
) -> Float[Array, ""]:
    from jaxmeta.kernels.forward import forward  # here as in _network

    del many
    return _composite(field, params, forward(points, *_operands(field, params)), intervals, target)[0]


def _error_forward(
    field: RadianceField, many: int, params: dict[str, Any], points: Array, intervals: Array, target: Array
) -> tuple[Float[Array, ""], tuple[_Few | _Many, Array, Array]]:
    outputs, kept = _forward(field, many, params, points)
    error, gradient, head_bias = _composite(field, params, outputs, intervals, target)
    return error, (kept, gradient, head_bias)


def _error_backward(
    field: RadianceField, many: int, kept: tuple[_Few | _Many, Array, Array], factor: Float[Array, ""]
) -> tuple[dict[str, Any], None, None, None]:
    del many
    return jax.tree.map(lambda leaf: factor * leaf, _backward(field, *kept)), None, None, None


_error.defvjp(_error_forward, _error_backward)


def _composite(
    field: RadianceField, params: dict[str, Any], outputs: Float[Array, "8 points"], intervals: Array, target: Array
) -> tuple[Float[Array, ""], BFloat16[Array, "8 points"], Float[Array, "4"]]:
    from jaxmeta.kernels import compositing  # here as in _network

    return compositing.squared_error(outputs, _head(params)["bias"], intervals, target, field.density_activation)


def _forward(
    field: RadianceField, many: int, params: dict[str, Any], points: Float[Array, "points 3"]
) -> tuple[Float[Array, "8 points"], _Few | _Many]:
    """Returns the head's outputs without its bias, and what `_backward` needs."""
    from jaxmeta.kernels.encoding import encode  # here as in _network
    from jaxmeta.kernels.forward import forward_keeping, forward_marking

    if scenes_side_by_side() * len(points) >= many:
        angles, weights = _operands(field, params)
        outputs, activations, last = forward_keeping(points, angles, weights)
        return outputs, _Many(weights, angles, activations, last, points)
    # Relu cuts off what has a sign, and so must be a sum of nothing, where all units below are cut off.
    angles, weights = _operands(field, params, zero=-_TINY)
    outputs, activations, last, cut = forward_marking(points, angles, weights)
    rows = encode([points[:, k, None] for k in range(3)], angles)
    return outputs, _Few(rows, weights, _head(params)["kernel"], activations, last, cut)


def _backward(
    field: RadianceField, kept: _Few | _Many, gradient: BFloat16[Array, "8 points"], head_bias: Float[Array, "4"]
) -> dict[str, Any]:
    """Returns the gradients of the parameters by that of the head's outputs; `head_bias` is one of them."""
    if isinstance(kept, _Few):
        kernels, biases = _backward_few(field, kept, gradient)
    else:
        kernels, biases = _backward_many(kept, gradient)
    num_features = 6 * field.num_frequencies
    biases = [kernels[0][num_features], *biases, head_bias]  # a one stands there in all of the first layer's inputs
    kernels[0] = kernels[0][:num_features]
    layers = [{"kernel": kernel, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True)]
    return {f"Dense_{index}": layer for index, layer in enumerate(layers)}


def _backward_few(field: RadianceField, kept: _Few, gradient: Array) -> tuple[list[Array], list[Array]]:
    from jaxmeta.kernels.backward import backward  # here as in _network
    from jaxmeta.kernels.launching import WIDTH
    from jaxmeta.kernels.weight_gradients import weight_gradients

    narrow = gradient[:OUTPUTS].T
    gradients = backward(narrow, kept.weights, kept.head.astype(jnp.bfloat16), kept.cut)
    products, sums = weight_gradients(kept.rows, kept.activations, gradients)
    first, others = jnp.split(products, [kept.rows.shape[-1]])
    head = jnp.matmul(kept.last.T, narrow, preferred_element_type=jnp.float32)
    return [first, *others.reshape(len(sums), WIDTH, WIDTH), head], list(sums)


def _backward_many(kept: _Many, gradient: Array) -> tuple[list[Array], list[Array]]:
    from jaxmeta.kernels.layerwise import layerwise  # here as in _network

    kernels, biases = layerwise(gradient, kept.weights, kept.points, kept.angles, kept.activations, kept.last)
    kernels[-1] = kernels[-1][:, :OUTPUTS]
    return kernels, biases


def _add_bias(outputs: Float[Array, "8 points"], params: dict[str, Any]) -> Float[Array, "4 points"]:
    return outputs[:OUTPUTS] + _head(params)["bias"][:, None]


def _head(params: dict[str, Any]) -> dict[str, Any]:
    return params[f"Dense_{len(params) - 1}"]


def _operands(field: RadianceField, params: dict[str, Any], *, zero: float = 0.0) -> tuple[Array, Array]:
    """Returns what the forward kernels take besides points: the encoding's table and the stacked weights.

    `zero` stands for a bias of zero after the first layer.
    """
    from jaxmeta.kernels.encoding import table  # here as in _network
    from jaxmeta.kernels.layers import stack

    angles = table(field.num_frequencies, field.max_log2_frequency)
    layers = [params[f"Dense_{index}"] for index in range(field.depth)]
    first, *later = [layer["bias"] for layer in layers]
    if zero:
        later = [jnp.where(bias == 0.0, zero, bias) for bias in later]
    kernels = [layer["kernel"] for layer in layers]
    return jnp.asarray(angles), stack(kernels, [first, *later], angles.shape[1], _head(params)["kernel"])
