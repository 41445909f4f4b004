"""The reader of NeRF's synthetic scenes: one object, a file for each split, images in subfolders."""

import math
from pathlib import Path

import numpy as np
import pytest
from datasets import ANGLE, IMAGES, POSES, edit_json, encode, refused, write_blender

from jaxmeta.data.splits import load_split


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_blender(tmp_path / "lego")


def load(root: Path, split: str = "train", **options):
    return load_split(root, "lego", split, **{"num_views": 2} | options)


def edit_frame(**values):
    return lambda root: edit_json(root / "transforms_train.json", lambda content: content["frames"][1].update(values))


def test_a_split_is_one_scene(root):
    split = load(root)
    assert split.ids == ("lego",)
    np.testing.assert_array_equal(split.views.images, IMAGES[:1])
    np.testing.assert_array_equal(split.views.poses, POSES[:1])
    np.testing.assert_allclose(split.views.focal, 3 / math.tan(ANGLE / 2), rtol=1e-6)
    np.testing.assert_array_equal(load(root, "test").views.images, 255 - IMAGES[:1])


def test_a_relative_root_has_its_name(root, monkeypatch):
    monkeypatch.chdir(root)
    assert load(Path()).ids == ("lego",)


@pytest.mark.parametrize(("width", "height"), [(16, 9), (9, 16), (8, 8)])
def test_the_angle_is_across_the_width(tmp_path, width, height):
    root = write_blender(tmp_path, np.zeros((2, height, width, 4), np.uint8))
    views = load(root).views
    assert views.images.shape == (1, 2, height, width, 4)
    # A ray at half of the angle passes half of the width beside the middle, whatever the height.
    np.testing.assert_allclose(views.focal * math.tan(ANGLE / 2), width / 2, rtol=1e-6)


@pytest.mark.parametrize("file_path", ["train/deeper/x y", "./train/deeper/x y", "train//deeper/./x y"])
def test_images_lie_in_subfolders_under_any_name(root, file_path):
    (root / "train" / "deeper").mkdir()
    (root / "train" / "deeper" / "x y.png").write_bytes(encode(IMAGES[2, 0]))
    edit_frame(file_path=file_path)(root)
    np.testing.assert_array_equal(load(root).views.images[0, 1], IMAGES[2, 0])


def test_d5_rgb_is_opaque_when_asked_for(root):
    for path in (root / "train").iterdir():
        path.write_bytes(encode(IMAGES[0, 0, ..., :3]))
    with refused(r"r_0\.png is RGB at 8 bits"):
        load(root)
    assert (load(root, assume_opaque=True).views.images[..., 3] == 255).all()


@pytest.mark.parametrize(
    "file_path",
    [
        "",
        ".",
        "..",
        "../lego/train/r_0",
        "/etc/passwd",
        "train/../../x",
        "..\\..\\x",
        "a\\b",
        "a\0b",
        "/",
        ".jaxmeta/x",
        "a/.b",
    ],
)
def test_d11_a_file_path_stays_inside(root, file_path):
    edit_frame(file_path=file_path)(root)
    with refused(r"transforms_train\.json has file_path '.*' in frames\[1\], wanted a path inside its folder"):
        load(root)


@pytest.mark.parametrize("file_path", ["\ud800", "a" * 300, "train/r_0/deeper", "none"])
def test_d7_no_image(root, file_path):
    edit_frame(file_path=file_path)(root)
    with refused(r"\.png'? cannot be read: "):
        load(root)


@pytest.mark.parametrize("relative", [True, False])
def test_d11_no_link_leads_out(root, relative):
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "r_1.png").write_bytes(encode(IMAGES[0, 1]))
    image = root / "train" / "r_1.png"
    image.unlink()
    image.symlink_to("../../outside/r_1.png" if relative else outside / "r_1.png")
    with refused(r"train.r_1\.png is a link that leads out of .*lego"):
        load(root)
    (root / "linked").symlink_to(outside)
    edit_frame(file_path="linked/r_1")(root)
    with refused(r"linked.r_1\.png is a link that leads out of .*lego"):
        load(root)


def test_a_link_inside_is_followed(root):
    (root / "train" / "r_1.png").unlink()
    (root / "train" / "r_1.png").symlink_to("../test/r_1.png")
    np.testing.assert_array_equal(load(root).views.images[0, 1], 255 - IMAGES[0, 1])


def test_d11_a_name_that_only_begins_like_the_folder_is_outside(root):
    sibling = root.parent / "lego2"
    sibling.mkdir()
    (sibling / "x.png").write_bytes(encode(IMAGES[0, 1]))
    (root / "x.png").symlink_to(sibling / "x.png")
    edit_frame(file_path="x")(root)
    with refused(r"x\.png is a link that leads out of"):
        load(root)


def test_d7_too_few_views(root):
    with refused(r"transforms_train\.json lists 2 frames, 3 are wanted; ask for fewer .--data.num-views."):
        load(root, num_views=3)


def test_d10_unknown_split(root):
    with refused(r"holds no data of class 'lego' and split 'val': .*transforms_val\.json"):
        load(root, "val")
    with refused(r"transforms_val\.json cannot be read: No such file"):
        load(root, "val", layout="blender")
