"""Puts numbers into words, as every command prints them."""

import math

DIVERGED = "diverged"
"""Stands for a number that is not finite."""


def counted(count: int, noun: str) -> str:
    """Returns so many of something: "1 scene", "1,000 scenes"."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def decibels(psnr: float) -> str:
    """Returns a PSNR: "20.3 dB", or "diverged" where it is not finite."""
    return f"{psnr:.1f} dB" if math.isfinite(psnr) else DIVERGED
