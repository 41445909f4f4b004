"""The kernel that takes a tile of gradients back through the head and all layers but the first."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Int32

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
from jaxmeta.kernels.layers import RING, Ring, Work, load, unpack


def backward(
    gradient: BFloat16[Array, "rows outputs"],
    weights: BFloat16[Array, "stacked 256"],
    head: BFloat16[Array, "256 outputs"],
    cut: Int32[Array, "layers padded_rows 8"],
) -> list[BFloat16[Array, "rows 256"]]:
    """Returns the gradients of each layer's sums, before relu.

    `gradient` is that of the head's outputs, at most 8, and `head` its weights.
    """
    return _backward(gradient, weights, head, cut)


class _Plan(NamedTuple):
    work: Work
    layers: int
    end: int
    """Of the layers' rows in the stacked weights."""

    @property
    def slices(self) -> int:
        """Of weights that a tile meets; the head's is the first."""
        return 1 + (self.layers - 1) * (WIDTH // CHUNK)


class _Arrays(NamedTuple):
    """In global memory."""

    gradient: Any
    weights: Any
    head: Any
    cut: Any
    out: Sequence[Any]


class _Buffers(NamedTuple):
    """In shared memory, with the barriers that tell when they are full."""

    ring: Ring
    tiles: Any
    first: Any
    words: Any
    first_here: Any
    words_here: Any


def _launch(gradient: Array, weights: Array, head: Array, cut: Array) -> list[Array]:
    num_scenes, num_rows, num_outputs = gradient.shape
    filled = [jnp.pad(array, ((0, 0), (0, 0), (0, CHUNK - num_outputs))) for array in (gradient, head)]
    num_layers = cut.shape[1]
    plan = _Plan(Work(num_scenes, num_rows), num_layers, weights.shape[1])
    scratch = Ring.scratch((WIDTH, CHUNK)) | {
        "tiles": tiled((CONSUMERS, WIDTH // CHUNK, TILE, CHUNK)),
        "first": tiled((CONSUMERS, 1, TILE, CHUNK)),
        "words": plgpu.SMEM((CONSUMERS, 2, TILE, STRIPE), jnp.int32),
        "first_here": plgpu.Barrier(num_barriers=CONSUMERS),
        "words_here": plgpu.Barrier(num_barriers=CONSUMERS * 2),
    }
    return call(
        functools.partial(_body, plan),
        [jax.ShapeDtypeStruct((num_scenes, num_rows, WIDTH), jnp.bfloat16)] * num_layers,
        scratch,
        "network_backward",
        CONSUMERS + 1,
        grid=(plan.work.blocks,),
        grid_names=("block",),
    )(filled[0], weights, filled[1], cut)


def _body(plan: _Plan, *refs: Any, slots: Any, full: Any, free: Any, **scratch: Any) -> None:
    gradient, weights, head, cut, *out = refs
    arrays = _Arrays(gradient, weights, head, cut, out)
    buffers = _Buffers(Ring(slots, full, free), **scratch)
    me, num_items = lax.axis_index("warpgroup"), plan.work.num_items()
    take_roles(
        me,
        (CONSUMERS, 232, lambda: _multiply(plan, arrays, buffers, me, num_items)),
        (1, 40, lambda: _copy_weights(plan, arrays, buffers.ring, num_items)),
    )


def _copy_weights(plan: _Plan, arrays: _Arrays, ring: Ring, num_items: Any) -> None:
    """Copies the slices of weights in the order in which `_multiply` uses them."""

    @pl.loop(0, num_items)
    def _(index: Any) -> None:
        scene, _ = plan.work.place(index, 0)
        number = index * plan.slices
        ring.fill(number, arrays.head.at[scene])
        for step in range(1, plan.layers):
            layer_rows = pl.ds(plan.end - step * WIDTH, WIDTH)
            for k in range(WIDTH // CHUNK):
                number += 1
                ring.fill(number, arrays.weights.at[scene, layer_rows, pl.ds(k * CHUNK, CHUNK)])

    drain(ring.free, RING, num_items * plan.slices)


def _multiply(plan: _Plan, arrays: _Arrays, buffers: _Buffers, me: Any, num_items: Any) -> None:
    """Takes a warpgroup's tile of each item of the block back through all layers."""
    tile, here = buffers.tiles.at[me], buffers.first_here.at[me]

    def fetch(index: Any) -> None:
        scene, some = plan.work.place(index, me)
        plgpu.copy_gmem_to_smem(arrays.gradient.at[scene, some, :], buffers.first.at[me, 0], here)

    def fetch_words(total: Any) -> None:
        """Those of a step back, counted over all items."""

        @pl.when(total < num_items * plan.layers)
        def _() -> None:
            scene, some = plan.work.place(total // plan.layers, me)
            layer = plan.layers - 1 - turn(total, plan.layers)
            which = turn(total, 2)
            source = arrays.cut.at[scene, layer, some, :]
            plgpu.copy_gmem_to_smem(source, buffers.words.at[me, which], buffers.words_here.at[me * 2 + which])

    def step_back(index: Any, step: Any, source: Any, num_chunks: int, number: Any) -> None:
        scene, some = plan.work.place(index, me)
        total = index * plan.layers + step
        which = turn(total, 2)
        pairs = [lambda slot, k=k: [(source.at[k], slot.transpose((1, 0)))] for k in range(num_chunks)]
        values = buffers.ring.multiply(number, pairs, WIDTH)
        plgpu.barrier_wait(buffers.words_here.at[me * 2 + which])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        _cut(values, buffers.words.at[me, which], tile)
        fetch_words(total + 2)
        for one, target in enumerate(reversed(arrays.out)):
            pl.when(step == one)(lambda target=target: _store(tile, target.at[scene, some, :]))

    fetch(0)
    fetch_words(jnp.int32(0))
    fetch_words(jnp.int32(1))

    @pl.loop(0, num_items)
    def _(index: Any) -> None:
        number = index * plan.slices
        plgpu.barrier_wait(here)
        step_back(index, jnp.int32(0), buffers.first.at[me], 1, number)
        pl.when(index + 1 < num_items)(lambda: fetch(index + 1))

        @pl.loop(1, plan.layers)
        def _(step: Any) -> None:
            chunks = WIDTH // CHUNK
            step_back(index, step, tile, chunks, number + 1 + (step - 1) * chunks)

    plgpu.wait_smem_to_gmem(0)


def _cut(values: Any, words: Any, tile: Any) -> None:
    """Writes values into the tile, zero where relu cut off the activation."""
    word = load(words, plgpu.Layout.WGMMA, optimized=False)
    for k in range(WIDTH // CHUNK):
        tile[k] = unpack(values, k, word).astype(jnp.bfloat16)
    plgpu.commit_smem()


def _store(tile: Any, target: Any) -> None:
    """Starts the copy of a tile's chunks to rows in global memory."""
    for k in range(tile.shape[0]):
        columns = pl.ds(k * CHUNK, CHUNK)
        plgpu.copy_smem_to_gmem(tile.at[k], target.at[:, columns], commit_group=k + 1 == tile.shape[0])


_backward = over_scenes(_launch)
