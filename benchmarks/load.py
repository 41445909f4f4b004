"""Measures how fast a data set is packed, how soon a later start has its first batch, and what memory both take.

    python benchmarks/load.py
    python benchmarks/load.py --root data/realcars --num-views 25

Prints a row and one line of JSON. Without --root, the data are 8 scenes of shaded balls, copied. Every measurement is a
process of its own; the packed arrays go to a temporary folder (TMPDIR says where), so a cache beside the data stays.
"""

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measuring import read_flags

from jaxmeta.cameras import Views, orbit_pose
from jaxmeta.data import packing
from jaxmeta.data.shapenet import write_scene, write_splits
from jaxmeta.data.splits import find_split
from jaxmeta.errors import run_command

DISTINCT_SCENES = 8
SCENES_PER_BATCH = 16


@dataclasses.dataclass(frozen=True)
class LoadConfig:
    """Measure how fast a data set is loaded."""

    root: Path | None = None
    """Folder of the data set; None for a synthetic one."""
    class_name: str = "car"
    """The class of scenes."""
    split: str = "train"
    """The split to load."""
    num_scenes: int = 1000
    """The first so many scenes, or all if there are fewer."""
    num_views: int = 50
    """Views loaded of each scene."""
    size: int = 128
    """Pixels along each side of the synthetic images."""


def main() -> None:
    """Measures what the command line asks for."""
    wanted = read_flags(LoadConfig)
    with tempfile.TemporaryDirectory(prefix="jaxmeta-load-") as folder:
        root, cache = wanted.root or Path(folder, "data"), Path(folder, "cache")
        if wanted.root is None:
            write_synthetic(root, wanted)
        idle = in_process(len, ())
        pack, warm, resident = (in_process(stage, root, wanted, cache) for stage in (load, first_batch, all_on_device))
    num_scenes, num_views, height, width, _ = pack["shape"]
    result = {
        "command": " ".join(sys.argv),
        "images": f"{num_scenes} x {num_views} of {width} x {height}",
        "cores": os.cpu_count(),
        "pack_pngs_per_second": round(num_scenes * num_views / pack["seconds"]),
        "pack_seconds": round(pack["seconds"], 2),
        "pack_cpu_seconds": round(pack["cpu_seconds"], 2),
        "warm_seconds": round(warm["seconds"], 3),
        "warm_cpu_seconds": round(warm["cpu_seconds"], 3),
        "split_megabytes": round(pack["bytes"] / 1e6),
    }
    # What Python and its libraries take is the same whatever is loaded.
    for name, stage in (("pack", pack), ("warm", warm), ("resident", resident)):
        result[f"{name}_memory_over_split"] = round((stage["peak"] - idle["peak"]) / pack["bytes"], 2)
    print("| " + " | ".join(str(value) for value in result.values()) + " |")
    print(json.dumps(result))


def load(root: Path, wanted: LoadConfig, cache: Path) -> Views:
    """Returns the views as `load_split` does, packed in a folder of choice."""
    source = find_split(root, wanted.class_name, wanted.split)
    scenes = source.scenes[: wanted.num_scenes]
    load_scene = partial(source.load_scene, num_views=wanted.num_views)
    fingerprint = packing.fingerprint(scene.folder for scene in scenes)
    return packing.load_packed(cache, scenes, load_scene, fingerprint, verify=False).views


def first_batch(root: Path, wanted: LoadConfig, cache: Path) -> Views:
    """Returns the views of the first batch of scenes, drawn from the whole split."""
    views = load(root, wanted, cache)
    batch = np.random.default_rng(0).permutation(len(views.focal))[:SCENES_PER_BATCH]
    return Views(*(np.asarray(leaf[batch]) for leaf in views))


def all_on_device(root: Path, wanted: LoadConfig, cache: Path) -> Views:
    """Returns all views as arrays on the device, and uses every byte: a device may be the host itself and copy late."""
    views = jax.device_put(load(root, wanted, cache))
    jax.block_until_ready(jax.tree.map(jnp.max, views))
    return views


def in_process(function: Callable, *arguments: object) -> dict:
    """Returns what a function took in a new process, and the shape of what it returned."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, function, *arguments).result()


def measure(function: Callable, *arguments: object) -> dict:
    """Calls a function; see in_process."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    # The unit of ru_maxrss is 1024 bytes on Linux, a byte on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    about = {}
    if isinstance(result, Views):
        about = {"shape": result.images.shape, "bytes": sum(leaf.nbytes for leaf in result)}
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak} | about


def write_synthetic(root: Path, wanted: LoadConfig) -> None:
    """Writes scenes of shaded balls: few are drawn, the others are copies, which take as long to read."""
    ids = [f"scene{index:05d}" for index in range(wanted.num_scenes)]
    poses = np.stack([orbit_pose(view, 0.5, 4.0) for view in range(wanted.num_views)])
    write_splits(root, wanted.class_name, {wanted.split: ids})
    folder = root / wanted.class_name
    for index, scene_id in enumerate(ids):
        if index < DISTINCT_SCENES:
            images = np.stack([ball(wanted.size, seed=index * wanted.num_views + i) for i in range(wanted.num_views)])
            write_scene(folder / scene_id, images, poses, 0.7)
        else:
            shutil.copytree(folder / ids[index % DISTINCT_SCENES], folder / scene_id)


def ball(size: int, *, seed: int) -> np.ndarray:
    """The picture of a striped ball with a transparent background; a PNG of about 5 kB at 128 x 128."""
    generator = np.random.default_rng(seed)
    y, x = (np.indices((size, size)) + 0.5) / size * 2 - 1
    height = np.sqrt(np.maximum(0.7**2 - x**2 - y**2, 0))
    stripes = 0.5 + 0.5 * np.sign(np.sin(generator.uniform(5, 15) * (x + height * generator.uniform(-1, 1))))
    light = 0.3 + height + 0.02 * generator.standard_normal((size, size)) * (stripes > 0.5)
    rgb = (stripes * light)[..., None] * generator.uniform(0.3, 0.7, 3)
    rgba = np.concatenate([rgb, np.ones((size, size, 1))], axis=-1) * (height > 0)[..., None]
    return np.round(255 * rgba.clip(0, 1)).astype(np.uint8)


if __name__ == "__main__":
    run_command(main)
