"""Shows in a browser how a scene is fitted, step by step, from the learned and from the standard initialisation.

    python -m jaxmeta.viewer runs/cars

This thread alone uses the device, between what browsers ask for; nothing is compiled after the start.
"""

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from jaxmeta import assembly, config, configfiles, devices
from jaxmeta.cameras import Views
from jaxmeta.errors import InputError, run_command
from jaxmeta.kinds.views import ViewsConfig
from jaxmeta.loading import load_initialisation
from jaxmeta.rendering import Sampling
from jaxmeta.signals import Split
from jaxmeta.viewer import loop
from jaxmeta.viewer.machine import make_machine, suited
from jaxmeta.viewer.pictures import Start
from jaxmeta.viewer.sessions import Inbox
from jaxmeta.words import counted


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


def main() -> None:
    """Serves the page until Ctrl-C."""
    wanted = tyro.cli(ViewerConfig, prog="python -m jaxmeta.viewer")
    if find_spec("viser") is None:
        raise InputError("the viewer needs the package viser: pip install 'jaxmeta[viewer]'")
    # Here, so that without the extra this module still loads and says so.
    from jaxmeta.viewer import page

    settings = configfiles.load(wanted.run / "config.json")
    if settings.inner.optimiser != "sgd" or settings.outer.algorithm == "meta-sgd":
        raise InputError(f"{wanted.run} adapts by Adam or learned step sizes; the viewer fits by plain descent alone")
    if wanted.data_root:
        settings = config.with_root(settings, wanted.data_root)
    kind = assembly.views_config(settings)
    page.check_port(wanted.host, wanted.port)
    split = load_scenes(kind, wanted.split)
    views: Views = split.scenes
    devices.keep_compiled()
    machine = make_machine(settings, suited(), wanted.seed)
    init = assembly.assemble(settings, size=(1, 1), num_rays=1).init
    _, learned = load_initialisation(wanted.run, settings, wanted.checkpoint)
    standard = assembly.first_initialisation(settings, init(jax.random.key(wanted.seed)))
    starts = {"learned": learned, "standard": standard}
    print("compiling", flush=True)
    costs = loop.warm_up(machine, starts["learned"], views)
    inbox, start = Inbox(), camera_start(views, kind.sampling)
    with page.open_page(
        wanted.host, wanted.port, inbox, ids=split.ids, num_views=views.images.shape[1], start=start
    ) as (shown, address):
        print(f"{counted(len(split.ids), 'scene')} of '{wanted.split}' at {address}; Ctrl-C ends it", flush=True)
        try:
            loop.serve(inbox, machine, costs, starts, views, shown)
        except KeyboardInterrupt:
            print("ended")


def load_scenes(kind: ViewsConfig, split: str) -> Split:
    """Returns the scenes to choose from, with as many views of each as the training had, or as there are.

    Raises:
      InputError: there is no such split, or no view to hold out.
    """
    num_views = min(kind.data.num_views, kind.count_views(split))
    if num_views < 2:
        raise InputError(f"the scenes of '{split}' have one view; the viewer holds out another one")
    return kind.load(split, num_views=num_views)


def camera_start(views: Views, sampling: Sampling) -> Start:
    """Returns the first camera of the scenes, and the distances at which what it shows stays within the rays' range."""
    pose = np.asarray(views.poses[0, 0], float)
    distance = float(np.linalg.norm(pose[:3, 3]))
    inside = sampling.near < distance < sampling.far
    near, far = (sampling.near, sampling.far) if inside else (0, 2 * distance)
    fov = 2 * np.arctan(views.images.shape[2] / 2 / float(views.focal[0]))
    return Start(pose, float(fov), nearest=(near + distance) / 2, farthest=(far + distance) / 2)


if __name__ == "__main__":
    run_command(main)
