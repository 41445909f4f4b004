"""Keeps the decoded views of a split as one memory-mapped file, so that later starts read no PNG.

    <cache>/<name>-<hash>/images.npy, poses.npy, focal.npy, manifest.json

`<cache>` is `.jaxmeta` beside the data, or in the user's cache folder where that cannot be written. The hash is of what
was asked for; the manifest holds the fingerprint of the source (names, sizes and modification times of all its files)
and the size and SHA-256 of each array. A cache that does not match is built anew. It is written under another name and
renamed when it is complete.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxmeta.cameras import Views
from jaxmeta.data.scenes import SceneFolder
from jaxmeta.errors import InputError, StorageError

FORMAT = 1
_MANIFEST = "manifest.json"


def fingerprint(paths: Iterable[Path]) -> str:
    """Returns a hash that changes when a file below the paths is added, removed, resized or modified."""
    digest = hashlib.sha256()
    for path in paths:
        for name, status in _files(path):
            digest.update(f"{name}|{status.st_size}|{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def load_packed(
    cache: Path, scenes: Sequence[SceneFolder], load_scene: Callable[[Path], Views], source: str, *, verify: bool
) -> Views:
    """Returns the views of all scenes, memory-mapped; decodes them first where the cache does not hold them.

    Args:
      cache: the folder of this cache.
      scenes: to be loaded, all of one size.
      load_scene: reads one scene.
      source: fingerprint of what is read.
      verify: compare the SHA-256 of the cached arrays too, not only their sizes.

    Raises:
      InputError: a scene is broken, or differs in size from the others.
      StorageError: the cache cannot be written.
    """
    problem = _problem(cache, source, verify=verify)
    if problem:
        _build(cache, scenes, load_scene, source)
    return _open(cache)


def _open(cache: Path) -> Views:
    return Views(*(np.load(cache / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in Views._fields))


def _problem(cache: Path, source: str, *, verify: bool) -> str | None:
    """Returns why a cache cannot be used, or None."""
    if not cache.is_dir():
        return "there is none"
    try:
        manifest = json.loads((cache / _MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or manifest["source"] != source:
            return "the data changed"
        for name, expected in manifest["files"].items():
            if (cache / name).stat().st_size != expected["bytes"]:
                return f"{name} is truncated"
            if verify and _sha256(cache / name) != expected["sha256"]:
                return f"{name} is damaged"
        _open(cache)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return None


def _build(cache: Path, scenes: Sequence[SceneFolder], load_scene: Callable[[Path], Views], source: str) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{cache.name}.", suffix=".tmp", dir=cache.parent))
        try:
            _pack(temporary, scenes, load_scene)
            files = {
                path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in temporary.glob("*.npy")
            }
            ids = [scene.id for scene in scenes]
            manifest = {"format": FORMAT, "source": source, "ids": ids, "files": files}
            (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            shutil.rmtree(cache, ignore_errors=True)
            os.replace(temporary, cache)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{cache} cannot be written: {error.strerror}; free some space on its disk") from error


def _pack(folder: Path, scenes: Sequence[SceneFolder], load_scene: Callable[[Path], Views]) -> None:
    first = load_scene(scenes[0].folder)
    arrays = [_create(folder / f"{name}.npy", len(scenes), leaf) for name, leaf in first._asdict().items()]

    def store(index: int) -> None:
        views = load_scene(scenes[index].folder) if index else first
        if views.images.shape != first.images.shape:
            raise InputError(
                f"{scenes[index].folder} has views of {_size(views)} pixels, {scenes[0].folder} of {_size(first)}; "
                "all scenes of a split must have one size"
            )
        for array, leaf in zip(arrays, views, strict=True):
            array[index] = leaf

    pool = ThreadPoolExecutor()
    try:
        done = pool.map(store, range(len(scenes)))
        for _ in tqdm(done, total=len(scenes), desc="decoding", unit="scene", disable=None, leave=False):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    for array in arrays:
        array.flush()


def _create(path: Path, num_scenes: int, leaf: np.ndarray) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=leaf.dtype, shape=(num_scenes, *leaf.shape))


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yields the files at or below a path in a fixed order, with their sizes and times."""
    if not path.is_dir():
        yield path.name, path.stat()
        return
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):  # such as the cache itself
                continue
            if entry.is_dir():
                yield from _files(Path(entry.path))
            else:
                yield f"{path.name}/{entry.name}", entry.stat()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(views: Views) -> str:
    _, height, width, _ = views.images.shape
    return f"{width} x {height}"
