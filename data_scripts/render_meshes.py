"""Turns a folder of meshes into a class of posed RGBA views, in the layout that `jaxmeta.data.shapenet` reads.

    python data_scripts/render_meshes.py models/cars --out data/cars --class-name car

Needs the extra: pip install 'jaxmeta[meshes]'. Cameras are as in the authors' renders: 4.03 from the origin, z up,
uniform over the upper hemisphere's area; they depend on the seed and the scene's id only. A run that was stopped goes
on where it was; the splits file is written last.
"""

import json
import os
import re
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import tyro
from jaxtyping import Float
from tqdm import tqdm

from jaxmeta.cameras import orbit_pose
from jaxmeta.data.scenes import NAME
from jaxmeta.data.shapenet import write_scene, write_splits
from jaxmeta.data.transforms import read_json
from jaxmeta.errors import InputError, run_command
from jaxmeta.words import counted

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".off", ".stl", ".dae")
CAMERA_ANGLE_X = 0.6911112
CAMERA_RADIUS = 4.03
MAX_SINE = 0.97  # of the elevation: at the pole a camera has no azimuth
# Inside every view's frame, and so between near = 2 and far = 6 as well.
MAX_OBJECT_RADIUS = CAMERA_RADIUS * np.sin(CAMERA_ANGLE_X / 2)
PICTURE_OPTIONS = ("num_views", "size", "supersampling", "object_radius", "up", "seed")


@dataclass(frozen=True)
class Options:
    """How scenes are rendered and split."""

    num_views: int = 50
    """Views of each scene; the authors' classes have 50."""
    size: int = 128
    """Pixels a side."""
    supersampling: int = 4
    """Rays a side of a pixel."""
    object_radius: float = 1.25
    """Of the sphere about the bounding box's middle that just holds an object; at most 1.36, or views would cut it."""
    up: Literal["auto", "y", "z"] = "auto"
    """The files' upward axis: auto is y for glTF and OBJ, z for PLY, OFF and STL, and what the file says for DAE."""
    val_fraction: float = 0.1
    """Share of the scenes in the split val; 0 for none."""
    test_fraction: float = 0.15
    """Share of the scenes in the split test; 0 for none."""
    seed: int = 0
    """Of cameras and splits."""
    on_bad_mesh: Literal["error", "skip"] = "error"
    """Whether a broken file stops the run or is left out, named and counted."""
    overwrite: bool = False
    """Render again scenes that are there."""
    workers: int = os.cpu_count() or 1
    """Processes."""
    debug: bool = False
    """Show where an error arose."""


@dataclass(frozen=True)
class Config:
    """Renders a folder of meshes (GLB, glTF, OBJ, PLY, OFF, STL, DAE) as a class of scenes to train on."""

    folder: tyro.conf.Positional[Path]
    """Holds the meshes; subfolders are searched too."""
    out: Path
    """Folder for `<class>_splits.json` and `<class>/<scene>/`; other classes in it are left alone."""
    class_name: str
    """Such as car."""
    pattern: str = "*"
    """Only files with such names, as in "*.glb"."""
    group_by: Literal["prefix", "folder", "none"] = "prefix"
    """Which models may not straddle splits: those in one folder whose names start with the same letters (sedan-red,
    sedan2), all in one folder, or none (every model is a design of its own)."""
    groups: Path | None = None
    """JSON file {"path below the folder": "group"}; models that it leaves out are grouped by --group-by."""
    options: tyro.conf.OmitArgPrefixes[Options] = field(default_factory=Options)


class Model(NamedTuple):
    """A mesh that becomes a scene."""

    path: Path
    scene_id: str
    group: str
    rotation: tuple[float, ...] | None = None
    """Nine numbers, row by row: turns the mesh before its upward axis is taken."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command with the given flags, or with the process's."""
    config = tyro.cli(Config, args=args)
    if not config.folder.is_dir():
        raise InputError(f"{config.folder} is not a folder; give the folder that holds the meshes")
    models = find_models(config.folder, config.pattern, config.group_by, _read_groups(config.groups))
    if not models:
        raise InputError(f"{config.folder} holds no {config.pattern} that is one of {' '.join(SUFFIXES)}")
    render_class(models, config.out, config.class_name, config.options)


