"""Dense layers of many scenes, each with its own weights, as single kernels for NVIDIA's Hopper GPUs.

A layer's matmul, bias and activation, or in the backward pass its matmul, the activation's mask and the bias gradient,
run in one pass over memory, where XLA takes two or three. Operands are bfloat16, sums float32.

Written in Pallas for its Mosaic GPU backend. A block of threads keeps half of a scene's weights in shared memory; each
of its warpgroups takes tiles of 64 rows: copy in, multiply, finish in registers, copy out. Copies are asynchronous, and
while one warpgroup waits for its own, the others multiply.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, BFloat16, Float

TILE_ROWS = 64
"""Rows that a warpgroup multiplies at a time: the height of the hardware's matmul."""
TILE_COLUMNS = 128
"""Outputs whose weights a block of threads keeps."""
WARPGROUPS = 3
_MULTIPROCESSORS = 132


class Layer(NamedTuple):
    """What a kernel does besides the matmul."""

    bias: bool = False
    relu: bool = False
    mask: bool = False
    """Zero what lies where another array is not positive: the gradient of a relu, given what it returned."""
    column_sums: bool = False


def dense_relu(
    rows: BFloat16[Array, "rows inputs"], kernel: BFloat16[Array, "inputs outputs"], bias: Float[Array, "outputs"]
) -> BFloat16[Array, "rows outputs"]:
    """Returns `max(rows @ kernel + bias, 0)` of one scene; under a vmap the scenes share one launch.

    `inputs` must be a multiple of 64 and at most 256, `outputs` a multiple of 128.
    """
    return _over_scenes(Layer(bias=True, relu=True))(rows, kernel, bias)[0]


def dense_masked(
    rows: BFloat16[Array, "rows inputs"],
    kernel: BFloat16[Array, "inputs outputs"],
    active: BFloat16[Array, "rows outputs"],
) -> tuple[BFloat16[Array, "rows outputs"], Float[Array, "outputs"]]:
    """Returns `rows @ kernel`, zero where `active` is not positive, and sums over rows; sizes as in `dense_relu`."""
    return _over_scenes(Layer(mask=True, column_sums=True))(rows, kernel, active)


@functools.cache
def _over_scenes(layer: Layer) -> Callable[..., Any]:
    """Returns the layer as a function of one scene that knows how to run for a batch of them."""

    @custom_vmap
    def run(*operands: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], _launch(layer, *(operand[None] for operand in operands)))

    @run.def_vmap
    def run_batch(num_scenes: int, is_batched: list[bool], *operands: Array) -> Any:
        if not (any(is_batched[1:]) or layer.column_sums):  # one network: more rows for it
            rows = operands[0].reshape(-1, operands[0].shape[-1])
            (out,) = run(rows, *operands[1:])
            return (out.reshape(num_scenes, -1, out.shape[-1]),), (True,)
        batch = [
            operand if batched else jnp.broadcast_to(operand, (num_scenes, *operand.shape))
            for operand, batched in zip(operands, is_batched, strict=True)
        ]
        out = _launch(layer, *batch)
        return out, jax.tree.map(lambda _: True, out)

    return run


