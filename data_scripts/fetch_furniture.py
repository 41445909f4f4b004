"""Turns Debian's free furniture models into a class of posed views: a real data set without any login.

    python data_scripts/fetch_furniture.py --category chairs --out data/furniture

The package sweethome3d-furniture holds catalogues of about 800 OBJ models, Creative Commons Attribution 3.0 or CC0. On
Debian and Ubuntu apt fetches it (120 MB, no root needed); elsewhere unpack it and pass --source. Creator and licence of
each scene go to `<class>_sources.json`: whoever publishes renders has to name them.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import tyro
from archives import check_disk, extract, opened, sound_entries
from render_meshes import Model, Options, group_name, render_class, scene_id, use_cpu

from jaxmeta.errors import InputError, run_command

PACKAGE = "sweethome3d-furniture"
CATALOGUE = "PluginFurnitureCatalog.properties"
MODEL_SUFFIXES = (".obj", ".mtl", ".png", ".jpg", ".jpeg", ".gif", ".bmp")
# What a model is, by its English name; the catalogues' own categories are rooms.
KINDS = {
    "chairs": r"\b(arm|wheel)?chair\b(?! ottoman)|\bstool\b|\bclass seat\b",
    "sofas": r"\bsofa\b|\bcouch\b|\bfuton\b|\bday bed\b",
    "tables": r"\btable\b(?! (fan|tennis|bat))|\bdesk$",
    "lamps": r"\blamp|\blights?\b|\blantern\b|\bspotlight\b",
    "beds": r"\bbed\b|\bcrib\b",
    "cabinets": r"\bcabinet\b|\bwardrobe\b|\bbookcase\b|\bcupboard\b|\bdresser\b|\bshelves\b|\bchest$|\bvanity\b",
    "plants": r"\bplant\b|\btree\b|\bbush\b|\bcactus\b|\bpine\b|\blily\b|\bficus\b|\bbamboo\b|\byucca\b|\bmaple\b",
}


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmeta" / "furniture"


@dataclass(frozen=True)
class Config:
    """Renders a category of Debian's furniture models as a class of scenes to train on."""

    category: str = "chairs"
    """chairs, sofas, tables, lamps, beds, cabinets, plants, or a category of the catalogues, such as vehicles."""
    out: Path = Path("data/furniture")
    """Folder for `<category>_splits.json` and `<category>/<scene>/`."""
    source: Path | None = None
    """Folder that holds the catalogues (.sh3f), such as the unpacked package; without it, apt fetches the package."""
    cache: Path = field(default_factory=_default_cache)
    """Where the fetched package is kept, unpacked."""
    list: bool = False
    """Only tell how many models each category has."""
    options: tyro.conf.OmitArgPrefixes[Options] = field(default_factory=Options)


class Piece(NamedTuple):
    """A model that a catalogue lists."""

    archive: Path
    model: str
    """Path of its OBJ file in the library."""
    name: str
    category: str
    creator: str
    licence: str
    rotation: tuple[float, ...] | None
    """Nine numbers, row by row: turns the model, y up, upright and to the front."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command with the given flags, or with the process's."""
    config = tyro.cli(Config, args=args)
    source = fetch_package(config.cache) if config.source is None else config.source
    libraries = sorted(source.rglob("*.sh3f"))
    if not libraries:
        raise InputError(f"{source} holds no .sh3f catalogue; give the folder of the unpacked {PACKAGE} package")
    pieces = [piece for library in libraries for piece in read_library(library)]
    if config.list:
        print(_table(pieces))
        return
    chosen = [piece for piece in pieces if belongs(piece, config.category)]
    if not chosen:
        raise InputError(f"no model is in --category {config.category}; there are:\n{_table(pieces)}")
    class_name = re.sub(r"[^a-z0-9]+", "-", config.category.lower())
    with tempfile.TemporaryDirectory() as folder:
        models = extract_models(chosen, Path(folder))
        splits = render_class(models, config.out, class_name, config.options)
    ids = {identifier for members in splits.values() for identifier in members}
    sources = {
        model.scene_id: {
            "source": f"Debian's {PACKAGE}, {piece.archive.name}: {piece.name}",
            "creator": piece.creator,
            "license": piece.licence,
            "group": model.group,
        }
        for model, piece in zip(models, chosen, strict=True)
        if model.scene_id in ids
    }
    note = "Renders of freely licensed furniture models; name creator and licence where you publish them."
    content = json.dumps({"note": note, "scenes": sources}, indent=1, ensure_ascii=False)
    (config.out / f"{class_name}_sources.json").write_text(content + "\n", encoding="utf-8")


