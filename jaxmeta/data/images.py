"""Pictures of a class, as squares of one size.

    <root>/<split>/*.png, *.jpg, ..       a folder for each split
    <root>/*.png, *.jpg, ..               of all pictures; a hash of its name says which split one is of, 8 : 1 : 1
    <root>/train-images-idx3-ubyte[.gz]   MNIST and its like, with t10k-images-idx3-ubyte[.gz] for testing
    <root>.npz                            the paper authors': train_data and test_data, bytes, N x H x W x 3

In the last two layouts the last tenth of the training data is for validation. Without a root, faces are drawn.
"""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from jaxmeta.data.faces import draw_faces
from jaxmeta.data.folders import draw_split, read_split, with_content
from jaxmeta.data.png import read_bytes, reject

Images = UInt8[np.ndarray, "images height width 3"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MAX_PIXELS = 2**26
_IDX = {"train": "train", "val": "train", "test": "t10k"}
_NPZ = {"train": "train_data", "val": "train_data", "test": "test_data"}


def load_images(
    root: Path | None, split: str, *, size: int, num_images: int | None = None
) -> tuple[tuple[str, ...], Images, str]:
    """Returns the ids and the pictures of a split, and a hash of both.

    Args:
      root: where the pictures lie, in one of the layouts above; None draws faces.
      split: such as "train".
      size: pixels along a side.
      num_images: at most so many pictures, the first ones; None for all.

    Raises:
      InputError: something is missing or malformed.
    """
    if root is None:
        return draw_split("face", draw_faces, split, size=size, count=num_images)
    if root.suffix == ".npz":
        images = _read_npz(root, split)
    elif (path := _idx_path(root, split)) is not None:
        images = _read_idx(path)[..., None].repeat(3, axis=-1)
    else:
        return read_split(root, split, _SUFFIXES, read_picture, size=size, count=num_images)
    images = _of_size(_of_split(images, split)[:num_images], size)
    return with_content(tuple(map(str, range(len(images)))), images)


def read_picture(path: Path, *, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the square in the middle of a picture, resized; what is transparent is white.

    Raises:
      InputError: the file is missing, damaged, too large or of another kind; names it.
    """
    image = decode(path)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        reject(path, f"has pixels of kind {image.mode}, wanted 8 bits a channel: convert it, or move it away")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(fit_square(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"), size))


def decode(path: Path) -> Image.Image:
    """Returns a picture as its file has it, the right way up.

    Raises:
      InputError: the file is missing, damaged, too large or of another kind; names it.
    """
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {_MAX_PIXELS}")
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over.
        reject(path, f"cannot be decoded: {str(error).splitlines()[0]}")


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Returns the square in the middle of a picture, resized."""
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def _of_split(images: np.ndarray, split: str) -> np.ndarray:
    held_out = max(len(images) // 10, 1)
    return {"train": images[:-held_out], "val": images[-held_out:]}.get(split, images)


def _of_size(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([np.asarray(fit_square(Image.fromarray(image), size)) for image in images])


def _idx_path(root: Path, split: str) -> Path | None:
    stem = f"{_IDX.get(split, split)}-images"
    names = [f"{stem}{dash}idx3-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    return next((root / name for name in names if (root / name).is_file()), None)


def _read_idx(path: Path) -> UInt8[np.ndarray, "images height width"]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic, *shape = np.frombuffer(file.read(16), ">i4")
            if magic != 0x803 or min(shape) < 1 or np.prod(shape, dtype=np.int64) > 2**32:
                reject(path, f"is not a file of pictures: it begins with {magic}, {shape}, wanted 2051 and three sizes")
            pixels = file.read(int(np.prod(shape)))
        return np.frombuffer(pixels, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        reject(path, f"is truncated or damaged: {error}")


def _read_npz(path: Path, split: str) -> Images:
    name = _NPZ.get(split)
    if path.exists() and not zipfile.is_zipfile(path):
        reject(path, "is no npz, or is truncated")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if name not in arrays:
                reject(path, f"has no data of split '{split}'; wanted the arrays train_data and test_data")
            images = arrays[name]
    except OSError as error:
        reject(path, f"cannot be read: {error.strerror or error}")
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reject(path, f"is not a sound npz of plain arrays: {str(error).splitlines()[0]}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        reject(path, f"has {name} as {images.dtype} {images.shape}, wanted bytes, N x H x W x 3")
    return images
