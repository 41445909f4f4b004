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
    multiplying, others = plan.registers
    copy = (1, 24, lambda: _copy(plan, arrays, buffers, place))
    if plan.kind == "first":
        multiply = (CONSUMERS, multiplying, lambda: _multiply(plan, arrays, buffers, place))
        take_roles(place.me, multiply, (plan.encoding, others, lambda: _encode(plan, buffers, place)), copy)
    else:
        take_roles(place.me, (CONSUMERS, multiplying, lambda: _go_on(plan, arrays, buffers, place)), copy)


def _copy(plan: Plan, arrays: Arrays, buffers: Buffers, place: Place) -> None:
    """Copies a block's share of each slab's inputs, or its points; half of its gradient, for both blocks; weights."""

    def copy_kernel(step: Any, scene: Any, number: Any) -> None:
        pl.when((step > 0) | (number > 0))(lambda: plgpu.barrier_wait(buffers.kernel_free))
        if plan.kind == "head":
            source = arrays.weights.at[scene, pl.ds(plan.first_row, DEPTH), _half(place.block)]
        else:
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
    """Sums up products of the first layer's inputs and gradients, part by part."""
    me = place.me
    rows = pl.ds(me * CHUNK if plan.share == HALF else 0, CHUNK)
    # A matmul of all 256 would take more registers than ptxas gives each of four warpgroups.
    columns = [_half(0), _half(1)] if plan.share == HALF else [_half(me)]

    def run(part: Any, first: Any, stop: Any) -> None:
        def sum_up(*totals: Any) -> None:
            @pl.loop(first, stop)
            def _(number: Any) -> None:
                slot = turn(number, plan.ring)
                plgpu.barrier_wait(buffers.full.at[slot])
                plgpu.barrier_wait(buffers.made.at[slot])
                for some, total in zip(columns, totals, strict=True):
                    left = buffers.left.at[slot, :, rows]
                    plgpu.wgmma(total, left.transpose((1, 0)), buffers.right.at[slot, :, some])
                plgpu.wgmma_wait(0)  # frees the slab; the other warpgroups keep the units for matmuls busy
                plgpu.barrier_arrive(buffers.free.at[slot])

            for some, total in zip(columns, totals, strict=True):
                arrays.products.at[0, place.pair, part, place.block, rows, some][...] = total[...]

        pl.run_scoped(sum_up, *[plgpu.WGMMAAccumulatorRef((CHUNK, HALF), jnp.float32)] * len(columns))

    plan.work.by_parts(place, run)


def _encode(plan: Plan, buffers: Buffers, place: Place) -> None:
    """Makes a block's share of the first layer's inputs, of its slabs."""
    plgpu.barrier_wait(buffers.angles_here)

    @pl.loop(place.me - CONSUMERS, place.length, step=plan.encoding)
    def _(number: Any) -> None:
        slot = turn(number, plan.ring)
        plgpu.barrier_wait(buffers.full.at[slot])
        for start in range(0, plan.share, CHUNK):
            values = encode_chunk(buffers.points.at[slot], buffers.angles, place.block * plan.share + start)
            buffers.left[slot, :, pl.ds(start, CHUNK)] = values
        plgpu.commit_smem()
        plgpu.barrier_arrive(buffers.made.at[slot])


def _go_on(plan: Plan, arrays: Arrays, buffers: Buffers, place: Place) -> None:
    """Sums up products for 64 of a block's inputs, part by part, and takes the gradient on to these.

    While one warpgroup masks and writes its gradient, the other one can multiply.
    """
    mine, out = pl.ds(place.me * CHUNK, CHUNK), buffers.out.at[place.me]
    columns_below = pl.ds(place.block * HALF + place.me * CHUNK, CHUNK)

    def run(step: Any, part: Any, first: Any, stop: Any) -> None:
        plgpu.barrier_wait(buffers.kernel_here)

        def sum_up(products: Any, sums: Any) -> None:
            @pl.loop(first, stop)
            def _(number: Any) -> None:
                slot = turn(step * place.length + number, plan.ring)
                plgpu.barrier_wait(buffers.full.at[slot])
                values = _through(plan, buffers, slot, mine, products)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                out[...] = values
                plgpu.commit_smem()
                plgpu.barrier_arrive(buffers.free.at[slot])
                # As a matmul: a sum across warps would go through shared memory.
                plgpu.wgmma(sums, out.transpose((1, 0)), buffers.ones.transpose((1, 0)))
                scene, some, _ = plan.rows_of(step, place, number)
                below = arrays.below.at[scene, turn(step, 2)] if plan.kind == "layer" else arrays.below.at[scene]
                plgpu.copy_smem_to_gmem(out, below.at[some, columns_below])

            plgpu.wgmma_wait(0)
            arrays.products.at[step, place.pair, part, place.block, mine][...] = products[...]
            arrays.sums.at[step, place.pair, part, place.block, mine][...] = sums[...]

        accumulators = [plgpu.WGMMAAccumulatorRef((CHUNK, count), jnp.float32) for count in (plan.outputs, STRIPE)]
        pl.run_scoped(sum_up, *accumulators)
        plgpu.barrier_arrive(buffers.kernel_free)

    plgpu.barrier_wait(buffers.ones_here)

    @pl.loop(0, plan.layers)
    def _(step: Any) -> None:
        plan.work.by_parts(place, functools.partial(run, step))
        plgpu.wait_smem_to_gmem(0)
        if plan.kind == "layer":
            plgpu.barrier_arrive(buffers.layer_done)


def _through(plan: Plan, buffers: Buffers, slot: Any, mine: Any, products: Any) -> Any:
    """Returns a slab's gradient below, zero where relu cut off the activation, and adds to the products."""
    left, right = buffers.left.at[slot, :, mine], buffers.right.at[slot]

    def multiply(total: Any) -> Any:
        if plan.kind == "head":
            plgpu.wgmma(total, buffers.narrow.at[slot].transpose((1, 0)), buffers.kernel.at[:, mine])
            plgpu.wgmma(products, left.transpose((1, 0)), right.transpose((1, 0)))
        else:
            for k in range(WIDTH // CHUNK):
                columns = pl.ds(k * CHUNK, CHUNK)
                plgpu.wgmma(total, right.at[:, columns], buffers.kernel.at[mine, columns].transpose((1, 0)))
            plgpu.wgmma(products, left.transpose((1, 0)), right)
        activations = load(left, plgpu.Layout.WGMMA)
        # One or zero, by operations on two values at a time; a selection takes them one by one.
        above = jnp.minimum(activations * _HUGE, 1.0)
        plgpu.wgmma_wait(0)
        return total[...].astype(jnp.bfloat16) * above

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((TILE, CHUNK), jnp.float32))
