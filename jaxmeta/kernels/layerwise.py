"""The kernel that takes gradients back through a layer: to its weights, and on to the layer below."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from jaxmeta.kernels.encoding import by_dimension, encode_chunk
from jaxmeta.kernels.launching import (
    CHUNK,
    CONSUMERS,
    STRIPE,
    TILE,
    WIDTH,
    call,
    drain,
    over_scenes,
    take_roles,
    tiled,
    turn,
)
from jaxmeta.kernels.layers import load
from jaxmeta.kernels.slabs import PAIR, Place, Slabs

_NARROW = 16
"""Outputs that the head's gradient is filled up to: the depth of the hardware's matmul."""
_HALF = WIDTH // PAIR


def layerwise(
    gradient: BFloat16[Array, "outputs rows"],
    weights: BFloat16[Array, "stacked 256"],
    head: BFloat16[Array, "256 outputs"],
    points: Float[Array, "rows 3"],
    turns: Float[Array, "4 columns"],
    activations: Sequence[BFloat16[Array, "rows 256"]],
) -> tuple[list[Float[Array, "_ _"]], list[Float[Array, "256"]]]:
    """Returns the gradients of the weights of each layer and of the head, and of the biases of each layer.

    `gradient` is that of the head's outputs, at most 8, and `head` its weights.
    """
    return _layerwise(gradient, weights, head, points, turns, *activations)


_Kind = Literal["head", "layer", "first"]
"""What a kernel goes through: the head, a layer, or the first layer, from which nothing goes on."""


class _Plan(NamedTuple):
    work: Slabs
    kind: _Kind
    inputs: int
    first_row: int
    """Of the weights in the stacked ones; the head's are an array of their own."""

    @property
    def outputs(self) -> int:
        return STRIPE if self.kind == "head" else WIDTH

    @property
    def share(self) -> int:
        """Of the inputs, which a block takes."""
        return self.inputs // PAIR

    @property
    def ring(self) -> int:
        """Slabs that are copied ahead: as many as there is room for."""
        return {"head": 6, "layer": 3, "first": 4}[self.kind]

    @property
    def preparing(self) -> int:
        """Warpgroups that take a slab on, or encode one, in turns; of which the ring holds a multiple."""
        return 1 if self.kind == "layer" else 2


class _Arrays(NamedTuple):
    """In global memory."""

    gradient: Any
    """Of the sums before relu; the head's, of its outputs, is transposed."""
    inputs: Any
    """Those of the first layer are points, which its kernel encodes."""
    weights: Any = None
    ones: Any = None
    turns: Any = None
    products: Any = None
    below: Any = None
    sums: Any = None


class _Buffers(NamedTuple):
    """In shared memory, with the barriers that tell when they are full and when all are done with them."""

    left: Any
    right: Any
    full: Any
    free: Any
    narrow: Any = None
    """The head's gradient once more, in the order that its other matmul asks for."""
    kernel: Any = None
    kernel_here: Any = None
    kernel_free: Any = None
    out: Any = None
    one: Any = None
    one_here: Any = None
    points: Any = None
    turns: Any = None
    turns_here: Any = None
    made: Any = None


def _launch(
    gradient: Array, weights: Array, head: Array, points: Array, turns: Array, *activations: Array
) -> tuple[list[Array], list[Array]]:
    num_outputs, num_rows = gradient.shape[1:]
    filled = jnp.pad(gradient, ((0, 0), (0, _NARROW - num_outputs), (0, -num_rows % CHUNK)))
    wide = jnp.pad(head, ((0, 0), (0, 0), (0, _NARROW - num_outputs)))
    passes = [_pass("head", filled, activations[-1], weights=wide)]
    first_row = turns.shape[2] + (len(activations) - 2) * WIDTH
    for below in activations[-2::-1]:
        passes.append(_pass("layer", passes[-1]["below"], below, first_row, weights=weights))
        first_row -= WIDTH
    first = _pass("first", passes[-1]["below"], by_dimension(points), turns=turns[0])
    products = [one["products"] for one in (first, *passes[::-1])]
    return [*products[:-1], products[-1][..., :num_outputs]], [one["sums"] for one in passes[::-1]]


