"""The squared error of the colours that rays see, and its gradient by a network's outputs, in one kernel."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, BFloat16, Float

from jaxmeta.fields import OUTPUTS, DensityActivation
from jaxmeta.kernels.launching import STRIPE, TILE, call, constant, over_scenes, tiled
from jaxmeta.kernels.layers import PARTS, load

_STRETCHES = 4
"""Of a ray, each in another of a warpgroup's four warps, so that there are enough tiles for all multiprocessors."""
_RAYS = TILE // _STRETCHES
"""Of a tile."""
_SAMPLES = 64, 128
"""Of a ray: a stretch of them must be as wide as a tile of a matmul's operand can be. Of more, 256 lack registers."""
_STRETCH_SUMS = "depth", "red", "green", "blue", "share"
"""That stretches of a ray tell each other."""
_EACH, _EACH_ROW = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1)
"""Of what belongs to samples, and to rows of them."""
_SUMS = OUTPUTS + 1
"""Over a stretch, that the kernel returns: of the gradient by each output, and of the squared error."""


def possible(num_rays: int, num_samples: int) -> bool:
    """Returns whether the kernel can take so many rays of so many samples: rays by 16, and 64 or 128 samples."""
    return num_rays % _RAYS == 0 and num_samples in _SAMPLES


def in_tiles(samples: Float[Array, "rays samples *any"]) -> Float[Array, "tiles 64 stretch *any"]:
    """Returns what belongs to samples as the kernel takes it: of 16 rays the first stretches, then the second ..."""
    num_rays, num_samples, *rest = samples.shape
    stretches = samples.reshape(num_rays // _RAYS, _RAYS, _STRETCHES, num_samples // _STRETCHES, *rest)
    return stretches.swapaxes(1, 2).reshape(num_rays // _RAYS, TILE, -1, *rest)


def squared_error(
    outputs: Float[Array, "8 points"],
    bias: Float[Array, "4"],
    intervals: Float[Array, "tiles 64 stretch"],
    target: Float[Array, "rays 3"],
    density_activation: DensityActivation,
) -> tuple[Float[Array, ""], BFloat16[Array, "8 points"], Float[Array, "4"]]:
    """Returns the mean squared error of the rays' colours, and its derivatives by the outputs and by the bias.

    The weights `w_i` of samples are those of `rendering.compositing_weights` (Mildenhall et al. 2020, eq. 3). With the
    error's derivatives `g_i` by them, that by `sigma_i delta_i` is `g_i T_i exp(-sigma_i delta_i)` less the sum of
    `g_j w_j` over the samples behind. Where a weight is almost zero its error is 1e-7, not a part of it.

    Args:
      outputs: of the head without its bias, at the points of `in_tiles`: red, green, blue and density, filled up to 8;
        so is their derivative, with zeros.
      bias: of the head.
      intervals: distances from each sample to the next, `in_tiles`.
      target: colours in [0, 1].
      density_activation: as for `fields.activate`.
    """
    by_tile = jnp.tile(target.reshape(-1, _RAYS, 3), (1, _STRETCHES, 1)).mT
    gradient, sums = _squared_error[density_activation](outputs, bias, intervals, by_tile)
    totals = jnp.sum(sums, axis=(0, 2))
    return totals[OUTPUTS] / target.size, gradient, totals[:OUTPUTS]


def _launch(density_activation: DensityActivation, outputs: Array, bias: Array, intervals: Array, target: Array) -> Any:
    num_scenes, num_tiles, _, columns = intervals.shape
    in_planes = (num_scenes, STRIPE, num_tiles, TILE, columns)
    out_type = [
        jax.ShapeDtypeStruct(in_planes, jnp.bfloat16),
        jax.ShapeDtypeStruct((num_scenes, num_tiles, _SUMS, TILE), jnp.float32),
    ]
    scratch = {
        "parts": tiled((PARTS, TILE, columns), columns),
        "stretches": plgpu.SMEM((len(_STRETCH_SUMS), 3 * TILE), jnp.float32),
        "out": tiled((OUTPUTS + 1, TILE, columns), columns),
        "earlier": tiled((columns, columns), columns),
        "earlier_here": plgpu.Barrier(),
    }
    gradient, sums = call(
        functools.partial(_body, density_activation, num_tiles),
        out_type,
        scratch,
        "composite",
        1,
        grid=(num_scenes * num_tiles,),
        grid_names=("tile",),
    )(
        outputs.reshape(in_planes),
        bias,
        intervals,
        target,
        constant(np.triu(np.ones((columns, columns)), 1)),
    )
    return gradient.reshape(outputs.shape), sums


_squared_error: dict[str, Callable[..., Any]] = {
    name: over_scenes(functools.partial(_launch, name)) for name in get_args(DensityActivation)
}


class _Buffers(NamedTuple):
    """In shared memory."""

    parts: Any
    """Left operands."""
    stretches: Any
    """What sums over them are; zeros stand before and behind, where the ray has no other."""
    out: Any
    """The gradient by each output, and a plane of zeros for what is filled up."""
    earlier: Any
    """A matrix that adds up what stands before each column."""
    earlier_here: Any

    def multiply(self, values: Any, matrix: Any) -> Any:
        """Returns the values times a matrix of zeros and ones."""
        for part in range(PARTS):
            rounded = values.astype(jnp.bfloat16)
            self.parts[part] = rounded
            values = values - rounded.astype(jnp.float32)
        plgpu.commit_smem()

        def sum_up(total: Any) -> Any:
            for part in range(PARTS):
                plgpu.wgmma(total, self.parts.at[part], matrix)
            plgpu.wgmma_wait(0)
            return total[...]

        return pl.run_scoped(sum_up, plgpu.WGMMAAccumulatorRef(values.shape, jnp.float32))

    def of_stretches(self, name: str, values: Any, others: Sequence[int]) -> Any:
        """Returns the sum over these stretches of the ray [64], counted from each; every sum has a place of its own."""
        number = _STRETCH_SUMS.index(name)
        self.stretches[number, pl.ds(TILE, TILE)] = jnp.sum(values, axis=1)
        plgpu.commit_smem()
        starts = [TILE + other * _RAYS for other in others]
        return sum(load(self.stretches.at[number, pl.ds(start, TILE)], _EACH_ROW) for start in starts)


def _body(
    density_activation: DensityActivation,
    num_tiles: int,
    outputs: Any,
    bias: Any,
    intervals: Any,
    target: Any,
    matrix: Any,
    gradient: Any,
    sums: Any,
    **scratch: Any,
) -> None:
    """Takes a tile of rays, by the formulas of `squared_error`."""
    buffers = _Buffers(**scratch)
    tile = lax.axis_index("tile")
    scene, tile = tile // num_tiles, lax.rem(tile, num_tiles)
    shape, num_rays = intervals.shape[2:], num_tiles * _RAYS
    plgpu.copy_gmem_to_smem(matrix, buffers.earlier, buffers.earlier_here)
    values = [load(outputs.at[scene, k, tile], _EACH, optimized=False) + bias[scene, k] for k in range(OUTPUTS)]
    interval = load(intervals.at[scene, tile], _EACH, optimized=False)
    wanted = [load(target.at[scene, tile, k], _EACH_ROW, optimized=False) for k in range(3)]
    for number in range(len(_STRETCH_SUMS)):
        for start in (0, 2 * TILE):
            buffers.stretches[number, pl.ds(start, TILE)] = plgpu.layout_cast(jnp.zeros(TILE), _EACH_ROW)

    def along(rows: Any) -> Any:
        return lax.broadcast_in_dim(rows, shape, (0,))

    density, slope = _activate(values[3], density_activation)
    depth, slope = density * interval, slope * interval
    stretches_before = buffers.of_stretches("depth", depth, (-3, -2, -1))
    plgpu.barrier_wait(buffers.earlier_here)
    transmitted = jnp.exp(-(buffers.multiply(depth, buffers.earlier) + along(stretches_before)))
    passed = jnp.exp(-depth)
    weights = transmitted * (1.0 - passed)
    darker = [_sigmoid(one) - 1.0 for one in values[:3]]  # than the background, which is white
    seen = [
        buffers.of_stretches(name, weights * one, range(-3, 4)) + 1.0
        for name, one in zip(("red", "green", "blue"), darker, strict=True)
    ]
    errors = [one - other for one, other in zip(seen, wanted, strict=True)]
    by_colour = [along(one * (2 / (3 * num_rays))) for one in errors]

    by_weight = sum(one * by for one, by in zip(darker, by_colour, strict=True))
    shares = by_weight * weights
    stretches_behind = buffers.of_stretches("share", shares, (1, 2, 3))
    hidden = buffers.multiply(shares, buffers.earlier.transpose((1, 0))) + along(stretches_behind)
    by_output = [weights * by * -one * (1.0 + one) for one, by in zip(darker, by_colour, strict=True)]
    by_output.append((by_weight * transmitted * passed - hidden) * slope)
    for k, one in enumerate(by_output):
        buffers.out[k] = one.astype(jnp.bfloat16)
        sums[scene, tile, k] = jnp.sum(one, axis=1)
    buffers.out[OUTPUTS] = plgpu.layout_cast(jnp.zeros(shape, jnp.bfloat16), _EACH)
    plgpu.commit_smem()
    for k in range(STRIPE):
        plgpu.copy_smem_to_gmem(buffers.out.at[min(k, OUTPUTS)], gradient.at[scene, k, tile])
    sums[scene, tile, OUTPUTS] = sum(one * one for one in errors) * (1 / _STRETCHES)
    plgpu.wait_smem_to_gmem(0)


def _activate(output: Any, density_activation: DensityActivation) -> tuple[Any, Any]:
    """Returns the density that `fields.activate` makes of an output, and its derivative."""
    if density_activation == "relu":
        return jnp.maximum(output, 0.0), jnp.where(output > 0.0, 1.0, 0.0)
    shifted = output - 1.0
    return jnp.maximum(shifted, 0.0) + jnp.log(1.0 + jnp.exp(-jnp.abs(shifted))), _sigmoid(shifted)


def _sigmoid(output: Any) -> Any:
    """Returns the logistic function by the reciprocal root, which is one instruction, where a division is many."""
    return jnp.square(lax.rsqrt(1.0 + jnp.exp(-output)))
