"""Reads files of named arrays that a stranger may have made: safetensors and npz, never a pickle, which runs code."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

from jaxmeta.errors import InputError

_PICKLES = {".pkl", ".pickle", ".p", ".dill", ".joblib", ".pt", ".pth", ".ckpt", ".bin"}
_MAX_BYTES = 1 << 30


class ArrayFile(NamedTuple):
    """What a file holds."""

    arrays: dict[str, np.ndarray]
    """By name; float32 and finite."""
    metadata: dict[str, str]
    """Empty for npz."""


def read(path: Path) -> ArrayFile:
    """Returns the arrays of a safetensors or npz file.

    Raises:
      InputError: it cannot be read, is a pickle or damaged, or holds numbers that are not finite.
    """
    try:
        found = _read(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy, zipfile and safetensors raise many kinds for damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} is not a sound safetensors file or npz of plain arrays ({reason}); a pickle is never loaded, "
            "since it can run any code: where you trust it, write its arrays as npz, as the README shows"
        ) from error
    return ArrayFile({name: _float32(path, name, array) for name, array in found.arrays.items()}, found.metadata)


def _read(path: Path) -> ArrayFile:
    with path.open("rb") as file:
        start = file.read(9)
    # The size that opens a safetensors file may look like a pickle's first bytes; then its header follows.
    if path.suffix.lower() in _PICKLES or (start[:1] == b"\x80" and start[8:] != b"{"):
        raise ValueError("it is a pickle")
    if start[:6] == b"\x93NUMPY":
        raise ValueError("it is an npy file: one array, or a pickle")
    if start[:4] == b"PK\x03\x04":
        return ArrayFile(_read_npz(path), {})
    with safetensors.safe_open(path, framework="numpy") as file:
        return ArrayFile({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if not all(member.filename.endswith(".npy") for member in members):
        raise ValueError("it is a zip of other things than arrays, such as torch.save writes around a pickle")
    if sum(member.file_size for member in members) > _MAX_BYTES:
        raise ValueError(f"it unpacks to more than {_MAX_BYTES} bytes")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{path}: {name!r} is {array.dtype}, wanted float16, float32 or float64")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {name!r} has values that are not finite, or too large for float32")
    return array
