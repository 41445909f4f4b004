"""A network's outputs at many points, or at what encodes them, and if asked for what gradients need of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Int32

from jaxmeta.kernels.encoding import by_dimension
from jaxmeta.kernels.forward_pass import Buffers, Plan, body
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, STRIPE, WIDTH, call, over_scenes
from jaxmeta.kernels.layers import Work


def forward(
    points: Float[Array, "rows 3"],
    turns: Float[Array, "4 columns"],
    weights: BFloat16[Array, "stacked 256"],
    biases: Float[Array, "layers 256"],
) -> Float[Array, "rows 8"]:
    """Returns the head's outputs, without its bias and filled up with zeros; under a vmap scenes share one launch.

    `turns` is the encoding's table.
    """
    return _forward(points, turns, weights, biases)


def forward_keeping(
    points: Float[Array, "rows 3"],
    turns: Float[Array, "4 columns"],
    weights: BFloat16[Array, "stacked 256"],
    biases: Float[Array, "layers 256"],
) -> tuple[Float[Array, "rows 8"], list[BFloat16[Array, "rows 256"]]]:
    """Returns as `forward`, and each layer's activations, for `layerwise`."""
    return _forward_keeping(points, turns, weights, biases)


def forward_marking(
    rows: BFloat16[Array, "rows columns"],
    weights: BFloat16[Array, "stacked 256"],
    biases: Float[Array, "layers 256"],
) -> tuple[Float[Array, "rows 8"], list[BFloat16[Array, "rows 256"]], Int32[Array, "layers padded_rows 8"]]:
    """Returns as `forward_keeping`, of encoded points, and in bits where relu cut activations off, for `backward`.

    Bit 31 - j of [layer, row, c] is the sign of column 8 j + c before relu: each thread packs what it holds. So no bias
    may be zero.
    """
    return _forward_marking(rows, weights, biases)


def _launch_on_points(keep: bool, points: Array, turns: Array, weights: Array, biases: Array) -> Any:
    plan = Plan(Work(*points.shape[:2]), _chunks(turns, biases), encodes=True)
    outputs, *activations = _launch(plan, [by_dimension(points), turns[0], weights, biases], keep=keep)
    return (outputs, activations) if keep else outputs


def _launch_on_rows(rows: Array, weights: Array, biases: Array) -> Any:
    plan = Plan(Work(*rows.shape[:2]), _chunks(rows, biases), encodes=False)
    outputs, *activations, cut = _launch(plan, [rows, weights, biases], keep=True)
    return outputs, activations, cut


def _chunks(inputs: Array, biases: Array) -> tuple[int, ...]:
    return inputs.shape[2] // CHUNK, *[WIDTH // CHUNK] * (biases.shape[1] - 1)


def _launch(plan: Plan, operands: list[Array], *, keep: bool) -> list[Array]:
    num_scenes, num_rows = plan.work
    padded_rows = plan.work.padded_rows
    out_type = [jax.ShapeDtypeStruct((num_scenes, padded_rows, STRIPE), jnp.float32)]
    if keep:
        out_type += [jax.ShapeDtypeStruct((num_scenes, num_rows, WIDTH), jnp.bfloat16)] * plan.layers
    if not plan.encodes:
        out_type.append(jax.ShapeDtypeStruct((num_scenes, plan.layers, padded_rows, STRIPE), jnp.int32))
    outputs, *kept = call(
        functools.partial(body, plan),
        out_type,
        Buffers.scratch(plan),
        "network_forward",
        CONSUMERS + 1,
        grid=(plan.work.blocks,),
        grid_names=("block",),
    )(*operands)
    return [outputs[:, :num_rows], *kept]


_forward = over_scenes(functools.partial(_launch_on_points, False), rows_only=True)
_forward_keeping = over_scenes(functools.partial(_launch_on_points, True))
_forward_marking = over_scenes(_launch_on_rows)
