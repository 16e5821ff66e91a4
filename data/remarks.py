"""Counting what is left out or assumed, and naming the first of it, in sentences that stay short."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NAMED = 3


@dataclass
class Tally:
    """How many there are of something, and the path of the first."""

    count: int = 0
    first: Path | None = None

    def add(self, path: Path) -> None:
        """Count one."""
        self.count += 1
        self.first = self.first or path

    def said(self, what: str, root: Path) -> str:
        """``3 pictures, train/cat/0.png for one``; the path is relative to ``root`` where it is below it."""
        assert self.first is not None
        named = f"{self.count} {what}{'' if self.count == 1 else 's'}, {shown(self.first, root)}"
        return named if self.count == 1 else f"{named} for one"


def shown(path: Path, root: Path) -> str:
    """A path below ``root`` without it, in characters that every file can hold."""
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return _printable(relative.as_posix())


def first_names(names: Sequence[str]) -> str:
    """The first three names and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(map(_printable, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _printable(name: str) -> str:
    """A file's name, which may be any bytes, in characters that can be written to a file."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
