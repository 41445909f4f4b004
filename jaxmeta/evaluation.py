"""Measures what an initialisation buys: fit unseen scenes from their support views, score the query views.

PSNR is `-10 log10(mean squared error)` of colours clipped to [0, 1], in dB, for each image; SSIM is that of Wang et al.
2004 with an 11x11 Gaussian window of sigma 1.5.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxmeta.cameras import Views
from jaxmeta.devices import by_scene, fetch, padded_size, put, replicated
from jaxmeta.metalearning import LossFn, Params, adapt_in_stages
from jaxmeta.objectives import composite_on_white
from jaxmeta.rendering import Rendering

RenderPose = Callable[[Params, Float[Array, "4 4"], Float[Array, ""]], Rendering]
"""`(params, pose, focal) -> Rendering` of a whole view."""


class Scores(NamedTuple):
    """How well adapted fields reproduce the query views after each reported number of steps."""

    psnr: Float[Any, "*scenes stages views"]
    """In dB."""
    ssim: Float[Any, "*scenes stages views"]
    """At most 1."""


class Fit(NamedTuple):
    """A scene adapted from one initialisation."""

    params: PyTree[Float[Any, "..."]]
    """After each reported number of steps: the leading axes are `*scenes stages`."""
    scores: Scores


FitScenes = Callable[[Params, Views, Any, Any], Fit]

MIN_RAYS_PER_CHUNK = 256
"""Rendering fewer rays at a time than this would not save a device that is too small."""


def psnr(image: Float[Array, "height width 3"], target: Float[Array, "height width 3"]) -> Float[Array, ""]:
    """Returns the peak signal-to-noise ratio in dB; the peak is 1."""
    return -10 * jnp.log10(jnp.mean(jnp.square(jnp.clip(image, 0, 1) - target)))


def select_views(views: Views, indices: Sequence[int]) -> Views:
    """Returns some of the views of each scene."""
    chosen = list(indices)
    return Views(views.images[..., chosen, :, :, :], views.poses[..., chosen, :, :], views.focal)


def make_fit_scenes(
    loss_fn: LossFn,
    inner_optimiser: optax.GradientTransformation,
    render_pose: RenderPose,
    mesh: Mesh,
    *,
    stages: Sequence[int],
) -> FitScenes:
    """Returns a compiled function that adapts a batch of scenes, `(params, support, query, keys) -> Fit`.

    Args:
      loss_fn: the loss of one scene's support.
      inner_optimiser: of the adaptation.
      render_pose: renders a view of an adapted field.
      mesh: shares the scenes.
      stages: the numbers of steps after which to score, increasing.
    """

    def fit_scene(params: Params, support: Views, query: Views, key: Array) -> Fit:
        keys = jax.random.split(key, max(stages[-1], 1))
        adapted = adapt_in_stages(loss_fn, inner_optimiser, params, support, keys, stages)
        return Fit(adapted, jax.lax.map(lambda stage: score(stage, query), adapted))

    def score(params: Params, query: Views) -> Scores:
        def score_view(view: tuple[Array, Array]) -> Scores:
            image, pose = view
            rgb = render_pose(params, pose, query.focal).rgb
            target = composite_on_white(image, rgb.dtype)
            return Scores(psnr(rgb, target), jnp.asarray(dm_pix.ssim(jnp.clip(rgb, 0, 1), target)))

        return jax.lax.map(score_view, (query.images, query.poses))

    return jax.jit(jax.vmap(fit_scene, in_axes=(None, 0, 0, 0)), out_shardings=by_scene(mesh))


def within_memory(make: Callable[[int], Callable[..., Any]], *, rays_per_chunk: int = 4096) -> Callable[..., Any]:
    """Returns the function `make(rays_per_chunk)`, made anew with half as many rays when a device is out of memory.

    What it computes does not depend on that number. An error at `MIN_RAYS_PER_CHUNK` is raised.

    Args:
      make: gives a compiled function, which keeps its arguments intact, for a number of rays rendered at a time.
      rays_per_chunk: the number to begin with.
    """
    function = make(rays_per_chunk)

    def call(*arguments: Any) -> Any:
        nonlocal function, rays_per_chunk
        while True:
            try:
                return jax.block_until_ready(function(*arguments))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or rays_per_chunk <= MIN_RAYS_PER_CHUNK:
                    raise
            rays_per_chunk = max(rays_per_chunk // 2, MIN_RAYS_PER_CHUNK)
            print(f"warning: a device ran out of memory; now {rays_per_chunk} rays at a time", file=sys.stderr)
            function = make(rays_per_chunk)

    return call


def fit_in_batches(
    fit_scenes: FitScenes, params: Params, support: Views, query: Views, mesh: Mesh, *, seed: int, batch_size: int
) -> Iterator[Fit]:
    """Yields the fits of consecutive batches of scenes, on the host.

    Scene i gets the same draws whatever the initialisation and the batch size.

    Args:
      fit_scenes: from `make_fit_scenes`.
      params: the initialisation.
      support: of all scenes.
      query: of all scenes.
      mesh: shares the scenes.
      seed: of the draws.
      batch_size: how many scenes at once.
    """
    num_scenes = len(support.images)
    size = padded_size(min(batch_size, num_scenes), mesh)
    for start in range(0, num_scenes, size):
        scenes = np.arange(start, min(start + size, num_scenes))
        padded = np.resize(scenes, size)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), padded)
        scene_arrays = put((_take(support, padded), _take(query, padded), keys), by_scene(mesh))
        fit = fetch(fit_scenes(put(params, replicated(mesh)), *scene_arrays))
        yield _take(fit, slice(len(scenes)))


def fit_all(batches: Iterable[Fit]) -> Fit:
    """Returns the fits of all batches as one."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def _take(tree: PyTree[np.ndarray], scenes: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[scenes], tree)
