"""Files of their own and inside uncompressed tar files, which are read where they lie: nothing is unpacked.

A file in a tar file has a path, too, by which any process finds its bytes again: ``SHARD.tar/OFFSET+SIZE/NAME``.
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


def opened_file(path: Path) -> BinaryIO:
    """What lies at a path, of a member or of a file of its own, to be closed.

    Raises OSError if the file, or the tar file, cannot be opened.
    """
    text = os.fspath(path)
    found = _MEMBER.match(text) if ".tar/" in text else None
    if found is None or os.path.isdir(found[1]):
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with what is returned)
        return _Bounded(file, os.fstat(file.fileno()).st_size)
    size = int(found[3])
    return _Bounded(_Window(found[1], int(found[2]), size), size)


class _Bounded(io.BufferedReader):
    """A file of ``size`` bytes; who asks for more than that at once, as a header may say, takes no memory for it."""

    def __init__(self, file: io.RawIOBase, size: int) -> None:
        super().__init__(file)
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(-1 if size is None or size > self._size else size)


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
