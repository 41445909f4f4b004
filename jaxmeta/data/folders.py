"""Splits of scenes that are one file each, or that are made up.

A folder of scenes has one within it for each split, or the scenes themselves. Then a hash of its name says which split
a scene is of, 8 : 1 : 1.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxmeta.data.png import reject
from jaxmeta.errors import InputError

Loaded = tuple[tuple[str, ...], np.ndarray, str]
"""The scenes' ids, the scenes along the leading axis, and a hash that tells other data apart."""

MADE_UP = {"train": 2048, "val": 64, "test": 256}
"""How many scenes of each split are drawn where there are no data."""


SMALLEST = 8
"""Pixels along a side; in fewer no picture can be told from another, and parts of it may be empty."""


def check_size(size: int) -> None:
    """Refuses scenes that are too small to show anything.

    Raises:
      InputError: names the flag and the smallest size.
    """
    if size < SMALLEST:
        raise InputError(f"--data.size {size} must be at least {SMALLEST}: pixels along a side")


def draw_split(name: str, draw: Callable[..., Array], split: str, *, size: int, count: int | None) -> Loaded:
    """Returns a split of scenes that are made up.

    Args:
      name: of one scene.
      draw: `(keys, *, size)`: a scene for each key.
      split: a key of `MADE_UP`.
      size: pixels along a side.
      count: how many; None for as many as `MADE_UP` says.

    Raises:
      InputError: there is no such split.
    """
    if split not in MADE_UP:
        raise InputError(f"there is no split '{split}' of scenes that are made up; wanted one of {', '.join(MADE_UP)}")
    count, key = count or MADE_UP[split], jax.random.fold_in(jax.random.key(0), list(MADE_UP).index(split))
    keys: Key[Array, "scenes"] = jax.vmap(partial(jax.random.fold_in, key))(np.arange(count))
    ids = tuple(f"{name}{i}" for i in range(count))
    return ids, np.asarray(draw(keys, size=size)), _content_of(f"{name}s 1", split, size, count)


def read_split(
    root: Path, split: str, suffixes: Sequence[str], read: Callable[..., np.ndarray], *, size: int, count: int | None
) -> Loaded:
    """Returns a split of scenes that are files, by name.

    Args:
      root: holds the files, as above.
      split: such as "train".
      suffixes: of the files that count, in lower case.
      read: `(path, *, size)`: what a file holds.
      size: pixels along a side.
      count: at most so many, the first ones; None for all.

    Raises:
      InputError: there are none, or one cannot be read.
    """
    files = split_files(root, split, suffixes)[:count]
    with ThreadPoolExecutor() as pool:
        scenes = np.stack(list(pool.map(partial(read, size=size), files)))
    return with_content(tuple(path.name for path in files), scenes)


def with_content(ids: tuple[str, ...], scenes: np.ndarray) -> Loaded:
    """Returns scenes that were read, with a hash of all of them."""
    return ids, scenes, _content_of(ids, scenes.shape, scenes.tobytes())


def split_files(root: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    """Returns the files of a split, by name.

    Raises:
      InputError: there are none.
    """
    own = root / split
    folder = own if own.is_dir() else root
    if not folder.is_dir():
        reject(root, "is not there, or is no folder; see --data.root")
    files = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes)
    if folder == root:
        files = [path for path in files if _split_of(path.name) == split]
    if not files:
        reject(
            folder,
            f"has no files of split '{split}' that end in {', '.join(suffixes)}; put those of the split into {own}",
        )
    return files


def _split_of(name: str) -> str:
    place = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[0] * 10 // 256
    return {8: "val", 9: "test"}.get(place, "train")


def _content_of(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()
