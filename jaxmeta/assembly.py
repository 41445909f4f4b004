"""Builds from a config the functions that training, evaluation and the benchmarks share."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmeta import config as configs
from jaxmeta import fused, metalearning
from jaxmeta.cameras import View, Views
from jaxmeta.config import TrainConfig
from jaxmeta.devices import resolve_dtype
from jaxmeta.errors import InputError
from jaxmeta.fields import RadianceField
from jaxmeta.metalearning import Initialisation, LossFn, MetaState, Params, SceneGradientFn
from jaxmeta.objectives import composite_on_white, field_samples, photometric_loss
from jaxmeta.rendering import Rendering, render_view

_ALGORITHMS = {
    "reptile": metalearning.reptile,
    "fomaml": metalearning.fomaml,
    "maml": metalearning.maml,
    "meta-sgd": metalearning.maml,  # of a state that holds step sizes
}
_SECOND_ORDER = ("maml", "meta-sgd")


class Signal(NamedTuple):
    """A kind of signal: its network, what judges it, how it is seen; all that training and evaluation know of it.

    What a network is fitted to, its support, and an item that it is scored on, of its query, are any pytrees of arrays.
    """

    init: Callable[[Array], Params]
    """Draws the standard initialisation from a key."""
    loss: LossFn
    """`(params, support, key)`, of one scene."""
    predict: Callable[..., Float[Array, "height width channels"]]
    """`(params, query_item, *, rays_per_chunk) -> image`: what a fitted network shows for an item, in [0, 1]."""
    target: Callable[[Any], Float[Array, "height width channels"]]
    """`query_item -> image`: what it should show."""
    support: Callable[[Any, Int[np.ndarray, "tasks"], Int[np.ndarray, "tasks views"]], Any]
    """`(data, scenes, numbers) -> support` on the host: of scene `scenes[i]` the views `numbers[i]`, along the leading
    axis i. What a kind of signal counts as a view is its own; one that has a single view gets zeros."""
    query: Callable[[Any, Int[np.ndarray, "tasks"], Int[np.ndarray, "tasks views"]], Any]
    """As `support`, but query items along the second axis of every array."""
    output: Callable[[Params, Any, Array], Float[Array, "*points outputs"]]
    """`(params, support, key)`: what the network itself gives at random points of a support's domain, of order one."""
    render_pose: Callable[..., Rendering] | None = None
    """Of scenes: `(params, pose, focal, rays_per_chunk=4096) -> Rendering` of a whole view, for pictures."""


def scene_signal(config: TrainConfig, *, height: int, width: int, num_rays: int) -> Signal:
    """Returns the functions of scenes that a config describes; a query item is a `View`.

    Args:
      config: of the run.
      height: of the views, in pixels.
      width: of the views, in pixels.
      num_rays: drawn in each inner step.
    """
    field = radiance_field(config)
    apply = field_apply(field, config.field.implementation, twice=config.outer.algorithm in _SECOND_ORDER)

    def render_pose(
        params: Params, pose: Float[Array, "4 4"], focal: Float[Array, ""], rays_per_chunk: int = 4096
    ) -> Rendering:
        return render_view(
            partial(apply, params),
            pose,
            focal,
            config.sampling,
            height=height,
            width=width,
            pixel_centre=config.pixel_centre,
            rays_per_chunk=rays_per_chunk,
        )

    def predict(params: Params, view: View, *, rays_per_chunk: int = 4096) -> Float[Array, "height width 3"]:
        return render_pose(params, view.pose, view.focal, rays_per_chunk).rgb

    drawing = {"num_rays": num_rays, "sampling": config.sampling, "pixel_centre": config.pixel_centre}
    return Signal(
        init=lambda key: field.init(key, jnp.zeros((1, 3))),
        loss=partial(photometric_loss, apply, **drawing),
        predict=predict,
        target=lambda view: composite_on_white(jnp.asarray(view.image)),
        support=views_of_scenes,
        query=lambda *chosen: each_view(views_of_scenes(*chosen)),
        output=partial(field_samples, apply, **drawing),
        render_pose=render_pose,
    )


def field_apply(field: RadianceField, implementation: str, *, twice: bool = False) -> Callable[..., Any]:
    """Returns `(params, points) -> (density, rgb)`, computed in the configured way.

    Args:
      field: what is computed.
      implementation: "auto", "xla" or "fused".
      twice: it will be differentiated twice, which the fused kernels cannot be.

    Raises:
      InputError: the fused kernels are asked for and cannot run here; says why.
    """
    obstacle = "the algorithm needs second derivatives" if twice else fused.obstacle(field)
    if implementation == "fused" and obstacle:
        raise InputError(f"--field.implementation fused cannot run here: {obstacle}; drop it or give xla")
    if implementation == "auto" and obstacle == fused.UNKNOWN_VERSION:
        print(f"warning: no fused kernels: {obstacle}; XLA takes over, slower", file=sys.stderr)
    return field.apply if implementation == "xla" or obstacle else fused.fused_apply(field)


def views_of_scenes(views: Views, scenes: Int[np.ndarray, "tasks"], numbers: Int[np.ndarray, "tasks views"]) -> Views:
    """Returns the views `numbers[i]` of scene `scenes[i]`, for each i."""
    places = (scenes[:, None], numbers)
    return Views(views.images[places], views.poses[places], views.focal[scenes])


def each_view(views: Views) -> View:
    """Returns views with the focal length of their scene."""
    num_views = views.poses.shape[-3]
    return View(views.images, views.poses, np.repeat(views.focal[..., None], num_views, axis=-1))


def scene_gradient(config: TrainConfig, loss: LossFn, query_loss: LossFn) -> SceneGradientFn:
    """Returns the configured algorithm on scenes that these losses judge; `reptile` tells what each is for."""
    return partial(
        _ALGORITHMS[config.outer.algorithm],
        loss,
        query_loss,
        configs.inner_optimiser(config.inner.optimiser, config.inner.step_size),
        unroll=config.inner.unroll,
    )


def first_state(config: TrainConfig, params: Params) -> MetaState:
    """Returns the state before the first meta-step."""
    return metalearning.initial_state(first_initialisation(config, params), configs.outer_optimiser(config.outer))


def first_initialisation(config: TrainConfig, params: Params) -> Initialisation:
    """Returns parameters, with step sizes if the configured algorithm learns them."""
    if config.outer.algorithm != "meta-sgd":
        return params
    wanted = config.outer.step_sizes
    num_steps = config.inner.num_steps if wanted.per_step else None
    return metalearning.with_step_sizes(params, granularity=wanted.granularity, num_steps=num_steps)


def radiance_field(config: TrainConfig) -> RadianceField:
    """Returns the network that a config describes."""
    return RadianceField(
        width=config.field.width,
        depth=config.field.depth,
        num_frequencies=config.field.num_frequencies,
        max_log2_frequency=config.field.max_log2_frequency,
        density_activation=config.field.density_activation,
        compute_dtype=resolve_dtype(config.field.compute_dtype),
    )
