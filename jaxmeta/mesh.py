"""Fits a scene from a few views and writes its surface as a coloured mesh.

    python -m jaxmeta.mesh runs/cars --scene ID --out car.ply

PLY keeps the scene's frame, z up; GLB is y up, as its standard wants.
"""

import dataclasses
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmeta import assembly, config, configfiles, devices, metalearning, optimisers, runfiles
from jaxmeta.cameras import Views
from jaxmeta.config import TrainConfig
from jaxmeta.errors import InputError, run_command
from jaxmeta.kinds.views import ViewsConfig, field_apply, radiance_field
from jaxmeta.loading import load_initialisation
from jaxmeta.metalearning import Params


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Write the surface of a scene that was fitted from the learned initialisation."""

    run: tyro.conf.Positional[Path]
    """Folder of a run of train.py."""
    scene: str
    """Id of the scene."""
    out: Path
    """File to write: .ply, or .glb."""
    split: str = "test"
    """Where the scene is: a key of the splits file."""
    support: tuple[int, ...] = (0,)
    """Views that the inner loop fits."""
    steps: int = 100
    """Inner steps."""
    resolution: int = 128
    """Grid points along each edge."""
    threshold: float = 5.0
    """Density of the surface, per unit of distance."""
    radius: float | None = None
    """Of the ball about the origin that is looked through, in scene units; None for the largest that every support view
    holds whole."""
    data_root: Path | None = None
    """Where the data lie now; None for where they lay in training."""
    seed: int = 1
    """Of every draw."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which state of the training: the newest, or the one with the best validation."""
    debug: bool = False
    """Show the traceback of an error."""


def main() -> None:
    """Writes the mesh that the command line asks for."""
    wanted = tyro.cli(MeshConfig, prog="python -m jaxmeta.mesh")
    check(wanted)
    # Here, so that without the extra this module still loads and says so.
    from jaxmeta import isosurfaces

    settings = configfiles.load(wanted.run / "config.json")
    if wanted.data_root:
        settings = config.with_root(settings, wanted.data_root)
    kind = assembly.views_config(settings)
    runfiles.claim_folder(wanted.out.parent)
    index, support = load_support(wanted, kind)
    radius = isosurfaces.seen_radius(support, kind.sampling) if wanted.radius is None else wanted.radius
    if not radius > 0:
        raise InputError("no ball about the origin lies wholly in every support view; give --radius")
    devices.keep_compiled()
    adapted = adapt(wanted, settings, index, support)
    field = partial(field_apply(radiance_field(kind), kind.field.implementation), adapted)
    mesh = isosurfaces.isosurface(field, radius=radius, resolution=wanted.resolution, threshold=wanted.threshold)
    runfiles.write_atomically(wanted.out, isosurfaces.encode(mesh, wanted.out.suffix[1:].lower()))
    print(f"{wanted.out}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces within {radius:.3g} of the origin")


def check(wanted: MeshConfig) -> None:
    """Refuses values that cannot be meant, and a missing extra.

    Raises:
      InputError: names the flag or the package.
    """
    for module in ("skimage", "trimesh"):
        if find_spec(module) is None:
            raise InputError(f"meshes need the package {module}: pip install 'jaxmeta[meshes]'")
    if wanted.out.suffix.lower() not in (".ply", ".glb"):
        raise InputError(f"--out {wanted.out} must end in .ply or .glb")
    if not wanted.support or min(wanted.support) < 0:
        raise InputError(f"--support {wanted.support} must be numbers of views, from 0")
    if wanted.steps < 0:
        raise InputError(f"--steps {wanted.steps} must be 0 or more")
    if not 8 <= wanted.resolution <= 1024:
        raise InputError(f"--resolution {wanted.resolution} must be 8 to 1024")
    for flag, value in (("threshold", wanted.threshold), ("radius", wanted.radius)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"--{flag} {value} must be positive and finite")


def load_support(wanted: MeshConfig, kind: ViewsConfig) -> tuple[int, Views]:
    """Returns which scene of its split is wanted, and its support views.

    Raises:
      InputError: there is no such scene, or view.
    """
    num_views = kind.count_views(wanted.split)
    if max(wanted.support) >= num_views:
        raise InputError(f"--support {wanted.support} must be views from 0 to {num_views - 1}")
    split = kind.load(wanted.split, num_views=max(wanted.support) + 1)
    if wanted.scene not in split.ids:
        some = ", ".join(split.ids[:4]) + ", .." * (len(split.ids) > 4)
        raise InputError(f"--scene {wanted.scene} is not in the split '{wanted.split}', which has {some}")
    index, views = split.ids.index(wanted.scene), split.scenes
    chosen = list(wanted.support)
    return index, Views(views.images[index, chosen], views.poses[index, chosen], views.focal[index])


def adapt(wanted: MeshConfig, settings: TrainConfig, index: int, support: Views) -> Params:
    """Returns the parameters fitted to a scene, with the draws that eval.py makes for it.

    Args:
      wanted: of the command.
      settings: of the run.
      index: of the scene in its split.
      support: the scene's views to fit.
    """
    signal = assembly.assemble(settings, size=support.images.shape[1:3], num_rays=settings.inner.num_rays)
    _, learned = load_initialisation(wanted.run, settings, wanted.checkpoint)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(wanted.seed), index), wanted.steps)
    optimiser = optimisers.inner_optimiser(settings.inner.optimiser, settings.inner.step_size)
    fit = jax.jit(partial(metalearning.adapt, signal.loss, optimiser))
    return fit(learned, jax.tree.map(jnp.asarray, support), keys).params


if __name__ == "__main__":
    run_command(main)
