"""Reads and writes `transforms.json`, the cameras of a scene in the layouts that descend from Blender's export.

`camera_angle_x` is the horizontal field of view in radians; each of `frames` has a `file_path`, without `.png`, and a
`transform_matrix`, 4x4, camera to world, OpenGL axes.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float

from jaxmeta.data.png import read_bytes, reject

_MIN_ANGLE = 1e-6
"""Below, a focal length would leave float32."""


class Transforms(NamedTuple):
    """The cameras of some views."""

    file_paths: tuple[str, ...]
    poses: Float[np.ndarray, "views 4 4"]
    camera_angle_x: float


def read_transforms(path: Path, *, num_views: int) -> Transforms:
    """Returns the first views that a file lists.

    Raises:
      InputError: the file is missing or malformed, or lists too few views.
    """
    content = read_json(path)
    frames, angle = _frames(path, content), content.get("camera_angle_x")
    if len(frames) < num_views:
        reject(path, f"lists {len(frames)} frames, {num_views} are wanted; ask for fewer (--data.num-views)")
    if not isinstance(angle, int | float) or isinstance(angle, bool) or not _MIN_ANGLE < angle < math.pi:
        reject(path, f"has camera_angle_x {angle!r}, wanted radians between 0 and pi")
    parsed = [_parse_frame(path, index, frame) for index, frame in enumerate(frames[:num_views])]
    return Transforms(tuple(name for name, _ in parsed), np.stack([pose for _, pose in parsed]), float(angle))


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


def _parse_frame(path: Path, index: int, frame: Any) -> tuple[str, np.ndarray]:
    if not isinstance(frame, dict):
        reject(path, f"has a frames[{index}] that is not an object")
    name = frame.get("file_path")
    if not isinstance(name, str):
        reject(path, f"has file_path {name!r} in frames[{index}], wanted the path of an image")
    return name, check_pose(path, f"transform_matrix in frames[{index}]", frame.get("transform_matrix"))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
