"""The reader of the authors' layout: what it returns, and how it refuses what is broken (D1 to D12, N8)."""

import math
from pathlib import Path

import numpy as np
import pytest
from datasets import ANGLE, HEIGHT, IMAGES, POSES, WIDTH, edit_json, encode, png, refused, write_json, write_shapenet

from jaxmeta.data.shapenet import load_scene, write_scene
from jaxmeta.data.splits import load_split


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shapenet(tmp_path)


def load(root: Path, **options):
    return load_split(root, "car", "train", **{"num_views": 2} | options)


def test_what_was_written_is_read(root):
    split = load(root)
    assert split.ids == ("scene2", "scene0")
    assert split.views.images.dtype == np.uint8
    np.testing.assert_array_equal(split.views.images, IMAGES[[2, 0]])
    np.testing.assert_array_equal(split.views.poses, POSES[[2, 0]])
    # Half of the width of 6 is seen under half of the angle.
    np.testing.assert_allclose(split.views.focal, 3 / math.tan(ANGLE / 2), rtol=1e-6)


def test_takes_the_first_scenes_and_views(root):
    split = load(root, num_scenes=1, num_views=1)
    np.testing.assert_array_equal(split.views.images, IMAGES[[2], :1])


def test_the_folder_of_scenes_may_be_the_class(root):
    (root / "cars").rename(root / "car")
    np.testing.assert_array_equal(load(root).views.images, IMAGES[[2, 0]])


def test_only_the_last_part_of_a_file_path_counts(root):
    edit_frame(0, file_path="../../elsewhere/r_0")(root)
    np.testing.assert_array_equal(load_scene(root / "cars" / "scene2", num_views=2).images, IMAGES[2])


def test_d5_rgb_is_opaque_when_asked_for(root):
    for path in (root / "cars").glob("*/*.png"):
        path.write_bytes(encode(np.full((HEIGHT, WIDTH, 3), 7, np.uint8)))
    images = load(root, assume_opaque=True).views.images
    assert (images[..., :3] == 7).all()
    assert (images[..., 3] == 255).all()


def edit_frame(index: int, **values):
    return lambda root: edit_json(
        root / "cars" / "scene2" / "transforms.json", lambda content: content["frames"][index].update(values)
    )


def edit_content(**values):
    return lambda root: edit_json(root / "cars" / "scene2" / "transforms.json", lambda content: content.update(values))


def edit_pose(**entries):
    pose = np.eye(4)
    for place, value in entries.items():
        pose[int(place[1]), int(place[2])] = value
    return edit_frame(1, transform_matrix=pose.tolist())


def write_transforms_text(text: str):
    return lambda root: (root / "cars" / "scene2" / "transforms.json").write_text(text)


def write_splits_text(text: str):
    return lambda root: (root / "car_splits.json").write_text(text)


def write_splits(**splits):
    return lambda root: write_json(root / "car_splits.json", splits)


def write_png(content: bytes):
    return lambda root: (root / "cars" / "scene2" / "r_1.png").write_bytes(content)


def link_png(root: Path) -> None:
    path = root / "cars" / "scene2" / "r_1.png"
    path.rename(root / "outside.png")
    path.symlink_to("../../outside.png")


def link_transforms(root: Path) -> None:
    path = root / "cars" / "scene2" / "transforms.json"
    path.rename(root / "outside.json")
    path.symlink_to(root / "outside.json")


def grow_splits(root: Path) -> None:
    with (root / "car_splits.json").open("r+b") as file:
        file.truncate(64 * 2**20 + 1)


IDENTITY = np.eye(4).tolist()
GOOD_PNG = encode(IMAGES[2, 1])
FLIPPED_PNG = GOOD_PNG[:60] + bytes([GOOD_PNG[60] ^ 1]) + GOOD_PNG[61:]
NOT_PNG = r"scene2.r_1\.png is not a PNG file"
OTHER_KIND = r"scene2.r_1\.png is {}, wanted RGBA at 8 bits"
NOT_FINITE = r"transform_matrix in frames\[1\] that is not a finite 4x4 matrix"
NOT_RIGID = r"transform_matrix in frames\[1\] that is not a rigid motion"

