"""Builds from a config the functions that training, evaluation and the benchmarks share."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmeta.config import TrainConfig
from jaxmeta.devices import resolve_dtype
from jaxmeta.fields import RadianceField
from jaxmeta.metalearning import LossFn, Params
from jaxmeta.objectives import photometric_loss
from jaxmeta.rendering import Rendering, render_view


class SceneFunctions(NamedTuple):
    """A radiance field, how a scene's views judge it, and how it is seen."""

    init: Callable[[Array], Params]
    """Draws the standard initialisation from a key."""
    loss: LossFn
    """Of the support views of one scene."""
    render_pose: Callable[..., Rendering]
    """`(params, pose, focal, rays_per_chunk=4096) -> Rendering` of a whole view, so many rays at a time."""


def scene_functions(config: TrainConfig, *, height: int, width: int, num_rays: int) -> SceneFunctions:
    """Returns the functions that a config describes.

    Args:
      config: of the run.
      height: of the views, in pixels.
      width: of the views, in pixels.
      num_rays: drawn in each inner step.
    """
    field = RadianceField(
        width=config.field.width,
        depth=config.field.depth,
        num_frequencies=config.field.num_frequencies,
        max_log2_frequency=config.field.max_log2_frequency,
        density_activation=config.field.density_activation,
        compute_dtype=resolve_dtype(config.field.compute_dtype),
    )

    def render_pose(
        params: Params, pose: Float[Array, "4 4"], focal: Float[Array, ""], rays_per_chunk: int = 4096
    ) -> Rendering:
        return render_view(
            partial(field.apply, params),
            pose,
            focal,
            config.sampling,
            height=height,
            width=width,
            pixel_centre=config.pixel_centre,
            rays_per_chunk=rays_per_chunk,
        )

    return SceneFunctions(
        init=lambda key: field.init(key, jnp.zeros((1, 3))),
        loss=partial(
            photometric_loss,
            field.apply,
            num_rays=num_rays,
            sampling=config.sampling,
            pixel_centre=config.pixel_centre,
        ),
        render_pose=render_pose,
    )
