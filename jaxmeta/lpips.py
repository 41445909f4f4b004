"""LPIPS: how different two pictures look to a network that knows objects, weighted as people judged.

Version 0.1 of Zhang et al. 2018 (https://arxiv.org/abs/1801.03924) on AlexNet, as the authors' package `lpips` computes
it: the features behind each of five relus are divided by their length over channels; the squares of their differences
are weighted by a linear head, which has no negative weight; then comes the mean over places and the sum over the five.
It is 0 for pictures that are alike; lower is better. The weights are not part of jaxmeta: a file holds them, with the
names of the package's state dict.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmeta import arrayfiles
from jaxmeta.errors import InputError

SMALLEST = 31
"""Pixels along a side: of fewer, AlexNet's second pooling leaves nothing."""
LENGTH_FLOOR = 1e-10
"""Added to the length of a feature, so that none is divided by 0."""
# Mean and standard deviation of a channel of the pictures that AlexNet was trained on, in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class Convolution(NamedTuple):
    """Where a convolution of AlexNet is in the state dict, and what it does; a relu follows."""

    name: str
    shape: tuple[int, int, int, int]
    """Of the kernel: features, channels, height, width."""
    stride: int
    padding: int
    pooled: bool
    """Whether the largest values of 3 x 3 places, 2 apart, go in."""


CONVOLUTIONS = (
    Convolution("net.slice1.0", (64, 3, 11, 11), stride=4, padding=2, pooled=False),
    Convolution("net.slice2.3", (192, 64, 5, 5), stride=1, padding=2, pooled=True),
    Convolution("net.slice3.6", (384, 192, 3, 3), stride=1, padding=1, pooled=True),
    Convolution("net.slice4.8", (256, 384, 3, 3), stride=1, padding=1, pooled=False),
    Convolution("net.slice5.10", (256, 256, 3, 3), stride=1, padding=1, pooled=False),
)


class Layer(NamedTuple):
    """The weights of one convolution, and of the head that judges the features behind it."""

    kernel: Float[Any, "height width channels features"]
    bias: Float[Any, "features"]
    head: Float[Any, "features"]


Weights = tuple[Layer, ...]
"""One layer for each of `CONVOLUTIONS`."""


def read(path: Path) -> Weights:
    """Returns the weights that a safetensors or npz file holds, with the names and shapes of the package's state dict.

    Raises:
      InputError: the file cannot be read, an array is missing or has another shape, or a head has negative weights.
    """
    if not path.is_file():
        raise InputError(f"{path} cannot be read: there is no such file; {_MEND}")
    arrays = arrayfiles.read(path).arrays

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in arrays:
            raise InputError(f"{path} lacks {name!r}; {_MEND}")
        if arrays[name].shape != shape:
            raise InputError(f"{path}: {name!r} is {arrays[name].shape}, wanted {shape}; {_MEND}")
        return arrays[name]

    layers = []
    for index, (name, shape, *_) in enumerate(CONVOLUTIONS):
        kernel, bias = array(f"{name}.weight", shape), array(f"{name}.bias", shape[:1])
        head = array(f"lin{index}.model.1.weight", (1, shape[0], 1, 1))
        if head.min() < 0:
            raise InputError(
                f"{path}: 'lin{index}.model.1.weight' has negative weights, so it was not trained; {_MEND}"
            )
        layers.append(Layer(np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)), bias, head.reshape(-1)))
    return tuple(layers)


_MEND = "make the file from lpips.LPIPS(net='alex'), as the README shows"


def check(shape: tuple[int, ...]) -> None:
    """Refuses images of a height, width and number of channels that AlexNet cannot look at.

    Raises:
      InputError: says what is wanted.
    """
    height, width, channels = shape
    if channels != 3:
        raise InputError(f"--lpips-weights wants pictures of 3 channels, this run shows {channels}; drop the flag")
    if min(height, width) < SMALLEST:
        raise InputError(
            f"--lpips-weights wants pictures of {SMALLEST} x {SMALLEST} pixels or more, what is scored has "
            f"{height} x {width}; score larger ones, or drop the flag"
        )


def distance(
    weights: Weights, image: Float[Array, "height width 3"], target: Float[Array, "height width 3"]
) -> Float[Array, ""]:
    """Returns the LPIPS of two pictures whose colours are in [0, 1]; each side has `SMALLEST` pixels or more."""
    both = (2 * jnp.stack([image, target]) - 1 - _SHIFT) / _SCALE
    total = jnp.zeros(())
    for layer, convolution in zip(weights, CONVOLUTIONS, strict=True):
        both = _behind_relu(layer, convolution, both)
        length = jnp.sqrt(jnp.sum(jnp.square(both), axis=-1, keepdims=True))
        first, second = both / (length + LENGTH_FLOOR)
        total += jnp.mean(jnp.sum(layer.head * jnp.square(first - second), axis=-1))
    return total


def _behind_relu(
    layer: Layer, convolution: Convolution, images: Float[Array, "images rows columns channels"]
) -> Float[Array, "images fewer_rows fewer_columns features"]:
    if convolution.pooled:
        images = jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    convolved = jax.lax.conv_general_dilated(
        images,
        jnp.asarray(layer.kernel),
        window_strides=(convolution.stride,) * 2,
        padding=[(convolution.padding, convolution.padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return jax.nn.relu(convolved + layer.bias)
