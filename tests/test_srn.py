"""The reader of Scene Representation Networks' layout: cameras by hand, and how it refuses what is broken."""

import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from datasets import HEIGHT, IMAGES, POSES, WIDTH, encode, refused, write_srn

from jaxmeta.cameras import orbit_pose, pixel_rays
from jaxmeta.data.splits import load_split
from jaxmeta.data.srn import load_scene


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_srn(tmp_path)


def load(root: Path, **options):
    return load_split(root, "car", "train", **{"num_views": 2} | options)


def file(root: Path, name: str) -> Path:
    return root / "cars_train" / "scene1" / name


def rewrite(name: str, content: str | bytes):
    return lambda root: file(root, name).write_bytes(content.encode() if isinstance(content, str) else content)


def test_what_was_written_is_read(root):
    split = load(root)
    assert split.ids == ("scene0", "scene1")
    np.testing.assert_array_equal(split.views.images, IMAGES[:2])
    np.testing.assert_array_equal(split.views.poses, POSES[:2])
    np.testing.assert_array_equal(split.views.focal, np.float32([10, 10]))
    assert load_split(root, "car", "test", num_views=1).ids == ("scene2",)


def test_the_folder_of_a_split_may_be_singular(root):
    (root / "cars_train").rename(root / "car_train")
    assert load(root).ids == ("scene0", "scene1")


def test_hidden_files_are_not_read(root):
    file(root, "pose/._000000.txt").write_bytes(b"\0\5\x16\7")
    (root / "cars_train" / ".checkpoints").mkdir()
    np.testing.assert_array_equal(load(root).views.poses, POSES[:2])


