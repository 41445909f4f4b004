"""Small data sets of every layout for the tests of the readers, and ways to break them."""

import contextlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmeta.cameras import orbit_pose
from jaxmeta.data.shapenet import write_scene, write_splits
from jaxmeta.errors import InputError

ANGLE = 0.7
NUM_SCENES, NUM_VIEWS, HEIGHT, WIDTH = 3, 2, 4, 6
IMAGES = np.random.default_rng(0).integers(1, 256, (NUM_SCENES, NUM_VIEWS, HEIGHT, WIDTH, 4), dtype=np.uint8)
POSES = np.stack(
    [[orbit_pose(scene + view, 0.5, 4.0) for view in range(NUM_VIEWS)] for scene in range(NUM_SCENES)]
).astype(np.float32)
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


@contextlib.contextmanager
def refused(message: str) -> Iterator[None]:
    """Expects what a user is told, and the exit code of bad input."""
    with pytest.raises(InputError, match=message) as caught:
        yield
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def write_shapenet(root: Path) -> Path:
    """The authors' layout: scenes 2 and 0 are for training, 1 for testing."""
    for index, (images, poses) in enumerate(zip(IMAGES, POSES, strict=True)):
        write_scene(root / "cars" / f"scene{index}", images, poses, ANGLE)
    write_splits(root, "car", {"train": ["scene2", "scene0"], "test": ["scene1"]})
    return root


def write_srn(root: Path, images: np.ndarray = IMAGES, intrinsics: str | None = None) -> Path:
    """The layout of Scene Representation Networks: the first two scenes are for training, the others for testing."""
    height, width = images.shape[2:4]
    intrinsics = intrinsics or f"10.0 {width / 2} {height / 2} 0.\n0. 0. 0.\n1.\n{height} {width}\n"
    for index, (views, poses) in enumerate(zip(images, POSES, strict=False)):
        folder = root / ("cars_train" if index < 2 else "cars_test") / f"scene{index}"
        (folder / "rgb").mkdir(parents=True)
        (folder / "pose").mkdir()
        (folder / "intrinsics.txt").write_text(intrinsics)
        for view, (image, pose) in enumerate(zip(views, poses, strict=True)):
            (folder / "rgb" / f"{view:06d}.png").write_bytes(encode(image))
            (folder / "pose" / f"{view:06d}.txt").write_text(" ".join(str(x) for x in (pose @ OPENGL_TO_OPENCV).flat))
    return root


def write_blender(root: Path, images: np.ndarray = IMAGES[0]) -> Path:
    """The layout of NeRF's synthetic scenes: one object, its images in a folder for each split."""
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        frames = [
            {"file_path": f"./{split}/r_{view}", "rotation": 0.1, "transform_matrix": pose.tolist()}
            for view, pose in enumerate(POSES[0])
        ]
        for view, image in enumerate(images if split == "train" else 255 - images):
            (root / split / f"r_{view}.png").write_bytes(encode(image))
        write_json(root / f"transforms_{split}.json", {"camera_angle_x": ANGLE, "frames": frames})
    return root


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    write_json(path, content)


def encode(image: np.ndarray, kind: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, bits: int, colour_type: int, *, header_only: bool = False) -> bytes:
    """A black PNG of any kind, put together by hand."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour_type, 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    if header_only:
        return SIGNATURE + header
    rows = (b"\0" + bytes((width * channels * bits + 7) // 8)) * height
    palette = chunk(b"PLTE", bytes(3 * min(2**bits, 256))) if colour_type == 3 else b""
    return SIGNATURE + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
