"""What a kernel of layers' gradients has to do, and what it keeps where."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from jaxmeta.kernels.launching import CHUNK, CONSUMERS, DEPTH, STRIPE, TILE, WIDTH, tiled
from jaxmeta.kernels.slabs import HALF, PAIR, Place, Slabs

Kind = Literal["last", "between", "first"]
"""What a kernel goes through: the head and the last layer, layers between, or the first, from which nothing goes on."""
ENCODED = 2
"""Slabs for which there is room to encode them, in place of copies of the first layer's inputs."""


class Plan(NamedTuple):
    """What a kernel has to do."""

    work: Slabs
    kind: Kind
    inputs: int
    layers: int
    """That the kernel goes through, from the last to the first of them."""
    top: int
    """The last of them, counted from 0 for the one after the first layer, for which this and `first_row` are no use."""
    first_row: int
    """In the stacked weights, of the one after the first layer."""
    before: int
    """Layers that the gradient has gone through before."""

    def part_of(self, step: Any, place: Place, number: Any) -> tuple[Any, Callable[[Any], Any], Any]:
        """Returns the scene of a pair's slab, the rows of each slab of its part, and whether it is the first of it.

        Each pass goes through a part the other way round than the one before, whose last gradients are in the cache.
        """
        scene, _, inside, _ = self.work.locate(place.begin + number)
        first = lax.max(inside - number, 0)
        stop = lax.min(inside + place.length - number, self.work.slabs)
        begin, descends = inside - number, lax.rem(self.before + step, 2) == 0
        origin = jnp.where(descends, first + stop - 1 - begin, begin) * TILE
        stride = jnp.where(descends, -TILE, TILE)
        return scene, lambda number: pl.ds(origin + number * stride, TILE), inside == first

    @property
    def share(self) -> int:
        """Of the inputs, which a block takes."""
        return self.inputs // PAIR

    @property
    def ring(self) -> int:
        """Slabs that are copied ahead: more do not pay, or have no room. A multiple of `encoding`, if any encode."""
        return 3 if self.kind != "first" else 6 if self.share < HALF else 5

    @property
    def encoding(self) -> int:
        """Warpgroups that encode slabs, in turns."""
        if self.kind != "first":
            return 0
        return 1 if self.share == HALF else 2

    @property
    def registers(self) -> tuple[int, int]:
        """For a thread of those that multiply, and of those that encode or go through the head."""
        if self.kind == "last":
            return 200, 104
        return {0: (232, 24), 1: (160, 168), 2: (104, 120)}[self.encoding]


class Arrays(NamedTuple):
    """In global memory."""

    gradient: Any
    """Of the sums before relu, for the first layer in one of two slots; that of the head's outputs is transposed."""
    inputs: Any
    """Activations by layer; for the first layer points, which its kernel encodes."""
    last: Any = None
    """Activations of the last layer."""
    weights: Any = None
    ones: Any = None
    angles: Any = None
    products: Any = None
    below: Any = None
    """The gradient that goes on; a kernel of layers between has two slots for it, which it takes in turns."""
    sums: Any = None
    head: Any = None
    """Products of the last layer's activations and gradients by the head's outputs."""


class Buffers(NamedTuple):
    """In shared memory, with the barriers that tell when they are full and when all are done with them."""

    left: Any
    right: Any
    full: Any
    free: Any
    left_free: Any = None
    """Of `left` alone."""
    made: Any = None
    """Slabs are encoded, or have been through the head."""
    narrow: Any = None
    """The gradient by the head's outputs, as a left operand."""
    turned: Any = None
    """The same as a right one."""
    head: Any = None
    """Weights, transposed."""
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

    @staticmethod
    def scratch(plan: Plan) -> dict[str, Any]:
        """Returns what to ask for in shared memory."""
        lefts = ENCODED if plan.kind == "first" else plan.ring
        scratch = {
            "left": tiled((lefts, TILE, plan.share) if plan.kind == "first" else (lefts, CONSUMERS, TILE, CHUNK)),
            "right": tiled((plan.ring, TILE, WIDTH)),
            "full": plgpu.Barrier(
                num_arrivals={"last": 6, "between": 3, "first": 2}[plan.kind], num_barriers=plan.ring
            ),
            "free": plgpu.ClusterBarrier(
                collective_axes=("block",), num_arrivals=CONSUMERS + (plan.kind == "last"), num_barriers=plan.ring
            ),
        }
        if plan.kind != "between":
            scratch["made"] = plgpu.Barrier(num_barriers=lefts)
            scratch["left_free"] = plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=lefts)
        if plan.kind == "first":
            return scratch | {
                "points": plgpu.SMEM((plan.ring, 3, TILE), jnp.float32),
                "angles": plgpu.SMEM((4, plan.inputs), jnp.float32),
                "angles_here": plgpu.Barrier(),
            }
        if plan.kind == "last":
            scratch["narrow"] = tiled((plan.ring, DEPTH, TILE), DEPTH)
            scratch["turned"] = tiled((plan.ring, STRIPE, TILE))
            scratch["head"] = tiled((DEPTH, WIDTH), DEPTH)
        else:
            scratch["layer_done"] = plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=CONSUMERS)
            scratch["out"] = tiled((CONSUMERS, TILE, CHUNK))
        return scratch | {
            "kernel": tiled((HALF, WIDTH)),
            "kernel_here": plgpu.Barrier(num_arrivals=2 if plan.kind == "last" else 1),
            "kernel_free": plgpu.Barrier(num_arrivals=CONSUMERS),
            "ones": tiled((STRIPE, TILE)),
            "ones_here": plgpu.Barrier(),
        }


class Task(NamedTuple):
    """What a warpgroup of a block has to do, on what and with what."""

    plan: Plan
    arrays: Arrays
    buffers: Buffers
    place: Place
