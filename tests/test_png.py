"""An image is read exactly or refused: D1 to D5 and D12 of the fault catalogue, on single files."""

import os
from pathlib import Path

import numpy as np
import pytest
from datasets import SIGNATURE, chunk, encode, png, refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxmeta.data.png import read_rgba

IMAGE = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
CONTENT = encode(IMAGE)
"""Signature, IHDR, one IDAT, and IEND, which takes the last 12 bytes."""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("png") / "r_0.png"


def read(path: Path, content: bytes, **options) -> np.ndarray:
    path.write_bytes(content)
    return read_rgba(path, **options)


@pytest.mark.parametrize("height, width", [(1, 1), (7, 5), (5, 7), (1, 300)])
def test_an_image_is_read_to_the_byte(path, height, width):
    image = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
    np.testing.assert_array_equal(read(path, encode(image)), image)


@pytest.mark.parametrize("missing", range(1, 13))
def test_d2_a_missing_end_is_no_harm(path, missing):
    np.testing.assert_array_equal(read(path, CONTENT[:-missing]), IMAGE)


@given(st.integers(1, len(CONTENT) - 13))
def test_d1_a_truncated_image_is_refused(path, length):
    with refused(r"r_0\.png (is truncated|is not a PNG|cannot be decoded)"):
        read(path, CONTENT[:length])


@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_d3_no_changed_byte_goes_unnoticed(path, place, change):
    content = bytearray(CONTENT)
    content[place] ^= change
    with refused(r"r_0\.png (is|cannot be decoded)"):
        read(path, bytes(content))


@given(st.binary(max_size=200), st.booleans())
def test_d4_noise_is_refused(path, noise, signed):
    with refused(r"r_0\.png "):
        read(path, (SIGNATURE if signed else b"") + noise)


KINDS = {
    "grey": (0, 8),
    "grey at 1 bits": (0, 1),
    "grey at 16": (0, 16),
    "RGB": (2, 8),
    "RGB at 16": (2, 16),
    "palette": (3, 8),
    "palette at 4": (3, 4),
    "grey with alpha": (4, 8),
    "grey with alpha at 16": (4, 16),
    "RGBA at 16": (6, 16),
    "unknown": (5, 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_d5_other_kinds_of_png_are_refused(path, kind):
    colour_type, bits = KINDS[kind]
    with refused(rf"r_0\.png is {kind}.*, wanted RGBA at 8 bits"):
        read(path, png(5, 7, bits, colour_type))


def test_d5_rgb_is_taken_as_opaque_only_when_asked_for(path):
    with refused(r"is RGB at 8 bits, wanted RGBA at 8 bits; --data.assume-opaque takes it as opaque"):
        read(path, encode(IMAGE[..., :3]))
    image = read(path, encode(IMAGE[..., :3]), assume_opaque=True)
    np.testing.assert_array_equal(image[..., :3], IMAGE[..., :3])
    assert (image[..., 3] == 255).all()
    np.testing.assert_array_equal(read(path, CONTENT, assume_opaque=True), IMAGE)
    with refused("is grey at 8 bits"):
        read(path, encode(IMAGE[..., 0]), assume_opaque=True)


@pytest.mark.parametrize("size", [(100_000, 100_000), (4097, 4096), (0, 7), (2**32 - 1, 1)])
def test_d12_a_bomb_is_not_unpacked(path, size):
    with refused(rf"r_0\.png is {size[0]} x {size[1]} pixels, wanted at most 16777216 in all"):
        read(path, png(*size, 8, 6, header_only=True))


def test_d12_a_bomb_behind_an_honest_header_is_not_unpacked(path):
    second = png(100_000, 100_000, 8, 6, header_only=True).removeprefix(SIGNATURE)
    with refused("cannot be decoded"):
        read(path, CONTENT[:33] + second + CONTENT[33:])
    other = png(7, 5, 8, 6, header_only=True).removeprefix(SIGNATURE)
    with refused("cannot be decoded: its parts disagree"):
        read(path, CONTENT[:33] + other + CONTENT[33:])


def test_the_header_comes_first(path):
    text = chunk(b"tEXt", b"a\0" + bytes([0, 0, 0, 5, 0, 0, 0, 7, 8, 6]))
    with refused("is not a PNG file"):
        read(path, SIGNATURE + text + CONTENT[8:])


def test_only_the_first_image_of_an_animation_counts(path):
    image = Image.fromarray(IMAGE)
    image.save(path, "png", save_all=True, append_images=[Image.fromarray(255 - IMAGE)])
    np.testing.assert_array_equal(read_rgba(path), IMAGE)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name in ("pipe", "folder"):
        with refused(rf"{name}\.png is not a file"):
            read_rgba(tmp_path / f"{name}.png")
    for name in ("loop", "none", "a" * 300, "a\0b", "\ud800"):
        with refused("cannot be read: "):
            read_rgba(tmp_path / f"{name}.png")


def test_a_huge_file_is_not_read(path):
    with path.open("wb") as file:
        file.truncate(2**40)
    with refused(r"r_0\.png is larger than"):
        read_rgba(path)
    path.unlink()
