"""The kernel that takes a tile of rows through all layers and the head."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float, Int32

from jaxmeta.kernels.launching import (
    CHUNK,
    CONSUMERS,
    RING,
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
from jaxmeta.kernels.layers import Ring, Work, columns_of, load, pack, store


def forward(
    rows: BFloat16[Array, "rows features"],
    weights: BFloat16[Array, "stacked 256"],
    biases: Float[Array, "layers 256"],
) -> Float[Array, "rows 8"]:
    """Returns the head's outputs, without its bias and filled up with zeros; under a vmap scenes share one launch."""
    return _forward(rows, weights, biases)


def forward_keeping(
    rows: BFloat16[Array, "rows features"],
    weights: BFloat16[Array, "stacked 256"],
    biases: Float[Array, "layers 256"],
) -> tuple[Float[Array, "rows 8"], list[BFloat16[Array, "rows 256"]], Int32[Array, "layers padded_rows 8"]]:
    """Returns as `forward`, and each layer's activations, and in bits where relu cut them off, for `backward`.

    Bit 31 - j of [layer, row, c] is the sign of column 8 j + c before relu: each thread packs what it holds.
    """
    return _forward_keeping(rows, weights, biases)


class _Plan(NamedTuple):
    work: Work
    chunks: tuple[int, ...]
    """Of each layer's inputs."""

    @property
    def layers(self) -> int:
        return len(self.chunks)

    @property
    def slices(self) -> int:
        """Of weights that a tile meets; the head's is the last."""
        return sum(self.chunks) + 1


class _Arrays(NamedTuple):
    """In global memory."""

    rows: Any
    weights: Any
    biases: Any
    outputs: Any
    activations: Sequence[Any]
    """Of each layer; none if nothing is kept."""
    cut: Any


class _Buffers(NamedTuple):
    """In shared memory, with the barriers that tell when they are full and when free."""

    ring: Ring
    tiles: Any
    bias: Any
    rows_here: Any
    bias_here: Any
    bias_free: Any


