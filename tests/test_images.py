"""Readers of pictures and slices, the faces that are drawn, and the parts of a picture."""

import gzip
from pathlib import Path

import jax
import numpy as np
import pytest
from datasets import encode, refused

from jaxmeta.data.faces import draw_faces
from jaxmeta.data.folders import split_files
from jaxmeta.data.images import load_images, read_picture
from jaxmeta.data.slices import load_slices, read_slice
from jaxmeta.kinds.images import ImagesConfig, check_parts, each_part, in_place, part_of, some_parts
from jaxmeta.objectives import regression_loss
from jaxmeta.samples import Samples, grid_points, unit_values, values_at

PICTURES = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)


def write_folder(root, pictures=PICTURES):
    root.mkdir(exist_ok=True, parents=True)
    for number, picture in enumerate(pictures):
        (root / f"{number:03d}.png").write_bytes(encode(picture))
    return root


def test_a_folder_is_split_by_name(tmp_path):
    root = write_folder(tmp_path / "pictures")
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_text("no picture")
    splits = {name: load_images(root, name, size=6) for name in ("train", "val", "test")}
    everything = [name for ids, _, _ in splits.values() for name in ids]
    assert sorted(everything) == [f"{number:03d}.png" for number in range(40)]
    assert len(splits["train"][0]) > 24 and splits["val"][0] and splits["test"][0]
    for ids, images, _ in splits.values():
        np.testing.assert_array_equal(images, PICTURES[[int(name[:3]) for name in ids]])
    # What else lies there does not move a picture to another split.
    (root / "005.png").unlink()
    assert set(load_images(root, "train", size=6)[0]) == set(splits["train"][0]) - {"005.png"}


def test_a_folder_for_each_split_comes_first(tmp_path):
    write_folder(tmp_path, PICTURES[:4])
    write_folder(tmp_path / "val", PICTURES[4:7])
    ids, images, content = load_images(tmp_path, "val", size=6, num_images=2)
    assert ids == ("000.png", "001.png")
    np.testing.assert_array_equal(images, PICTURES[4:6])
    assert content != load_images(tmp_path, "val", size=6)[2]


def test_the_middle_is_cut_out_and_resized(tmp_path):
    # 2 high, 6 wide: black, then the middle square grey, then white.
    wide = np.repeat(np.uint8([0, 100, 255]), 2)[None, :, None] * np.ones((2, 1, 3), np.uint8)
    (tmp_path / "wide.png").write_bytes(encode(wide))
    np.testing.assert_array_equal(read_picture(tmp_path / "wide.png", size=2), np.full((2, 2, 3), 100))
    big = np.kron(PICTURES[0, :2, :2], np.ones((64, 64, 1), np.uint8))
    (tmp_path / "big.png").write_bytes(encode(big))
    quarters = read_picture(tmp_path / "big.png", size=32)
    np.testing.assert_allclose(quarters[8::16, 8::16], PICTURES[0, :2, :2], atol=2)


def test_transparency_is_white_and_grey_has_three_channels(tmp_path):
    half = np.full((2, 2, 4), (0, 0, 0, 255), np.uint8)
    half[0, 0, 3] = 0
    (tmp_path / "half.png").write_bytes(encode(half))
    np.testing.assert_array_equal(read_picture(tmp_path / "half.png", size=2)[..., 0], [[255, 0], [0, 0]])
    (tmp_path / "grey.png").write_bytes(encode(PICTURES[0, ..., 0]))
    np.testing.assert_array_equal(read_picture(tmp_path / "grey.png", size=6), PICTURES[0, ..., :1].repeat(3, -1))


def test_the_npz_of_the_authors(tmp_path):
    np.savez(tmp_path / "data_2d_text.npz", train_data=PICTURES[:20], test_data=PICTURES[20:])
    found = {name: load_images(tmp_path / "data_2d_text.npz", name, size=6)[1] for name in ("train", "val", "test")}
    np.testing.assert_array_equal(found["train"], PICTURES[:18])
    np.testing.assert_array_equal(found["val"], PICTURES[18:20])
    np.testing.assert_array_equal(found["test"], PICTURES[20:])
    assert load_images(tmp_path / "data_2d_text.npz", "test", size=3, num_images=2)[1].shape == (2, 3, 3, 3)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte.gz"])
def test_idx_files(tmp_path, name):
    content = np.array([0x803, 40, 6, 6], ">i4").tobytes() + PICTURES[..., 0].tobytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    train, val = (load_images(tmp_path, split, size=6)[1] for split in ("train", "val"))
    np.testing.assert_array_equal(np.concatenate([train, val]), PICTURES[..., :1].repeat(3, axis=-1))
    assert len(val) == 4


