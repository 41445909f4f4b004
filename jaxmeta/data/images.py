"""Pictures of a class, as squares of one size.

    <root>/<split>/*.png, *.jpg, ..       a folder for each split
    <root>/*.png, *.jpg, ..               of all pictures; a hash of its name says which split one is of, 8 : 1 : 1
    <root>/train-images-idx3-ubyte[.gz]   MNIST and its like, with t10k-images-idx3-ubyte[.gz] for testing
    <root>.npz                            the paper authors': train_data and test_data, bytes, N x H x W x 3

In the last two layouts the last tenth of the training data is for validation. Without a root, faces are drawn.
"""

import gzip
import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from jaxmeta.data.faces import draw_faces
from jaxmeta.data.png import read_bytes, reject
from jaxmeta.errors import InputError

Images = UInt8[np.ndarray, "images height width 3"]

MADE_UP = {"train": 2048, "val": 64, "test": 256}
"""How many scenes of each split are drawn where there are no data."""
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
        count, key = made_up(split, num_images)
        faces = np.asarray(draw_faces(jax.vmap(partial(jax.random.fold_in, key))(np.arange(count)), size=size))
        return tuple(f"face{i}" for i in range(count)), faces, content_of("faces 1", split, size, count)
    if root.suffix == ".npz":
        ids, images = _numbered(_of_split(_read_npz(root, split), split), size, num_images)
    elif (path := _idx_path(root, split)) is not None:
        ids, images = _numbered(_of_split(_read_idx(path)[..., None].repeat(3, axis=-1), split), size, num_images)
    else:
        files = split_files(root, split, _SUFFIXES)[:num_images]
        ids, images = tuple(path.name for path in files), read_all(files, partial(read_picture, size=size))
    return ids, images, content_of(ids, images.shape, images.tobytes())


def made_up(split: str, count: int | None) -> tuple[int, jax.Array]:
    """Returns how many scenes of a split to draw, and the key that they come from.

    Raises:
      InputError: there is no such split.
    """
    if split not in MADE_UP:
        raise InputError(f"there is no split '{split}' of scenes that are made up; wanted one of {', '.join(MADE_UP)}")
    return count or MADE_UP[split], jax.random.fold_in(jax.random.key(0), list(MADE_UP).index(split))


def split_files(root: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    """Returns the files of a split, by name.

    Raises:
      InputError: there are none.
    """
    own = root / split
    folder = own if own.is_dir() else root
    if not folder.is_dir():
        reject(root, "is no folder; see --data.root")
    files = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes)
    if folder == root:
        files = [path for path in files if _split_of(path.name) == split]
    if not files:
        reject(folder, f"has no files of split '{split}' that end in {', '.join(suffixes)}")
    return files


def read_all(files: Sequence[Path], read) -> np.ndarray:
    """Returns what the files hold, along a new leading axis."""
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(read, files)))


def read_picture(path: Path, *, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the square in the middle of a picture, resized; what is transparent is white.

    Raises:
      InputError: the file is missing, damaged, too large or of another kind; names it.
    """
    image = decode(path)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        reject(path, f"has pixels of kind {image.mode}, wanted 8 bits a channel")
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


def content_of(*parts: object) -> str:
    """Returns a hash of what data consist of."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()


def _split_of(name: str) -> str:
    place = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[0] * 10 // 256
    return {8: "val", 9: "test"}.get(place, "train")


def _of_split(images: np.ndarray, split: str) -> np.ndarray:
    held_out = max(len(images) // 10, 1)
    return {"train": images[:-held_out], "val": images[-held_out:]}.get(split, images)


def _numbered(images: np.ndarray, size: int, num_images: int | None) -> tuple[tuple[str, ...], Images]:
    images = images[:num_images]
    if images.shape[1:3] != (size, size):
        images = np.stack([np.asarray(fit_square(Image.fromarray(image), size)) for image in images])
    return tuple(map(str, range(len(images)))), images


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
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if name not in arrays:
                reject(path, f"has no data of split '{split}'; wanted the arrays train_data and test_data")
            images = arrays[name]
    except OSError as error:
        reject(path, f"cannot be read: {error.strerror or error}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reject(path, f"is not a sound npz of plain arrays: {str(error).splitlines()[0]}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        reject(path, f"has {name} as {images.dtype} {images.shape}, wanted bytes, N x H x W x 3")
    return images
