"""Cores that one process computes with and no other one, of this user's commands on this machine.

Threads of one job wait for each other many times in each step. Where a second job has threads on the same cores, each
of these waits lasts until the scheduler has taken turns, and both jobs take many times as long as one after the other
would (benchmarks/README.md, "Jobs side by side"). So whoever computes with several threads claims as many cores first.

A core has a file in the machine's temporary folder; whoever has its lock computes with it. The system takes the lock
from a process that has ended, however it ended. One process at a time looks for cores, until it has all that it wants
at once: nobody waits for a core with another one in hand. A process that was suspended computes with nothing, so its
cores are no obstacle.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from twinbench.foundation.cores import core_numbers
from twinbench.foundation.holder import Holder, read_holder, this_process

_LOOK_SECONDS = 0.1
_NEXT = "next"  # the lock of the process that looks for cores
_UNKNOWN = Holder("", 0)
_log = logging.getLogger(__name__)


@contextmanager
def claimed_cores(
    threads: int, waits: Callable[[str], None], check: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """While entered, no other process that claims cores computes with those that so many ``threads`` take.

    One thread takes none. Until there are as many free, ``waits`` is told what for, and ``check`` is called ten times a
    second, which may raise something. Where no file can be locked, a warning says so, and nothing is claimed.
    """
    locks = _Locks()
    try:
        if threads > 1:
            _claim(locks, threads, waits, check)
        yield
    finally:
        locks.release()


def _claim(locks: _Locks, threads: int, waits: Callable[[str], None], check: Callable[[], None]) -> None:
    cores = [f"core-{number}" for number in core_numbers()]
    told = ""
    while (why := _lacking(locks, cores, min(threads, len(cores)))) is not None:
        if why != told:
            waits(told := why)
        check()
        time.sleep(_LOOK_SECONDS)


def _lacking(locks: _Locks, cores: list[str], count: int) -> str | None:
    try:
        return locks.lacks(cores, count)
    except OSError as error:
        locks.release()
        _warn(str(error))
        return None


@cache
def _warn(why: str) -> None:
    """Once in a process."""
    _log.warning(
        "no cores can be claimed (%s): other commands on this machine may slow this one, and it them", why
    )


class _Locks:
    """The locks that this process has, by their files."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def lacks(self, cores: list[str], count: int) -> str | None:
        """Claim so many of the cores if they are free; None if they were, else what is to be waited for.

        Raises OSError where files cannot be locked.
        """
        folder = _folder()
        if (first := self._take(folder / _NEXT)) is not None:
            return _after(first)
        free, holder = list[Path](), _UNKNOWN
        for core in (folder / name for name in cores):
            if (other := self._take(core)) is None:
                free.append(core)
            else:
                holder = other
            if len(free) == count:
                self.release([folder / _NEXT])
                return None
        self.release(free)
        return _after(holder)

    def _take(self, file: Path) -> Holder | None:
        """None if the lock of a file is ours now, or that of a process which was suspended; else whose it is."""
        if file in self._descriptors:
            return None
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            return None if holder.is_suspended() else holder
        self._descriptors[file] = descriptor
        with suppress(OSError):  # a full disk: others do not read whose it is
            os.ftruncate(descriptor, 0)
            os.write(descriptor, this_process())
        return None

    def release(self, files: Collection[Path] | None = None) -> None:
        """Let go of the locks of some files, or of all."""
        for file in self._descriptors.keys() & files if files is not None else list(self._descriptors):
            descriptor = self._descriptors.pop(file)
            # closing is not enough: processes that were forked since have the file open too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _after(holder: Holder) -> str:
    return f"cores, after {holder}"


def _holder(descriptor: int) -> Holder:
    holder = read_holder(os.pread(descriptor, 4096, 0))
    return _UNKNOWN if holder is None or holder.is_gone() else holder


def _folder() -> Path:
    """Where the files are; raises OSError if it is not this user's own, who would write into another's files."""
    folder = Path(tempfile.gettempdir()) / f"twinbench-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it is not a folder of this user", str(folder))
    return folder
