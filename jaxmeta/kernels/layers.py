"""Stacked weights, and what the kernels share that take tiles through all layers: work, ring, relu's bits."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, BFloat16, Float, Int32

from jaxmeta.kernels.launching import CHUNK, CONSUMERS, DEPTH, STRIPE, TILE, WIDTH, at_once, tiled, turn
from jaxmeta.kernels.slabs import HALF

RING = 4
"""Slices of weights, those of a layer. More leave too little memory for what the compiler spills, fewer run dry.

With fewer than a first layer has, a warpgroup that `forward_pass` lets go ahead would wait forever for the other.
"""

PARTS = 3
"""Numbers in bfloat16 whose sum is one in float32."""

_BITS = 16
"""Of a bfloat16."""


def stack(
    layers: Sequence[Float[Array, "_ 256"]],
    biases: Sequence[Float[Array, "256"]],
    first_inputs: int,
    head: Float[Array, "256 outputs"],
) -> BFloat16[Array, "stacked 256"]:
    """Returns the head's weights, transposed and filled up to 16, the biases, and the layers' weights, in rows.

    A bias of a later layer is 16 rows, to be summed up, all but three of them zeros. The first layer's weights are
    filled up to `first_inputs`, 128 or 256, with their bias in two parts before zeros, for what is filled up of their
    inputs are ones, two at least. The head has at most 8 outputs.
    """
    first_bias = jnp.stack(split(biases[0])[:2])
    rest = jnp.zeros((first_inputs - len(layers[0]) - len(first_bias), WIDTH))
    last = jnp.pad(head.T, ((0, DEPTH - head.shape[1]), (0, 0)))
    later = jnp.pad(jnp.stack(split(jnp.stack(biases[1:])), 1), ((0, 0), (0, DEPTH - PARTS), (0, 0)))
    top_rows = [last, later.reshape(-1, WIDTH)]
    return jnp.concatenate([*top_rows, layers[0], first_bias, rest, *layers[1:]]).astype(jnp.bfloat16)


HEAD_ROW = 0
"""Where the head stands in what `stack` returns."""


def bias_row(layer: int) -> int:
    """Returns where the bias of a later layer stands, counted from 0."""
    return DEPTH * (1 + layer)


def first_row(later_layers: int) -> int:
    """Returns where the first layer's weights stand, after the biases of so many; the later layers' follow."""
    return bias_row(later_layers)


def count_later_layers(num_rows: int, first_inputs: int) -> int:
    """Returns how many later layers there are in so many rows."""
    return (num_rows - first_row(0) - first_inputs) // (DEPTH + WIDTH)


def split(values: Float[Array, "*any"]) -> list[Float[Array, "*any"]]:
    """Returns arrays of numbers that bfloat16 holds, the largest first, whose sum are the values."""
    parts = []
    for _ in range(PARTS):
        parts.append(lax.reduce_precision(values, 8, 7))  # XLA would leave out a conversion there and back
        values = values - parts[-1]
    return parts


class Work(NamedTuple):
    """Which rows a block takes: groups b, b + blocks, ... of all scenes' groups of rows."""

    scenes: int
    rows: int

    @property
    def groups(self) -> int:
        """Of a scene's rows: a tile for each warpgroup that multiplies."""
        return -(-self.rows // (TILE * CONSUMERS))

    @property
    def padded_rows(self) -> int:
        """Rows of a scene, filled up to whole groups."""
        return self.groups * TILE * CONSUMERS

    @property
    def blocks(self) -> int:
        """Of the launch."""
        return at_once(self.scenes * self.groups)

    def num_items(self) -> Any:
        """Returns how many groups this block takes."""
        return (self.scenes * self.groups - lax.axis_index("block") + self.blocks - 1) // self.blocks

    def place(self, index: Any, consumer: Any) -> tuple[Any, Any]:
        """Returns the scene and the rows of a warpgroup's tile of its block's item of that index."""
        number = lax.axis_index("block") + index * self.blocks
        return number // self.groups, pl.ds((lax.rem(number, self.groups) * CONSUMERS + consumer) * TILE, TILE)


class Ring(NamedTuple):
    """Slices of weights in shared memory, which one warpgroup fills and the consumers use, all in one order."""

    slots: Any
    full: Any
    free: Any

    @staticmethod
    def scratch(shape: tuple[int, int]) -> dict[str, Any]:
        """Returns what to ask for in shared memory for slices of that shape."""
        return {
            "slots": tiled((RING, *shape)),
            "full": plgpu.Barrier(num_barriers=RING),
            "free": plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=RING),
        }

    def fill(self, number: Any, source: Any) -> None:
        """Copies the slice of that number, or its first rows, from global memory as soon as its slot is free."""
        slot = turn(number, RING)
        pl.when(number >= RING)(lambda: plgpu.barrier_wait(self.free.at[slot]))
        plgpu.copy_gmem_to_smem(source, self.slots.at[slot, pl.ds(0, source.shape[0]), :], self.full.at[slot])

    def multiply(
        self,
        first: Any,
        pairs: Sequence[Callable[[Any], list[tuple[Any, Any]]]],
        columns: int,
        *,
        begin: Callable[[Any], None] = lambda total: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Any:
        """Sums the products of `pairs`: functions of a slice that return left and right operands.

        `begin` puts more into the sum; `meanwhile` is called while matmuls run.
        """

        def sum_up(total: Any) -> Any:
            begin(total)
            for k, pair in enumerate(pairs):
                slot = turn(first + k, RING)
                plgpu.barrier_wait(self.full.at[slot])
                operands = pair(self.slots.at[slot])
                for left, right in operands:
                    plgpu.wgmma(total, left, right)
                if k == min(1, len(pairs) - 1):
                    meanwhile()
                if k:
                    plgpu.wgmma_wait(len(operands))
                    plgpu.barrier_arrive(self.free.at[turn(first + k - 1, RING)])
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(self.free.at[turn(first + len(pairs) - 1, RING)])
            return total[...]

        return pl.run_scoped(sum_up, plgpu.WGMMAAccumulatorRef((TILE, columns), jnp.float32))


def pack(values: Any, word: Any) -> Any:
    """Shifts the signs of a chunk's values into `word` [64, 8], which begins as None."""
    for j in range(CHUNK // STRIPE):
        part = lax.bitcast_convert_type(columns_of(values, j * STRIPE, STRIPE), jnp.int32)
        sign = lax.shift_right_logical(part, jnp.full_like(part, 31))
        word = sign if word is None else lax.shift_left(word, jnp.full_like(part, 1)) | sign
    return word


def unpack(values: Any, chunk: int, word: Any) -> Any:
    """Returns a chunk's values, zero where the bits of `word` are set."""
    parts = []
    for j in range(CHUNK // STRIPE):
        part = columns_of(values, chunk * CHUNK + j * STRIPE, STRIPE)
        bit = np.left_shift(1, 31 - (chunk * (CHUNK // STRIPE) + j), dtype=np.int32)
        parts.append(jnp.where(word & bit == 0, part, 0.0))
    return lax.concatenate(parts, 1)


def pack_halves(values: Any) -> Any:
    """Rounds values [64, 256] in registers to bfloat16, and packs each column of the right half behind one of the left.

    Copies from registers must fill 32 bytes of a row, which bfloat16 alone does not.
    """
    halves = (columns_of(values, start, HALF).astype(jnp.bfloat16).astype(jnp.float32) for start in (0, HALF))
    left, right = (lax.bitcast_convert_type(half, jnp.int32) for half in halves)
    return left | lax.shift_right_logical(right, jnp.full_like(right, _BITS))


def unpack_halves(words: Int32[Array, "*any 128"]) -> Float[Array, "*any 2 128"]:
    """Returns, outside of kernels, the halves that `pack_halves` packed."""
    shifted = jnp.left_shift(words[..., None, :], np.array([[0], [_BITS]], np.int32))
    return lax.bitcast_convert_type(shifted & np.int32(-(2**_BITS)), jnp.float32)


def columns_of(values: Any, start: int, count: int) -> Any:
    """Returns `count` columns of a tile in registers."""
    return lax.slice(values, (0, start), (TILE, start + count))


def load(ref: Any, layout: Any, *, optimized: bool = True) -> Any:
    """Returns a part of shared memory in registers."""
    return plgpu.load(ref, layout=layout, optimized=optimized)  # pyright: ignore[reportCallIssue]  # jax 0.10 differs
