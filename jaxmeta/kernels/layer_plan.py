"""What a kernel of layers' gradients has to do, and what it keeps where."""

from typing import Any, Literal, NamedTuple

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from jaxmeta.kernels.launching import CHUNK, CONSUMERS, DEPTH, STRIPE, TILE, WIDTH, tiled
from jaxmeta.kernels.slabs import HALF, PAIR, Place, Slabs

Kind = Literal["head", "layer", "first"]
"""What a kernel goes through: the head, the layers between, or the first layer, from which nothing goes on."""


class Plan(NamedTuple):
    """What a kernel has to do."""

    work: Slabs
    kind: Kind
    inputs: int
    layers: int
    """That the kernel goes through, from the last to the first of them."""
    first_row: int
    """Of their weights in the stacked ones; of no use for the first layer."""
    before: int
    """Passes through layers or the head that went before."""

    @property
    def outputs(self) -> int:
        """Of the layer, or the head's filled up."""
        return STRIPE if self.kind == "head" else WIDTH

    def rows_of(self, step: Any, place: Place, number: Any) -> tuple[Any, Any, Any]:
        """Returns the scene and the rows of a pair's slab, and whether it is the first of a part.

        Each pass goes through a part the other way round than the one before, whose last gradients are in the cache.
        """
        scene, _, inside, _ = self.work.locate(place.begin + number)
        first = lax.max(inside - number, 0)
        stop = lax.min(inside + place.length - number, self.work.slabs)
        descends = lax.rem(self.before + step, 2) == 0
        row = jnp.where(descends, first + stop - 1 - inside, inside) * TILE
        return scene, pl.ds(row, TILE), inside == first

    @property
    def share(self) -> int:
        """Of the inputs, which a block takes."""
        return self.inputs // PAIR

    @property
    def ring(self) -> int:
        """Slabs that are copied ahead: more do not pay, or have no room. A multiple of `encoding`, if any encode."""
        return {"head": 6, "layer": 3, "first": 4}[self.kind]

    @property
    def encoding(self) -> int:
        """Warpgroups that encode slabs, in turns."""
        if self.kind != "first":
            return 0
        return 1 if self.share == HALF else 2

    @property
    def registers(self) -> tuple[int, int]:
        """For a thread of those that multiply, and that encode."""
        return {0: (232, 0), 1: (160, 168), 2: (104, 120)}[self.encoding]


class Arrays(NamedTuple):
    """In global memory."""

    gradient: Any
    """Of the sums before relu, for the first layer in one of two slots; that of the head's outputs is transposed."""
    inputs: Any
    """Activations by layer; for the first layer points, which its kernel encodes."""
    weights: Any = None
    ones: Any = None
    angles: Any = None
    products: Any = None
    below: Any = None
    """The gradient that goes on; a kernel of layers has two slots for it, which it takes in turns."""
    sums: Any = None


class Buffers(NamedTuple):
    """In shared memory, with the barriers that tell when they are full and when all are done with them."""

    left: Any
    right: Any
    full: Any
    free: Any
    narrow: Any = None
    """The head's gradient once more, in the order that its other matmul asks for."""
    kernel: Any = None
    kernel_here: Any = None
    kernel_free: Any = None
    layer_done: Any = None
    out: Any = None
    ones: Any = None
    ones_here: Any = None
    points: Any = None
    angles: Any = None
    angles_here: Any = None
    made: Any = None

    @staticmethod
    def scratch(plan: Plan) -> dict[str, Any]:
        """Returns what to ask for in shared memory."""
        is_head, is_first = plan.kind == "head", plan.kind == "first"
        scratch = {
            "left": tiled((plan.ring, TILE, plan.share)),
            "right": tiled((plan.ring, STRIPE, TILE) if is_head else (plan.ring, TILE, WIDTH)),
            "full": plgpu.Barrier(num_arrivals=4 if is_head else 2, num_barriers=plan.ring),
            "free": plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=CONSUMERS, num_barriers=plan.ring),
        }
        if is_head:
            scratch["narrow"] = tiled((plan.ring, DEPTH, TILE), DEPTH)
        if is_first:
            return scratch | {
                "points": plgpu.SMEM((plan.ring, 3, TILE), jnp.float32),
                "angles": plgpu.SMEM((4, plan.inputs), jnp.float32),
                "angles_here": plgpu.Barrier(),
                "made": plgpu.Barrier(num_barriers=plan.ring),
            }
        if plan.kind == "layer":
            scratch["layer_done"] = plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=CONSUMERS)
        return scratch | {
            "kernel": tiled((DEPTH, HALF), DEPTH) if is_head else tiled((HALF, WIDTH)),
            "kernel_here": plgpu.Barrier(),
            "kernel_free": plgpu.Barrier(num_arrivals=CONSUMERS),
            "out": tiled((CONSUMERS, TILE, CHUNK)),
            "ones": tiled((STRIPE, TILE)),
            "ones_here": plgpu.Barrier(),
        }
