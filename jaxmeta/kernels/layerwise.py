"""Gradients of all layers, in three launches: the head and the last layer, those between one by one, the first."""

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
from jaxmeta.kernels.layers import first_row, unpack_halves
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
    num_rows, layers = gradient.shape[2], activations.shape[1]
    filled = jnp.pad(gradient, ((0, 0), (0, 0), (0, -num_rows % TILE)))
    row = first_row(layers) + angles.shape[2]
    through = functools.partial(_pass, num_rows)
    passes = [through("last", filled, activations, top=layers - 1, row=row, last=last, weights=weights)]
    below = passes[0]["below"]
    if layers > 1:
        between = {"top": layers - 2, "layers": layers - 1, "row": row, "before": 1, "weights": weights}
        passes.append(through("between", below, activations, **between))
        below = passes[1]["below"]
    else:
        below = below[:, None]
    first = through("first", below, by_dimension(points), before=layers, angles=angles[0])
    products = [product for one in passes for product in one["products"]]
    sums = [some for one in passes for some in one["sums"]]
    return [*first["products"], *products[::-1], passes[0]["head"]], sums[::-1]


def _pass(
    num_rows: int,
    kind: Kind,
    gradient: Array,
    inputs: Array,
    *,
    before: int = 0,
    layers: int = 1,
    top: int = 0,
    row: int = 0,
    **extra: Array,
) -> dict[str, Any]:
    """Takes the gradient through layers one after another from `top`, after so many before.

    `row` is where the weights of the later layers begin in the stacked ones. Its results are lists, by layer in that
    order, but for the gradient that goes on and the head's products.
    """
    num_scenes = len(inputs)
    num_inputs = extra["angles"].shape[1] if kind == "first" else WIDTH
    work = Slabs(num_scenes, 1, False, -(-num_rows // TILE))
    plan = Plan(work, kind, num_inputs, layers, top, row, before)
    of_part = (work.pairs, work.parts, PAIR)
    parts = (layers, *of_part)
    operands, out_type = {"gradient": gradient, "inputs": inputs, **extra}, {}
    if kind == "first":
        out_type["products"] = jax.ShapeDtypeStruct((*parts, plan.share, WIDTH), jnp.float32)
    else:
        operands["ones"] = constant(np.arange(STRIPE)[:, None] == np.zeros(TILE))
        slots = (2,) if kind == "between" else ()
        out_type["below"] = jax.ShapeDtypeStruct((num_scenes, *slots, num_rows, WIDTH), jnp.bfloat16)
        out_type["products"] = jax.ShapeDtypeStruct((*parts, plan.share, HALF), jnp.int32)
        out_type["sums"] = jax.ShapeDtypeStruct((*parts, HALF, STRIPE), jnp.float32)
    if kind == "last":
        out_type["head"] = jax.ShapeDtypeStruct((*of_part, HALF, STRIPE), jnp.float32)
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
    if kind != "first":  # of whose sums the first column holds all
        out["products"] = unpack_halves(out["products"])
        out["sums"] = [work.add(one).reshape(num_scenes, WIDTH) for one in out["sums"][..., 0]]
    if kind == "last":
        out["head"] = work.add(out["head"]).reshape(num_scenes, WIDTH, STRIPE)
    out["products"] = [work.add(one).reshape(num_scenes, num_inputs, WIDTH) for one in out["products"]]
    return out


_layerwise = over_scenes(_launch)
