"""The layout of the paper's authors: a folder of scenes, each a `transforms.json` with RGBA PNGs beside it.

    <root>/<class>_splits.json           {"train": [id, ...], "val": [...], "test": [...]}
    <root>/<class>/<id>/transforms.json  see transforms.py; only the last part of a file_path counts
    <root>/<class>/<id>/<frame>.png      8-bit RGBA

The folder of the scenes may be called `<class>` or `<class>s`.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import imageio.v3 as iio
import numpy as np
from jaxtyping import Float, UInt8

from jaxmeta.cameras import Views
from jaxmeta.data.png import reject
from jaxmeta.data.scenes import NAME, SceneFolder
from jaxmeta.data.transforms import Transforms, count_frames, read_json, read_views, write_transforms


def splits_path(root: Path, class_name: str) -> Path:
    """Returns the file that lists the scenes of each split."""
    return root / f"{class_name}_splits.json"


def scene_folders(root: Path, class_name: str, split: str, *, allow_overlap: bool = False) -> list[SceneFolder]:
    """Returns the scenes that a split lists, in its order; other splits may have them too only if that is allowed.

    Raises:
      InputError: the list or the folder is missing or malformed.
    """
    path = splits_path(root, class_name)
    splits = read_json(path)
    if split not in splits:
        reject(path, f"has no split '{split}', only {sorted(splits)}")
    _check_ids(path, splits, split, allow_overlap=allow_overlap)
    folder = next((root / name for name in (class_name, f"{class_name}s") if (root / name).is_dir()), None)
    if folder is None:
        reject(root, f"has no folder '{class_name}' or '{class_name}s' with the scenes of {path.name}")
    return [SceneFolder(scene_id, folder / scene_id) for scene_id in splits[split]]


def load_scene(folder: Path, *, num_views: int, assume_opaque: bool = False) -> Views:
    """Returns the first views of one scene.

    Raises:
      InputError: something is missing or malformed.
    """
    path = folder / "transforms.json"
    return read_views(path, _image_name, num_views=num_views, assume_opaque=assume_opaque)


def _image_name(path: Path, index: int, file_path: str) -> str:
    name = PurePosixPath(file_path).name
    if not NAME.fullmatch(name):
        reject(path, f"has file_path {file_path!r} in frames[{index}], wanted an image's name")
    return name


def count_views(folder: Path) -> int:
    """Returns how many views one scene lists.

    Raises:
      InputError: its cameras are missing or malformed.
    """
    return count_frames(folder / "transforms.json")


def write_scene(
    folder: Path,
    images: UInt8[np.ndarray, "views height width 4"],
    poses: Float[np.ndarray, "views 4 4"],
    camera_angle_x: float,
) -> None:
    """Writes one scene's `transforms.json` and PNGs into a folder, which is made if need be.

    Args:
      folder: the scene's; its name is the scene's id.
      images: RGBA, straight alpha.
      poses: camera to world.
      camera_angle_x: the horizontal field of view in radians.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"r_{view}" for view in range(len(images))]
    for name, image in zip(names, images, strict=True):
        iio.imwrite(folder / f"{name}.png", image, plugin="pillow")
    file_paths = tuple(f"./{name}" for name in names)
    write_transforms(folder / "transforms.json", Transforms(file_paths, poses, camera_angle_x))


def write_splits(root: Path, class_name: str, splits: dict[str, list[str]]) -> None:
    """Writes `<class>_splits.json`: which scene ids are for training, validation and testing."""
    root.mkdir(parents=True, exist_ok=True)
    splits_path(root, class_name).write_text(json.dumps(splits, indent=1))


def _check_ids(path: Path, splits: dict[str, object], split: str, *, allow_overlap: bool) -> None:
    ids = splits[split]
    if not isinstance(ids, list) or not ids:
        reject(path, f"lists no scenes in '{split}'")
    for scene_id in ids:
        if not isinstance(scene_id, str) or not NAME.fullmatch(scene_id):
            reject(path, f"has the scene id {scene_id!r} in '{split}'; ids are letters, digits, '.', '_' and '-'")
    if len(set(ids)) < len(ids):
        reject(path, f"lists {_first_repeated(ids)!r} twice in '{split}'")
    for other, other_ids in splits.items():
        shared = set(ids) & {i for i in other_ids if isinstance(i, str)} if isinstance(other_ids, list) else set()
        if other != split and shared and not allow_overlap:
            reject(
                path,
                f"lists {min(shared)!r} both in '{split}' and in '{other}'; a scene belongs to one split, or give "
                "--data.allow-overlap",
            )


def _first_repeated(ids: Sequence[str]) -> str:
    return next(scene_id for index, scene_id in enumerate(ids) if scene_id in ids[:index])
