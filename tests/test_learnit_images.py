"""The image network of the paper's authors, in our hands, fits the photograph that they give as theirs does.

`learnit_celeba_siren.npz` holds their meta-learned SIREN (kernels of layers 1 to 4 times 200, in half precision, which
moves the PSNR by less than 0.0003 dB), the photograph, and the PSNR that float64 gives after 0 to 5 steps.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta.kinds.images import ImagesConfig
from jaxmeta.metalearning import adapt
from jaxmeta.samples import Samples, grid_points

FILE = Path(__file__).parent / "learnit_celeba_siren.npz"


def psnr_by_step(num_steps: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """The PSNR after 0 to so many steps, and what it should be."""
    with np.load(FILE) as file:
        content = dict(file)
    layers = {
        f"Dense_{i}": {
            "kernel": jnp.asarray(content[f"kernel_{i}"].astype(dtype) / (200 if i else 1)),
            "bias": jnp.asarray(content[f"bias_{i}"], dtype),
        }
        for i in range(5)
    }
    preset = ImagesConfig()
    signal = preset.assemble(size=(178, 178), num_rays=None)
    # 0, 1/178, .., as theirs: linspace(0, 1, 179)[:-1].
    photograph = Samples(jnp.asarray(grid_points(178, 178), dtype), jnp.asarray(content["image"]))
    keys = jax.random.split(jax.random.key(0), num_steps)
    optimiser = optax.sgd(1e-2)
    adapted = jax.jit(lambda params: adapt(signal.loss, optimiser, params, photograph, keys))({"params": layers})
    losses = np.append(adapted.losses, jax.jit(signal.loss)(adapted.params, photograph, keys[0]))
    return -10 * np.log10(losses), content["psnr_by_step"][: num_steps + 1]


def test_one_step():
    found, wanted = psnr_by_step(1, np.float32)
    assert wanted[1] > 25
    np.testing.assert_allclose(found, wanted, atol=0.01)


@pytest.mark.slow
def test_five_steps_in_float64(x64):
    found, wanted = psnr_by_step(5, np.float64)
    assert len(wanted) == 6
    np.testing.assert_allclose(found, wanted, atol=0.01)
