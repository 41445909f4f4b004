"""Compiles what a live viewer computes: a step, a score, a tile of a picture."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jaxmeta import assembly, metalearning, optimisers
from jaxmeta.cameras import Views
from jaxmeta.config import TrainConfig
from jaxmeta.kinds.views import field_apply, radiance_field
from jaxmeta.metalearning import Initialisation, Params
from jaxmeta.rendering import Sampling, render_view
from jaxmeta.viewer.sessions import Fit


class Scale(NamedTuple):
    """How much a device does at a time."""

    height: int
    """Of a tile, in pixels."""
    width: int
    """Of a tile, in pixels."""
    score_rays: int
    """Pixels of held-out views that a score is of."""
    quick_share: int
    """While something moves, a ray has one in so many of its samples."""
    moving_seconds: float
    """How long a picture may take while something moves."""


SLOW, FAST = Scale(16, 24, 256, 4, 0.2), Scale(128, 192, 8192, 1, 0.04)
"""Of a CPU; of a GPU or TPU."""


def suited() -> Scale:
    """Returns the scale that suits the device."""
    return SLOW if jax.default_backend() == "cpu" else FAST


Tile = Callable[[Params, Float[Any, "4 4"]], UInt8[Array, "height width 3"]]


class Machine(NamedTuple):
    """The compiled functions, and the sizes that they were compiled for."""

    start: Callable[[Initialisation], Fit]
    """Before the first step."""
    step: Callable[[Initialisation, Fit, Views, int, int], Fit]
    """`(initialisation, fit, support, scene, number)`."""
    score: Callable[[Params, Views], Float[Array, ""]]
    """PSNR in dB at some pixels of held-out views, always the same ones."""
    quick_tile: Tile
    """With few samples; the pose is of `viewing.tile_pose`."""
    tile: Tile
    scale: Scale


def make_machine(settings: TrainConfig, scale: Scale, seed: int) -> Machine:
    """Returns the compiled functions of a run; each compiles once.

    Args:
      settings: of the run.
      scale: how much to do at a time.
      seed: of the inner loop's draws.
    """
    scenes = assembly.views_config(settings)
    apply = field_apply(radiance_field(scenes), scenes.field.implementation)
    size = scale.height, scale.width
    fitting = assembly.assemble(settings, size=size, num_rays=settings.inner.num_rays)
    judging = assembly.assemble(settings, size=size, num_rays=scale.score_rays)
    inner_optimiser = optimisers.inner_optimiser(settings.inner.optimiser, settings.inner.step_size)
    num_samples = max(scenes.sampling.num_samples // scale.quick_share, 2)
    quick = dataclasses.replace(scenes.sampling, num_samples=num_samples)

    def start(initialisation: Initialisation) -> Fit:
        params, optimiser = metalearning.start(initialisation, inner_optimiser)
        return Fit(params, optimiser.init(params))

    def step(initialisation: Initialisation, fit: Fit, support: Views, scene: Array, number: Array) -> Fit:
        _, optimiser = metalearning.start(initialisation, inner_optimiser)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), scene), number)
        return Fit(*metalearning.inner_step(fitting.loss, optimiser, support, tuple(fit), key)[0])

    def score(params: Params, views: Views) -> Float[Array, ""]:
        return -10 * jnp.log10(judging.loss(params, views, jax.random.key(seed)))

    def tile(sampling: Sampling, params: Params, pose: Float[Array, "4 4"]) -> Array:
        focal = jnp.float32(scale.height / 2)
        seen = render_view(
            partial(apply, params),
            pose,
            focal,
            sampling,
            height=scale.height,
            width=scale.width,
            pixel_centre=scenes.pixel_centre,
        )
        return jnp.round(255 * jnp.clip(seen.rgb, 0, 1)).astype(jnp.uint8)

    return Machine(
        start=jax.jit(start),
        step=jax.jit(step),
        score=jax.jit(score),
        quick_tile=jax.jit(partial(tile, quick)),
        tile=jax.jit(partial(tile, scenes.sampling)),
        scale=scale,
    )
