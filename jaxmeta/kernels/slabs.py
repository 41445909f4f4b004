"""How kernels that sum over rows cut their work into pieces, and how the parts that come of them are added."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.experimental.pallas as pl
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxmeta.kernels.launching import WIDTH, at_once

PAIR = 2
"""Blocks that share what they copy: each copies a half, and the hardware hands it to both."""
HALF = WIDTH // PAIR
"""Of a layer's inputs, which a block takes."""

_NEARLY = 0.95
"""Of the pairs that could run must work."""


class Place(NamedTuple):
    """What a warpgroup is, and which slabs its pair takes."""

    me: Any
    block: Any
    pair: Any
    begin: Any
    end: Any

    @property
    def length(self) -> Any:
        """How many these are."""
        return self.end - self.begin


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
        """Of blocks: as many as run at a time, if there are four slabs for each, or a few less.

        That is where fewer share each scene evenly: no pair passes from one to the next, and there is less to add.
        """
        most = max(1, at_once(self.per_scene * self.scenes // 4, PAIR))
        even = most // self.scenes * self.scenes
        return even if even > _NEARLY * most and self.per_scene * self.scenes % even == 0 else most

    @property
    def parts(self) -> int:
        """The most that any pair writes."""
        return max(len(self.layers_of(pair)) for pair in range(self.pairs))

    def start(self, pair: Any) -> Any:
        """Returns the first slab of a pair."""
        least, more = divmod(self.per_scene * self.scenes, self.pairs)
        return pair * least + (min(pair, more) if isinstance(pair, int) else lax.min(pair, more))

    def place(self) -> Place:
        """Returns, in a kernel, what the warpgroup that asks is."""
        me, block, pair = (lax.axis_index(name) for name in ("warpgroup", "block", "pair"))
        return Place(me, block, pair, self.start(pair), self.start(pair + 1))

    def by_parts(self, place: Place, run: Callable[[Any, Any, Any], None]) -> None:
        """Calls `run(part, first, stop)` for the slabs of each layer, numbered from the first of the pair."""

        @pl.loop(0, self.parts, init_carry=place.begin)
        def _(part: Any, slab: Any) -> Any:
            stop = lax.min(slab + self.locate(slab)[-1], place.end)
            pl.when(slab < place.end)(lambda: run(part, slab - place.begin, stop - place.begin))
            return stop

    def locate(self, slab: Any) -> tuple[Any, Any, Any, Any]:
        """Returns a slab's scene and layer, its place in the layer, and how many are left of the layer."""
        choose = (lambda condition, yes, no: yes if condition else no) if isinstance(slab, int) else jnp.where
        scene = slab // self.per_scene
        inside = slab - scene * self.per_scene
        if self.layers == 1:
            return scene, 0, inside, self.first - inside
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

    def add(self, parts: Float[Array, "pairs parts *rest"]) -> Float[Array, "scenes layers *rest"]:
        """Adds the parts of each layer, in a fixed order."""
        shares: list[list[int]] = [[] for _ in range(self.scenes * self.layers)]
        num_pairs, num_parts = parts.shape[:2]
        for pair in range(num_pairs):
            for position, layer in enumerate(self.layers_of(pair)):
                shares[layer].append(pair * num_parts + position)
        most = max(map(len, shares))
        place = np.array([share + [0] * (most - len(share)) for share in shares], np.int32)
        there = np.array([[True] * len(share) + [False] * (most - len(share)) for share in shares])
        flat = parts.reshape(-1, *parts.shape[2:])
        if there.all() and np.array_equal(place.ravel(), np.arange(len(flat))):  # cheaper than to gather them
            total = jnp.sum(flat.reshape(*place.shape, *flat.shape[1:]), axis=1)
        else:
            is_there = there.reshape(there.shape + (1,) * (flat.ndim - 1))
            total = jnp.sum(jnp.where(is_there, flat[place], 0.0), axis=1)
        return total.reshape(self.scenes, self.layers, *parts.shape[2:])
