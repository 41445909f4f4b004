"""Finds what a training starts from: random weights, or a network that was learned before."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmeta import assembly, configfiles, initialisations
from jaxmeta.config import TrainConfig
from jaxmeta.errors import InputError
from jaxmeta.loading import load_initialisation
from jaxmeta.metalearning import Learned, MetaState, Params


def beginning(settings: TrainConfig, init: Callable[[Array], Params]) -> Callable[[], MetaState]:
    """Returns a function that makes the state before the first meta-step, and only compiles and computes.

    Of a run that has begun, where the state's shape alone counts, it makes any.

    Args:
      settings: of the run; `start_from` says where its network comes from.
      init: draws the standard initialisation from a key.

    Raises:
      InputError: the network to start from cannot be read, or is another one than the run's.
      CheckpointError: the run to start from has no usable checkpoint.
    """
    has_begun = any((settings.run / "checkpoints").glob("[0-9]*"))
    if settings.start_from is not None and not has_begun:
        return partial(assembly.first_state, settings, _learned(settings.start_from, settings))
    return lambda: assembly.first_state(settings, init(jax.random.key(settings.seed)))


def _learned(source: Path, settings: TrainConfig) -> Params:
    """Returns the network of a run's newest sound checkpoint or of a file; learned step sizes stay behind."""
    if not source.exists():
        raise InputError(f"--start-from {source} is not there; give the folder of a run, or an exported file")
    if source.is_dir():
        theirs = configfiles.load(source / "config.json")
        _check_same_network(source, theirs, settings)
        learned = load_initialisation(source, theirs)[1]
    else:
        content = initialisations.read(source)
        _check_same_network(source, content.settings, settings)
        learned = jax.tree.map(jnp.asarray, content.params)
    return learned.params if isinstance(learned, Learned) else learned


def _check_same_network(source: Path, theirs: TrainConfig, settings: TrainConfig) -> None:
    different = [
        line
        for line in configfiles.differences(theirs, settings)
        if line.startswith("field.") and not line.startswith("field.compute_dtype")
    ]
    if different:
        raise InputError(f"--start-from {source} holds another network than this run's ({'; '.join(different)})")
