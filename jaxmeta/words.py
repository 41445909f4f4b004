"""Puts numbers into words, as every command prints them."""


def counted(count: int, noun: str) -> str:
    """Returns so many of something: "1 scene", "1,000 scenes"."""
    return f"{count:,} {noun}" + "s" * (count != 1)
