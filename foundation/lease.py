"""Who works in a folder: a lease that one process holds at a time, on one machine or on several that share a disk.

It needs nothing of the file system but what all have, NFS too: to create a file exclusively, to rename it, to set its
time (`LeaseFiles`; an object store has them as well, `foundation.object_store`). The lease of a folder is the file
with the highest number in its folder ``.lease``: ``000000012.held``, which says who holds it, or ``000000012.free``
afterwards. Whoever wants it creates the next number, which one process alone can do, also where it takes over from
another. Numbers only grow, so a former holder sees that it is none any more.

The holder touches its file every few seconds. Others see it change and count, each by its own steady clock, for how
long it does not: no clock has to be right or to agree with another, and what nobody could see, since the place did not
answer, does not count. A process of this machine that is gone is not waited for. Who takes over looks once more
afterwards: a holder that wakes at that moment either sees the new number or is seen.

The leases of filelock (4.3) were measured and do not fit. A ``SoftFileLease`` is never taken over where the file
system cannot exchange two names, which NFS cannot. With a ``SoftReadWriteLock`` the user who runs a killed command
again waits for the whole lease, and its files are for one account alone.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from twinbench.foundation.errors import RunFailure
from twinbench.foundation.holder import Holder, read_holder, this_process

LEASE_SECONDS = 60.0
"""For so long a holder may show no sign of life: NFS may show the time of a file as it was up to a minute ago."""
_BEATS = 6  # signs of life during a lease
_LOOKS = 10  # at a folder in which files come and go, before it counts as held
FOLDER = ".lease"
"""Where the files of a lease are, in what it is the lease of."""
_NAME = re.compile(r"(\d{9})\.(held|free)")
_let_go: set[tuple[str, str, bytes]] = set()
"""Leases that this process has let go of though their disk, read-only by then, did not take it."""
_log = logging.getLogger(__name__)


class LostLease(RunFailure):
    """Another process has taken the folder over, so this one may write nothing more into it."""


class Seen(NamedTuple):
    """What a process saw of a lease that is held, unchanged since so many ``seconds`` of its machine's steady clock.

    Other processes of the machine may go on from it.
    """

    number: int
    sign: object
    content: bytes
    seconds: float


class LeaseFiles(Protocol):
    """The small files of one lease, wherever they are, by their names; ``str`` of it says where that is.

    All but ``names`` and ``create`` raise FileNotFoundError for a file that is gone, and each raises another OSError
    where the place does not answer.
    """

    def names(self) -> list[str]:
        """All there are."""

    def create(self, name: str, content: bytes) -> bool:
        """Whether it was not there and is now, with its content; of several that try, one has done it."""

    def read(self, name: str) -> tuple[bytes, object]:
        """The content, and a sign that is another one after each touch."""

    def touch(self, name: str) -> None:
        """Give a file that this object has created another sign."""

    def rename(self, name: str, other: str) -> None:
        """Give a file that this object has created another name."""

    def remove(self, name: str) -> None:
        """Remove it."""


class Lease:
    """The lease of a folder, for one thread; or of something else, which has its ``LeaseFiles`` elsewhere.

    ``seconds`` is how long it lasts without a sign of life (`LEASE_SECONDS`); ``clock`` counts the seconds for which
    another's holder has shown none, beginning with what was ``seen`` before.
    """

    def __init__(
        self,
        place: Path | LeaseFiles,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        seen: Seen | None = None,
    ) -> None:
        self.seen = seen
        self._files = _FilesOfFolder(place) if isinstance(place, Path) else place
        self._seconds = LEASE_SECONDS if seconds is None else seconds
        self._clock = clock
        self._file: str | None = None
        self._beaten = 0.0
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None
        self._named_damaged: str | None = None

    def holder(self) -> Holder | None:
        """Who has it; None if nobody, or a process that is gone or has shown no life for its time. Raises OSError."""
        return self._look()[1]

    def take(self) -> bool:
        """Begin to hold it, if nobody does. Raises OSError where the folder cannot be written."""
        number, holder = self._look()
        if holder is not None:
            return False
        file, silent = f"{number + 1:09d}.held", self.seen
        before = _since_boot()
        if not self._files.create(file, this_process(self._seconds)):
            return False
        try:
            others = [other for other in self._names() if other != file]
            # a file whose number was used and removed since this process looked holds nothing
            void = any(_number(other) > number for other in others) or self._has_woken(silent)
        except OSError:
            self._remove(file)
            raise
        if void:
            self._remove(file)
            return False
        for older in others:
            self._remove(older)  # it has no meaning any more
        self.seen, self._file, self._beaten = None, file, before
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._show_life, args=(self._stop,), daemon=True)
        self._heart.start()
        return True

    def release(self) -> None:
        """End the hold, if it has not been lost."""
        self._stop.set()
        if self._heart is not None:
            self._heart.join()
        file, self._file, self._heart = self._file, None, None
        if file is not None:
            try:
                self._files.rename(file, file.replace(".held", ".free"))
            except OSError:  # lost, or the disk is gone: other processes take it over after its time
                with suppress(OSError):
                    _let_go.add((str(self._files), file, self._files.read(file)[0]))

    def check(self) -> None:
        """Raise LostLease if another process has it by now, as after a sleep that was longer than the lease."""
        # as long as life was shown a moment ago, nobody can have seen none for the whole lease
        if _since_boot() - self._beaten < self._seconds / 2 or self._beat():
            return
        newest = max(self._names(), default=None)
        holder = None if newest is None else self._holder(newest)
        raise LostLease(
            f"this process showed no life for over {self._seconds:g} s, and its work was taken over by "
            f"{holder or 'an unknown process'}",
            where=self._files,
            next_step="nothing is lost that was finished: run the same command again",
        )

    def _show_life(self, stop: threading.Event) -> None:
        while not stop.wait(self._seconds / _BEATS):
            with suppress(OSError):  # a disk that does not answer: `check` asks again
                self._beat()

    def _beat(self) -> bool:
        """Show life; False if the hold is lost."""
        file, now = self._file, _since_boot()
        if file is None:
            return False
        try:
            self._files.touch(file)
        except FileNotFoundError:
            return False
        if any(_number(other) > _number(file) for other in self._names()):
            return False
        self._beaten = now
        return True

    def _remove(self, file: str) -> None:
        with suppress(OSError):
            self._files.remove(file)

    def _names(self) -> list[str]:
        return [name for name in self._files.names() if _NAME.fullmatch(name)]

    def _look(self) -> tuple[int, Holder | None]:
        """The highest number, and who holds it."""
        try:
            return self._looked()
        except OSError:
            self.seen = None  # a holder is not silent where nobody could hear it
            raise

    def _looked(self) -> tuple[int, Holder | None]:
        number = 0
        for _ in range(_LOOKS):
            newest = max(self._names(), default=None)  # of two with one number, "held" comes after "free"
            if newest is None or newest.endswith(".free"):
                self.seen = None
                return (0 if newest is None else _number(newest)), None
            number = _number(newest)
            with suppress(FileNotFoundError):
                return number, self._judged(newest)
        return number, Holder("", 0)

    def _judged(self, file: str) -> Holder | None:
        content, sign = self._files.read(file)
        now = self._clock()
        if self.seen is None or self.seen[:3] != (_number(file), sign, content):
            self.seen = Seen(_number(file), sign, content, now)
        holder = read_holder(content)
        if holder is None:
            self._name_damaged(file)
            holder = Holder("", 0, seconds=self._seconds)
        is_left = (str(self._files), file, content) in _let_go or holder.is_gone()
        return None if is_left or now - self.seen.seconds >= holder.seconds else holder

    def _has_woken(self, silent: Seen | None) -> bool:
        """Whether a holder that was taken for dead has shown life since."""
        if silent is None:  # nobody held it
            return False
        try:
            content, sign = self._files.read(f"{silent.number:09d}.held")
        except FileNotFoundError:
            return False
        return (sign, content) != (silent.sign, silent.content)

    def _holder(self, file: str) -> Holder | None:
        try:
            return read_holder(self._files.read(file)[0])
        except OSError:
            return None

    def _name_damaged(self, file: str) -> None:
        if file != self._named_damaged:
            self._named_damaged = file
            _log.warning(
                "%s/%s/%s cannot be read, so nobody knows who works there: held until it has not changed for %g s",
                self._files,
                FOLDER,
                file,
                self._seconds,
            )


class _FilesOfFolder:
    """The files of a lease on a disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place = folder / FOLDER

    def __str__(self) -> str:
        return str(self._folder)

    def names(self) -> list[str]:
        try:
            return os.listdir(self._place)
        except FileNotFoundError:
            return []

    def create(self, name: str, content: bytes) -> bool:
        """As `LeaseFiles.create`; raises OSError, without leaving the file, if it cannot be written."""
        self._place.mkdir(parents=True, exist_ok=True)
        file = self._place / name
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, content)
        except OSError:
            file.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return True

    def read(self, name: str) -> tuple[bytes, object]:
        with _absence(), (self._place / name).open("rb") as handle:
            return handle.read(), os.fstat(handle.fileno()).st_mtime_ns

    def touch(self, name: str) -> None:
        with _absence():
            os.utime(self._place / name)

    def rename(self, name: str, other: str) -> None:
        (self._place / name).rename(self._place / other)

    def remove(self, name: str) -> None:
        (self._place / name).unlink()


@contextmanager
def _absence() -> Iterator[None]:
    """Say of a file that another machine has removed what is said of one that was removed here."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        raise


def _number(file: str) -> int:
    return int(file.partition(".")[0])


def _since_boot() -> float:
    """Seconds by a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