def find_models(folder: Path, pattern: str, group_by: str, groups: Mapping[str, str]) -> list[Model]:
    """Returns the meshes below a folder in the order of their paths.

    Raises:
      InputError: `groups` names a file that is not there.
    """
    found = (path for path in sorted(folder.rglob(pattern)) if path.suffix.lower() in SUFFIXES and path.is_file())
    names = [path.relative_to(folder) for path in found]
    names = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.parts)]
    unknown = sorted(set(groups) - {name.as_posix() for name in names})
    if unknown:
        raise InputError(f"--groups names {unknown[0]!r}, which is no mesh below {folder}")
    ids = [scene_id(name) for name in names]
    taken = Counter(identifier.lower() for identifier in ids)
    unique = [
        identifier if taken[identifier.lower()] == 1 else f"{identifier[:100]}-{_checksum(name.as_posix()):08x}"
        for identifier, name in zip(ids, names, strict=True)
    ]
    return [
        Model(folder / name, identifier, groups.get(name.as_posix(), group_name(name, group_by)))
        for identifier, name in zip(unique, names, strict=True)
    ]


def scene_id(name: Path) -> str:
    """Returns a relative path as an id of letters, digits, '.', '_' and '-'."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(name.with_suffix("").parts)).lstrip("._-")
    if plain and len(plain) <= 100:
        return plain
    return f"{plain[:100] or 'mesh'}-{_checksum(name.as_posix()):08x}"


def group_name(name: Path, group_by: str) -> str:
    """Returns the group of a model from its relative path."""
    if group_by == "none":
        return name.as_posix()
    if group_by == "folder":
        return name.parent.as_posix()
    letters = re.match(r"[^\W\d_]+", name.stem)
    return (name.parent / (letters.group() if letters else name.stem).lower()).as_posix()


def render_class(models: Sequence[Model], out: Path, class_name: str, options: Options) -> dict[str, list[str]]:
    """Renders models into `<out>/<class>/<scene>/` and writes the splits file; returns the splits.

    Raises:
      InputError: a flag makes no sense, something else is in the way, or a mesh is broken.
    """
    _check(options, class_name)
    split_scenes({model.scene_id: model.group for model in models}, options)  # fails before the rendering, not after
    folder = out / class_name
    _prepare(out, class_name, models, options)
    todo = [model for model in models if not _is_done(model, folder)]
    bad = set()
    with worker_map(options.workers) as mapping:
        problems = mapping(partial(_render_model, folder=folder, options=options), todo)
        told = tqdm(problems, "rendering", len(todo), unit="scene", smoothing=0, disable=None)
        for model, problem in zip(todo, told, strict=True):
            if problem and options.on_bad_mesh == "error":
                raise InputError(f"{problem}; --on-bad-mesh skip leaves such files out")
            if problem:
                bad.add(model.scene_id)
                tqdm.write(f"skipped: {problem}")
    splits = split_scenes({model.scene_id: model.group for model in models if model.scene_id not in bad}, options)
    write_splits(out, class_name, splits)
    counts = ", ".join(f"{len(ids)} {split}" for split, ids in splits.items())
    scenes, views = counted(sum(map(len, splits.values())), "scene"), counted(options.num_views, "view")
    print(f"{folder}: {scenes} of {views}, {counts}; broken meshes skipped: {len(bad)}")
    return splits


def split_scenes(groups: Mapping[str, str], options: Options) -> dict[str, list[str]]:
    """Returns the scenes of each split, given each scene's group; a group is never divided.

    Groups go, the largest first and in an order drawn from the seed, to the split that lacks most scenes.

    Raises:
      InputError: there are too few groups.
    """
    lacking = {"val": options.val_fraction * len(groups), "test": options.test_fraction * len(groups)}
    lacking = {split: max(1, round(share)) if share else 0 for split, share in lacking.items()}
    lacking = {"train": len(groups) - sum(lacking.values()), **lacking}
    splits: dict[str, list[str]] = {split: [] for split in lacking}
    members: dict[str, list[str]] = {}
    for identifier in groups:
        members.setdefault(groups[identifier], []).append(identifier)
    order = np.random.default_rng(options.seed).permutation(sorted(members)).tolist()
    for group in sorted(order, key=lambda name: -len(members[name])):
        split = max(splits, key=lambda name: lacking[name])
        splits[split] += members[group]
        lacking[split] -= len(members[group])
    wanted = {"train": 1, "val": options.val_fraction, "test": options.test_fraction}
    if any(wanted[split] and not ids for split, ids in splits.items()):
        raise InputError(
            f"{counted(len(groups), 'model')} in {counted(len(members), 'group')} cannot fill train, val and test; "
            "give more models, --group-by none if each is a design of its own, or --val-fraction 0 --test-fraction 0"
        )
    return {split: sorted(ids) for split, ids in splits.items()}


def sample_poses(seed: int, identifier: str, num_views: int) -> Float[np.ndarray, "views 4 4"]:
    """Returns a scene's cameras; asking for more views adds to them."""
    rng = np.random.default_rng((seed, _checksum(identifier)))
    angles = rng.uniform((0, 0), (2 * np.pi, MAX_SINE), (num_views, 2))
    return np.stack([orbit_pose(azimuth, np.arcsin(sine), CAMERA_RADIUS) for azimuth, sine in angles])


