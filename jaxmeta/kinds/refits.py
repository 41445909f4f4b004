"""Fits scenes of an evaluation once more, in other ways, for pictures."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxmeta.evaluation import make_adapt
from jaxmeta.metalearning import Params
from jaxmeta.signals import Evaluated


def refit(
    done: Evaluated, names: Iterable[str], scenes: Int[np.ndarray, "scenes"], support: Any, *, num_steps: int
) -> dict[str, Params]:
    """Returns the parameters that each initialisation reaches, along a leading axis of scenes.

    A picture needs few scenes: they share no devices.

    Args:
      done: the evaluation.
      names: of initialisations.
      scenes: numbers of scenes of the split.
      support: of these scenes, along the leading axis.
      num_steps: of the inner loop.
    """
    mesh = jax.make_mesh((1,), ("scenes",), axis_types=done.mesh.axis_types, devices=jax.local_devices()[:1])
    adapt = make_adapt(done.signal.loss, done.optimiser, mesh, stages=[num_steps])
    keys = jax.random.split(jax.random.key(done.seed), len(scenes))
    adapted = {name: adapt(jax.device_get(done.initialisations[name]), support, keys) for name in names}
    return jax.tree.map(lambda leaf: leaf[:, 0], adapted)
