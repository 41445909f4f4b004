"""Compares gradients in bfloat16 with float64, on random parameters and rays.

    python benchmarks/accuracy.py                          on a Hopper GPU: the fused kernels, both sets, and XLA
    python benchmarks/accuracy.py --implementations auto   on any device

Prints a row for each size, loss and implementation, and one line of JSON: the norm of the difference to float64 over
its norm, of all gradients of a scene together and of the worst weight or bias, each of the worst scene. The losses are
one that all densities and colours at the samples matter to, and the error of the colours that rays see. Before each, a
GiB of the device's free memory is filled with NaN, so that what a kernel forgets to write is seen.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from measuring import read_flags, tell

from jaxmeta.cameras import Rays
from jaxmeta.errors import run_command
from jaxmeta.fields import RadianceField
from jaxmeta.fused import MANY, fused_apply, fused_error
from jaxmeta.kinds.views import choose, field_apply
from jaxmeta.objectives import squared_error
from jaxmeta.rendering import Sampling, sample_points, stratified_distances

POISON = 2**30
"""Bytes of NaN."""


@dataclasses.dataclass(frozen=True)
class AccuracyConfig:
    """Compare gradients with float64."""

    implementations: tuple[Literal["auto", "fused", "fused-many", "xla"], ...] = ("fused", "fused-many", "xla")
    """Of the network; these sizes have few points, `fused-many` takes the kernels for many all the same."""
    sizes: tuple[tuple[int, int, int], ...] = ((1, 5, 7), (2, 127, 61), (3, 37, 101), (2, 192, 64), (4, 128, 128))
    """Scenes, rays and samples, for some of which a kernel composites (`kernels.compositing.possible`)."""
    losses: tuple[Literal["samples", "rays"], ...] = ("samples", "rays")
    """What to take gradients of."""
    seed: int = 0
    """Of the parameters and the rays."""


def main() -> None:
    """Compares what the command line asks for."""
    wanted = read_flags(AccuracyConfig)
    rows = []
    for number, (scenes, *shape) in enumerate(wanted.sizes):
        drawn = draw(scenes, shape, wanted.seed + number)
        for loss in wanted.losses:
            with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
                by_xla = (RadianceField().apply, functools.partial(squared_error, RadianceField().apply))
                exact = jax.device_get(gradients(loss, by_xla, *jax.tree.map(np.float64, drawn)))
            for implementation in wanted.implementations:
                jnp.full(POISON // 4, jnp.nan).block_until_ready().delete()
                found = jax.device_get(gradients(loss, computed_by(implementation), *drawn))
                pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
                row = {"scenes": scenes, "rays": shape[0], "samples": shape[1], "loss": loss}
                row |= {"implementation": implementation, "all": farthest(pairs)}
                rows.append(row | {"worst": max(farthest([pair]) for pair in pairs)})
    tell(rows, {"benchmark": "accuracy", "seed": wanted.seed})


def computed_by(implementation: str) -> tuple[Any, Any]:
    """Returns the field of that implementation, and its error of colours."""
    field = RadianceField(compute_dtype=jnp.bfloat16)
    many = 0 if implementation == "fused-many" else MANY
    if choose(field, "fused" if implementation == "fused-many" else implementation) == "fused":
        return fused_apply(field, many=many), fused_error(field, many=many)
    apply = field_apply(field, implementation)
    return apply, functools.partial(squared_error, apply)


def draw(scenes: int, shape: list[int], seed: int) -> tuple[Any, Rays, Any, Any]:
    """Returns parameters of so many scenes, rays in them, where to sample these, and colours."""
    start, place, turn, jitter, paint = jax.random.split(jax.random.key(seed), 5)
    params = jax.vmap(lambda key: RadianceField().init(key, jnp.zeros((1, 3))))(jax.random.split(start, scenes))
    each = (scenes, shape[0], 3)
    towards = jax.random.normal(turn, each)
    directions = towards / jnp.linalg.norm(towards, axis=-1, keepdims=True)
    rays = Rays(jax.random.uniform(place, each, minval=-1.0, maxval=1.0), directions)
    return jax.device_get((params, rays, jax.random.uniform(jitter, (scenes, *shape)), jax.random.uniform(paint, each)))


def gradients(loss: str, computed: tuple[Any, Any], params: Any, rays: Rays, uniform: Any, target: Any) -> Any:
    """Returns each scene's gradient of a loss."""
    apply, error = computed
    sampling = Sampling(near=0.0, far=2.0, num_samples=uniform.shape[-1])

    def of_samples(params: Any, rays: Rays, uniform: Any, target: Any) -> Any:
        del target
        density, rgb = apply(params, sample_points(rays, stratified_distances(uniform, sampling)))
        return jnp.mean(jnp.sin(density)) + jnp.mean(jnp.square(rgb) * jnp.arange(1, 4))

    def of_rays(*drawn: Any) -> Any:
        return error(*drawn, sampling)

    of_scene = {"samples": of_samples, "rays": of_rays}[loss]
    return jax.jit(jax.vmap(jax.grad(of_scene)))(params, rays, uniform, target)


def farthest(pairs: list[tuple[Any, Any]]) -> float:
    """Returns the norm of the difference of found and exact arrays over the norm, of the worst scene."""
    found, exact = (
        np.concatenate([leaf.reshape(len(leaf), -1) for leaf in side], axis=1) for side in zip(*pairs, strict=True)
    )
    return float(np.max(np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)))


if __name__ == "__main__":
    run_command(main)
