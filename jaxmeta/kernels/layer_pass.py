"""The kernels that take gradients back through layers: to their weights, and on to the layer below."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from jaxmeta.kernels import first_pass
from jaxmeta.kernels.launching import CHUNK, CONSUMERS, STRIPE, TILE, WIDTH, after, before, drain, take_roles, turn
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

    The sums are the head's products, and the gradient's over rows: those that multiply have no registers left for them.
    A slab is copied as soon as its slot is free, before the next one is made.
    """
    plan, arrays, buffers, place = task
    copy = functools.partial(copy_slab, task, 0)
    chunks = [pl.ds(k * CHUNK, CHUNK) for k in range(HALF // CHUNK)]

    def run(part: Any, first: Any, stop: Any) -> None:
        scene, _, _ = plan.part_of(0, place, first)
        copy_weights(task, 0, scene, first)
        plgpu.barrier_wait(buffers.kernel_here)

        def sum_up(*accumulators: Any) -> None:
            products, sums = accumulators[: len(chunks)], accumulators[len(chunks) :]

            @pl.loop(first, stop, init_carry=turn(first, plan.ring))
            def _(number: Any, slot: Any) -> Any:
                _make_gradient(buffers, place, slot, products)
                for k, some in enumerate(sums):
                    _sum_rows(buffers, slot, place, k, some)
                ahead = number + plan.ring - 1
                pl.when(ahead < place.length)(lambda: copy(ahead))
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(buffers.free.at[slot])
                return after(slot, plan.ring)

            for chunk, product, some in zip(chunks, products, sums, strict=True):
                arrays.head.at[place.pair, part, place.block, chunk][...] = product[...]
                arrays.sums.at[0, place.pair, part, place.block, chunk][...] = some[...]

        pl.run_scoped(sum_up, *[plgpu.WGMMAAccumulatorRef((CHUNK, STRIPE), jnp.float32)] * (2 * len(chunks)))

    copy_constants(task)
    plgpu.barrier_wait(buffers.ones_here)
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
        above = _above(right.at[:, columns])

        def multiply(total: Any, columns: Any = columns, above: Any = above) -> Any:
            plgpu.wgmma(total, buffers.narrow.at[slot].transpose((1, 0)), buffers.head.at[:, columns])
            return total[...].astype(jnp.bfloat16) * above

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
        scene, rows, _ = plan.part_of(step, place, first)
        below = arrays.below.at[scene] if is_last else arrays.below.at[scene, turn(step, 2)]

        def sum_up(products: Any, *sums: Any) -> None:
            @pl.loop(first, stop, init_carry=turn(step * place.length + first, plan.ring))
            def _(number: Any, slot: Any) -> Any:
                plgpu.barrier_wait(buffers.full.at[slot])
                if is_last:
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    left_free = buffers.left_free.at[before(slot, plan.ring)]
                    pl.when(number > 0)(lambda: plgpu.barrier_arrive(left_free))
                    plgpu.barrier_wait(buffers.made.at[slot])
                values = _through(buffers, slot, place, products, sums)
                # For all threads: each matmul of `products` reads all rows, and one thread alone knows of the copy.
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                out = buffers.left.at[slot, place.me] if is_last else buffers.out.at[place.me]
                out[...] = values
                plgpu.commit_smem()
                plgpu.barrier_arrive(buffers.free.at[slot])
                plgpu.copy_smem_to_gmem(out, below.at[rows(number), columns_below])
                return after(slot, plan.ring)

            arrays.products.at[step, place.pair, part, place.block, mine][...] = pack_halves(products[...])
            for some in sums:
                arrays.sums.at[step, place.pair, part, place.block, mine][...] = some[...]

        columns = (WIDTH,) if is_last else (WIDTH, STRIPE)
        accumulators = [plgpu.WGMMAAccumulatorRef((CHUNK, count), jnp.float32) for count in columns]
        pl.run_scoped(sum_up, *accumulators)
        plgpu.barrier_arrive(buffers.kernel_free)

    if not is_last:
        plgpu.barrier_wait(buffers.ones_here)

    @pl.loop(0, plan.layers)
    def _(step: Any) -> None:
        plan.work.by_parts(place, functools.partial(run, step))
        plgpu.wait_smem_to_gmem(0)
        if not is_last:
            plgpu.barrier_arrive(buffers.layer_done)


def _through(buffers: Buffers, slot: Any, place: Place, products: Any, sums: Sequence[Any]) -> Any:
    """Returns a slab's gradient below, zero where relu cut off the activation, and adds to products and sums."""
    mine, right, left = pl.ds(place.me * CHUNK, CHUNK), buffers.right.at[slot], buffers.left.at[slot, place.me]
    # Before the matmuls: behind them it would wait for both warpgroups' to begin, for requests are served in order.
    above = _above(left)

    def multiply(total: Any) -> Any:
        for k in range(WIDTH // CHUNK):
            columns = pl.ds(k * CHUNK, CHUNK)
            plgpu.wgmma(total, right.at[:, columns], buffers.kernel.at[mine, columns].transpose((1, 0)))
        plgpu.wgmma(products, left.transpose((1, 0)), right)
        for some in sums:
            _sum_rows(buffers, slot, place, place.me, some)
        return total[...].astype(jnp.bfloat16) * above

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((TILE, CHUNK), jnp.float32))


def _sum_rows(buffers: Buffers, slot: Any, place: Place, chunk: Any, sums: Any) -> None:
    """Adds a slab's gradient, in a chunk of a block's share of its columns, over its rows to all columns of the sums.

    As a matmul: a sum across warps would go through shared memory.
    """
    some = buffers.right.at[slot, :, pl.ds(place.block * HALF + chunk * CHUNK, CHUNK)]
    plgpu.wgmma(sums, some.transpose((1, 0)), buffers.ones.transpose((1, 0)))


def _above(activations: Any) -> Any:
    """Returns one, or zero where relu cut off the activation, by operations on two values at a time."""
    return jnp.minimum(load(activations, plgpu.Layout.WGMMA) * _HUGE, 1.0)
