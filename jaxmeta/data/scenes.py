"""What the readers of all layouts share: a scene on disk, and views as arrays."""

import os
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmeta.cameras import Views
from jaxmeta.data.faults import gather
from jaxmeta.data.png import read_rgba, reject

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a scene's id and an image's name look like; so none can leave its folder."""


class SceneFolder(NamedTuple):
    """A scene on disk."""

    id: str
    folder: Path


def read_images(folder: Path, names: Sequence[str], *, assume_opaque: bool) -> list[np.ndarray]:
    """Returns the images `<folder>/<name>.png`.

    Raises:
      FaultsError: some are missing or malformed, or links that lead elsewhere; holds what is wrong with each.
    """
    return gather(*(partial(read_image, folder, name, assume_opaque=assume_opaque) for name in names))


def read_image(folder: Path, name: str, *, assume_opaque: bool) -> np.ndarray:
    """Returns the image `<folder>/<name>.png`.

    Raises:
      InputError: it is missing or malformed, or a link that leads elsewhere.
    """
    path = folder / f"{name}.png"
    check_inside(folder, path)
    return read_rgba(path, assume_opaque=assume_opaque)


def check_inside(folder: Path, path: Path) -> None:
    """Raises InputError where a path leads out of the folder of its scene, through a link."""
    try:
        outside = not os.path.realpath(path).startswith(_real_folder(folder))
    except ValueError as error:
        reject(path, f"cannot be read: {error}")
    if outside:
        reject(path, f"is a link that leads out of {folder}")


@lru_cache(maxsize=128)
def _real_folder(folder: Path) -> str:
    return os.path.join(os.path.realpath(folder), "")


def stack_views(path: Path, images: Sequence[np.ndarray], poses: np.ndarray, focal: float) -> Views:
    """Returns the views of one scene.

    Raises:
      InputError: the images differ in size; `path` says where they are listed.
    """
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        reject(path, f"has views of different sizes: {' and '.join(f'{w} x {h}' for h, w in sorted(sizes))} pixels")
    return Views(np.stack(images), poses.astype(np.float32), np.array(focal, np.float32))
