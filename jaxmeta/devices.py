"""Spreads a batch of scenes over the devices there are."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

from jaxmeta.errors import InputError, OutOfMemoryError

_SIDE_BY_SIDE = "side by side"
"""Axis of the scenes that one device takes at once; `scenes` is that of the devices."""


def join_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None, *, heartbeat: int
) -> None:
    """Makes the devices of all processes one set; to be called first of all.

    The arguments are those of `jax.distributed.initialize`, which finds the first three itself on SLURM, GKE and TPU
    pods; `heartbeat` is in seconds.

    Raises:
      InputError: they cannot be found, or the other processes cannot be reached.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat)
    except (ValueError, RuntimeError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(
            f"the processes did not come together: {problem}; give --processes.coordinator HOST:PORT, "
            "--processes.count and --processes.index, the same but for the index in each process"
        ) from error


def is_main_process() -> bool:
    """Returns whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def keep_compiled() -> None:
    """Keeps compiled programs of a GPU or TPU in the user's cache folder, so that the next start need not compile.

    The folder is the user's alone, since who writes there decides what we run. JAX_COMPILATION_CACHE_DIR, if set, is
    used as it is.
    """
    if jax.default_backend() == "cpu" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmeta" / "programs"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        print(f"warning: compiled programs are not kept: {folder}: {error.strerror}", file=sys.stderr)
        return
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        print(f"warning: compiled programs are not kept: others may use {folder}; chmod 700 it", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def scene_mesh() -> Mesh:
    """Returns the devices as one axis, `scenes`."""
    # Explicit axes, jax's default, do not work under a vmap over sharded scenes.
    return jax.make_mesh((jax.device_count(),), ("scenes",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout in which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: PyTree, sharding: Sharding) -> Any:
    """Returns values that every process holds alike as arrays laid out over the devices of all processes."""

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)))
        return jax.device_put(np.asarray(leaf), sharding)

    return jax.tree.map(place, tree)


def fetch(tree: PyTree) -> Any:
    """Returns arrays, shared by the devices of all processes, as NumPy arrays that every process holds whole."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def gather(tree: PyTree, whole: Sharding) -> Any:
    """Returns arrays that every process can read, laid out as `whole` says, without waiting for their values."""
    return tree if jax.process_count() == 1 else _laid_out(whole)(tree)


@functools.cache
def _laid_out(sharding: Sharding) -> Callable[[PyTree], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def by_scene(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Returns the layout in which the devices share the scenes along an axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "scenes"))


def laid_out(tree: PyTree, sharding: Sharding) -> Any:
    """Returns the shapes and dtypes of arrays, laid out as `sharding` says."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def apart(function: Callable[..., Any], mesh: Mesh, in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """Returns a function of a batch of scenes that each device runs on its own scenes alone.

    XLA cannot divide a kernel of our own, and would have every device run it on all scenes.

    Args:
      function: of a batch; its results have the scenes along the leading axis.
      mesh: shares the scenes.
      in_axes: of each argument: 0 if the scenes are along its leading axis, None if they share it.
    """
    by_device = PartitionSpec("scenes")
    in_specs = tuple(PartitionSpec() if axis is None else by_device for axis in in_axes)
    # There is no replication to check, which a kernel could not tell.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=by_device, check_vma=False)


def over_scenes(function: Callable[..., Any], mesh: Mesh, *, at_once: int | None = None) -> Callable[..., Any]:
    """Returns `function(shared, a, b)` of one scene as a function of many, with `a` and `b` along their leading axis.

    Args:
      function: of one scene.
      mesh: shares the scenes.
      at_once: how many a device takes side by side at most; more go in groups of one size, and a smaller one last, for
        which XLA compiles the function again. None for all.
    """
    in_axes = (None, 0, 0)
    side_by_side = jax.vmap(function, in_axes, axis_name=_SIDE_BY_SIDE)

    @functools.wraps(function)  # for its name in what XLA tells
    def in_groups(shared: Any, a: Any, b: Any) -> Any:
        num_scenes = len(jax.tree.leaves((a, b))[0])
        if at_once is None or num_scenes <= at_once:
            return side_by_side(shared, a, b)
        num_groups = -(-num_scenes // at_once)
        size = -(-num_scenes // num_groups)
        whole = num_scenes // size * size
        groups = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), (a, b))
        done = jax.lax.map(lambda group: side_by_side(shared, *group), groups)
        done = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), done)
        if whole < num_scenes:
            rest = side_by_side(shared, *jax.tree.map(lambda leaf: leaf[whole:], (a, b)))
            done = jax.tree.map(lambda *parts: jnp.concatenate(parts), done, rest)
        return done

    return apart(in_groups, mesh, in_axes)


def scenes_side_by_side() -> int:
    """Returns how many scenes a function that `over_scenes` runs is given on its device at once; elsewhere 1."""
    try:
        return jax.lax.axis_size(_SIDE_BY_SIDE)
    except NameError:
        return 1


def padded_size(num_scenes: int, mesh: Mesh) -> int:
    """Returns the smallest batch of at least `num_scenes` that the devices divide."""
    return -(-num_scenes // mesh.size) * mesh.size


def compile_within_memory(function: Any, *arguments: Any) -> Any:
    """Returns a jitted function compiled for these arguments.

    Raises:
      OutOfMemoryError: it needs more memory than a device has; gives the numbers and what to turn down.
    """
    compiled = function.lower(*arguments).compile()
    total, limit = memory_needed(compiled), memory_limit()
    if limit is not None and total > limit:
        raise OutOfMemoryError(
            f"the training step needs {total / 2**30:.1f} GiB, a device has {limit / 2**30:.1f} GiB; lower "
            "--outer.scenes-at-once (below its share of the batch) or --inner.num-rays, or keep the scenes off it: "
            "--data.residency host"
        )
    return compiled


def compilation_clock() -> Callable[[], float]:
    """Returns a function that gives the seconds which XLA has compiled since this call."""
    durations: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: sum(durations)


def memory_needed(compiled: Any) -> int:
    """Returns the bytes that a compiled function takes on each device, or 0 where that is not told."""
    need = compiled.memory_analysis()
    if need is None:
        return 0
    held = need.argument_size_in_bytes + need.output_size_in_bytes + need.temp_size_in_bytes
    return held - need.alias_size_in_bytes


def memory_limit() -> int | None:
    """Returns the bytes that a device can hold, or None where that is not known, as on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def resolve_dtype(name: Literal["auto", "float32", "bfloat16"]) -> Any:
    """Returns the dtype of a matmul's operands; "auto" is bfloat16 where the hardware is made for it."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def describe() -> str:
    """Returns the devices in words, such as "8 x NVIDIA H200"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
