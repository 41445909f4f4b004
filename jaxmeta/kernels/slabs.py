"""How the backward kernels cut their work into pieces, and how the parts that come of them are added."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxmeta.kernels.launching import TILE, at_once

PAIR = 2
"""Blocks that share a layer: each takes half of its inputs, and copies half of the gradient for both."""


class Slabs(NamedTuple):
    """The work: slabs of 64 rows, scene by scene in one line, cut into equal pieces for pairs of blocks.

    Where a pair passes from one scene to the next it writes what it has summed up, and XLA adds these parts.
    """

    scenes: int
    rows: int

    @property
    def per_scene(self) -> int:
        """Slabs of a scene."""
        return -(-self.rows // TILE)

    @property
    def pairs(self) -> int:
        """As many as run at a time, if there are two slabs for each."""
        return max(1, at_once(self.per_scene * self.scenes // 2, PAIR))

    @property
    def parts(self) -> int:
        """The most that any pair writes."""
        return max(len(self.scenes_of(pair)) for pair in range(self.pairs))

    def start(self, pair: Any) -> Any:
        """Returns the first slab of a pair."""
        least, more = divmod(self.per_scene * self.scenes, self.pairs)
        return pair * least + (min(pair, more) if isinstance(pair, int) else lax.min(pair, more))

    def locate(self, slab: Any) -> tuple[Any, Any]:
        """Returns a slab's scene and its place in it."""
        scene = slab // self.per_scene
        return scene, slab - scene * self.per_scene

    def scenes_of(self, pair: int) -> range:
        """Returns the scenes that a pair has a part in."""
        return range(self.start(pair) // self.per_scene, -(-self.start(pair + 1) // self.per_scene))

    def add(self, parts: Float[Array, "pairs parts *rest"]) -> Float[Array, "scenes *rest"]:
        """Adds the parts of each scene, in a fixed order."""
        shares: list[list[int]] = [[] for _ in range(self.scenes)]
        for pair in range(self.pairs):
            for position, scene in enumerate(self.scenes_of(pair)):
                shares[scene].append(pair * self.parts + position)
        most = max(map(len, shares))
        place = np.array([share + [-1] * (most - len(share)) for share in shares], np.int32)
        flat = parts.reshape(-1, *parts.shape[2:])
        if np.array_equal(place.ravel(), np.arange(len(flat))):  # saves a gather
            return flat.reshape(*place.shape, *flat.shape[1:]).sum(1)
        there = (place >= 0).reshape(place.shape + (1,) * (flat.ndim - 1))
        return jnp.sum(jnp.where(there, flat[place], 0.0), axis=1)