def _pass(kind: _Kind, gradient: Array, inputs: Array, first_row: int = 0, **extra: Array) -> dict[str, Array]:
    """Takes the gradient through one layer or the head."""
    is_head, is_first = kind == "head", kind == "first"
    num_scenes, num_rows = inputs.shape[:2] if is_head else gradient.shape[:2]
    num_inputs = extra["turns"].shape[1] if is_first else WIDTH
    plan = _Plan(Slabs(num_scenes, 1, False, -(-num_rows // TILE)), kind, num_inputs, first_row)
    parts = (plan.work.pairs, plan.work.parts, PAIR)
    operands = {"gradient": gradient, "inputs": inputs, **extra}
    out_type = {"products": jax.ShapeDtypeStruct((*parts, plan.share, plan.outputs), jnp.float32)}
    scratch = {
        "left": tiled((plan.ring, TILE, plan.share)),
        "right": tiled((plan.ring, STRIPE, TILE) if is_head else (plan.ring, TILE, WIDTH)),
        "full": plgpu.Barrier(num_arrivals=2 + is_head, num_barriers=plan.ring),
        "free": plgpu.ClusterBarrier(
            collective_axes=("block",), num_arrivals=CONSUMERS + (not is_first), num_barriers=plan.ring
        ),
    }
    if is_first:
        scratch |= {
            "points": plgpu.SMEM((plan.ring, 3, TILE), jnp.float32),
            "turns": plgpu.SMEM(extra["turns"].shape, jnp.float32),
            "turns_here": plgpu.Barrier(),
            "made": plgpu.Barrier(num_barriers=plan.ring),
        }
    else:
        operands["ones"] = jnp.ones((STRIPE, TILE), jnp.bfloat16)
        out_type["below"] = jax.ShapeDtypeStruct((num_scenes, num_rows, WIDTH), jnp.bfloat16)
        out_type["sums"] = jax.ShapeDtypeStruct((*parts, plan.preparing, CONSUMERS, CHUNK, STRIPE), jnp.float32)
        scratch |= {
            "kernel": tiled((_HALF, _NARROW), _NARROW) if is_head else tiled((_HALF, WIDTH)),
            "kernel_here": plgpu.Barrier(),
            "kernel_free": plgpu.Barrier(num_arrivals=plan.preparing),
            "out": tiled((plan.preparing, TILE, _HALF)),
            "one": tiled((STRIPE, TILE)),
            "one_here": plgpu.Barrier(),
        }
    if is_head:
        scratch["narrow"] = tiled((plan.ring, _NARROW, TILE), _NARROW)
    names = [*operands, *out_type]
    results = call(
        lambda *refs, **buffers: _body(plan, _Arrays(**dict(zip(names, refs, strict=True))), _Buffers(**buffers)),
        list(out_type.values()),
        scratch,
        f"network_backward_{kind}",
        CONSUMERS + plan.preparing + 1,
        grid=(plan.work.pairs,),
        grid_names=("pair",),
        cluster=(PAIR,),
        cluster_names=("block",),
    )(*operands.values())
    out = dict(zip(out_type, results, strict=True))
    out["products"] = plan.work.add(out["products"]).reshape(num_scenes, num_inputs, plan.outputs)
    if not is_first:  # every column holds the sums
        out["sums"] = plan.work.add(jnp.sum(out["sums"][..., 0], axis=3)).reshape(num_scenes, WIDTH)
    return out


def _body(plan: _Plan, arrays: _Arrays, buffers: _Buffers) -> None:
    place = plan.work.place()
    sums, prepared = {"head": (72, 152), "layer": (160, 168), "first": (104, 120)}[plan.kind]

    def prepare() -> None:
        if plan.kind == "first":
            _encode(plan, buffers, place)
        else:
            _go_on(plan, arrays, buffers, place)

    take_roles(
        place.me,
        (CONSUMERS, sums, lambda: _multiply(plan, arrays, buffers, place)),
        (plan.preparing, prepared, prepare),
        (1, 24, lambda: _copy(plan, arrays, buffers, place)),
    )


def _copy(plan: _Plan, arrays: _Arrays, buffers: _Buffers, place: Place) -> None:
    """Copies a block's share of each slab's inputs, its half of the gradient for both blocks, and the weights."""

    def copy_gradient(scene: Any, some: Any, slot: Any) -> None:
        full, target = buffers.full.at[slot], buffers.right.at[slot]
        if plan.kind == "head":
            plgpu.copy_gmem_to_smem(arrays.gradient.at[scene, pl.ds(0, STRIPE), some], target, full)
            plgpu.copy_gmem_to_smem(arrays.gradient.at[scene, :, some], buffers.narrow.at[slot], full)
        else:
            plgpu.copy_gmem_to_smem(arrays.gradient.at[scene, some, :], target, full, collective_axes="block")

    def copy_kernel(scene: Any, number: Any) -> None:
        pl.when(number > 0)(lambda: plgpu.barrier_wait(buffers.kernel_free))
        source = arrays.weights.at[scene, pl.ds(plan.first_row + place.block * _HALF, _HALF), :]
        plgpu.copy_gmem_to_smem(source, buffers.kernel, buffers.kernel_here)

    if plan.kind == "first":
        plgpu.copy_gmem_to_smem(arrays.turns, buffers.turns, buffers.turns_here)
    else:
        plgpu.copy_gmem_to_smem(arrays.ones, buffers.one, buffers.one_here)

    @pl.loop(0, place.end - place.begin)
    def _(number: Any) -> None:
        slot = turn(number, plan.ring)
        scene, _, inside, _ = plan.work.locate(place.begin + number)
        some = pl.ds(inside * TILE, TILE)
        pl.when(number >= plan.ring)(lambda: plgpu.barrier_wait(buffers.free.at[slot]))
        if plan.kind == "first":
            plgpu.copy_gmem_to_smem(arrays.inputs.at[scene, :, some], buffers.points.at[slot], buffers.full.at[slot])
        else:
            source = arrays.inputs.at[scene, some, _half(place.block)]
            plgpu.copy_gmem_to_smem(source, buffers.left.at[slot], buffers.full.at[slot])
        copy_gradient(scene, some, slot)
        if plan.kind != "first":
            pl.when((number == 0) | (inside == 0))(lambda: copy_kernel(scene, number))

    drain(buffers.free, plan.ring, place.end - place.begin)


def _half(index: Any) -> Any:
    """Returns the slice of a half of 256."""
    return pl.ds(index * _HALF, _HALF)


def _multiply(plan: _Plan, arrays: _Arrays, buffers: _Buffers, place: Place) -> None:
    """Sums up products of inputs and gradients, part by part."""
    me = place.me
    rows = pl.ds(me * CHUNK if plan.share == _HALF else 0, CHUNK)
    if plan.kind == "head":
        columns = [pl.ds(0, STRIPE)]
    elif plan.share == _HALF:  # a matmul of all 256 would take more registers than ptxas gives each of four warpgroups
        columns = [_half(0), _half(1)]
    else:
        columns = [_half(me)]

    def right(slot: Any, some: Any) -> Any:
        return buffers.right.at[slot].transpose((1, 0)) if plan.kind == "head" else buffers.right.at[slot, :, some]

    def run(part: Any, first: Any, stop: Any) -> None:
        def sum_up(*totals: Any) -> None:
            @pl.loop(first, stop)
            def _(number: Any) -> None:
                slot = turn(number, plan.ring)
                plgpu.barrier_wait(buffers.full.at[slot])
                if plan.kind == "first":
                    plgpu.barrier_wait(buffers.made.at[slot])
                for some, total in zip(columns, totals, strict=True):
                    plgpu.wgmma(total, buffers.left.at[slot, :, rows].transpose((1, 0)), right(slot, some))
                plgpu.wgmma_wait(0)  # frees the slab; the other warpgroups keep the units for matmuls busy
                plgpu.barrier_arrive(buffers.free.at[slot])

            for some, total in zip(columns, totals, strict=True):
                arrays.products.at[place.pair, part, place.block, rows, some][...] = total[...]

        accumulator = plgpu.WGMMAAccumulatorRef((CHUNK, min(plan.outputs, _HALF)), jnp.float32)
        pl.run_scoped(sum_up, *[accumulator] * len(columns))

    plan.work.by_parts(place, run)


def _encode(plan: _Plan, buffers: _Buffers, place: Place) -> None:
    """Makes a block's share of the first layer's inputs, of every other slab."""
    plgpu.barrier_wait(buffers.turns_here)

    @pl.loop(place.me - CONSUMERS, place.end - place.begin, step=plan.preparing)
    def _(number: Any) -> None:
        slot = turn(number, plan.ring)
        plgpu.barrier_wait(buffers.full.at[slot])
        for start in range(0, plan.share, CHUNK):
            values = encode_chunk(buffers.points.at[slot], buffers.turns, place.block * plan.share + start)
            buffers.left[slot, :, pl.ds(start, CHUNK)] = values
        plgpu.commit_smem()
        plgpu.barrier_arrive(buffers.made.at[slot])


def _go_on(plan: _Plan, arrays: _Arrays, buffers: _Buffers, place: Place) -> None:
    """Takes the gradient of its slabs on to a block's half of the inputs, and sums it up over rows."""
    mine = place.me - CONSUMERS
    out = buffers.out.at[mine]

    def multiply(slot: Any, total: Any) -> None:
        if plan.kind == "head":
            plgpu.wgmma(total, buffers.narrow.at[slot].transpose((1, 0)), buffers.kernel.transpose((1, 0)))
            return
        for k in range(WIDTH // CHUNK):
            columns = pl.ds(k * CHUNK, CHUNK)
            kernel = buffers.kernel.at[:, columns].transpose((1, 0))
            plgpu.wgmma(total, buffers.right.at[slot, :, columns], kernel)

    def take(slot: Any) -> Any:
        """Returns a slab's gradient, zero where relu cut off the activation."""

        def through(total: Any) -> Any:
            multiply(slot, total)
            activations = load(buffers.left.at[slot], plgpu.Layout.WGMMA)
            plgpu.wgmma_wait(0)
            return total[...], activations

        values, activations = pl.run_scoped(through, plgpu.WGMMAAccumulatorRef((TILE, _HALF), jnp.float32))
        return jnp.where(activations.astype(jnp.float32) > 0.0, values, 0.0).astype(jnp.bfloat16)

    def run(part: Any, first: Any, stop: Any) -> None:
        plgpu.barrier_wait(buffers.kernel_here)

        def sum_up(*sums: Any) -> None:
            @pl.loop(first + turn(first + mine, plan.preparing), stop, step=plan.preparing)
            def _(number: Any) -> None:
                slot = turn(number, plan.ring)
                plgpu.barrier_wait(buffers.full.at[slot])
                values = take(slot)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                out[...] = values
                plgpu.commit_smem()
                plgpu.barrier_arrive(buffers.free.at[slot])
                for chunk, total in enumerate(sums):  # as matmuls: a sum across warps would go through shared memory
                    columns = out.at[:, pl.ds(chunk * CHUNK, CHUNK)]
                    plgpu.wgmma(total, columns.transpose((1, 0)), buffers.one.transpose((1, 0)))
                scene, _, inside, _ = plan.work.locate(place.begin + number)
                target = arrays.below.at[scene, pl.ds(inside * TILE, TILE), _half(place.block)]
                plgpu.copy_smem_to_gmem(out, target)

            plgpu.wgmma_wait(0)
            for chunk, total in enumerate(sums):
                arrays.sums.at[place.pair, part, place.block, mine, chunk][...] = total[...]

        pl.run_scoped(sum_up, *[plgpu.WGMMAAccumulatorRef((CHUNK, STRIPE), jnp.float32)] * CONSUMERS)
        plgpu.wait_smem_to_gmem(0)
        plgpu.barrier_arrive(buffers.kernel_free)

    plgpu.barrier_wait(buffers.one_here)
    plan.work.by_parts(place, run)


_layerwise = over_scenes(_launch)
