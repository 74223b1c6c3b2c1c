"""Types of command line arguments that the scripts share."""

from __future__ import annotations

from argparse import ArgumentTypeError


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text} is not a number above 0")
    return value


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or not int(text):
        raise ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def slug(text: str) -> str:
    """A name that can be part of a folder's."""
    if not text or "--" in text or text.strip(".") == "" or not all(c.isalnum() or c in "-._" for c in text):
        raise ArgumentTypeError(f"'{text}': write letters, digits, '-', '.' and '_', and no '--'")
    return text
