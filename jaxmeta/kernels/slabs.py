"""How `weight_gradients` cuts its work into pieces, and how the parts that come of them are added."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxmeta.kernels.launching import WIDTH, at_once

PAIR = 2
"""Blocks that share what they copy: each copies a half, and the hardware hands it to both."""


class Slabs(NamedTuple):
    """The work: slabs of 64 rows, layer by layer and scene by scene in one line, cut into equal pieces for the pairs.

    Where a pair of blocks passes from one layer to the next it writes what it has summed up, and XLA adds these parts.
    """

    scenes: int
    layers: int
    narrow: bool
    """The first layer has 128 inputs, as many as a block takes of the others: the blocks take every other slab."""
    slabs: int
    """Of a layer of one scene."""

    @property
    def first(self) -> int:
        """Slabs of the first layer, or pairs of them."""
        return -(-self.slabs // PAIR) if self.narrow else self.slabs

    @property
    def per_scene(self) -> int:
        """Slabs of all layers of a scene."""
        return self.first + self.slabs * (self.layers - 1)

    @property
    def pairs(self) -> int:
        """Of blocks: as many as run at a time, if there are four slabs for each."""
        return max(1, at_once(self.per_scene * self.scenes // 4, PAIR))

    @property
    def parts(self) -> int:
        """The most that any pair writes."""
        return max(len(self.layers_of(pair)) for pair in range(self.pairs))

    def start(self, pair: Any) -> Any:
        """Returns the first slab of a pair."""
        least, more = divmod(self.per_scene * self.scenes, self.pairs)
        return pair * least + (min(pair, more) if isinstance(pair, int) else lax.min(pair, more))

    def locate(self, slab: Any) -> tuple[Any, Any, Any, Any]:
        """Returns a slab's scene and layer, its place in the layer, and how many are left of the layer."""
        choose = (lambda condition, yes, no: yes if condition else no) if isinstance(slab, int) else jnp.where
        scene = slab // self.per_scene
        inside = slab - scene * self.per_scene
        beyond = inside - self.first
        later = beyond // self.slabs
        layer = choose(beyond < 0, 0, 1 + later)
        inside = choose(beyond < 0, inside, beyond - later * self.slabs)
        return scene, layer, inside, choose(beyond < 0, self.first, self.slabs) - inside

    def layers_of(self, pair: int) -> list[int]:
        """Returns the layers, counted over all scenes, that a pair has a part in."""
        slab, end, layers = self.start(pair), self.start(pair + 1), []
        while slab < end:
            scene, layer, _, left = self.locate(slab)
            layers.append(scene * self.layers + layer)
            slab += left
        return layers


def add_parts(
    work: Slabs,
    products: Float[Array, "pairs parts blocks half_inputs 256"],
    sums: Float[Array, "pairs parts blocks consumers 64 8"],
) -> tuple[Float[Array, "scenes inputs 256"], Float[Array, "scenes later_layers 256"]]:
    """Adds the parts of each layer, in a fixed order, and puts the layers in their places."""
    shares: list[list[int]] = [[] for _ in range(work.scenes * work.layers)]
    for pair in range(work.pairs):
        for position, layer in enumerate(work.layers_of(pair)):
            shares[layer].append(pair * work.parts + position)
    most = max(map(len, shares))
    place = np.array([share + [0] * (most - len(share)) for share in shares], np.int32)
    there = np.array([[True] * len(share) + [False] * (most - len(share)) for share in shares])

    def gather(parts: Array) -> Array:
        flat = parts.reshape(-1, *parts.shape[2:])
        is_there = there.reshape(there.shape + (1,) * (flat.ndim - 1))
        total = jnp.sum(jnp.where(is_there, flat[place], 0.0), axis=1)
        return total.reshape(work.scenes, work.layers, *parts.shape[2:])

    first, others = jnp.split(gather(products), [1], axis=1)
    if work.narrow:  # the blocks took different rows
        first = first.sum(2, keepdims=True)
    kernels = jnp.concatenate([part.reshape(work.scenes, -1, WIDTH) for part in (first, others)], axis=1)
    sums = gather(sums)[:, 1:, ..., 0]  # every column holds them
    return kernels, sums.reshape(work.scenes, work.layers - 1, WIDTH)