BROKEN = {
    "D1 half an image": (write_png(GOOD_PNG[:80]), r"scene2.r_1\.png is truncated or damaged"),
    "D3 flipped byte": (write_png(FLIPPED_PNG), r"r_1\.png is truncated or damaged: the checksum of its IDAT is wrong"),
    "D4 empty image": (write_png(b""), NOT_PNG),
    "D4 HTML": (write_png(b"<html>" * 20), NOT_PNG),
    "D5 JPEG": (write_png(encode(IMAGES[0, 0, ..., :3], "jpeg")), NOT_PNG),
    "D5 RGB": (write_png(png(WIDTH, HEIGHT, 8, 2)), OTHER_KIND.format("RGB at 8 bits") + "; --data.assume-opaque"),
    "D5 grey": (write_png(png(WIDTH, HEIGHT, 8, 0)), OTHER_KIND.format("grey at 8 bits")),
    "D5 palette": (write_png(png(WIDTH, HEIGHT, 8, 3)), OTHER_KIND.format("palette at 8 bits")),
    "D5 bilevel": (write_png(png(WIDTH, HEIGHT, 1, 0)), OTHER_KIND.format("grey at 1 bits")),
    "D5 LA": (write_png(png(WIDTH, HEIGHT, 8, 4)), OTHER_KIND.format("grey with alpha at 8 bits")),
    "D5 16-bit RGBA": (write_png(png(WIDTH, HEIGHT, 16, 6)), OTHER_KIND.format("RGBA at 16 bits")),
    "D6 one view of another size": (
        write_png(png(WIDTH, 3, 8, 6)),
        r"scene2.transforms\.json has views of different sizes: 6 x 3 and 6 x 4 pixels",
    ),
    "D6 one scene of another size": (
        lambda root: write_scene(root / "cars" / "scene0", IMAGES[0, :, :3], POSES[0], ANGLE),
        r"scene0 has views of 6 x 3 pixels, .*scene2 of 6 x 4; all scenes of a split must have one size",
    ),
    "D7 no image": (
        lambda root: (root / "cars" / "scene2" / "r_1.png").unlink(),
        r"scene2.r_1\.png cannot be read: No such file",
    ),
    "D7 too few frames": (
        edit_content(frames=[{"file_path": "r_0", "transform_matrix": IDENTITY}]),
        r"scene2.transforms\.json lists 1 frame, 2 are wanted; ask for fewer .--data.num-views.",
    ),
    "D7 no cameras": (
        lambda root: (root / "cars" / "scene2" / "transforms.json").unlink(),
        r"scene2.transforms\.json cannot be read: No such file",
    ),
    "D8 NaN": (edit_pose(m03=math.nan), r"transforms\.json is not valid JSON: NaN is not a number"),
    "D8 infinity": (edit_pose(m03=math.inf), r"transforms\.json is not valid JSON: Infinity is not a number"),
    "D8 number beyond floats": (
        write_transforms_text('{"camera_angle_x": 1e999, "frames": [0, 0]}'),
        r"camera_angle_x inf, wanted radians between 0 and pi",
    ),
    "D8 beyond float32": (edit_pose(m03=1e39), NOT_FINITE),
    "D8 integer beyond floats": (edit_frame(1, transform_matrix=[[10**400] * 4] * 4), NOT_FINITE),
    "D8 pose of 3 rows": (edit_frame(1, transform_matrix=IDENTITY[:3]), NOT_FINITE),
    "D8 ragged pose": (edit_frame(1, transform_matrix=[[1], [1, 2]]), NOT_FINITE),
    "D8 pose of texts": (edit_frame(1, transform_matrix=[["a"] * 4] * 4), NOT_FINITE),
    "D8 pose an object": (edit_frame(1, transform_matrix={"rows": 4}), NOT_FINITE),
    "D8 no pose": (edit_frame(1, transform_matrix=None), NOT_FINITE),
    "D8 scaled pose": (edit_pose(m00=2, m11=2, m22=2), NOT_RIGID),
    "D8 pose off by 2e-3": (edit_pose(m00=1.001), NOT_RIGID),
    "D8 sheared pose": (edit_pose(m01=0.1), NOT_RIGID),
    "D8 mirrored pose": (edit_pose(m22=-1), NOT_RIGID),
    "D8 huge rotation": (edit_pose(m00=1e38), NOT_RIGID),
    "D8 last row": (edit_pose(m33=2), r"transform_matrix in frames\[1\] whose last row is not 0 0 0 1"),
    "D8 angle of pi": (edit_content(camera_angle_x=math.pi), r"camera_angle_x 3\.14\d+, wanted radians"),
    "D8 angle of 0": (edit_content(camera_angle_x=0), r"camera_angle_x 0, wanted radians"),
    "D8 angle next to 0": (edit_content(camera_angle_x=5e-324), r"camera_angle_x 5e-324, wanted radians"),
    "D8 angle a text": (edit_content(camera_angle_x="wide"), r"camera_angle_x 'wide', wanted radians"),
    "D8 angle a truth": (edit_content(camera_angle_x=True), r"camera_angle_x True, wanted radians"),
    "D8 no angle": (edit_content(camera_angle_x=None), r"camera_angle_x None, wanted radians"),
    "D9 deep JSON": (write_splits_text("[" * 100_000), r"car_splits\.json is not valid JSON"),
    "D9 huge JSON": (grow_splits, r"car_splits\.json is larger than 67108864 bytes"),
    "D9 number of many digits": (write_transforms_text("9" * 5000), r"transforms\.json is not valid JSON"),
    "splits not JSON": (write_splits_text("{"), r"car_splits\.json is not valid JSON"),
    "splits a list": (write_splits_text("[]"), r"car_splits\.json does not hold a JSON object"),
    "splits not UTF-8": (
        lambda root: (root / "car_splits.json").write_bytes(b'{"\xff": 1}'),
        r"car_splits\.json is not valid JSON",
    ),
    "no frames": (edit_content(frames=None), r"has no list 'frames'"),
    "frame not an object": (edit_content(frames=[1, 2]), r"has a frames\[0\] that is not an object"),
    "D10 no splits": (
        lambda root: (root / "car_splits.json").unlink(),
        r"holds no data of class 'car' and split 'train': wanted car_splits\.json, .*the name of the class",
    ),
    "D10 unknown split": (write_splits(test=["scene1"]), r"car_splits\.json has no split 'train', only \['test'\]"),
    "D10 empty split": (write_splits(train=[]), r"car_splits\.json lists no scenes in 'train'"),
    "D10 split a text": (write_splits(train="scene0"), r"car_splits\.json lists no scenes in 'train'"),
    "D10 same id twice": (write_splits(train=["scene0", "scene0"]), r"lists 'scene0' twice in 'train'"),
    "D10 id in two splits": (
        write_splits(train=["scene0"], test=["scene1", "scene0"]),
        r"lists 'scene0' both in 'train' and in 'test'; a scene belongs to one split",
    ),
    "D10 unknown scene": (write_splits(train=["nope"]), r"cars has no scene 'nope'"),
    "D10 no folder of scenes": (
        lambda root: (root / "cars").rename(root / "elsewhere"),
        r"has no folder 'car' or 'cars' with the scenes of car_splits\.json",
    ),
    "D11 link out of the scene": (link_png, r"r_1\.png is a link that leads out of .*scene2"),
    "D11 cameras out of the scene": (link_transforms, r"transforms\.json is a link that leads out of .*scene2"),
    "D11 file_path is no text": (edit_frame(1, file_path=7), r"has file_path 7 in frames\[1\], wanted the path"),
    "D12 bomb": (write_png(png(100_000, 100_000, 8, 6, header_only=True)), r"r_1\.png is 100000 x 100000 pixels"),
    "N8 YAML": (
        write_transforms_text("camera_angle_x: !!python/object/apply:os.system ['exit']"),
        r"transforms\.json is not valid JSON",
    ),
    "N8 Python": (write_transforms_text("__import__('os').abort()"), r"transforms\.json is not valid JSON"),
}
for bad_id in (
    "../scene0",
    "/etc",
    "a/../../x",
    "..\\..\\x",
    "a\0b",
    "",
    ".",
    "..",
    ".hidden",
    "a" * 129,
    "é",
    "\ud800",
):
    BROKEN[f"D11 id {bad_id!r:.20}"] = (
        write_splits(train=[bad_id]),
        r"has the scene id '.*' in 'train'; ids are letters",
    )
