"""Furniture catalogues to a class, with tiny catalogues of our own and no network."""

import json
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fetch_furniture import Piece, belongs, extract_models, fetch_package, main, read_library, read_properties
from surfaces import load_surface

from jaxmeta.data.splits import load_split
from jaxmeta.errors import InputError

TINY = ("--size", "8", "--num-views", "2", "--supersampling", "1", "--workers", "1")
PYRAMID = "mtllib m.mtl\nv -1 0 -1\nv 1 0 -1\nv 0 0 1\nv 0 {height} 0\nusemtl m\nf 1 2 4\nf 2 3 4\nf 3 1 4\nf 1 3 2\n"
NAMES = ["Armchair", "Bar stool", "Chair", "Wheelchair", "Table", "Seat Leon"]


def library(path: Path, names: list[str], *, extra: str = "", files: dict[str, bytes] | None = None) -> Path:
    """Writes a catalogue of pyramids; model number i is i + 1 high."""
    lines = ["# A comment", "id=ours", f"name={path.stem}", "license=CC0 \\u00a9 nobody"]
    content = {}
    for i, name in enumerate(names):
        folder = f"{path.stem.lower()}/model{'abcdefgh'[i]}"
        lines += [
            f"id#{i}=x",
            f"name#{i}={name}",
            f"category#{i}=Living room",
            f"model#{i}=/{folder}/m{'abcdefgh'[i]}.obj",
        ]
        lines += [f"creator#{i}=Maker of {name}", f"icon#{i}=/{folder}.png"]
        content[f"{folder}/m{'abcdefgh'[i]}.obj"] = PYRAMID.format(height=i + 1).encode()
        content[f"{folder}/m.mtl"] = b"newmtl m\nKd 0.9 0.1 0.1\n"
        content[f"{folder}/licence.html"] = b"do not unpack this"
    content["PluginFurnitureCatalog.properties"] = "\n".join([*lines, extra]).encode("latin-1")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (content | (files or {})).items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "package" / "usr" / "share"
    folder.mkdir(parents=True)
    library(folder / "First.sh3f", NAMES)
    library(folder / "Second.sh3f", ["Deck chair", "Lamp"])
    return tmp_path / "package"


def test_category_becomes_a_class(source, tmp_path):
    main(["--category", "chairs", "--source", str(source), "--out", str(tmp_path / "out"), *TINY])
    splits = json.loads((tmp_path / "out" / "chairs_splits.json").read_text())
    ids = {identifier for members in splits.values() for identifier in members}
    assert ids == {"First-ma", "First-mb", "First-mc", "First-md", "Second-ma"}
    assert load_split(tmp_path / "out", "chairs", "test", num_views=2).views.images[..., 3].any()
    notes = json.loads((tmp_path / "out" / "chairs_sources.json").read_text(encoding="utf-8"))
    assert set(notes["scenes"]) == ids
    stool = notes["scenes"]["First-mb"]
    assert (stool["creator"], stool["license"]) == ("Maker of Bar stool", "CC0 © nobody")
    assert "First.sh3f" in stool["source"] and "Bar stool" in stool["source"]


def test_sources_belong_to_their_scenes(source, tmp_path):
    pieces = [p for path in sorted(source.rglob("*.sh3f")) for p in read_library(path)]
    models = extract_models(pieces, tmp_path / "models")
    for piece, model in zip(pieces, models, strict=True):
        height = ord(model.path.stem[-1]) - ord("a") + 1
        assert f" {height} 0\nusemtl" in model.path.read_text()
        assert piece.model.endswith(model.path.name)
        assert model.scene_id.startswith(piece.archive.stem)
        assert sorted(path.suffix for path in model.path.parent.iterdir()) == [".mtl", ".obj"]


def test_rotation_of_the_catalogue_sets_a_model_upright(source, tmp_path):
    # The catalogue's matrix takes (x, y, z) to (x, z, -y): what lay along z, 2 long, stands up. In y the pyramid has 1.
    lying = library(tmp_path / "Lying.sh3f", ["Table"], extra="modelRotation#0=1 0 0 0 0 1 0 -1 0")
    for path, top in ((lying, 2.0), (library(tmp_path / "Upright.sh3f", ["Table"]), 1.0)):
        [model] = extract_models(read_library(path), tmp_path / path.stem)
        rotation = None if model.rotation is None else np.reshape(model.rotation, (3, 3))
        corners = load_surface(model.path, radius=1, rotation=rotation).corners
        size = np.ptp(corners, axis=(0, 1))
        np.testing.assert_allclose(size / size[0] * 2, (2, 3 - top, top), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Chair", "chairs"),
        ("Folding chair", "chairs"),
        ("Armchair", "chairs"),
        ("Bar stool", "chairs"),
        ("Corner sofa", "sofas"),
        ("Coffee table", "tables"),
        ("Desk", "tables"),
        ("Desk lamp", "lamps"),
        ("Classic lamppost", "lamps"),
        ("Bunk bed", "beds"),
        ("Glass door cabinet", "cabinets"),
        ("Palm tree", "plants"),
        ("Table tennis bat", None),
        ("Table fan", None),
        ("Armchair ottoman", None),
        ("Seat Leon", None),
        ("Doormat", None),
    ],
)
def test_kinds_go_by_name(name, kind):
    piece = Piece(Path("x.sh3f"), "x.obj", name, "Exterior", "", "", None)
    kinds = ("chairs", "sofas", "tables", "lamps", "beds", "cabinets", "plants")
    assert [each for each in kinds if belongs(piece, each)] == ([kind] if kind else [])
    assert belongs(piece, "exterior")


