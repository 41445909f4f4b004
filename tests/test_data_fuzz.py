"""Whatever a file of a data set holds, it is read or refused with a sentence: no other error, no hang, no way out.

N8 and the random half of D3, D8, D9 and D11.
"""

import ast
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import WIDTH, encode, write_blender, write_shapenet, write_srn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jaxmeta.data.splits import find_split
from jaxmeta.errors import InputError

PACKAGE = Path(__file__).parent.parent / "jaxmeta"
SENTINEL = "outside"
WRITERS = {"shapenet": write_shapenet, "srn": write_srn, "blender": write_blender}

_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir") and not isinstance(arguments[0], int):
        _opened.append(os.path.realpath(os.fsdecode(arguments[0] or ".")))


sys.addaudithook(_watch)  # Sees what C code opens, too; there is no way to remove it.


@contextlib.contextmanager
def watched(root: Path) -> Iterator[None]:
    """Fails where a file or folder outside of the root is opened or listed, Python's own aside."""
    global _opened
    _opened = []
    try:
        yield
    finally:
        paths, _opened = _opened, None
    allowed = (os.path.join(root.resolve(), ""), sys.prefix, sys.base_prefix)
    outside = [path for path in paths if path != str(root.resolve()) and not path.startswith(allowed)]
    assert not outside, f"opened outside: {outside}"


