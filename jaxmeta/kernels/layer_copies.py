"""Copies into shared memory of what a kernel of layers' gradients needs, ahead of those who need it."""

from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu

from jaxmeta.kernels.launching import CHUNK, CONSUMERS, DEPTH, STRIPE, WIDTH, drain, turn
from jaxmeta.kernels.layer_plan import Task
from jaxmeta.kernels.layers import HEAD_ROW
from jaxmeta.kernels.slabs import HALF


def copy_all(task: Task) -> None:
    """Copies everything of a kernel that does not go through the head."""
    plan, buffers, place = task.plan, task.buffers, task.place
    copy_constants(task)

    @pl.loop(0, plan.layers)
    def _(step: Any) -> None:
        @pl.loop(0, place.length)
        def _(number: Any) -> None:
            if plan.kind == "between":
                scene, _, is_first = plan.part_of(step, place, number)
                pl.when(is_first)(lambda: copy_weights(task, step, scene, number))
            copy_slab(task, step, number)

    drain(buffers.free, plan.ring, plan.layers * place.length)
    if plan.kind == "between":
        plgpu.barrier_wait(buffers.layer_done)


def copy_constants(task: Task) -> None:
    """Copies what is the same for all slabs."""
    plan, arrays, buffers = task.plan, task.arrays, task.buffers
    if plan.kind == "first":
        plgpu.copy_gmem_to_smem(arrays.angles, buffers.angles, buffers.angles_here)
    else:
        plgpu.copy_gmem_to_smem(arrays.ones, buffers.ones, buffers.ones_here)


def copy_weights(task: Task, step: Any, scene: Any, number: Any) -> None:
    """Copies a layer's weights for a block's share of the inputs, and those of a head, before the slab of a number."""
    plan, arrays, buffers, place = task
    pl.when((step > 0) | (number > 0))(lambda: plgpu.barrier_wait(buffers.kernel_free))
    row = plan.first_row + (plan.top - step) * WIDTH + place.block * HALF
    plgpu.copy_gmem_to_smem(arrays.weights.at[scene, pl.ds(row, HALF), :], buffers.kernel, buffers.kernel_here)
    if plan.kind == "last":
        head = arrays.weights.at[scene, pl.ds(HEAD_ROW, DEPTH), :]
        plgpu.copy_gmem_to_smem(head, buffers.head, buffers.kernel_here)


def copy_slab(task: Task, step: Any, number: Any) -> None:
    """Copies a block's share of a slab's inputs, or its points, and half of its gradient, for both blocks."""
    plan, arrays, buffers, place = task
    total = step * place.length + number
    slot = turn(total, plan.ring)
    scene, rows, _ = plan.part_of(step, place, number)
    some = rows(number)
    full = buffers.full.at[slot]
    pl.when(total >= plan.ring)(lambda: plgpu.barrier_wait(buffers.free.at[slot]))
    if plan.kind == "first":
        plgpu.copy_gmem_to_smem(arrays.inputs.at[scene, :, some], buffers.points.at[slot], full)
    else:
        if plan.kind == "last":
            pl.when(total >= plan.ring)(lambda: plgpu.barrier_wait(buffers.left_free.at[slot]))
        for k in range(CONSUMERS):
            columns = pl.ds(place.block * HALF + k * CHUNK, CHUNK)
            source = arrays.inputs.at[scene, plan.top - step, some, columns]
            plgpu.copy_gmem_to_smem(source, buffers.left.at[slot, k], full)
    if plan.kind == "between":
        # What the next layer begins with the pair has just written, by copies that are done when it says so.
        # That each block sees the other's rests on the cache alone, through which all copies go.
        pl.when((step > 0) & (number == 0))(lambda: plgpu.barrier_wait(buffers.layer_done))
    _copy_gradient(task, step, scene, some, slot)


def _copy_gradient(task: Task, step: Any, scene: Any, some: Any, slot: Any) -> None:
    """Copies a slab's gradient, or the one by the head's outputs and the activations that it will replace."""
    plan, arrays, buffers = task.plan, task.arrays, task.buffers
    full = buffers.full.at[slot]

    def share(source: Any) -> None:
        plgpu.copy_gmem_to_smem(source, buffers.right.at[slot], full, collective_axes="block")

    if plan.kind == "last":
        share(arrays.last.at[scene, some, :])
        source = arrays.gradient.at[scene, :, some]
        plgpu.copy_gmem_to_smem(source, buffers.turned.at[slot], full)
        for start in range(0, DEPTH, STRIPE):  # twice, for the matmul is that deep; the second meets zeros
            plgpu.copy_gmem_to_smem(source, buffers.narrow.at[slot, pl.ds(start, STRIPE), :], full)
    elif plan.kind == "first":
        share(arrays.gradient.at[scene, plan.before % arrays.gradient.shape[1], some, :])
    else:
        pl.when(step == 0)(lambda: share(arrays.gradient.at[scene, some, :]))
        pl.when(step > 0)(lambda: share(arrays.below.at[scene, turn(step - 1, 2), some, :]))
