"""The reader of the authors' layout: what it returns, and how it refuses what is broken."""

import json
import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from jaxmeta.cameras import orbit_pose
from jaxmeta.data.shapenet import load_scene, write_scene, write_splits
from jaxmeta.data.splits import load_split
from jaxmeta.errors import InputError

ANGLE = 0.7


@pytest.fixture
def scenes() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 6, 4), dtype=np.uint8)
    poses = np.stack([[orbit_pose(scene + view, 0.5, 4.0) for view in range(2)] for scene in range(3)])
    return images, poses


@pytest.fixture
def root(tmp_path: Path, scenes: tuple[np.ndarray, np.ndarray]) -> Path:
    for index, (images, poses) in enumerate(zip(*scenes, strict=True)):
        write_scene(tmp_path / "cars" / f"scene{index}", images, poses, ANGLE)
    write_splits(tmp_path, "car", {"train": ["scene2", "scene0"], "test": ["scene1"]})
    return tmp_path


def load(root: Path, **options):
    return load_split(root, "car", "train", **{"num_views": 2} | options)


def test_what_was_written_is_read(root, scenes):
    split = load(root)
    assert split.ids == ("scene2", "scene0")
    assert split.views.images.dtype == np.uint8
    np.testing.assert_array_equal(split.views.images, scenes[0][[2, 0]])
    np.testing.assert_allclose(split.views.poses, scenes[1][[2, 0]], atol=1e-6)
    # Half of the width of 6 is seen under half of the angle.
    np.testing.assert_allclose(split.views.focal, 3 / math.tan(ANGLE / 2), rtol=1e-6)


def test_takes_the_first_scenes_and_views(root, scenes):
    split = load(root, num_scenes=1, num_views=1)
    np.testing.assert_array_equal(split.views.images, scenes[0][[2], :1])


def test_only_the_last_part_of_a_file_path_counts(root, scenes):
    edit_transforms(root, lambda content: content["frames"][0].update(file_path="../../elsewhere/r_0"))
    np.testing.assert_array_equal(load_scene(root / "cars" / "scene2", num_views=2).images, scenes[0][2])


def edit_transforms(root: Path, edit) -> None:
    path = root / "cars" / "scene2" / "transforms.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def edit_frame(**values):
    return lambda root: edit_transforms(root, lambda content: content["frames"][1].update(values))


def edit_content(**values):
    return lambda root: edit_transforms(root, lambda content: content.update(values))


def write_splits_text(text: str):
    return lambda root: (root / "car_splits.json").write_text(text)


def write_png(content: bytes):
    return lambda root: (root / "cars" / "scene2" / "r_1.png").write_bytes(content)


def encode(image: np.ndarray, extension: str = ".png", **options) -> bytes:
    return iio.imwrite("<bytes>", image, plugin="pillow", extension=extension, **options)


def truncate_png(root: Path) -> None:
    path = root / "cars" / "scene2" / "r_1.png"
    # Noise does not compress, so half of the file is half of the pixels.
    path.write_bytes(encode(np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8))[:80])


def flip_png_byte(root: Path) -> None:
    path = root / "cars" / "scene2" / "r_1.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 0xFF
    path.write_bytes(content)


IDENTITY = np.eye(4).tolist()
RGBA = np.zeros((4, 6, 4), np.uint8)
HUGE_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (100_000).to_bytes(4, "big") * 2 + b"\x08\x06\0\0\0" + bytes(20)

