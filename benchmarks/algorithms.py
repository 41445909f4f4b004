"""Counts what a scene's meta-gradient costs by each algorithm: operations and memory, as XLA has them.

    python benchmarks/algorithms.py

Network, rays and samples are those of the preset `original`; nothing is run.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from measuring import read_flags
from step_time import StepConfig, settings_for

from jaxmeta import assembly
from jaxmeta.cameras import Views
from jaxmeta.errors import run_command
from jaxmeta.metalearning import Keys


@dataclasses.dataclass(frozen=True)
class AlgorithmsConfig:
    """Count what a scene's meta-gradient costs by each algorithm."""


def main() -> None:
    """Prints a row of a table for each algorithm."""
    read_flags(AlgorithmsConfig)
    print("| algorithm | GFLOP an inner step | GFLOP besides | MiB |\n|---|---|---|---|")
    for algorithm in ("reptile", "fomaml", "maml", "meta-sgd"):
        once, twice = (costs(algorithm, num_steps=steps, unroll=steps)[0] for steps in (1, 2))
        memory = costs(algorithm, num_steps=32, unroll=1)[1]
        print(f"| {algorithm} | {twice - once:.1f} | {2 * once - twice:.1f} | {memory:.0f} |", flush=True)


def costs(algorithm: str, *, num_steps: int, unroll: int) -> tuple[float, float]:
    """Returns GFLOP, where a loop counts as its body, and MiB of temporaries of one scene's meta-gradient."""
    # Not in blocks of rays, as on a CPU: XLA would count one of them.
    config = settings_for(StepConfig(implementation="xla"))
    config = dataclasses.replace(
        config,
        inner=dataclasses.replace(config.inner, num_steps=num_steps, unroll=unroll),
        outer=dataclasses.replace(config.outer, algorithm=algorithm),
    )
    signal = assembly.assemble(config, size=(128, 128), num_rays=config.inner.num_rays)
    start = assembly.first_initialisation(config, signal.init(jax.random.key(0)))
    scene = Views(jnp.zeros((25, 128, 128, 4), jnp.uint8), jnp.zeros((25, 4, 4)), jnp.float32(178.0))
    keys = Keys(jax.random.split(jax.random.key(0), num_steps), jax.random.key(1))
    scene_gradient = assembly.scene_gradient(config, signal.loss, signal.loss)
    compiled: Any = jax.jit(scene_gradient).lower(start, scene, keys).compile()
    return compiled.cost_analysis()["flops"] / 1e9, compiled.memory_analysis().temp_size_in_bytes / 2**20


if __name__ == "__main__":
    run_command(main)
