"""Who works in a folder: a lease that one process holds at a time, on one machine or on several that share a disk.

It needs nothing of the file system but what all have, NFS too: to create a file exclusively, to rename it, to set its
time. The lease of a folder is the file with the highest number in its folder ``.lease``: ``000000012.held``, which
says who holds it, or ``000000012.free`` afterwards. Whoever wants it creates the next number, which one process alone
can do, also where it takes over from another. Numbers only grow, so a former holder sees that it is none any more.

The holder touches its file every few seconds. Others see it change and count, each by its own steady clock, for how
long it does not: no clock has to be right or to agree with another. A process of this machine that is gone is not
waited for.

The leases of filelock (4.3) were measured and do not fit. A ``SoftFileLease`` is never taken over where the file
system cannot exchange two names, which NFS cannot. With a ``SoftReadWriteLock`` the user who runs a killed command
again waits for the whole lease, and its files are for one account alone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from twinbench.foundation.errors import RunFailure

LEASE_SECONDS = 60.0
"""For so long a holder may show no sign of life: NFS may show the time of a file as it was up to a minute ago."""
_BEATS = 6  # signs of life during a lease
_LOOKS = 10  # at a folder in which files come and go, before it counts as held
_ABSENT = (errno.ENOENT, errno.ESTALE)  # the latter where another machine has removed a file
_FOLDER = ".lease"
_NAME = re.compile(r"(\d{9})\.(held|free)")
_log = logging.getLogger(__name__)


class LostLease(RunFailure):
    """Another process has taken the folder over, so this one may write nothing more into it."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease, as its file says; ``pid`` is 0 where that cannot be read.

    It promises a sign of life within ``seconds``. ``machine`` and ``started`` tell it from a later process with its
    number; they are empty where the system does not say.
    """

    host: str
    pid: int
    machine: str = ""
    started: str = ""
    since: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process"
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_gone(self) -> bool:
        """Whether it was a process of this machine that has ended; False where that cannot be known."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)  # asks, and sends nothing
        except ProcessLookupError:
            return True
        except PermissionError:  # it is there, and another account's
            pass
        return bool(self.started) and _started(self.pid) not in ("", self.started)


class Seen(NamedTuple):
    """What a process saw of a lease that is held, unchanged since so many ``seconds`` of its machine's steady clock.

    Other processes of the machine may go on from it.
    """

    number: int
    changed_ns: int
    content: bytes
    seconds: float


class Lease:
    """The lease of a folder, for one thread.

    ``seconds`` is how long it lasts without a sign of life (`LEASE_SECONDS`); ``clock`` counts the seconds for which
    another's holder has shown none, beginning with what was ``seen`` before.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        seen: Seen | None = None,
    ) -> None:
        self.seen = seen
        self._place = folder / _FOLDER
        self._seconds = LEASE_SECONDS if seconds is None else seconds
        self._clock = clock
        self._file: Path | None = None
        self._beaten = 0.0
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None
        self._named_damaged: Path | None = None

    def holder(self) -> Holder | None:
        """Who has it; None if nobody, or a process that is gone or has shown no life for its time. Raises OSError."""
        return self._look()[1]

    def take(self) -> bool:
        """Begin to hold it, if nobody does. Raises OSError where the folder cannot be written."""
        number, holder = self._look()
        if holder is not None:
            return False
        self._place.mkdir(parents=True, exist_ok=True)
        file = self._place / f"{number + 1:09d}.held"
        before = _since_boot()
        if not _create(file, _myself(self._seconds)):
            return False
        # a file whose number was used and removed since this process looked holds nothing
        others = [other for other in self._files() if other != file]
        if any(_number(other) > number for other in others):
            file.unlink(missing_ok=True)
            return False
        for older in others:
            with suppress(OSError):  # it has no meaning any more
                older.unlink()
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
            with suppress(OSError):  # lost, or the disk is gone: others take it over after its time
                file.rename(file.with_suffix(".free"))

    def check(self) -> None:
        """Raise LostLease if another process has it by now, as after a sleep that was longer than the lease."""
        # as long as life was shown a moment ago, nobody can have seen none for the whole lease
        if _since_boot() - self._beaten < self._seconds / 2 or self._beat():
            return
        newest = max(self._files(), default=None)
        by = "an unknown process" if newest is None else str(_holder(newest) or "an unknown process")
        raise LostLease(
            f"this process showed no life for over {self._seconds:g} s, and its work was taken over by {by}",
            where=self._place.parent,
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
            os.utime(file)
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            raise
        if any(_number(other) > _number(file) for other in self._files()):
            return False
        self._beaten = now
        return True

    def _files(self) -> list[Path]:
        try:
            names = os.listdir(self._place)
        except FileNotFoundError:
            return []
        return [self._place / name for name in names if _NAME.fullmatch(name)]

    def _look(self) -> tuple[int, Holder | None]:
        """The highest number, and who holds it."""
        number = 0
        for _ in range(_LOOKS):
            newest = max(self._files(), default=None)  # of two with one number, "held" comes after "free"
            if newest is None or newest.suffix == ".free":
                self.seen = None
                return (0 if newest is None else _number(newest)), None
            number = _number(newest)
            try:
                return number, self._judged(newest)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
        return number, Holder("", 0)

    def _judged(self, file: Path) -> Holder | None:
        with file.open("rb") as handle:
            content, changed = handle.read(), os.fstat(handle.fileno()).st_mtime_ns
        now = self._clock()
        if self.seen is None or self.seen[:3] != (_number(file), changed, content):
            self.seen = Seen(_number(file), changed, content, now)
        holder = _parsed(content)
        if holder is None:
            self._name_damaged(file)
            holder = Holder("", 0, seconds=self._seconds)
        return None if holder.is_gone() or now - self.seen.seconds >= holder.seconds else holder

    def _name_damaged(self, file: Path) -> None:
        if file != self._named_damaged:
            self._named_damaged = file
            _log.warning(
                "%s cannot be read, so nobody knows who works there: held until it has not changed for %g s",
                file,
                self._seconds,
            )


def _number(file: Path) -> int:
    return int(file.stem)


def _create(file: Path, content: bytes) -> bool:
    """Whether the file was not there and is now. Raises OSError, without leaving it, if it cannot be written."""
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


def _myself(seconds: float) -> bytes:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")  # for people; nothing is computed from it
    pid = os.getpid()
    me = Holder(socket.gethostname(), pid, _machine(), _started(pid), since, seconds)
    return json.dumps(asdict(me)).encode()


def _holder(file: Path) -> Holder | None:
    try:
        return _parsed(file.read_bytes())
    except OSError:
        return None


def _parsed(content: bytes) -> Holder | None:
    """What the file of a lease says, or None if it is damaged."""
    try:
        holder = Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None
    texts = (holder.host, holder.machine, holder.started, holder.since)
    sound = all(isinstance(text, str) for text in texts)
    sound = sound and isinstance(holder.pid, int) and isinstance(holder.seconds, (int, float))
    return holder if sound and 0 < holder.pid < 2**31 and holder.seconds >= 0 else None


@cache
def _machine() -> str:
    """This machine since it was started, and which numbers of processes it counts; empty if it does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine started, in ticks since then, or that it has ended; empty if that is not told."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # a zombie has ended, and only its parent has not asked for it
    return "ended" if state in "ZX" else fields[18]


def _since_boot() -> float:
    """Seconds by a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