def flipped(path: Path) -> Path:
    np.savez(path, train_data=PICTURES)
    content = bytearray(path.read_bytes())
    content[400] ^= 1  # within the pixels
    path.write_bytes(content)
    return path


BROKEN = {
    "nothing": (lambda root: root / "nowhere", "nowhere is not there, or is no folder"),
    "empty": (lambda root: root, "has no files of split 'train' that end in .png.* into .*train"),
    "npz": (lambda root: (root / "a.npz").write_text("x") and root / "a.npz", "a.npz is no npz, or is truncated"),
    "keys": (lambda root: np.savez(root / "a.npz", other=PICTURES) or root / "a.npz", "has no data of split 'train'"),
    "floats": (
        lambda root: np.savez(root / "a.npz", train_data=PICTURES / 255) or root / "a.npz", "float64 .* wanted bytes"
    ),
    "pickle": (
        lambda root: np.savez(root / "a.npz", train_data=np.array([{}], object)) or root / "a.npz", "not a sound npz"
    ),
    "bit": (lambda root: flipped(root / "a.npz"), "a.npz is not a sound npz of plain arrays: Bad CRC"),
    "idx": (lambda root: (root / "train-images-idx3-ubyte").write_bytes(bytes(16)) and root, "not a file of pictures"),
    "cut": (
        lambda root: (root / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + 3 * b"\0\0\0\x09") and root,
        "train-images-idx3-ubyte is truncated",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_is_named(tmp_path, make, message):
    root = make(tmp_path)
    with refused(message):
        load_images(root, "train", size=6)


def test_a_picture_that_is_none_is_named(tmp_path):
    (write_folder(tmp_path / "train", []) / "a.png").write_text("x")
    with refused("a.png cannot be decoded"):
        load_images(tmp_path, "train", size=6)


def test_pictures_of_16_bits_are_refused(tmp_path):
    (tmp_path / "deep.png").write_bytes(encode(np.full((4, 4), 1000, np.uint16)))
    with refused("deep.png has pixels of kind I;16, wanted 8 bits a channel: convert it"):
        read_picture(tmp_path / "deep.png", size=4)


def test_faces_are_a_function_of_split_and_number():
    ids, faces, content = load_images(None, "val", size=16, num_images=5)
    assert ids[4] == "face4" and faces.shape == (5, 16, 16, 3)
    assert len({face.tobytes() for face in faces}) == 5
    others = load_images(None, "test", size=16, num_images=5)
    assert not {face.tobytes() for face in others[1]} & {face.tobytes() for face in faces} and others[2] != content
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), number))(np.arange(5))
    np.testing.assert_array_equal(draw_faces(keys[::-1], size=16), faces[::-1])
    # The same faces at another size.
    large = np.asarray(draw_faces(keys, size=48)).astype(float)
    blurred = large.reshape(5, 16, 3, 16, 3, 3).mean(axis=(2, 4))
    assert np.abs(faces - blurred).mean() < 8 < 25 < faces.std()
    with refused("there is no split 'all'"):
        load_images(None, "all", size=16)


def test_slices(tmp_path):
    density = np.random.default_rng(0).uniform(0, 1, (8, 8)).astype(np.float32)
    np.save(tmp_path / "float.npy", density)
    np.save(tmp_path / "bytes.npy", np.round(255 * density).astype(np.uint8))
    (tmp_path / "deep.png").write_bytes(encode(np.round(65535 * density).astype(np.uint16)))
    (tmp_path / "grey.png").write_bytes(encode(np.round(255 * density).astype(np.uint8)))
    for name, step in (("float.npy", 1e-7), ("bytes.npy", 0.002), ("deep.png", 1e-5), ("grey.png", 0.002)):
        np.testing.assert_allclose(read_slice(tmp_path / name, size=8), density, atol=step)
    np.save(tmp_path / "hounsfield.npy", 2000 * density - 1000)
    with refused("hounsfield.npy holds densities from -.* bring them to 0 to 1"):
        read_slice(tmp_path / "hounsfield.npy", size=8)
    np.save(tmp_path / "stack.npy", density[None])
    with refused(r"stack.npy holds float32 \(1, 8, 8\), wanted one slice"):
        read_slice(tmp_path / "stack.npy", size=8)
    assert {path.name for split in ("train", "val", "test") for path in _files(tmp_path, split)} >= {"float.npy"}


