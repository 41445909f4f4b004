"""The kernels that take gradients back through layers: to their weights, and on to the layer below."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from jaxmeta.kernels import first_pass
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, STRIPE, TILE, WIDTH, drain, take_roles, turn
from jaxmeta.kernels.layer_copies import copy_all, copy_constants, copy_slab, copy_weights
from jaxmeta.kernels.layer_plan import Arrays, Buffers, Plan, Task
from jaxmeta.kernels.layers import load, pack_halves
from jaxmeta.kernels.slabs import HALF, Place

_HUGE = 2.0**126
"""Times this the smallest normal number is one. What comes back to a unit that relu cut off is multiplied by zero."""


def body(plan: Plan, arrays: Arrays, buffers: Buffers) -> None:
    """Runs the warpgroups of a block."""
    task = Task(plan, arrays, buffers, plan.work.place())
    multiplying, others = plan.registers

    def role(count: int, registers: int, work: Callable[[Task], None]) -> tuple[int, int, Callable[[], None]]:
        return count, registers, lambda: work(task)

    if plan.kind == "first":
        roles = [role(CONSUMERS, multiplying, first_pass.multiply), role(plan.encoding, others, first_pass.encode)]
        roles.append(role(1, 24, copy_all))
    else:
        copy = copy_all if plan.kind == "between" else _go_through_head
        roles = [role(CONSUMERS, multiplying, _go_on), role(1, others, copy)]
    take_roles(task.place.me, *roles)


def _go_through_head(task: Task) -> None:
    """Copies slabs and weights, makes the gradient by the last layer's sums where its activations are, and sums up.

    The sums are the head's products. A slab is copied as soon as its slot is free, before the next one is made.
    """
    plan, arrays, buffers, place = task
    copy = functools.partial(copy_slab, task, 0)

    def run(part: Any, first: Any, stop: Any) -> None:
        scene, _, _ = plan.rows_of(0, place, first)
        copy_weights(task, 0, scene, first)
        plgpu.barrier_wait(buffers.kernel_here)

        def sum_up(*products: Any) -> None:
            @pl.loop(first, stop)
            def _(number: Any) -> None:
                _make_gradient(buffers, place, turn(number, plan.ring), products)
                ahead = number + plan.ring - 1
                pl.when(ahead < place.length)(lambda: copy(ahead))

            for k, product in enumerate(products):
                arrays.head.at[place.pair, part, place.block, pl.ds(k * CHUNK, CHUNK)][...] = product[...]

        pl.run_scoped(sum_up, *[plgpu.WGMMAAccumulatorRef((CHUNK, STRIPE), jnp.float32)] * (HALF // CHUNK))

    copy_constants(task)
    pl.loop(0, lax.min(place.length, plan.ring - 1))(copy)
    plan.work.by_parts(place, run)
    drain(buffers.free, plan.ring, place.length)


def _make_gradient(buffers: Buffers, place: Place, slot: Any, products: Sequence[Any]) -> None:
    """Adds a slab's activations of the last layer times gradients to the head's products, and overwrites them."""
    right = buffers.right.at[slot]
    plgpu.barrier_wait(buffers.full.at[slot])
    for k, product in enumerate(products):
        some = right.at[:, pl.ds(place.block * HALF + k * CHUNK, CHUNK)]
        plgpu.wgmma(product, some.transpose((1, 0)), buffers.turned.at[slot].transpose((1, 0)))
    for k in range(WIDTH // CHUNK):
        columns = pl.ds(k * CHUNK, CHUNK)

        def multiply(total: Any, columns: Any = columns) -> Any:
            plgpu.wgmma(total, buffers.narrow.at[slot].transpose((1, 0)), buffers.head.at[:, columns])
            return _let_through(right.at[:, columns], total)

        values = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((TILE, CHUNK), jnp.float32))
        if k == 0:
            plgpu.wait_smem_to_gmem(0)  # for all threads: each matmul of `products` reads all rows
        right[:, columns] = values
    plgpu.commit_smem()
    plgpu.barrier_arrive(buffers.made.at[slot])


def _go_on(task: Task) -> None:
    """Sums up products for 64 of a block's inputs, part by part, and takes the gradient on to these.

    While one warpgroup masks and writes its gradient, the other one can multiply. In the last layer's pass gradients go
    out from where the activations were, for there is no room for more.
    """
    plan, arrays, buffers, place = task
    mine = pl.ds(place.me * CHUNK, CHUNK)
    columns_below = pl.ds(place.block * HALF + place.me * CHUNK, CHUNK)
    is_last = plan.kind == "last"

    def run(step: Any, part: Any, first: Any, stop: Any) -> None:
        plgpu.barrier_wait(buffers.kernel_here)

        def sum_up(products: Any, sums: Any) -> None:
            @pl.loop(first, stop)
            def _(number: Any) -> None:
                slot = turn(step * place.length + number, plan.ring)
                plgpu.barrier_wait(buffers.full.at[slot])
                if is_last:
                    plgpu.barrier_wait(buffers.made.at[slot])

                def free_left() -> None:
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    if is_last:
                        before = buffers.left_free.at[turn(number + plan.ring - 1, plan.ring)]
                        pl.when(number > 0)(lambda: plgpu.barrier_arrive(before))

                values = _through(buffers, slot, place, products, sums, free_left)
                if is_last:
                    plgpu.wait_smem_to_gmem(0)  # for all threads: each matmul of `products` reads all rows
                out = buffers.left.at[slot, place.me] if is_last else buffers.out.at[place.me]
                out[...] = values
                plgpu.commit_smem()
                plgpu.barrier_arrive(buffers.free.at[slot])
                scene, some, _ = plan.rows_of(step, place, number)
                below = arrays.below.at[scene] if is_last else arrays.below.at[scene, turn(step, 2)]
                plgpu.copy_smem_to_gmem(out, below.at[some, columns_below])

            arrays.products.at[step, place.pair, part, place.block, mine][...] = pack_halves(products[...])
            arrays.sums.at[step, place.pair, part, place.block, mine][...] = sums[...]

        accumulators = [plgpu.WGMMAAccumulatorRef((CHUNK, count), jnp.float32) for count in (WIDTH, STRIPE)]
        pl.run_scoped(sum_up, *accumulators)
        plgpu.barrier_arrive(buffers.kernel_free)

    plgpu.barrier_wait(buffers.ones_here)

    @pl.loop(0, plan.layers)
    def _(step: Any) -> None:
        plan.work.by_parts(place, functools.partial(run, step))
        plgpu.wait_smem_to_gmem(0)
        if not is_last:
            plgpu.barrier_arrive(buffers.layer_done)


def _through(buffers: Buffers, slot: Any, place: Place, products: Any, sums: Any, meanwhile: Callable[[], None]) -> Any:
    """Returns a slab's gradient below, zero where relu cut off the activation, and adds to products and sums."""
    mine, right = pl.ds(place.me * CHUNK, CHUNK), buffers.right.at[slot]
    left, summed = buffers.left.at[slot, place.me], pl.ds(place.block * HALF + place.me * CHUNK, CHUNK)

    def multiply(total: Any) -> Any:
        for k in range(WIDTH // CHUNK):
            columns = pl.ds(k * CHUNK, CHUNK)
            plgpu.wgmma(total, right.at[:, columns], buffers.kernel.at[mine, columns].transpose((1, 0)))
        plgpu.wgmma(products, left.transpose((1, 0)), right)
        # As a matmul: a sum across warps would go through shared memory.
        plgpu.wgmma(sums, right.at[:, summed].transpose((1, 0)), buffers.ones.transpose((1, 0)))
        meanwhile()
        return _let_through(left, total)

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((TILE, CHUNK), jnp.float32))


def _let_through(activations: Any, total: Any) -> Any:
    """Returns what is summed up when all matmuls are done, zero where relu cut off the activation."""
    # One or zero, by operations on two values at a time; a selection takes them one by one.
    above = jnp.minimum(load(activations, plgpu.Layout.WGMMA) * _HUGE, 1.0)
    plgpu.wgmma_wait(0)
    return total[...].astype(jnp.bfloat16) * above
