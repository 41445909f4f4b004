"""What the benchmarks share: flags, scenes to measure on, counted work, the device's own ceiling, medians."""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.profiler import ProfileData

from jaxmeta import devices, soundness
from jaxmeta.assembly import views_config
from jaxmeta.cameras import Views, orbit_pose
from jaxmeta.config import check_numbers
from jaxmeta.errors import InputError

Config = TypeVar("Config")
SIZE = 128
"""Pixels along each side of a view."""


def read_flags(kind: type[Config], words: Sequence[str] | None = None) -> Config:
    """Returns what a command line asks for, by default that of this process; `--debug` is for `run_command`.

    Raises:
      InputError: a number is not positive, or a flag that takes several has none.
    """
    words = sys.argv[1:] if words is None else words
    wanted = tyro.cli(kind, args=[word for word in words if word != "--debug"])
    check_numbers(wanted)
    for name, value in vars(wanted).items():
        if isinstance(value, tuple):
            flag = name.replace("_", "-")
            if not value:
                raise InputError(f"{flag}: give one value or more")
            numbers = np.ravel(value)
            if name != "seeds" and numbers.dtype.kind == "i" and numbers.min() <= 0:
                raise InputError(f"--{flag} {value} must be positive")
    return wanted


def noise_views(num_scenes: int, num_views: int = 25) -> Views:
    """Returns scenes whose pixels are noise, seen from an orbit; what a step costs does not depend on the pixels."""
    generator = np.random.default_rng(0)
    poses = np.stack([orbit_pose(azimuth, 0.5, 4.0) for azimuth in np.linspace(0, 2 * np.pi, num_views)])
    return Views(
        generator.integers(0, 256, (num_scenes, num_views, SIZE, SIZE, 4), np.uint8),
        np.broadcast_to(poses, (num_scenes, *poses.shape)).astype(np.float32),
        np.full(num_scenes, 1.4 * SIZE, np.float32),
    )


def inner_step_operations(config: Any) -> int:
    """Returns the floating-point operations of the matmuls of one inner step on one scene, given a run of views.

    Each weight counts two operations in the forward pass and four in the backward pass, for each point; the first layer
    has no gradient to hand on, and saves two.
    """
    scenes = views_config(config)
    inputs, width = 6 * scenes.field.num_frequencies, scenes.field.width
    weights = inputs * width + (scenes.field.depth - 1) * width**2 + width * 4
    points = (config.inner.num_rays or 1) * scenes.sampling.num_samples
    return points * (6 * weights - 2 * inputs * width)


def matmul_ceiling(size: int) -> float:
    """Returns the operations per second of a square bfloat16 matmul on one device, on random numbers."""
    left = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)

    @jax.jit
    def square(array: jax.Array) -> jax.Array:  # summed in float32: on a CPU XLA is slower otherwise
        return jnp.matmul(array, array, preferred_element_type=jnp.float32).astype(array.dtype)

    seconds = median_seconds(square, left, repeats=5, calls=10)
    return 2 * size**3 / seconds


def median_seconds(function: Callable[..., Any], *arguments: Any, repeats: int = 5, calls: int = 1) -> float:
    """Returns the median time of one call, after a first that does not count; a repeat waits for all its calls."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready([function(*arguments) for _ in range(calls)])
        times.append((time.perf_counter() - began) / calls)
    return statistics.median(times)


def kernel_seconds(function: Callable[[], Any]) -> list[dict[str, float]]:
    """Returns, for each GPU of this process, the seconds that one call spends in each kernel, by jax's profiler.

    Those of collectives include the wait for the slowest device. Empty without a GPU.
    """
    with tempfile.TemporaryDirectory(prefix="jaxmeta-trace-") as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(function())
        trace = next(Path(folder).rglob("*.xplane.pb"))
        planes = [plane for plane in ProfileData.from_file(str(trace)).planes if plane.name.startswith("/device:GPU")]
        return [_by_name(plane) for plane in planes]


def is_collective(kernel: str) -> bool:
    """Returns whether the kernel of that name is one in which devices exchange."""
    return re.search("nccl|all.?reduce", kernel.lower()) is not None


def _by_name(plane: Any) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for event in (event for line in plane.lines if line.name.startswith("Stream") for event in line.events):
        seconds[event.name] = seconds.get(event.name, 0.0) + 1e-9 * event.duration_ns
    return seconds


def original_milliseconds(script: Path, iterations: int) -> float:
    """Returns what the timing script of an original implementation prints, in ms per scene-iteration.

    It is run as `python script cpu|cuda iterations`.
    """
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    words = [sys.executable, str(script), device, str(iterations)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"--original {script} {device} {iterations} ended with {done.returncode}: {last}")
    found = re.search(r"([\d.]+) ms per scene-iteration", done.stdout)
    if not found:
        raise InputError(f"--original {script} printed no '... ms per scene-iteration'")
    return float(found[1])


def tell(rows: list[dict[str, Any]], about: Mapping[str, Any]) -> None:
    """Prints rows as a table, and one line of JSON with the versions and devices."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_shown(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[place]) for row in cells)) for place, name in enumerate(names)]
    for row in [names, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    told = {"devices": devices.describe(), "versions": soundness.versions(), **about, "rows": rows}
    print(json.dumps(told, allow_nan=False))


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