BROKEN = {
    "no splits file": (lambda root: (root / "car_splits.json").unlink(), r"car_splits\.json cannot be read: No such"),
    "splits not JSON": (write_splits_text("{"), r"car_splits\.json is not valid JSON"),
    "splits a list": (write_splits_text("[]"), r"car_splits\.json does not hold a JSON object"),
    "deep JSON": (write_splits_text("[" * 100_000), r"car_splits\.json is not valid JSON"),
    "no such split": (write_splits_text('{"test": ["a"]}'), r"has no split 'train', only \['test'\]"),
    "empty split": (write_splits_text('{"train": []}'), r"lists no scenes in 'train'"),
    "same id twice": (write_splits_text('{"train": ["scene0", "scene0"]}'), r"lists 'scene0' twice"),
    "id leaves the root": (write_splits_text('{"train": ["../scene0"]}'), r"has the scene id '\.\./scene0'"),
    "id is absolute": (write_splits_text('{"train": ["/etc"]}'), r"has the scene id '/etc'"),
    "unknown scene": (write_splits_text('{"train": ["nope"]}'), r"nope.transforms\.json cannot be read"),
    "NaN in a pose": (edit_frame(transform_matrix=[[math.nan] * 4] * 4), r"NaN is not a number"),
    "pose of 3 rows": (edit_frame(transform_matrix=IDENTITY[:3]), r"transform_matrix in frames\[1\]"),
    "ragged pose": (edit_frame(transform_matrix=[[1], [1, 2]]), r"transform_matrix in frames\[1\]"),
    "scaled pose": (edit_frame(transform_matrix=(2 * np.eye(4)).tolist()), r"transform_matrix in frames\[1\]"),
    "mirrored pose": (edit_frame(transform_matrix=np.diag([1.0, 1, -1, 1]).tolist()), r"transform_matrix in frames"),
    "no pose": (edit_frame(transform_matrix=None), r"transform_matrix in frames\[1\]"),
    "no file_path": (edit_frame(file_path=""), r"has file_path '' in frames\[1\]"),
    "file_path is dots": (edit_frame(file_path=".."), r"has file_path '\.\.' in frames\[1\]"),
    "frame not an object": (edit_content(frames=[1, 2]), r"frames\[0\] that is not an object"),
    "too few frames": (edit_content(frames=[]), r"lists 0 frames, 2 are wanted"),
    "no frames": (edit_content(frames=None), r"has no list 'frames'"),
    "angle too large": (edit_content(camera_angle_x=4.0), r"has camera_angle_x 4\.0"),
    "angle a text": (edit_content(camera_angle_x="wide"), r"has camera_angle_x 'wide'"),
    "no image": (lambda root: (root / "cars" / "scene2" / "r_1.png").unlink(), r"r_1\.png cannot be read: No such"),
    "empty image": (write_png(b""), r"r_1\.png is not a PNG file"),
    "HTML for an image": (write_png(b"<html>" * 20), r"r_1\.png is not a PNG file"),
    "JPEG for an image": (write_png(encode(RGBA[..., :3], ".jpeg")), r"r_1\.png is not a PNG file"),
    "RGB image": (write_png(encode(RGBA[..., :3])), r"r_1\.png has PNG colour type 2 at 8 bits, wanted RGBA"),
    "grey image": (write_png(encode(RGBA[..., 0])), r"r_1\.png has PNG colour type 0"),
    "16-bit image": (write_png(encode(RGBA[..., 0].astype(np.uint16))), r"r_1\.png has PNG colour type 0 at 16 bits"),
    "bomb": (write_png(HUGE_HEADER), r"r_1\.png is 100000 x 100000 pixels"),
    "truncated image": (truncate_png, r"r_1\.png cannot be decoded"),
    "damaged image": (flip_png_byte, r"r_1\.png cannot be decoded"),
    "other size in a scene": (write_png(encode(RGBA[:3])), r"has frames of different sizes"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_refuses_what_is_broken(root, damage, message):
    load(root)
    damage(root)
    with pytest.raises(InputError, match=message):
        load(root)


def test_refuses_scenes_of_different_sizes(root, scenes):
    write_scene(root / "cars" / "scene0", scenes[0][0][:, :3], scenes[1][0], ANGLE)
    with pytest.raises(InputError, match=r"scene0 has views of 2 x 3 x 6, .*scene2 of 2 x 4 x 6"):
        load(root)


def test_refuses_a_root_without_the_scenes_folder(root):
    (root / "cars").rename(root / "elsewhere")
    with pytest.raises(InputError, match="has no folder 'car' or 'cars'"):
        load(root)
