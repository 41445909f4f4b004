"""Coordinate networks as stateless flax modules: `module.init(key, points)`, `module.apply(params, points)`."""

from typing import Any, Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxmeta.encoding import positional_encoding

DensityActivation = Literal["relu", "shifted_softplus"]

_DENSITY_ACTIVATIONS = {
    "relu": nn.relu,
    # Barron et al. 2021, section 3: never exactly zero, so a field that became transparent can still learn.
    "shifted_softplus": lambda x: nn.softplus(x - 1.0),
}


def activate(
    outputs: Float[Array, "*points 4"], density_activation: DensityActivation
) -> tuple[Float[Array, "*points"], Float[Array, "*points 3"]]:
    """Returns the density and the rgb that the network's last layer stands for."""
    return _DENSITY_ACTIVATIONS[density_activation](outputs[..., 3]), nn.sigmoid(outputs[..., :3])


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
            features = nn.relu(_dense(features, self.width, dtype, points.dtype))
        outputs = _dense(features, 4, dtype, points.dtype).astype(points.dtype)
        return activate(outputs, self.density_activation)


def _dense(features: Float[Array, "*points inputs"], width: int, dtype: Any, param_dtype: Any) -> Array:
    """Applies a new linear layer of the module that is being built."""
    bound = features.shape[-1] ** -0.5

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    layer = nn.Dense(width, dtype=dtype, param_dtype=param_dtype, kernel_init=uniform, bias_init=uniform)
    return layer(features)