@functools.partial(jax.jit, static_argnums=0)  # layers of one size are compiled once
def _launch(
    layer: Layer,
    rows: BFloat16[Array, "scenes rows inputs"],
    kernel: BFloat16[Array, "scenes inputs outputs"],
    operand: Array,
) -> tuple[Array, ...]:
    """Runs the kernel on the rows, with the bias or the mask; returns the outputs and, if wanted, the column sums."""
    num_rows = rows.shape[1]
    padding = ((0, 0), (0, -num_rows % TILE_ROWS), (0, 0))
    rows = jnp.pad(rows, padding)
    operand = jnp.pad(operand, padding) if layer.mask else operand
    num_scenes, padded_rows, num_inputs = rows.shape
    num_outputs = kernel.shape[2]
    num_halves, num_tiles = num_outputs // TILE_COLUMNS, padded_rows // TILE_ROWS
    num_blocks = max(1, min(_MULTIPROCESSORS // (num_scenes * num_halves), -(-num_tiles // WARPGROUPS)))
    out_type = [jax.ShapeDtypeStruct((num_scenes, padded_rows, num_outputs), jnp.bfloat16)]
    if layer.column_sums:
        shape = (num_scenes, num_blocks, WARPGROUPS, TILE_ROWS, num_outputs)
        out_type.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    scratch = {
        "weights": _tiled((num_inputs, TILE_COLUMNS)),
        "inputs": _tiled((WARPGROUPS, TILE_ROWS, num_inputs)),
        "outputs": _tiled((WARPGROUPS, TILE_ROWS, TILE_COLUMNS)),  # holds the mask before
        "ones": _tiled((TILE_ROWS, TILE_ROWS)) if layer.column_sums else None,
        "bias": plgpu.SMEM((TILE_COLUMNS,), jnp.float32) if layer.bias else None,
        "inputs_here": plgpu.Barrier(num_barriers=WARPGROUPS),
        "mask_here": plgpu.Barrier(num_barriers=WARPGROUPS),
        "weights_here": plgpu.Barrier(num_arrivals=1 + layer.bias),
        "ones_here": plgpu.Barrier(),
    }
    kernel_function = plgpu.kernel(
        lambda *refs: pl.run_scoped(functools.partial(_body, layer, refs), collective_axes="warpgroup", **scratch),
        out_type=tuple(out_type),
        grid=(num_scenes, num_blocks, num_halves),
        grid_names=("scene", "block", "half"),
        num_threads=WARPGROUPS,
        thread_name="warpgroup",
    )
    out, *sums = kernel_function(rows, kernel, operand)
    # Every row of a part holds the part's sum.
    return (out[:, :num_rows], *(parts[..., 0, :].sum((1, 2)) for parts in sums))


def _tiled(shape: tuple[int, ...]) -> Any:
    """Returns a bfloat16 array in shared memory in the order in which the hardware's matmul reads it."""
    swizzle = plgpu.find_swizzle(shape[-1] * 16)
    return plgpu.SMEM(
        shape,
        jnp.bfloat16,
        transforms=(plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle)),
    )


def _body(
    layer: Layer,
    refs: tuple[Any, ...],
    *,
    weights: Any,
    inputs: Any,
    outputs: Any,
    ones: Any,
    bias: Any,
    inputs_here: Any,
    mask_here: Any,
    weights_here: Any,
    ones_here: Any,
) -> None:
    """What each warpgroup does; `refs` are the operands and results, the rest is shared memory."""
    rows, kernel, operand, out, *sums = refs
    scene, block, half = (lax.axis_index(name) for name in ("scene", "block", "half"))
    group = lax.axis_index("warpgroup")
    columns = pl.ds(half * TILE_COLUMNS, TILE_COLUMNS)
    first, stride = block * WARPGROUPS + group, lax.axis_size("block") * WARPGROUPS
    num_tiles = (rows.shape[1] // TILE_ROWS - first + stride - 1) // stride
    tile_in, tile_out = inputs.at[group], outputs.at[group]

    def place(index: Any) -> Any:
        return pl.ds((first + index * stride) * TILE_ROWS, TILE_ROWS)

    def fetch_inputs(index: Any) -> None:
        plgpu.copy_gmem_to_smem(rows.at[scene, place(index), :], tile_in, inputs_here.at[group])

    def fetch_mask(index: Any) -> None:
        plgpu.copy_gmem_to_smem(operand.at[scene, place(index), columns], tile_out, mask_here.at[group])

    @pl.when(group == 0)
    def _() -> None:
        plgpu.copy_gmem_to_smem(kernel.at[scene, :, columns], weights, weights_here)
        if layer.bias:
            plgpu.copy_gmem_to_smem(operand.at[scene, columns], bias, weights_here)
        if layer.column_sums:
            ones[...] = jnp.ones(ones.shape, jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.barrier_arrive(ones_here)

    @pl.when(num_tiles > 0)
    def _() -> None:
        fetch_inputs(0)
        if layer.mask:
            fetch_mask(0)

    plgpu.barrier_wait(weights_here)
    if layer.column_sums:
        plgpu.barrier_wait(ones_here)

    def finish(values: Any) -> Any:
        if layer.bias:
            one_row = _load(bias, plgpu.Layout.WGMMA.reduce(0))
            values = values + lax.broadcast_in_dim(one_row, values.shape, (1,))
        if layer.relu:
            values = jnp.maximum(values, 0.0)
        if layer.mask:
            plgpu.barrier_wait(mask_here.at[group])
            active = _load(tile_out, plgpu.Layout.WGMMA).astype(jnp.float32) > 0.0
            values = jnp.where(active, values, 0.0)
        return values

    def all_tiles(total: Any = None) -> Any:
        @pl.loop(0, num_tiles)
        def _(index: Any) -> None:
            plgpu.barrier_wait(inputs_here.at[group])
            values = pl.run_scoped(
                functools.partial(_product, tile_in, weights),
                plgpu.WGMMAAccumulatorRef((TILE_ROWS, TILE_COLUMNS), jnp.float32),
            )
            pl.when(index + 1 < num_tiles)(lambda: fetch_inputs(index + 1))
            values = finish(values)
            if not layer.mask:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            tile_out[...] = values.astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(tile_out, out.at[scene, place(index), columns])
            if layer.column_sums:  # as a matmul with ones: a sum across warps would have to go through shared memory
                plgpu.wgmma(total, ones, tile_out)
                plgpu.wgmma_wait(0)
            if layer.mask:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                pl.when(index + 1 < num_tiles)(lambda: fetch_mask(index + 1))

        return total[...] if layer.column_sums else None

    if layer.column_sums:
        total = pl.run_scoped(all_tiles, plgpu.WGMMAAccumulatorRef((TILE_ROWS, TILE_COLUMNS), jnp.float32))
        sums[0][scene, block, group, :, columns] = total
    else:
        all_tiles()
    plgpu.wait_smem_to_gmem(0)


def _product(left: Any, right: Any, accumulator: Any) -> Any:
    plgpu.wgmma(accumulator, left, right)
    plgpu.wgmma_wait(0)
    return accumulator[...]


def _load(ref: Any, layout: Any) -> Any:
    return plgpu.load(ref, layout=layout)  # pyright: ignore[reportCallIssue]  # jax 0.10 wants an index too
