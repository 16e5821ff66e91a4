"""The law that every reader keeps: a good value or an explained error, in bounded time, and nothing done on the side.

`watched` counts what Python's audit hooks tell: a program that is started, a socket that is opened, a file that is
written, moved or deleted outside the folder of the input. A reader may do none of it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib.font_manager  # noqa: F401  (which makes folders and a cache when it is first imported: no reader may)

from twinbench.foundation.errors import ExplainedError
from twinbench.pretraining.memory import release_freed_memory

SECONDS = 10.0
MEMORY = 2 * 2**30
LONGEST_MESSAGE = 20_000

_STARTS = {
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "ctypes.dlopen",
}
_CONNECTS = {"socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"}
# Which of the arguments of an event are paths that it changes.
_CHANGES = {
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"), slice(0, 1)),
    "os.rename": slice(0, 2),
    **dict.fromkeys(("os.link", "os.symlink"), slice(1, 2)),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class BrokenLaw(BaseException):
    """A reader did what none may; no `except Exception` of a reader takes it for damage of a file."""


class TooSlow(BrokenLaw):
    """A reader computed longer than SECONDS."""


class _Watch:
    folder: str | None = None
    seen: list[str]

    def __init__(self) -> None:
        self.seen = []

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            changed = arguments[:1] if arguments[2] & _WRITING else ()
        else:
            changed = arguments[_CHANGES[event]] if event in _CHANGES else ()
        if event in _STARTS | _CONNECTS or not all(map(self._is_inside, changed)):
            self.seen.append(f"{event}{arguments!r:.200}")

    def _is_inside(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor, which was opened by a name before
        return os.path.realpath(os.fsdecode(path)).startswith(f"{self.folder}{os.sep}")


_watch: _Watch | None = None


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """What the block does on the side, while it may write to ``folder`` alone."""
    global _watch
    if _watch is None:  # a hook cannot be taken away again
        _watch = _Watch()
        sys.addaudithook(_watch.hook)
    _watch.seen = []
    _watch.folder = os.path.realpath(folder)
    try:
        yield _watch.seen
    finally:
        _watch.folder = None


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {SECONDS:g} seconds of computing")


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    before = signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """No more than MEMORY beyond what the process has now; without a limit where the system does not tell that.

    What earlier work of the process freed is given back first: a reader could use it, for the limit counts it already.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    release_freed_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(read: Callable[[Path], object], folder: Path) -> str:
    """``value``, or ``error`` where the reader explained one. Whatever else happens is raised: it breaks the law."""
    logging.disable(logging.CRITICAL)
    try:
        printed = contextlib.redirect_stdout(io.StringIO())
        with _limited_memory(), watched(folder) as done, _limited_time(), warnings.catch_warnings(), printed:
            warnings.simplefilter("ignore")  # of libraries, about what is odd in a file
            try:
                read(folder)
                ended = "value"
            except ExplainedError as error:
                check_message(error)
                ended = "error"
        if done:
            raise BrokenLaw(f"done on the side: {'; '.join(done)}")
        return ended
    finally:
        logging.disable(logging.NOTSET)


def check_message(error: ExplainedError) -> None:
    """Raise BrokenLaw for a message that a terminal would obey, or that is no message but the file again."""
    text = str(error)
    odd = {character for character in text if not (character.isprintable() or character == "\n")}
    if odd:
        raise BrokenLaw(f"the message holds {sorted(odd)!r}")
    if len(text) > LONGEST_MESSAGE:
        raise BrokenLaw(f"the message has {len(text)} characters")


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write an input."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_files(read: Callable[[Path], object], files: dict[str, bytes]) -> str:
    """`outcome` of files in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="twinbench-fuzz-") as folder:
        write_files(Path(folder), files)
        return outcome(read, Path(folder))
