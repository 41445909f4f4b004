"""The toy cars: what is written is what was sampled, seen from where the poses say."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import make_toy_scenes as toy
import numpy as np
import pytest

from jaxmeta.cameras import orbit_pose
from jaxmeta.data.splits import Split, load_split

SIZE, NUM_VIEWS = 64, 5
FLAGS = ["--num-views", str(NUM_VIEWS), "--size", str(SIZE)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.main(["--out", str(folder), "--num-scenes", "4", *FLAGS])
    return folder


@pytest.fixture(scope="module")
def train(root: Path) -> Split:
    return load_split(root, "toycar", "train", num_views=NUM_VIEWS)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def projected(points: np.ndarray | list[tuple[float, ...]], pose: np.ndarray, size: int) -> np.ndarray:
    """Column and row of points, continuous, the first pixel's upper left corner at (0, 0)."""
    x, y, z = pose[:3, :3].T @ (np.asarray(points) - pose[:3, 3]).T
    focal = size / 2 / np.tan(toy.CAMERA_ANGLE_X / 2)
    return np.stack([size / 2 + focal * x / -z, size / 2 - focal * y / -z], axis=-1)


def train_scenes(train: Split) -> Iterator[tuple[toy.Car, np.ndarray, np.ndarray]]:
    """Pairs of a car and one of its views as loaded, over all scenes and views."""
    for scene_id, images, poses in zip(train.ids, train.views.images, train.views.poses, strict=True):
        car, _ = toy.sample_scene(0, int(scene_id.split("_")[1]), num_views=NUM_VIEWS)
        for image, pose in zip(images, poses, strict=True):
            yield car, np.asarray(image), np.asarray(pose)


def test_the_splits_load_and_hold_every_scene_once(root: Path):
    splits = {name: load_split(root, "toycar", name, num_views=NUM_VIEWS) for name in ("train", "val", "test")}
    assert {name: split.ids for name, split in splits.items()} == {
        "train": ("toycar_0000", "toycar_0003"),
        "val": ("toycar_0001",),
        "test": ("toycar_0002",),
    }
    views = splits["train"].views
    assert views.images.shape == (2, NUM_VIEWS, SIZE, SIZE, 4)
    np.testing.assert_allclose(views.focal, 1.3889 * SIZE, rtol=1e-4)  # 177.78 pixels at 128, the authors' focal
    positions = views.poses[..., :3, 3]
    np.testing.assert_allclose(np.linalg.norm(positions, axis=-1), 4.03, rtol=1e-6)
    elevations = np.degrees(np.arcsin(positions[..., 2] / 4.03))
    assert elevations.min() > 4.99
    assert elevations.max() < 70.01


def test_scenes_do_not_depend_on_how_many_there_are(root: Path, tmp_path: Path):
    toy.main(["--out", str(tmp_path), "--num-scenes", "3", *FLAGS])
    first, again = files(root), files(tmp_path)
    assert len(again) == 3 * (NUM_VIEWS + 1) + 1
    del again["toycar_splits.json"]
    assert again.items() <= first.items()


def test_the_seed_and_the_number_make_the_scene(train: Split, tmp_path: Path):
    toy.main(["--out", str(tmp_path), "--num-scenes", "3", "--seed", "1", *FLAGS])
    other = load_split(tmp_path, "toycar", "train", num_views=NUM_VIEWS)
    for field in ("images", "poses"):
        first, second = getattr(train.views, field)
        assert not np.array_equal(first, second)
        assert not np.array_equal(first, getattr(other.views, field)[0])


def test_wheels_are_where_the_poses_say(train: Split):
    for car, image, pose in train_scenes(train):
        ground, y = -car.height / 2, car.width / 2 - 0.06
        centres = [(x, side * y, ground + car.wheel_radius) for x in car.wheels for side in (-1, 1)]
        column, row = np.floor(projected(centres, pose, SIZE)).astype(int).T
        assert (image[row, column, 3] == 255).all()


def test_silhouette_fills_the_bounding_box(train: Split):
    for car, image, pose in train_scenes(train):
        corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3))) * (car.length, car.width, car.height)
        outline = projected(corners, pose, SIZE)
        row, column = np.nonzero(image[..., 3])
        assert np.all((column.min(), row.min()) >= np.floor(outline.min(0)))
        assert np.all((column.max(), row.max()) <= np.floor(outline.max(0)))
        # No emptier than a car is: its corners are cut by less than a third of the box's height and width.
        seen = (column.max() + 1 - column.min(), row.max() + 1 - row.min())
        assert np.all(seen >= 0.66 * np.ptp(outline, axis=0))