def test_unknown_category_lists_those_there_are(source, tmp_path, capsys):
    with pytest.raises(InputError) as caught:
        main(["--category", "castles", "--source", str(source), "--out", str(tmp_path / "out")])
    assert "--category castles" in str(caught.value)
    assert "5 chairs" in str(caught.value) and "8 living room" in str(caught.value)
    main(["--list", "--source", str(source)])
    assert "5 chairs" in capsys.readouterr().out


def test_properties_are_javas():
    text = "# no=1\n! no=2\n a = b=c \\\n   d \nname\\:x=\\u20ac 5\\!\nempty=\nnothing\n"
    assert read_properties(text) == {"a": "b=c d", "name\\:x": "€ 5!", "empty": ""}


@pytest.mark.parametrize(
    ("extra", "files", "message"),
    [
        ("", {"../evil.obj": b"x"}, "not safe to unpack"),
        ("", {"first/modela/link.png": b"link"}, "not safe to unpack"),
        ("model#9=/first/none.obj\nname#9=Chair", {}, "lists 'first/none.obj', which is no .obj in it"),
        ("model#9=/../../../etc/passwd\nname#9=Chair", {}, "which is no .obj in it"),
        ("modelRotation#0=1 2 3", {}, "has a modelRotation#0 that is not nine numbers"),
        ("modelRotation#0=a b c d e f g h i", {}, "has a modelRotation#0 that is not nine numbers"),
        ("model#9=/first/modela/ma.obj\nname#9=Chair", {}, "First-ma twice"),
    ],
)
def test_broken_catalogues(tmp_path, extra, files, message):
    path = library(tmp_path / "First.sh3f", ["Chair"], extra=extra, files=files)
    if b"link" in files.values():
        with zipfile.ZipFile(path, "a") as archive:
            link = zipfile.ZipInfo("first/modela/really.png")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, b"/etc/passwd")
    with pytest.raises(InputError) as caught:
        main(["--source", str(tmp_path), "--out", str(tmp_path / "out"), *TINY])
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(b"<html>", "a web page, not a zip file"), (b"", "no sound zip file"), (None, "no .sh3f")]
)
def test_broken_source(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.sh3f").write_bytes(content)
    with pytest.raises(InputError, match=message):
        main(["--source", str(tmp_path), "--out", str(tmp_path / "out")])


def test_zip_that_is_no_catalogue(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.sh3f", "w") as archive:
        archive.writestr("a.txt", b"")
    with pytest.raises(InputError, match="is no catalogue of furniture"):
        main(["--source", str(tmp_path), "--out", str(tmp_path / "out")])


# ---- apt -------------------------------------------------------------------------------------------------------------


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs come before the system's."""
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    program(
        folder,
        "apt-get",
        'test "$1 $2" = "download sweethome3d-furniture" && echo deb > sweethome3d-furniture_1_all.deb',
    )
    program(folder, "dpkg-deb", 'test "$1" = -x && mkdir -p "$3/usr" && cp "$2" "$3/usr/package"')
    return folder


def test_apt_fetches_once(programs, tmp_path):
    folder = fetch_package(tmp_path / "cache")
    assert (folder / "usr" / "package").read_text() == "deb\n"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["sweethome3d-furniture"]
    program(programs, "apt-get", "exit 1")
    assert fetch_package(tmp_path / "cache") == folder


@pytest.mark.parametrize(
    ("name", "script", "message"),
    [
        (
            "apt-get",
            "echo E: Unable to locate package >&2; exit 100",
            r"E: Unable to locate package; try apt-get update",
        ),
        ("apt-get", "exit 7", r"exit code 7; try apt-get update"),
        ("apt-get", "exit 0", r"brought no package"),
        ("dpkg-deb", "echo broken archive >&2; exit 2", r"broken archive"),
    ],
)
def test_apt_that_fails(programs, tmp_path, name, script, message):
    program(programs, name, script)
    with pytest.raises(InputError, match=message):
        fetch_package(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_machine_without_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"apt-get is missing here.*--source"):
        main(["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")])
