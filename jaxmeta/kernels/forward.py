"""A network's outputs at many points, and if asked for what gradients need of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Int32

from jaxmeta.kernels.encoding import by_dimension
from jaxmeta.kernels.forward_pass import Buffers, Plan, body
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, DEPTH, STRIPE, TILE, WIDTH, call, constant, over_scenes
from jaxmeta.kernels.layers import PARTS, Work, count_later_layers


def forward(
    points: Float[Array, "rows 3"],
    angles: Float[Array, "4 columns"],
    weights: BFloat16[Array, "stacked 256"],
) -> Float[Array, "8 rows"]:
    """Returns the head's outputs, without its bias and filled up with zeros; under a vmap scenes share one launch.

    `angles` is the encoding's table, `weights` are those of `layers.stack`.
    """
    return _forward(points, angles, weights)


def forward_keeping(
    points: Float[Array, "rows 3"],
    angles: Float[Array, "4 columns"],
    weights: BFloat16[Array, "stacked 256"],
) -> tuple[Float[Array, "8 rows"], BFloat16[Array, "later_layers rows 256"], BFloat16[Array, "rows 256"]]:
    """Returns as `forward`, and for `layerwise` the activations of all layers but the last, and the last's."""
    return _forward_keeping(points, angles, weights)


def forward_marking(
    points: Float[Array, "rows 3"],
    angles: Float[Array, "4 columns"],
    weights: BFloat16[Array, "stacked 256"],
) -> tuple[
    Float[Array, "8 rows"],
    BFloat16[Array, "later_layers rows 256"],
    BFloat16[Array, "rows 256"],
    Int32[Array, "layers padded_rows 8"],
]:
    """Returns as `forward_keeping`, and in bits where relu cut activations off, for `backward`.

    Bit 31 - j of [layer, row, c] is the sign of column 8 j + c before relu: each thread packs what it holds. So no bias
    may be zero.
    """
    return _forward_marking(points, angles, weights)


def _launch(points: Array, angles: Array, weights: Array, *, keep: bool, mark: bool) -> Any:
    num_scenes, num_rows = points.shape[:2]
    later_layers = count_later_layers(weights.shape[1], angles.shape[2])
    chunks = angles.shape[2] // CHUNK, *[WIDTH // CHUNK] * later_layers
    plan = Plan(Work(num_scenes, num_rows), chunks, keep, mark)
    padded_rows = plan.work.padded_rows
    out_type = [jax.ShapeDtypeStruct((num_scenes, STRIPE, padded_rows), jnp.float32)]
    if keep:
        out_type.append(jax.ShapeDtypeStruct((num_scenes, later_layers, num_rows, WIDTH), jnp.bfloat16))
        out_type.append(jax.ShapeDtypeStruct((num_scenes, num_rows, WIDTH), jnp.bfloat16))
    if mark:
        out_type.append(jax.ShapeDtypeStruct((num_scenes, later_layers + 1, padded_rows, STRIPE), jnp.int32))
    ones = constant(np.zeros((TILE, 1)) + (np.arange(DEPTH) < PARTS))
    outputs, *kept = call(
        functools.partial(body, plan),
        out_type,
        Buffers.scratch(plan),
        "network_forward",
        CONSUMERS + 1,
        grid=(plan.work.blocks,),
        grid_names=("block",),
    )(by_dimension(points), angles[0], ones, weights)
    outputs = outputs[..., :num_rows]
    return [outputs, *kept] if keep else outputs


_forward = over_scenes(functools.partial(_launch, keep=False, mark=False), rows_only=True)
_forward_keeping = over_scenes(functools.partial(_launch, keep=True, mark=False))
_forward_marking = over_scenes(functools.partial(_launch, keep=True, mark=True))
