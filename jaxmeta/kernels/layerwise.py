"""Gradients of all layers, back from the head: a launch for each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from jaxmeta.kernels.encoding import by_dimension
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, DEPTH, STRIPE, TILE, WIDTH, call, over_scenes
from jaxmeta.kernels.layer_pass import body
from jaxmeta.kernels.layer_plan import Arrays, Buffers, Kind, Plan
from jaxmeta.kernels.slabs import HALF, PAIR, Slabs


def layerwise(
    gradient: BFloat16[Array, "outputs rows"],
    weights: BFloat16[Array, "stacked 256"],
    head: BFloat16[Array, "256 outputs"],
    points: Float[Array, "rows 3"],
    angles: Float[Array, "4 columns"],
    activations: BFloat16[Array, "later_layers rows 256"],
    last: BFloat16[Array, "rows 256"],
) -> tuple[list[Float[Array, "_ _"]], list[Float[Array, "256"]]]:
    """Returns the gradients of the weights of each layer and of the head, and of the biases of each layer.

    `gradient` is that of the head's outputs, at most 8, and `head` its weights; `last` are the activations of the last
    layer, `activations` those of the others.
    """
    return _layerwise(gradient, weights, head, points, angles, activations, last)


def _launch(
    gradient: Array, weights: Array, head: Array, points: Array, angles: Array, activations: Array, last: Array
) -> tuple[list[Array], list[Array]]:
    num_outputs, num_rows = gradient.shape[1:]
    filled = jnp.pad(gradient, ((0, 0), (0, STRIPE - num_outputs), (0, -num_rows % TILE)))
    wide = jnp.pad(head, ((0, 0), (0, 0), (0, DEPTH - num_outputs)))
    passes = [_pass("head", True, filled, last[:, None], weights=wide)]
    for layer in reversed(range(activations.shape[1])):
        down, first_row = len(passes) % 2 == 0, angles.shape[2] + layer * WIDTH
        passes.append(_pass("layer", down, passes[-1]["below"], activations, layer, first_row, weights=weights))
    down = len(passes) % 2 == 0
    first = _pass("first", down, passes[-1]["below"], by_dimension(points), angles=angles[0])
    products = [one["products"] for one in (first, *passes[::-1])]
    return [*products[:-1], products[-1][..., :num_outputs]], [one["sums"] for one in passes[::-1]]


def _pass(
    kind: Kind, down: bool, gradient: Array, inputs: Array, layer: int = 0, first_row: int = 0, **extra: Array
) -> dict[str, Array]:
    """Takes the gradient through one layer or the head."""
    num_scenes = len(inputs)
    num_rows = inputs.shape[2] if kind == "head" else gradient.shape[1]
    num_inputs = extra["angles"].shape[1] if kind == "first" else WIDTH
    plan = Plan(Slabs(num_scenes, 1, False, -(-num_rows // TILE)), kind, num_inputs, down, layer, first_row)
    parts = (plan.work.pairs, plan.work.parts, PAIR)
    operands = {"gradient": gradient, "inputs": inputs, **extra}
    out_type = {"products": jax.ShapeDtypeStruct((*parts, plan.share, plan.outputs), jnp.float32)}
    if kind != "first":
        operands["ones"] = jnp.ones((STRIPE, TILE), jnp.bfloat16)
        out_type["below"] = jax.ShapeDtypeStruct((num_scenes, num_rows, WIDTH), jnp.bfloat16)
        out_type["sums"] = jax.ShapeDtypeStruct((*parts, plan.preparing, HALF // CHUNK, CHUNK, STRIPE), jnp.float32)
    names = [*operands, *out_type]
    results = call(
        lambda *refs, **buffers: body(plan, Arrays(**dict(zip(names, refs, strict=True))), Buffers(**buffers)),
        list(out_type.values()),
        Buffers.scratch(plan),
        f"network_backward_{kind}",
        CONSUMERS + plan.preparing + 1,
        grid=(plan.work.pairs,),
        grid_names=("pair",),
        cluster=(PAIR,),
        cluster_names=("block",),
    )(*operands.values())
    out = dict(zip(out_type, results, strict=True))
    out["products"] = plan.work.add(out["products"]).reshape(num_scenes, num_inputs, plan.outputs)
    if kind != "first":  # every column holds the sums
        out["sums"] = plan.work.add(jnp.sum(out["sums"][..., 0], axis=3)).reshape(num_scenes, WIDTH)
    return out


_layerwise = over_scenes(_launch)
