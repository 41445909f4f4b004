"""The first layer's part of the way back: products of its inputs, encoded on the way, and gradients."""

from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from jaxmeta.kernels.encoding import encode_chunk
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, turn
from jaxmeta.kernels.layer_plan import ENCODED, Task
from jaxmeta.kernels.slabs import HALF


def multiply(task: Task) -> None:
    """Sums up products of the first layer's inputs and gradients, part by part."""
    plan, arrays, buffers, place = task
    me = place.me
    rows = pl.ds(me * CHUNK if plan.share == HALF else 0, CHUNK)
    # A matmul of all 256 would take more registers than ptxas gives each of four warpgroups.
    columns = [pl.ds(start, HALF) for start in ((0, HALF) if plan.share == HALF else (me * HALF,))]

    def run(part: Any, first: Any, stop: Any) -> None:
        def sum_up(*totals: Any) -> None:
            @pl.loop(first, stop)
            def _(number: Any) -> None:
                slot, encoded = turn(number, plan.ring), turn(number, ENCODED)
                plgpu.barrier_wait(buffers.full.at[slot])
                plgpu.barrier_wait(buffers.made.at[encoded])
                for some, total in zip(columns, totals, strict=True):
                    left = buffers.left.at[encoded, :, rows]
                    plgpu.wgmma(total, left.transpose((1, 0)), buffers.right.at[slot, :, some])
                plgpu.wgmma_wait(0)  # frees the slab; the other warpgroups keep the units for matmuls busy
                plgpu.barrier_arrive(buffers.left_free.at[encoded])
                plgpu.barrier_arrive(buffers.free.at[slot])

            for some, total in zip(columns, totals, strict=True):
                arrays.products.at[0, place.pair, part, place.block, rows, some][...] = total[...]

        pl.run_scoped(sum_up, *[plgpu.WGMMAAccumulatorRef((CHUNK, HALF), jnp.float32)] * len(columns))

    plan.work.by_parts(place, run)


def encode(task: Task) -> None:
    """Makes a block's share of the first layer's inputs, of its slabs."""
    plan, buffers, place = task.plan, task.buffers, task.place
    plgpu.barrier_wait(buffers.angles_here)

    @pl.loop(place.me - CONSUMERS, place.length, step=plan.encoding)
    def _(number: Any) -> None:
        slot, encoded = turn(number, plan.ring), turn(number, ENCODED)
        plgpu.barrier_wait(buffers.full.at[slot])
        pl.when(number >= ENCODED)(lambda: plgpu.barrier_wait(buffers.left_free.at[encoded]))
        for start in range(0, plan.share, CHUNK):
            values = encode_chunk(buffers.points.at[slot], buffers.angles, place.block * plan.share + start)
            buffers.left[encoded, :, pl.ds(start, CHUNK)] = values
        plgpu.commit_smem()
        plgpu.barrier_arrive(buffers.made.at[encoded])
