"""A cache is used when it is exactly the data's, and never otherwise: D13, D14, and what may go wrong meanwhile."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import IMAGES, encode, refused, write_blender, write_shapenet, write_srn

from jaxmeta.data import decoding, packing, shapenet, splits
from jaxmeta.data.splits import cache_folder, load_split
from jaxmeta.errors import StorageError

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shapenet(tmp_path / "data")


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The scenes that were decoded, as they are."""
    names = []

    def load_scene(folder: Path, **options):
        names.append(folder.name)
        return original(folder, **options)

    original = shapenet.load_scene
    monkeypatch.setattr(shapenet, "load_scene", load_scene)
    return names


def load(root: Path, **options):
    return load_split(root, "car", "train", **{"num_views": 2} | options)


def only_cache(root: Path) -> Path:
    (cache,) = (root / ".jaxmeta").iterdir()
    return cache


def edit_manifest(**values):
    def damage(cache: Path) -> None:
        path = cache / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def test_a_warm_start_decodes_nothing(root, decoded):
    cold = load(root)
    assert sorted(decoded) == ["scene0", "scene2"]
    decoded.clear()
    warm = load(root)
    assert not decoded
    assert warm.ids == cold.ids
    assert warm.content == cold.content
    for cold_leaf, warm_leaf in zip(cold.views, warm.views, strict=True):
        assert isinstance(warm_leaf, np.memmap)
        assert not warm_leaf.flags.writeable
        assert warm_leaf.dtype == cold_leaf.dtype
        np.testing.assert_array_equal(warm_leaf, cold_leaf)
    np.testing.assert_array_equal(warm.views.images, IMAGES[[2, 0]])


@pytest.mark.parametrize("write", [write_srn, write_blender])
def test_other_layouts_start_warm_too(tmp_path, write, monkeypatch):
    cold = load(write(tmp_path))
    monkeypatch.setattr(packing, "decode_scenes", None)
    np.testing.assert_array_equal(load(tmp_path).views.images, cold.views.images)


def test_another_request_has_another_cache(root, decoded):
    load(root)
    assert load(root, num_views=1).views.images.shape[:2] == (2, 1)
    assert load(root, num_scenes=1).ids == ("scene2",)
    assert load_split(root, "car", "test", num_views=2).ids == ("scene1",)
    decoded.clear()
    np.testing.assert_array_equal(load(root).views.images, IMAGES[[2, 0]])
    assert not decoded


