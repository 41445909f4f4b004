"""The authors' zip files: laid out as they should be; unsafe, broken and mismatched ones refused without a trace."""

import json
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import archives
import numpy as np
import prepare_shapenet
import pytest
from archives import Limits, extract, opened, sound_entries
from hypothesis import given
from hypothesis import strategies as st
from prepare_shapenet import main

from jaxmeta.cameras import orbit_pose
from jaxmeta.data.shapenet import write_scene
from jaxmeta.data.splits import load_split
from jaxmeta.errors import InputError, StorageError

SCRIPT = Path(__file__).parents[1] / "data_scripts" / "prepare_shapenet.py"
IDS = ["1a2b", "3c4d", "5e6f", "7a8b"]
SPLITS = {"train": IDS[:2], "val": IDS[2:3], "test": IDS[3:]}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of four scenes of two views."""
    root = tmp_path_factory.mktemp("scenes")
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 4, 4, 4), dtype=np.uint8)
    for scene_id, views in zip(IDS, images, strict=True):
        write_scene(root / scene_id, views, np.stack([orbit_pose(angle, 0.5, 4.0) for angle in (0.0, 1.0)]), 0.7)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.*"))}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


class Download(NamedTuple):
    folder: Path
    out: Path

    def flags(self, *more: str) -> list[str]:
        return [str(self.folder), "--out", str(self.out), *more]

    def left(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir()) if self.out.exists() else []


@pytest.fixture
def download(tmp_path: Path, scenes: dict[str, bytes]) -> Download:
    folder = tmp_path / "downloads"
    folder.mkdir()
    write_zip(folder / "cars.zip", {f"cars/{name}": content for name, content in scenes.items()})
    (folder / "car_splits.json").write_text(json.dumps(SPLITS))
    return Download(folder, tmp_path / "out")


@pytest.mark.parametrize("prefix", ["", "cars/", "data/cars/"])
def test_class_is_laid_out(download, scenes, prefix, capsys):
    extra = {f"{prefix}readme.txt": b"hello", f"{prefix}1a2b/depth.exr": b"x", "splits.json": b"{}"}
    write_zip(download.folder / "cars.zip", {prefix + name: content for name, content in scenes.items()} | extra)
    main(download.flags())
    assert download.left() == ["car", "car_splits.json"]
    found = {str(p.relative_to(download.out / "car")): p.read_bytes() for p in (download.out / "car").rglob("*.*")}
    assert found == scenes
    assert load_split(download.out, "car", "train", num_views=2).ids == tuple(IDS[:2])
    assert (
        "4 scenes: 2 train, 1 val, 1 test, 0 in no split; 0 listed but missing; other files ignored: 3"
        in capsys.readouterr().out
    )


def test_folder_of_classes(download, scenes):
    write_zip(download.folder / "chairs.zip", scenes)
    (download.folder / "chairs_splits.json").write_text(json.dumps(SPLITS))
    main(download.flags())
    assert download.left() == ["car", "car_splits.json", "chairs", "chairs_splits.json"]


def test_second_run_changes_nothing(download):
    main(download.flags())
    stamps = {path: path.stat().st_mtime_ns for path in (download.out / "car").rglob("*")}
    main(download.flags())
    assert {path: path.stat().st_mtime_ns for path in (download.out / "car").rglob("*")} == stamps


def test_other_scenes_in_the_way(download):
    (download.out / "car" / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match="is there and holds other scenes"):
        main(download.flags())
    assert [path.name for path in (download.out / "car").iterdir()] == ["mine"]


def test_stopped_run_goes_on(download, monkeypatch):
    calls = []

    def dying(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
        calls.append(entry.filename)
        if len(calls) == 8:  # in the third scene of three files each
            raise KeyboardInterrupt
        extract(archive, entry, target)

    monkeypatch.setattr(prepare_shapenet, "extract", dying)
    with pytest.raises(KeyboardInterrupt):
        main(download.flags())
    assert not any(name.startswith("car") for name in download.left())
    calls.clear()
    monkeypatch.setattr(prepare_shapenet, "extract", lambda *args: (calls.append(args[1].filename), extract(*args))[1])
    main(download.flags())
    assert download.left() == ["car", "car_splits.json"]
    assert {Path(name).parent.name for name in calls} == set(IDS[2:])
    assert sorted(path.name for path in (download.out / "car").iterdir()) == IDS


# ---- archives that must not be unpacked ------------------------------------------------------------------------------


def entry(name: str, **attributes: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


HOSTILE = {
    "parent": entry("cars/../../evil.png"),
    "parent only": entry(".."),
    "absolute": entry("/tmp/evil.png"),  # noqa: S108
    "drive": entry("C:/evil.png"),
    "backslash": entry("cars\\..\\..\\evil.png"),
    "dot": entry("cars/./evil.png"),
    "double slash": entry("cars//evil.png"),
    "link": entry("cars/1a2b/link.png", external_attr=(stat.S_IFLNK | 0o777) << 16),
    "device": entry("cars/1a2b/device.png", external_attr=(stat.S_IFCHR | 0o666) << 16),
    "fifo": entry("cars/1a2b/fifo.png", external_attr=(stat.S_IFIFO | 0o666) << 16),
    "repeated": entry("cars/1a2b/r_0.png"),
    "repeated in capitals": entry("cars/1A2B/R_0.PNG"),
    "a file and a folder": entry("cars/1a2b"),
    "bomb": entry("cars/1a2b/bomb.png", compress_type=zipfile.ZIP_DEFLATED),
}
BOMB = b"\0" * 300_000  # deflates about 1,000 times


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archive_leaves_no_trace(download, kind):
    with zipfile.ZipFile(download.folder / "cars.zip", "a") as archive:
        archive.writestr(HOSTILE[kind], BOMB if kind == "bomb" else b"evil")
    before = sorted(download.folder.parent.rglob("*"))
    with pytest.raises(InputError, match=r"cars\.zip holds .*not safe to unpack"):
        main(download.flags())
    assert sorted(download.folder.parent.rglob("*")) == before


def test_backslashes_are_seen_in_what_the_archive_says(download):
    # A name that zipfile itself would cut at a NUL byte or turn around, written with patience into the file.
    data = (download.folder / "cars.zip").read_bytes()
    for name in (b"cars/1a2b\\r_0.png", b"cars/1a2b/r_0.p\0g"):
        (download.folder / "cars.zip").write_bytes(data.replace(b"cars/1a2b/r_0.png", name))
        with pytest.raises(InputError, match=r"is no plain relative path"):
            main(download.flags())


def test_encrypted_archive(download):
    data = bytearray((download.folder / "cars.zip").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    (download.folder / "cars.zip").write_bytes(data)
    with pytest.raises(InputError, match="is encrypted"):
        main(download.flags())


def test_too_much(download, monkeypatch):
    with pytest.raises(InputError, match=r"would unpack to 0\.0 GiB, more than"):
        main(download.flags("--max-gib", "0.0000001"))
    with (
        opened(download.folder / "cars.zip") as archive,
        pytest.raises(InputError, match="lists 12 entries, more than 5"),
    ):
        sound_entries(archive, Limits(entries=5))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: Usage(free=1000))
    with pytest.raises(StorageError, match=r"GiB free, unpacking needs"):
        main(download.flags())
    assert not any(name.startswith("car") for name in download.left())


class Usage(NamedTuple):
    free: int


def test_sizes_that_lie(download):
    # The table of contents says fewer bytes than there are: nothing more than it says is ever written.
    data = bytearray((download.folder / "cars.zip").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1).to_bytes(4, "little")
    (download.folder / "cars.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"cars\.zip is no sound zip file"):
        main(download.flags())
    assert not any(name.startswith("car") for name in download.left())


@given(st.text(st.sampled_from("ab./\\:~ \0é"), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_what_passes_stays_inside(tmp_path_factory, name, attributes):
    folder = tmp_path_factory.mktemp("any")
    with zipfile.ZipFile(folder / "any.zip", "w") as archive:
        archive.writestr(entry(name, external_attr=attributes), b"x")
    with opened(folder / "any.zip") as archive:
        try:
            entries = sound_entries(archive)
        except InputError:
            return
        for each in entries:
            target = folder / "inside" / each.filename
            assert target.resolve().is_relative_to((folder / "inside").resolve())
            extract(archive, each, target)
            assert target.read_bytes() == b"x"


# ---- files that are broken or do not belong together -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["half", "html", "blanks first", "empty", "flipped", "less than", "missing"])
def test_broken_download(download, kind):
    path = download.folder / "cars.zip"
    data = path.read_bytes()
    at = data.index(b"r_0.png") + 60
    page = b"<!DOCTYPE html><title>Quota exceeded</title>"
    flipped = data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]
    broken = {
        "half": data[: len(data) // 2],
        "html": page,
        "blanks first": b"\xef\xbb\xbf\r\n" + page,
        "empty": b"",
        "flipped": flipped,
        "less than": flipped[:10] + b"<" + flipped[11:],  # one of the seconds at which a first entry was written
    }
    wanted = {"html": "a web page", "blanks first": "a web page", "missing": "is not there"}
    message = wanted.get(kind, "no sound zip file")
    path.unlink() if kind == "missing" else path.write_bytes(broken[kind])
    with pytest.raises(InputError, match=rf"cars\.zip is .*{message}|cars\.zip {message}"):
        main([str(path), "--out", str(download.out), "--splits", str(download.folder / "car_splits.json")])
    assert not any(name.startswith("car") for name in download.left())


def without(scenes: dict[str, bytes], *starts: str) -> dict[str, bytes]:
    return {name: content for name, content in scenes.items() if not name.startswith(starts)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: {"readme.txt": b"hello"}, "holds no folder with a transforms.json"),
        (lambda files: without(files, "1a2b/r_"), "holds no .png in the scene '1a2b'"),
        (lambda files: files | {"b/1a2b/transforms.json": b"{}"}, "holds the scene '1a2b', twice"),
        (lambda files: files | {"a b/transforms.json": b"{}"}, "holds the scene 'a b', but ids are"),
        (lambda files: files | {"transforms.json": b"{}"}, "holds the scene '', but ids are"),
        (lambda files: without(files, "7a8b"), "lists 1 scene that"),
    ],
)
def test_archive_of_something_else(download, scenes, change, message):
    write_zip(download.folder / "cars.zip", change(scenes))
    with pytest.raises(InputError) as caught:
        main(download.flags())
    assert message in str(caught.value)
    assert download.left() == []


def test_missing_scenes_may_be_dropped(download, scenes, capsys):
    write_zip(download.folder / "cars.zip", without(scenes, "3c4d"))
    main(download.flags("--on-missing-scene", "drop"))
    assert load_split(download.out, "car", "train", num_views=2).ids == ("1a2b",)
    assert "1 listed but missing" in capsys.readouterr().out
    write_zip(download.folder / "cars.zip", {f"x{name}": content for name, content in scenes.items()})
    with pytest.raises(InputError, match="lists 4 scenes that"):
        main(download.flags("--on-missing-scene", "drop"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "does not hold a JSON object"),
        ('{"train": []}', "should be an object"),
        ('{"train": ["../x"], "val": [], "test": []}', "has the scene id '../x'"),
        ('{"train": [7], "val": [], "test": []}', "has the scene id 7"),
        ('{"train": ["1a2b"], "val": [], "test": ["1a2b"]}', "lists the scene '1a2b' twice"),
    ],
)
def test_broken_splits(download, content, message):
    (download.folder / "car_splits.json").write_text(content)
    with pytest.raises(InputError) as caught:
        main(download.flags())
    assert message in str(caught.value)
    assert download.left() == []


def test_where_the_splits_are(download):
    (download.folder / "car_splits.json").rename(download.folder / "splits.json")
    with pytest.raises(InputError, match=r"no cars_splits\.json or car_splits\.json beside it"):
        main(download.flags())
    with pytest.raises(InputError, match=r"should be called <class>_splits\.json"):
        main(download.flags("--splits", str(download.folder / "splits.json")))
    (download.folder / "splits.json").rename(download.folder / "auto_splits.json")
    main(download.flags("--splits", str(download.folder / "auto_splits.json")))
    assert download.left() == ["auto", "auto_splits.json"]


def test_command_ends_with_two_and_one_line(download):
    (download.folder / "cars.zip").write_bytes(b"<html>")
    command = [sys.executable, SCRIPT, *download.flags()]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(SCRIPT.parents[1])})
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