@pytest.fixture(scope="module", params=WRITERS)
def layout(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def sound(layout, tmp_path_factory) -> Path:
    """A sound data set, beside a readable image and cameras that no reader may reach."""
    folder = tmp_path_factory.mktemp(layout)
    shutil.copytree(WRITERS[layout](folder / "data"), folder / SENTINEL)
    (folder / SENTINEL / "r_0.png").write_bytes(encode(np.full((4, WIDTH, 4), 99, np.uint8)))
    assert read(folder / "data", layout)
    return folder / "data"


def read(root: Path, layout: str, *, class_name: str = "car", split: str = "train") -> bool:
    """Reads a split as load_split does, short of packing it; returns whether it is sound."""
    with watched(root):
        try:
            source = find_split(root, class_name, split, layout)
            for scene in source.scenes:
                source.load_scene(scene.folder, num_views=2)
        except InputError as error:
            assert error.exit_code == 2
            assert "\n" not in str(error)
            return False
    return True


@pytest.fixture
def rewritten(sound) -> Iterator[Callable[[Path, bytes], None]]:
    """Rewrites a file of the sound data set for one example."""
    before = {path: path.read_bytes() for path in sound.rglob("*") if path.is_file()}

    def rewrite(path: Path, content: bytes) -> None:
        for other, original in before.items():
            if other.read_bytes() != original:
                other.write_bytes(original)
        path.write_bytes(content)

    yield rewrite
    for path, original in before.items():
        path.write_bytes(original)


PATHS = """.|..|../..|/|//|../outside/r_0|../../outside/r_0|../../../outside/r_0|outside/r_0|/etc/passwd|//etc/passwd
..\\..\\x|a/../../x|r_0|./r_0|r_0.png|.jaxmeta|train/r_0|train/../../outside/r_0|scene0|scene2|scene0/../scene0
../cars/scene0|~|$HOME|%2e%2e/x|file:///etc/passwd|/dev/stdin|/dev/zero|con""".replace("\n", "|").split("|")
PATHS += ["", "r_0\0", "\0", "\n", "\x1b[2J", "\ud800", "\udcff", "\u202e", "x" * 5000]
names = st.sampled_from(PATHS) | st.text(st.characters(), max_size=12) | st.text("./\\~\0r_0ab", max_size=12)
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**400), 2**63, 2**64, 1e308, -1e308, 1e39, 5e-324, -0.0])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | names,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
matrices = st.lists(st.lists(numbers | st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=4, max_size=4)
junk = values | matrices


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value, from the whole to the leaves."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


@st.composite
def mutations(draw, content: Any) -> bytes:
    """A JSON value with one to three places replaced, removed or doubled, as text."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        inner = list(places(content))[1:]
        if not inner:
            break
        *path, last = draw(st.sampled_from(inner))
        holder = content
        for key in path:
            holder = holder[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
        if action == "remove":
            del holder[last]
        elif action == "double" and isinstance(holder, list):
            holder.append(draw(st.sampled_from(holder)))
        else:
            holder[last] = draw(junk)
    return to_text(content)


def to_text(content: Any) -> bytes:
    return json.dumps(content).encode()


def damaged(text: bytes) -> st.SearchStrategy[bytes]:
    """A text with a piece cut out or put in."""
    piece = st.binary(max_size=6) | st.sampled_from(
        [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 5000, b'"', b"}"]
    )
    cut = st.tuples(st.integers(0, len(text)), st.integers(0, 20), piece)
    return cut.map(lambda where: text[: where[0]] + where[2] + text[where[0] + where[1] :])


def json_files(root: Path, layout: str) -> list[Path]:
    return {
        "shapenet": [root / "car_splits.json", root / "cars" / "scene2" / "transforms.json"],
        "srn": [],
        "blender": [root / "transforms_train.json"],
    }[layout]


many = settings(max_examples=150, suppress_health_check=list(HealthCheck))


@many
@given(data=st.data())
def test_any_json_is_read_or_refused(sound, layout, rewritten, data):
    for path in json_files(sound, layout):
        rewritten(path, data.draw(junk.map(to_text)))
        read(sound, layout)


@many
@given(data=st.data())
def test_almost_sound_json_is_read_or_refused(sound, layout, rewritten, data):
    for path in json_files(sound, layout):
        rewritten(path, b"{}")
        rewritten(
            path, data.draw(mutations(json.loads((sound.parent / SENTINEL / path.relative_to(sound)).read_text())))
        )
        read(sound, layout)


@many
@given(data=st.data())
def test_damaged_text_is_read_or_refused(sound, layout, rewritten, data):
    texts = [*json_files(sound, layout), *sorted(sound.rglob("cars_train/*0/**/*.txt"))[:2]]
    for path in texts:
        original = (sound.parent / SENTINEL / path.relative_to(sound)).read_bytes()
        rewritten(path, data.draw(damaged(original)))
        read(sound, layout)


@many
@given(data=st.data())
def test_any_numbers_in_a_text_are_read_or_refused(sound, layout, rewritten, data):
    words = st.one_of(
        st.sampled_from(
            ["0", "1", "-1", "3", "2", "4", "6", "1e308", "1e-320", "nan", "inf", "1_0", "0x1", "9" * 400, "\0"]
        ),
        st.floats().map(str),
    )
    for path in sorted(sound.rglob("cars_train/*0/**/*.txt"))[:2]:
        size = data.draw(st.sampled_from([0, 5, 6, 10, 16, 17]))
        rewritten(path, " ".join(data.draw(st.lists(words, min_size=size, max_size=size))).encode())
        read(sound, layout)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(file_path=names)
@example(file_path="../outside/r_0")
@example(file_path="outside/r_0")
def test_no_file_path_leads_out(sound, layout, rewritten, file_path):
    if layout == "srn":
        pytest.skip("has no file paths")
    path = json_files(sound, layout)[-1]
    content = json.loads((sound.parent / SENTINEL / path.relative_to(sound)).read_text())
    content["frames"][0]["file_path"] = file_path
    rewritten(path, to_text(content))
    read(sound, layout)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(ids=st.lists(names, max_size=3), class_name=names, split=names)
@example(ids=["../../outside/cars/scene0"], class_name="car", split="train")
@example(ids=["scene0"], class_name="../outside/car", split="train")
@example(ids=["scene0"], class_name="car", split="/../../outside/train")
def test_no_id_leads_out(sound, layout, rewritten, ids, class_name, split):
    for path in json_files(sound, layout)[:1]:
        rewritten(path, to_text({"train": ids, split: ids}))
        read(sound, layout)
        read(sound, layout, split=split)
    read(sound, layout, class_name=class_name)
    read(sound, layout, split=split)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_images_are_read_or_refused(sound, layout, rewritten, data):
    path = min(path for path in sound.rglob("*.png") if "test" not in path.parts)
    rewritten(path, data.draw(damaged((sound.parent / SENTINEL / path.relative_to(sound)).read_bytes())))
    read(sound, layout)


def test_the_watch_sees_what_leads_out(sound):
    """Else the tests above could not fail."""
    (sound / "link").symlink_to(sound.parent / SENTINEL)
    for path in (sound / "link" / "r_0.png", sound / ".." / SENTINEL / "r_0.png"):
        with pytest.raises(AssertionError, match="opened outside"), watched(sound):
            path.read_bytes()
    with pytest.raises(AssertionError, match="opened outside"), watched(sound):
        os.listdir(sound.parent)
    (sound / "link").unlink()


@pytest.mark.parametrize("source", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_n8_what_is_read_is_never_run(source):
    tree = ast.parse(source.read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"eval", "exec", "compile", "__import__", "os.system"}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & {"yaml", "pickle", "marshal", "shelve", "dill", "joblib"}
    assert "allow_pickle=True" not in ast.unparse(tree)
