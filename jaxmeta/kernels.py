"""The hidden layers of many scenes' networks, each with its own weights, as three kernels for NVIDIA's Hopper GPUs.

`forward` runs all layers, `backward` takes the gradient back through all of them, `weight_gradients` multiplies what
the layers were given by what came back. XLA takes two or three passes over memory for each layer; here the rows stay on
the chip from the first layer to the last, and only what another kernel needs is written. Operands are bfloat16, sums
float32.

Written in Pallas for its Mosaic GPU backend. Blocks of threads live as long as the kernel and take pieces of work in
turn. In each, one warpgroup copies weights, or in `weight_gradients` rows, into a ring of buffers in shared memory, and
two multiply. benchmarks/kernels.md tells what was tried.

Shapes: rows are samples of rays, a multiple of 8 of them; `features` is 128 or 256; of `stacked` weights see `stack`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, BFloat16, Float, Int32

WIDTH = 256
"""Outputs of every layer: what the accumulators of a warpgroup hold for a tile."""
TILE = 64
"""Rows that a warpgroup multiplies at a time: the height of the hardware's matmul."""
CHUNK = 64
"""Columns that a row of a buffer in shared memory holds, as the matmul reads it: 128 bytes."""
MULTIPROCESSORS = 132
"""Blocks that run at a time: as many as an H100 or H200 has multiprocessors."""
_STRIPE = 8
"""Columns after which a thread's share of a tile repeats; a thread has two of them."""
_CONSUMERS = 2
"""Warpgroups of a block that multiply."""
_RING = 4
"""Buffers of a ring. More leave too little memory for what the compiler spills, fewer run dry."""
_PAIR = 2
"""Blocks that share what they copy, in `weight_gradients`: each copies a half, and the hardware hands it to both."""


def stack(layers: Sequence[Float[Array, "_ 256"]], head: Float[Array, "256 outputs"]) -> BFloat16[Array, "stacked 256"]:
    """Returns the layers' weights one below another, then the head as `backward` and as `forward` read it.

    The first layer has 128 or 256 inputs; the head has at most 8 outputs.
    """
    missing = WIDTH - head.shape[1]
    parts = [*layers, jnp.pad(head, ((0, 0), (0, missing))), jnp.pad(head.T, ((0, CHUNK - head.shape[1]), (0, 0)))]
    return jnp.concatenate(parts).astype(jnp.bfloat16)


def forward(
    rows: BFloat16[Array, "rows features"],
    weights: BFloat16[Array, "stacked 256"],
    biases: Float[Array, "layers 256"],
) -> Float[Array, "rows 8"]:
    """Returns the head's outputs, without its bias and filled up with zeros; under a vmap scenes share one launch."""
    return _forward(rows, weights, biases)


def forward_keeping(
    rows: BFloat16[Array, "rows features"],
    weights: BFloat16[Array, "stacked 256"],
    biases: Float[Array, "layers 256"],
) -> tuple[Float[Array, "rows 8"], list[BFloat16[Array, "rows 256"]], Int32[Array, "layers padded_rows 8"]]:
    """Returns as `forward`, and each layer's activations, and in bits where relu cut them off, for `backward`.

    Bit 31 - j of [layer, row, c] is the sign of column 8 j + c before relu: each thread packs what it holds.
    """
    return _forward_keeping(rows, weights, biases)


def backward(
    gradient: BFloat16[Array, "rows 64"],
    weights: BFloat16[Array, "stacked 256"],
    cut: Int32[Array, "layers padded_rows 8"],
) -> list[BFloat16[Array, "rows 256"]]:
    """Returns the gradients of each layer's sums, before relu, given the head's outputs', filled up with zeros."""
    return _backward(gradient, weights, cut)


def weight_gradients(
    inputs: Sequence[BFloat16[Array, "rows _"]], gradients: Sequence[BFloat16[Array, "rows 256"]]
) -> tuple[Float[Array, "inputs 256"], Float[Array, "later_layers 256"]]:
    """Returns sums over rows: of the products of inputs and gradients, and of all layers' gradients but the first's.

    A column of ones in the first layer's inputs gives that.
    """
    return _weight_gradients(*inputs, *gradients)