def fetch_package(cache: Path) -> Path:
    """Returns the folder of the unpacked package, fetched by apt unless it is there.

    Raises:
      InputError: there is no apt, or it failed.
    """
    unpacked = cache / PACKAGE
    if unpacked.is_dir():
        return unpacked
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if not apt or not dpkg:
        raise InputError(f"apt-get is missing here; fetch Debian's {PACKAGE} elsewhere, unpack it and pass --source")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _run([apt, "download", PACKAGE], Path(folder))
        deb = next(Path(folder).glob("*.deb"), None)
        if deb is None:
            raise InputError(f"apt-get download {PACKAGE} brought no package; unpack it by hand and pass --source")
        _run([dpkg, "-x", deb.name, "tree"], Path(folder))
        (Path(folder) / "tree").rename(unpacked)
    return unpacked


def read_library(path: Path) -> list[Piece]:
    """Returns the models of a catalogue, in its order.

    Raises:
      InputError: the catalogue is broken.
    """
    with opened(path) as archive:
        if CATALOGUE not in archive.namelist():
            raise InputError(f"{path} has no {CATALOGUE}; it is no catalogue of furniture")
        properties = read_properties(archive.read(CATALOGUE).decode("latin-1"))
    numbers = sorted(int(key[6:]) for key in properties if re.fullmatch(r"model#\d+", key))
    pieces = []
    for number in numbers:
        entry = {key.removesuffix(f"#{number}"): properties[key] for key in properties if key.endswith(f"#{number}")}
        try:
            rotation = tuple(map(float, entry["modelRotation"].split())) if "modelRotation" in entry else None
        except ValueError:
            rotation = ()
        if rotation is not None and len(rotation) != 9:
            raise InputError(f"{path} has a modelRotation#{number} that is not nine numbers")
        name, category, creator = (entry.get(key, "") for key in ("name", "category", "creator"))
        licence = properties.get("license", "see the package's copyright file")
        pieces.append(Piece(path, entry["model"].lstrip("/"), name, category, creator, licence, rotation))
    return pieces


def read_properties(text: str) -> dict[str, str]:
    r"""Returns the keys and values of a Java properties file, with its \uXXXX escapes."""
    properties = {}
    for line in re.sub(r"\\\r?\n[ \t]*", "", text).splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", "!")):
            value = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda match: chr(int(match.group(1), 16)), value)
            properties[key.strip()] = re.sub(r"\\(.)", r"\1", value.strip())
    return properties


def belongs(piece: Piece, category: str) -> bool:
    """Returns whether a model is of a kind, or in a category of its catalogue."""
    kind = KINDS.get(category.lower())
    if kind is None:
        return piece.category.lower() == category.lower()
    return re.search(kind, piece.name, re.IGNORECASE) is not None


def extract_models(pieces: Sequence[Piece], folder: Path) -> list[Model]:
    """Unpacks the models, each with its materials and textures, into a folder of its own.

    Raises:
      InputError: a catalogue is unsafe or lacks a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    for path in dict.fromkeys(piece.archive for piece in pieces):
        with opened(path) as archive:
            entries = sound_entries(archive)
            for piece in pieces:
                if piece.archive == path:
                    models.append(_extract_model(archive, entries, piece, folder))
    return models


def _extract_model(archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo], piece: Piece, folder: Path) -> Model:
    name = PurePosixPath(piece.model)
    files = {PurePosixPath(entry.filename): entry for entry in entries}
    if name not in files or name.suffix.lower() != ".obj":
        raise InputError(f"{piece.archive} lists {piece.model!r}, which is no .obj in it")
    short = Path(piece.archive.stem) / name.name
    target = folder / scene_id(short)
    if target.exists():
        raise InputError(f"{piece.archive} lists the model {target.name} twice")
    wanted = {
        file: entry
        for file, entry in files.items()
        if file.parent == name.parent and file.suffix.lower() in MODEL_SUFFIXES
    }
    check_disk(folder, wanted.values())
    for file, entry in wanted.items():
        extract(archive, entry, target / file.name)
    return Model(target / name.name, scene_id(short), group_name(short, "prefix"), piece.rotation)


def _table(pieces: Sequence[Piece]) -> str:
    counts = {kind: sum(belongs(piece, kind) for piece in pieces) for kind in KINDS}
    rooms = Counter(piece.category.lower() for piece in pieces)
    rows = [f"  {count:4d} {name}" for name, count in (*counts.items(), *sorted(rooms.items()))]
    return "\n".join(rows)


def _run(command: Sequence[str], folder: Path) -> None:
    # A program found by `which`, with fixed arguments; no shell.
    result = subprocess.run(command, cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True)  # noqa: S603
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise InputError(f"{' '.join(command)} failed: {reason}; try apt-get update first, or pass --source")


if __name__ == "__main__":
    use_cpu()
    run_command(main)
