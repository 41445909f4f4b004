"""Spreads a batch of scenes over the devices there are."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def scene_mesh() -> Mesh:
    """Returns the devices as one axis, `scenes`."""
    # Explicit axes, jax's default, do not work under a vmap over sharded scenes.
    return jax.make_mesh((jax.device_count(),), ("scenes",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout in which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_scene(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Returns the layout in which the devices share the scenes along an axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "scenes"))


def padded_size(num_scenes: int, mesh: Mesh) -> int:
    """Returns the smallest batch of at least `num_scenes` that the devices divide."""
    return -(-num_scenes // mesh.size) * mesh.size


def resolve_dtype(name: Literal["auto", "float32", "bfloat16"]) -> Any:
    """Returns the dtype of a matmul's operands; "auto" is bfloat16 where the hardware is made for it."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def describe() -> str:
    """Returns the devices in words, such as "8 x NVIDIA H200"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
