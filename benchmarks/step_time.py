"""Measures what a meta-step costs, by scenes at once.

    python benchmarks/step_time.py --batches 1 4 16 64
    python benchmarks/step_time.py --kernels 20             on GPUs, also the kernels that take longest
    python benchmarks/step_time.py --small                  on a CPU, in a minute

Prints a row for each batch and one line of JSON: milliseconds per scene-iteration (one scene through the inner loop),
useful TFLOP/s (matmuls counted, see `measuring.inner_step_operations`), their share of what one large matmul reaches in
the same process, seconds of compilation, and the temporary memory of the compiled program on one device. On GPUs also
what a meta-step takes of them: the milliseconds in kernels on the fastest and on the slowest device, and in collectives
on the device that waits least.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from measuring import (
    SIZE,
    inner_step_operations,
    is_collective,
    kernel_seconds,
    matmul_ceiling,
    median_seconds,
    noise_views,
    original_milliseconds,
    read_flags,
    tell,
)

from jaxmeta import devices, optimisers, training
from jaxmeta.assembly import assemble, first_state, scene_gradient
from jaxmeta.config import TrainConfig
from jaxmeta.errors import InputError, run_command
from jaxmeta.kinds.views import ViewsConfig
from jaxmeta.presets import PRESETS
from jaxmeta.words import counted


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Measure what a meta-step costs."""

    preset: str = "original"
    """Settings of the network, the rays and the inner loop; `dtype` has its own."""
    batches: tuple[int, ...] = (1, 4, 16)
    """Scenes at once, over all devices."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matmuls' operands."""
    implementation: Literal["auto", "xla", "fused"] = "auto"
    """Of the network."""
    num_steps: int = 10
    """Meta-steps in one go."""
    unroll: int = 1
    """Inner steps in the compiled loop's body."""
    kernels: int | None = None
    """How many of the first GPU's kernels to tell, with their microseconds in an inner step; None for none."""
    small: bool = False
    """A network, rays and samples that a CPU does in seconds."""
    original: Path | None = None
    """Timing script of an original implementation, run in turns with ours at batch 1."""
    turns: int = 3
    """How often the two are run in turns."""


def main() -> None:
    """Measures what the command line asks for."""
    wanted = read_flags(StepConfig)
    if wanted.original and not wanted.original.is_file():
        raise InputError(f"--original {wanted.original}: no such file")
    if wanted.kernels and jax.default_backend() != "gpu":
        raise InputError(f"--kernels {wanted.kernels} tells the kernels of a GPU, and there is none; drop it")
    settings = settings_for(wanted)
    ceiling = matmul_ceiling(1024 if jax.default_backend() == "cpu" else 8192)
    rows = []
    for num_scenes in wanted.batches:
        row, call = measure(wanted, settings, num_scenes, ceiling)
        by_kernel = [{name: spent / wanted.num_steps for name, spent in each.items()} for each in kernel_seconds(call)]
        rows.append(row | in_kernels(by_kernel))
        if wanted.kernels:
            print(f"{counted(num_scenes, 'scene')}, us in an inner step on the first GPU:")
            for name, spent in sorted(by_kernel[0].items(), key=lambda entry: -entry[1])[: wanted.kernels]:
                print(f"{1e6 * spent / settings.inner.num_steps:10.2f}  {name}")
    about: dict[str, Any] = {"benchmark": "step_time", "preset": wanted.preset, "ceiling TFLOP/s": ceiling / 1e12}
    about |= {"implementation": wanted.implementation}
    tell(rows, about)
    if wanted.original:
        tell(in_turns(wanted, settings, ceiling, wanted.original), about | {"original": wanted.original.name})


def settings_for(wanted: StepConfig) -> TrainConfig:
    """Returns the preset with the wanted changes."""
    of_views = [name for name, (_, preset) in PRESETS.items() if isinstance(preset.signal, ViewsConfig)]
    if wanted.preset not in of_views:
        raise InputError(f"--preset {wanted.preset} is not one of {', '.join(of_views)}")
    settings = PRESETS[wanted.preset][1]
    kind: Any = settings.signal
    field = dataclasses.replace(kind.field, compute_dtype=wanted.dtype, implementation=wanted.implementation)
    sampling, inner = kind.sampling, dataclasses.replace(settings.inner, unroll=wanted.unroll)
    if wanted.small:
        field = dataclasses.replace(field, width=32, depth=2)
        sampling = dataclasses.replace(sampling, num_samples=16)
        inner = dataclasses.replace(inner, num_rays=32, num_steps=4)
    kind = dataclasses.replace(kind, field=field, sampling=sampling)
    return dataclasses.replace(settings, signal=kind, inner=inner)


def measure(
    wanted: StepConfig, settings: TrainConfig, num_scenes: int, ceiling: float
) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Returns the row of one batch size, and what takes its meta-steps once more."""
    mesh = devices.scene_mesh()
    signal = assemble(settings, size=(SIZE, SIZE), num_rays=settings.inner.num_rays)
    steps: Any = training.make_train_steps(
        scene_gradient(settings, signal.loss, signal.loss),
        optimisers.outer_optimiser(settings.outer),
        mesh,
        seed=0,
        num_inner_steps=settings.inner.num_steps,
        scenes_at_once=settings.outer.scenes_at_once,
    )
    views = devices.put(noise_views(max(num_scenes, mesh.size)), devices.replicated(mesh))
    state = devices.put(first_state(settings, signal.init(jax.random.key(0))), devices.replicated(mesh))
    padded = devices.padded_size(num_scenes, mesh)
    batches = jnp.asarray(np.resize(np.arange(num_scenes), (wanted.num_steps, padded)), jnp.int32)
    began = time.perf_counter()
    compiled = steps.lower(state, batches, views).compile()
    compile_seconds = time.perf_counter() - began

    def call() -> Any:
        return compiled(state, batches, views)

    seconds = median_seconds(call) / (wanted.num_steps * padded)
    rate = inner_step_operations(settings) * settings.inner.num_steps / seconds / mesh.size
    row = {
        "scenes": num_scenes,
        "devices": mesh.size,
        "ms per scene": 1e3 * seconds,
        "TFLOP/s": rate / 1e12,
        "of ceiling": rate / ceiling,
        "compile s": compile_seconds,
        "temporary GiB": compiled.memory_analysis().temp_size_in_bytes / 2**30,
    }
    return row, call


def in_kernels(by_kernel: list[dict[str, float]]) -> dict[str, float]:
    """Returns what a row tells of a meta-step's seconds in each kernel of each GPU; nothing without a GPU."""
    if not by_kernel:
        return {}
    shared = [sum(spent for name, spent in each.items() if is_collective(name)) for each in by_kernel]
    own = [sum(each.values()) - collective for each, collective in zip(by_kernel, shared, strict=True)]
    return {
        "ms in kernels, fastest": 1e3 * min(own),
        "slowest": 1e3 * max(own),
        "ms in collectives": 1e3 * min(shared),
    }


def in_turns(wanted: StepConfig, settings: TrainConfig, ceiling: float, script: Path) -> list[dict[str, Any]]:
    """Returns a row for each turn: ours and the original's milliseconds per scene-iteration, and how much faster."""
    rows = []
    for turn in range(wanted.turns):
        ours = measure(wanted, settings, 1, ceiling)[0]["ms per scene"]
        theirs = original_milliseconds(script, wanted.num_steps)
        rows.append({"turn": turn, "ours ms": ours, "original ms": theirs, "times": theirs / ours})
    return rows


if __name__ == "__main__":
    run_command(main)