def _files(root, split):
    try:
        return split_files(root, split, (".npy",))
    except Exception:
        return []


def test_made_up_slices():
    ids, slices, _ = load_slices(None, "test", size=16, num_slices=3)
    assert ids == ("phantom0", "phantom1", "phantom2") and slices.shape == (3, 16, 16)
    np.testing.assert_array_equal(load_slices(None, "test", size=16, num_slices=2)[1], slices[:2])


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Samples(np.broadcast_to(grid_points(6, 6), (40, 6, 6, 2)), PICTURES)


def pairs(samples: Samples) -> set[bytes]:
    """The pixels, with their places."""
    both = zip(samples.points.reshape(-1, 2), samples.values.reshape(-1, 3), strict=True)
    return {point.tobytes() + value.tobytes() for point, value in both}


@pytest.mark.parametrize(("one", "other"), [(1, 2), (3, 4)])
def test_complementary_parts_make_the_whole(samples, one, other):
    whole, first, second = (pairs(part_of(samples, 7, number)) for number in (0, one, other))
    assert len(whole) == 36 and first | second == whole and not first & second
    assert len(first) == {1: 18, 3: 3}[one]


def test_parts_of_several_pictures(samples):
    scenes = np.array([4, 9])
    support = some_parts(samples, scenes, np.array([[1], [1]]))
    np.testing.assert_array_equal(support.values, PICTURES[[4, 9], :, :3].reshape(2, 18, 3))
    both = some_parts(samples, scenes, np.array([[1, 2], [1, 2]]))
    assert pairs(Samples(both.points[1], both.values[1])) == pairs(part_of(samples, 9, 0))
    query = each_part(samples, scenes, np.array([[1, 2], [1, 2]]))
    np.testing.assert_array_equal(query.values[0, 1], PICTURES[4, :, 3:])
    assert each_part(samples, scenes, np.array([[4], [4]])).values.shape == (2, 1, 33, 1, 3)
    assert pairs(part_of(samples, 4, 3)) != pairs(part_of(samples, 9, 3))
    with refused("must be parts of a picture: 0 whole, 1 left half"):
        check_parts([5], [0])
    with refused("has parts of different sizes"):
        check_parts([1], [0, 2])


@pytest.mark.parametrize(("part", "seen"), [(0, 36), (1, 18), (3, 3)])
def test_what_was_given_of_a_picture_stands_in_its_place(samples, part, seen):
    given = some_parts(samples, np.array([4]), np.array([[part]]))
    image = in_place((6, 6), Samples(given.points[0], given.values[0]))
    there = np.any(image != 0.5, axis=-1)
    assert there.sum() == seen
    np.testing.assert_allclose(image[there], PICTURES[4][there] / 255, rtol=1e-6)


def test_pictures_of_parts_are_named():
    kind = ImagesConfig()
    assert kind.notes((0,), 0) == ("", "") and not kind.explanation((0,))
    assert kind.notes((1,), 2) == ("left half", "right half") and "not given" in kind.explanation((1,))
    assert kind.notes((1, 3), 0) == ("2 parts", "whole")
    np.testing.assert_array_equal(kind.pictured(np.array([[1, 2]])), [[0, 0]])


def test_regression_loss_by_hand():
    # The network gives x + params; at 0, 0.5 and 1 it should be 0, 128 / 255 and 1.
    network = lambda params, points: points + params  # noqa: E731
    samples = Samples(np.float32([[0], [0.5], [1]]), np.float32([[0], [0.5], [1]]))
    loss = lambda params, n, key=0: regression_loss(network, params, samples, jax.random.key(key), num_points=n)  # noqa: E731
    np.testing.assert_allclose(loss(0.1, None), 0.01, rtol=1e-5)
    np.testing.assert_allclose(loss(0.1, 7), 0.01, rtol=1e-5)
    only = Samples(samples.points, np.float32([[1], [0.5], [1]]))
    drawn = {round(float(regression_loss(network, 0.0, only, jax.random.key(i), num_points=1)), 3) for i in range(12)}
    assert drawn == {0.0, 1.0}


def test_bytes_stand_for_0_to_1():
    values = unit_values(Samples(np.zeros((3, 1), np.float32), np.uint8([[0], [51], [255]])))
    np.testing.assert_allclose(values, [[0], [0.2], [1]])


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_values_do_not_depend_on_the_chunk(chunk):
    points = grid_points(3, 4)
    found = values_at(lambda params, points: params * points, 2.0, Samples(points, points), rays_per_chunk=chunk)
    np.testing.assert_allclose(found, 2 * points)
