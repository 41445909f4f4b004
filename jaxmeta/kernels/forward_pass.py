"""The kernel that takes a tile of points through their encoding, all layers and the head."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from jaxmeta.kernels.encoding import encode_chunk
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, DEPTH, STRIPE, TILE, WIDTH, drain, take_roles, tiled, turn
from jaxmeta.kernels.layers import HEAD_ROW, RING, Ring, Work, bias_row, columns_of, first_row, pack


class Plan(NamedTuple):
    """What the kernel has to do."""

    work: Work
    chunks: tuple[int, ...]
    """Of each layer's inputs."""
    keep: bool
    """Activations are written."""
    mark: bool
    """And what relu cut off."""

    @property
    def layers(self) -> int:
        """How many there are between the first and the head."""
        return len(self.chunks) - 1

    @property
    def slices(self) -> int:
        """Of weights that a tile meets; the head's is the last."""
        return sum(self.chunks) + 1


class Arrays(NamedTuple):
    """In global memory."""

    points: Any
    angles: Any
    ones: Any
    weights: Any
    outputs: Any
    activations: Any = None
    """Of all layers but the last."""
    last: Any = None
    cut: Any = None


class Buffers(NamedTuple):
    """In shared memory, with the barriers that tell when they are full and when free."""

    ring: Ring
    tiles: Any
    points: Any
    points_here: Any
    angles: Any
    ones: Any
    constants_here: Any
    bias: Any
    bias_here: Any
    bias_free: Any
    ahead: Any

    @staticmethod
    def scratch(plan: Plan) -> dict[str, Any]:
        """Returns what to ask for in shared memory."""
        return Ring.scratch((CHUNK, WIDTH)) | {
            "tiles": tiled((CONSUMERS, TILE, WIDTH)),
            "points": plgpu.SMEM((CONSUMERS, 3, TILE), jnp.float32),
            "points_here": plgpu.Barrier(num_barriers=CONSUMERS),
            "angles": plgpu.SMEM((4, plan.chunks[0] * CHUNK), jnp.float32),
            "ones": tiled((TILE, DEPTH), DEPTH),
            "constants_here": plgpu.Barrier(num_arrivals=2),
            "bias": tiled((2, DEPTH, WIDTH), DEPTH),
            "bias_here": plgpu.Barrier(num_barriers=2),
            "bias_free": plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=2),
            "ahead": plgpu.Barrier(),
        }


def body(plan: Plan, *refs: Any, slots: Any, full: Any, free: Any, **scratch: Any) -> None:
    """Runs the warpgroups of a block."""
    arrays, buffers = Arrays(*refs), Buffers(Ring(slots, full, free), **scratch)
    me, num_items = lax.axis_index("warpgroup"), plan.work.num_items()
    take_roles(
        me,
        (CONSUMERS, 232, lambda: _multiply(_Tile(plan, arrays, buffers, me, num_items))),
        (1, 40, lambda: _copy_weights(plan, arrays, buffers, num_items)),
    )


def _copy_weights(plan: Plan, arrays: Arrays, buffers: Buffers, num_items: Any) -> None:
    """Copies the slices of weights and the biases in the order in which `_multiply` uses them."""
    plgpu.copy_gmem_to_smem(arrays.angles, buffers.angles, buffers.constants_here)
    plgpu.copy_gmem_to_smem(arrays.ones, buffers.ones, buffers.constants_here)

    def copy_bias(scene: Any, layer: int, number: Any) -> None:
        which = turn(number, 2)
        pl.when(number >= 2)(lambda: plgpu.barrier_wait(buffers.bias_free.at[which]))
        source = arrays.weights.at[scene, pl.ds(bias_row(layer), DEPTH), :]
        plgpu.copy_gmem_to_smem(source, buffers.bias.at[which], buffers.bias_here.at[which])

    @pl.loop(0, num_items)
    def _(index: Any) -> None:
        scene, _ = plan.work.place(index, 0)
        number, row = index * plan.slices, first_row(plan.layers)
        for layer, num_chunks in enumerate(plan.chunks):
            if layer > 0:
                copy_bias(scene, layer - 1, index * plan.layers + layer - 1)
            for k in range(num_chunks):
                buffers.ring.fill(number + k, arrays.weights.at[scene, pl.ds(row + k * CHUNK, CHUNK), :])
            number, row = number + num_chunks, row + num_chunks * CHUNK
        buffers.ring.fill(number, arrays.weights.at[scene, pl.ds(HEAD_ROW, STRIPE), :])

    drain(buffers.ring.free, RING, num_items * plan.slices)
    drain(buffers.bias_free, 2, num_items * plan.layers)


