"""Draws what fields show while they adapt, side by side, as the frames of a film, and writes films."""

import importlib.util
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from jaxmeta.figures import colours
from jaxmeta.words import DIVERGED, decibels

PANEL, MARGIN, HEADER, FOOTER = 224, 16, 30, 64
"""In pixels of the film."""


class Film(NamedTuple):
    """What a field shows while it adapts, frame by frame."""

    rgb: Float[Any, "frames height width channels"]
    psnr: Float[Any, "frames"]
    """In dB, of one held-out item."""


def compose(
    films: Mapping[str, Film],
    support: Float[np.ndarray, "height width channels"],
    told: Sequence[int],
) -> UInt8[np.ndarray, "frames high wide 3"]:
    """Returns the frames of a film: what was given, what each initialisation shows, the step and the PSNR.

    Args:
      films: by initialisation, from left to right.
      support: the view that the fields adapt to.
      told: how many steps lie behind each frame.
    """
    return np.stack(
        [
            _frame({name: (film.rgb[index], float(film.psnr[index])) for name, film in films.items()}, support,
                   told[index], told[-1], index + 1, len(told))
            for index in range(len(told))
        ]
    )  # fmt: skip


def _frame(
    panels: Mapping[str, tuple[np.ndarray, float]],
    support: np.ndarray,
    step: int,
    last_step: int,
    number: int,
    num_frames: int,
) -> UInt8[np.ndarray, "high wide 3"]:
    by_name = colours(list(panels))
    width = MARGIN + (PANEL + MARGIN) * (len(panels) + 1)
    # Even sizes: what video codecs want.
    picture = Image.new("RGB", (width + width % 2, HEADER + PANEL + FOOTER), "white")
    draw = ImageDraw.Draw(picture)
    title, text = ImageFont.load_default(18), ImageFont.load_default(16)
    shown = [("support view", "given", support, "#444444")] + [
        (name, f"PSNR {decibels(score)}" if np.isfinite(score) else DIVERGED, image, by_name[name])
        for name, (image, score) in panels.items()
    ]
    for place, (name, note, image, colour) in enumerate(shown):
        left = MARGIN + place * (PANEL + MARGIN)
        draw.text((left + PANEL / 2, HEADER / 2 + 1), name, fill=colour, font=title, anchor="mm")
        picture.paste(_panel(image), (left, HEADER))
        draw.rectangle((left - 1, HEADER - 1, left + PANEL, HEADER + PANEL), outline="#c8c8c8")
        draw.text((left + PANEL / 2, HEADER + PANEL + 15), note, fill="#222222", font=text, anchor="mm")
    told = f"{step:,} of {last_step:,} gradient steps"
    _draw_progress(draw, width, told, number, num_frames, text)
    return np.asarray(picture)


def _panel(image: np.ndarray) -> Image.Image:
    """Returns an image as large as a panel allows, in its middle; what is not finite is grey."""
    pixels = np.round(255 * np.clip(np.nan_to_num(image, nan=0.9), 0, 1)).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return ImageOps.pad(picture, (PANEL, PANEL), Image.Resampling.BICUBIC, color="white")


def _draw_progress(draw: ImageDraw.ImageDraw, width: int, told: str, number: int, num_frames: int, font: Any) -> None:
    """Writes how far the adaptation is; beside it a bar tells how far the film is, which goes on when that is done."""
    middle = HEADER + PANEL + 42
    draw.text((MARGIN, middle), told, fill="#222222", font=font, anchor="lm")
    draw.text((width - MARGIN, middle), f"frame {number} of {num_frames}", fill="#222222", font=font, anchor="rm")
    longest = round(draw.textlength(f"frame {num_frames} of {num_frames}", font=font))
    left, right = MARGIN + 240, width - MARGIN - longest - 12
    draw.rectangle((left, middle - 2, right, middle + 2), fill="#e0e0e0")
    draw.rectangle((left, middle - 2, left + number / num_frames * (right - left), middle + 2), fill="#444444")


def write_gif(path: Path, frames: UInt8[np.ndarray, "frames height width 3"], *, seconds: float) -> None:
    """Writes an endless GIF whose frames share one palette, so that nothing flickers.

    Args:
      path: the file.
      frames: all of one size.
      seconds: that one round takes.
    """
    # As many frames as tell all colours.
    sample = frames[:: max(len(frames) // 6, 1)]
    palette = Image.fromarray(np.concatenate(sample)).quantize(256, Image.Quantize.MEDIANCUT)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    exact = _with_white(palette)
    for picture in pictures:
        picture.putpalette(exact)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=round(1000 * seconds / len(frames)), loop=0
    )


def _with_white(palette: Image.Image) -> list[int]:
    """Returns the entries of a palette, in which the one that stands for white is white."""
    white = Image.new("RGB", (1, 1), "white").quantize(palette=palette, dither=Image.Dither.NONE)
    index, entries = int(np.asarray(white)[0, 0]), list(palette.getpalette() or [])
    entries[3 * index : 3 * index + 3] = [255, 255, 255]
    return entries


def write_mp4(path: Path, frames: UInt8[np.ndarray, "frames height width 3"], *, seconds: float) -> bool:
    """Writes a video where the extra `video` is installed, and returns whether it is.

    Args:
      path: the file.
      frames: all of one size, which is even.
      seconds: that it takes.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return False
    from imageio_ffmpeg import get_ffmpeg_exe

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{len(frames) / seconds:g}"]
    wanted = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", str(path)]
    # Not by imageio, which forks: jax has threads.
    command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", *given, "-i", "-", *wanted]
    subprocess.run(command, input=frames.tobytes(), check=True)  # noqa: S603
    return True
