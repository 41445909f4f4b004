"""Reads PNG files strictly: what is not exactly what a scene's view should be is refused, never converted silently."""

import struct
from pathlib import Path
from typing import NoReturn

import imageio.v3 as iio
import numpy as np
from jaxtyping import UInt8

from jaxmeta.errors import InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_MAX_PIXELS = 4096**2


def read_rgba(path: Path, *, assume_opaque: bool = False) -> UInt8[np.ndarray, "height width 4"]:
    """Returns an 8-bit image with straight alpha.

    Args:
      path: of an RGBA PNG.
      assume_opaque: take RGB too, as opaque.

    Raises:
      InputError: the file is missing, damaged, too large, or of another kind; names the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reject(path, f"cannot be read: {error.strerror}")
    if len(content) < 33 or not content.startswith(_SIGNATURE):
        reject(path, "is not a PNG file")
    width, height, bit_depth, colour_type = struct.unpack(">IIBB", content[16:26])
    if not 0 < width * height <= _MAX_PIXELS:
        reject(path, f"is {width} x {height} pixels, wanted at most {_MAX_PIXELS} in all")
    if bit_depth != 8 or colour_type not in ((6, 2) if assume_opaque else (6,)):
        kind = f"{_COLOUR_TYPES.get(colour_type, 'unknown')} at {bit_depth} bits"
        hint = "; --data.assume-opaque takes it as opaque" if (bit_depth, colour_type) == (8, 2) else ""
        reject(path, f"is {kind}, wanted RGBA at 8 bits{hint}")
    try:
        image = iio.imread(content, plugin="pillow", extension=".png")
    except (OSError, ValueError, SyntaxError) as error:
        reject(path, f"cannot be decoded: {error}")
    if colour_type == 2:
        image = np.dstack([image, np.full((height, width), 255, np.uint8)])
    return image


def reject(path: Path, problem: str) -> NoReturn:
    """Raises the InputError that says what is wrong with a file."""
    raise InputError(f"{path} {problem}")
