"""Gradients of all layers, back from the head, in three launches: the head, the layers one by one, the first."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float

from jaxmeta.kernels.encoding import by_dimension
from jaxmeta.kernels.launching import CONSUMERS, STRIPE, TILE, WIDTH, call, constant, over_scenes
from jaxmeta.kernels.layer_pass import body
from jaxmeta.kernels.layer_plan import Arrays, Buffers, Kind, Plan
from jaxmeta.kernels.layers import HEAD_ROW, first_row
from jaxmeta.kernels.slabs import HALF, PAIR, Slabs


def layerwise(
    gradient: BFloat16[Array, "8 rows"],
    weights: BFloat16[Array, "stacked 256"],
    points: Float[Array, "rows 3"],
    angles: Float[Array, "4 columns"],
    activations: BFloat16[Array, "later_layers rows 256"],
    last: BFloat16[Array, "rows 256"],
) -> tuple[list[Float[Array, "_ _"]], list[Float[Array, "256"]]]:
    """Returns the gradients of the weights of each layer and of the head, filled up, and of the biases of each layer.

    `gradient` is that of the head's outputs, filled up with zeros; `weights` are those of `layers.stack`; `last` are
    the activations of the last layer, `activations` those of the others.
    """
    return _layerwise(gradient, weights, points, angles, activations, last)


def _launch(
    gradient: Array, weights: Array, points: Array, angles: Array, activations: Array, last: Array
) -> tuple[list[Array], list[Array]]:
    num_rows = gradient.shape[2]
    filled = jnp.pad(gradient, ((0, 0), (0, 0), (0, -num_rows % TILE)))
    layers = activations.shape[1]
    over_rows = functools.partial(_pass, num_rows)
    outer = over_rows("head", filled, last[:, None], row=HEAD_ROW, weights=weights)
    inner = over_rows(
        "layer",
        outer["below"],
        activations,
        before=1,
        layers=layers,
        row=first_row(layers) + angles.shape[2],
        weights=weights,
    )
    first = over_rows("first", inner["below"], by_dimension(points), before=1 + layers, angles=angles[0])
    products = [*first["products"], *inner["products"][::-1], outer["products"][0]]
    return products, [*inner["sums"][::-1], *outer["sums"]]


def _pass(
    num_rows: int,
    kind: Kind,
    gradient: Array,
    inputs: Array,
    *,
    before: int = 0,
    layers: int = 1,
    row: int = 0,
    **extra: Array,
) -> dict[str, Any]:
    """Takes the gradient through the head, or through layers one after another, after so many passes before.

    `row` is where their weights begin in the stacked ones, which the pass through the first layer does without. Its
    results are lists, by layer in that order, but for the gradient that goes on.
    """
    num_scenes = len(inputs)
    num_inputs = extra["angles"].shape[1] if kind == "first" else WIDTH
    work = Slabs(num_scenes, 1, False, -(-num_rows // TILE))
    plan = Plan(work, kind, num_inputs, layers, row, before)
    parts = (layers, work.pairs, work.parts, PAIR)
    operands = {"gradient": gradient, "inputs": inputs, **extra}
    out_type = {"products": jax.ShapeDtypeStruct((*parts, plan.share, plan.outputs), jnp.float32)}
    if kind != "first":
        operands["ones"] = constant(np.arange(STRIPE)[:, None] == np.zeros(TILE))
        slots = (2,) if kind == "layer" else ()
        out_type["below"] = jax.ShapeDtypeStruct((num_scenes, *slots, num_rows, WIDTH), jnp.bfloat16)
        out_type["sums"] = jax.ShapeDtypeStruct((*parts, HALF, STRIPE), jnp.float32)
    names = [*operands, *out_type]
    results = call(
        lambda *refs, **buffers: body(plan, Arrays(**dict(zip(names, refs, strict=True))), Buffers(**buffers)),
        list(out_type.values()),
        Buffers.scratch(plan),
        f"network_backward_{kind}",
        CONSUMERS + plan.encoding + 1,
        grid=(work.pairs,),
        grid_names=("pair",),
        cluster=(PAIR,),
        cluster_names=("block",),
    )(*operands.values())
    out: dict[str, Any] = dict(zip(out_type, results, strict=True))
    out["products"] = [work.add(one).reshape(num_scenes, num_inputs, plan.outputs) for one in out["products"]]
    if kind != "first":  # of whose columns the first holds the sums
        out["sums"] = [work.add(one[..., 0]).reshape(num_scenes, WIDTH) for one in out["sums"]]
    return out


_layerwise = over_scenes(_launch)
