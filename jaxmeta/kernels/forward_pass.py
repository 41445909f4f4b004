"""The kernel that takes a tile of points, or of their encoding, through all layers and the head."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from jaxmeta.kernels.encoding import encode_chunk
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, STRIPE, TILE, WIDTH, drain, take_roles, tiled, turn
from jaxmeta.kernels.layers import RING, Ring, Work, columns_of, load, pack, store


class Plan(NamedTuple):
    """What the kernel has to do."""

    work: Work
    chunks: tuple[int, ...]
    """Of each layer's inputs."""
    encodes: bool
    """What is given are points."""

    @property
    def layers(self) -> int:
        """How many there are before the head."""
        return len(self.chunks)

    @property
    def slices(self) -> int:
        """Of weights that a tile meets; the head's is the last."""
        return sum(self.chunks) + 1


class Arrays(NamedTuple):
    """In global memory."""

    given: Any
    """Points or rows."""
    turns: Any
    weights: Any
    biases: Any
    outputs: Any
    activations: Sequence[Any]
    """Of each layer; none if nothing is kept."""
    cut: Any


class Buffers(NamedTuple):
    """In shared memory, with the barriers that tell when they are full and when free."""

    ring: Ring
    tiles: Any
    here: Any
    bias: Any
    bias_here: Any
    bias_free: Any
    points: Any = None
    turns: Any = None
    turns_here: Any = None
    ahead: Any = None

    @staticmethod
    def scratch(plan: Plan) -> dict[str, Any]:
        """Returns what to ask for in shared memory."""
        scratch = Ring.scratch((CHUNK, WIDTH)) | {
            "tiles": tiled((CONSUMERS, WIDTH // CHUNK, TILE, CHUNK)),
            "here": plgpu.Barrier(num_arrivals=1 if plan.encodes else plan.chunks[0], num_barriers=CONSUMERS),
            "bias": plgpu.SMEM((2, WIDTH), jnp.float32),
            "bias_here": plgpu.Barrier(num_barriers=2),
            "bias_free": plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=2),
        }
        if plan.encodes:
            scratch |= {
                "points": plgpu.SMEM((CONSUMERS, 3, TILE), jnp.float32),
                "turns": plgpu.SMEM((4, plan.chunks[0] * CHUNK), jnp.float32),
                "turns_here": plgpu.Barrier(),
                "ahead": plgpu.Barrier(),
            }
        return scratch


def body(plan: Plan, *refs: Any, slots: Any, full: Any, free: Any, **scratch: Any) -> None:
    """Runs the warpgroups of a block."""
    if plan.encodes:
        given, turns, weights, biases, outputs, *kept = refs
        arrays = Arrays(given, turns, weights, biases, outputs, kept, None)
    else:
        given, weights, biases, outputs, *kept, cut = refs
        arrays = Arrays(given, None, weights, biases, outputs, kept, cut)
    buffers = Buffers(Ring(slots, full, free), **scratch)
    me, num_items = lax.axis_index("warpgroup"), plan.work.num_items()
    take_roles(
        me,
        (CONSUMERS, 232, lambda: _multiply(plan, arrays, buffers, me, num_items)),
        (1, 40, lambda: _copy_weights(plan, arrays, buffers, num_items)),
    )


def _copy_weights(plan: Plan, arrays: Arrays, buffers: Buffers, num_items: Any) -> None:
    """Copies the slices of weights and the biases in the order in which `_multiply` uses them."""
    if plan.encodes:
        plgpu.copy_gmem_to_smem(arrays.turns, buffers.turns, buffers.turns_here)

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
        buffers.ring.fill(number, arrays.weights.at[scene, pl.ds(top, CHUNK), :])

    drain(buffers.ring.free, RING, num_items * plan.slices)
    drain(buffers.bias_free, 2, num_items * plan.layers)


def _multiply(plan: Plan, arrays: Arrays, buffers: Buffers, me: Any, num_items: Any) -> None:
    """Takes a warpgroup's tile of each item of the block through all layers."""
    tile, here = buffers.tiles.at[me], buffers.here.at[me]

    def fetch(index: Any) -> None:
        scene, some = plan.work.place(index, me)
        if plan.encodes:
            plgpu.copy_gmem_to_smem(arrays.given.at[scene, :, some], buffers.points.at[me], here)
            return
        for k in range(plan.chunks[0]):
            plgpu.copy_gmem_to_smem(arrays.given.at[scene, some, pl.ds(k * CHUNK, CHUNK)], tile.at[k], here)

    def encode_tile() -> None:
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for k in range(plan.chunks[0]):
            tile[k] = encode_chunk(buffers.points.at[me], buffers.turns, k * CHUNK)
        plgpu.commit_smem()

    def run_layer(index: Any, layer: Any, num_chunks: int, number: Any) -> None:
        scene, some = plan.work.place(index, me)
        which = turn(index * plan.layers + layer, 2)
        pairs = [lambda slot, k=k: [(tile.at[k], slot)] for k in range(num_chunks)]
        values = buffers.ring.multiply(number, pairs, WIDTH)
        if plan.encodes:
            pl.when((me == 0) & (index == 0) & (layer == 0))(lambda: plgpu.barrier_arrive(buffers.ahead))
        plgpu.barrier_wait(buffers.bias_here.at[which])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        word = _add_bias_and_cut(values, buffers.bias, which, tile, mark=not plan.encodes)
        plgpu.barrier_arrive(buffers.bias_free.at[which])
        if word is not None:
            arrays.cut.at[scene, layer, some, :][...] = word
        for one, target in enumerate(arrays.activations):
            pl.when(layer == one)(lambda target=target: store(tile, target.at[scene, some, :]))

    fetch(0)
    if plan.encodes:
        plgpu.barrier_wait(buffers.turns_here)
        # One multiplies while the other is between two layers, as long as the ring lets it stay behind.
        pl.when(me > 0)(lambda: plgpu.barrier_wait(buffers.ahead))

    @pl.loop(0, num_items)
    def _(index: Any) -> None:
        number = index * plan.slices
        plgpu.barrier_wait(here)
        if plan.encodes:
            encode_tile()
            pl.when(index + 1 < num_items)(lambda: fetch(index + 1))
        run_layer(index, jnp.int32(0), plan.chunks[0], number)
        number += plan.chunks[0]

        @pl.loop(1, plan.layers)  # unrolled it would need more registers than there are
        def _(layer: Any) -> None:
            run_layer(index, layer, WIDTH // CHUNK, number + (layer - 1) * (WIDTH // CHUNK))

        number += (plan.layers - 1) * (WIDTH // CHUNK)
        scene, some = plan.work.place(index, me)
        head = buffers.ring.multiply(number, [functools.partial(_head, tile)], STRIPE)
        arrays.outputs.at[scene, some, :][...] = head
        if not plan.encodes:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            pl.when(index + 1 < num_items)(lambda: fetch(index + 1))

    plgpu.wait_smem_to_gmem(0)


def _add_bias_and_cut(values: Any, bias: Any, which: Any, tile: Any, *, mark: bool) -> Any:
    """Writes relu of the layer's sums into the tile; returns what it cut off, in bits, if that is asked for."""
    word: Any = None
    for k in range(WIDTH // CHUNK):
        one_row = load(bias.at[which, pl.ds(k * CHUNK, CHUNK)], plgpu.Layout.WGMMA.reduce(0))
        some_values = columns_of(values, k * CHUNK, CHUNK)
        some_values = some_values + lax.broadcast_in_dim(one_row, some_values.shape, (1,))
        if mark:
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