def _launch(keep: bool, rows: Array, weights: Array, biases: Array) -> Any:
    num_scenes, num_rows, num_features = rows.shape
    num_layers = biases.shape[1]
    plan = _Plan(Work(num_scenes, num_rows), (num_features // CHUNK, *[WIDTH // CHUNK] * (num_layers - 1)))
    padded_rows = plan.work.padded_rows
    out_type = [jax.ShapeDtypeStruct((num_scenes, padded_rows, STRIPE), jnp.float32)]
    if keep:
        out_type += [jax.ShapeDtypeStruct((num_scenes, num_rows, WIDTH), jnp.bfloat16)] * num_layers
        out_type.append(jax.ShapeDtypeStruct((num_scenes, num_layers, padded_rows, STRIPE), jnp.int32))
    scratch = Ring.scratch((CHUNK, WIDTH)) | {
        "tiles": tiled((CONSUMERS, WIDTH // CHUNK, TILE, CHUNK)),
        "bias": plgpu.SMEM((2, WIDTH), jnp.float32),
        "rows_here": plgpu.Barrier(num_arrivals=plan.chunks[0], num_barriers=CONSUMERS),
        "bias_here": plgpu.Barrier(num_barriers=2),
        "bias_free": plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=2),
    }
    outputs, *kept = call(
        functools.partial(_body, plan),
        out_type,
        scratch,
        "network_forward",
        grid=(plan.work.blocks,),
        grid_names=("block",),
    )(rows, weights, biases)
    outputs = outputs[:, :num_rows]
    return (outputs, kept[:-1], kept[-1]) if keep else outputs


def _body(plan: _Plan, *refs: Any, slots: Any, full: Any, free: Any, **scratch: Any) -> None:
    rows, weights, biases, outputs, *kept = refs
    arrays = _Arrays(rows, weights, biases, outputs, kept[:-1], kept[-1] if kept else None)
    buffers = _Buffers(Ring(slots, full, free), **scratch)
    me, num_items = lax.axis_index("warpgroup"), plan.work.num_items()
    take_roles(
        me,
        copy=lambda: _copy_weights(plan, arrays, buffers, num_items),
        multiply=lambda: _multiply(plan, arrays, buffers, me, num_items),
    )


def _copy_weights(plan: _Plan, arrays: _Arrays, buffers: _Buffers, num_items: Any) -> None:
    """Copies the slices of weights and the biases in the order in which `_multiply` uses them."""

    @pl.loop(0, num_items)
    def _(index: Any) -> None:
        scene, _ = plan.work.place(index, 0)
        number, top = index * plan.slices, 0
        for layer, num_chunks in enumerate(plan.chunks):
            bias_number = index * plan.layers + layer
            which = turn(bias_number, 2)
            pl.when(bias_number >= 2)(lambda which=which: plgpu.barrier_wait(buffers.bias_free.at[which]))
            bias = arrays.biases.at[scene, layer]
            plgpu.copy_gmem_to_smem(bias, buffers.bias.at[which], buffers.bias_here.at[which])
            for k in range(num_chunks):
                buffers.ring.fill(number + k, arrays.weights.at[scene, pl.ds(top + k * CHUNK, CHUNK), :])
            number, top = number + num_chunks, top + num_chunks * CHUNK
        buffers.ring.fill(number, arrays.weights.at[scene, pl.ds(top + WIDTH, CHUNK), :])

    drain(buffers.ring.free, RING, num_items * plan.slices)
    drain(buffers.bias_free, 2, num_items * plan.layers)


def _multiply(plan: _Plan, arrays: _Arrays, buffers: _Buffers, me: Any, num_items: Any) -> None:
    """Takes a warpgroup's tile of each item of the block through all layers."""
    tile, here = buffers.tiles.at[me], buffers.rows_here.at[me]
    keep = bool(arrays.activations)

    def fetch(index: Any) -> None:
        scene, some = plan.work.place(index, me)
        for k in range(plan.chunks[0]):
            columns = pl.ds(k * CHUNK, CHUNK)
            plgpu.copy_gmem_to_smem(arrays.rows.at[scene, some, columns], tile.at[k], here)

    def run_layer(index: Any, layer: Any, num_chunks: int, number: Any) -> None:
        scene, some = plan.work.place(index, me)
        which = turn(index * plan.layers + layer, 2)
        pairs = [lambda slot, k=k: [(tile.at[k], slot)] for k in range(num_chunks)]
        values = buffers.ring.multiply(number, pairs, WIDTH)
        plgpu.barrier_wait(buffers.bias_here.at[which])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        word = _add_bias_and_cut(values, buffers.bias, which, tile, keep=keep)
        plgpu.barrier_arrive(buffers.bias_free.at[which])
        if keep:
            arrays.cut.at[scene, layer, some, :][...] = word
        for one, target in enumerate(arrays.activations):
            pl.when(layer == one)(lambda target=target: store(tile, target.at[scene, some, :]))

    fetch(0)

    @pl.loop(0, num_items)
    def _(index: Any) -> None:
        number = index * plan.slices
        plgpu.barrier_wait(here)
        run_layer(index, jnp.int32(0), plan.chunks[0], number)
        number += plan.chunks[0]

        @pl.loop(1, plan.layers)  # unrolled it would need more registers than there are
        def _(layer: Any) -> None:
            run_layer(index, layer, WIDTH // CHUNK, number + (layer - 1) * (WIDTH // CHUNK))

        number += (plan.layers - 1) * (WIDTH // CHUNK)
        scene, some = plan.work.place(index, me)
        head = buffers.ring.multiply(number, [functools.partial(_head, tile)], STRIPE)
        arrays.outputs.at[scene, some, :][...] = head
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        pl.when(index + 1 < num_items)(lambda: fetch(index + 1))

    plgpu.wait_smem_to_gmem(0)


def _add_bias_and_cut(values: Any, bias: Any, which: Any, tile: Any, *, keep: bool) -> Any:
    """Writes relu of the layer's sums into the tile; returns what it cut off, in bits, if that is kept."""
    word: Any = None
    for k in range(WIDTH // CHUNK):
        one_row = load(bias.at[which, pl.ds(k * CHUNK, CHUNK)], plgpu.Layout.WGMMA.reduce(0))
        some_values = columns_of(values, k * CHUNK, CHUNK)
        some_values = some_values + lax.broadcast_in_dim(one_row, some_values.shape, (1,))
        if keep:
            word = pack(some_values, word)
        tile[k] = jnp.maximum(some_values, 0.0).astype(jnp.bfloat16)
    plgpu.commit_smem()
    return word


def _head(tile: Any, slot: Any) -> list[tuple[Any, Any]]:
    """Operands of the head's matmul, of which the ring's slice holds the transpose in its first rows."""
    return [
        (tile.at[k], slot.at[pl.ds(0, STRIPE), pl.ds(k * CHUNK, CHUNK)].transpose((1, 0)))
        for k in range(WIDTH // CHUNK)
    ]


_forward = over_scenes(functools.partial(_launch, False), rows_only=True)
_forward_keeping = over_scenes(functools.partial(_launch, True))
