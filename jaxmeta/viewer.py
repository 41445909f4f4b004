"""Shows in a browser how a scene is fitted, step by step, from the learned and from the standard initialisation.

    python -m jaxmeta.viewer runs/cars

This thread alone uses the device, between what browsers ask for; nothing is compiled after the start.
"""

import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, UInt8

from jaxmeta import assembly, config, metalearning, viewing
from jaxmeta.cameras import Views
from jaxmeta.config import TrainConfig
from jaxmeta.data.splits import Split, load_split
from jaxmeta.errors import InputError, run_command
from jaxmeta.loading import load_initialisation
from jaxmeta.metalearning import Params
from jaxmeta.objectives import composite_on_white
from jaxmeta.viewing import Camera, Choice, Inbox, Session

HELD_OUT = 4
"""Views that are scored."""
MAX_HEIGHT = 1024
"""Of a picture, in pixels."""
REST = 0.15
"""Seconds without a word from a browser after which pictures are refined."""


@dataclasses.dataclass(frozen=True)
class ViewerConfig:
    """Watch in a browser how scenes are fitted."""

    run: tyro.conf.Positional[Path]
    """Folder of a run of train.py."""
    split: str = "test"
    """The scenes to choose from: a key of the splits file."""
    port: int = 8080
    """Of the page; 0 for any that is free."""
    host: str = "127.0.0.1"
    """Where to listen: this machine alone, or 0.0.0.0 for whoever reaches it."""
    data_root: Path | None = None
    """Where the data lie now; None for where they lay in training."""
    seed: int = 1
    """Of the standard initialisation and of every draw."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which state of the training: the newest, or the one with the best validation."""
    debug: bool = False
    """Show the traceback of an error."""


class Scale(NamedTuple):
    """How much a device does at a time."""

    height: int
    """Of a tile, in pixels."""
    width: int
    """Of a tile, in pixels."""
    score_rays: int
    """Pixels of held-out views that a score is of."""
    quick_share: int
    """While something moves, a ray has one in so many of its samples."""


SLOW, FAST = Scale(16, 24, 512, 4), Scale(128, 192, 8192, 1)
"""Of a CPU; of a GPU or TPU."""

Tile = Callable[[Params, Float[Any, "4 4"]], UInt8[Array, "height width 3"]]


class Machine(NamedTuple):
    """The compiled functions, and the sizes that they were compiled for."""

    step: Callable[[Params, Views, int, int], Params]
    """`(params, support, scene, number)`."""
    score: Callable[[Params, Views], Float[Array, ""]]
    """PSNR in dB at some pixels of held-out views, always the same ones."""
    quick_tile: Tile
    """With few samples; the pose is of `viewing.tile_pose`."""
    tile: Tile
    scale: Scale


def main() -> None:
    """Serves the page until Ctrl-C."""
    wanted = tyro.cli(ViewerConfig)
    if find_spec("viser") is None:
        raise InputError("the viewer needs the package viser: pip install 'jaxmeta[viewer]'")
    # Here, so that without the extra this module still loads and says so.
    from jaxmeta import page

    settings = config.load(wanted.run / "config.json")
    page.check_port(wanted.host, wanted.port)
    split = load_scenes(wanted, settings)
    machine = make_machine(settings, SLOW if jax.default_backend() == "cpu" else FAST, wanted.seed)
    init = assembly.scene_signal(settings, height=1, width=1, num_rays=1).init
    _, learned = load_initialisation(wanted.run, settings, wanted.checkpoint)
    starts = {"learned": jax.tree.map(jnp.asarray, learned), "standard": init(jax.random.key(wanted.seed))}
    print("compiling", flush=True)
    warm_up(machine, starts["learned"], split)
    inbox, start = Inbox(), camera_start(split.views, settings)
    num_views = split.views.images.shape[1]
    with page.open_page(
        wanted.host, wanted.port, inbox, ids=split.ids, num_views=num_views, start=page.Start(*start)
    ) as (shown, address):
        print(f"{len(split.ids)} scenes of '{wanted.split}' at {address}; Ctrl-C ends it", flush=True)
        try:
            serve(inbox, machine, starts, split, shown)
        except KeyboardInterrupt:
            print("ended")


def load_scenes(wanted: ViewerConfig, settings: TrainConfig) -> Split:
    """Returns the scenes to choose from, with the views that the training had of each.

    Raises:
      InputError: there is no such split, or no view to hold out.
    """
    if settings.data.num_views < 2:
        raise InputError(f"{wanted.run} was trained on one view of each scene; the viewer holds out another one")
    return load_split(
        wanted.data_root or settings.data.root,
        settings.data.class_name,
        wanted.split,
        num_views=settings.data.num_views,
        layout=settings.data.layout,
        assume_opaque=settings.data.assume_opaque,
    )


def make_machine(settings: TrainConfig, scale: Scale, seed: int) -> Machine:
    """Returns the compiled functions of a run; each compiles once.

    Args:
      settings: of the run.
      scale: how much to do at a time.
      seed: of the inner loop's draws.
    """
    num_samples = max(settings.sampling.num_samples // scale.quick_share, 2)
    coarse = dataclasses.replace(settings, sampling=dataclasses.replace(settings.sampling, num_samples=num_samples))
    size = {"height": scale.height, "width": scale.width}
    fitting = assembly.scene_signal(settings, **size, num_rays=settings.inner.num_rays)
    judging = assembly.scene_signal(settings, **size, num_rays=scale.score_rays)
    sketching = assembly.scene_signal(coarse, **size, num_rays=1)
    optimiser = optax.sgd(settings.inner.step_size)

    def step(params: Params, support: Views, scene: int, number: int) -> Params:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), scene), number)
        # Plain gradient descent keeps no state, so single steps are one long loop.
        return metalearning.adapt(fitting.loss, optimiser, params, support, key[None]).params

    def score(params: Params, views: Views) -> Float[Array, ""]:
        return -10 * jnp.log10(judging.loss(params, views, jax.random.key(seed)))

    def tile(signal: assembly.Signal, params: Params, pose: Float[Array, "4 4"]) -> Array:
        rgb = signal.render_pose(params, pose, jnp.float32(scale.height / 2)).rgb
        return jnp.round(255 * jnp.clip(rgb, 0, 1)).astype(jnp.uint8)

    return Machine(
        step=jax.jit(step),
        score=jax.jit(score),
        quick_tile=jax.jit(lambda params, pose: tile(sketching, params, pose)),
        tile=jax.jit(lambda params, pose: tile(fitting, params, pose)),
        scale=scale,
    )
