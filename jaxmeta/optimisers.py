"""The optimisers of the inner and the outer loop, as a config names them."""

from typing import Any

import jax
import optax

from jaxmeta.config import OuterConfig
from jaxmeta.metalearning import Learned
from jaxmeta.signals import Optimiser

# Under the root of Adam's second moment: a gradient of exactly zero has no derivative otherwise. Far below any gradient
# that counts.
_ADAM_EPS_ROOT = 1e-12


def inner_optimiser(name: Optimiser, step_size: float) -> optax.GradientTransformation:
    """Returns the optimiser of an inner loop."""
    return optax.sgd(step_size) if name == "sgd" else optax.adam(step_size, eps_root=_ADAM_EPS_ROOT)


def outer_optimiser(config: OuterConfig) -> optax.GradientTransformation:
    """Returns Adam with the configured schedule and clipping; for meta-sgd, of a `Learned`.

    The norm that is clipped is that of the whole meta-gradient.
    """
    if config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup_steps else config.learning_rate,
            config.learning_rate,
            config.warmup_steps,
            config.num_steps,
        )
    else:
        rate = optax.warmup_constant_schedule(
            0.0 if config.warmup_steps else config.learning_rate, config.learning_rate, config.warmup_steps
        )
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    parts.append(optax.adam(rate))
    if config.algorithm == "meta-sgd":
        parts.append(_scale_step_sizes(config.step_sizes.learning_rate / config.learning_rate))
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def _scale_step_sizes(factor: float) -> optax.GradientTransformation:
    """Returns a transformation that leaves the parameters' updates and scales those of the step sizes."""

    def scale(updates: Any, params: Any) -> Any:
        del params
        return Learned(updates.params, jax.tree.map(lambda update: factor * update, updates.step_sizes))

    return optax.stateless(scale)