class _Tile(NamedTuple):
    """A warpgroup's tile, and what becomes of it."""

    plan: Plan
    arrays: Arrays
    buffers: Buffers
    me: Any
    num_items: Any

    @property
    def buffer(self) -> Any:
        """In shared memory."""
        return self.buffers.tiles.at[self.me]

    def fetch(self, index: Any) -> None:
        """Starts the copy of an item's points."""
        scene, some = self.plan.work.place(index, self.me)
        target, arrived = self.buffers.points.at[self.me], self.buffers.points_here.at[self.me]
        plgpu.copy_gmem_to_smem(self.arrays.points.at[scene, :, some], target, arrived)

    def keep(self, index: Any, layer: Any = None) -> None:
        """Starts the copy of the tile to the activations of a layer, the last if none is given, if they are kept."""
        if self.plan.keep:
            scene, some = self.plan.work.place(index, self.me)
            kept = self.arrays.last.at[scene] if layer is None else self.arrays.activations.at[scene, layer]
            plgpu.copy_smem_to_gmem(self.buffer, kept.at[some, :])

    def put(self, values: Any, index: Any, layer: Any) -> None:
        """Writes relu of a layer's sums into the tile."""
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        if self.plan.mark:
            scene, some = self.plan.work.place(index, self.me)
            self.arrays.cut.at[scene, layer, some, :][...] = _signs(values)
        for k in range(WIDTH // CHUNK):
            rounded = columns_of(values, k * CHUNK, CHUNK).astype(jnp.bfloat16)
            self.buffer[:, pl.ds(k * CHUNK, CHUNK)] = jnp.maximum(rounded, 0.0)
        plgpu.commit_smem()

    def run_first(self, index: Any, number: Any) -> None:
        """Encodes the points and runs the first layer, whose bias is among its weights."""
        plan, buffers = self.plan, self.buffers
        plgpu.barrier_wait(buffers.points_here.at[self.me])
        chunks = [encode_chunk(buffers.points.at[self.me], buffers.angles, k * CHUNK) for k in range(plan.chunks[0])]
        # Here, and behind a branch, across which ptxas does not move it up: until then the last tile goes out.
        pl.when(index > 0)(lambda: plgpu.wait_smem_to_gmem(0, wait_read_only=True))
        for k, encoded in enumerate(chunks):
            self.buffer[:, pl.ds(k * CHUNK, CHUNK)] = encoded
        plgpu.commit_smem()
        pl.when(index + 1 < self.num_items)(lambda: self.fetch(index + 1))
        values = buffers.ring.multiply(number, _pairs(self.buffer, plan.chunks[0]), WIDTH)
        if not plan.mark:
            pl.when((self.me == 0) & (index == 0))(lambda: plgpu.barrier_arrive(buffers.ahead))
        self.put(values, index, 0)

    def run_layer(self, index: Any, layer: Any, number: Any) -> None:
        """Runs a layer between the first and the head, counted from 0."""
        buffers = self.buffers
        which = turn(index * self.plan.layers + layer, 2)

        def add_bias(total: Any) -> None:
            plgpu.barrier_wait(buffers.bias_here.at[which])
            plgpu.wgmma(total, buffers.ones, buffers.bias.at[which])

        pairs, keep_below = _pairs(self.buffer, WIDTH // CHUNK), functools.partial(self.keep, index, layer)
        values = buffers.ring.multiply(number, pairs, WIDTH, begin=add_bias, meanwhile=keep_below)
        plgpu.barrier_arrive(buffers.bias_free.at[which])
        self.put(values, index, layer + 1)

    def run_head(self, index: Any, number: Any) -> None:
        """Runs the head and writes its outputs."""
        scene, some = self.plan.work.place(index, self.me)
        pairs, keep_last = [functools.partial(_head, self.buffer)], functools.partial(self.keep, index)
        outputs = self.buffers.ring.multiply(number, pairs, STRIPE, meanwhile=keep_last)
        planes = self.arrays.outputs.at[scene, :, some].transpose((1, 0))
        planes[...] = plgpu.layout_cast(outputs, plgpu.Layout.WGMMA_TRANSPOSED)


def _multiply(tile: _Tile) -> None:
    """Takes a warpgroup's tile of each item of the block through all layers."""
    plan, buffers = tile.plan, tile.buffers
    tile.fetch(0)
    plgpu.barrier_wait(buffers.constants_here)
    if not plan.mark:  # with few points there is hardly an item more
        # One multiplies while the other is between two layers, as long as the ring lets it stay behind.
        pl.when(tile.me > 0)(lambda: plgpu.barrier_wait(buffers.ahead))

    @pl.loop(0, tile.num_items)
    def _(index: Any) -> None:
        number = index * plan.slices
        tile.run_first(index, number)
        number += plan.chunks[0]

        @pl.loop(0, plan.layers)  # unrolled it would need more registers than there are
        def _(layer: Any) -> None:
            tile.run_layer(index, layer, number + layer * (WIDTH // CHUNK))

        tile.run_head(index, number + plan.layers * (WIDTH // CHUNK))

    plgpu.wait_smem_to_gmem(0)


def _chunk(tile: Any, k: int) -> Any:
    return tile.at[:, pl.ds(k * CHUNK, CHUNK)]


def _pairs(tile: Any, num_chunks: int) -> list[Callable[[Any], list[tuple[Any, Any]]]]:
    """Operands of a layer's matmul, for each of the ring's slices."""
    return [lambda slot, k=k: [(_chunk(tile, k), slot)] for k in range(num_chunks)]


def _signs(values: Any) -> Any:
    """Returns a tile's signs in bits."""
    word: Any = None
    for k in range(WIDTH // CHUNK):
        word = pack(columns_of(values, k * CHUNK, CHUNK), word)
    return word


def _head(tile: Any, slot: Any) -> list[tuple[Any, Any]]:
    """Operands of the head's matmul, of which the ring's slice holds the transpose in its first rows."""
    return [
        (_chunk(tile, k), slot.at[pl.ds(0, STRIPE), pl.ds(k * CHUNK, CHUNK)].transpose((1, 0)))
        for k in range(WIDTH // CHUNK)
    ]
