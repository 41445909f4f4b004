"""Brings scenes to the devices: all at once where they fit, else those of the next steps while the last ones run.

In the second case each device gets the scenes that it adapts, so each process reads those of its own devices alone.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, PyTree

from jaxmeta.devices import by_scene, memory_limit, padded_size, put, replicated

Residency = Literal["auto", "device", "host"]
Item = TypeVar("Item")

FILLER = -1
"""Stands for no scene in a batch."""
_SHARE_OF_MEMORY = 0.5
"""Of a device's memory that scenes may take before they stay on the host."""


class Chunk(NamedTuple):
    """What the compiled function needs for some consecutive meta-steps."""

    batches: Int[np.ndarray, "steps scenes"]
    """Which scenes of the data set each step adapts."""
    padded: Int[np.ndarray, "padded_steps padded_scenes"]
    """The same with fillers."""
    resident: PyTree | None
    """All scenes, on every device."""
    sent: PyTree | None
    """Where none are resident: those of the padded batches, along two leading axes; the devices share the second."""


def resolve_residency(residency: Residency, scenes: PyTree) -> Literal["device", "host"]:
    """Returns where the scenes are kept; "auto" is on the device where they leave half of its memory free."""
    if residency != "auto":
        return residency
    limit = memory_limit()
    return "device" if limit is None or num_bytes(scenes) <= _SHARE_OF_MEMORY * limit else "host"


def num_bytes(scenes: PyTree) -> int:
    """Returns the size of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(scenes))


def chunks(
    scenes: PyTree,
    plan: Sequence[Int[np.ndarray, "_ scenes"]],
    mesh: Mesh,
    *,
    residency: Residency,
) -> Iterator[Chunk]:
    """Yields what each chunk of meta-steps needs.

    Every chunk has the same shapes, so one compiled function serves all; what it computes does not depend on the
    residency.

    Args:
      scenes: of the data set, on the host, along the leading axis.
      plan: the batches of each chunk; those that are shorter than the longest are filled up.
      mesh: the devices.
      residency: where the scenes are kept.
    """
    num_steps = max(map(len, plan), default=0)
    if resolve_residency(residency, scenes) == "device":
        resident = put(scenes, replicated(mesh))
        for batches in plan:
            yield Chunk(batches, pad_batches(batches, mesh, num_steps=num_steps), resident, None)
        return

    def send(batches: Int[np.ndarray, "steps scenes"]) -> Chunk:
        padded = pad_batches(batches, mesh, num_steps=num_steps)

        def send_leaf(leaf: np.ndarray) -> jax.Array:
            def rows(part: tuple[slice, ...] | None) -> np.ndarray:
                return leaf[padded if part is None else padded[part[:2]]]

            return jax.make_array_from_callback((*padded.shape, *leaf.shape[1:]), by_scene(mesh, axis=1), rows)

        return Chunk(batches, padded, None, jax.tree.map(send_leaf, scenes))

    yield from made_ahead(send, plan)


def pad_batches(
    batches: Int[np.ndarray, "steps scenes"], mesh: Mesh, *, num_steps: int
) -> Int[np.ndarray, "padded_steps padded_scenes"]:
    """Returns the batches with fillers, up to `num_steps` and to a width that the devices divide."""
    padded = np.full((num_steps, padded_size(batches.shape[1], mesh)), FILLER, np.int32)
    padded[: batches.shape[0], : batches.shape[1]] = batches
    return padded


def made_ahead(make: Callable[[Item], Chunk], items: Sequence[Item]) -> Iterator[Chunk]:
    """Yields `make` of each item; a thread makes the next while the last is used. Its error is raised here."""
    with ThreadPoolExecutor(1) as thread:
        pending: Future[Chunk] | None = None
        for item in items:
            last, pending = pending, thread.submit(make, item)
            if last:
                yield last.result()
        if pending:
            yield pending.result()