def test_a_box_seen_face_on_is_a_square():
    # A face 4 pixels from the axis on each side: h / (distance - h) = 4 / focal.
    focal = 16 / 2 / np.tan(toy.CAMERA_ANGLE_X / 2)
    half = toy.CAMERA_RADIUS * 4 / (focal + 4)
    normals = np.concatenate([np.eye(3), -np.eye(3)])[None]
    box = toy.Solids(normals, np.full((1, 6), half), np.array([[0.9, 0.5, 0.1]]))
    image = np.asarray(toy.render_view((box,), orbit_pose(0.0, 0.0, toy.CAMERA_RADIUS), size=16))
    expected = np.zeros((16, 16, 4), np.uint8)
    shade = toy.AMBIENT + (1 - toy.AMBIENT) * toy.SUN[0]
    expected[4:12, 4:12] = np.round(255 * np.array([0.9 * shade, 0.5 * shade, 0.1 * shade, 1]))
    np.testing.assert_array_equal(image, expected)


def test_the_car_faces_x():
    car, _ = toy.sample_scene(0, 0, num_views=1)
    car = car._replace(paint=(0.2, 0.2, 0.2), roof_paint=(0.2, 0.2, 0.2))
    groups = toy.car_solids(car)
    height = 0.7 * car.belt - car.height / 2
    for azimuth, x, is_red in ((0.0, 0.5, False), (np.pi, -0.5, True)):
        pose = orbit_pose(azimuth, 0.1, toy.CAMERA_RADIUS)
        image = np.asarray(toy.render_view(groups, pose, size=64)).astype(int)
        lights = projected([(x * car.length, y * (car.width / 2 - 0.1), height) for y in (-1, 1)], pose, 64)
        for column, row in np.floor(lights).astype(int):
            red, green, blue, _ = image[row, column]
            assert red > 70
            assert (red > 2 * max(green, blue)) == is_red


def test_alpha_is_straight_and_antialiased(train: Split):
    images = train.views.images
    rgb, alpha = images[..., :3], images[..., 3]
    assert not images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert not rgb[alpha == 0].any()
    edge = (alpha > 0) & (alpha < 255)
    assert len(np.unique(alpha[edge])) > 4
    # Premultiplied, a colour never exceeds its alpha.
    assert (rgb.max(-1)[edge] > alpha[edge]).any()


def test_cars_vary_and_stay_between_near_and_far():
    cars = [toy.sample_scene(0, index, num_views=1)[0] for index in range(64)]
    assert 4 < sum(car.has_bed for car in cars) < 32
    paints = np.array([car.paint for car in cars])
    assert (paints.std(0) > 0.15).all()
    sizes = np.array([(car.length, car.width, car.height) for car in cars])
    assert (sizes.std(0) > 0.02).all()
    assert (np.linalg.norm(sizes / 2, axis=-1) < 1.05).all()


@pytest.mark.parametrize(
    "flag", ["--num-scenes=2", "--num-scenes=-1", "--num-views=0", "--size=0", "--size=513", "--seed=-1"]
)
def test_bad_flags_end_in_one_line(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        toy.main(["--out", str(tmp_path), "--num-scenes=3", "--num-views=1", flag])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {flag.split('=')[0]} is")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", ["toycar/toycar_0003/r_0.png", "toycar/toycar_0000/r_9.png", "toycar/notes.txt"])
def test_what_the_command_did_not_write_is_kept(kept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / kept
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        toy.main(["--out", str(tmp_path), "--num-scenes", "3", *FLAGS])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(files(tmp_path)) == [kept]


def test_other_classes_may_live_beside(root: Path):
    before = files(root)
    (root / "car_splits.json").write_text("{}")
    toy.main(["--out", str(root), "--num-scenes", "4", *FLAGS])
    (root / "car_splits.json").unlink()
    assert files(root) == before


def test_out_must_not_be_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit) as stopped:
        toy.main(["--out", str(tmp_path / "out"), "--num-scenes", "3", *FLAGS])
    assert stopped.value.code == 2
    assert "out" in capsys.readouterr().err.splitlines()[-1]
