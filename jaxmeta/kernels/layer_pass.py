"""The kernel that takes gradients back through layers: to their weights, and on to the layer below."""

import functools
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from jaxmeta.kernels.encoding import encode_chunk
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, DEPTH, STRIPE, TILE, WIDTH, drain, take_roles, turn
from jaxmeta.kernels.layer_plan import Arrays, Buffers, Plan
from jaxmeta.kernels.layers import load
from jaxmeta.kernels.slabs import HALF, Place

_HUGE = 2.0**126
"""Times this the smallest normal number is one. What comes back to a unit that relu cut off is multiplied by zero."""


def body(plan: Plan, arrays: Arrays, buffers: Buffers) -> None:
    """Runs the warpgroups of a block."""
    place = plan.work.place()
    summing, preparing = plan.registers

    def prepare() -> None:
        if plan.kind == "first":
            _encode(plan, buffers, place)
        else:
            _go_on(plan, arrays, buffers, place)

    take_roles(
        place.me,
        (CONSUMERS, summing, lambda: _multiply(plan, arrays, buffers, place)),
        (plan.preparing, preparing, prepare),
        (1, 24, lambda: _copy(plan, arrays, buffers, place)),
    )


def _copy(plan: Plan, arrays: Arrays, buffers: Buffers, place: Place) -> None:
    """Copies a block's share of each slab's inputs, or its points; half of its gradient, for both blocks; weights."""

    def copy_kernel(step: Any, scene: Any, number: Any) -> None:
        pl.when((step > 0) | (number > 0))(lambda: plgpu.barrier_wait(buffers.kernel_free))
        first_row = plan.first_row + (plan.layers - 1 - step) * WIDTH + place.block * HALF
        source = arrays.weights.at[scene, pl.ds(first_row, HALF), :]
        plgpu.copy_gmem_to_smem(source, buffers.kernel, buffers.kernel_here)

    if plan.kind == "first":
        plgpu.copy_gmem_to_smem(arrays.angles, buffers.angles, buffers.angles_here)
    else:
        plgpu.copy_gmem_to_smem(arrays.ones, buffers.ones, buffers.ones_here)

    @pl.loop(0, plan.layers)
    def _(step: Any) -> None:
        @pl.loop(0, place.length)
        def _(number: Any) -> None:
            total = step * place.length + number
            slot = turn(total, plan.ring)
            scene, some, is_first = plan.rows_of(step, place, number)
            full = buffers.full.at[slot]
            pl.when(total >= plan.ring)(lambda: plgpu.barrier_wait(buffers.free.at[slot]))
            if plan.kind == "first":
                plgpu.copy_gmem_to_smem(arrays.inputs.at[scene, :, some], buffers.points.at[slot], full)
            else:
                source = arrays.inputs.at[scene, plan.layers - 1 - step, some, _half(place.block)]
                plgpu.copy_gmem_to_smem(source, buffers.left.at[slot], full)
                pl.when(is_first)(lambda: copy_kernel(step, scene, number))
            if plan.kind == "layer":
                # What the next layer begins with the pair has just written, by copies that are done when it says so.
                # That each block sees the other's rests on the cache alone, through which all copies go.
                pl.when((step > 0) & (number == 0))(lambda: plgpu.barrier_wait(buffers.layer_done))
            _copy_gradient(plan, arrays, buffers, step, scene, some, slot)

    drain(buffers.free, plan.ring, plan.layers * place.length)
    if plan.kind == "layer":
        plgpu.barrier_wait(buffers.layer_done)


def _copy_gradient(plan: Plan, arrays: Arrays, buffers: Buffers, step: Any, scene: Any, some: Any, slot: Any) -> None:
    """Copies a slab's gradient: the head's, or what the pass before wrote."""
    full, target = buffers.full.at[slot], buffers.right.at[slot]

    def share(source: Any) -> None:
        plgpu.copy_gmem_to_smem(source, target, full, collective_axes="block")

    if plan.kind == "head":
        source = arrays.gradient.at[scene, :, some]
        plgpu.copy_gmem_to_smem(source, target, full)
        for start in range(0, DEPTH, STRIPE):  # twice, for the matmul is that deep; the second meets zeros
            plgpu.copy_gmem_to_smem(source, buffers.narrow.at[slot, pl.ds(start, STRIPE), :], full)
    elif plan.kind == "first":
        share(arrays.gradient.at[scene, plan.before % 2, some, :])
    else:
        pl.when(step == 0)(lambda: share(arrays.gradient.at[scene, some, :]))
        pl.when(step > 0)(lambda: share(arrays.below.at[scene, turn(step - 1, 2), some, :]))


def _half(index: Any) -> Any:
    """Returns the slice of a half of 256."""
    return pl.ds(index * HALF, HALF)


