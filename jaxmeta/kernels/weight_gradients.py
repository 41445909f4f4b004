"""The kernel that sums over rows the products of what layers were given and of what came back to them."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

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
from jaxmeta.kernels.slabs import HALF, PAIR, Place, Slabs

_RING = 4
"""Slabs that are copied ahead."""


def weight_gradients(
    rows: BFloat16[Array, "rows columns"],
    activations: BFloat16[Array, "later_layers rows 256"],
    gradients: Sequence[BFloat16[Array, "rows 256"]],
) -> tuple[Float[Array, "inputs 256"], Float[Array, "later_layers 256"]]:
    """Returns sums over rows: of the products of inputs and gradients, and of all layers' gradients but the first's.

    The inputs are `rows` of the first layer, `activations` of the others; a column of ones in `rows` gives the sums of
    the first's gradients.
    """
    return _weight_gradients(rows, activations, *gradients)


class _Arrays(NamedTuple):
    """In global memory."""

    rows: Any
    activations: Any
    gradients: Sequence[Any]
    products: Any
    sums: Any


class _Buffers(NamedTuple):
    """In shared memory, with the barriers that tell when they are full and when both blocks are done with them."""

    left: Any
    right: Any
    ones: Any
    full: Any
    free: Any
    ones_here: Any


def _launch(rows: Array, activations: Array, *gradients: Array) -> tuple[Array, Array]:
    num_layers = len(gradients)
    num_scenes, num_rows, num_features = rows.shape
    if num_features not in (HALF, WIDTH):
        raise ValueError(f"{num_features} inputs of the first layer are neither 128 nor 256")
    work = Slabs(num_scenes, num_layers, num_features < WIDTH, -(-num_rows // TILE))
    parts = (work.pairs, work.parts, PAIR)
    out_type = [
        jax.ShapeDtypeStruct((*parts, HALF, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((*parts, CONSUMERS, TILE, STRIPE), jnp.float32),
    ]
    scratch = {
        "left": tiled((_RING, CONSUMERS, CHUNK, CHUNK)),
        "right": tiled((_RING, CHUNK, WIDTH)),
        "ones": tiled((TILE, CHUNK)),
        "full": plgpu.Barrier(num_arrivals=CONSUMERS + 1, num_barriers=_RING),
        "free": plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=CONSUMERS, num_barriers=_RING),
        "ones_here": plgpu.Barrier(),
    }
    products, sums = call(
        functools.partial(_body, work),
        out_type,
        scratch,
        "network_weight_gradients",
        CONSUMERS + 1,
        grid=(work.pairs,),
        grid_names=("pair",),
        cluster=(PAIR,),
        cluster_names=("block",),
    )(rows, activations, *gradients)
    first, others = jnp.split(work.add(products), [1], axis=1)
    if work.narrow:  # the blocks took different rows
        first = first.sum(2, keepdims=True)
    kernels = jnp.concatenate([part.reshape(num_scenes, -1, WIDTH) for part in (first, others)], axis=1)
    sums = work.add(sums)[:, 1:, ..., 0]  # every column holds them
    return kernels, sums.reshape(num_scenes, num_layers - 1, WIDTH)


def _body(work: Slabs, *refs: Any, **scratch: Any) -> None:
    rows, activations, *gradients, products, sums = refs
    arrays, buffers = _Arrays(rows, activations, gradients, products, sums), _Buffers(**scratch)
    place = work.place()
    take_roles(
        place.me,
        (CONSUMERS, 240, lambda: _multiply(work, arrays, buffers, place)),
        (1, 24, lambda: _copy_rows(work, arrays, buffers, place)),
    )


def _copy_rows(work: Slabs, arrays: _Arrays, buffers: _Buffers, place: Place) -> None:
    """Copies the pair's slabs: this block's part of the inputs, and its half of the gradients for both blocks."""

    def fetch(index: int, scene: Any, inside: Any, slot: Any) -> None:
        alone = work.narrow and index == 0
        some = pl.ds((inside * PAIR + place.block if alone else inside) * CHUNK, CHUNK)
        column = 0 if alone else place.block * HALF
        full = buffers.full.at[slot]
        for part in range(CONSUMERS):
            inputs = arrays.rows.at[scene] if index == 0 else arrays.activations.at[scene, index - 1]
            source = inputs.at[some, pl.ds(column + part * CHUNK, CHUNK)]
            plgpu.copy_gmem_to_smem(source, buffers.left.at[slot, part], full)
        shared: dict[str, Any] = {} if alone else {"collective_axes": "block"}
        source = arrays.gradients[index].at[scene, some, :]
        plgpu.copy_gmem_to_smem(source, buffers.right.at[slot], full, **shared)

    @pl.loop(0, place.length)
    def _(number: Any) -> None:
        slot = turn(number, _RING)
        scene, layer, inside, _ = work.locate(place.begin + number)
        pl.when(number >= _RING)(lambda: plgpu.barrier_wait(buffers.free.at[slot]))
        for index in range(work.layers):
            pl.when(layer == index)(functools.partial(fetch, index, scene, inside, slot))

    drain(buffers.free, _RING, place.length)


def _multiply(work: Slabs, arrays: _Arrays, buffers: _Buffers, place: Place) -> None:
    """Sums up the pair's slabs, part by part."""

    @pl.when(place.me == 0)
    def _() -> None:
        buffers.ones[...] = jnp.ones(buffers.ones.shape, jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.barrier_arrive(buffers.ones_here)

    plgpu.barrier_wait(buffers.ones_here)

    def run(part: Any, first: Any, stop: Any) -> None:
        pl.run_scoped(
            functools.partial(_sum_up, arrays, buffers, place, part, first, stop),
            *(plgpu.WGMMAAccumulatorRef((TILE, columns), jnp.float32) for columns in (WIDTH, STRIPE)),
        )

    work.by_parts(place, run)


def _sum_up(
    arrays: _Arrays, buffers: _Buffers, place: Place, part: Any, first: Any, stop: Any, products: Any, sums: Any
) -> None:
    """Sums up the slabs from `first` to `stop`, all of one layer, and writes them as one part."""
    me, block, pair = place[:3]

    @pl.loop(first, stop)
    def _(number: Any) -> None:
        slot = turn(number, _RING)
        plgpu.barrier_wait(buffers.full.at[slot])
        plgpu.wgmma(products, buffers.left.at[slot, me].transpose((1, 0)), buffers.right.at[slot])
        # As a matmul: a sum across warps would have to go through shared memory.
        columns = pl.ds((block * CONSUMERS + me) * CHUNK, CHUNK)
        gradients = buffers.right.at[slot, :, columns].transpose((1, 0))
        plgpu.wgmma(sums, gradients, buffers.ones.at[pl.ds(0, STRIPE), :].transpose((1, 0)))
        plgpu.wgmma_wait(2)
        pl.when(number > first)(lambda: plgpu.barrier_arrive(buffers.free.at[turn(number - 1, _RING)]))

    plgpu.wgmma_wait(0)
    plgpu.barrier_arrive(buffers.free.at[turn(stop - 1, _RING)])
    arrays.products.at[pair, part, block, pl.ds(me * TILE, TILE), :][...] = products[...]
    arrays.sums.at[pair, part, block, me][...] = sums[...]


_weight_gradients = over_scenes(_launch)
