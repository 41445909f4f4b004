"""A radiance field's network on the kernels, and the error of the colours that rays see, with first derivatives."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from jaxmeta.devices import scenes_side_by_side
from jaxmeta.fields import OUTPUTS, RadianceField
from jaxmeta.kernels.backward import backward
from jaxmeta.kernels.compositing import squared_error
from jaxmeta.kernels.encoding import encode, table
from jaxmeta.kernels.forward import forward, forward_keeping, forward_marking
from jaxmeta.kernels.launching import STRIPE, WIDTH
from jaxmeta.kernels.layers import stack
from jaxmeta.kernels.layerwise import layerwise
from jaxmeta.kernels.weight_gradients import weight_gradients

_TINY = 1e-30
"""Stands for a bias of zero."""


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
def network(
    field: RadianceField, many: int, params: dict[str, Any], points: Float[Array, "points 3"]
) -> Float[Array, "4 points"]:
    """Returns the head's outputs at the points of a scene, and under a vmap of all scenes.

    Args:
      field: has what it takes, see `fused.obstacle`.
      many: as for `fused.fused_apply`.
      params: of the field, by layer.
      points: a multiple of eight.
    """
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
    del many  # told by what was kept
    filled = jnp.pad(gradient, ((0, STRIPE - OUTPUTS), (0, 0))).astype(jnp.bfloat16)
    return _backward(field, kept, filled, jnp.sum(gradient, axis=1)), None  # nobody asks where points should move


network.defvjp(_network_forward, _network_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def error_of_colours(
    field: RadianceField,
    many: int,
    params: dict[str, Any],
    points: Float[Array, "points 3"],
    intervals: Float[Array, "tiles 64 stretch"],
    target: Float[Array, "rays 3"],
) -> Float[Array, ""]:
    """Returns the mean squared error of the colours that rays see.

    Args:
      field: as for `network`.
      many: as for `network`.
      params: as for `network`.
      points: samples of the rays, by `compositing.in_tiles`.
      intervals: from each sample to the next, by `compositing.in_tiles`.
      target: colours in [0, 1].
    """
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


error_of_colours.defvjp(_error_forward, _error_backward)


def _composite(
    field: RadianceField, params: dict[str, Any], outputs: Float[Array, "8 points"], intervals: Array, target: Array
) -> tuple[Float[Array, ""], BFloat16[Array, "8 points"], Float[Array, "4"]]:
    return squared_error(outputs, _head(params)["bias"], intervals, target, field.density_activation)


def _forward(
    field: RadianceField, many: int, params: dict[str, Any], points: Float[Array, "points 3"]
) -> tuple[Float[Array, "8 points"], _Few | _Many]:
    """Returns the head's outputs without its bias, and what `_backward` needs."""
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
    narrow = gradient[:OUTPUTS].T
    gradients = backward(narrow, kept.weights, kept.head.astype(jnp.bfloat16), kept.cut)
    products, sums = weight_gradients(kept.rows, kept.activations, gradients)
    first, others = jnp.split(products, [kept.rows.shape[-1]])
    head = jnp.matmul(kept.last.T, narrow, preferred_element_type=jnp.float32)
    return [first, *others.reshape(len(sums), WIDTH, WIDTH), head], list(sums)


def _backward_many(kept: _Many, gradient: Array) -> tuple[list[Array], list[Array]]:
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
    angles = table(field.num_frequencies, field.max_log2_frequency)
    layers = [params[f"Dense_{index}"] for index in range(field.depth)]
    first, *later = [layer["bias"] for layer in layers]
    if zero:
        later = [jnp.where(bias == 0.0, zero, bias) for bias in later]
    kernels = [layer["kernel"] for layer in layers]
    return jnp.asarray(angles), stack(kernels, [first, *later], angles.shape[1], _head(params)["kernel"])
