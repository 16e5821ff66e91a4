"""Counting what is left out or assumed, and naming the first of it, in sentences that stay short."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NAMED = 3


@dataclass
class Tally:
    """How many there are of something, and the first in words, its path for example."""

    count: int = 0
    first: str = ""

    def add(self, case: str) -> None:
        """Count one."""
        self.count += 1
        self.first = self.first or case

    def said(self, kind: str) -> str:
        """``3 pictures, train/cat/0.png for one``."""
        named = f"{self.count} {kind}{'' if self.count == 1 else 's'}, {self.first}"
        return named if self.count == 1 else f"{named} for one"

    def of(self, total: int, kind: str) -> str:
        """``3 of 20 pictures (a.jpg for one)``."""
        return f"{self.count} of {total} {kind} ({self.first} for one)"


def shown(path: Path, root: Path) -> str:
    """A path below ``root`` without it, in characters that every file can hold."""
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return _printable(relative.as_posix())


def first_names(names: Sequence[str]) -> str:
    """The first three names and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(map(_printable, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _printable(name: str) -> str:
    """A file's name, which may be any bytes, in characters that can be written to a file and keep to one line."""
    written = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in written)
