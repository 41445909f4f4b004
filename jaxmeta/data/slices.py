"""Slices of density in [0, 1], as squares of one size.

    <root>/<split>/*.npy, *.png, ..   a folder for each split
    <root>/*.npy, *.png, ..           of all slices; a hash of its name says which split one is of, 8 : 1 : 1

A npy holds one slice, H x W, of floats in [0, 1], or of bytes or 16-bit numbers, whose largest stands for 1. So do grey
pictures at 8 or 16 bits. Without a root, phantoms are drawn.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxmeta.data.folders import draw_split, read_split
from jaxmeta.data.images import decode, fit_square
from jaxmeta.data.phantoms import draw_phantoms
from jaxmeta.data.png import reject

Slices = Float[np.ndarray, "slices size size"]

_SUFFIXES = (".npy", ".png", ".jpg", ".jpeg", ".webp", ".bmp")


def load_slices(
    root: Path | None, split: str, *, size: int, num_slices: int | None = None
) -> tuple[tuple[str, ...], Slices, str]:
    """Returns the ids and the slices of a split, and a hash of both.

    Args:
      root: where the slices lie, in one of the layouts above; None draws phantoms.
      split: such as "train".
      size: pixels along a side.
      num_slices: at most so many slices, the first ones; None for all.

    Raises:
      InputError: something is missing or malformed.
    """
    if root is None:
        return draw_split("phantom", draw_phantoms, split, size=size, count=num_slices)
    return read_split(root, split, _SUFFIXES, read_slice, size=size, count=num_slices)


def read_slice(path: Path, *, size: int) -> Float[np.ndarray, "size size"]:
    """Returns the square in the middle of a slice, resized.

    Raises:
      InputError: the file is missing, damaged or of another kind; names it.
    """
    density = _read_npy(path) if path.suffix == ".npy" else _grey(path)
    if density.dtype in (np.uint8, np.uint16):
        density = density / np.float32(np.iinfo(density.dtype).max)
    if density.ndim != 2 or density.dtype.kind != "f":
        reject(path, f"holds {density.dtype} {density.shape}, wanted one slice, H x W, of floats, bytes or 16 bits")
    if not (np.isfinite(density).all() and density.min() >= 0 and density.max() <= 1):
        reject(path, f"holds densities from {density.min():.4g} to {density.max():.4g}; bring them to 0 to 1")
    return np.clip(np.asarray(fit_square(Image.fromarray(density.astype(np.float32)), size)), 0, 1)


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reject(path, f"cannot be read: {str(error).splitlines()[0]}")


def _grey(path: Path) -> np.ndarray:
    image = decode(path)
    if image.mode == "I;16":
        return np.asarray(image)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "LA"):
        reject(path, f"has pixels of kind {image.mode}, wanted 8 or 16 bits of grey")
    return np.asarray(image.convert("L"))
