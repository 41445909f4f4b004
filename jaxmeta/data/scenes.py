"""What the readers of all layouts share: a scene on disk, and views as arrays."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmeta.cameras import Views
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
      InputError: one is missing or malformed, or a link that leads elsewhere.
    """
    paths = [folder / f"{name}.png" for name in names]
    check_inside(folder, *paths)
    return [read_rgba(path, assume_opaque=assume_opaque) for path in paths]


def check_inside(folder: Path, *paths: Path) -> None:
    """Raises InputError where a path leads out of the folder of its scene, through a link."""
    root = os.path.join(os.path.realpath(folder), "")
    for path in paths:
        try:
            outside = not os.path.realpath(path).startswith(root)
        except ValueError as error:
            reject(path, f"cannot be read: {error}")
        if outside:
            reject(path, f"is a link that leads out of {folder}")


def stack_views(path: Path, images: Sequence[np.ndarray], poses: np.ndarray, focal: float) -> Views:
    """Returns the views of one scene.

    Raises:
      InputError: the images differ in size; `path` says where they are listed.
    """
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        reject(path, f"has views of different sizes: {' and '.join(f'{w} x {h}' for h, w in sorted(sizes))} pixels")
    return Views(np.stack(images), poses.astype(np.float32), np.array(focal, np.float32))
