"""Decodes scenes in parallel, straight into npy files; memory holds few of them at a time."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from jaxmeta.cameras import Views
from jaxmeta.data.scenes import SceneFolder
from jaxmeta.errors import InputError

ARRAYS = tuple(f"{name}.npy" for name in Views._fields)
"""The file of each array, with scenes along the leading axis."""


def decode_scenes(
    folder: Path, scenes: Sequence[SceneFolder], load_scene: Callable[[Path], Views], *, skip_bad: bool
) -> dict[str, str]:
    """Writes the arrays of all scenes; returns what is wrong with the bad ones, by id.

    Args:
      folder: of the arrays.
      scenes: to be decoded, all of one size.
      load_scene: reads one scene.
      skip_bad: go on without the bad ones, which leave gaps.

    Raises:
      InputError: a scene is broken and is not to be skipped, or differs in size from the others.
      OSError: the arrays cannot be written.
    """
    bad: dict[str, str] = {}

    def load(scene: SceneFolder) -> Views | None:
        try:
            return load_scene(scene.folder)
        except InputError as error:
            if not skip_bad:
                raise
            bad[scene.id] = str(error)
            return None

    at, first = next(((at, views) for at, views in enumerate(map(load, scenes)) if views), (0, None))
    if first is None:
        return bad
    with _open_arrays(folder, len(scenes), first) as store:

        def decode(index: int) -> None:
            views = first if index == at else load(scenes[index])
            if views is None:
                return
            if views.images.shape != first.images.shape:
                raise InputError(
                    f"{scenes[index].folder} has views of {_size(views)} pixels, {scenes[at].folder} of "
                    f"{_size(first)}; all scenes of a split must have one size"
                )
            store(index, views)

        pool = ThreadPoolExecutor()
        try:
            done = pool.map(decode, range(len(scenes)))
            for _ in tqdm(done, total=len(scenes), desc="decoding", unit="scene", disable=None, leave=False):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
    return bad


@contextmanager
def _open_arrays(folder: Path, num_scenes: int, like: Views) -> Iterator[Callable[[int, Views], None]]:
    """Yields what stores the views of one scene of so many, from any thread; they are on the disk at the end."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(_create(folder / name, num_scenes, leaf))
            for name, leaf in zip(ARRAYS, like, strict=True)
        ]
        starts = [file.tell() for file in files]
        turn = threading.Lock()

        def store(index: int, views: Views) -> None:
            with turn:  # Written, not mapped: a full disk kills a process that writes to a map.
                for file, start, leaf in zip(files, starts, views, strict=True):
                    file.seek(start + index * leaf.nbytes)
                    file.write(leaf.tobytes())

        yield store
        for file in files:
            file.flush()
            os.fsync(file.fileno())


def _create(path: Path, num_scenes: int, leaf: np.ndarray) -> BinaryIO:
    """Returns a new npy file, open behind its header, for as many arrays of this shape as there are scenes."""
    file = path.open("wb")
    header = {"descr": leaf.dtype.str, "fortran_order": False, "shape": (num_scenes, *leaf.shape)}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _size(views: Views) -> str:
    _, height, width, _ = views.images.shape
    return f"{width} x {height}"
