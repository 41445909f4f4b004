"""Builds from a config the functions that training, evaluation and the benchmarks share."""

from functools import partial

import jax

from jaxmeta import metalearning, optimisers
from jaxmeta.config import TrainConfig
from jaxmeta.errors import InputError
from jaxmeta.kinds.views import ViewsConfig
from jaxmeta.metalearning import Initialisation, LossFn, MetaState, Params, SceneGradientFn
from jaxmeta.signals import Signal

_ALGORITHMS = {
    "reptile": metalearning.reptile,
    "fomaml": metalearning.fomaml,
    "maml": metalearning.maml,
    "meta-sgd": metalearning.maml,  # of a state that holds step sizes
}
_SECOND_ORDER = ("maml", "meta-sgd")


def assemble(config: TrainConfig, *, size: tuple[int, int], num_rays: int | None) -> Signal:
    """Returns the functions of the signals that a config describes.

    Args:
      config: of the run.
      size: height and width of what is seen of a scene, in pixels.
      num_rays: drawn in each inner step; None for all.
    """
    twice = config.outer.algorithm in _SECOND_ORDER
    signal = config.signal.assemble(size=size, num_rays=num_rays, twice=twice)
    # As one program: compiled operation by operation, it takes a GPU seconds.
    return signal._replace(init=jax.jit(signal.init))


def views_config(config: TrainConfig) -> ViewsConfig:
    """Returns what a config says of scenes seen in views.

    Raises:
      InputError: the run is of another kind of signal.
    """
    if not isinstance(config.signal, ViewsConfig):
        raise InputError(f"{config.run} is a run of {config.signal.kind}; this is for scenes seen in views")
    return config.signal


def scene_gradient(config: TrainConfig, loss: LossFn, query_loss: LossFn) -> SceneGradientFn:
    """Returns the configured algorithm on scenes that these losses judge; `reptile` tells what each is for."""
    return partial(
        _ALGORITHMS[config.outer.algorithm],
        loss,
        query_loss,
        optimisers.inner_optimiser(config.inner.optimiser, config.inner.step_size),
        unroll=config.inner.unroll,
    )


def first_state(config: TrainConfig, params: Params) -> MetaState:
    """Returns the state before the first meta-step."""
    optimiser = optimisers.outer_optimiser(config.outer)
    return jax.jit(partial(metalearning.initial_state, optimiser=optimiser))(first_initialisation(config, params))


def first_initialisation(config: TrainConfig, params: Params) -> Initialisation:
    """Returns parameters, with step sizes if the configured algorithm learns them."""
    if config.outer.algorithm != "meta-sgd":
        return params
    wanted = config.outer.step_sizes
    num_steps = config.inner.num_steps if wanted.per_step else None
    return metalearning.with_step_sizes(params, granularity=wanted.granularity, num_steps=num_steps)
