"""Reads PNG files strictly: what is not exactly what a scene's view should be is refused, never converted silently."""

import io
import stat
import struct
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxmeta.errors import InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_MAX_PIXELS = 4096**2
_MAX_BYTES = 64 * 2**20


def read_rgba(path: Path, *, assume_opaque: bool = False) -> UInt8[np.ndarray, "height width 4"]:
    """Returns an 8-bit image with straight alpha.

    Args:
      path: of an RGBA PNG.
      assume_opaque: take RGB too, as opaque.

    Raises:
      InputError: the file is missing, damaged, too large, or of another kind; names the file.
    """
    content = read_bytes(path)
    if len(content) < 33 or not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR":
        reject(path, "is not a PNG file")
    width, height, bit_depth, colour_type = struct.unpack(">IIBB", content[16:26])
    if not 0 < width * height <= _MAX_PIXELS:
        reject(path, f"is {width} x {height} pixels, wanted at most {_MAX_PIXELS} in all")
    if bit_depth != 8 or colour_type not in ((6, 2) if assume_opaque else (6,)):
        kind = f"{_COLOUR_TYPES.get(colour_type, 'unknown')} at {bit_depth} bits"
        hint = "; --data.assume-opaque takes it as opaque" if (bit_depth, colour_type) == (8, 2) else ""
        reject(path, f"is {kind}, wanted RGBA at 8 bits{hint}")
    _check_sums(path, content)
    # Pillow itself, not imageio: half the time for a small image, and it lets other threads run.
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as decoder:
            if (decoder.size, decoder.mode) != ((width, height), _COLOUR_TYPES[colour_type]):
                raise ValueError(f"its parts disagree, it may be {decoder.mode} of {decoder.size}")
            image = np.asarray(decoder)
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over.
        reject(path, f"cannot be decoded: {error}")
    if colour_type == 2:
        image = np.dstack([image, np.full((height, width), 255, np.uint8)])
    return image


def read_bytes(path: Path) -> bytes:
    """Returns what a file holds.

    Raises:
      InputError: it is missing, too large, or something else than a file, such as a pipe that would never end.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            reject(path, "is not a file")
        if status.st_size > _MAX_BYTES:
            reject(path, f"is larger than {_MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        reject(path, f"cannot be read: {error.strerror}")
    except ValueError as error:  # no file can have such a name
        reject(path, f"cannot be read: {error}")


def reject(path: Path, problem: str) -> NoReturn:
    """Raises the InputError that says, in one line, what is wrong with a file."""
    name = str(path)
    raise InputError(f"{name if name.isprintable() else repr(name)} {problem}")


def _check_sums(path: Path, content: bytes) -> None:
    """Raises InputError where a chunk is damaged; Pillow does not look at the checksums of the pixels."""
    start, kind = len(_SIGNATURE), b""
    while kind != b"IEND" and start + 12 <= len(content):
        end = start + 8 + int.from_bytes(content[start : start + 4])
        kind = content[start + 4 : start + 8]
        if zlib.crc32(content[start + 4 : end]) != int.from_bytes(content[end : end + 4]):
            reject(path, f"is truncated or damaged: the checksum of its {kind.decode(errors='replace')} is wrong")
        start = end + 4
