"""Turns the authors' zip files into a data set in the layout that `jaxmeta.data.shapenet` reads.

    python data_scripts/prepare_shapenet.py downloads/ --out data/shapenet

A zip file holds one class, a folder for each scene with its `transforms.json` and PNGs; `<class>_splits.json` lies
beside it. Scenes are unpacked one by one into a hidden folder, which takes the class's name when it is whole: a run
that was stopped goes on where it was, and a half-unpacked class is never mistaken for one.
"""

import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import tyro
from archives import Limits, check_disk, extract, opened, sound_entries
from tqdm import tqdm

from jaxmeta.data.scenes import NAME
from jaxmeta.data.shapenet import write_splits
from jaxmeta.data.transforms import read_json
from jaxmeta.errors import InputError, run_command
from jaxmeta.words import counted

SPLITS = ("train", "val", "test")

Scenes = dict[str, list[zipfile.ZipInfo]]


@dataclass(frozen=True)
class Config:
    """Unpacks and lays out the zip files and split files of the paper's authors (chairs, cars, lamps)."""

    source: tyro.conf.Positional[Path]
    """A zip file, or a folder of them."""
    out: Path
    """Folder for `<class>_splits.json` and `<class>/<scene>/`."""
    splits: Path | None = None
    """The class's split file; without it, `<class>_splits.json` beside the zip file (cars.zip: car_splits.json too)."""
    on_missing_scene: Literal["error", "drop"] = "error"
    """Whether a scene that the split file lists and the zip file lacks stops the run or is left out and counted."""
    max_gib: float = 64.0
    """The most that a zip file may unpack to."""
    debug: bool = False
    """Show where an error arose."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command with the given flags, or with the process's."""
    config = tyro.cli(Config, args=args)
    archives = sorted(config.source.glob("*.zip")) if config.source.is_dir() else [config.source]
    if not archives:
        raise InputError(f"{config.source} holds no .zip file")
    if config.splits and len(archives) > 1:
        raise InputError(f"--splits is for one zip file, {config.source} holds {len(archives)}; name one of them")
    for archive in archives:
        prepare_class(archive, config.splits or find_splits(archive), config)


def find_splits(archive: Path) -> Path:
    """Returns the split file beside a zip file."""
    names = dict.fromkeys(f"{stem}_splits.json" for stem in (archive.stem, archive.stem.removesuffix("s")))
    found = next((archive.with_name(name) for name in names if archive.with_name(name).is_file()), None)
    if found is None:
        raise InputError(f"{archive} has no {' or '.join(names)} beside it; give its split file with --splits")
    return found


def prepare_class(archive_path: Path, splits_path: Path, config: Config) -> None:
    """Unpacks one class and writes its splits file.

    Raises:
      InputError: a file is broken or unsafe, or something else lies where the class should go.
    """
    class_name = splits_path.name.removesuffix("_splits.json")
    if not NAME.fullmatch(class_name) or class_name == splits_path.name:
        raise InputError(f"{splits_path} should be called <class>_splits.json")
    splits = read_splits(splits_path)
    with opened(archive_path) as archive:
        entries = sound_entries(archive, Limits(total_bytes=int(config.max_gib * 2**30)))
        scenes = scene_entries(archive_path, entries)
        kept = _present(splits, scenes, splits_path, archive_path, drop=config.on_missing_scene == "drop")
        unpack(archive, scenes, config.out, class_name)
    write_splits(config.out, class_name, kept)
    counts = ", ".join(f"{len(ids)} {split}" for split, ids in kept.items())
    listed, ignored = sum(map(len, kept.values())), len(entries) - sum(map(len, scenes.values()))
    print(
        f"{config.out / class_name}: {counted(len(scenes), 'scene')}: {counts}, {len(scenes) - listed} in no split; "
        f"{sum(map(len, splits.values())) - listed} listed but missing; other files ignored: {ignored}"
    )


