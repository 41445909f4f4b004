"""The hidden layers of many scenes' networks, each with its own weights, as three kernels for NVIDIA's Hopper GPUs.

`forward` runs all layers, `backward` takes the gradient back through all of them, `weight_gradients` multiplies what
the layers were given by what came back. XLA takes two or three passes over memory for each layer; here the rows stay on
the chip from the first layer to the last, and only what another kernel needs is written. Operands are bfloat16, sums
float32.

Written in Pallas for its Mosaic GPU backend. Blocks of threads live as long as the kernel and take pieces of work in
turn. In each, one warpgroup copies weights, or in `weight_gradients` rows, into a ring of buffers in shared memory, and
two multiply. benchmarks/kernels.md tells what was tried.

Shapes: rows are samples of rays, a multiple of 8 of them; `features` is 128 or 256; of `stacked` weights see
`layers.stack`.
"""
