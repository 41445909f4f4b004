"""The layout of NeRF's synthetic scenes (Mildenhall et al. 2020): one object, a file for each split.

    <root>/transforms_<split>.json       see transforms.py; file_path is relative to <root>, such as ./train/r_0
    <root>/<file_path>.png               8-bit RGBA

A split is one scene, the object, with the views of that split.
"""

from pathlib import Path, PurePosixPath

from jaxmeta.cameras import Views
from jaxmeta.data.png import reject
from jaxmeta.data.transforms import count_frames, read_views


def transforms_path(root: Path, split: str) -> Path:
    """Returns the file that lists the views of a split."""
    return root / f"transforms_{split}.json"


def load_scene(root: Path, *, split: str, num_views: int, assume_opaque: bool = False) -> Views:
    """Returns the first views of a split.

    Raises:
      InputError: something is missing or malformed.
    """
    path = transforms_path(root, split)
    return read_views(path, _image_name, num_views=num_views, assume_opaque=assume_opaque)


def count_views(root: Path, *, split: str) -> int:
    """Returns how many views a split lists.

    Raises:
      InputError: its cameras are missing or malformed.
    """
    return count_frames(transforms_path(root, split))


def _image_name(path: Path, index: int, file_path: str) -> str:
    parts = PurePosixPath(file_path)
    hidden = any(part.startswith(".") for part in parts.parts)  # ".." among them
    if not parts.name or parts.is_absolute() or hidden or "\\" in file_path or "\0" in file_path:
        reject(path, f"has file_path {file_path!r} in frames[{index}], wanted a path inside its folder")
    return str(parts)
