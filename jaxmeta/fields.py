"""Coordinate networks as stateless flax modules: `module.init(key, points)`, `module.apply(params, points)`."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmeta.encoding import gaussian_encoding, positional_encoding
from jaxmeta.sines import sine_and_cosine

DensityActivation = Literal["relu", "shifted_softplus"]
OUTPUTS = 4
"""Of a radiance field's last layer: red, green, blue and density."""

_DENSITY_ACTIVATIONS = {
    "relu": nn.relu,
    # Barron et al. 2021, section 3: never exactly zero, so a field that became transparent can still learn.
    "shifted_softplus": lambda x: nn.softplus(x - 1.0),
}


def activate(
    outputs: Float[Array, "4 *points"], density_activation: DensityActivation
) -> tuple[Float[Array, "*points"], Float[Array, "*points 3"]]:
    """Returns the density and the rgb that the network's last layer stands for."""
    return _DENSITY_ACTIVATIONS[density_activation](outputs[3]), jnp.moveaxis(nn.sigmoid(outputs[:3]), 0, -1)


class Dense(nn.Module):
    """flax's layer of that name, but the bias gradient is summed up in the bias's dtype, not in that of the matmul."""

    width: int
    dtype: Any
    param_dtype: Any
    kernel_init: Any
    bias_init: Any = nn.initializers.zeros
    precision: Any = None

    @nn.compact
    def __call__(self, features: Float[Array, "*points inputs"]) -> Float[Array, "*points outputs"]:
        """Returns the layer's sums."""
        kernel = self.param("kernel", self.kernel_init, (features.shape[-1], self.width), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.width,), self.param_dtype)
        products = jnp.matmul(features.astype(self.dtype), kernel.astype(self.dtype), precision=self.precision)
        return products + jnp.broadcast_to(bias, products.shape).astype(self.dtype)


class RadianceField(nn.Module):
    """Maps points of a scene to volume density and colour, without view dependence (Tancik et al. 2021, section 4.3).

    Weights and biases start uniform in `+-1 / sqrt(fan_in)`, as in the original implementation.

    Attributes:
      width: features of each hidden layer.
      depth: number of hidden layers, each followed by a relu.
      num_frequencies: of the positional encoding.
      max_log2_frequency: of the positional encoding.
      density_activation: "relu" as in the paper, which can die into an empty scene, or "shifted_softplus".
      compute_dtype: of the matmuls' operands; None takes the dtype of the points. Parameters, the encoding and both
        outputs keep the dtype of the points.
    """

    width: int = 256
    depth: int = 5
    num_frequencies: int = 20
    max_log2_frequency: float = 8.0
    density_activation: DensityActivation = "shifted_softplus"
    compute_dtype: Any = None

    @nn.compact
    def __call__(self, points: Float[Array, "*points 3"]) -> tuple[Float[Array, "*points"], Float[Array, "*points 3"]]:
        """Returns the density, per unit of distance, and the rgb in [0, 1] at each point."""
        dtype = self.compute_dtype or points.dtype
        features = positional_encoding(
            points, num_frequencies=self.num_frequencies, max_log2_frequency=self.max_log2_frequency
        ).astype(dtype)
        for _ in range(self.depth):
            start = _within(features.shape[-1] ** -0.5)
            features = nn.relu(Dense(self.width, dtype, points.dtype, start, start)(features))
        start = _within(features.shape[-1] ** -0.5)
        outputs = Dense(OUTPUTS, dtype, points.dtype, start, start)(features)
        return activate(jnp.moveaxis(outputs.astype(points.dtype), -1, 0), self.density_activation)


class Siren(nn.Module):
    """Maps coordinates to values through sines (Sitzmann et al. 2020), with the settings of Tancik et al. 2021.

    Each hidden layer is `sin(w0 (x W + b))`; the last is linear, plus 0.5. Kernels start uniform, in `+-1 / inputs` in
    the first layer and in `+-sqrt(6 / inputs) / w0` in the others; biases start at zero.

    Attributes:
      features: values at each point.
      width: features of each hidden layer.
      depth: number of hidden layers.
      w0: radians per unit of a hidden layer's sum.
      compute_dtype: of the matmuls' operands after the first layer; None takes the dtype of the coordinates, and
        then no hardware rounds them.
    """

    features: int = 3
    width: int = 256
    depth: int = 4
    w0: float = 200.0
    compute_dtype: Any = None

    @nn.compact
    def __call__(self, coordinates: Float[Array, "*points dimensions"]) -> Float[Array, "*points features"]:
        """Returns the values at each point; 0 to 1 is the range of an image, but nothing holds them in it."""
        dtype, inputs = coordinates.dtype, coordinates.shape[-1]
        # Phases of the first layer reach w0 radians: on a GPU, TF32 would shift them by a tenth.
        sums = Dense(self.width, dtype, dtype, _within(1 / inputs), precision="highest")(coordinates)
        start = _within((6 / self.width) ** 0.5 / self.w0)
        precision = "highest" if self.compute_dtype is None else None
        for width in (*[self.width] * (self.depth - 1), self.features):
            sines, _ = sine_and_cosine(self.w0 * sums.astype(dtype))
            hidden = sines.astype(self.compute_dtype or dtype)
            sums = Dense(width, hidden.dtype, dtype, start, precision=precision)(hidden)
        return sums.astype(dtype) + 0.5


class FourierMLP(nn.Module):
    """Maps coordinates to values in [0, 1] through Gaussian Fourier features (Tancik et al. 2020) and relus.

    The frequencies are drawn with the parameters and kept among them, so that an initialisation is complete, but no
    gradient moves them. Kernels start as a normal distribution of deviation `1 / sqrt(inputs)`, cut off at two
    deviations; biases start at zero.

    Attributes:
      features: values at each point.
      width: features of each hidden layer.
      depth: number of hidden layers, each followed by a relu; a sigmoid ends the last one.
      num_frequencies: of the encoding.
      frequency_scale: the frequencies' standard deviation, in radians per unit of the coordinates.
      compute_dtype: of the matmuls' operands; None takes the dtype of the coordinates.
    """

    features: int = 1
    width: int = 256
    depth: int = 4
    num_frequencies: int = 256
    frequency_scale: float = 30.0
    compute_dtype: Any = None

    @nn.compact
    def __call__(self, coordinates: Float[Array, "*points dimensions"]) -> Float[Array, "*points features"]:
        """Returns the values at each point."""
        dtype = self.compute_dtype or coordinates.dtype
        shape = (coordinates.shape[-1], self.num_frequencies)
        frequencies = self.param("frequencies", nn.initializers.normal(self.frequency_scale), shape, coordinates.dtype)
        hidden = gaussian_encoding(coordinates, jax.lax.stop_gradient(frequencies)).astype(dtype)
        for _ in range(self.depth):
            hidden = nn.relu(Dense(self.width, dtype, coordinates.dtype, _cut_normal(hidden))(hidden))
        outputs = Dense(self.features, dtype, coordinates.dtype, _cut_normal(hidden))(hidden)
        return nn.sigmoid(outputs.astype(coordinates.dtype))


def _within(bound: float) -> Any:
    """Returns an initialiser that draws uniformly from `+-bound`."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _cut_normal(features: Array) -> Any:
    """Returns an initialiser for a kernel that these features meet."""
    return nn.initializers.truncated_normal(features.shape[-1] ** -0.5)