def test_poses_turn_from_opencv_to_opengl(root):
    # Both cameras look at the origin. The first is on +z with y up: its x is right, its y is down, -y, and its z
    # is forwards, -z. With OpenGL axes it is turned by nothing.
    rewrite("pose/000000.txt", "1 0 0 0  0 -1 0 0  0 0 -1 4  0 0 0 1")(root)
    # The second is on +x with z up: forwards is -x, down is -z, and right, forwards x up, is +y. With OpenGL axes,
    # its columns are right, up and backwards.
    rewrite("pose/000001.txt", "0 0 -1 3\n1 0 0 0\n0 -1 0 0\n0 0 0 1\n")(root)
    poses = load_scene(file(root, ""), num_views=2).poses
    np.testing.assert_array_equal(poses[0], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]])
    np.testing.assert_array_equal(poses[1], [[0, 0, 1, 3], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(poses[1], orbit_pose(0, 0, 3), atol=1e-7)
    for pose, towards_origin in zip(poses, ([0, 0, -1], [-1, 0, 0]), strict=True):
        row, column, pose, focal = (jnp.asarray(value) for value in (2, 3, pose, 10.0))
        ray = pixel_rays(row, column, pose, focal, height=4, width=6, pixel_centre=0.0)
        np.testing.assert_allclose(ray.directions, towards_origin, atol=1e-7)


@pytest.mark.parametrize(
    ("intrinsics", "focal"),
    [
        # Full size.
        ("10.0 3.0 2.0 0.\n0. 0. 0.\n1.\n4 6\n", 10.0),
        # Made of images of 480 x 320, where the focal length is 525 pixels: 6 / 480 of that here.
        ("525. 240. 160. 0.\n0. 0. 0.\n1.\n320 480\n", 6.5625),
        # The principal point may be the middle or the corner of the central pixel.
        ("10.0 2.5 1.5 0.\n0. 0. 0.\n1.\n4 6\n", 10.0),
    ],
)
def test_scaled_images_keep_the_intrinsics(tmp_path, intrinsics, focal):
    views = load(write_srn(tmp_path, intrinsics=intrinsics)).views
    np.testing.assert_allclose(views.focal, focal, rtol=1e-6)


def test_d5_rgb_is_opaque_when_asked_for(tmp_path):
    root = write_srn(tmp_path, IMAGES[..., :3])
    with refused(r"rgb.000000\.png is RGB at 8 bits, wanted RGBA at 8 bits; --data\.assume-opaque takes it"):
        load(root)
    images = load(root, assume_opaque=True).views.images
    np.testing.assert_array_equal(images[..., :3], IMAGES[:2, ..., :3])
    assert (images[..., 3] == 255).all()


def link_out(name: str):
    def damage(root: Path) -> None:
        path = file(root, name)
        path.rename(root / "outside")
        path.symlink_to(root / "outside")

    return damage


def hide_scenes(root: Path) -> None:
    for index in range(2):
        (root / "cars_train" / f"scene{index}").rename(root / "cars_train" / f".scene{index}")


POSE, CAMERA = "pose/000001.txt", "intrinsics.txt"
BROKEN = {
    "D6 one view of another size": (
        rewrite("rgb/000001.png", encode(IMAGES[0, 0, :3])),
        r"scene1.rgb has views of different sizes: 6 x 3 and 6 x 4 pixels",
    ),
    "D7 no image": (
        lambda root: file(root, "rgb/000001.png").unlink(),
        r"rgb.000001\.png cannot be read: No such file",
    ),
    "D7 too few poses": (
        lambda root: file(root, POSE).unlink(),
        r"scene1.pose has 1 pose, 2 are wanted; ask for fewer .--data.num-views.",
    ),
    "D7 no poses": (
        lambda root: file(root, "pose").rename(root / "elsewhere"),
        r"scene1.pose has 0 poses, 2 are wanted",
    ),
    "D7 no intrinsics": (lambda root: file(root, CAMERA).unlink(), r"intrinsics\.txt cannot be read: No such file"),
    "D8 NaN": (rewrite(POSE, "nan " * 16), r"000001\.txt holds a number that is not finite"),
    "D8 infinity": (rewrite(POSE, "1e999 " * 16), r"000001\.txt holds a number that is not finite"),
    "D8 text": (rewrite(POSE, "one " * 16), r"000001\.txt holds something that is not a number: .*'one'"),
    "D8 bytes": (rewrite(POSE, b"\xff\xfe\0"), r"000001\.txt holds something that is not a number"),
    "D8 15 numbers": (rewrite(POSE, "1 " * 15), r"000001\.txt holds 15 numbers, wanted the 16 of a pose"),
    "D8 empty pose": (rewrite(POSE, ""), r"000001\.txt holds 0 numbers, wanted the 16 of a pose"),
    "D8 mirrored pose": (
        rewrite(POSE, "1 0 0 0 0 1 0 0 0 0 -1 0 0 0 0 1"),
        r"000001\.txt has a pose that is not a rigid",
    ),
    "D8 last row": (rewrite(POSE, "1 0 0 0 0 1 0 0 0 0 1 0 0 0 1 1"), r"has a pose whose last row is not 0 0 0 1"),
    "D8 few intrinsics": (rewrite(CAMERA, "10 3 2"), r"intrinsics\.txt holds 3 numbers, wanted focal, cx, cy"),
    "D8 focal of 0": (rewrite(CAMERA, "0 3 2 0 4 6"), r"intrinsics\.txt has focal 0\.0, .* wanted positive numbers"),
    "D8 focal beyond float32": (rewrite(CAMERA, "1e300 3 2 0 4 6"), r"has focal 1e\+300, .* wanted positive numbers"),
    "D8 size beyond floats": (rewrite(CAMERA, "10 5e307 5e307 0 1e308 1e308"), r"height 1e\+308 and width 1e\+308"),
    "D8 principal point off centre": (
        rewrite(CAMERA, "10 4.5 2 0 4 6"),
        r"has its principal point at 4\.5, 2\.0, wanted the centre of 6 x 4 pixels",
    ),
    "D8 principal point too low": (rewrite(CAMERA, "10 3 3.5 0 4 6"), r"has its principal point at 3\.0, 3\.5"),
    "D6 of another shape": (
        rewrite(CAMERA, "10 2 3 0 6 4"),
        r"intrinsics\.txt is for images of 4 x 6 pixels, but they are 6 x 4",
    ),
    "D9 huge text": (
        lambda root: os.truncate(file(root, POSE), 64 * 2**20 + 1),
        r"000001\.txt is larger than 67108864 bytes",
    ),
    "D10 unknown split": (
        lambda root: (root / "cars_train").rename(root / "cars_other"),
        r"holds no data of class 'car' and split 'train': wanted .*a folder car_train or cars_train",
    ),
    "D10 empty split": (hide_scenes, r"cars_train holds no scenes"),
    "D11 scene's name": (
        lambda root: file(root, "").rename(root / "cars_train" / "a b"),
        r"cars_train.a b has a name that is no scene id",
    ),
    "D11 image out of the scene": (link_out("rgb/000001.png"), r"000001\.png is a link that leads out of .*scene1"),
    "D11 images out of the scene": (link_out("rgb"), r"000000\.png is a link that leads out of .*scene1"),
    "D11 pose out of the scene": (link_out(POSE), r"000001\.txt is a link that leads out of .*scene1"),
    "D11 poses out of the scene": (link_out("pose"), r"000000\.txt is a link that leads out of .*scene1"),
    "D11 intrinsics out of the scene": (link_out(CAMERA), r"intrinsics\.txt is a link that leads out of .*scene1"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_refuses_what_is_broken(root, damage, message):
    damage(root)
    with refused(message):
        load(root)


def test_d10_a_named_layout_says_which_folder_it_misses(tmp_path):
    with refused(r"has no folder 'car_train' or 'cars_train'"):
        load(tmp_path, layout="srn")


def test_images_of_any_shape(tmp_path):
    images = np.zeros((2, 2, 9, 16, 4), np.uint8)
    assert load(write_srn(tmp_path, images)).views.images.shape == (2, 2, 9, 16, 4)
    assert HEIGHT != WIDTH  # in all other tests too


def test_d10_a_scene_in_two_splits_is_an_error_unless_allowed(tmp_path):
    root = write_srn(tmp_path)
    shutil.copytree(root / "cars_train" / "scene0", root / "cars_test" / "scene0")
    with refused("cars_train/scene0 is also .*cars_test/scene0; .*--data.allow-overlap"):
        load_split(root, "car", "train", num_views=1)
    assert load_split(root, "car", "train", num_views=1, allow_overlap=True).ids == ("scene0", "scene1")
