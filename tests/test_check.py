"""`python -m jaxmeta.data.check` tells everything that is wrong with a data set in one go."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import IMAGES, POSES, edit_json, encode, refused, write_blender, write_json, write_shapenet, write_srn

from jaxmeta.cameras import orbit_pose
from jaxmeta.data.check import main

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shapenet(tmp_path)


@pytest.fixture
def check(monkeypatch, capsys):
    def run(root: Path, *flags: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["check", str(root), "--num-views", "2", "--splits", "train", "test", *flags])
        try:
            main()
        finally:
            reports.append(capsys.readouterr().out.replace(f"{root}/", ""))
        return reports[-1].splitlines()

    reports = []
    run.reports = reports
    return run


def write_images(root: Path, scene: int, *images: np.ndarray) -> None:
    for view, image in enumerate(images):
        (root / "cars" / f"scene{scene}" / f"r_{view}.png").write_bytes(encode(image))


@pytest.mark.parametrize("write", [write_shapenet, write_srn])
def test_sound_data_pass(tmp_path, check, write):
    assert check(write(tmp_path)) == [
        "train: 2 scenes, 2 sound: 2 of 2 views of 6 x 4",
        "train: cameras are 4 to 4 from the origin",
        "test: 1 scene, 1 sound: 1 of 2 views of 6 x 4",
        "test: cameras are 4 to 4 from the origin",
    ]


def test_one_object_has_the_same_scene_in_all_splits(tmp_path, check):
    lines = check(write_blender(tmp_path))
    assert lines[0] == "train: 1 scene, 1 sound: 1 of 2 views of 6 x 4"
    assert not [line for line in lines if "error" in line or "warning" in line]


def test_all_errors_are_told_at_once(root, check):
    write_images(root, 2, IMAGES[2, 0, ..., :3])
    (root / "cars" / "scene0" / "r_1.png").unlink()
    (root / "cars" / "scene1" / "transforms.json").write_text("{")
    with refused(r" has 3 errors, listed above"):
        check(root)
    errors = [line for line in check.reports[0].splitlines() if "error" in line]
    beginnings = (
        "train: error: cars/scene2/r_0.png is RGB at 8 bits, wanted RGBA at 8 bits; --data.assume-opaque takes it",
        "train: error: cars/scene0/r_1.png cannot be read: No such file or directory",
        "test: error: cars/scene1/transforms.json is not valid JSON: ",
    )
    assert len(errors) == 3
    assert all(error.startswith(beginning) for error, beginning in zip(errors, beginnings, strict=True))
    assert "train: 2 scenes, 0 sound: none" in check.reports[0]


def test_all_faults_of_a_scene_are_told(root, check):
    cameras = root / "cars" / "scene0" / "transforms.json"
    write_images(root, 0, IMAGES[0, 0, ..., :3])
    (root / "cars" / "scene0" / "r_1.png").unlink()
    edit_json(cameras, lambda content: content.pop("camera_angle_x"))
    edit_json(cameras, lambda content: content["frames"][1].pop("transform_matrix"))
    with refused(" has 4 errors, listed above"):
        check(root)
    told = (
        "transforms.json has camera_angle_x",
        "transforms.json has a transform_matrix in frames[1]",
        "r_0.png is RGB",
        "r_1.png cannot be read",
    )
    lines = [line for line in check.reports[0].splitlines() if "error" in line]
    for line, fault in zip(lines, told, strict=True):
        assert line.startswith(f"train: error: cars/scene0/{fault}")
    # A third view is missing in all three scenes; with that, six things are wrong with this one.
    edit_json(cameras, lambda content: content["frames"][0].pop("transform_matrix"))
    with refused(" has 8 errors, listed above"):
        check(root, "--num-views", "3")
    lines = [line for line in check.reports[1].splitlines() if "cars/scene0" in line]
    assert len(lines) == 6
    assert "transforms.json lists 2 frames, 3 are wanted" in lines[0]
    assert lines[-1] == "train: error: and 1 more in cars/scene0"


def test_all_faults_of_a_scene_of_srn_are_told(tmp_path, check):
    root = write_srn(tmp_path)
    (root / "cars_train" / "scene0" / "intrinsics.txt").write_text("1 2 three")
    (root / "cars_train" / "scene0" / "pose" / "000000.txt").write_text("1 2 3")
    (root / "cars_train" / "scene0" / "pose" / "000001.txt").write_text("nan " * 16)
    (root / "cars_train" / "scene0" / "rgb" / "000001.png").write_bytes(b"")
    with refused(" has 4 errors, listed above"):
        check(root)
    told = ("pose/000000.txt holds 3 numbers", "pose/000001.txt holds a number that is not finite",
            "rgb/000001.png is not a PNG file", "intrinsics.txt holds something that is not a number")  # fmt: skip
    lines = [line for line in check.reports[0].splitlines() if "error" in line]
    for line, fault in zip(lines, told, strict=True):
        assert line.startswith(f"train: error: cars_train/scene0/{fault}")


def test_the_command_ends_with_an_exit_code(root):
    def run() -> subprocess.CompletedProcess[str]:
        flags = [root, "--num-views", "2", "--splits", "train", "test"]
        command = [sys.executable, "-m", "jaxmeta.data.check", *flags]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    assert run().returncode == 0
    (root / "cars" / "scene0" / "r_1.png").write_bytes(b"")
    done = run()
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {root} has 1 error, listed above"
    assert "scene0/r_1.png is not a PNG file" in done.stdout


def test_d6_sizes_that_differ_between_scenes(root, check):
    write_images(root, 0, *IMAGES[0, :, :3])
    with refused("has 1 error"):
        check(root)
    assert "1 of 2 views of 6 x 3" in check.reports[0]
    assert "1 of 2 views of 6 x 4" in check.reports[0]
    assert "train: error: all scenes of a split must have one size" in check.reports[0]


def test_d10_missing_split(root, check):
    with refused("has 1 error"):
        check(root, "--splits", "train", "val")
    assert "val: error: car_splits.json has no split 'val', only ['test', 'train']" in check.reports[0]
    assert "train: 2 scenes, 2 sound" in check.reports[0]


def test_d10_scenes_of_two_splits(root, check):
    write_json(root / "car_splits.json", {"train": ["scene2", "scene0"], "test": ["scene0"]})
    with refused("has 2 errors"):
        check(root)
    assert "lists 'scene0' both in 'train' and in 'test'; a scene belongs to one split" in check.reports[0]


def test_d10_folders_of_two_splits(tmp_path, check):
    root = write_srn(tmp_path)
    (root / "cars_test" / "scene2").rename(root / "cars_test" / "scene1")
    with refused("has 1 error"):
        check(root)
    assert "test: error: cars_test/scene1 has the id of cars_train/scene1, of split 'train'" in check.reports[0]


def test_the_same_image_in_two_splits(root, check):
    write_images(root, 1, IMAGES[2, 0], IMAGES[0, 1])
    assert check(root)[-1] == "warning: the same in test and train: 2 images"


def test_the_same_image_twice_in_a_scene(root, check):
    write_images(root, 0, IMAGES[0, 0], IMAGES[0, 0])
    assert "train: warning: cars/scene0 shows the same image twice" in check(root)


NOTHING = np.zeros((4, 6, 4), np.uint8)
BLACK = np.concatenate([NOTHING[..., :3], np.full((4, 6, 1), 255, np.uint8)], axis=-1)


@pytest.mark.parametrize(
    ("images", "warning"),
    [
        ((NOTHING, NOTHING), "is transparent in all views"),
        ((IMAGES[0, 0], NOTHING), "is transparent in views [1]"),
        ((BLACK, BLACK // 2), "is black in all views"),
    ],
)
def test_d15_scenes_without_content(root, check, images, warning):
    write_images(root, 0, *images)
    warnings = [line for line in check(root) if "warning" in line]
    assert warnings == [f"train: warning: cars/scene0 {warning}"]


def test_d15_transparent_images_are_no_duplicates(root, check):
    write_images(root, 0, IMAGES[0, 0], NOTHING)
    write_images(root, 1, IMAGES[1, 0], NOTHING)
    assert not [line for line in check(root) if "same" in line]


def test_odd_cameras(root, check):
    # The second camera stands 9 from the origin and has turned its back on it: x and z are reversed.
    back = orbit_pose(0.3, 0.5, 9.0)
    back[:3, [0, 2]] *= -1

    def edit(content: dict) -> None:
        content["frames"][1]["transform_matrix"] = back.tolist()

    edit_json(root / "cars" / "scene0" / "transforms.json", edit)
    lines = check(root)
    assert "train: warning: cars/scene0 has cameras that look away from the origin in views [1]" in lines
    assert "train: cameras are 4 to 9 from the origin" in lines
    assert "test: cameras are 4 to 4 from the origin" in lines
    assert np.allclose(np.linalg.norm(POSES[..., :3, 3], axis=-1), 4)


def test_rgb_is_taken_when_asked_for(tmp_path, check):
    root = write_srn(tmp_path, IMAGES[..., :3])
    with refused("has 6 errors"):
        check(root)
    assert len(check(root, "--assume-opaque")) == 4


def test_names_that_are_no_text_are_told(tmp_path):
    root = write_srn(tmp_path / "\udcff")
    (root / "cars_train" / "scene0").rename(root / "cars_train" / "\udcff")
    command = [sys.executable, "-m", "jaxmeta.data.check", root, "--num-views", "2", "--splits", "train", "other"]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=strict)
    assert done.returncode == 2
    assert r"cars_train/\udcff' has a name that is no scene id" in done.stdout
    assert r"\udcff holds no data of class 'car' and split 'other'" in done.stdout
    assert "Traceback" not in done.stderr
