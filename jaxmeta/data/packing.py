"""Keeps the decoded views of a split as one memory-mapped file, so that later starts read no PNG.

    <cache>/<name>-<hash>/images.npy, poses.npy, focal.npy, manifest.json

`<cache>` is `.jaxmeta` beside the data, or in the user's cache folder where that cannot be written. The hash is of what
was asked for; the manifest holds the fingerprint of the source (names, sizes and modification times of all its files)
and the size and SHA-256 of each array. A cache that does not match is built anew. It is written under another name and
renamed when it is complete.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmeta.cameras import Views
from jaxmeta.data.decoding import ARRAYS, decode_scenes
from jaxmeta.data.png import reject
from jaxmeta.data.scenes import SceneFolder
from jaxmeta.errors import InputError, StorageError

FORMAT = 2
_MANIFEST = "manifest.json"
_MOST_BAD = 0.01
"""Share of the scenes that may be skipped."""
_ABANDONED = 24 * 3600
"""Seconds after which an unfinished cache is one of a process that was killed."""


class Packed(NamedTuple):
    """Scenes of one size."""

    ids: tuple[str, ...]
    views: Views
    """Memory-mapped."""
    content: str
    """A hash of the ids and of all views, the same wherever and whenever they were packed."""


def fingerprint(paths: Iterable[Path]) -> str:
    """Returns a hash that changes when a file below the paths is added, removed, resized or modified.

    Raises:
      InputError: one of the paths cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            for name, status in _files(path, path.name):
                digest.update(f"{name}|{status.st_size}|{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError as error:
            reject(Path(error.filename), f"cannot be read: {error.strerror}")
    return digest.hexdigest()


def load_packed(
    cache: Path,
    scenes: Sequence[SceneFolder],
    load_scene: Callable[[Path], Views],
    source: str,
    *,
    verify: bool,
    skip_bad: bool = False,
) -> Packed:
    """Returns the views of all scenes; decodes them first where the cache does not hold them.

    Args:
      cache: the folder of this cache.
      scenes: to be loaded, all of one size.
      load_scene: reads one scene.
      source: fingerprint of what is read.
      verify: compare the SHA-256 of the cached arrays too, not only their sizes.
      skip_bad: leave broken scenes out, with a warning, up to one in a hundred.

    Raises:
      InputError: a scene is broken, or differs in size from the others; or too many are.
      StorageError: the cache cannot be written.
    """
    packed = _cached(cache, [scene.id for scene in scenes], source, verify=verify, skip_bad=skip_bad)
    return packed or _build(cache, scenes, load_scene, source, skip_bad=skip_bad)


def _open(folder: Path) -> Views:
    return Views(*(np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in ARRAYS))


def _cached(cache: Path, ids: list[str], source: str, *, verify: bool, skip_bad: bool) -> Packed | None:
    """Returns what a cache holds, or None if that is not exactly what is wanted."""
    try:
        views = _open(cache)
        manifest = json.loads((cache / _MANIFEST).read_bytes())
        bad = manifest["bad"] if skip_bad else {}
        ids = [scene_id for scene_id in ids if scene_id not in bad]
        expected = _manifest(source, ids, bad, _describe(cache, manifest, verify=verify))
        leading = views.images.shape[:2]
        kinds = [(leaf.dtype, leaf.shape) for leaf in views]
        sound = kinds == [
            (np.uint8, (*leading, *views.images.shape[2:4], 4)),
            (np.float32, (*leading, 4, 4)),
            (np.float32, (len(ids),)),
        ]
    except Exception:  # Whatever is wrong with a cache, it is built anew.
        return None
    if not sound or leading[0] != len(ids) or manifest != expected:
        return None
    _tell_skipped(bad)
    return Packed(tuple(ids), views, _content(manifest))


def _manifest(source: str, ids: list[str], bad: dict[str, str], files: dict[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "source": source, "ids": ids, "bad": bad, "files": files}


def _describe(folder: Path, manifest: dict[str, Any], *, verify: bool) -> dict[str, dict[str, Any]]:
    """Returns the size and checksum of each array; the checksum is the manifest's where it need not be verified."""
    return {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": _sha256(folder / name) if verify else manifest["files"][name]["sha256"],
        }
        for name in ARRAYS
    }


def _build(
    cache: Path,
    scenes: Sequence[SceneFolder],
    load_scene: Callable[[Path], Views],
    source: str,
    *,
    skip_bad: bool,
) -> Packed:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        temporary = cache.parent / f"{cache.name}.{uuid.uuid4().hex}.tmp"
        temporary.mkdir()
        try:
            bad = decode_scenes(temporary, scenes, load_scene, skip_bad=skip_bad)
            if bad:
                scenes = _without(scenes, bad)
                decode_scenes(temporary, scenes, load_scene, skip_bad=False)
            ids = [scene.id for scene in scenes]
            manifest = _manifest(source, ids, bad, _describe(temporary, {}, verify=True))
            (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            # Stays mapped, whatever becomes of the file.
            packed = Packed(tuple(ids), _open(temporary), _content(manifest))
            _place(temporary, cache)
            return packed
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{cache} cannot be written: {error.strerror}; free some space on its disk") from error


def _without(scenes: Sequence[SceneFolder], bad: dict[str, str]) -> list[SceneFolder]:
    """Returns the sound scenes, and tells which are not; too many of these are an error."""
    if len(bad) > _MOST_BAD * len(scenes):
        first = next(iter(bad.values()))
        raise InputError(
            f"{len(bad)} of {len(scenes)} scenes are bad, more than one in a hundred, the first: {first}; "
            "python -m jaxmeta.data.check lists all"
        )
    _tell_skipped(bad)
    return [scene for scene in scenes if scene.id not in bad]


def _tell_skipped(bad: dict[str, str]) -> None:
    for problem in bad.values():
        print(f"warning: scene skipped: {problem}", file=sys.stderr)


def _sweep(cache: Path) -> None:
    """Removes what killed processes left unfinished."""
    for path in cache.parent.glob(f"{cache.name}.*.tmp"):
        with suppress(FileNotFoundError):  # Another process may sweep too.
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def _place(complete: Path, cache: Path) -> None:
    if cache.is_symlink() or cache.is_file():
        cache.unlink()
    shutil.rmtree(cache, ignore_errors=True)
    try:
        os.replace(complete, cache)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # Another process was faster: its cache is as good.
            raise


def _files(path: Path, name: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yields the files at or below a path in a fixed order, with their sizes and times; follows no link to a folder."""
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):  # such as the cache itself; no reader reads these
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), f"{name}/{entry.name}")
            else:
                yield f"{name}/{entry.name}", entry.stat(follow_symlinks=entry.is_symlink() and os.path.isfile(entry))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(manifest: dict[str, Any]) -> str:
    parts = [*manifest["ids"], *(manifest["files"][name]["sha256"] for name in ARRAYS)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
