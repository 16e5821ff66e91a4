"""Files inside uncompressed tar files, read where they lie: nothing is unpacked.

Such a file has a path, too, by which any process finds its bytes again: ``SHARD.tar/OFFSET+SIZE/NAME``.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import BinaryIO

_MEMBER = re.compile(r"(.*?\.tar)/(\d{1,18})\+(\d{1,18})/", re.DOTALL)


def member_path(shard: Path, offset: int, size: int, name: str) -> Path:
    """The path of ``size`` bytes at ``offset`` of a tar file that are called ``name`` there."""
    return shard / f"{offset}+{size}" / name


def opened_member(path: Path) -> BinaryIO | None:
    """What lies at the path of a member, to be closed; None if it is the path of a file of its own.

    Raises OSError if the tar file cannot be opened.
    """
    text = os.fspath(path)
    found = _MEMBER.match(text) if ".tar/" in text else None
    if found is None or os.path.isdir(found[1]):
        return None
    return io.BufferedReader(_Window(found[1], int(found[2]), int(found[3])))


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, path: str, start: int, size: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with this one)
        self._start, self._size, self._place = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._place = base + offset
        return self._place

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        wanted = max(0, min(len(buffer), self._size - self._place))
        self._file.seek(self._start + self._place)
        read = self._file.readinto(memoryview(buffer)[:wanted]) or 0
        self._place += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()
