"""Measures what an initialisation buys: fit unseen signals to their support, score what they show of their query.

PSNR is `-10 log10(max(e, 1e-10))` in dB, e the mean squared error of an image whose colours are clipped to [0, 1]; so
it is at most 100. SSIM is that of Wang et al. 2004 with an 11x11 Gaussian window of sigma 1.5, the mean over channels;
an image smaller than the window has none (NaN). Both are of one image.

What is fitted and scored together is a task: the support and the query of one scene. Functions handle one task; `vmap`
stands over tasks where they are adapted. They are scored one after the other on each device, because the matmuls of
one task's image are large enough, and those of several networks at once are slower.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jaxmeta.devices import by_scene, fetch, padded_size, put, replicated
from jaxmeta.metalearning import LossFn, Params, adapt_in_stages

Predict = Callable[[Params, Any], Float[Array, "height width channels"]]
"""`(params, query_item) -> image`."""
Target = Callable[[Any], Float[Array, "height width channels"]]
"""`query_item -> image`."""
AdaptTasks = Callable[[Params, Any, Any], Params]
"""`(params, support, keys) -> params` of a batch of tasks after each stage: leading axes `tasks stages`."""

ERROR_FLOOR = 1e-10
"""A smaller mean squared error counts as this, so that a perfect image has a finite PSNR of 100 dB."""
SSIM_WINDOW = 11
"""Pixels along a side."""
MIN_RAYS_PER_CHUNK = 256
"""Rendering fewer rays at a time than this would not save a device that is too small."""


class Scores(NamedTuple):
    """How well adapted fields reproduce the query after each reported number of steps."""

    psnr: Float[Any, "*tasks stages views"]
    """In dB, at most 100."""
    ssim: Float[Any, "*tasks stages views"]
    """At most 1; NaN where the image is smaller than the window."""


class Fit(NamedTuple):
    """Tasks adapted from one initialisation."""

    params: PyTree[Float[Any, "..."]]
    """After each reported number of steps: the leading axes are `tasks stages`. None where they were not kept."""
    scores: Scores
    seconds: Float[Any, "tasks"]
    """That the adaptation took, all steps: a task's share of the batch it was in."""


ScoreTasks = Callable[[Params, Any], Scores]
"""`(adapted, query) -> Scores` of a batch of tasks."""


def psnr(
    image: Float[Array, "height width channels"], target: Float[Array, "height width channels"]
) -> Float[Array, ""]:
    """Returns the peak signal-to-noise ratio in dB; the peak is 1."""
    error = jnp.mean(jnp.square(jnp.clip(image, 0, 1) - target))
    return -10 * jnp.log10(jnp.maximum(error, ERROR_FLOOR))


def ssim(
    image: Float[Array, "height width channels"], target: Float[Array, "height width channels"]
) -> Float[Array, ""]:
    """Returns the structural similarity, or NaN where the window does not fit into the image."""
    if min(target.shape[:2]) < SSIM_WINDOW:
        return jnp.full((), jnp.nan, target.dtype)
    return jnp.asarray(dm_pix.ssim(jnp.clip(image, 0, 1), target))


def make_adapt(
    loss_fn: LossFn, inner_optimiser: optax.GradientTransformation, mesh: Mesh, *, stages: Sequence[int]
) -> AdaptTasks:
    """Returns a compiled function that adapts a batch of tasks.

    Args:
      loss_fn: the loss of one task's support.
      inner_optimiser: of the adaptation.
      mesh: shares the tasks.
      stages: the numbers of steps whose parameters to give, increasing.
    """

    def adapt_task(params: Params, support: Any, key: Array) -> Params:
        keys = jax.random.split(key, max(stages[-1], 1))
        return adapt_in_stages(loss_fn, inner_optimiser, params, support, keys, stages)

    return jax.jit(jax.vmap(adapt_task, in_axes=(None, 0, 0)), out_shardings=by_scene(mesh))


def make_score(predict: Predict, target: Target, mesh: Mesh) -> ScoreTasks:
    """Returns a compiled function that scores a batch of adapted tasks on their queries.

    Args:
      predict: what an adapted field shows for a query item.
      target: what it should show.
      mesh: shares the tasks.
    """

    def score(params: Params, item: Any) -> Scores:
        image, wanted = predict(params, item), target(item)
        return Scores(psnr(image, wanted), ssim(image, wanted))

    def score_task(task: tuple[Params, Any]) -> Scores:
        adapted, query = task
        return jax.lax.map(lambda params: jax.lax.map(lambda item: score(params, item), query), adapted)

    def score_tasks(adapted: Params, query: Any) -> Scores:
        return jax.lax.map(score_task, (adapted, query))

    by_task = PartitionSpec("scenes")
    return jax.jit(jax.shard_map(score_tasks, mesh=mesh, in_specs=(by_task, by_task), out_specs=by_task))


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
    adapt_tasks: AdaptTasks,
    score_tasks: ScoreTasks,
    params: Params,
    support: PyTree[Any],
    query: PyTree[Any],
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int,
    keep_params: bool = True,
) -> Iterator[Fit]:
    """Yields the fits of consecutive batches of tasks, on the host.

    Task i gets the same draws whatever the initialisation and the batch size.

    Args:
      adapt_tasks: from `make_adapt`.
      score_tasks: from `make_score`.
      params: the initialisation.
      support: of all tasks, along the leading axis.
      query: of all tasks, along the leading axis; items along the second.
      mesh: shares the tasks.
      seed: of the draws.
      batch_size: how many tasks at once.
      keep_params: whether to bring the adapted parameters to the host.
    """
    num_tasks = len(jax.tree.leaves(support)[0])
    size = padded_size(min(batch_size, num_tasks), mesh)
    params = put(params, replicated(mesh))
    for start in range(0, num_tasks, size):
        tasks = np.arange(start, min(start + size, num_tasks))
        padded = np.resize(tasks, size)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), padded)
        batch, queries, keys = put((_take(support, padded), _take(query, padded), keys), by_scene(mesh))
        began = time.perf_counter()
        adapted = jax.block_until_ready(adapt_tasks(params, batch, keys))
        share = (time.perf_counter() - began) / len(tasks)
        scores = score_tasks(adapted, queries)
        kept = _take(fetch((adapted if keep_params else None, scores)), slice(len(tasks)))
        yield Fit(kept[0], kept[1], np.full(len(tasks), share))


def fit_all(batches: Iterable[Fit]) -> Fit:
    """Returns the fits of all batches as one."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def _take(tree: PyTree[Any], tasks: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[tasks], tree)
