"""Decides how many tasks are adapted side by side: as many as a device has memory for."""

from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxmeta.devices import by_scene, laid_out, memory_limit, memory_needed, padded_size, replicated
from jaxmeta.evaluation import AdaptTasks, num_tasks
from jaxmeta.metalearning import Params

_FIRST_BATCH = 16
"""Tasks that the program is compiled for to learn how much memory one takes."""
_SHARE_OF_MEMORY = 0.5
"""Of a device's, that a batch may take; rendering needs the rest."""
_ON_A_CPU = 4
"""Tasks at once where a device does not tell its memory; more are no faster there."""


def compile_adapt(
    adapt_tasks: Any, params: Params, support: PyTree[Any], mesh: Mesh, *, num_at_once: int | None = None
) -> tuple[AdaptTasks, int]:
    """Returns the function compiled for a batch of tasks, and how many tasks that is.

    Args:
      adapt_tasks: from `make_adapt`.
      params: an initialisation.
      support: of all tasks, along the leading axis.
      mesh: shares the tasks.
      num_at_once: tasks in a batch; None for as many as take half of a device's memory, or 4 where that is unknown.
    """
    count, limit = num_tasks(support), memory_limit()

    def compiled(size: int) -> Any:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), support)
        placed = laid_out(params, replicated(mesh)), *laid_out((batch, keys), by_scene(mesh))
        return adapt_tasks.lower(*placed).compile()

    size = padded_size(min(num_at_once or (_ON_A_CPU if limit is None else _FIRST_BATCH), count), mesh)
    first = compiled(size)
    if num_at_once or limit is None or size >= count:
        return first, size
    of_one_task = max(memory_needed(first), 1) * mesh.size / size
    most = max(int(limit * _SHARE_OF_MEMORY / of_one_task), 1) * mesh.size
    num_batches = -(-count // most)
    size = padded_size(-(-count // num_batches), mesh)
    return compiled(size), size
