"""Puts scenes and the meta-learning core together: which scenes and keys each meta-step gets, many steps a dispatch."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxmeta.devices import compile_within_memory, gather, over_scenes, replicated
from jaxmeta.feeding import FILLER, Chunk
from jaxmeta.metalearning import Keys, MetaMetrics, MetaState, SceneGradientFn, meta_step

Item = TypeVar("Item")
Reading = Future[tuple[Any, float]]
"""The metrics of a chunk on the host, and when they were there."""
TrainSteps = Callable[..., tuple[MetaState, MetaMetrics]]
"""`(state, batches, resident, sent=None)`; see `make_train_steps`."""


def scene_batches(
    seed: int, first_step: int, num_steps: int, *, num_scenes: int, scenes_per_step: int
) -> Int[np.ndarray, "steps scenes"]:
    """Returns the scenes of consecutive meta-steps: every scene once an epoch, each epoch in another order.

    The answer depends on the arguments alone, so a resumed run sees what it would have seen.

    Args:
      seed: of the orders.
      first_step: counted from 0.
      num_steps: how many steps to plan.
      num_scenes: in the data set.
      scenes_per_step: the batch.
    """
    first, last = first_step * scenes_per_step, (first_step + num_steps) * scenes_per_step
    epochs = range(first // num_scenes, -(-last // num_scenes))
    order = np.concatenate([np.random.default_rng((seed, epoch)).permutation(num_scenes) for epoch in epochs])
    offset = first - epochs.start * num_scenes
    return order[offset : offset + last - first].reshape(num_steps, scenes_per_step)


def plan_batches(
    seed: int, first_step: int, last_step: int, *, steps_per_chunk: int, num_scenes: int, scenes_per_step: int
) -> list[Int[np.ndarray, "_ scenes"]]:
    """Returns `scene_batches` of the steps up to `last_step`, cut into chunks of at most `steps_per_chunk` steps."""
    return [
        scene_batches(
            seed,
            start,
            min(steps_per_chunk, last_step - start),
            num_scenes=num_scenes,
            scenes_per_step=scenes_per_step,
        )
        for start in range(first_step, last_step, steps_per_chunk)
    ]


def make_train_steps(
    scene_gradient: SceneGradientFn,
    optimiser: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    num_inner_steps: int,
    scenes_at_once: int | None = None,
) -> TrainSteps:
    """Returns a compiled function that takes meta-steps, `(state, batches, resident, sent=None) -> (state, metrics)`.

    `batches` says which scenes each step adapts. `resident` is the data of all scenes, along the leading axis; where
    that is None, `sent` is the data of the batches, along two leading axes. The metrics have a leading axis of steps.

    Args:
      scene_gradient: what one scene contributes; one of the algorithms.
      optimiser: improves the initialisation.
      mesh: shares the scenes of a batch.
      seed: of every draw.
      num_inner_steps: of the inner loop.
      scenes_at_once: how many a device adapts side by side at most; None for all.
    """
    mapped = partial(over_scenes, mesh=mesh, at_once=scenes_at_once)

    def scene_keys(step: Array, slot: Array) -> Keys:
        scene_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), slot)
        return Keys(jax.random.split(scene_key, num_inner_steps), jax.random.fold_in(scene_key, num_inner_steps))

    def one_step(
        resident: PyTree[Array], state: MetaState, given: tuple[Array, PyTree[Array]]
    ) -> tuple[MetaState, MetaMetrics]:
        batch, sent = given
        data = sent if resident is None else jax.tree.map(lambda leaf: leaf[batch], resident)
        slots = jnp.arange(batch.shape[0])
        keys = jax.vmap(scene_keys, in_axes=(None, 0))(state.step, slots)
        counts = batch != FILLER
        return meta_step(scene_gradient, optimiser, state, data, keys, counts, over_scenes=mapped)

    @jax.jit
    def train_steps(
        state: MetaState, batches: Array, resident: PyTree[Array], sent: PyTree[Array] = None
    ) -> tuple[MetaState, MetaMetrics]:
        state, metrics = jax.lax.scan(partial(one_step, resident), state, (batches, sent))
        return jax.lax.with_sharding_constraint(state, replicated(mesh)), metrics

    return train_steps


class Start(NamedTuple):
    """What a training continues from."""

    step: int
    """Meta-steps that were taken."""
    like: MetaState
    """Shapes, dtypes and layouts of the state."""
    state: Callable[[], MetaState]
    """Gives it; waits for it if need be."""


class Progress(NamedTuple):
    """Where a training stands after some meta-steps, and how they went."""

    state: MetaState
    step: int
    """Meta-steps taken in all."""
    batches: Int[np.ndarray, "steps scenes"]
    """The scenes of the last steps."""
    losses: Float[np.ndarray, "steps inner_steps"]
    gradient_norm: Float[np.ndarray, "steps"]
    diverged: Bool[np.ndarray, "steps scenes"]
    bad_in_a_row: int
    """Steps up to now, without a break, in which every scene diverged."""
    seconds: float
    """That the last steps took."""

    @property
    def before(self) -> int:
        """Meta-steps taken before the last ones."""
        return self.step - len(self.batches)


def take_steps(
    train_steps: TrainSteps, start: Start, chunks: Iterable[Chunk], *, pause: Callable[[int, int], bool]
) -> Iterator[Progress]:
    """Takes the meta-steps of one chunk after another, and yields after each.

    The devices get the next chunk before the metrics of the last are read, so that they do not wait for the host. The
    state, some megabytes, is not donated for that: both are there.

    Args:
      train_steps: from `make_train_steps`.
      start: where to begin; its state is asked for when the first chunk's function is compiled.
      chunks: what to adapt.
      pause: given the steps taken before a chunk and after it, whether the devices are needed for something else then;
        they wait until what is yielded was used.

    Raises:
      OutOfMemoryError: a device has too little memory.
    """
    bad_in_a_row = 0
    # When a chunk is done cannot be told from when the next is sent: that may wait until there is room for it.
    with ThreadPoolExecutor(1) as reader:
        began = time.perf_counter()
        sent = _dispatch(train_steps, start, chunks, lambda metrics: reader.submit(_read, metrics))
        for before, step, state, batches, reading in _one_behind(sent, lambda chunk: pause(*chunk[:2])):
            metrics, ended = reading.result()
            losses, gradient_norm, diverged = (leaf[: len(batches)] for leaf in metrics)
            diverged = diverged[:, : batches.shape[1]]
            good = np.flatnonzero(~diverged.all(axis=1))
            bad_in_a_row = len(batches) - 1 - good[-1] if len(good) else bad_in_a_row + len(batches)
            yield Progress(state, step, batches, losses, gradient_norm, diverged, int(bad_in_a_row), ended - began)
            began = time.perf_counter() if pause(before, step) else ended


def _dispatch(
    train_steps: TrainSteps, start: Start, chunks: Iterable[Chunk], read: Callable[[MetaMetrics], Reading]
) -> Iterator[tuple[int, int, MetaState, Int[np.ndarray, "steps scenes"], Reading]]:
    """Yields, of each chunk that the devices have got, the steps taken before and after it, and what comes of it."""
    compiled, state, step = None, None, start.step
    for batches, padded, resident, sent in chunks:
        compiled = compiled or compile_within_memory(train_steps, start.like, padded, resident, sent)
        state, metrics = compiled(state or start.state(), padded, resident, sent)
        # Asked of the other processes now: the devices answer in turn.
        yield step, step + len(batches), state, batches, read(gather(metrics, state.step.sharding))
        step += len(batches)


def _read(metrics: MetaMetrics) -> tuple[Any, float]:
    """Returns metrics on the host, and when they were there."""
    return jax.device_get(metrics), time.perf_counter()


def _one_behind(items: Iterable[Item], hold: Callable[[Item], bool]) -> Iterator[Item]:
    """Yields each item when the next one is there; one to hold at, before that."""
    waiting: list[Item] = []
    for item in items:
        yield from waiting
        waiting = [item]
        if hold(item):
            yield from waiting
            waiting = []
    yield from waiting


def summarise(done: Progress, ids: tuple[str, ...]) -> dict[str, Any]:
    """Returns what is logged of some meta-steps.

    Losses are before the first and before the last inner step, on the rays of that step; psnr is of the last, in dB.
    """
    counted = ~done.diverged.all(axis=1)
    losses = done.losses[counted].mean(axis=0) if counted.any() else np.full(2, np.nan)
    return {
        "loss_before": float(losses[0]),
        "loss": float(losses[-1]),
        "psnr": float(-10 * np.log10(losses[-1])),
        "gradient_norm": float(done.gradient_norm.mean()),
        "diverged": [ids[scene] for scene in done.batches[done.diverged]],
        "seconds": done.seconds,
        "scenes_per_second": done.batches.size / done.seconds,
    }
