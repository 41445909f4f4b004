"""Loads what a run learned."""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmeta import assembly, checkpoints, devices
from jaxmeta.config import TrainConfig
from jaxmeta.errors import CheckpointError
from jaxmeta.metalearning import Initialisation


def load_initialisation(
    run: Path, settings: TrainConfig, checkpoint: Literal["latest", "best"] = "latest"
) -> tuple[int, Initialisation]:
    """Returns the meta-step of a run and the initialisation that it learned, on the first device.

    Args:
      run: its folder.
      settings: its config.
      checkpoint: which state: the newest, or the one with the best validation.

    Raises:
      CheckpointError: there is none that can be used.
    """
    folder = run / ("best" if checkpoint == "best" else "checkpoints")
    if checkpoint == "best" and not folder.is_dir():
        raise CheckpointError(
            f"{folder} holds no state with the best validation, as that of a run which was imported or not validated; "
            "drop --checkpoint best"
        )
    init = assembly.assemble(settings, size=(1, 1), num_rays=1).init
    like = jax.eval_shape(lambda key: assembly.first_state(settings, init(key)), jax.random.key(0))
    with checkpoints.open_checkpoints(run, folder.name, read_only=True) as saved:
        found = checkpoints.restore(saved, like=like, sharding=devices.replicated(devices.scene_mesh()))
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint yet; let train.py go on, or run it first")
    return int(found.state.step), jax.tree.map(jnp.asarray, jax.device_get(found.state.params))


def imported_from(run: Path) -> str | None:
    """Returns in words what the initialisation of a run was imported from; None where train.py learned it."""
    with checkpoints.open_checkpoints(run, read_only=True) as saved:
        return checkpoints.newest_meta(saved).get("imported")
