"""What all kernels have in common: their sizes, how a batch of scenes becomes one launch, and who does what in it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, BFloat16

WIDTH = 256
"""Outputs of every layer: what the accumulators of a warpgroup hold for a tile."""
TILE = 64
"""Rows that a warpgroup multiplies at a time: the height of the hardware's matmul."""
CHUNK = 64
"""Columns that a row of a buffer in shared memory holds, as the matmul reads it: 128 bytes."""
STRIPE = 8
"""Columns after which a thread's share of a tile repeats; a thread has two of them."""
MULTIPROCESSORS = 132
"""Blocks that run at a time: as many as an H100 or H200 has multiprocessors. Read by `at_once` alone."""
DEPTH = 16
"""Columns of the left operand that the hardware's matmul takes at a time, and so the fewest."""
CONSUMERS = 2
"""Warpgroups of a block that multiply."""


def at_once(pieces: int, blocks: int = 1) -> int:
    """Returns how many of so many pieces of work, which take `blocks` blocks each, run at a time."""
    return min(MULTIPROCESSORS // blocks, pieces)


def over_scenes(launch: Callable[..., Any], *, rows_only: bool = False) -> Callable[..., Any]:
    """Returns a function of one scene that has `launch` run a batch of them.

    With `rows_only` its first operand is rows, and so is its result, along its last axis: scenes that share the other
    operands are more rows of one.
    """

    @custom_vmap
    def run(*operands: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], launch(*(operand[None] for operand in operands)))

    @run.def_vmap
    def run_batch(num_scenes: int, is_batched: list[bool], *operands: Array) -> Any:
        if rows_only and not any(is_batched[1:]):
            out = run(operands[0].reshape(-1, operands[0].shape[-1]), *operands[1:])
            return jnp.moveaxis(out.reshape(len(out), num_scenes, -1), 1, 0), True
        batch = [
            operand if batched else jnp.broadcast_to(operand, (num_scenes, *operand.shape))
            for operand, batched in zip(operands, is_batched, strict=True)
        ]
        out = launch(*batch)
        return out, jax.tree.map(lambda _: True, out)

    return run


def call(
    body: Callable[..., None], out_type: Sequence[Any], scratch: dict[str, Any], name: str, warpgroups: int, **grid: Any
) -> Callable[..., Any]:
    """Returns the kernel that runs `body(*operands, *results, **scratch)` in so many warpgroups of every block."""
    return plgpu.kernel(
        lambda *refs: pl.run_scoped(functools.partial(body, *refs), collective_axes="warpgroup", **scratch),
        out_type=out_type,
        kernel_name=name,
        # Where a thread's use of shared memory needs the others to have come so far, `wait_smem_to_gmem` or
        # `commit_smem` stands before it: both have the warpgroup wait for all of its threads, though Pallas does not
        # promise it. Its own barriers around every use cost forward 2 %.
        compiler_params=plgpu.CompilerParams(reduction_scratch_bytes=0, approx_math=True, unsafe_no_auto_barriers=True),
        num_threads=warpgroups,
        thread_name="warpgroup",
        **grid,
    )


def take_roles(me: Any, *roles: tuple[int, int, Callable[[], None]]) -> None:
    """Has warpgroups do their work: roles are how many of them, registers for a thread of each, and the work."""
    warpgroups = sum(count for count, _, _ in roles)
    registers = 65536 // (128 * warpgroups) // 8 * 8
    if sum(count * own for count, own, _ in roles) > warpgroups * registers:
        raise ValueError(
            f"{warpgroups} warpgroups have {registers} registers a thread; with more they would wait forever"
        )
    first = 0
    for count, own, work in roles:

        @pl.when((me >= first) & (me < first + count))
        def _(own: int = own, work: Callable[[], None] = work) -> None:
            plgpu.set_max_registers(own, action="increase" if own > registers else "decrease")
            work()

        first += count


def constant(values: np.ndarray) -> BFloat16[Array, "*any"]:
    """Returns an operand that XLA keeps in memory; one of equal values it would write anew each time."""
    return jnp.asarray(values, jnp.bfloat16)


def tiled(shape: tuple[int, ...], columns: int = CHUNK) -> Any:
    """Returns a bfloat16 array in shared memory in the order in which the hardware's matmul reads it.

    Both operands of a matmul must have tiles of as many `columns`, and so many columns of the left are its least depth.
    """
    transforms = plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns)
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def drain(free: Any, count: int, total: Any) -> None:
    """Waits until the last slots are free: no block may leave while its pair still has to tell it so."""

    @pl.loop(lax.max(total - count, 0), total)
    def _(number: Any) -> None:
        plgpu.barrier_wait(free.at[turn(number, count)])


def turn(number: Any, count: int) -> Any:
    """Returns which of `count` buffers, taken in turn, is that of a number."""
    return lax.rem(number, jnp.int32(count))


def after(slot: Any, count: int) -> Any:
    """Returns which of `count` buffers comes after one of them; cheaper than the turn of a number."""
    return jnp.where(slot == count - 1, 0, slot + 1)


def before(slot: Any, count: int) -> Any:
    """Returns which of `count` buffers comes before one of them."""
    return jnp.where(slot == 0, count - 1, slot - 1)
