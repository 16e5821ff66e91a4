"""Text from outside made fit to be seen: what a terminal would obey, or what turns letters around, is written out."""

from __future__ import annotations


def legible(text: str, most: int | None = None) -> str:
    """The text with every character but line breaks that does not print, such as an escape code, as Python writes it.

    A text of more than ``most`` characters is cut there, and says how many follow.
    """
    left_out = 0 if most is None else max(0, len(text) - most)
    shown = text[:most] if left_out else text
    if not shown.isprintable():
        shown = "".join(_written(character) for character in shown)
    return f"{shown} ... and {left_out} more characters" if left_out else shown


def _written(character: str) -> str:
    return (
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
    )