def _multiply(plan: Plan, arrays: Arrays, buffers: Buffers, place: Place) -> None:
    """Sums up products of inputs and gradients, part by part."""
    me = place.me
    rows = pl.ds(me * CHUNK if plan.share == HALF else 0, CHUNK)
    if plan.kind == "head":
        columns = [pl.ds(0, STRIPE)]
    elif plan.share == HALF:  # a matmul of all 256 would take more registers than ptxas gives each of four warpgroups
        columns = [_half(0), _half(1)]
    else:
        columns = [_half(me)]

    def right(slot: Any, some: Any) -> Any:
        return buffers.right.at[slot].transpose((1, 0)) if plan.kind == "head" else buffers.right.at[slot, :, some]

    def run(step: Any, part: Any, first: Any, stop: Any) -> None:
        def sum_up(*totals: Any) -> None:
            @pl.loop(first, stop)
            def _(number: Any) -> None:
                slot = turn(step * place.length + number, plan.ring)
                plgpu.barrier_wait(buffers.full.at[slot])
                if plan.kind == "first":
                    plgpu.barrier_wait(buffers.made.at[slot])
                for some, total in zip(columns, totals, strict=True):
                    plgpu.wgmma(total, buffers.left.at[slot, :, rows].transpose((1, 0)), right(slot, some))
                plgpu.wgmma_wait(0)  # frees the slab; the other warpgroups keep the units for matmuls busy
                plgpu.barrier_arrive(buffers.free.at[slot])

            for some, total in zip(columns, totals, strict=True):
                arrays.products.at[step, place.pair, part, place.block, rows, some][...] = total[...]

        accumulator = plgpu.WGMMAAccumulatorRef((CHUNK, min(plan.outputs, HALF)), jnp.float32)
        pl.run_scoped(sum_up, *[accumulator] * len(columns))

    pl.loop(0, plan.layers)(lambda step: plan.work.by_parts(place, functools.partial(run, step)))


def _encode(plan: Plan, buffers: Buffers, place: Place) -> None:
    """Makes a block's share of the first layer's inputs, of its slabs."""
    plgpu.barrier_wait(buffers.angles_here)

    @pl.loop(place.me - CONSUMERS, place.length, step=plan.preparing)
    def _(number: Any) -> None:
        slot = turn(number, plan.ring)
        plgpu.barrier_wait(buffers.full.at[slot])
        for start in range(0, plan.share, CHUNK):
            values = encode_chunk(buffers.points.at[slot], buffers.angles, place.block * plan.share + start)
            buffers.left[slot, :, pl.ds(start, CHUNK)] = values
        plgpu.commit_smem()
        plgpu.barrier_arrive(buffers.made.at[slot])


def _through(plan: Plan, buffers: Buffers, slot: Any) -> Any:
    """Returns a block's half of a slab's gradient below, zero where relu cut off the activation."""

    def multiply(total: Any) -> Any:
        if plan.kind == "head":
            plgpu.wgmma(total, buffers.narrow.at[slot].transpose((1, 0)), buffers.kernel.transpose((1, 0)))
        else:
            for k in range(WIDTH // CHUNK):
                columns = pl.ds(k * CHUNK, CHUNK)
                kernel = buffers.kernel.at[:, columns].transpose((1, 0))
                plgpu.wgmma(total, buffers.right.at[slot, :, columns], kernel)
        activations = load(buffers.left.at[slot], plgpu.Layout.WGMMA)
        # One or zero, by operations on two values at a time; a selection takes them one by one.
        above = jnp.minimum(activations * _HUGE, 1.0)
        plgpu.wgmma_wait(0)
        return total[...].astype(jnp.bfloat16) * above

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((TILE, HALF), jnp.float32))


def _go_on(plan: Plan, arrays: Arrays, buffers: Buffers, place: Place) -> None:
    """Takes the gradient of its slabs on to a block's half of the inputs, and sums it up over rows."""
    mine = place.me - CONSUMERS
    out = buffers.out.at[mine]

    def run(step: Any, part: Any, first: Any, stop: Any) -> None:
        plgpu.barrier_wait(buffers.kernel_here)

        def sum_up(*sums: Any) -> None:
            @pl.loop(first + turn(first + mine, plan.preparing), stop, step=plan.preparing)
            def _(number: Any) -> None:
                slot = turn(step * place.length + number, plan.ring)
                plgpu.barrier_wait(buffers.full.at[slot])
                values = _through(plan, buffers, slot)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                out[...] = values
                plgpu.commit_smem()
                plgpu.barrier_arrive(buffers.free.at[slot])
                for chunk, total in enumerate(sums):  # as matmuls: a sum across warps would go through shared memory
                    columns = out.at[:, pl.ds(chunk * CHUNK, CHUNK)]
                    plgpu.wgmma(total, columns.transpose((1, 0)), buffers.ones.transpose((1, 0)))
                scene, some, _ = plan.rows_of(step, place, number)
                below = arrays.below.at[scene, turn(step, 2)] if plan.kind == "layer" else arrays.below.at[scene]
                plgpu.copy_smem_to_gmem(out, below.at[some, _half(place.block)])

            plgpu.wgmma_wait(0)
            for chunk, total in enumerate(sums):
                arrays.sums.at[step, place.pair, part, place.block, mine, chunk][...] = total[...]

        pl.run_scoped(sum_up, *[plgpu.WGMMAAccumulatorRef((CHUNK, STRIPE), jnp.float32)] * (HALF // CHUNK))
        plgpu.barrier_arrive(buffers.kernel_free)

    plgpu.barrier_wait(buffers.ones_here)

    @pl.loop(0, plan.layers)
    def _(step: Any) -> None:
        plan.work.by_parts(place, functools.partial(run, step))
        plgpu.wait_smem_to_gmem(0)
        if plan.kind == "layer":
            plgpu.barrier_arrive(buffers.layer_done)
