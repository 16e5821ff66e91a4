"""Cores that one process computes with and no other one, of this user's commands on this machine.

Threads of one job wait for each other many times in each step. Where a second job has threads on the same cores, each
of these waits lasts until the scheduler has taken turns, and both jobs take many times as long as one after the other
would (benchmarks/README.md, "Jobs side by side"). So whoever computes with several threads claims as many cores first.

A core has a file in the machine's temporary folder; whoever has its lock computes with it. The system takes the lock
from a process that has ended, however it ended, once those have ended that it forked. One process at a time looks for
cores, until it has all that it wants at once: nobody waits for a core with another one in hand. A process that was
suspended computes with nothing: where the system says that it was, another has a further file for its core.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from twinbench.foundation.cores import core_numbers
from twinbench.foundation.holder import Holder, machine_since_boot, read_holder, this_process

_LOOK_SECONDS = 0.1
_TELL_SECONDS = 10.0  # between two lines about one wait
_NEXT = "next"  # the lock of the process that looks for cores
_UNKNOWN = Holder("", 0)
_LONGEST = 4096  # bytes of what such a file says
_log = logging.getLogger(__name__)


@contextmanager
def claimed_cores(
    threads: int, waits: Callable[[str], None], check: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """While entered, no other process that claims cores computes with those that so many ``threads`` take.

    One thread takes none. Until there are as many free, ``waits`` is told what for (at the end an empty text), and
    ``check`` is called ten times a second, which may raise something. Where no file can be locked, a warning says so,
    and nothing is claimed.
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
    seen = told = ""
    due = 0.0
    while holder := _lacking(locks, cores, min(threads, len(cores))):
        before, seen = seen, holder.name()
        # twice in a row: who has just begun may not have said so yet
        if before == seen != told and time.monotonic() >= due:
            told, due = seen, time.monotonic() + _TELL_SECONDS
            waits(f"cores, after {told}")
        check()
        time.sleep(_LOOK_SECONDS)
    if told:
        waits("")


def _lacking(locks: _Locks, cores: list[str], count: int) -> Holder | None:
    try:
        return locks.lacks(cores, count)
    except OSError as error:
        locks.release()
        _warn(f"{error.filename or 'its files'}: {error.strerror}")
        return None


@cache
def _warn(why: str) -> None:
    """Once in a process."""
    _log.warning(
        "no cores can be claimed (%s): other commands on this machine may slow this one, and it them; "
        "set TMPDIR to a folder of your own on this machine",
        why,
    )


class _Locks:
    """The locks that this process has, by what they are for: each of one file."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def lacks(self, cores: list[str], count: int) -> Holder | None:
        """Claim so many of the cores if they are free; None if they were, else who is to be waited for.

        Raises OSError where files cannot be locked.
        """
        folder = _folder()
        if first := self._take(folder, _NEXT):
            return first
        free, holder = list[str](), None
        for core in cores:
            if other := self._take(folder, core):
                holder = other
            else:
                free.append(core)
            if len(free) == count:
                self.release([_NEXT])
                return None
        self.release(free)
        return holder

    def _take(self, folder: Path, what: str) -> Holder | None:
        """None if it is ours now; else whose it is."""
        if what in self._descriptors:
            return None
        file = folder / what
        # of further files another one may have a lock, though the suspended process has ended since
        while file.exists() or what not in self._descriptors:
            descriptor, holder = _lock(file)
            if descriptor is None:
                if not holder.is_suspended():
                    self.release(self._descriptors.keys() & {what})
                    return holder
            elif what in self._descriptors:
                _unlock(descriptor)
            else:
                self._descriptors[what] = descriptor
            file = file.with_name(f"{file.name}+")
        return None

    def release(self, these: Collection[str] | None = None) -> None:
        """Let go of some, or of all."""
        for what in list(self._descriptors) if these is None else these:
            _unlock(self._descriptors.pop(what))


def _lock(file: Path) -> tuple[int | None, Holder]:
    """The descriptor that has the lock of a file, if it was free, and who has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = read_holder(os.pread(descriptor, _LONGEST, 0))
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        # it may not have written that it has it
        return None, _UNKNOWN if holder is None or holder.is_gone() else holder
    with suppress(OSError):  # a full disk: others do not read whose it is
        os.ftruncate(descriptor, 0)
        os.write(descriptor, this_process())
    return descriptor, _UNKNOWN


def _unlock(descriptor: int) -> None:
    # closing is not enough: processes that were forked since have the file open too
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _folder() -> Path:
    """Where the files are; raises OSError if it is not this user's own, who would write into another's files.

    Its name says which machine's, for several may share a disk. Python's `tempfile` might choose the current folder.
    """
    machine = hashlib.sha256(machine_since_boot().encode()).hexdigest()[:8]
    folder = Path(os.environ.get("TMPDIR") or "/tmp") / f"twinbench-cores-{os.getuid()}-{machine}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it is not this user's own folder", str(folder))
    return folder