def _over_scenes(launch: Callable[..., Any], *, rows_only: bool = False) -> Callable[..., Any]:
    """Returns a function of one scene that has `launch` run a batch of them.

    With `rows_only` its result is rows, as its first operand: scenes that share the others are more rows of one.
    """

    @custom_vmap
    def run(*operands: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], launch(*(operand[None] for operand in operands)))

    @run.def_vmap
    def run_batch(num_scenes: int, is_batched: list[bool], *operands: Array) -> Any:
        if rows_only and not any(is_batched[1:]):
            out = run(operands[0].reshape(-1, operands[0].shape[-1]), *operands[1:])
            return out.reshape(num_scenes, -1, out.shape[-1]), True
        batch = [
            operand if batched else jnp.broadcast_to(operand, (num_scenes, *operand.shape))
            for operand, batched in zip(operands, is_batched, strict=True)
        ]
        out = launch(*batch)
        return out, jax.tree.map(lambda _: True, out)

    return run


# ---------------------------------------------------------------------------------------- forward and backward


class _Work(NamedTuple):
    """Which rows a block takes: groups b, b + blocks, ... of all scenes' groups of rows."""

    scenes: int
    rows: int

    @property
    def groups(self) -> int:
        return -(-self.rows // (TILE * _CONSUMERS))

    @property
    def padded_rows(self) -> int:
        return self.groups * TILE * _CONSUMERS

    @property
    def blocks(self) -> int:
        return min(MULTIPROCESSORS, self.scenes * self.groups)

    def num_items(self) -> Any:
        return (self.scenes * self.groups - lax.axis_index("block") + self.blocks - 1) // self.blocks

    def place(self, index: Any, consumer: Any) -> tuple[Any, Any]:
        """Returns the scene and the rows of a warpgroup's tile of its block's item of that index."""
        number = lax.axis_index("block") + index * self.blocks
        return number // self.groups, pl.ds((lax.rem(number, self.groups) * _CONSUMERS + consumer) * TILE, TILE)


class _Ring:
    """Slices of weights in shared memory, which one warpgroup fills and the consumers use, all in one order."""

    def __init__(self, slots: Any, full: Any, free: Any) -> None:
        self.slots, self.full, self.free = slots, full, free

    @staticmethod
    def scratch(shape: tuple[int, int]) -> dict[str, Any]:
        return {
            "slots": _tiled((_RING, *shape)),
            "full": plgpu.Barrier(num_barriers=_RING),
            "free": plgpu.Barrier(num_arrivals=_CONSUMERS, num_barriers=_RING),
        }

    def fill(self, number: Any, source: Any) -> None:
        slot = _turn(number, _RING)
        pl.when(number >= _RING)(lambda: plgpu.barrier_wait(self.free.at[slot]))
        plgpu.copy_gmem_to_smem(source, self.slots.at[slot], self.full.at[slot])

    def multiply(self, first: Any, pairs: Sequence[Callable[[Any], list[tuple[Any, Any]]]], columns: int) -> Any:
        """Sums the products of `pairs`: functions of a slice that return left and right operands."""

        def sum_up(total: Any) -> Any:
            for k, pair in enumerate(pairs):
                slot = _turn(first + k, _RING)
                plgpu.barrier_wait(self.full.at[slot])
                operands = pair(self.slots.at[slot])
                for left, right in operands:
                    plgpu.wgmma(total, left, right)
                if k:
                    plgpu.wgmma_wait(len(operands))
                    plgpu.barrier_arrive(self.free.at[_turn(first + k - 1, _RING)])
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(self.free.at[_turn(first + len(pairs) - 1, _RING)])
            return total[...]

        return pl.run_scoped(sum_up, plgpu.WGMMAAccumulatorRef((TILE, columns), jnp.float32))


def _launch_forward(keep: bool, rows: Array, weights: Array, biases: Array) -> Any:
    num_scenes, num_rows, num_features = rows.shape
    num_layers = biases.shape[1]
    work = _Work(num_scenes, num_rows)
    chunks = [num_features // CHUNK] + [WIDTH // CHUNK] * (num_layers - 1)
    slices = sum(chunks) + 1
    out_type = [jax.ShapeDtypeStruct((num_scenes, work.padded_rows, _STRIPE), jnp.float32)]
    if keep:
        out_type += [jax.ShapeDtypeStruct((num_scenes, num_rows, WIDTH), jnp.bfloat16)] * num_layers
        out_type.append(jax.ShapeDtypeStruct((num_scenes, num_layers, work.padded_rows, _STRIPE), jnp.int32))
    scratch = _Ring.scratch((CHUNK, WIDTH)) | {
        "tiles": _tiled((_CONSUMERS, WIDTH // CHUNK, TILE, CHUNK)),
        "bias": plgpu.SMEM((2, WIDTH), jnp.float32),
        "rows_here": plgpu.Barrier(num_arrivals=chunks[0], num_barriers=_CONSUMERS),
        "bias_here": plgpu.Barrier(num_barriers=2),
        "bias_free": plgpu.Barrier(num_arrivals=_CONSUMERS, num_barriers=2),
    }

    def body(
        rows_in: Any,
        weights_in: Any,
        biases_in: Any,
        outputs: Any,
        kept: Sequence[Any],
        *,
        tiles: Any,
        bias: Any,
        rows_here: Any,
        bias_here: Any,
        bias_free: Any,
        **of_ring: Any,
    ) -> None:
        ring = _Ring(**of_ring)
        me, num_items = lax.axis_index("warpgroup"), work.num_items()

        @pl.when(me == _CONSUMERS)
        def _() -> None:
            plgpu.set_max_registers(40, action="decrease")

            @pl.loop(0, num_items)
            def _(index: Any) -> None:
                scene, _ = work.place(index, 0)
                number, top = index * slices, 0
                for layer, num_chunks in enumerate(chunks):
                    bias_number = index * num_layers + layer
                    which = _turn(bias_number, 2)
                    pl.when(bias_number >= 2)(lambda which=which: plgpu.barrier_wait(bias_free.at[which]))
                    plgpu.copy_gmem_to_smem(biases_in.at[scene, layer], bias.at[which], bias_here.at[which])
                    for k in range(num_chunks):
                        ring.fill(number + k, weights_in.at[scene, pl.ds(top + k * CHUNK, CHUNK), :])
                    number, top = number + num_chunks, top + num_chunks * CHUNK
                ring.fill(number, weights_in.at[scene, pl.ds(top + WIDTH, CHUNK), :])

            _drain(ring.free, _RING, num_items * slices)
            _drain(bias_free, 2, num_items * num_layers)

        @pl.when(me < _CONSUMERS)
        def _() -> None:
            plgpu.set_max_registers(232, action="increase")
            tile = tiles.at[me]

            def fetch(index: Any) -> None:
                scene, some = work.place(index, me)
                for k in range(chunks[0]):
                    columns = pl.ds(k * CHUNK, CHUNK)
                    plgpu.copy_gmem_to_smem(rows_in.at[scene, some, columns], tile.at[k], rows_here.at[me])

            def run_layer(index: Any, layer: Any, num_chunks: int, number: Any) -> None:
                scene, some = work.place(index, me)
                which = _turn(index * num_layers + layer, 2)
                pairs = [lambda slot, k=k: [(tile.at[k], slot)] for k in range(num_chunks)]
                values = ring.multiply(number, pairs, WIDTH)
                plgpu.barrier_wait(bias_here.at[which])
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                word: Any = None
                for k in range(WIDTH // CHUNK):
                    one_row = _load(bias.at[which, pl.ds(k * CHUNK, CHUNK)], plgpu.Layout.WGMMA.reduce(0))
                    some_values = _columns(values, k * CHUNK, CHUNK)
                    some_values = some_values + lax.broadcast_in_dim(one_row, some_values.shape, (1,))
                    if keep:
                        word = _pack(some_values, word)
                    tile[k] = jnp.maximum(some_values, 0.0).astype(jnp.bfloat16)
                plgpu.commit_smem()
                plgpu.barrier_arrive(bias_free.at[which])
                if keep:
                    kept[-1].at[scene, layer, some, :][...] = word
                    for one, target in enumerate(kept[:-1]):
                        pl.when(layer == one)(lambda target=target: _store(tile, target.at[scene, some, :]))

            fetch(0)

            @pl.loop(0, num_items)
            def _(index: Any) -> None:
                number = index * slices
                plgpu.barrier_wait(rows_here.at[me])
                run_layer(index, jnp.int32(0), chunks[0], number)
                number += chunks[0]

                @pl.loop(1, num_layers)  # unrolled it would need more registers than there are
                def _(layer: Any) -> None:
                    run_layer(index, layer, WIDTH // CHUNK, number + (layer - 1) * (WIDTH // CHUNK))

                number += (num_layers - 1) * (WIDTH // CHUNK)
                scene, some = work.place(index, me)
                outputs.at[scene, some, :][...] = ring.multiply(number, [functools.partial(_head, tile)], _STRIPE)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                pl.when(index + 1 < num_items)(lambda: fetch(index + 1))

            plgpu.wait_smem_to_gmem(0)

    outputs, *kept = _call(
        lambda rows, weights, biases, outputs, *kept, **scratch: body(rows, weights, biases, outputs, kept, **scratch),
        out_type,
        scratch,
        "network_forward",
        grid=(work.blocks,),
        grid_names=("block",),
    )(rows, weights, biases)
    outputs = outputs[:, :num_rows]
    return (outputs, kept[:-1], kept[-1]) if keep else outputs


def _head(tile: Any, slot: Any) -> list[tuple[Any, Any]]:
    """Operands of the head's matmul, of which the ring's slice holds the transpose in its first rows."""
    return [
        (tile.at[k], slot.at[pl.ds(0, _STRIPE), pl.ds(k * CHUNK, CHUNK)].transpose((1, 0)))
        for k in range(WIDTH // CHUNK)
    ]


def _pack(values: Any, word: Any) -> Any:
    """Shifts the signs of a chunk's values into `word` [64, 8], which begins as None."""
    for j in range(CHUNK // _STRIPE):
        part = lax.bitcast_convert_type(_columns(values, j * _STRIPE, _STRIPE), jnp.int32)
        sign = lax.shift_right_logical(part, jnp.full_like(part, 31))
        word = sign if word is None else lax.shift_left(word, jnp.full_like(part, 1)) | sign
    return word


def _unpack(values: Any, chunk: int, word: Any) -> Any:
    """Returns a chunk's values, zero where the bits of `word` are set."""
    parts = []
    for j in range(CHUNK // _STRIPE):
        part = _columns(values, chunk * CHUNK + j * _STRIPE, _STRIPE)
        bit = np.left_shift(1, 31 - (chunk * (CHUNK // _STRIPE) + j), dtype=np.int32)
        parts.append(jnp.where(word & bit == 0, part, 0.0))
    return lax.concatenate(parts, 1)


def _launch_backward(gradient: Array, weights: Array, cut: Array) -> list[Array]:
    num_scenes, num_rows, _ = gradient.shape
    num_layers = cut.shape[1]
    work = _Work(num_scenes, num_rows)
    head = weights.shape[1] - CHUNK - WIDTH  # its first row
    slices = 1 + (num_layers - 1) * (WIDTH // CHUNK)
    scratch = _Ring.scratch((WIDTH, CHUNK)) | {
        "tiles": _tiled((_CONSUMERS, WIDTH // CHUNK, TILE, CHUNK)),
        "first": _tiled((_CONSUMERS, 1, TILE, CHUNK)),
        "words": plgpu.SMEM((_CONSUMERS, 2, TILE, _STRIPE), jnp.int32),
        "first_here": plgpu.Barrier(num_barriers=_CONSUMERS),
        "words_here": plgpu.Barrier(num_barriers=_CONSUMERS * 2),
    }

    def body(
        gradient_in: Any,
        weights_in: Any,
        cut_in: Any,
        out: Sequence[Any],
        *,
        tiles: Any,
        first: Any,
        words: Any,
        first_here: Any,
        words_here: Any,
        **of_ring: Any,
    ) -> None:
        ring = _Ring(**of_ring)
        me, num_items = lax.axis_index("warpgroup"), work.num_items()

        @pl.when(me == _CONSUMERS)
        def _() -> None:
            plgpu.set_max_registers(40, action="decrease")

            @pl.loop(0, num_items)
            def _(index: Any) -> None:
                scene, _ = work.place(index, 0)
                number = index * slices
                ring.fill(number, weights_in.at[scene, pl.ds(head, WIDTH), pl.ds(0, CHUNK)])
                for step in range(1, num_layers):
                    layer_rows = pl.ds(head - step * WIDTH, WIDTH)
                    for k in range(WIDTH // CHUNK):
                        number += 1
                        ring.fill(number, weights_in.at[scene, layer_rows, pl.ds(k * CHUNK, CHUNK)])

            _drain(ring.free, _RING, num_items * slices)

        @pl.when(me < _CONSUMERS)
        def _() -> None:
            plgpu.set_max_registers(232, action="increase")
            tile = tiles.at[me]

            def fetch(index: Any) -> None:
                scene, some = work.place(index, me)
                plgpu.copy_gmem_to_smem(gradient_in.at[scene, some, :], first.at[me, 0], first_here.at[me])

            def fetch_words(total: Any) -> None:
                """Those of a step back, counted over all items."""

                @pl.when(total < num_items * num_layers)
                def _() -> None:
                    scene, some = work.place(total // num_layers, me)
                    layer = num_layers - 1 - _turn(total, num_layers)
                    which = _turn(total, 2)
                    source = cut_in.at[scene, layer, some, :]
                    plgpu.copy_gmem_to_smem(source, words.at[me, which], words_here.at[me * 2 + which])

            def step_back(index: Any, step: Any, source: Any, num_chunks: int, number: Any) -> None:
                scene, some = work.place(index, me)
                total = index * num_layers + step
                which = _turn(total, 2)
                pairs = [lambda slot, k=k: [(source.at[k], slot.transpose((1, 0)))] for k in range(num_chunks)]
                values = ring.multiply(number, pairs, WIDTH)
                plgpu.barrier_wait(words_here.at[me * 2 + which])
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                word = _load(words.at[me, which], plgpu.Layout.WGMMA, optimized=False)
                for k in range(WIDTH // CHUNK):
                    tile[k] = _unpack(values, k, word).astype(jnp.bfloat16)
                plgpu.commit_smem()
                fetch_words(total + 2)
                for one, target in enumerate(reversed(out)):
                    pl.when(step == one)(lambda target=target: _store(tile, target.at[scene, some, :]))

            fetch(0)
            fetch_words(jnp.int32(0))
            fetch_words(jnp.int32(1))

            @pl.loop(0, num_items)
            def _(index: Any) -> None:
                number = index * slices
                plgpu.barrier_wait(first_here.at[me])
                step_back(index, jnp.int32(0), first.at[me], 1, number)
                pl.when(index + 1 < num_items)(lambda: fetch(index + 1))

                @pl.loop(1, num_layers)
                def _(step: Any) -> None:
                    chunks = WIDTH // CHUNK
                    step_back(index, step, tile, chunks, number + 1 + (step - 1) * chunks)

            plgpu.wait_smem_to_gmem(0)

    out_type = [jax.ShapeDtypeStruct((num_scenes, num_rows, WIDTH), jnp.bfloat16)] * num_layers
    return _call(
        lambda gradient, weights, cut, *out, **scratch: body(gradient, weights, cut, out, **scratch),
        out_type,
        scratch,
        "network_backward",
        grid=(work.blocks,),
        grid_names=("block",),
    )(gradient, weights, cut)


# ---------------------------------------------------------------------------------------- gradients of the weights


class _Slabs(NamedTuple):
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
        return -(-self.slabs // _PAIR) if self.narrow else self.slabs

    @property
    def per_scene(self) -> int:
        return self.first + self.slabs * (self.layers - 1)

    @property
    def pairs(self) -> int:
        return max(1, min(MULTIPROCESSORS // _PAIR, self.per_scene * self.scenes // 4))

    @property
    def parts(self) -> int:
        return max(len(self.layers_of(pair)) for pair in range(self.pairs))

    def start(self, pair: Any) -> Any:
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


def _launch_weight_gradients(*operands: Array) -> tuple[Array, Array]:
    num_layers = len(operands) // 2
    num_scenes, num_rows, num_features = operands[0].shape
    if num_features not in (WIDTH // 2, WIDTH):
        raise ValueError(f"{num_features} inputs of the first layer are neither 128 nor 256")
    work = _Slabs(num_scenes, num_layers, num_features < WIDTH, -(-num_rows // CHUNK))
    half = WIDTH // _PAIR
    parts = (work.pairs, work.parts, _PAIR)
    out_type = [
        jax.ShapeDtypeStruct((*parts, half, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((*parts, _CONSUMERS, TILE, _STRIPE), jnp.float32),
    ]
    scratch = {
        "left": _tiled((_RING, _CONSUMERS, CHUNK, CHUNK)),
        "right": _tiled((_RING, CHUNK, WIDTH)),
        "ones": _tiled((TILE, CHUNK)),
        "full": plgpu.Barrier(num_arrivals=_CONSUMERS + 1, num_barriers=_RING),
        "free": plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=_CONSUMERS, num_barriers=_RING),
        "ones_here": plgpu.Barrier(),
    }

    def body(
        inputs_in: Sequence[Any],
        gradients_in: Sequence[Any],
        kernels_out: Any,
        sums_out: Any,
        *,
        left: Any,
        right: Any,
        ones: Any,
        full: Any,
        free: Any,
        ones_here: Any,
    ) -> None:
        me, block, mine = (lax.axis_index(name) for name in ("warpgroup", "block", "pair"))
        begin, end = work.start(mine), work.start(mine + 1)

        def fetch(index: int, scene: Any, inside: Any, slot: Any) -> None:
            alone = work.narrow and index == 0
            some = pl.ds((inside * _PAIR + block if alone else inside) * CHUNK, CHUNK)
            column = 0 if alone else block * half
            for part in range(_CONSUMERS):
                columns = pl.ds(column + part * CHUNK, CHUNK)
                plgpu.copy_gmem_to_smem(inputs_in[index].at[scene, some, columns], left.at[slot, part], full.at[slot])
            shared: dict[str, Any] = {} if alone else {"collective_axes": "block"}
            plgpu.copy_gmem_to_smem(gradients_in[index].at[scene, some, :], right.at[slot], full.at[slot], **shared)

        @pl.when(me == _CONSUMERS)
        def _() -> None:
            plgpu.set_max_registers(24, action="decrease")

            @pl.loop(0, end - begin)
            def _(number: Any) -> None:
                slot = _turn(number, _RING)
                scene, layer, inside, _ = work.locate(begin + number)
                pl.when(number >= _RING)(lambda: plgpu.barrier_wait(free.at[slot]))
                for index in range(num_layers):
                    pl.when(layer == index)(functools.partial(fetch, index, scene, inside, slot))

            _drain(free, _RING, end - begin)

        @pl.when(me < _CONSUMERS)
        def _() -> None:
            plgpu.set_max_registers(240, action="increase")

            @pl.when(me == 0)
            def _() -> None:
                ones[...] = jnp.ones(ones.shape, jnp.bfloat16)
                plgpu.commit_smem()
                plgpu.barrier_arrive(ones_here)

            plgpu.barrier_wait(ones_here)

            @pl.loop(0, work.parts, init_carry=begin)
            def next_part(part: Any, slab: Any) -> Any:
                left_over = work.locate(slab)[-1]
                stop = lax.min(slab + left_over, end)

                def sum_up(products: Any, sums: Any) -> None:
                    @pl.loop(slab - begin, stop - begin)
                    def _(number: Any) -> None:
                        slot = _turn(number, _RING)
                        plgpu.barrier_wait(full.at[slot])
                        plgpu.wgmma(products, left.at[slot, me].transpose((1, 0)), right.at[slot])
                        # As a matmul: a sum across warps would have to go through shared memory.
                        columns = pl.ds((block * _CONSUMERS + me) * CHUNK, CHUNK)
                        gradients = right.at[slot, :, columns].transpose((1, 0))
                        plgpu.wgmma(sums, gradients, ones.at[pl.ds(0, _STRIPE), :].transpose((1, 0)))
                        plgpu.wgmma_wait(2)
                        pl.when(number > slab - begin)(lambda: plgpu.barrier_arrive(free.at[_turn(number - 1, _RING)]))

                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(free.at[_turn(stop - begin - 1, _RING)])
                    kernels_out.at[mine, part, block, pl.ds(me * TILE, TILE), :][...] = products[...]
                    sums_out.at[mine, part, block, me][...] = sums[...]

                @pl.when(slab < end)
                def _() -> None:
                    accumulators = (
                        plgpu.WGMMAAccumulatorRef((TILE, columns), jnp.float32) for columns in (WIDTH, _STRIPE)
                    )
                    pl.run_scoped(sum_up, *accumulators)

                return stop

    products, sums = _call(
        lambda *refs, **scratch: body(refs[:num_layers], refs[num_layers:-2], *refs[-2:], **scratch),
        out_type,
        scratch,
        "network_weight_gradients",
        grid=(work.pairs,),
        grid_names=("pair",),
        cluster=(_PAIR,),
        cluster_names=("block",),
    )(*operands)
    return _add_parts(work, products, sums)


def _add_parts(work: _Slabs, products: Array, sums: Array) -> tuple[Array, Array]:
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


# ---------------------------------------------------------------------------------------- what all have in common


def _call(
    body: Callable[..., None], out_type: Sequence[Any], scratch: dict[str, Any], name: str, **grid: Any
) -> Callable[..., Any]:
    """Returns the kernel that runs `body(*operands, *results, **scratch)` in three warpgroups of every block."""
    return plgpu.kernel(
        lambda *refs: pl.run_scoped(functools.partial(body, *refs), collective_axes="warpgroup", **scratch),
        out_type=out_type,
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(reduction_scratch_bytes=0),
        num_threads=_CONSUMERS + 1,
        thread_name="warpgroup",
        **grid,
    )


def _tiled(shape: tuple[int, ...]) -> Any:
    """Returns a bfloat16 array in shared memory in the order in which the hardware's matmul reads it."""
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=(plgpu.TilingTransform((8, CHUNK)), plgpu.SwizzleTransform(128)))


def _drain(free: Any, count: int, total: Any) -> None:
    """Waits until the last slots are free: no block may leave while its pair still has to tell it so."""

    @pl.loop(lax.max(total - count, 0), total)
    def _(number: Any) -> None:
        plgpu.barrier_wait(free.at[_turn(number, count)])


def _turn(number: Any, count: int) -> Any:
    return lax.rem(number, jnp.int32(count))


def _store(tile: Any, target: Any) -> None:
    for k in range(tile.shape[0]):
        columns = pl.ds(k * CHUNK, CHUNK)
        plgpu.copy_smem_to_gmem(tile.at[k], target.at[:, columns], commit_group=k + 1 == tile.shape[0])


def _columns(values: Any, start: int, count: int) -> Any:
    return lax.slice(values, (0, start), (TILE, start + count))


def _load(ref: Any, layout: Any, *, optimized: bool = True) -> Any:
    return plgpu.load(ref, layout=layout, optimized=optimized)  # pyright: ignore[reportCallIssue]  # jax 0.10 differs


_forward = _over_scenes(functools.partial(_launch_forward, False), rows_only=True)
_forward_keeping = _over_scenes(functools.partial(_launch_forward, True))
_backward = _over_scenes(_launch_backward)
_weight_gradients = _over_scenes(_launch_weight_gradients)
