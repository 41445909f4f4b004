"""The radiance field on kernels of our own, with the same parameters and results as `fields.RadianceField`.

`RadianceField` is the reference and runs everywhere. This runs on NVIDIA's Hopper GPUs, and has first derivatives only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmeta.cameras import Rays
from jaxmeta.fields import OUTPUTS, RadianceField, activate
from jaxmeta.metalearning import Params
from jaxmeta.objectives import squared_error
from jaxmeta.rendering import Sampling, sample_intervals, sample_points, stratified_distances

KNOWN_VERSIONS = ("0.11.", "0.12.")
"""Versions of jax whose Pallas the kernels were written for; it changes without notice."""
UNKNOWN_VERSION = f"jax {jax.__version__} is not one of {', '.join(f'{version}x' for version in KNOWN_VERSIONS)}"
"""The obstacle that another jax may remove."""
_ROWS = 8
"""The kernels' rows come in multiples of this; what is missing is filled up."""
MANY = 2**16
"""Four scenes of 128 rays of 128 samples: faster layer by layer (row HH of the benchmarks), as three are not (LL)."""


def fused_apply(field: RadianceField, *, many: int = MANY) -> Callable[[Params, Float[Array, "*points 3"]], Any]:
    """Returns `field.apply`, `(params, points) -> (density, rgb)`, with matmuls on bfloat16 operands.

    Args:
      field: has what it takes, see `obstacle`.
      many: points of all scenes that a device takes at once from which on gradients come of the kernels for many.
    """

    def apply(params: Params, points: Float[Array, "*points 3"]) -> Any:
        from jaxmeta.kernels.network import network  # brings half a second of imports, which only these GPUs need

        flat = points.reshape(-1, 3)
        filled = jnp.pad(flat, ((0, -len(flat) % _ROWS), (0, 0)))
        outputs: Any = network(field, many, params["params"], filled)
        return activate(outputs[:, : len(flat)].reshape(OUTPUTS, *points.shape[:-1]), field.density_activation)

    return apply


def fused_error(field: RadianceField, *, many: int = MANY) -> Callable[..., Float[Array, ""]]:
    """Returns `objectives.squared_error` of `fused_apply`, without its first argument.

    Where `kernels.compositing.possible` a kernel composites; then there is a gradient by the parameters alone.

    Args:
      field: as for `fused_apply`.
      many: as for `fused_apply`.
    """

    def error(
        params: Params,
        rays: Rays,
        uniform: Float[Array, "rays samples"],
        target: Float[Array, "rays 3"],
        sampling: Sampling,
    ) -> Float[Array, ""]:
        from jaxmeta.kernels import compositing  # here as in fused_apply
        from jaxmeta.kernels.network import error_of_colours

        if not compositing.possible(*uniform.shape):
            return squared_error(fused_apply(field, many=many), params, rays, uniform, target, sampling)
        distances = stratified_distances(uniform, sampling)
        intervals = compositing.in_tiles(sample_intervals(distances, last_interval=sampling.last_interval))
        points = compositing.in_tiles(sample_points(rays, distances)).reshape(-1, 3)
        return error_of_colours(field, many, params["params"], points, intervals, target)

    return error


def obstacle(field: RadianceField) -> str | None:
    """Returns what stands against `fused_apply` for a field on this process's devices, or None."""
    if field.compute_dtype != jnp.bfloat16:
        return "--field.compute-dtype is not bfloat16"
    if field.width != 256:
        return f"--field.width {field.width} is not 256"
    if field.depth < 2:
        return f"--field.depth {field.depth} is less than 2"
    if 6 * field.num_frequencies > 256:
        return f"--field.num-frequencies {field.num_frequencies} is more than 42"
    device = jax.local_devices()[0]
    if getattr(device, "compute_capability", None) != "9.0":
        return f"{device.device_kind} is not a Hopper GPU"
    if not jax.__version__.startswith(KNOWN_VERSIONS):
        return UNKNOWN_VERSION
    return None
