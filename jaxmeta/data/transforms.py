"""Reads and writes `transforms.json`, the cameras of a scene in the layouts that descend from Blender's export.

`camera_angle_x` is the horizontal field of view in radians; each of `frames` has a `file_path`, without `.png`, and a
`transform_matrix`, 4x4, camera to world, OpenGL axes.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float

from jaxmeta.cameras import Views
from jaxmeta.data.faults import gather
from jaxmeta.data.png import read_bytes, reject
from jaxmeta.data.scenes import check_inside, read_image, stack_views
from jaxmeta.words import counted

_MIN_ANGLE = 1e-6
"""Below, a focal length would leave float32."""


class Transforms(NamedTuple):
    """The cameras of some views."""

    file_paths: tuple[str, ...]
    poses: Float[np.ndarray, "views 4 4"]
    camera_angle_x: float


def read_views(
    path: Path, image_name: Callable[[Path, int, str], str], *, num_views: int, assume_opaque: bool
) -> Views:
    """Returns the first views that a file lists, with their images, which lie below its folder.

    Args:
      path: of the file.
      image_name: `(path, index, file_path) -> name` below the folder, without `.png`; refuses what is none.
      num_views: how many.
      assume_opaque: take RGB images, as opaque.

    Raises:
      InputError: the file is missing or malformed, lists too few views, or an image is; FaultsError for each fault.
    """
    check_inside(path.parent, path)
    content = read_json(path)
    frames = _frames(path, content)

    def pose(index: int) -> np.ndarray:
        matrix = _frame(path, frames, index).get("transform_matrix")
        return check_pose(path, f"transform_matrix in frames[{index}]", matrix)

    def image(index: int) -> np.ndarray:
        name = _frame(path, frames, index).get("file_path")
        if not isinstance(name, str):
            reject(path, f"has file_path {name!r} in frames[{index}], wanted the path of an image")
        return read_image(path.parent, image_name(path, index, name), assume_opaque=assume_opaque)

    views = range(min(num_views, len(frames)))
    _, angle, poses, images = gather(
        lambda: _check_count(path, len(frames), num_views),
        lambda: _camera_angle(path, content),
        lambda: gather(*(partial(pose, view) for view in views)),
        lambda: gather(*(partial(image, view) for view in views)),
    )
    return stack_views(path, images, np.stack(poses), focal_length(angle, images[0].shape[1]))


def count_frames(path: Path) -> int:
    """Returns how many views a file lists.

    Raises:
      InputError: the file is missing or malformed.
    """
    return len(_frames(path, read_json(path)))


def _frames(path: Path, content: dict[str, Any]) -> list[Any]:
    frames = content.get("frames")
    if not isinstance(frames, list):
        reject(path, "has no list 'frames'")
    return frames


def _frame(path: Path, frames: list[Any], index: int) -> dict[str, Any]:
    if not isinstance(frames[index], dict):
        reject(path, f"has a frames[{index}] that is not an object")
    return frames[index]


def _check_count(path: Path, count: int, wanted: int) -> None:
    if count < wanted:
        reject(path, f"lists {counted(count, 'frame')}, {wanted} are wanted; ask for fewer (--data.num-views)")


def _camera_angle(path: Path, content: dict[str, Any]) -> float:
    angle = content.get("camera_angle_x")
    if not isinstance(angle, int | float) or isinstance(angle, bool) or not _MIN_ANGLE < angle < math.pi:
        reject(path, f"has camera_angle_x {angle!r}, wanted radians between 0 and pi")
    return float(angle)


def write_transforms(path: Path, transforms: Transforms) -> None:
    """Writes a file that `read_transforms` reads."""
    frames = [
        {"file_path": name, "transform_matrix": pose.tolist()}
        for name, pose in zip(transforms.file_paths, transforms.poses, strict=True)
    ]
    path.write_text(json.dumps({"camera_angle_x": transforms.camera_angle_x, "frames": frames}, indent=1))


def focal_length(camera_angle_x: float, width: int) -> float:
    """Returns the focal length in pixels of a camera with this horizontal field of view."""
    return width / 2 / math.tan(camera_angle_x / 2)


def check_pose(path: Path, where: str, pose: Any) -> Float[np.ndarray, "4 4"]:
    """Returns a pose as an array.

    Raises:
      InputError: it is not a finite rigid motion; `path` and `where` say where it stands.
    """
    try:
        array = np.array(pose, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != (4, 4) or not (np.abs(array) < np.finfo(np.float32).max).all():
        reject(path, f"has a {where} that is not a finite 4x4 matrix")
    rotation = array[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        reject(path, f"has a {where} that is not a rigid motion: its rotation is scaled, sheared or mirrored")
    if np.abs(array[3] - (0, 0, 0, 1)).max() > 1e-6:
        reject(path, f"has a {where} whose last row is not 0 0 0 1")
    return array


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a file holds as strict JSON, in which NaN is an error.

    Raises:
      InputError: the file is missing, too large or malformed.
    """
    try:
        content = json.loads(read_bytes(path), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reject(path, f"is not valid JSON: {error}")
    if not isinstance(content, dict):
        reject(path, "does not hold a JSON object")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