def _render_model(model: Model, *, folder: Path, options: Options) -> str | None:
    """Writes one scene, or returns what is wrong with its mesh."""
    from raycasting import render_views  # here, so that without the extra this module still loads and says so
    from surfaces import load_surface

    rotation = None if model.rotation is None else np.reshape(model.rotation, (3, 3))
    poses = sample_poses(options.seed, model.scene_id, options.num_views)
    try:
        surface = load_surface(model.path, radius=options.object_radius, up=options.up, rotation=rotation)
    except InputError as error:
        return str(error)
    images = render_views(
        surface, poses, camera_angle_x=CAMERA_ANGLE_X, size=options.size, supersampling=options.supersampling
    )
    if not images[..., 3].any():
        return f"{model.path} is invisible in every view: its materials say that it is transparent"
    unfinished = folder / f".{model.scene_id}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    write_scene(unfinished, images, poses, CAMERA_ANGLE_X)
    shutil.rmtree(folder / model.scene_id, ignore_errors=True)
    unfinished.rename(folder / model.scene_id)
    return None


@contextmanager
def worker_map(workers: int) -> Iterator[Callable[..., Iterator[str | None]]]:
    """Gives a `map` over processes, or within this one if there is to be one only."""
    if workers == 1:
        yield map
        return
    # Spawned, since JAX has threads; on the CPU, to leave accelerators to others.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        yield pool.map
        pool.shutdown()
    except BaseException as error:
        # At once: what a worker has not finished lies in a folder of another name.
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in active_children():
            worker.terminate()
        if isinstance(error, BrokenProcessPool):
            raise InputError("a rendering process died, perhaps for want of memory; use fewer --workers") from error
        raise


def use_cpu() -> None:
    """Keeps JAX off the accelerators: rays are cast on the CPU."""
    jax.config.update("jax_platforms", "cpu")


def _start_worker() -> None:
    use_cpu()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells, once


def _check(options: Options, class_name: str) -> None:
    for package in ("trimesh", "embreex"):
        if find_spec(package) is None:
            raise InputError(f"rendering needs the package {package}: pip install 'jaxmeta[meshes]'")
    for flag, value, low, high in (
        ("--num-views", options.num_views, 1, 10_000),
        ("--size", options.size, 1, 4096),
        ("--supersampling", options.supersampling, 1, 16),
        ("--object-radius", options.object_radius, 0.01, MAX_OBJECT_RADIUS),
        ("--val-fraction", options.val_fraction, 0, 0.5),
        ("--test-fraction", options.test_fraction, 0, 0.5),
        ("--seed", options.seed, 0, 2**63),
        ("--workers", options.workers, 1, 1024),
    ):
        if not low <= value <= high:
            raise InputError(f"{flag} is {value}, wanted {low} to {high:.6g}")
    if not NAME.fullmatch(class_name):
        raise InputError(f"--class-name is {class_name!r}, wanted letters, digits, '.', '_' and '-'")


def _prepare(out: Path, class_name: str, models: Sequence[Model], options: Options) -> None:
    """Makes the class's folder and notes how it is rendered, unless it holds something else."""
    folder, splits, notes = out / class_name, out / f"{class_name}_splits.json", out / f"{class_name}_render.json"
    how = {name: value for name, value in asdict(options).items() if name in PICTURE_OPTIONS}
    if options.overwrite:
        splits.unlink(missing_ok=True)
        for model in models:
            shutil.rmtree(folder / model.scene_id, ignore_errors=True)
    elif splits.exists():
        raise InputError(f"{splits} exists; --overwrite renders the class again, another --out keeps both")
    elif folder.is_dir() and any(folder.iterdir()) and not (notes.is_file() and read_json(notes) == how):
        raise InputError(f"{folder} holds scenes rendered with other options; --overwrite renders them again")
    folder.mkdir(parents=True, exist_ok=True)
    notes.write_text(json.dumps(how, indent=1))


def _is_done(model: Model, folder: Path) -> bool:
    written = folder / model.scene_id / "transforms.json"
    return written.is_file() and written.stat().st_mtime >= model.path.stat().st_mtime


def _read_groups(path: Path | None) -> dict[str, str]:
    groups = {} if path is None else read_json(path)
    if not all(isinstance(group, str) for group in groups.values()):
        raise InputError(f'{path} should hold {{"path below the folder": "group", ...}}')
    return groups


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())


if __name__ == "__main__":
    use_cpu()
    run_command(main)
