"""Which process holds something, as it says itself in a file that others read."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """The process that holds something, as its file says; ``pid`` is 0 where that cannot be read.

    Of a lease it promises a sign of life within ``seconds``. ``machine`` and ``started`` tell it from a later process
    with its number; they are empty where the system does not say.
    """

    host: str
    pid: int
    machine: str = ""
    started: str = ""
    since: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.name()}, since {self.since}" if self.pid else self.name()

    def name(self) -> str:
        """What it is called, without since when it holds this."""
        return f"process {self.pid} on {self.host}" if self.pid else "an unknown process"

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

    def is_suspended(self) -> bool:
        """Whether it is a process of this machine that was stopped, as by Ctrl-Z; False where that cannot be known."""
        is_here = bool(self.machine) and self.machine == _machine() and _started(self.pid) == self.started
        return is_here and _state(self.pid)[:1] == ["T"]


def this_process(seconds: float = 0.0) -> bytes:
    """What the file says of something that this process holds; of a lease also within how many ``seconds``."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")  # for people; nothing is computed from it
    pid = os.getpid()
    me = Holder(socket.gethostname(), pid, _machine(), _started(pid), since, seconds)
    return json.dumps(asdict(me)).encode()


def read_holder(content: bytes) -> Holder | None:
    """What such a file says, or None if it is damaged."""
    try:
        holder = Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None
    texts = (holder.host, holder.machine, holder.started, holder.since)
    sound = all(isinstance(text, str) for text in texts)
    sound = sound and isinstance(holder.pid, int) and isinstance(holder.seconds, (int, float))
    return holder if sound and 0 < holder.pid < 2**31 and holder.seconds >= 0 else None


def machine_since_boot() -> str:
    """This machine since it was started, for all its containers; where it does not say, the name of this host."""
    return _boot() or socket.gethostname()


@cache
def _machine() -> str:
    """This machine since it was started, and which numbers of processes it counts; empty if it does not say."""
    try:
        return f"{_boot()} {os.stat('/proc/self/ns/pid').st_ino}" if _boot() else ""
    except OSError:
        return ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine started, in ticks since then, or that it has ended; empty if that is not told."""
    state = _state(pid)
    if not state:
        return ""
    # a zombie has ended, and only its parent has not asked for it
    return "ended" if state[0] in "ZX" else state[19]


def _state(pid: int) -> list[str]:
    """What the system says of a process after its name, from one letter for what it does; empty if it says nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
