"""The layout of the paper's authors: a folder of scenes, each a `transforms.json` with RGBA PNGs beside it.

    <root>/<class>_splits.json           {"train": [id, ...], "val": [...], "test": [...]}
    <root>/<class>/<id>/transforms.json  camera_angle_x in radians; frames: file_path, transform_matrix (4x4, camera
                                         to world). Only the last part of file_path counts; ".png" is appended.
    <root>/<class>/<id>/<frame>.png      8-bit RGBA

Anything missing or malformed raises InputError naming the file; nothing is skipped.
"""

import json
import math
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn

import imageio.v3 as iio
import numpy as np
from jaxtyping import Float, UInt8

from jaxmeta.cameras import Views
from jaxmeta.errors import InputError

_SCENE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_JSON_BYTES = 64 * 2**20
_MAX_SIDE = 4096


class Split(NamedTuple):
    """The scenes of one split."""

    ids: tuple[str, ...]
    views: Views


def load_split(root: Path, class_name: str, split: str, *, num_views: int, num_scenes: int | None = None) -> Split:
    """Returns the first views of the scenes that a split lists, in its order.

    Args:
      root: the folder that holds `<class>_splits.json` and the folder `<class>`.
      class_name: such as "car"; its scenes may lie in `<class>` or in `<class>s`.
      split: a key of the splits file.
      num_views: how many frames of each scene to load.
      num_scenes: at most so many scenes, the first ones; None for all.

    Raises:
      InputError: something is missing or malformed.
    """
    splits_path = root / f"{class_name}_splits.json"
    ids = _split_ids(splits_path, split)[:num_scenes]
    folder = next((root / name for name in (class_name, f"{class_name}s") if (root / name).is_dir()), None)
    if folder is None:
        raise InputError(
            f"{root} has no folder '{class_name}' or '{class_name}s' with the scenes of {splits_path.name}"
        )
    with ThreadPoolExecutor() as pool:
        scenes = list(pool.map(lambda scene_id: load_scene(folder / scene_id, num_views=num_views), ids))
    shape = scenes[0].images.shape
    for scene_id, scene in zip(ids, scenes, strict=True):
        if scene.images.shape != shape:
            raise InputError(
                f"{folder / scene_id} has views of {_size(scene)}, {folder / ids[0]} of {_size(scenes[0])}; "
                "all scenes of a split must have one size"
            )
    return Split(tuple(ids), Views(*(np.stack(leaves) for leaves in zip(*scenes, strict=True))))


def load_scene(folder: Path, *, num_views: int) -> Views:
    """Returns the first views of one scene.

    Raises:
      InputError: something is missing or malformed.
    """
    path = folder / "transforms.json"
    transforms = _read_json(path)
    frames = transforms.get("frames")
    if not isinstance(frames, list):
        _reject(path, "has no list 'frames'")
    if len(frames) < num_views:
        _reject(path, f"lists {len(frames)} frames, {num_views} are wanted; lower --data.num-views")
    angle = transforms.get("camera_angle_x")
    if not isinstance(angle, int | float) or not 0 < angle < math.pi:
        _reject(path, f"has camera_angle_x {angle!r}, wanted radians between 0 and pi")
    images, poses = zip(
        *(_load_frame(path, index, frame) for index, frame in enumerate(frames[:num_views])), strict=True
    )
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        _reject(path, f"has frames of different sizes: {sorted(sizes)}")
    width = images[0].shape[1]
    focal = width / 2 / math.tan(angle / 2)
    return Views(np.stack(images), np.stack(poses).astype(np.float32), np.array(focal, np.float32))


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
    frames = [{"file_path": f"./r_{i}", "transform_matrix": pose.tolist()} for i, pose in enumerate(poses)]
    for frame, image in zip(frames, images, strict=True):
        iio.imwrite(folder / f"{frame['file_path']}.png", image, plugin="pillow")
    transforms = {"camera_angle_x": camera_angle_x, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(transforms, indent=1))


def write_splits(root: Path, class_name: str, splits: dict[str, list[str]]) -> None:
    """Writes `<class>_splits.json`: which scene ids are for training, validation and testing."""
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{class_name}_splits.json").write_text(json.dumps(splits, indent=1))


def _split_ids(path: Path, split: str) -> list[str]:
    splits = _read_json(path)
    if split not in splits:
        _reject(path, f"has no split '{split}', only {sorted(splits)}")
    ids = splits[split]
    if not isinstance(ids, list) or not ids:
        _reject(path, f"lists no scenes in '{split}'")
    for scene_id in ids:
        if not isinstance(scene_id, str) or not _SCENE_ID.fullmatch(scene_id):
            _reject(path, f"has the scene id {scene_id!r} in '{split}'; ids are letters, digits, '.', '_' and '-'")
    if len(set(ids)) < len(ids):
        _reject(path, f"lists {next(i for i in ids if ids.count(i) > 1)!r} twice in '{split}'")
    return ids


def _load_frame(transforms_path: Path, index: int, frame: Any) -> tuple[np.ndarray, np.ndarray]:
    where = f"frames[{index}]"
    if not isinstance(frame, dict):
        _reject(transforms_path, f"has a {where} that is not an object")
    name = PurePosixPath(str(frame.get("file_path", ""))).name
    if not _SCENE_ID.fullmatch(name):
        _reject(transforms_path, f"has file_path {frame.get('file_path')!r} in {where}, wanted the name of an image")
    try:
        pose = np.array(frame.get("transform_matrix"), np.float64)
    except (TypeError, ValueError):
        pose = np.empty(0)
    if not _is_rigid(pose):
        _reject(transforms_path, f"has a transform_matrix in {where} that is not a finite 4x4 rigid motion")
    return _read_rgba(transforms_path.parent / f"{name}.png"), pose


def _is_rigid(pose: np.ndarray) -> bool:
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        return False
    rotation = pose[:3, :3]
    orthonormal = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    return bool(orthonormal and np.array_equal(pose[3], (0, 0, 0, 1)))


def _read_rgba(path: Path) -> UInt8[np.ndarray, "height width 4"]:
    try:
        data = path.read_bytes()
    except OSError as error:
        _reject(path, f"cannot be read: {error.strerror}")
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n":
        _reject(path, "is not a PNG file")
    width, height, bit_depth, colour_type = struct.unpack(">IIBB", data[16:26])
    if max(width, height) > _MAX_SIDE:
        _reject(path, f"is {width} x {height} pixels, more than {_MAX_SIDE} a side")
    if (bit_depth, colour_type) != (8, 6):
        _reject(path, f"has PNG colour type {colour_type} at {bit_depth} bits, wanted RGBA (6) at 8 bits")
    try:
        return iio.imread(data, plugin="pillow", extension=".png")
    except (OSError, ValueError, SyntaxError) as error:
        _reject(path, f"cannot be decoded: {error}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            _reject(path, f"is larger than {_MAX_JSON_BYTES} bytes")
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        _reject(path, f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        _reject(path, f"is not valid JSON: {error}")
    if not isinstance(content, dict):
        _reject(path, "does not hold a JSON object")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _size(scene: Views) -> str:
    return " x ".join(str(length) for length in scene.images.shape[:3])


def _reject(path: Path, problem: str) -> NoReturn:
    raise InputError(f"{path} {problem}")
