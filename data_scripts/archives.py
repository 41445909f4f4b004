"""Turns zip files made by others into files on disk, and refuses those that would do anything else.

The whole table of contents is checked before the first byte is written: names that leave the folder, links, encrypted
or repeated entries, and archives that swell too much are refused, never mended.
"""

import codecs
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxmeta.data.png import reject
from jaxmeta.errors import StorageError

_CHUNK = 2**20
_DISK_RESERVE = 64 * 2**20


class Limits(NamedTuple):
    """What an archive may hold."""

    entries: int = 1_000_000
    total_bytes: int = 64 * 2**30
    ratio: int = 200
    """Of an entry's bytes to its compressed bytes."""


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file.

    Raises:
      InputError: it is missing, or broken here or while it is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        if error.filename != str(path):
            raise
        reject(path, "is not there")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        is_page = _start(path).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<")
        what = "a web page, not a zip file; download it again in a browser" if is_page else "no sound zip file"
        reject(path, f"is {what} ({error})")


def sound_entries(archive: zipfile.ZipFile, limits: Limits | None = None) -> list[zipfile.ZipInfo]:
    """Returns an archive's files, after a check of all that it lists.

    Raises:
      InputError: something in it could escape the folder, or is too much.
    """
    limits = limits or Limits()
    path, entries = Path(archive.filename or "archive"), archive.infolist()
    if len(entries) > limits.entries:
        reject(path, f"lists {len(entries)} entries, more than {limits.entries}")
    total = sum(entry.file_size for entry in entries)
    if total > limits.total_bytes:
        reject(path, f"would unpack to {total / 2**30:.1f} GiB, more than {limits.total_bytes / 2**30:.1f}")
    names: set[str] = set()
    folders = {str(folder).lower() for entry in entries for folder in PurePosixPath(entry.filename).parents}
    for entry in entries:
        name = entry.filename.rstrip("/").lower()
        problem = _problem(entry, limits)
        if not problem and (name in names or (name in folders and not entry.is_dir())):
            problem = "is there twice"
        if problem:
            reject(path, f"holds {entry.filename!r}, which {problem}; it is not safe to unpack")
        names.add(name)
    return [entry for entry in entries if not entry.is_dir()]


def check_disk(folder: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    """Raises StorageError if a folder's disk has no room for entries."""
    needed = sum(entry.file_size for entry in entries) + _DISK_RESERVE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(f"{folder} has {free / 2**30:.2f} GiB free, unpacking needs {needed / 2**30:.2f}; free some")


def extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Writes one entry to a path that the caller vouches for; its checksum is verified on the way."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(entry) as source, target.open("xb") as sink:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.file_size:
                reject(Path(archive.filename or "archive"), f"holds more of {entry.filename!r} than it lists")
            sink.write(chunk)
    with suppress(ValueError, OverflowError):  # a zip file may hold a day that never was
        moment = datetime(*entry.date_time).timestamp()
        os.utime(target, (moment, moment))


def _problem(entry: zipfile.ZipInfo, limits: Limits) -> str | None:
    # `filename` is cut at a NUL byte; `orig_filename` is what the archive says.
    name = entry.orig_filename
    parts = name.removesuffix("/").split("/")
    if not name or "\0" in name or "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        return "is no plain relative path"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
        return "is a link or a special file"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > limits.ratio * entry.compress_size:
        return f"swells more than {limits.ratio} times"
    return None


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(256)
