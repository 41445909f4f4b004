"""Compares the field's gradients in bfloat16 with float64, on random parameters and points.

    python benchmarks/accuracy.py                          on a Hopper GPU: the fused kernels, both sets, and XLA
    python benchmarks/accuracy.py --implementations auto   on any device

Prints a row for each size and implementation, and one line of JSON: the norm of the difference to float64 over its
norm, of all gradients of a scene together and of the worst weight or bias, each of the worst scene. Before each, a GiB
of the device's free memory is filled with NaN, so that what a kernel forgets to write is seen.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from measuring import read_flags, tell

from jaxmeta.errors import run_command
from jaxmeta.fields import RadianceField
from jaxmeta.fused import fused_apply
from jaxmeta.kinds.views import field_apply

POISON = 2**30
"""Bytes of NaN."""


@dataclasses.dataclass(frozen=True)
class AccuracyConfig:
    """Compare the field's gradients with float64."""

    implementations: tuple[Literal["auto", "fused", "fused-many", "xla"], ...] = ("fused", "fused-many", "xla")
    """Of the network; these sizes have few points, `fused-many` takes the kernels for many all the same."""
    sizes: tuple[tuple[int, int, int], ...] = ((1, 5, 7), (2, 127, 61), (3, 37, 101), (4, 128, 128))
    """Scenes, rays and samples."""
    seed: int = 0
    """Of the parameters and the points."""


def main() -> None:
    """Compares what the command line asks for."""
    wanted = read_flags(AccuracyConfig)
    rows = []
    for number, (scenes, *shape) in enumerate(wanted.sizes):
        params, points = draw(scenes, shape, wanted.seed + number)
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            exact = jax.device_get(gradients(RadianceField().apply, *jax.tree.map(np.float64, (params, points))))
        for implementation in wanted.implementations:
            apply = apply_by(implementation)
            jnp.full(POISON // 4, jnp.nan).block_until_ready().delete()
            found = jax.device_get(gradients(apply, params, points))
            pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
            row = {"scenes": scenes, "rays": shape[0], "samples": shape[1], "implementation": implementation}
            rows.append(row | {"all": farthest(pairs), "worst": max(farthest([pair]) for pair in pairs)})
    tell(rows, {"benchmark": "accuracy", "seed": wanted.seed})


def apply_by(implementation: str) -> Any:
    """Returns the field of that implementation."""
    field = RadianceField(compute_dtype=jnp.bfloat16)
    if implementation != "fused-many":
        return field_apply(field, implementation)
    field_apply(field, "fused")  # refuses what the kernels cannot do
    return fused_apply(field, many=0)


def draw(scenes: int, shape: list[int], seed: int) -> tuple[Any, Any]:
    """Returns parameters of so many scenes, and points in them."""
    start, place = jax.random.split(jax.random.key(seed))
    params = jax.vmap(lambda key: RadianceField().init(key, jnp.zeros((1, 3))))(jax.random.split(start, scenes))
    return jax.device_get((params, jax.random.uniform(place, (scenes, *shape, 3), minval=-3.0, maxval=3.0)))


def gradients(apply: Any, params: Any, points: Any) -> Any:
    """Returns each scene's gradient of a loss that every output matters to."""

    def loss(params: Any, points: Any) -> Any:
        density, rgb = apply(params, points)
        return jnp.mean(jnp.sin(density)) + jnp.mean(jnp.square(rgb) * jnp.arange(1, 4))

    return jax.jit(jax.vmap(jax.grad(loss)))(params, points)


def farthest(pairs: list[tuple[Any, Any]]) -> float:
    """Returns the norm of the difference of found and exact arrays over the norm, of the worst scene."""
    found, exact = (
        np.concatenate([leaf.reshape(len(leaf), -1) for leaf in side], axis=1) for side in zip(*pairs, strict=True)
    )
    return float(np.max(np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)))


if __name__ == "__main__":
    run_command(main)