def scene_entries(path: Path, entries: Sequence[zipfile.ZipInfo]) -> Scenes:
    """Returns the files of each scene: the PNGs and JSON files in a folder that has a `transforms.json`."""
    names = {entry.filename: PurePosixPath(entry.filename) for entry in entries}
    folders = {name.parent for name in names.values() if name.name == "transforms.json"}
    ids = Counter(folder.name for folder in folders)
    for scene_id, count in ids.items():
        if not NAME.fullmatch(scene_id) or count > 1:
            problem = "twice" if count > 1 else "but ids are letters, digits, '.', '_' and '-'"
            raise InputError(f"{path} holds the scene {scene_id!r}, {problem}")
    scenes: Scenes = {scene_id: [] for scene_id in sorted(ids)}
    for entry in entries:
        name = names[entry.filename]
        if name.parent in folders and name.suffix in (".png", ".json"):
            scenes[name.parent.name].append(entry)
    if not scenes:
        raise InputError(f"{path} holds no folder with a transforms.json; it is not one of the authors' classes")
    for scene_id, files in scenes.items():
        if not any(entry.filename.endswith(".png") for entry in files):
            raise InputError(f"{path} holds no .png in the scene {scene_id!r}; download it again")
    return scenes


def unpack(archive: zipfile.ZipFile, scenes: Scenes, out: Path, class_name: str) -> None:
    """Unpacks scenes into `<out>/<class>`, which appears when they are all there.

    Raises:
      InputError: other scenes are there already, or the disk has no room.
    """
    folder = out / class_name
    if folder.exists():
        if {path.name for path in folder.iterdir()} != set(scenes):
            raise InputError(f"{folder} is there and holds other scenes; remove it or give another --out")
        return
    contents = sorted((e.filename, e.CRC, e.file_size) for files in scenes.values() for e in files)
    unfinished = out / f".{class_name}-{zlib.crc32(repr(contents).encode()):08x}.unfinished"
    unfinished.mkdir(parents=True, exist_ok=True)
    todo = [scene_id for scene_id in scenes if not (unfinished / scene_id).is_dir()]
    check_disk(unfinished, (entry for scene_id in todo for entry in scenes[scene_id]))
    partial = unfinished / ".scene"
    for scene_id in tqdm(todo, class_name, unit="scene", disable=None):
        shutil.rmtree(partial, ignore_errors=True)
        for entry in scenes[scene_id]:
            extract(archive, entry, partial / PurePosixPath(entry.filename).name)
        partial.rename(unfinished / scene_id)
    unfinished.rename(folder)


def read_splits(path: Path) -> dict[str, list[str]]:
    """Returns the scene ids of each split.

    Raises:
      InputError: the file is not one of the authors' split files, or a scene is in it twice.
    """
    splits = read_json(path)
    if not all(isinstance(splits.get(split), list) for split in SPLITS):
        raise InputError(f"{path} should be an object with the lists {', '.join(SPLITS)}")
    ids = [scene_id for split in SPLITS for scene_id in splits[split]]
    wrong = next((i for i in ids if not isinstance(i, str) or not NAME.fullmatch(i)), None)
    if wrong is not None:
        raise InputError(f"{path} has the scene id {wrong!r}; ids are letters, digits, '.', '_' and '-'")
    repeated = next((scene_id for scene_id, count in Counter(ids).items() if count > 1), None)
    if repeated is not None:
        raise InputError(f"{path} lists the scene {repeated!r} twice; training and test scenes must not mix")
    return {split: splits[split] for split in SPLITS}


def _present(
    splits: dict[str, list[str]], scenes: Scenes, splits_path: Path, archive_path: Path, *, drop: bool
) -> dict[str, list[str]]:
    missing = [scene_id for ids in splits.values() for scene_id in ids if scene_id not in scenes]
    if missing and (not drop or len(missing) == sum(map(len, splits.values()))):
        raise InputError(
            f"{splits_path} lists {counted(len(missing), 'scene')} that {archive_path} lacks, such as {missing[0]!r}; "
            "take the pair that belongs together, or pass --on-missing-scene drop if a few are missing"
        )
    return {split: [scene_id for scene_id in ids if scene_id in scenes] for split, ids in splits.items()}


if __name__ == "__main__":
    run_command(main)
