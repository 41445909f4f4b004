"""Finds out how a data set is laid out and returns a split of it as arrays, packed at first use."""

import difflib
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from jaxmeta.cameras import Views
from jaxmeta.data import blender, packing, shapenet, srn
from jaxmeta.data.scenes import NAME, SceneFolder
from jaxmeta.errors import InputError

Layout = Literal["auto", "shapenet", "srn", "blender"]


class Split(NamedTuple):
    """The scenes of one split."""

    ids: tuple[str, ...]
    views: Views
    content: str
    """A hash of the ids and of all views."""


class SplitSource(NamedTuple):
    """A split on disk."""

    scenes: list[SceneFolder]
    load_scene: Callable[..., Views]
    """`(folder, num_views, assume_opaque) -> Views` of one scene."""
    count_views: Callable[[Path], int]
    """`folder -> how many views` one scene has."""


def load_split(
    root: Path,
    class_name: str,
    split: str,
    *,
    num_views: int,
    num_scenes: int | None = None,
    layout: Layout = "auto",
    assume_opaque: bool = False,
    verify: bool = False,
    skip_bad: bool = False,
    allow_overlap: bool = False,
) -> Split:
    """Returns the first views of the scenes of a split; the arrays are memory-mapped.

    Args:
      root: the folder of the data set.
      class_name: such as "car".
      split: such as "train".
      num_views: how many views of each scene.
      num_scenes: at most so many scenes, the first ones; None for all.
      layout: see the modules of that name; "auto" looks which one is there.
      assume_opaque: take RGB images, as opaque.
      verify: compare the checksums of the packed arrays, not only their sizes.
      skip_bad: leave broken scenes out, with a warning, up to one in a hundred.
      allow_overlap: let a scene be in several splits.

    Raises:
      InputError: something is missing or malformed.
      StorageError: the packed arrays cannot be written.
    """
    if num_views < 1 or (num_scenes is not None and num_scenes < 1):
        raise InputError(f"--data.num-views {num_views} and --data.num-scenes {num_scenes} must be positive")
    source = find_split(root, class_name, split, layout, allow_overlap=allow_overlap)
    scenes = source.scenes[:num_scenes]
    _check_known(scenes)
    key = (layout, [scene.id for scene in scenes], num_views, assume_opaque)
    name = f"{class_name}-{split}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"
    packed = packing.load_packed(
        cache_folder(root) / name,
        scenes,
        partial(source.load_scene, num_views=num_views, assume_opaque=assume_opaque),
        packing.fingerprint(scene.folder for scene in scenes),
        verify=verify,
        skip_bad=skip_bad,
    )
    return Split(*packed)


def count_views(
    root: Path,
    class_name: str,
    split: str,
    *,
    num_scenes: int | None = None,
    layout: Layout = "auto",
    allow_overlap: bool = False,
) -> int:
    """Returns how many views every one of the first scenes of a split has; the arguments are those of `load_split`.

    Raises:
      InputError: something is missing or malformed.
    """
    source = find_split(root, class_name, split, layout, allow_overlap=allow_overlap)
    scenes = source.scenes[:num_scenes]
    _check_known(scenes)
    return min(source.count_views(scene.folder) for scene in scenes)


def _check_known(scenes: list[SceneFolder]) -> None:
    for scene in scenes:
        if not scene.folder.is_dir() and scene.folder.parent.is_dir():
            there = [path.name for path in scene.folder.parent.iterdir() if path.is_dir()]
            near = ", ".join(difflib.get_close_matches(scene.id, there))
            raise InputError(
                f"{scene.folder.parent} has no scene {scene.id!r}, which its split lists"
                + (f"; the nearest there are {near}" if near else "")
            )


def cache_folder(root: Path) -> Path:
    """Returns where the packed arrays of a data set lie: beside it, or in the user's cache where that is read-only."""
    if os.access(root, os.W_OK):
        return root / ".jaxmeta"
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user_cache / "jaxmeta" / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]


def find_split(
    root: Path, class_name: str, split: str, layout: Layout = "auto", *, allow_overlap: bool = False
) -> SplitSource:
    """Returns which scenes a split has and how to read them; the arguments are those of `load_split`.

    Raises:
      InputError: there is no such split.
    """
    for flag, name in (("class-name", class_name), ("split", split)):
        if not NAME.fullmatch(name):
            raise InputError(f"--data.{flag} {name!r} must be made of letters, digits, '.', '_' and '-'")
    if layout == "auto":
        layout = _detect(root, class_name, split)
    if layout == "shapenet":
        folders = shapenet.scene_folders(root, class_name, split, allow_overlap=allow_overlap)
        return SplitSource(folders, shapenet.load_scene, shapenet.count_views)
    if layout == "srn":
        folders = srn.scene_folders(root, class_name, split, allow_overlap=allow_overlap)
        return SplitSource(folders, srn.load_scene, srn.count_views)
    only = [SceneFolder(root.resolve().name, root)]
    return SplitSource(only, partial(blender.load_scene, split=split), partial(blender.count_views, split=split))


def _detect(root: Path, class_name: str, split: str) -> Layout:
    if shapenet.splits_path(root, class_name).exists():
        return "shapenet"
    if srn.split_folder(root, class_name, split):
        return "srn"
    if blender.transforms_path(root, split).exists():
        return "blender"
    raise InputError(
        f"{root} holds no data of class '{class_name}' and split '{split}': wanted {class_name}_splits.json, a folder "
        f"{class_name}_{split} or {class_name}s_{split}, or transforms_{split}.json; see the folder and the "
        "name of the class"
    )