def test_the_content_is_that_of_ids_and_views(root, tmp_path):
    content = load(root).content
    shutil.copytree(root, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.png"):
        os.utime(path, (1, 1))
    assert load(tmp_path / "copy").content == content
    (tmp_path / "copy" / "cars" / "scene0" / "r_0.png").write_bytes(encode(IMAGES[1, 1]))
    assert load(tmp_path / "copy").content != content
    (root / "cars" / "scene2").rename(root / "cars" / "renamed")
    (root / "car_splits.json").write_text('{"train": ["renamed", "scene0"]}')
    renamed = load(root)
    np.testing.assert_array_equal(renamed.views.images, IMAGES[[2, 0]])
    assert renamed.content != content


SCENE = Path("cars", "scene0")
CHANGES = {
    "changed": lambda root: (root / SCENE / "r_0.png").write_bytes(encode(IMAGES[1, 1])),
    "touched": lambda root: os.utime(root / SCENE / "r_0.png", (1, 1)),
    "added": lambda root: (root / SCENE / "r_9.png").write_bytes(b""),
    "added below": lambda root: ((root / SCENE / "deep").mkdir(), (root / SCENE / "deep" / "x").write_bytes(b"")),
    "removed": lambda root: (root / SCENE / "spare").unlink(),
    "renamed": lambda root: (root / SCENE / "spare").rename(root / SCENE / "spare2"),
    "renamed folder": lambda root: (root / SCENE / "folder").rename(root / SCENE / "folder2"),
    "other cameras": lambda root: shutil.copy(root / "cars/scene1/transforms.json", root / SCENE),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_d13_changed_data_are_packed_anew(root, decoded, change):
    (root / SCENE / "spare").write_bytes(b"")
    (root / SCENE / "folder").mkdir()
    (root / SCENE / "folder" / "x").write_bytes(b"")
    load(root)
    decoded.clear()
    change(root)
    new = load(root)
    assert sorted(decoded) == ["scene0", "scene2"]
    expected = shapenet.load_scene(root / SCENE, num_views=2)
    np.testing.assert_array_equal(new.views.images[1], expected.images)
    np.testing.assert_array_equal(new.views.poses[1], expected.poses)
    decoded.clear()
    load(root)
    assert not decoded


def truncate(name: str):
    def damage(cache: Path) -> None:
        with (cache / name).open("r+b") as file:
            file.truncate((cache / name).stat().st_size // 2)

    return damage


def save(name: str, array: np.ndarray):
    return lambda cache: np.save(cache / name, array, allow_pickle=True)


def save_as_described(name: str, array: np.ndarray):
    """A foreign array whose size the manifest confirms."""

    def damage(cache: Path) -> None:
        save(name, array)(cache)
        files = json.loads((cache / "manifest.json").read_text())["files"]
        files[name]["bytes"] = (cache / name).stat().st_size
        edit_manifest(files=files)(cache)

    return damage


def replace_by_file(cache: Path) -> None:
    shutil.rmtree(cache)
    cache.write_text("junk")


def replace_by_link(cache: Path) -> None:
    cache.rename(cache.parent.parent / "elsewhere")
    (cache.parent.parent / "elsewhere" / "images.npy").unlink()
    cache.symlink_to(cache.parent.parent / "elsewhere")


def write_archive(cache: Path) -> None:
    with (cache / "images.npy").open("wb") as file:
        np.savez(file, IMAGES)


class Trap:
    """Would leave a trace if a pickle of it were read."""

    def __reduce__(self):
        return (os.mkdir, ("trap",))


CACHES = {
    "D13 truncated images": truncate("images.npy"),
    "D13 truncated poses": truncate("poses.npy"),
    "D13 truncated manifest": truncate("manifest.json"),
    "D13 empty images": lambda cache: (cache / "images.npy").write_bytes(b""),
    "D13 no focal": lambda cache: (cache / "focal.npy").unlink(),
    "D13 no manifest": lambda cache: (cache / "manifest.json").unlink(),
    "D13 other dtype": save_as_described("poses.npy", np.zeros((2, 2, 4, 4))),
    "D13 other shape": save_as_described("images.npy", np.zeros((1, 2, 4, 6, 4), np.uint8)),
    "D13 other views": save_as_described("poses.npy", np.zeros((2, 1, 4, 4), np.float32)),
    "D13 other channels": save_as_described("images.npy", np.zeros((2, 2, 4, 6, 3), np.uint8)),
    "D13 scalar": save_as_described("images.npy", np.uint8(0)),
    "D13 an archive": write_archive,
    "D13 header of noise": save_as_described("images.npy", np.zeros(1)),
    "D13 other ids": edit_manifest(ids=["scene0", "scene2"]),
    "D13 other format": edit_manifest(format=0),
    "D13 no files listed": edit_manifest(files={}),
    "D13 other files listed": edit_manifest(files={"../../car_splits.json": {"bytes": 1}}),
    "D13 manifest a list": lambda cache: (cache / "manifest.json").write_text("[]"),
    "D13 manifest deep": lambda cache: (cache / "manifest.json").write_text("[" * 100_000),
    "D13 manifest of bytes": lambda cache: (cache / "manifest.json").write_bytes(b"\xff\0"),
    "D13 junk file": replace_by_file,
    "D13 junk folder": lambda cache: (shutil.rmtree(cache), cache.mkdir(), (cache / "junk").mkdir()),
    "D13 junk link": replace_by_link,
    "D14 object array": save("poses.npy", np.array([[Trap()]], object)),
    "D14 object array as described": save_as_described("images.npy", np.array([Trap()], object)),
    "D14 pickle": lambda cache: (cache / "images.npy").write_bytes(np.array([Trap()], object).dumps()),
}


@pytest.mark.parametrize("damage", CACHES.values(), ids=CACHES.keys())
def test_a_foreign_or_damaged_cache_is_built_anew(root, decoded, damage, monkeypatch):
    monkeypatch.chdir(root)
    content = load(root).content
    damage(only_cache(root))
    decoded.clear()
    again = load(root)
    assert sorted(decoded) == ["scene0", "scene2"]
    np.testing.assert_array_equal(again.views.images, IMAGES[[2, 0]])
    assert again.content == content
    decoded.clear()
    np.testing.assert_array_equal(load(root).views.images, IMAGES[[2, 0]])
    assert not decoded
    assert not (root / "trap").exists()


def test_d13_a_flipped_byte_is_noticed_when_asked_to_look(root, decoded):
    load(root)
    path = only_cache(root) / "images.npy"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    decoded.clear()
    load(root)
    assert not decoded
    np.testing.assert_array_equal(load(root, verify=True).views.images, IMAGES[[2, 0]])
    assert decoded
    decoded.clear()
    load(root, verify=True)
    assert not decoded


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_pack_leaves_nothing(root, monkeypatch, error):
    def interrupt(*_):
        raise error

    monkeypatch.setattr(packing, "_place", interrupt)
    with pytest.raises(error):
        load(root)
    assert not list((root / ".jaxmeta").iterdir())


def test_a_broken_scene_leaves_nothing(root):
    (root / SCENE / "r_1.png").write_bytes(b"")
    with refused(r"scene0.r_1\.png is not a PNG file"):
        load(root)
    assert not list((root / ".jaxmeta").iterdir())


PACK = "import sys; from pathlib import Path; from jaxmeta.data.splits import load_split\n"
LOAD = "views = load_split(Path(sys.argv[1]), 'car', 'train', num_views=2).views; print(int(views.images.sum()))"
DIE = "import os; from jaxmeta.data import packing; packing.{} = lambda *_, **__: os._exit(9)\n"


MANY = [f"scene{index:03d}" for index in range(101)]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """101 scenes, the second of which is broken."""
    root = tmp_path / "many"
    for scene_id in MANY:
        shapenet.write_scene(root / "cars" / scene_id, IMAGES[0, :1], np.eye(4)[None], 0.7)
    shapenet.write_splits(root, "car", {"train": MANY, "test": [MANY[0]]})
    (root / "cars" / MANY[1] / "r_0.png").write_bytes(b"no image")
    return root


def test_d1_a_bad_scene_can_be_skipped_with_a_warning(many, capsys):
    options = {"num_views": 1, "allow_overlap": True}
    with refused("r_0.png"):
        load_split(many, "car", "train", **options)
    for _ in range(2):  # decoded, then from the cache
        split = load_split(many, "car", "train", skip_bad=True, **options)
        assert split.ids == (MANY[0], *MANY[2:])
        assert len(split.views.images) == 100
        warning = capsys.readouterr().err
        assert warning.count("warning: scene skipped: ") == 1
        assert f"{MANY[1]}/r_0.png" in warning
    with refused("r_0.png"):  # the cache of the others does not hide it
        load_split(many, "car", "train", **options)


def test_d1_too_many_bad_scenes_are_an_error(many):
    (many / "cars" / MANY[0] / "r_0.png").write_bytes(b"no image")
    with refused("2 of 101 scenes are bad, more than one in a hundred, the first: .*scene00"):
        load_split(many, "car", "train", num_views=1, skip_bad=True, allow_overlap=True)


def test_d10_a_scene_in_two_splits_is_an_error_unless_allowed(many):
    with refused("'scene000' both in 'test' and in 'train'.*--data.allow-overlap"):
        load_split(many, "car", "test", num_views=1)
    assert load_split(many, "car", "test", num_views=1, allow_overlap=True).ids == (MANY[0],)


def test_d10_an_unknown_scene_is_told_with_the_nearest(root):
    shapenet.write_splits(root, "car", {"train": ["scene0", "scene9"]})
    with refused("cars has no scene 'scene9', which its split lists; the nearest there are scene2, scene1, scene0"):
        load(root)


def start(code: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, root], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("place", ["_describe", "_place"])
def test_a_killed_pack_is_not_used_and_in_time_removed(root, place):
    with start(PACK + DIE.format(place) + LOAD, root) as process:
        assert process.wait() == 9
    (left,) = (root / ".jaxmeta").iterdir()
    np.testing.assert_array_equal(load(root).views.images, IMAGES[[2, 0]])
    assert left.exists()  # It may be one that another process is making.
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    os.utime(root / SCENE / "r_0.png")
    load(root)
    assert not left.exists()
    only_cache(root)


def test_two_processes_may_pack_at_once(root):
    with start(PACK + LOAD, root) as one, start(PACK + LOAD, root) as other:
        for process in (one, other):
            assert process.communicate()[0] == f"{IMAGES[[2, 0]].sum()}\n"
            assert process.returncode == 0
    only_cache(root)


def test_what_becomes_of_the_cache_does_not_reach_a_process_that_made_it(root, monkeypatch):
    def place(complete: Path, cache: Path) -> None:
        original(complete, cache)
        shutil.rmtree(cache)

    original = packing._place
    monkeypatch.setattr(packing, "_place", place)
    np.testing.assert_array_equal(load(root).views.images, IMAGES[[2, 0]])


def test_the_slower_of_two_processes_leaves_the_cache_of_the_faster(root, monkeypatch):
    def remove(path: Path, **options) -> None:
        original(path, **options)
        if path.suffix != ".tmp":
            path.mkdir()
            (path / "faster").write_text("")

    original = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", remove)
    np.testing.assert_array_equal(load(root).views.images, IMAGES[[2, 0]])
    assert [path.name for path in only_cache(root).iterdir()] == ["faster"]


def test_read_only_data_are_packed_in_the_users_cache(root, decoded, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    # A superuser may write anywhere, so the mode of the folder would not tell.
    monkeypatch.setattr(splits.os, "access", lambda path, mode: path != root)
    load(root)
    assert not (root / ".jaxmeta").exists()
    assert cache_folder(root).parent == tmp_path / "user" / "jaxmeta"
    decoded.clear()
    np.testing.assert_array_equal(load(root).views.images, IMAGES[[2, 0]])
    assert not decoded
    other = write_shapenet(tmp_path / "other")
    monkeypatch.setattr(splits.os, "access", lambda path, mode: False)
    assert cache_folder(other) != cache_folder(root)


def test_without_a_cache_folder_it_is_the_homes(root, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(splits.os, "access", lambda path, mode: False)
    assert cache_folder(root).parent == tmp_path / "home" / ".cache" / "jaxmeta"


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_disk_is_a_storage_error(root, monkeypatch, function, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(packing.os, function, fail)
    with pytest.raises(StorageError, match=rf"car-train-.* cannot be written: {os.strerror(number)}") as caught:
        load(root)
    assert caught.value.exit_code == 6
    assert not list((root / ".jaxmeta").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_disk_that_fills_while_packing_is_an_error_not_a_crash(root, monkeypatch):
    def create(path: Path, num_scenes: int, leaf: np.ndarray):
        return Path("/dev/full").open("wb", buffering=0)

    monkeypatch.setattr(decoding, "_create", create)
    with pytest.raises(StorageError, match="No space left on device"):
        load(root)


def test_a_fingerprint_follows_no_link_to_a_folder(root):
    (root / SCENE / "loop").symlink_to(".")
    (root / SCENE / "everything").symlink_to("/")
    (root / SCENE / "dangling").symlink_to("nowhere")
    (root / SCENE / "circle").symlink_to("circle")
    before = packing.fingerprint([root / SCENE])
    assert before == packing.fingerprint([root / SCENE])
    (root / SCENE / "dangling").unlink()
    assert before != packing.fingerprint([root / SCENE])


def test_a_fingerprint_names_what_cannot_be_read(root):
    with refused(r"nowhere cannot be read: No such file"):
        packing.fingerprint([root / SCENE, root / "nowhere"])
