"""The layout of Scene Representation Networks (Sitzmann et al. 2019): a folder for each split, text files for cameras.

    <root>/<class>_train/<id>/intrinsics.txt   focal cx cy 0. / x y z / scale / height width
    <root>/<class>_train/<id>/pose/000000.txt  16 numbers: camera to world, OpenCV axes (x right, y down, z forwards)
    <root>/<class>_train/<id>/rgb/000000.png   RGB or RGBA on white; RGB needs assume_opaque

and likewise `<class>_val` and `<class>_test`; `<class>` may have an s (`cars_train`). Scenes come in the order of their
ids, views in the order of their names.
"""

from functools import partial
from pathlib import Path

import numpy as np

from jaxmeta.cameras import Views
from jaxmeta.data.faults import gather
from jaxmeta.data.png import read_bytes, reject
from jaxmeta.data.scenes import NAME, SceneFolder, check_inside, read_images, stack_views
from jaxmeta.data.transforms import check_pose
from jaxmeta.words import counted

_OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_SMALLEST, _LARGEST = 1e-3, 1e9
"""Pixels that a focal length or an image may measure."""


def split_folder(root: Path, class_name: str, split: str) -> Path | None:
    """Returns the folder of a split's scenes, or None where there is none."""
    names = (f"{class_name}_{split}", f"{class_name}s_{split}")
    return next((root / name for name in names if (root / name).is_dir()), None)


def scene_folders(root: Path, class_name: str, split: str, *, allow_overlap: bool = False) -> list[SceneFolder]:
    """Returns the scenes in the folder of a split, by id; other splits may have them too only if that is allowed.

    Raises:
      InputError: there are none, a folder's name is no id, or another split has the same id.
    """
    folder = split_folder(root, class_name, split)
    if folder is None:
        reject(root, f"has no folder '{class_name}_{split}' or '{class_name}s_{split}'")
    scenes = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    if not scenes:
        reject(folder, "holds no scenes")
    for path in scenes:
        if not NAME.fullmatch(path.name):
            reject(path, "has a name that is no scene id: letters, digits, '.', '_' and '-'")
    others = [split_folder(root, class_name, other) for other in ("train", "val", "test") if other != split]
    for path in () if allow_overlap else scenes:
        twin = next((other / path.name for other in others if other and (other / path.name).is_dir()), None)
        if twin:
            reject(path, f"is also {twin}; a scene belongs to one split, or give --data.allow-overlap")
    return [SceneFolder(path.name, path) for path in scenes]


def load_scene(folder: Path, *, num_views: int, assume_opaque: bool = False) -> Views:
    """Returns the first views of one scene.

    Raises:
      InputError: something is missing or malformed.
    """
    pose_paths, intrinsics_path = _pose_paths(folder), folder / "intrinsics.txt"
    names = [f"rgb/{path.stem}" for path in pose_paths[:num_views]]
    _, poses, images, intrinsics = gather(
        lambda: _check_count(folder / "pose", len(pose_paths), num_views),
        lambda: gather(*(partial(_read_pose, folder, path) for path in pose_paths[:num_views])),
        lambda: read_images(folder, names, assume_opaque=assume_opaque),
        lambda: _read_intrinsics(folder, intrinsics_path),
    )
    focal = _focal(intrinsics_path, intrinsics, images[0].shape[:2])
    return stack_views(folder / "rgb", images, np.stack(poses), focal)


def count_views(folder: Path) -> int:
    """Returns how many views one scene has."""
    return len(_pose_paths(folder))


def _pose_paths(folder: Path) -> list[Path]:
    return sorted((folder / "pose").glob("[!.]*.txt"))


def _check_count(path: Path, count: int, wanted: int) -> None:
    if count < wanted:
        reject(path, f"has {counted(count, 'pose')}, {wanted} are wanted; ask for fewer (--data.num-views)")


def _read_pose(folder: Path, path: Path) -> np.ndarray:
    check_inside(folder, path)
    numbers = _read_numbers(path)
    if len(numbers) != 16:
        reject(path, f"holds {len(numbers)} numbers, wanted the 16 of a pose")
    return check_pose(path, "pose", np.reshape(numbers, (4, 4))) @ _OPENCV_TO_OPENGL


def _read_intrinsics(folder: Path, path: Path) -> tuple[float, float, float]:
    """Returns the focal length, and the height and width of the images that it is for, all in pixels."""
    check_inside(folder, path)
    numbers = _read_numbers(path)
    if len(numbers) < 6:
        reject(path, f"holds {len(numbers)} numbers, wanted focal, cx, cy, ..., height, width")
    focal, cx, cy = numbers[:3]
    height, width = numbers[-2:]
    if not all(_SMALLEST < number < _LARGEST for number in (focal, height, width)):
        reject(path, f"has focal {focal}, height {height} and width {width}, wanted positive numbers of pixels")
    if abs(cx - width / 2) > 1 or abs(cy - height / 2) > 1:
        reject(path, f"has its principal point at {cx}, {cy}, wanted the centre of {width:g} x {height:g} pixels")
    return focal, height, width


def _focal(path: Path, intrinsics: tuple[float, float, float], size: tuple[int, int]) -> float:
    """Returns the focal length in pixels of an image of this height and width."""
    focal, height, width = intrinsics
    if abs(height * size[1] - width * size[0]) > 1e-3 * width * size[0]:
        reject(path, f"is for images of {width:g} x {height:g} pixels, but they are {size[1]} x {size[0]}")
    # Images that were scaled down keep the intrinsics of the original size.
    return focal * size[1] / width


def _read_numbers(path: Path) -> list[float]:
    try:
        numbers = [float(word) for word in read_bytes(path).decode("ascii").split()]
    except ValueError as error:
        reject(path, f"holds something that is not a number: {error}")
    if not np.isfinite(numbers).all():
        reject(path, "holds a number that is not finite")
    return numbers
