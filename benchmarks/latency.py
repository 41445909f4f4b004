"""Measures how long a user waits: the adaptation of a few scenes, and the rendering of views.

    python benchmarks/latency.py
    python benchmarks/latency.py --small                    on a CPU, in some minutes

Prints three tables and three lines of JSON. Adaptation: 128 rays a step, for one scene and for many at once. Rendering:
whole views of one adapted field. Watching: pictures of the live viewer in a second, each made a JPEG as for a browser,
while its camera orbits, and while it also adapts, a step of two fits for each picture.
"""

import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from measuring import SIZE, median_seconds, noise_views, read_flags, tell
from PIL import Image
from step_time import StepConfig, settings_for

from jaxmeta import optimisers
from jaxmeta.assembly import assemble
from jaxmeta.cameras import Views, orbit_pose
from jaxmeta.config import TrainConfig
from jaxmeta.errors import run_command
from jaxmeta.metalearning import adapt
from jaxmeta.viewer import loop, sessions
from jaxmeta.viewer.machine import make_machine, suited
from jaxmeta.viewer.pictures import Camera
from jaxmeta.viewer.sessions import Session


@dataclasses.dataclass(frozen=True)
class LatencyConfig:
    """Measure how long a user waits."""

    preset: str = "original"
    """Settings of the network, the rays and the inner loop; the dtype is what suits the device."""
    implementation: Literal["auto", "xla", "fused"] = "auto"
    """Of the network."""
    num_steps: tuple[int, ...] = (32, 100, 1000)
    """Inner steps of an adaptation."""
    num_scenes: tuple[int, ...] = (1, 64)
    """Scenes adapted at once."""
    sizes: tuple[int, ...] = (128, 512)
    """Pixels along each side of a view."""
    frames: int = 100
    """Pictures of the live viewer."""
    small: bool = False
    """A network, rays and samples that a CPU does in seconds."""


class Enough(Exception):
    """The viewer has shown as many pictures as were wanted."""


def main() -> None:
    """Measures what the command line asks for."""
    wanted = read_flags(LatencyConfig)
    settings = settings_for(StepConfig(preset=wanted.preset, implementation=wanted.implementation, small=wanted.small))
    about = {"preset": wanted.preset}
    cases = [(scenes, steps) for scenes in wanted.num_scenes for steps in wanted.num_steps]
    tell([adaptation(settings, *case) for case in cases], about | {"benchmark": "adaptation"})
    tell([rendering(settings, size) for size in wanted.sizes], about | {"benchmark": "rendering"})
    tell(watching(settings, wanted.frames), about | {"benchmark": "watching"})


def adaptation(settings: TrainConfig, num_scenes: int, num_steps: int) -> dict[str, Any]:
    """Returns the row of fitting scenes at once from one view each."""
    signal = assemble(settings, size=(SIZE, SIZE), num_rays=settings.inner.num_rays)
    optimiser = optimisers.inner_optimiser(settings.inner.optimiser, settings.inner.step_size)
    views = jax.tree.map(jnp.asarray, noise_views(num_scenes, num_views=1))

    @jax.jit
    def run(params: Any, views: Views) -> Any:
        keys = jax.random.split(jax.random.key(1), (num_scenes, num_steps))
        return jax.vmap(lambda view, key: adapt(signal.loss, optimiser, params, view, key).params)(views, keys)

    seconds = median_seconds(run, signal.init(jax.random.key(0)), views)
    return {"scenes": num_scenes, "steps": num_steps, "seconds": seconds, "ms per step": 1e3 * seconds / num_steps}


def rendering(settings: TrainConfig, size: int) -> dict[str, Any]:
    """Returns the row of rendering one view."""
    signal: Any = assemble(settings, size=(size, size), num_rays=1)
    views = noise_views(1, num_views=1)
    render = jax.jit(partial(signal.render_pose, pose=views.poses[0, 0], focal=views.focal[0] * size / SIZE))
    seconds = median_seconds(render, signal.init(jax.random.key(0)), calls=5)
    return {"view": f"{size} x {size}", "ms": 1e3 * seconds, "views per s": 1 / seconds}


def watching(settings: TrainConfig, frames: int) -> list[dict[str, Any]]:
    """Returns the rows of the live viewer, which compiles once: its camera orbits, and orbits while it adapts."""
    signal = assemble(settings, size=(SIZE, SIZE), num_rays=settings.inner.num_rays)
    machine = make_machine(settings, suited(), seed=0)
    views = noise_views(1)
    starts = {name: signal.init(jax.random.key(seed)) for seed, name in enumerate(("learned", "standard"))}
    costs = loop.warm_up(machine, starts["learned"], views)
    serve = partial(loop.serve, machine=machine, costs=costs, starts=starts, views=views)
    adapting = partial(sessions.adapt, steps=2 * frames)
    return [
        {"viewer": "orbiting", **orbiting(serve, frames)},
        {"viewer": "orbiting and adapting", **orbiting(serve, frames, adapting)},
    ]


def orbiting(serve: Callable[..., None], frames: int, *changes: Callable[[Session], Session]) -> dict[str, Any]:
    """Returns how fast pictures come to one browser, which moves its camera as soon as it has one.

    Args:
      serve: `loop.serve` but for the inbox and the page.
      frames: pictures to count.
      *changes: what the browser asks for before.
    """
    inbox, times, heights = sessions.Inbox(), [], []

    def orbit(angle: float) -> None:
        inbox.look("browser", Camera(orbit_pose(angle, 0.5, 4.0), 0.7, 1.5))

    def show_picture(browser: Hashable, image: np.ndarray) -> None:
        del browser
        Image.fromarray(image).save(io.BytesIO(), format="jpeg", quality=90)
        times.append(time.perf_counter())
        heights.append(image.shape[0])
        if len(times) > frames:
            raise Enough
        orbit(2 * math.pi * len(times) / frames)

    page = loop.Page(show_picture, lambda session: None, lambda images: None)
    for change in changes:
        inbox.change(change)
    orbit(0)
    with contextlib.suppress(Enough):
        serve(inbox, page=page)
    lasted = np.diff(times)
    return {
        "pictures per s": 1 / float(np.mean(lasted)),
        "slowest ms": 1e3 * float(np.max(lasted)),
        "height": int(np.median(heights)),
    }


if __name__ == "__main__":
    run_command(main)
