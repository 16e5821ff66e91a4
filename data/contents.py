"""What is in the files of an image set, at a bounded price: a digest of 4 KiB from each end of every file and its size.

A picture that is replaced by another is noticed though its name and size stay. What would go unnoticed is a change in
the middle of a file of more than 8 KiB that keeps its size and both ends: an edited bitmap, never a compressed picture
in practice.

The digests of a large set are kept in the user's cache folder, one index for each folder of images, under a key that
holds a file's name, size and times; so only what is new or changed is read again. An index that is missing, damaged or
cannot be written costs time, nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.files import user_cache, write_atomically

_log = logging.getLogger(__name__)

WORTH_AN_INDEX = 1000
"""Files of a set whose index is kept; a smaller one is read again as fast."""
THREADS = 16
"""A disk elsewhere answers many questions at a time."""

_END = 4096
_WIDTH = 16
_FILES_PER_TASK = 256
_SETTLED_NS = 10 * 10**9
_MAGIC = b"twinbench contents 1\n"
_CHECKSUM = 32


class _Looked(NamedTuple):
    """A file's digest, its key in the index, and whether it was read just now and may be kept."""

    key: bytes
    digest: bytes
    was_read: bool
    settled: bool


def digests(root: Path, paths: Sequence[Path]) -> list[bytes]:
    """The digest of each file, 16 bytes; raises InputError for one that cannot be read.

    A digest depends on the file's size and the bytes at its ends, not on its name, place or dates.
    """
    index_file = cache_place("contents", root) if len(paths) >= WORTH_AN_INDEX else None
    index = _read(index_file) if index_file else {}
    above = len(os.fspath(root / "x")) - 1  # nothing where the root is the current folder

    def look_at(start: int) -> list[_Looked]:
        part = map(os.fspath, paths[start : start + _FILES_PER_TASK])
        return [_look(path, path[above:], index) for path in part]

    with ThreadPoolExecutor(THREADS) as pool:
        starts = range(0, len(paths), _FILES_PER_TASK)
        looked = [one for part in pool.map(look_at, starts) for one in part]
    if index_file and any(one.was_read and one.settled for one in looked):
        _write(index_file, {one.key: one.digest for one in looked if one.settled})
    return [one.digest for one in looked]


def _look(path: str, name: str, index: dict[bytes, bytes]) -> _Looked:
    try:
        status = os.stat(path)
        key = identity(name, status)
        known = index.get(key)
        settled = is_settled(status)
        return _Looked(key, known or _digest(path, status.st_size), known is None, settled)
    except OSError as error:
        raise InputError(
            f"cannot read this file: {error.strerror}", where=path, next_step="make it readable"
        ) from error


def identity(name: str, status: os.stat_result) -> bytes:
    """What changes when a file is changed: a key of its name, size and times, 16 bytes."""
    text = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
    return hashlib.blake2b(os.fsencode(text), digest_size=_WIDTH).digest()


def is_settled(status: os.stat_result) -> bool:
    """Whether a change now would give the file another time; one that was written a moment ago may keep it."""
    return max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - _SETTLED_NS


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...


def _digest(path: str, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return digest_of(file, 0, size)


def digest_of(file: _Readable, start: int, size: int) -> bytes:
    """The digest of ``size`` bytes from ``start`` of an open file, 16 bytes. Raises OSError."""
    digest = hashlib.blake2b(b"%d:" % size, digest_size=_WIDTH)
    file.seek(start)
    digest.update(file.read(size if size <= 2 * _END else _END))
    if size > 2 * _END:
        file.seek(start + size - _END)
        digest.update(file.read(_END))
    return digest.digest()


def cache_place(kind: str, root: Path) -> Path | None:
    """Where what is known of a folder is kept, wherever the path to it began; None without a cache folder."""
    cache = user_cache()
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return None if cache is None else cache / kind / name


def _read(file: Path) -> dict[bytes, bytes]:
    """The index in a file; empty if there is none or it is damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return {}
    rows = content[len(_MAGIC) : -_CHECKSUM]
    if content != _MAGIC + rows + hashlib.sha256(rows).digest() or len(rows) % (2 * _WIDTH):
        _log.warning("the index of contents in %s is damaged: reading the files again", file)
        return {}
    cut = [rows[i : i + _WIDTH] for i in range(0, len(rows), _WIDTH)]
    return dict(zip(cut[::2], cut[1::2], strict=True))


def _write(file: Path, index: dict[bytes, bytes]) -> None:
    rows = b"".join(key + digest for key, digest in index.items())
    try:
        write_atomically(file, _MAGIC + rows + hashlib.sha256(rows).digest())
    except RunFailure as error:
        _log.info("no index of contents: %s", error)
