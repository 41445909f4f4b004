"""Many scenes' networks, each with its own weights, as kernels for NVIDIA's Hopper GPUs.

XLA takes two or three passes over memory for each layer. Here `forward` keeps a tile of rows on the chip from the
encoding to the head. Backward there are two ways, of which `network` takes the faster: for few points `backward` takes
a tile through all layers and `weight_gradients` multiplies what the layers were given by what came back, two launches
in all; for many `layerwise` does both for one layer after another. Operands are bfloat16, sums float32.

Written in Pallas for its Mosaic GPU backend. Blocks of threads live as long as the kernel and take pieces of work in
turn. In each, one warpgroup copies weights or rows into a ring of buffers in shared memory, and two multiply; in
`layer_pass` the one that copies goes through the head as well, or one or two more encode points. benchmarks/kernels.md
tells what was tried.

Shapes: rows are samples of rays, a multiple of 8 of them; columns of the encoding are 128 or 256; of `stacked` weights
see `layers.stack`.
"""
