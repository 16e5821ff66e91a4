"""Writing files: whole or absent, on the disk before the next step, and faults of the machine said in our form."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from twinbench.foundation.errors import RunFailure

LARGEST_DOCUMENT = 2**28
"""Bytes of a document, a thousand times what ours have."""

_fences: dict[Path, Callable[[], None]] = {}


def read_document(path: Path, most: int = LARGEST_DOCUMENT) -> bytes:
    """The content of a file that is small by its kind.

    Raises OSError where it cannot be read, also for what is no file, such as a pipe, which would be waited for, and for
    one of more than ``most`` bytes, of which a disk may hold next to none.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no file of a disk", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, {most} at most are read", str(path))
        return file.read()


@contextlib.contextmanager
def fenced(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """While entered, ``check`` is called before a file takes its place in ``folder``; it refuses that by raising."""
    key = Path(os.path.abspath(folder))
    _fences[key] = check
    try:
        yield
    finally:
        del _fences[key]


def check_fences(path: Path) -> None:
    """Raise what forbids to write ``path`` now, if anything does; `write_atomically` asks by itself."""
    place = Path(os.path.abspath(path))
    for folder, check in list(_fences.items()):
        if place.is_relative_to(folder):
            check()


@contextlib.contextmanager
def machine_faults(what: str, where: Path, next_step: str, option: str | None = None) -> Iterator[None]:
    """Turn an OSError of the block into a RunFailure that says what could not be done; a full disk wants space."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        what = f"{what}: a file is where a folder would be"
        raise RunFailure(what, where, None, "give another folder", option) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            next_step, option = "free some space, and run the same command again", None
        raise RunFailure(f"{what}: {error.strerror or error}", where, None, next_step, option) from error


def write_synced(path: Path, content: bytes) -> None:
    """Write the file and wait until the disk has it. Raises OSError; a crash may leave half of the file."""
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary name beside ``path``, sync it, rename it into place.

    A file that is replaced passes its permissions on. Raises RunFailure naming the path if the folder is read-only
    or the disk is full, and what a fence around the folder raises; no half-written file is left behind.
    """
    with machine_faults("cannot write", path, "free some space or give a writable folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            write_synced(temporary, content)
            temporary.chmod(_permissions(path))
            check_fences(path)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _permissions(path: Path) -> int:
    """Those of the file there; of a new one, readable by all."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return 0o644


def user_cache() -> Path | None:
    """The folder of twinbench in the user's cache folder, which may not be there yet; None where nobody has a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "twinbench"
    except RuntimeError:
        return None


def slug(text: str) -> str:
    """A text as part of a file name: what is neither an ASCII letter nor a digit becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text)