for bad_id in (7, None, ["scene0"], {}):
    BROKEN[f"D11 id {bad_id!r}"] = (write_splits(train=[bad_id]), r"has the scene id .* in 'train'; ids are letters")
for bad_path in ("", ".", "..", "../..", "/", "r\\..\\..\\x", "r\0", ".r_0", "a" * 129, "\ud800"):
    BROKEN[f"D11 file_path {bad_path!r:.20}"] = (
        edit_frame(1, file_path=bad_path),
        r"transforms\.json has file_path '.*' in frames\[1\], wanted an image's name",
    )


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_refuses_what_is_broken(root, damage, message):
    damage(root)
    with refused(message):
        load(root)


def test_d2_a_missing_end_is_no_harm(root):
    write_png(GOOD_PNG[:-12])(root)
    np.testing.assert_array_equal(load(root).views.images, IMAGES[[2, 0]])


def test_what_is_not_asked_for_need_not_be_sound(root):
    write_png(b"")(root)
    load(root, num_views=1)


@pytest.mark.parametrize("name", ["../cars", "a/b", "", "\0", "\ud800"])
def test_d11_a_class_or_split_is_a_name(root, name):
    with refused(r"--data\.class-name '.*' must be made of letters"):
        load_split(root, name, "train", num_views=2)
    with refused(r"--data\.split '.*' must be made of letters"):
        load_split(root, "car", name, num_views=2)


@pytest.mark.parametrize("options", [{"num_views": 0}, {"num_views": -1}, {"num_scenes": 0}, {"num_scenes": -1}])
def test_counts_are_positive(root, options):
    with refused(r"--data\.num-views -?\d and --data\.num-scenes .* must be positive"):
        load(root, **options)
