"""Measures what an initialisation buys: fit unseen signals to their support, score what they show of their query.

PSNR is `-10 log10(max(e, 1e-10))` in dB, e the mean squared error of an image whose colours are clipped to [0, 1]; so
it is at most 100. SSIM is that of Wang et al. 2004 with an 11x11 Gaussian window of sigma 1.5, the mean over channels;
an image smaller than the window has none (NaN). Both are of one image. A third measure may be handed in.

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
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxmeta.devices import apart, by_scene, fetch, memory_limit, over_scenes, padded_size, put, replicated
from jaxmeta.metalearning import LossFn, Params, adapt_in_stages

Predict = Callable[[Params, Any], Float[Array, "height width channels"]]
"""`(params, query_item) -> image`."""
Target = Callable[[Any], Float[Array, "height width channels"]]
"""`query_item -> image`."""
Distance = Callable[[Float[Array, "height width channels"], Float[Array, "height width channels"]], Float[Array, ""]]
"""`(image, target) -> how far they are apart`, of colours in [0, 1]."""
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
    lpips: Float[Any, "*tasks stages views"] | None = None
    """Of `lpips.py`, lower is better; None where no weights of it were given."""


class Fit(NamedTuple):
    """Tasks adapted from one initialisation."""

    params: PyTree[Float[Any, "..."]]
    """Of the tasks whose parameters were kept, after each reported number of steps: leading axes `tasks stages`. None
    where there are no such tasks."""
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

    return jax.jit(over_scenes(adapt_task, mesh))


def make_score(predict: Predict, target: Target, mesh: Mesh, *, lpips: Distance | None = None) -> ScoreTasks:
    """Returns a compiled function that scores a batch of adapted tasks on their queries.

    Args:
      predict: what an adapted field shows for a query item.
      target: what it should show.
      mesh: shares the tasks.
      lpips: a distance to score with besides; None for none.
    """

    def score(params: Params, item: Any) -> Scores:
        image, wanted = predict(params, item), target(item)
        apart = lpips(jnp.clip(image, 0, 1), wanted) if lpips else None
        return Scores(psnr(image, wanted), ssim(image, wanted), apart)

    def score_task(task: tuple[Params, Any]) -> Scores:
        adapted, query = task
        return jax.lax.map(lambda params: jax.lax.map(lambda item: score(params, item), query), adapted)

    def score_tasks(adapted: Params, query: Any) -> Scores:
        return jax.lax.map(score_task, (adapted, query))

    return jax.jit(apart(score_tasks, mesh, (0, 0)))


def within_memory(
    make: Callable[[int], Callable[..., Any]], *, rays_per_chunk: int | None = None
) -> Callable[..., Any]:
    """Returns the function `make(rays_per_chunk)`, made anew with half as many rays when a device is out of memory.

    What it computes does not depend on that number. An error at `MIN_RAYS_PER_CHUNK` is raised.

    Args:
      make: gives a compiled function, which keeps its arguments intact, for a number of rays rendered at a time.
      rays_per_chunk: the number to begin with; None for what keeps the device busy.
    """
    num_rays = rays_per_chunk or (4096 if memory_limit() is None else 65536)
    function = make(num_rays)

    def call(*arguments: Any) -> Any:
        nonlocal function, num_rays
        while True:
            try:
                return jax.block_until_ready(function(*arguments))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or num_rays <= MIN_RAYS_PER_CHUNK:
                    raise
            num_rays = max(num_rays // 2, MIN_RAYS_PER_CHUNK)
            print(f"warning: a device ran out of memory; now {num_rays} rays at a time", file=sys.stderr)
            function = make(num_rays)

    return call


def adapt_in_batches(
    adapt_tasks: AdaptTasks,
    params: Params,
    support: PyTree[Any],
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int,
    repeat_below: float = 0.0,
) -> Iterator[tuple[Int[np.ndarray, "tasks"], Int[np.ndarray, "padded_tasks"], Params, float]]:
    """Yields consecutive batches: the tasks, the tasks with fillers, their adapted parameters, and the seconds it took.

    Task i gets the same draws whatever the initialisation and the batch size.

    Args:
      adapt_tasks: from `make_adapt`, or compiled from it.
      params: the initialisation.
      support: of all tasks, along the leading axis.
      mesh: shares the tasks.
      seed: of the draws.
      batch_size: how many tasks at once.
      repeat_below: a first batch that took fewer seconds is adapted once more, and took what that took: the first call
        of a compiled program is some hundredths of a second slower.
    """
    count = num_tasks(support)
    size = padded_size(min(batch_size, count), mesh)
    params = put(params, replicated(mesh))
    for start in range(0, count, size):
        tasks = np.arange(start, min(start + size, count))
        padded = np.resize(tasks, size)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), padded)
        batch, keys = put((_take(support, padded), keys), by_scene(mesh))
        adapted, seconds = _timed(adapt_tasks, params, batch, keys)
        if start == 0 and seconds < repeat_below:
            adapted, seconds = _timed(adapt_tasks, params, batch, keys)
        yield tasks, padded, adapted, seconds


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    return jax.block_until_ready(function(*arguments)), time.perf_counter() - began


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
    keep_every: int = 1,
    repeat_below: float = 0.0,
) -> Iterator[Fit]:
    """Yields the fits of consecutive batches of tasks, on the host.

    Args:
      adapt_tasks: from `make_adapt`.
      score_tasks: from `make_score`.
      params: the initialisation.
      support: of all tasks, along the leading axis.
      query: of all tasks, along the leading axis; items along the second.
      mesh: shares the tasks.
      seed: of the draws, as for `adapt_in_batches`.
      batch_size: how many tasks at once.
      keep_every: keep the adapted parameters of each so-manyth task, from the first one on; 0 for of none.
      repeat_below: as for `adapt_in_batches`.
    """
    batches = adapt_in_batches(
        adapt_tasks, params, support, mesh, seed=seed, batch_size=batch_size, repeat_below=repeat_below
    )
    for tasks, padded, adapted, seconds in batches:
        scores = score_tasks(adapted, put(_take(query, padded), by_scene(mesh)))
        kept = np.flatnonzero(tasks % keep_every == 0) if keep_every else tasks[:0]
        params_kept = _take(fetch(adapted), kept) if len(kept) else None
        yield Fit(params_kept, _take(fetch(scores), slice(len(tasks))), np.full(len(tasks), seconds / len(tasks)))


def fit_all(batches: Iterable[Fit]) -> Fit:
    """Returns the fits of all batches as one."""
    fits = list(batches)
    kept = [fit.params for fit in fits if fit.params is not None]
    scores, seconds = _concatenate([fit[1:] for fit in fits])
    return Fit(_concatenate(kept) if kept else None, scores, seconds)


def _concatenate(trees: Sequence[PyTree[Any]]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)


def num_tasks(support: PyTree[Any]) -> int:
    """Returns the length of the leading axis."""
    return len(jax.tree.leaves(support)[0])


def _take(tree: PyTree[Any], tasks: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[tasks], tree)
